/* Learning merges: the same as counting every pair anew for each merge, whatever the order of the
 * words; and the vocabularies that come of it spell every text. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "small_vocab.h"
#include "tokenizer/new_vocab.h"

enum { MAX_MERGE = 400 };

static uint64_t rng = 1;
static uint32_t below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

/* --- the plain way --- */

typedef struct plain_word {
    uint32_t sym[512];
    size_t n;
    uint64_t count;
} plain_word;

/* The pair that comes first; its count. */
static uint64_t plain_best(const plain_word *w, size_t n_word, const size_t *n_bytes,
                           sh_bpe_merge *best)
{
    uint64_t most = 0;
    for (size_t i = 0; i < n_word; i++) {
        for (size_t k = 0; k + 1 < w[i].n; k++) {
            sh_bpe_merge m = {w[i].sym[k], w[i].sym[k + 1]};
            uint64_t count = 0;
            if (n_bytes[m.left] + n_bytes[m.right] > SH_BPE_MAX_TOKEN) continue;
            for (size_t a = 0; a < n_word; a++)
                for (size_t b = 0; b + 1 < w[a].n; b++)
                    if (w[a].sym[b] == m.left && w[a].sym[b + 1] == m.right) count += w[a].count;
            bool lower = m.left < best->left || (m.left == best->left && m.right < best->right);
            if (count > most || (count == most && lower)) {
                most = count;
                *best = m;
            }
        }
    }
    return most;
}

static size_t plain_learn(sh_bpe_merge *merge, size_t n_merge, const sh_words *words)
{
    plain_word *w = calloc(words->n, sizeof *w);
    size_t n_bytes[256 + MAX_MERGE], i;
    assert_non_null(w);
    for (int b = 0; b < 256; b++) n_bytes[b] = 1;
    for (i = 0; i < words->n; i++) {
        assert_true(words->v[i].n <= 512);
        w[i].n = words->v[i].n;
        w[i].count = words->v[i].value;
        for (size_t k = 0; k < w[i].n; k++) w[i].sym[k] = (uint8_t)words->bytes[words->v[i].at + k];
    }
    for (i = 0; i < n_merge && plain_best(w, words->n, n_bytes, &merge[i]) >= 2; i++) {
        n_bytes[256 + i] = n_bytes[merge[i].left] + n_bytes[merge[i].right];
        for (size_t a = 0; a < words->n; a++) {
            size_t to = 0;
            for (size_t b = 0; b < w[a].n; b++) {
                bool both = b + 1 < w[a].n && w[a].sym[b] == merge[i].left &&
                            w[a].sym[b + 1] == merge[i].right;
                w[a].sym[to++] = both ? (uint32_t)(256 + i) : w[a].sym[b];
                b += both;
            }
            w[a].n = to;
        }
    }
    free(w);
    return i;
}

static void compare(const sh_words *words, size_t n_merge)
{
    sh_bpe_merge want[MAX_MERGE] = {{0}}, got[MAX_MERGE];
    size_t n_want = plain_learn(want, n_merge, words), n_got;
    assert_int_equal(sh_bpe_learn(got, n_merge, &n_got, words), SH_OK);
    assert_int_equal(n_got, n_want);
    for (size_t i = 0; i < n_got; i++)
        if (got[i].left != want[i].left || got[i].right != want[i].right)
            fail_msg("merge %zu of %zu is %u %u, not %u %u", i, n_got, got[i].left, got[i].right,
                     want[i].left, want[i].right);
}

static void add_word(sh_words *words, const char *p, size_t n, uint64_t count)
{
    sh_word *w;
    assert_int_equal(sh_words_put(words, p, n, &w), SH_OK);
    w->value += count;
}

/* Few letters make many equal counts, runs of one letter, and pairs that overlap. */
static void equals_the_plain_way(void **state)
{
    (void)state;
    for (int round = 0; round < (SANITIZED ? 40 : 200); round++) {
        sh_words words = {0}, turned = {0};
        uint32_t n_letter = 1 + below(4), n_word = below(30), longest = 1 + below(20);
        for (uint32_t i = 0; i < n_word; i++) {
            char p[32];
            size_t n = 1 + below(longest);
            for (size_t k = 0; k < n; k++) p[k] = (char)(below(8) ? 'a' + below(n_letter) : 0xe9);
            add_word(&words, p, n, below(3) ? 1 : 1 + below(5));
        }
        compare(&words, below(60));
        for (size_t i = words.n; i-- > 0;)
            add_word(&turned, words.bytes + words.v[i].at, words.v[i].n, words.v[i].value);
        sh_bpe_merge a[60], b[60];
        size_t n_a, n_b;
        assert_int_equal(sh_bpe_learn(a, 60, &n_a, &words), SH_OK);
        assert_int_equal(sh_bpe_learn(b, 60, &n_b, &turned), SH_OK);
        assert_true(n_a == n_b && memcmp(a, b, n_a * sizeof *a) == 0);
        sh_words_close(&words);
        sh_words_close(&turned);
    }
}

