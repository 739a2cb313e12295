/* Which bytes are whole UTF-8 characters: no overlong forms, no surrogates, nothing above U+10FFFF.
 */
#ifndef SH_TOKENIZER_UTF8_H
#define SH_TOKENIZER_UTF8_H

#include <stddef.h>

/** Length of the longest prefix of n bytes that does not end inside a character: bytes that may
 *  still become a valid character when more come are held back, bytes that cannot are not. */
size_t sh_utf8_whole(const char *p, size_t n);

/** The length, 1 to 4, of the character that n > 0 bytes begin with; 0 if they may still become one
 *  when more come; -1 if they cannot. */
int sh_utf8_char(const char *p, size_t n);

#endif
