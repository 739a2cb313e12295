/* The byte-level BPE kind: another engine's ids, a slow and plain tokenizer's ids, the way back,
 * the cuts, vocabularies without all bytes, long texts, bad tables. */
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
#include "tokenizer/pretoken.h"
#include "tokenizer/utf8.h"

static void merge(small_vocab *v, const char *text)
{
    small_merge(v, text, strlen(text));
}

/* --- another engine's ids --- */

static void golden(void **state)
{
    static const struct {
        const char *name;
        int n_vocab, bos, eos;
        bool add_bos;
    } known[] = {{"gpt-2", 50257, 50256, 50256, false},
                 {"llama-bpe", 128256, 128000, 128001, true}};
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        sh_tokenizer *t = open_golden(known[i].name);
        if (!t) continue;
        assert_int_equal(sh_tokenizer_n_vocab(t), known[i].n_vocab);
        assert_int_equal(sh_tokenizer_bos(t), known[i].bos);
        assert_true(sh_tokenizer_is_end(t, (uint32_t)known[i].eos));
        assert_true(!sh_tokenizer_is_end(t, 11) && !sh_tokenizer_strips_first_space(t));
        if (known[i].add_bos)
            IDS(t, "", SH_TOK_BOS, known[i].bos, END);
        else
            IDS(t, "", SH_TOK_BOS, END);
        check_golden(t, known[i].name);
        sh_tokenizer_close(t);
    }
}

/* --- the alphabet --- */