static void long_runs(void **state)
{
    char p[512];
    (void)state;
    for (int round = 0; round < 6; round++) { /* tokens grow to their limit and no further */
        sh_words words = {0};
        memset(p, 'a', sizeof p);
        for (int i = 0; i < round; i++) p[below(sizeof p)] = 'b';
        add_word(&words, p, sizeof p - (size_t)round, 1 + (uint64_t)round);
        add_word(&words, p, 200, 3);
        compare(&words, 40);
        sh_words_close(&words);
    }
    sh_words none = {0};
    compare(&none, 3);
    add_word(&none, "a", 1, 1000);
    compare(&none, 3);
    add_word(&none, "ab", 2, 1); /* stands there once: not learned */
    compare(&none, 3);
    compare(&none, 0);
    sh_words_close(&none);
}

static char *read_shakespeare(size_t *n)
{
    const char *shared = getenv("SHOAL_SHARED");
    char path[512], *text;
    if (shared) snprintf(path, sizeof path, "%s/data/shakespeare.txt", shared);
    if (!shared || access(path, R_OK) != 0) return NULL;
    assert_int_equal(sh_file_read_text(&text, n, path, 1 << 24), SH_OK);
    return text;
}

static void real_text(void **state)
{
    size_t n;
    char *text = read_shakespeare(&n);
    sh_pretoken *pretoken;
    sh_words words = {0};
    (void)state;
    if (!text) {
        print_message("# ../shared/data/shakespeare.txt is not here: not tried on it\n");
        return;
    }
    assert_int_equal(sh_pretoken_open(&pretoken, NULL), SH_OK);
    if (n > (SANITIZED ? 2000 : 8000)) n = SANITIZED ? 2000 : 8000;
    assert_int_equal(sh_bpe_count(&words, pretoken, text, n), SH_OK);
    compare(&words, 60);
    sh_words_close(&words);
    sh_pretoken_close(pretoken);
    free(text);
}

/* --- vocabularies --- */

static sh_tokenizer *through_a_file(const sh_new_vocab *v, const char *end)
{
    char path[] = "/tmp/shoal-new-vocab-XXXXXX";
    sh_model_file *m;
    sh_tokenizer *t;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(sh_new_vocab_write(v, end, path), SH_OK);
    assert_int_equal(sh_model_file_open(&m, path), SH_OK);
    if (sh_tokenizer_open(&t, m) != SH_OK) fail_msg("%s", sh_err_message());
    sh_model_file_close(m);
    unlink(path);
    return t;
}

/* The number of tokens; the text comes back from them. */
static size_t there_and_back(const sh_tokenizer *t, const char *text, size_t n)
{
    uint32_t *id;
    size_t n_id, n_back;
    if (sh_tokenizer_encode(t, text, n, 0, &id, &n_id) != SH_OK) fail_msg("%s", sh_err_message());
    for (size_t i = 0; i < n_id; i++) assert_true(id[i] < (uint32_t)sh_tokenizer_n_vocab(t));
    char *back = small_decode(t, id, n_id, &n_back);
    assert_int_equal(n_back, n);
    assert_memory_equal(back, text, n);
    free(back);
    free(id);
    return n_id;
}

static void bpe_vocabulary(void **state)
{
    static const char text[] = "the cat, the hat, the bat\n  and the r\xc3\xa4t; the r\xc3\xa4t!";
    sh_pretoken *pretoken;
    sh_words words = {0};
    sh_new_vocab v = {0};
    sh_bpe_merge merge[64];
    size_t n_merge, len;
    char any[300];
    (void)state;
    assert_int_equal(sh_pretoken_open(&pretoken, NULL), SH_OK);
    assert_int_equal(sh_bpe_count(&words, pretoken, text, sizeof text - 1), SH_OK);
    assert_int_equal(sh_bpe_learn(merge, 64, &n_merge, &words), SH_OK);
    assert_true(n_merge > 5 && n_merge < 64);
    assert_int_equal(sh_new_vocab_bpe(&v, merge, n_merge), SH_OK);
    sh_tokenizer *t = through_a_file(&v, "<|endoftext|>");
    uint32_t end = (uint32_t)(256 + n_merge);
    assert_int_equal(sh_tokenizer_n_vocab(t), end + 1);
    assert_true(sh_tokenizer_is_end(t, end) && sh_tokenizer_bos(t) == (int)end);
    assert_string_equal(sh_tokenizer_spelling(t, end), "<|endoftext|>");
    for (uint32_t b = 0; b < 256; b++) {
        const char *p = sh_tokenizer_piece(t, b, &len);
        assert_true(len == 1 && (uint8_t)p[0] == b);
    }
    assert_int_equal(there_and_back(t, " the", 4), 1);
    assert_true(there_and_back(t, text, sizeof text - 1) < 30);
    for (int i = 0; i < 200; i++) {
        size_t n = below(sizeof any);
        for (size_t k = 0; k < n; k++) any[k] = below(3) ? text[below(50)] : (char)below(256);
        there_and_back(t, any, n);
    }
    sh_tokenizer_close(t);
    sh_new_vocab_close(&v);

    assert_int_equal(sh_new_vocab_bpe(&v, merge, 0), SH_OK); /* bytes alone */
    t = through_a_file(&v, "<|endoftext|>");
    assert_int_equal(sh_tokenizer_n_vocab(t), 257);
    assert_int_equal(there_and_back(t, text, sizeof text - 1), sizeof text - 1);
    sh_tokenizer_close(t);
    sh_new_vocab_close(&v);
    sh_words_close(&words);
    sh_pretoken_close(pretoken);
}

