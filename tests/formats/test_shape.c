/* Shapes: every one is a model that the rest of the program takes, the same for the same seed, of
 * finite values, and small in memory. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "formats/formats.h"
#include "model/family.h"
#include "tokenizer/tokenizer.h"

static const struct {
    const char *name;
    int n_layer;
    double n_param; /* as its makers count them */
} shapes[] = {
    {"tinyllama", 22, 1.100e9},    {"llama2-7b", 32, 6.738e9},   {"llama2-13b", 40, 13.016e9},
    {"llama3-8b", 32, 8.030e9},    {"nanollama", 12, 0.304e9},   {"gpt2", 12, 0.1244e9},
    {"gpt2-medium", 24, 0.3548e9}, {"gpt2-large", 36, 0.7740e9}, {"gpt2-xl", 48, 1.5576e9},
    {"gptj-6b", 28, 6.0509e9},
};

static sh_model_file *open_shape(const char *name, const char *type, const char *seed)
{
    char path[64];
    sh_model_file *m = NULL;
    snprintf(path, sizeof path, "shape:%s:%s%s", name, type, seed);
    if (sh_model_file_open(&m, path) != SH_OK) fail_msg("%s: %s", path, sh_err_message());
    return m;
}

static void test_every_shape(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int t = 0; t < SH_N_DTYPE; t++) {
            if (!sh_dtypes[t].from_f32 || (SANITIZED && t % 4 != (int)i % 4)) continue;
            sh_model_file *m = open_shape(shapes[i].name, sh_dtypes[t].name, "");
            sh_config c;
            sh_tokenizer *tok;
            double n = 0;
            assert_int_equal(sh_config_read(&c, m), SH_OK);
            assert_int_equal(c.n_layer, shapes[i].n_layer);
            assert_int_equal(sh_tokenizer_open(&tok, m), SH_OK);
            assert_int_equal(sh_tokenizer_n_vocab(tok), c.dim[SH_DIM_VOCAB]);
            sh_tokenizer_close(tok);
            for (size_t j = 0; j < m->n_tensor; j++) {
                const sh_tensor *x = &m->tensor[j];
                n += (double)(x->n_bytes / (size_t)sh_dtypes[x->dtype].block_bytes) *
                     sh_dtypes[x->dtype].block;
                assert_int_equal(x->dtype, x->n_dim == 1 ? SH_F32 : t);
            }
            assert_true(fabs(n / shapes[i].n_param - 1) < 0.003);
            sh_model_file_close(m);
        }
}

/* Mean square and that all are finite, over the first and last values of a tensor. */
static double mean_square(const sh_tensor *t)
{
    enum { N = 65536 };
    static float x[N];
    double sum = 0;
    size_t half = sh_dtype_bytes(t->dtype, N);
    for (int end = 0; end < 2; end++) {
        sh_dtypes[t->dtype].to_f32(x, t->data + (end ? t->n_bytes - half : 0), N);
        for (int i = 0; i < N; i++) {
            assert_true(isfinite(x[i]));
            sum += (double)x[i] * (double)x[i];
        }
    }
    return sum / (2 * N);
}

static void test_values(void **state)
{
    (void)state;
    for (int t = 0; t < SH_N_DTYPE; t++) {
        if (!sh_dtypes[t].from_f32) continue;
        sh_model_file *m = open_shape("nanollama", sh_dtypes[t].name, "");
        for (size_t j = 0; j < m->n_tensor; j++)
            if (m->tensor[j].n_dim == 2)
                assert_true(fabs(mean_square(&m->tensor[j]) * 1024 - 1) < 0.05);
        float one;
        const sh_tensor *norm = sh_model_file_tensor(m, "blk.11.ffn_norm.weight");
        memcpy(&one, norm->data + 1023 * sizeof one, sizeof one);
        assert_true(one == 1.0f);
        sh_model_file_close(m);
    }
}

static void test_seeds(void **state)
{
    (void)state;
    uint8_t hash[4][16];
    const char *seed[] = {"", ":1", ":2", ":18446744073709551615"};
    for (int i = 0; i < 4; i++) {
        sh_model_file *m = open_shape("nanollama", "q8_0", seed[i]);
        sh_model_file_hash(m, hash[i]);
        sh_model_file_close(m);
    }
    assert_memory_not_equal(hash[0], hash[2], 16);
    assert_memory_not_equal(hash[2], hash[3], 16);
    sh_model_file *a = open_shape("nanollama", "q8_0", ""),
                  *b = open_shape("nanollama", "q8_0", ":1");
    for (size_t j = 0; j < a->n_tensor; j += 17) {
        assert_int_equal(a->tensor[j].n_bytes, b->tensor[j].n_bytes);
        assert_memory_equal(a->tensor[j].data, b->tensor[j].data, a->tensor[j].n_bytes);
    }
    sh_model_file_close(a);
    sh_model_file_close(b);
}

static void test_memory(void **state)
{
    (void)state;
    size_t before = sh_memory_used_bytes();
    sh_model_file *m = open_shape("llama2-13b", "f32", "");
    assert_true(m->file.n_bytes > (size_t)40 << 30);
    assert_true(sh_memory_used_bytes() < before + ((size_t)64 << 20));
    sh_model_file_close(m);
}

static void refused(const char *path, const char *word)
{
    sh_model_file *m;
    assert_int_equal(sh_model_file_open(&m, path), SH_EARG);
    assert_null(m);
    if (!strstr(sh_err_message(), word)) fail_msg("'%s' in '%s'", word, sh_err_message());
}

static void test_refused(void **state)
{
    (void)state;
    refused("shape:", "tinyllama");
    refused("shape:tinyllam:q8_0", "llama2-7b");
    refused("shape:tinyllama", "q8_0");
    refused("shape:tinyllama:", "q8_0");
    refused("shape:tinyllama:q9", "q8_0");
    refused("shape:tinyllama:q8_0:", "seed");
    refused("shape:tinyllama:q8_0:-1", "seed");
    refused("shape:tinyllama:q8_0:1x", "seed");
    refused("shape:tinyllama:q8_0:18446744073709551616", "seed");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_shape), cmocka_unit_test(test_values),
        cmocka_unit_test(test_seeds),       cmocka_unit_test(test_memory),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
