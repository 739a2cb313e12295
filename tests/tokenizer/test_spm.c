/* The SentencePiece kind: another engine's ids, a slow and plain tokenizer's ids, the way back,
 * control tokens, and long texts. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_ids.h"
#include "golden.h"
#include "small_vocab.h"
#include "tokenizer/utf8.h"

/* --- another engine's ids --- */

static void golden(void **state)
{
    (void)state;
    sh_tokenizer *t = open_golden("llama-spm");
    if (!t) return;
    assert_int_equal(sh_tokenizer_n_vocab(t), 32000);
    assert_int_equal(sh_tokenizer_bos(t), 1);
    assert_true(sh_tokenizer_is_end(t, 2) && !sh_tokenizer_is_end(t, 1));
    check_golden(t, "llama-spm");
    sh_tokenizer_close(t);
}

/* --- a slow and plain tokenizer --- */

static int slow_find(const small_vocab *v, const char *p, size_t n)
{
    for (size_t i = 0; i < v->n; i++)
        if ((v->type[i] == NORMAL || v->type[i] == USER || v->type[i] == UNUSED) &&
            v->token[i].n == n && memcmp(v->token[i].p, p, n) == 0)
            return (int)i;
    return -1;
}

/* The ids of n bytes with meta spaces: joins the best pair, the leftmost of equals, until there is
 * none; looks at all pairs each time. */
static size_t slow_encode(const small_vocab *v, const char *p, size_t n, uint32_t *id)
{
    size_t *at = malloc((n + 1) * sizeof *at), n_run = 0, n_id = 0; /* run i is at[i] to at[i+1] */
    assert_non_null(at);
    for (size_t i = 0; i < n; n_run++) {
        int len = sh_utf8_char(p + i, n - i);
        at[n_run] = i;
        i += len < 1 ? 1 : (size_t)len;
    }
    at[n_run] = n;
    for (;;) {
        int best = -1;
        size_t where = 0;
        for (size_t i = 0; i + 2 <= n_run; i++) {
            int k = slow_find(v, p + at[i], at[i + 2] - at[i]);
            if (k >= 0 && (best < 0 || v->score[k] > v->score[best])) {
                best = k;
                where = i;
            }
        }
        if (best < 0) break;
        memmove(at + where + 1, at + where + 2, (n_run - where - 1) * sizeof *at);
        n_run--;
    }
    for (size_t i = 0; i < n_run; i++) {
        int k = slow_find(v, p + at[i], at[i + 1] - at[i]);
        if (k >= 0)
            id[n_id++] = (uint32_t)k;
        else
            for (size_t b = at[i]; b < at[i + 1]; b++) id[n_id++] = 3 + (uint8_t)p[b];
    }
    free(at);
    return n_id;
}

/* Letters from which vocabularies and texts are drawn: few, so that they meet. The first is the
 * space of a text and the meta space of a token; the last are halves and wrong bytes. */
static const char *const letter[] = {
    " ",   "a", "b",  "ab",           "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\xa6\x99",
    "<",   ">", "\n", "\xe2\x96\x81", "\xe2\x96", "\xf0",         "\x81",
    "\xff"};
enum { N_LETTER = sizeof letter / sizeof *letter };

static size_t draw(char *out, int n_letter, bool meta)
{
    size_t n = 0;
    for (int i = 0; i < n_letter; i++) {
        const char *s = letter[rand() % N_LETTER];
        if (meta && *s == ' ') s = "\xe2\x96\x81";
        memcpy(out + n, s, strlen(s));
        n += strlen(s);
    }
    return n;
}

/* Whether a space stands behind something else, which most real vocabularies do not have. */
static bool holds_later_space(const char *p, size_t n)
{
    size_t i = 0;
    while (n - i >= 3 && memcmp(p + i, "\xe2\x96\x81", 3) == 0) i += 3;
    return memmem(p + i, n - i, "\xe2\x96\x81", 3) != NULL;
}

/* Longer tokens are mostly two that are there already, so that joining goes deep. */
static void draw_vocab(small_vocab *v, bool user, bool control, bool by_word)
{
    char s[256];
    small_init(v, true);
    for (int i = 0; i < 120; i++) {
        size_t n = draw(s, 1 + rand() % 2, true), k = 259 + (size_t)rand() % 120;
        int type = rand() % 20 == 0 ? UNUSED : NORMAL;
        if (k + 1 < v->n && v->token[k].n + v->token[k + 1].n < sizeof s) {
            memcpy(s, v->token[k].p, v->token[k].n);
            memcpy(s + v->token[k].n, v->token[k + 1].p, v->token[k + 1].n);
            n = v->token[k].n + v->token[k + 1].n;
        }
        if (by_word && holds_later_space(s, n)) continue;
        if (user && rand() % 15 == 0) type = USER;
        if (control && rand() % 15 == 0) type = CONTROL;
        small_add(v, s, n, (float)-(rand() % 30), type);
    }
}

