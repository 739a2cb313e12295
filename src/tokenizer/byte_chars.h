/* The alphabet in which byte-level BPE spells tokens and merges: one printable character for each
 * byte. Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
 * section 2.2, and the vocabulary published with it. */
#ifndef SH_TOKENIZER_BYTE_CHARS_H
#define SH_TOKENIZER_BYTE_CHARS_H

#include <stddef.h>
#include <stdint.h>

enum { SH_BYTE_CHAR_MAX = 2 }; /* bytes of UTF-8 that a character of the alphabet takes at most */

/** Writes the character of a byte, without a NUL, and returns its bytes, 1 or 2. */
size_t sh_byte_char(char *out, uint8_t byte);

/** The byte of the character that n > 0 bytes begin with, and the character's bytes in *used; -1 if
 *  it is none of the alphabet. */
int sh_byte_of_char(const char *p, size_t n, size_t *used);

#endif
