/* A sample's text, cut into pieces at random: what is shown is the whole, up to the stop text, in
 * whole characters, and as early as it can be. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/text.h"

enum { MAX = 200 };

static uint64_t random_state;

static int random_in(int lo, int hi) /* [lo, hi] */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((random_state >> 33) % (uint64_t)(hi - lo + 1));
}

/* A text of n characters of a small alphabet, so that stop texts and their beginnings are frequent.
 */
static size_t random_text(char *out, int n)
{
    static const char *const alphabet[] = {"a", "b", "a", "b", "é", "è", "漢", "🙂", "🙃"};
    *out = 0;
    for (int i = 0; i < n; i++) strcat(out, alphabet[random_in(0, 8)]);
    return strlen(out);
}

/* Whether n bytes are whole characters of a text that is valid. */
static bool whole(const char *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        unsigned char c = (unsigned char)p[i];
        if (c >= 0x80 && c < 0xc0) return false;
        i += c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    }
    return i == n;
}

/* Where the first stop text begins among the first n bytes, or n. */
static size_t first_stop(const char *p, size_t n, char *const *stop, int n_stop)
{
    for (size_t i = 0; i < n; i++)
        for (int s = 0; s < n_stop; s++)
            if (strlen(stop[s]) <= n - i && memcmp(p + i, stop[s], strlen(stop[s])) == 0) return i;
    return n;
}

/* Whether the last of n bytes may be the beginning of a stop text. */
static bool may_stop(const char *p, size_t n, char *const *stop, int n_stop)
{
    for (int s = 0; s < n_stop; s++)
        for (size_t k = 1; k < strlen(stop[s]) && k <= n; k++)
            if (memcmp(p + n - k, stop[s], k) == 0) return true;
    return false;
}

static void check(int round)
{
    char text[MAX], shown[MAX], stops[3][MAX], *stop[3] = {stops[0], stops[1], stops[2]};
    size_t n = random_text(text, random_in(0, 40)), at = 0, n_shown = 0;
    sh_text t = {.stop = stop, .n_stop = random_in(0, 3)};
    bool stopped = false;
    const char *out;
    size_t n_out;
    for (int i = 0; i < t.n_stop; i++) (void)random_text(stop[i], random_in(1, 5));
    while (at < n && !stopped) {
        size_t piece = (size_t)random_in(0, round % 2 ? 3 : 12);
        if (piece > n - at) piece = n - at;
        char *copy = malloc(piece ? piece : 1); /* a sanitizer sees who reads past it */
        assert_non_null(copy);
        memcpy(copy, text + at, piece);
        stopped = sh_text_put(&t, copy, piece, &out, &n_out);
        free(copy);
        at += piece;
        memcpy(shown + n_shown, out, n_out);
        n_shown += n_out;
        size_t cut = first_stop(text, at, stop, t.n_stop);
        assert_int_equal(stopped, cut < at);
        assert_true(n_shown <= cut && memcmp(shown, text, n_shown) == 0);
        assert_true(whole(out, n_out));
        if (stopped) assert_int_equal(n_shown, cut);
        if (stopped) break;
        assert_false(may_stop(shown, n_shown, stop, t.n_stop) && n_shown == at);
        /* all of it is shown, but for a character's or a stop text's beginning */
        size_t rest = at - n_shown;
        if (rest > 3)
            assert_true(may_stop(text, n_shown + rest, stop, t.n_stop) || !whole(text, at));
        if (!may_stop(text, at, stop, t.n_stop) && whole(text, at)) assert_int_equal(rest, 0);
    }
    if (!stopped) {
        sh_text_end(&t, &out, &n_out);
        memcpy(shown + n_shown, n_out ? out : "", n_out);
        n_shown += n_out;
        assert_int_equal(n_shown, n);
        sh_text_end(&t, &out, &n_out);
        assert_int_equal(n_out, 0);
    }
    assert_memory_equal(shown, text, n_shown);
    sh_text_free(&t);
}

static void test_random(void **state)
{
    (void)state;
    random_state = 1;
    for (int round = 0; round < 20000; round++) check(round);
}

/* Bytes that can be no character are passed on; those that may become one wait. */
static void test_bytes(void **state)
{
    static const struct {
        const char *piece, *shown;
    } steps[] = {{"\xff", "\xff"},
                 {"\xc3", ""},
                 {"\xa9", "\xc3\xa9"},
                 {"\xe6\xbc", ""},
                 {"x", "\xe6\xbc"
                       "x"},
                 {"\xf0\x9f\x99", ""},
                 {"\x82", "\xf0\x9f\x99\x82"},
                 {"", ""}};
    sh_text t = {0};
    const char *out;
    size_t n_out;
    (void)state;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        assert_false(sh_text_put(&t, steps[i].piece, strlen(steps[i].piece), &out, &n_out));
        assert_int_equal(n_out, strlen(steps[i].shown));
        assert_memory_equal(out, steps[i].shown, n_out);
    }
    sh_text_free(&t);
}

/* A text of nothing at all. */
static void test_empty(void **state)
{
    char *stop[] = {(char[]){"stop"}};
    sh_text t = {.stop = stop, .n_stop = 1};
    const char *out;
    size_t n_out = 7;
    (void)state;
    sh_text_end(&t, &out, &n_out);
    assert_int_equal(n_out, 0);
    assert_false(sh_text_put(&t, "", 0, &out, &n_out));
    assert_int_equal(n_out, 0);
    sh_text_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