/* Writes n bytes anew with `to` for each `from`; returns the number of bytes. */
static size_t replace(char *out, const char *p, size_t n, const char *from, const char *to)
{
    size_t n_out = 0, n_from = strlen(from), n_to = strlen(to);
    for (size_t i = 0; i < n;) {
        bool hit = n - i >= n_from && memcmp(p + i, from, n_from) == 0;
        memcpy(out + n_out, hit ? to : p + i, hit ? n_to : 1);
        n_out += hit ? n_to : 1;
        i += hit ? n_from : 1;
    }
    return n_out;
}

static void same_as_the_slow_tokenizer(void **state)
{
    char text[512], with_meta[2048];
    uint32_t want[2048];
    small_vocab v;
    (void)state;
    srand(1);
    for (int round = 0; round < (SANITIZED ? 8 : 40); round++) {
        draw_vocab(&v, false, true, round % 2);
        v.space_prefix = 0;
        sh_tokenizer *t = open_small(&v);
        for (int i = 0; i < 40; i++) {
            uint32_t *id;
            size_t n = draw(text, rand() % 60, false), n_id;
            size_t n_meta = replace(with_meta, text, n, " ", "\xe2\x96\x81");
            size_t n_want = slow_encode(&v, with_meta, n_meta, want);
            assert_int_equal(sh_tokenizer_encode(t, text, n, 0, &id, &n_id), SH_OK);
            assert_int_equal(n_id, n_want);
            assert_memory_equal(id, want, n_id * sizeof *id);
            free(id);
        }
        sh_tokenizer_close(t);
        small_free(&v);
    }
}

/* --- the way back --- */

/* The pieces, with control tokens by name, are the text; only U+2581 comes back as a space. */
static void check_way_back(const sh_tokenizer *t, const char *text, size_t n, int flags)
{
    char want[4096], got[4096], all[4096];
    uint32_t *id;
    size_t n_id, n_all = 0, n_piece;
    assert_int_equal(sh_tokenizer_encode(t, text, n, flags, &id, &n_id), SH_OK);
    for (size_t i = 0; i < n_id; i++) {
        const char *p = sh_tokenizer_piece(t, id[i], &n_piece);
        if (n_piece == 0) {
            p = sh_tokenizer_spelling(t, id[i]);
            n_piece = strlen(p);
        }
        assert_true(n_piece > 0 && n_all + n_piece < sizeof all);
        memcpy(all + n_all, p, n_piece);
        n_all += n_piece;
    }
    size_t skip_bytes = sh_tokenizer_strips_first_space(t) && n > 0;
    if (skip_bytes) assert_int_equal(all[0], ' ');
    size_t n_want = replace(want, text, n, "\xe2\x96\x81", " ");
    size_t n_got = replace(got, all + skip_bytes, n_all - skip_bytes, "\xe2\x96\x81", " ");
    assert_int_equal(n_got, n_want);
    assert_memory_equal(got, want, n_want);
    free(id);
}

static void pieces_are_the_text(void **state)
{
    char text[512];
    small_vocab v;
    (void)state;
    srand(2);
    for (int round = 0; round < (SANITIZED ? 12 : 60); round++) {
        bool prefix =
            round % 2; /* it stands behind each control and user token, so they are left out */
        draw_vocab(&v, !prefix, true, round % 4 < 2);
        v.space_prefix = prefix;
        sh_tokenizer *t = open_small(&v);
        for (int i = 0; i < 40; i++) {
            size_t n = draw(text, rand() % 40, false);
            if (i % 4 == 0) {
                n = (size_t)rand() % 100;
                for (size_t k = 0; k < n; k++) text[k] = (char)(rand() % 256);
            }
            check_way_back(t, text, n, prefix ? 0 : rand() % 2 * SH_TOK_SPECIAL);
        }
        sh_tokenizer_close(t);
        small_free(&v);
    }
}

/* --- control tokens, BOS, the space prefix --- */

