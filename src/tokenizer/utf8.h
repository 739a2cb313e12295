/* How much of a byte string is whole UTF-8 characters. */
#ifndef SH_TOKENIZER_UTF8_H
#define SH_TOKENIZER_UTF8_H

#include <stddef.h>

/** Length of the longest prefix of n bytes that does not end inside a character: bytes that may
 *  still become a valid character when more come are held back, bytes that cannot are not. */
size_t sh_utf8_whole(const char *p, size_t n);

#endif