static void characters(void **state)
{
    /* in ascending order: newline, space, a, b, e acute, alpha, two of three bytes that begin
     * alike, one of three bytes, two of four; and a byte that is none */
    static const char text[] = "b a\n\xc3\xa9\xce\xb1\xe2\x82\xac\xe2\x82\xad\xe4\xb8\xad"
                               "\xf0\x9f\x98\x80\xf0\x9f\x98\x81\xffz";
    static const char *const want[] = {"\n",
                                       " ",
                                       "a",
                                       "b",
                                       "z",
                                       "\xc3\xa9",
                                       "\xce\xb1",
                                       "\xe2\x82\xac",
                                       "\xe2\x82\xad",
                                       "\xe4\xb8\xad",
                                       "\xf0\x9f\x98\x80",
                                       "\xf0\x9f\x98\x81"};
    enum { N = sizeof want / sizeof *want };
    sh_char_set *set = calloc(1, sizeof *set);
    sh_new_vocab v = {0};
    size_t len;
    (void)state;
    assert_non_null(set);
    sh_char_set_add(set, text, sizeof text - 1);
    assert_int_equal(sh_new_vocab_chars(&v, set), SH_OK);
    sh_tokenizer *t = through_a_file(&v, NULL);
    for (uint32_t i = 0; i < N; i++) {
        const char *p = sh_tokenizer_piece(t, i, &len);
        assert_true(len == strlen(want[i]) && memcmp(p, want[i], len) == 0);
        uint32_t *id;
        size_t n;
        assert_int_equal(sh_tokenizer_encode(t, want[i], len, 0, &id, &n), SH_OK);
        assert_true(n == 1 && id[0] == i);
        free(id);
    }
    assert_int_equal(there_and_back(t, text, sizeof text - 1), N + 1);
    assert_int_equal(sh_tokenizer_n_vocab(t), N + 16 + 4); /* bytes; fronts, each once */
    assert_false(sh_tokenizer_is_end(t, (uint32_t)sh_tokenizer_n_vocab(t) - 1));
    sh_tokenizer_close(t);
    sh_new_vocab_close(&v);

    memset(set, 0, sizeof *set); /* bytes that are characters: no merge, no token more */
    sh_char_set_add(set, "hello", 5);
    assert_int_equal(sh_new_vocab_chars(&v, set), SH_OK);
    t = through_a_file(&v, NULL);
    assert_int_equal(sh_tokenizer_n_vocab(t), 4);
    assert_int_equal(there_and_back(t, "hello", 5), 5);
    sh_tokenizer_close(t);
    sh_new_vocab_close(&v);
    free(set);
}

/* The words that a table has met are those that it finds again, also long ones and parts of each
 * other. */
static void words_table(void **state)
{
    sh_words words = {0};
    sh_word *w;
    char p[40];
    (void)state;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < 4000; i++) {
            size_t n = 1 + i % sizeof p;
            memset(p, 'x', sizeof p);
            memcpy(p + n - (n < 4 ? n : 4), &i, n < 4 ? n : 4);
            assert_int_equal(sh_words_put(&words, p, n, &w), SH_OK);
            assert_int_equal(w->n, n);
            assert_memory_equal(words.bytes + w->at, p, n);
            if (pass == 1) assert_true(w->value > 0);
            w->value++;
        }
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < words.n; i++) sum += words.v[i].value;
    assert_int_equal(sum, 8000);
    sh_words_clear(&words);
    assert_int_equal(sh_words_put(&words, p, 1, &w), SH_OK);
    assert_true(words.n == 1 && w->value == 0);
    sh_words_close(&words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_table),    cmocka_unit_test(equals_the_plain_way),
        cmocka_unit_test(long_runs),      cmocka_unit_test(real_text),
        cmocka_unit_test(bpe_vocabulary), cmocka_unit_test(characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
