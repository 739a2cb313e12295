/* The tables of a tokenizer in a file: what they may leave out, what ends a text, and what is
 * refused with a sentence that names the file and the key. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_ids.h"
#include "small_vocab.h"

static void ends(void **state)
{
    static const char *const name[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>",
                                       "<|endoftext|>"};
    small_vocab v;
    (void)state;
    small_init(&v, true);
    for (int i = 0; i < 5; i++)
        small_add(&v, name[i], strlen(name[i]), 0, CONTROL); /* 259 to 263 */
    small_add(&v, "<|other|>", 9, 0, CONTROL);
    small_add(&v, "<turn>", 6, 0, CONTROL); /* 265 */
    v.eot = 265;
    sh_tokenizer *t = open_small(&v);
    for (uint32_t id = 0; id < 270; id++)
        assert_int_equal(sh_tokenizer_is_end(t, id),
                         id == 2 || (id >= 259 && id <= 263) || id == 265);
    sh_tokenizer_close(t);
    for (size_t i = 259; i < v.n; i++) v.type[i] = NORMAL; /* text may say what it likes */
    v.eot = -1;
    t = open_small(&v);
    assert_false(sh_tokenizer_is_end(t, 259) || sh_tokenizer_is_end(t, 265));
    sh_tokenizer_close(t);
    small_free(&v);
}

static void what_files_leave_out(void **state)
{
    small_vocab v;
    (void)state;
    small_words(&v);
    v.bos = v.eos = v.unknown = -1;
    sh_tokenizer *t = open_small(&v);
    assert_int_equal(sh_tokenizer_bos(t), 1);
    assert_true(sh_tokenizer_is_end(t, 2));
    sh_tokenizer_close(t);
    v.n_type = 0; /* then the names tell */
    t = open_small(&v);
    IDS(t, "ab<s>c", SH_TOK_BOS | SH_TOK_SPECIAL, 1, 264, 1, 259, 3 + 'c', END);
    sh_tokenizer_close(t);
    small_free(&v);

    small_init(&v, false); /* no bytes: one unknown token for each character */
    small_add_text(&v, "a", -1);
    small_add_text(&v, "a", -2); /* twice: the first counts */
    v.space_prefix = 0;
    v.bos = -1;
    v.type[1] = NORMAL;
    t = open_small(&v);
    assert_int_equal(sh_tokenizer_bos(t), -1);
    IDS(t,
        "a\xe2\x82\xac\xff"
        "a",
        SH_TOK_BOS, 3, 0, 0, 3, END);
    sh_tokenizer_close(t);
    small_free(&v);
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
    char *long_name = calloc(1, 70000);
    (void)state;
    assert_non_null(long_name);
    small_words(&good);
#define BAD(change, part) v = good, change, check_refused(&v, part)
    BAD(v.kind = NULL, "tokenizer.ggml.model");
    BAD(v.kind = "wordpiece",
        "'wordpiece', a kind of tokenizer this program does not have; it has: llama");
    BAD(v.kind = "a\x1b[31m\n", "'a?[31m?'");
    BAD(v.n = 0, "tokenizer.ggml.tokens is missing");
    BAD(v.n_score = 0, "tokenizer.ggml.scores is missing");
    BAD(v.n_score--, "tokenizer.ggml.scores has 268 entries, but there are 269 tokens");
    BAD(v.n_type--, "tokenizer.ggml.token_type has 268 entries, but there are 269 tokens");
    BAD(v.type[260] = 0, "token 260 has the type 0");
    BAD(v.type[260] = 7, "token 260 has the type 7");
    BAD(v.type[260] = -1, "token 260 has the type -1");
    BAD(v.type[260] = BYTE, "token 260 is a byte");
    BAD(v.score[260] = 0.0f / 0.0f, "the score of token 260 is not a number");
    BAD(v.bos = 269, "tokenizer.ggml.bos_token_id is 269, but there are 269 tokens");
    BAD(v.eos = UINT32_MAX, "tokenizer.ggml.eos_token_id is 4294967295");
    BAD(v.eot = 269, "tokenizer.ggml.eot_token_id");
    BAD(v.unknown = 1 << 24, "tokenizer.ggml.unknown_token_id");
    BAD((v.type[0] = NORMAL, v.type[3 + 'a'] = NORMAL, v.unknown = -1), "no token for some bytes");
    memset(long_name, 'x', 70000 - 1);
    BAD(v.token[260] = ((sh_str){long_name, 65536}), "token 260 has 65536 bytes");
    BAD((v.token[260] = ((sh_str){long_name, 257}), v.type[260] = CONTROL),
        "token 260 has 257 bytes");
    for (int i = 0; i < 2; i++) { /* the longest that are good */
        sh_tokenizer *t;
        v = good;
        v.token[260] = (sh_str){long_name, i ? 65535 : 256};
        v.type[260] = i ? NORMAL : USER;
        v.space_prefix = 0;
        assert_int_equal(small_open(&t, &v), SH_OK);
        if (i == 0) { /* 600 bytes: two of these and 88 that are no token */
            uint32_t *id;
            size_t n;
            assert_int_equal(sh_tokenizer_encode(t, long_name, 600, 0, &id, &n), SH_OK);
            assert_true(n == 2 + 88 && id[0] == 260 && id[1] == 260 && id[2] == 3 + 'x');
            free(id);
        }
        sh_tokenizer_close(t);
    }
    small_free(&good);
    free(long_name);
}

/* Keys of another type, and more tokens than a table may have. */
static void wrong_types(void **state)
{
    char path[] = "/tmp/shoal-vocab-XXXXXX";
    static const float one = 1;
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 4; i++) {
        enum { MANY = (1 << 20) + 1 };
        sh_str *many = calloc(MANY, sizeof *many), a = {"a", 1};
        sh_gguf_writer *w;
        sh_model_file *m;
        sh_tokenizer *t;
        assert_non_null(many);
        for (int k = 0; k < MANY; k++) many[k] = a;
        assert_int_equal(sh_gguf_create(&w, path), SH_OK);
        sh_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
        if (i == 0) sh_gguf_put_str(w, "tokenizer.ggml.tokens", "a", 1);
        if (i == 1) sh_gguf_put_f32s(w, "tokenizer.ggml.tokens", &one, 1);
        if (i == 2) sh_gguf_put_strs(w, "tokenizer.ggml.tokens", many, MANY);
        if (i == 3) {
            sh_gguf_put_strs(w, "tokenizer.ggml.tokens", &a, 1);
            sh_gguf_put_f32s(w, "tokenizer.ggml.token_type", &one, 1);
        }
        assert_int_equal(sh_gguf_close(w, true), SH_OK);
        free(many);
        assert_int_equal(sh_model_file_open(&m, path), SH_OK);
        assert_int_equal(sh_tokenizer_open(&t, m), SH_EFILE);
        assert_non_null(strstr(sh_err_message(), i == 3 ? "token_type" : "tokenizer.ggml.tokens"));
        if (i == 2) assert_non_null(strstr(sh_err_message(), "at most 1048576"));
        sh_model_file_close(m);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends),
        cmocka_unit_test(what_files_leave_out),
        cmocka_unit_test(bad_tables),
        cmocka_unit_test(wrong_types),
    };
    return cmocka_run_group_tests_name("vocab", tests, NULL, NULL);
}
