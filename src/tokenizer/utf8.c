/* Finds the ends of UTF-8 characters. */
#include "tokenizer/utf8.h"

#include <stdint.h>

/* The bytes that may follow a lead byte are all 80..bf, but for the first one: there the bounds
 * shut out overlong forms, surrogates and what lies above U+10FFFF (Unicode 15, table 3-7). */
int sh_utf8_char(const char *p, size_t n)
{
    const uint8_t *s = (const uint8_t *)p;
    uint8_t lo = 0x80, hi = 0xbf;
    int len;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return -1;
    len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0) lo = 0xa0;
    if (s[0] == 0xed) hi = 0x9f;
    if (s[0] == 0xf0) lo = 0x90;
    if (s[0] == 0xf4) hi = 0x8f;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (s[i] < lo || s[i] > hi) return -1;
        lo = 0x80;
        hi = 0xbf;
    }
    return len;
}

size_t sh_utf8_whole(const char *p, size_t n)
{
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (sh_utf8_char(p + n - k, k) == 0) return n - k;
    return n;
}