static void alphabet(void **state)
{
    char all[256][SH_BYTE_CHAR_MAX] = {0};
    size_t n, used;
    (void)state;
    for (int b = 0; b < 256; b++) {
        n = sh_byte_char(all[b], (uint8_t)b);
        assert_int_equal(sh_utf8_char(all[b], n), n);
        assert_int_equal(sh_byte_of_char(all[b], n, &used), b);
        assert_int_equal(used, n);
        for (int c = 0; c < b; c++) assert_memory_not_equal(all[b], all[c], SH_BYTE_CHAR_MAX);
    }
    assert_memory_equal(all['A'], "A", 2);
    assert_memory_equal(all[' '], "\u0120", 2);
    assert_memory_equal(all['\n'], "\u010a", 2);
    assert_memory_equal(all[0x7f], "\u0121", 2);
    assert_memory_equal(all[0xa0], "\u0142", 2);
    assert_memory_equal(all[0xad], "\u0143", 2);
    assert_memory_equal(all[0xff], "\u00ff", 2);
    static const char *const none[] = {" ",      "\n",     "\x7f",   "\xc2\x85",
                                       "\u00ad", "\u0144", "\u20ac", "\xc4"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(sh_byte_of_char(none[i], strlen(none[i]), &used), -1);
}

/* --- the cuts --- */

static void check_cuts(const char *name, const char *text, const char *const *want)
{
    sh_pretoken_walk w = {0};
    sh_pretoken *p;
    const char *piece;
    size_t n, i = 0;
    assert_int_equal(sh_pretoken_open(&p, name), SH_OK);
    assert_int_equal(sh_pretoken_begin(&w, p, text, strlen(text)), SH_OK);
    for (;; i++) {
        assert_int_equal(sh_pretoken_next(&w, &piece, &n), SH_OK);
        if (n == 0 || !want[i]) break;
        if (n != strlen(want[i]) || memcmp(piece, want[i], n) != 0)
            fail_msg("%s: '%s': piece %zu is '%.*s'", name, text, i, (int)n, piece);
    }
    assert_true(n == 0 && !want[i]);
    sh_pretoken_end(&w);
    sh_pretoken_close(p);
}
#define CUTS(name, text, ...) check_cuts(name, text, (const char *const[]){__VA_ARGS__, NULL})

static void cuts(void **state)
{
    sh_pretoken *p;
    (void)state;
    CUTS("gpt-2", "It's  a DON'T\n\n 12345!?\n", "It", "'s", " ", " a", " DON", "'", "T", "\n\n",
         " 12345", "!?", "\n");
    CUTS("llama-bpe", "It's  a DON'T\n\n 12345!?\n", "It", "'s", " ", " a", " DON", "'T", "\n\n",
         " ", "123", "45", "!?\n");
    CUTS("gpt-2", "\u00e4\u4e2d \u0663\u00b2 \u3000\u2003x\xc2\x85", "\u00e4\u4e2d",
         " \u0663\u00b2", " \u3000", "\u2003", "x", "\xc2\x85");
    for (const sh_pretoken_row *r = sh_pretoken_rows; r->name; r++) {
        CUTS(r->name, "a\xff\xfe b\xe2\x82", "a", "\xff\xfe", " b", "\xe2\x82");
        CUTS(r->name, "  \xff  ", "  ", "\xff", "  ");
    }
    CUTS(NULL, "a 12345", "a", " 12345");
    CUTS("default", "a 12345", "a", " 12345");
    assert_int_equal(sh_pretoken_open(&p, "gpt-3"), SH_EARG);
    assert_null(p);
    assert_non_null(strstr(sh_err_message(), "'gpt-3'"));
    assert_non_null(strstr(sh_err_message(), "it has: default, gpt-2, llama-bpe"));
}

/* Letters from which vocabularies and texts are drawn: few, so that they meet; the last are halves
 * and wrong bytes. */
static const char *const letter[] = {" ", "a",  "b",        "'s",           "1",    "\n",
                                     "!", "  ", "\xc3\xa4", "\xe2\x82\xac", "\xe2", "\xff"};
enum { N_LETTER = sizeof letter / sizeof *letter };

static size_t draw(char *out, int n_letter)
{
    size_t n = 0;
    for (int i = 0; i < n_letter; i++) {
        const char *s = letter[rand() % N_LETTER];
        memcpy(out + n, s, strlen(s));
        n += strlen(s);
    }
    return n;
}

/* The pieces, in order, are the text, whatever it is. */
static void pieces_tile_the_text(void **state)
{
    char text[512];
    (void)state;
    srand(1);
    for (const sh_pretoken_row *r = sh_pretoken_rows; r->name; r++) {
        sh_pretoken_walk w = {0};
        sh_pretoken *p;
        assert_int_equal(sh_pretoken_open(&p, r->name), SH_OK);
        for (int i = 0; i < (SANITIZED ? 500 : 2000); i++) {
            size_t n = draw(text, rand() % 60), n_piece, at = 0;
            for (size_t k = 0; i % 4 == 0 && k < n; k++) text[k] = (char)rand();
            assert_int_equal(sh_pretoken_begin(&w, p, text, n), SH_OK);
            do {
                const char *piece;
                assert_int_equal(sh_pretoken_next(&w, &piece, &n_piece), SH_OK);
                assert_ptr_equal(piece, text + at);
                at += n_piece;
            } while (n_piece > 0);
            assert_int_equal(at, n);
        }
        sh_pretoken_end(&w);
        sh_pretoken_end(&w);
        sh_pretoken_close(p);
    }
}

/* --- a slow and plain tokenizer --- */

static int slow_find(const small_vocab *v, const char *p, size_t n)
{
    for (size_t i = 0; i < v->n; i++)
        if ((v->type[i] == NORMAL || v->type[i] == UNUSED) && v->token[i].n == n &&
            memcmp(v->token[i].p, p, n) == 0)
            return (int)i;
    return -1;
}

static size_t slow_rank(const small_vocab *v, const char *left, size_t n_left, size_t n_right)
{
    char name[8192];
    assert_true(n_left + n_right + 1 < sizeof name);
    memcpy(name, left, n_left);
    name[n_left] = ' ';
    memcpy(name + n_left + 1, left + n_left, n_right);
    for (size_t i = 0; i < v->n_merge; i++)
        if (v->merge[i].n == n_left + n_right + 1 &&
            memcmp(v->merge[i].p, name, v->merge[i].n) == 0)
            return i;
    return SIZE_MAX;
}

/* The ids of one piece: joins the first merge of all pairs' merges, the leftmost of equals, until
 * there is none; looks at all pairs each time. */
static size_t slow_piece(const small_vocab *v, bool whole, const char *p, size_t n, uint32_t *id)
{
    char spelled[2048];
    size_t at[1025], n_run = 0, n_id = 0, end = 0; /* run i is at[i] to at[i + 1] */
    assert_true(n <= 1024);
    for (; n_run < n; n_run++) {
        at[n_run] = end;
        end += sh_byte_char(spelled + end, (uint8_t)p[n_run]);
    }
    at[n_run] = end;
    if (whole && slow_find(v, spelled, end) >= 0) {
        *id = (uint32_t)slow_find(v, spelled, end);
        return 1;
    }
    for (;;) {
        size_t best = SIZE_MAX, where = 0;
        for (size_t i = 0; i + 2 <= n_run; i++) {
            size_t rank = slow_rank(v, spelled + at[i], at[i + 1] - at[i], at[i + 2] - at[i + 1]);
            if (rank < best) {
                best = rank;
                where = i;
            }
        }
        if (best == SIZE_MAX) break;
        memmove(at + where + 1, at + where + 2, (n_run - where - 1) * sizeof *at);
        n_run--;
    }
    for (size_t i = 0; i < n_run; i++) {
        int k = slow_find(v, spelled + at[i], at[i + 1] - at[i]);
        size_t used;
        if (k >= 0)
            id[n_id++] = (uint32_t)k;
        else
            for (size_t b = at[i]; b < at[i + 1]; b += used)
                id[n_id++] = (uint32_t)sh_byte_of_char(spelled + b, at[i + 1] - b, &used);
    }
    return n_id;
}

static size_t slow_encode(const small_vocab *v, const char *text, size_t n, uint32_t *id)
{
    sh_pretoken_walk w = {0};
    sh_pretoken *p;
    size_t n_id = 0;
    assert_int_equal(sh_pretoken_open(&p, v->pre), SH_OK);
    assert_int_equal(sh_pretoken_begin(&w, p, text, n), SH_OK);
    for (;;) {
        const char *piece;
        assert_int_equal(sh_pretoken_next(&w, &piece, &n), SH_OK);
        if (n == 0) break;
        n_id += slow_piece(v, sh_pretoken_row_of(p)->whole, piece, n, id + n_id);
    }
    sh_pretoken_end(&w);
    sh_pretoken_close(p);
    return n_id;
}

/* Merges of what is there already; some twice, some of what cannot be reached; not all make tokens,
 * and some make what only a control token spells. */
static void draw_vocab(small_vocab *v, const char *pre, bool user)
{
    sh_str pool[256];
    size_t n_pool = 0;
    char s[512];
    small_init_bpe(v, true);
    v->pre = pre;
    for (int i = 0; i < N_LETTER; i++)
        for (size_t k = 0; letter[i][k]; k++) pool[n_pool++] = v->token[(uint8_t)letter[i][k]];
    for (int i = 0; i < 120; i++) {
        sh_str l = pool[(size_t)rand() % n_pool], r = pool[(size_t)rand() % n_pool];
        if (l.n + r.n > 40) continue;
        memcpy(s, l.p, l.n);
        s[l.n] = ' ';
        memcpy(s + l.n + 1, r.p, r.n);
        small_merge(v, s, l.n + r.n + 1);
        memcpy(s + l.n, r.p, r.n);
        int type = rand() % 10 == 0 ? UNUSED : rand() % 20 == 0 ? CONTROL : NORMAL;
        small_add(v, s, l.n + r.n, 0, type);
        pool[n_pool++] = v->token[v->n - 1];
        if (rand() % 8 == 0)
            v->token[v->n - 1].n = 0; /* a token less; the spelling stays in the pool */
    }
    for (int i = 0; user && i < 4; i++) small_add(v, s, draw(s, 2), 0, USER);
}

static void same_as_the_slow_tokenizer(void **state)
{
    char text[512];
    uint32_t want[2048];
    small_vocab v;
    (void)state;
    srand(2);
    for (int round = 0; round < (SANITIZED ? 8 : 40); round++) {
        draw_vocab(&v, round % 2 ? "llama-bpe" : "gpt-2", false);
        sh_tokenizer *t = open_small(&v);
        for (int i = 0; i < 40; i++) {
            uint32_t *id;
            size_t n = draw(text, rand() % 60), n_id, n_want = slow_encode(&v, text, n, want);
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

static void pieces_are_the_text(void **state)
{
    char text[512], back[1024];
    small_vocab v;
    (void)state;
    srand(3);
    for (int round = 0; round < (SANITIZED ? 8 : 40); round++) {
        draw_vocab(&v, round % 2 ? "llama-bpe" : NULL, round % 4 < 2);
        sh_tokenizer *t = open_small(&v);
        for (int i = 0; i < 60; i++) {
            uint32_t *id;
            size_t n = draw(text, rand() % 60), n_id, n_back = 0, n_piece;
            for (size_t k = 0; i % 4 == 0 && k < n; k++) text[k] = (char)rand();
            int flags = i % 2 ? SH_TOK_SPECIAL : 0;
            assert_int_equal(sh_tokenizer_encode(t, text, n, flags, &id, &n_id), SH_OK);
            for (size_t k = 0; k < n_id; k++) {
                const char *p = sh_tokenizer_piece(t, id[k], &n_piece);
                if (n_piece == 0) { /* a control token, by name */
                    assert_int_equal(flags, SH_TOK_SPECIAL);
                    p = sh_tokenizer_spelling(t, id[k]);
                    n_piece = strlen(p);
                }
                assert_true(n_piece > 0 && n_back + n_piece <= sizeof back);
                memcpy(back + n_back, p, n_piece);
                n_back += n_piece;
            }
            assert_int_equal(n_back, n);
            assert_memory_equal(back, text, n);
            free(id);
        }
        sh_tokenizer_close(t);
        small_free(&v);
    }
}

/* --- ids by hand: merges, control tokens, BOS --- */

static void small_letters(small_vocab *v)
{
    small_init_bpe(v, true);
    small_add_text(v, "ab", 0);            /* 256 */
    small_add_text(v, "\u0120ab", 0);      /* 257 */
    small_add_text(v, "abc", 0);           /* 258: no merge makes it */
    small_add(v, "<x>", 3, 0, CONTROL);    /* 259 */
    small_add(v, "[ u]", 4, 0, USER);      /* 260: spelled as it is */
    small_add(v, "\u0120x", 3, 0, USER);   /* 261: no space in it */
    small_add(v, "a\u20ac", 4, 0, NORMAL); /* 262: out of the alphabet */
    merge(v, "a b");
    merge(v, "\u0120 ab");
    merge(v, "\u0120 x");
    merge(v, "< x");
    merge(v, "<x >");
}

static void ids_by_hand(void **state)
{
    small_vocab v;
    size_t n;
    (void)state;
    small_letters(&v);
    sh_tokenizer *t = open_small(&v);
    IDS(t, "", SH_TOK_BOS, END);
    IDS(t, "abab ab", SH_TOK_BOS, 256, 256, 257, END);
    IDS(t, "abc", 0, 256, 'c', END);
    IDS(t, "<x>", 0, '<', 'x', '>', END); /* merges end in what is no token: bytes */
    IDS(t, "a<x>ab", SH_TOK_SPECIAL, 'a', 259, 256, END);
    IDS(t, "a[ u] x", 0, 'a', 260, ' ', 'x', END);
    IDS(t, "\u0120x", 0, 261, END);
    assert_memory_equal(sh_tokenizer_piece(t, 257, &n), " ab", 3);
    assert_int_equal(n, 3);
    assert_memory_equal(sh_tokenizer_piece(t, 260, &n), "[ u]", 4);
    assert_memory_equal(sh_tokenizer_piece(t, 261, &n), "\u0120x", 3);
    assert_int_equal(n, 3);
    assert_memory_equal(sh_tokenizer_piece(t, 262, &n), "a\u20ac", 4);
    assert_int_equal(n, 4);
    sh_tokenizer_piece(t, 259, &n);
    assert_int_equal(n, 0);
    assert_int_equal(sh_tokenizer_bos(t), -1);
    for (uint32_t i = 0; i < v.n; i++) assert_false(sh_tokenizer_is_end(t, i));
    sh_tokenizer_close(t);

    v.pre = "llama-bpe"; /* pieces that are tokens are taken as they are, and BOS is put */
    v.bos = v.eos = 259;
    t = open_small(&v);
    IDS(t, "abc", SH_TOK_BOS, 259, 258, END);
    IDS(t, "abcd", 0, 256, 'c', 'd', END);
    assert_true(sh_tokenizer_is_end(t, 259));
    sh_tokenizer_close(t);
    v.add_bos = 0;
    t = open_small(&v);
    IDS(t, "abc", SH_TOK_BOS, 258, END);
    sh_tokenizer_close(t);
    small_free(&v);
}

/* --- vocabularies of characters, as a table of characters has them --- */

static void characters(void **state)
{
    static const struct {
        const char *text, *part;
    } bad[] = {{"az", "'z' (U+007A)"},
               {"a\u00e9", "'\u00e9' (U+00E9)"},
               {"\U0001f999", "'\U0001f999' (U+1F999)"},
               {"a\x1b", "'?' (U+001B)"},
               {"\xc2\x85", "'?' (U+0085)"},
               {"\xff", "byte 0xFF"},
               {"\u20ac\xe2\x82", "byte 0xE2"}};
    small_vocab v;
    uint32_t *id;
    size_t n;
    (void)state;
    small_init_bpe(&v, false);
    small_add_text(&v, "a", 0);                  /* 0 */
    small_add_text(&v, "\u0120", 0);             /* 1: the space */
    small_add_text(&v, "\u00c3\u00a4", 0);       /* 2: the two bytes of \u00e4 */
    small_add_text(&v, "\u00e2\u0124\u00ac", 0); /* 3: the three of \u20ac */
    merge(&v, "\u00c3 \u00a4");
    merge(&v, "\u00e2 \u0124");
    merge(&v, "\u00e2\u0124 \u00ac");
    sh_tokenizer *t = open_small(&v);
    IDS(t, "a \u00e4\u20aca", 0, 0, 1, 2, 3, 0, END);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(sh_tokenizer_encode(t, bad[i].text, strlen(bad[i].text), 0, &id, &n),
                         SH_EARG);
        assert_true(id == NULL && n == 0);
        if (!strstr(sh_err_message(), bad[i].part))
            fail_msg("'%s' is not in: %s", bad[i].part, sh_err_message());
    }
    sh_tokenizer_close(t);

    small_add(&v, "<unk>", 5, 0, UNKNOWN); /* 4: one for each character and each wrong byte */
    v.unknown = 4;
    t = open_small(&v);
    IDS(t, "za \u00e9\u00e4\U0001f999\u20aca", 0, 4, 0, 1, 4, 2, 4, 3, 0, END);
    IDS(t, "a\xff\xe2\x82", 0, 0, 4, 4, END);
    sh_tokenizer_close(t);
    small_free(&v);
}

/* --- long texts: a quadratic tokenizer does not end within the test's time --- */

static void a_megabyte(void **state)
{
    enum { N = SANITIZED ? 1 << 18 : 1 << 20 };
    static const char *const unit[] = {"c",   "q",    "dddddddd", " ",  "\n",
                                       " \n", "\xff", "\u4e2d",   "a b"};
    char *text = malloc(N);
    uint32_t *id;
    size_t n_id, n_back;
    (void)state;
    assert_non_null(text);
    for (const sh_pretoken_row *r = sh_pretoken_rows; r->name; r++) {
        small_vocab v;
        char s[600], c[601];
        memset(c, 'c', sizeof c);
        small_init_bpe(&v, true);
        v.pre = r->name;
        for (size_t n = 1; n <= 256; n *= 2) { /* c joins by doubling, d by one at a time */
            small_add(&v, c, 2 * n, 0, NORMAL);
            small_merge(&v, s, (size_t)sprintf(s, "%.*s %.*s", (int)n, c, (int)n, c));
        }
        for (size_t n = 0; n < sizeof c; n++) c[n] = 'd';
        for (size_t n = 1; n <= 100; n++) {
            small_add(&v, c, n + 1, 0, NORMAL);
            small_merge(&v, s, (size_t)sprintf(s, "%.*s d", (int)n, c));
        }
        sh_tokenizer *t = open_small(&v);
        for (size_t k = 0; k < sizeof unit / sizeof *unit; k++) {
            size_t len = strlen(unit[k]), n = k == 0 ? N : N / 4;
            for (size_t i = 0; i < n; i++) text[i] = unit[k][i % len];
            assert_int_equal(sh_tokenizer_encode(t, text, n, 0, &id, &n_id), SH_OK);
            if (k == 0) assert_int_equal(n_id, N / 512);
            char *back = small_decode(t, id, n_id, &n_back);
            assert_int_equal(n_back, n);
            assert_memory_equal(back, text, n);
            free(back);
            free(id);
        }
        sh_tokenizer_close(t);
        small_free(&v);
    }
    free(text);
}

/* --- bad tables --- */

static void check_refused(const small_vocab *v, const char *part)
{
    sh_tokenizer *t;
    assert_int_equal(small_open(&t, v), SH_EFILE);
    assert_null(t);
    if (!strstr(sh_err_message(), part) || !strstr(sh_err_message(), "/tmp/shoal-vocab-"))
        fail_msg("'%s' is not in: %s", part, sh_err_message());
}

static void bad_tables(void **state)
{
    small_vocab good, v;
    char *long_merge = calloc(1, 70000);
    (void)state;
    assert_non_null(long_merge);
    memset(long_merge, 'x', 65536);
    long_merge[2] = ' ';
    small_letters(&good);
#define BAD(change, part) v = good, change, check_refused(&v, part)
    BAD(v.pre = "qwen2",
        "tokenizer.ggml.pre: 'qwen2' is a pre-tokenizer that this program does not have; it has: "
        "default, gpt-2, llama-bpe");
    BAD(v.pre = "\x1b[31m\n", "'?[31m?'");
    BAD(v.pre = "", "''");
    BAD(v.n_merge = SIZE_MAX, "tokenizer.ggml.merges is missing");
    BAD(v.merge[1] = ((sh_str){"ab", 2}), "merge 1, 'ab', is not two spellings with a space");
    BAD(v.merge[1] = ((sh_str){" b", 2}), "merge 1, ' b',");
    BAD(v.merge[1] = ((sh_str){"b ", 2}), "merge 1, 'b ',");
    BAD(v.merge[1] = ((sh_str){" ", 1}), "merge 1, ' ',");
    BAD(v.merge[1] = ((sh_str){"", 0}), "merge 1, '',");
    BAD(v.merge[1] = ((sh_str){"a b c", 5}), "merge 1, 'a b c',");
    BAD(v.merge[1] = ((sh_str){long_merge, 65536}), "merge 1, 'xx xxx");
    BAD(v.bos = (int64_t)good.n, "tokenizer.ggml.bos_token_id");
    v = good;
    v.merge[1] = (sh_str){long_merge, 65535}; /* the longest that is good */
    sh_tokenizer_close(open_small(&v));
    v = good;
    v.n_merge = 0; /* an array without elements */
    sh_tokenizer *t = open_small(&v);
    IDS(t, "ab", 0, 'a', 'b', END);
    sh_tokenizer_close(t);
    small_free(&good);
    free(long_merge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(alphabet),
        cmocka_unit_test(cuts),
        cmocka_unit_test(pieces_tile_the_text),
        cmocka_unit_test(same_as_the_slow_tokenizer),
        cmocka_unit_test(pieces_are_the_text),
        cmocka_unit_test(ids_by_hand),
        cmocka_unit_test(characters),
        cmocka_unit_test(a_megabyte),
        cmocka_unit_test(bad_tables),
    };
    return cmocka_run_group_tests_name("bpe", tests, NULL, NULL);
}