static void prefix_bos_and_control_tokens(void **state)
{
    small_vocab v;
    size_t n;
    (void)state;
    small_words(&v);
    sh_tokenizer *t = open_small(&v);
    IDS(t, "", 0, END);
    IDS(t, "", SH_TOK_BOS, 1, END);
    IDS(t, "a", 0, 262, END);
    IDS(t, "ab", SH_TOK_BOS, 1, 264, END);
    IDS(t, " a", 0, 259, 262, END);
    IDS(t, "ba", 0, 259, 261, 260, END);
    IDS(t, "aab", 0, 262, 263, END);
    /* A name in the text is text, unless asked for; then a prefix stands behind it too. */
    IDS(t, "<x>", 0, 259, 3 + '<', 3 + 'x', 3 + '>', END);
    IDS(t, "<x>", SH_TOK_SPECIAL, 265, END);
    IDS(t, "<x>a", SH_TOK_SPECIAL, 265, 262, END);
    IDS(t, "<x>a <x><x>a", SH_TOK_SPECIAL, 265, 262, 259, 265, 265, 262, END);
    IDS(t, "<s>a</s>", SH_TOK_SPECIAL | SH_TOK_BOS, 1, 1, 262, 2, END);
    IDS(t, "<unk>", SH_TOK_SPECIAL, 0, END);
    /* The longest name wins wherever it begins; of equals the leftmost. */
    IDS(t, "<x>b", SH_TOK_SPECIAL, 266, END);
    IDS(t, "a<x>b", SH_TOK_SPECIAL, 262, 266, END);
    IDS(t, "a<x>", SH_TOK_SPECIAL, 267, 259, 3 + '>', END);
    /* User tokens are always found. */
    IDS(t, "a[u]a", 0, 262, 268, 262, END);
    assert_true(sh_tokenizer_strips_first_space(t));
    sh_tokenizer_piece(t, 265, &n);
    assert_int_equal(n, 0);
    assert_string_equal(sh_tokenizer_spelling(t, 265), "<x>");
    assert_string_equal(sh_tokenizer_spelling(t, 262), "▁a");
    assert_memory_equal(sh_tokenizer_piece(t, 262, &n), " a", 2);
    assert_int_equal(n, 2);
    assert_memory_equal(sh_tokenizer_piece(t, 3, &n), "\0", 1);
    assert_int_equal(n, 1);
    sh_tokenizer_piece(t, UINT32_MAX, &n);
    assert_int_equal(n, 0);
    assert_string_equal(sh_tokenizer_spelling(t, 269), "");
    sh_tokenizer_close(t);

    v.space_prefix = 0;
    v.add_bos = 0;
    t = open_small(&v);
    IDS(t, "ab", SH_TOK_BOS, 263, END);
    IDS(t, "a a", 0, 260, 262, END);
    IDS(t, "<x>a", SH_TOK_SPECIAL, 265, 260, END);
    assert_false(sh_tokenizer_strips_first_space(t));
    sh_tokenizer_close(t);
    small_free(&v);
}

static void text_never_becomes_a_control_token(void **state)
{
    small_vocab v;
    (void)state;
    small_init(&v, true);
    small_add_text(&v, "s>", -1); /* 259: with "<" it spells <s>, and it must not join to that */
    v.space_prefix = 0;
    sh_tokenizer *t = open_small(&v);
    IDS(t, "<s>", 0, 3 + '<', 259, END);
    IDS(t, "<0x41>", 0, 3 + '<', 3 + '0', 3 + 'x', 3 + '4', 3 + '1', 3 + '>', END);
    sh_tokenizer_close(t);
    small_free(&v);
}

/* --- long texts: a quadratic tokenizer does not end within the test's time --- */

static void a_megabyte(void **state)
{
    enum { N = SANITIZED ? 1 << 18 : 1 << 20 };
    char *text = malloc(N), s[300];
    small_vocab v;
    uint32_t *id;
    size_t n_id, n_back;
    (void)state;
    assert_non_null(text);
    small_words(&v);
    memset(s, 'c', sizeof s);
    for (size_t n = 1; n <= 256; n *= 2) small_add(&v, s, n, (float)n, NORMAL);
    v.space_prefix = 0;
    sh_tokenizer *t = open_small(&v);
    for (int kind = 0; kind < 4; kind++) { /* a word that joins, one that does not, words, names */
        for (size_t i = 0; i < N; i++) text[i] = "ccccqqqqa ab[u]<"[kind * 4 + (int)(i % 4)];
        assert_int_equal(sh_tokenizer_encode(t, text, N, SH_TOK_SPECIAL, &id, &n_id), SH_OK);
        if (kind == 0) assert_int_equal(n_id, N / 256);
        char *back = small_decode(t, id, n_id, &n_back);
        assert_int_equal(n_back, N);
        assert_memory_equal(back, text, N);
        free(back);
        free(id);
    }
    sh_tokenizer_close(t);
    small_free(&v);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(same_as_the_slow_tokenizer),
        cmocka_unit_test(pieces_are_the_text),
        cmocka_unit_test(prefix_bos_and_control_tokens),
        cmocka_unit_test(text_never_becomes_a_control_token),
        cmocka_unit_test(a_megabyte),
    };
    return cmocka_run_group_tests_name("spm", tests, NULL, NULL);
}
