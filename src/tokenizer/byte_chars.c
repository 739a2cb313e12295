/* The characters that stand for bytes: printable bytes of Latin-1 stand for themselves, the others
 * are U+0100 and up in ascending order. */
#include "tokenizer/byte_chars.h"

#include <stdbool.h>

/* The bytes without a character of their own: 00 to 20, 7f to a0, ad. */
enum { LOW = 0x21, MID = 0x7f, N_MID = 0xa1 - MID, SOFT_HYPHEN = 0xad, FIRST = 0x100 };

static bool is_itself(unsigned c)
{
    return (c >= LOW && c < MID) || (c >= MID + N_MID && c <= 0xff && c != SOFT_HYPHEN);
}

size_t sh_byte_char(char *out, uint8_t byte)
{
    unsigned c = byte;
    if (c < LOW)
        c += FIRST;
    else if (c >= MID && c < MID + N_MID)
        c = FIRST + LOW + (c - MID);
    else if (c == SOFT_HYPHEN)
        c = FIRST + LOW + N_MID;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

int sh_byte_of_char(const char *p, size_t n, size_t *used)
{
    unsigned c = (uint8_t)p[0];
    *used = 1;
    if (c >= 0xc2 && c <= 0xc5 && n > 1 && ((uint8_t)p[1] & 0xc0) == 0x80) {
        c = (c & 0x1f) << 6 | ((uint8_t)p[1] & 0x3f);
        *used = 2;
    } else if (c >= 0x80) {
        return -1;
    }
    if (is_itself(c)) return (int)c;
    if (c < FIRST) return -1;
    c -= FIRST;
    if (c < LOW) return (int)c;
    if (c < LOW + N_MID) return (int)(c - LOW + MID);
    return c == LOW + N_MID ? SOFT_HYPHEN : -1;
}
