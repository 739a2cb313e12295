/* UTF-8 against a decoder that works the other way round (it makes the number first and judges it
 * then): strings of up to four bytes from those where decoders go wrong, and random ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tokenizer/utf8.h"

/* One of each range that the standard treats alike, and the bounds between them. */
static const uint8_t odd[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0,
                              0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0,
                              0xf1, 0xf3, 0xf4, 0xf5, 0xf7, 0xf8, 0xfc, 0xfe, 0xff};
enum { N_ODD = sizeof odd };

/* Length of the character at p, or -1. */
static int other_decoder(const uint8_t *p, size_t n)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c = p[0];
    int len = 0;
    if (c < 0x80) return 1;
    while (c & 0x80u >> len) len++; /* the ones that a lead byte begins with */
    if (len < 2 || len > 4 || (size_t)len > n) return -1;
    c &= 0x7fu >> len;
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return -1;
        c = c << 6 | (p[i] & 0x3f);
    }
    return c < smallest[len] || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff ? -1 : len;
}

static size_t put_char(uint32_t c, uint8_t *out)
{
    size_t len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3f));
    out[0] = (uint8_t)(len == 1 ? c : (0xf00u >> len & 0xff) | c);
    return len;
}

/* Whether some bytes put behind these make a character that begins at p and takes them all: tried.
 * Every lead byte that begins a character is followed by one of these in some character. */
static int may_become(const uint8_t *p, size_t n)
{
    static const uint8_t next[] = {0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf};
    uint8_t s[4] = {0};
    if (n > 3) return 0;
    memcpy(s, p, n);
    for (size_t i = 0; i < sizeof next; i++) {
        for (size_t k = n; k < 4; k++) s[k] = k == n ? next[i] : 0x80;
        if (other_decoder(s, 4) > (int)n) return 1;
    }
    return 0;
}

static int expected_char(const uint8_t *p, size_t n)
{
    int len = other_decoder(p, n);
    if (len > 0) return len;
    return may_become(p, n) ? 0 : -1;
}

/* By going through the text from its beginning, where the code looks at its end only. */
static size_t expected_whole(const uint8_t *p, size_t n)
{
    size_t at = 0;
    while (at < n) {
        int len = other_decoder(p + at, n - at);
        if (len < 0 && may_become(p + at, n - at)) return at;
        at += len < 0 ? 1 : (size_t)len;
    }
    return n;
}

static void check(const uint8_t *p, size_t n)
{
    if (n > 0) assert_int_equal(sh_utf8_char((const char *)p, n), expected_char(p, n));
    assert_int_equal(sh_utf8_whole((const char *)p, n), expected_whole(p, n));
}

static void short_strings(void **state)
{
    uint8_t s[4] = {0};
    (void)state;
    check(s, 0);
    for (int a = 0; a < 256; a++) {
        s[0] = (uint8_t)a;
        check(s, 1);
        for (int b = 0; b < 256; b++) {
            s[1] = (uint8_t)b;
            check(s, 2);
        }
    }
    for (int a = 0; a < N_ODD; a++)
        for (int b = 0; b < N_ODD; b++)
            for (int c = 0; c < N_ODD; c++) {
                memcpy(s, (uint8_t[]){odd[a], odd[b], odd[c]}, 3);
                check(s, 3);
                for (int d = 0; d < N_ODD; d += 3) {
                    s[3] = odd[d];
                    check(s, 4);
                }
            }
}

static void every_character_and_its_prefixes(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 7) {
        uint8_t s[4];
        if (c >= 0xd800 && c < 0xe000) continue;
        size_t n = put_char(c, s);
        assert_int_equal(sh_utf8_char((char *)s, n), n);
        assert_int_equal(sh_utf8_whole((char *)s, n), n);
        for (size_t k = 1; k < n; k++) {
            assert_int_equal(sh_utf8_char((char *)s, k), 0);
            assert_int_equal(sh_utf8_whole((char *)s, k), 0);
        }
    }
}

/* Cut anywhere, the held-back bytes come out later and nothing is lost or doubled. */
static void random_strings_and_all_their_prefixes(void **state)
{
    uint8_t s[64];
    (void)state;
    srand(1);
    for (int round = 0; round < 300; round++) {
        size_t n = 0;
        while (n < sizeof s - 4) {
            uint32_t c = (uint32_t)rand() % 0x110000;
            if (rand() % 3 == 0)
                s[n++] = odd[rand() % N_ODD];
            else if (c < 0xd800 || c >= 0xe000)
                n += put_char(rand() % 2 ? c : c % 0x800, s + n);
        }
        for (size_t k = 0; k <= n; k++) check(s, k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_strings),
        cmocka_unit_test(every_character_and_its_prefixes),
        cmocka_unit_test(random_strings_and_all_their_prefixes),
    };
    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
