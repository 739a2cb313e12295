/* The forward pass against logits that tests/golden/make_golden.py computed in float64, from the
 * formulas of the papers, for every family: tied and separate heads, grouped KV heads, odd sizes,
 * scaled rotation. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <sodium.h>

#include "base/mem.h"
#include "model/forward.h"

enum { N_CHUNK = 37 }; /* the prompt goes in by this many tokens: across pages and unaligned */

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

/* Makes the model that the golden file describes; it has to be the very same file. */
static void make_model(const char *path, json_t *golden)
{
    const char *mkmodel = getenv("SHOAL_MKMODEL"), *word;
    char command[2048], hex[65];
    json_t *args = json_object_get(golden, "mkmodel");
    unsigned char sha[32];
    size_t i, n;
    sh_file f;
    assert_non_null(mkmodel);
    n = (size_t)snprintf(command, sizeof command, "'%s'", mkmodel);
    for (i = 0; i < json_array_size(args); i++) {
        word = json_string_value(json_array_get(args, i));
        n += (size_t)snprintf(command + n, sizeof command - n, " '%s'", word);
    }
    snprintf(command + n, sizeof command - n, " '%s'", path);
    assert_int_equal(system(command), 0);
    OK(sh_file_open(&f, path));
    crypto_hash_sha256(sha, f.data, f.n_bytes);
    sh_file_close(&f);
    sodium_bin2hex(hex, sizeof hex, sha, sizeof sha);
    if (strcmp(hex, json_string_value(json_object_get(golden, "sha256"))) != 0)
        fail_msg("mkmodel makes another file than when the golden logits were computed: run "
                 "tests/golden/make_golden.py again");
}

/* Takes the ids through the model; logits (n_vocab) after the last. */
static void forward(sh_forward *f, const uint32_t *ids, int n, float *logits)
{
    sh_step step = {0};
    float *x;
    OK(sh_alloc(&x, N_CHUNK, (size_t)f->config->dim[SH_DIM_EMBD] * sizeof *x, "activations"));
    for (int at = 0; at < n; at += N_CHUNK) {
        int n_tok = n - at < N_CHUNK ? n - at : N_CHUNK;
        bool last = at + n_tok == n;
        sh_step_clear(&step);
        OK(sh_step_add_seq(&step, (sh_step_seq){0, (uint32_t)at, (uint32_t)n_tok, true, last}));
        OK(sh_kv_apply(f->kv, &step));
        sh_forward_embed(f, &step, ids + at, x);
        OK(sh_forward_layers(f, &step, x));
        if (last) OK(sh_forward_head(f, &step, x, logits));
    }
    free(x);
    sh_step_free(&step);
}

/* How near the golden logits are with each type of cache: with f32 but for float32's own rounding,
 * where a wrong formula is off by 1e-2 and more; the others are rounded as they enter it. */
static const struct {
    sh_dtype kv;
    double near; /* of the largest */
} caches[] = {{SH_F32, 1e-5}, {SH_F16, 2e-3}, {SH_BF16, 1e-2}, {SH_Q8_0, 3e-2}};

static void check(const char *path, json_t *golden, sh_dtype type, double near)
{
    json_t *ids = json_object_get(golden, "ids"), *want = json_object_get(golden, "logits");
    int n = (int)json_array_size(ids), n_vocab = (int)json_array_size(want);
    sh_model_file *m;
    sh_config c;
    sh_plan p;
    sh_pool *pool;
    sh_group *g;
    sh_kernels k;
    sh_weights w = {0};
    sh_kv kv = {0};
    uint32_t id[1024];
    float *logits;
    double largest = 0, worst = 0;

    OK(sh_model_file_open(&m, path));
    OK(sh_config_read(&c, m));
    assert_int_equal(c.dim[SH_DIM_VOCAB], n_vocab);
    sh_plan_make(&p, &c, m, 0, 1, (sh_range){0, c.n_layer}, 0, 1);
    OK(sh_pool_open(&pool, 2, NULL, 0));
    OK(sh_kernels_init(&k, NULL));
    OK(sh_weights_load(&w, &c, m, &p, pool));
    OK(sh_kv_open(&kv, &p, &c, type, 256, 1));
    sh_group_options opt = {.n_rank = 1, .part_floats = sh_forward_part_floats(&c, 1, N_CHUNK, 1)};
    OK(sh_group_open(&g, &opt));
    sh_forward f = {.config = &c,
                    .plan = &p,
                    .w = &w,
                    .k = &k,
                    .kv = &kv,
                    .group = g,
                    .pool = pool,
                    .n_batch = N_CHUNK,
                    .n_slot = 1};
    OK(sh_forward_open(&f));
    OK(sh_alloc(&logits, (size_t)n_vocab, sizeof *logits, "logits"));

    assert_true(n <= 256);
    for (int i = 0; i < n; i++)
        id[i] = (uint32_t)json_integer_value(json_array_get(ids, (size_t)i));
    forward(&f, id, n, logits);
    for (int i = 0; i < n_vocab; i++) {
        double v = json_number_value(json_array_get(want, (size_t)i));
        largest = fmax(largest, fabs(v));
        worst = fmax(worst, fabs(v - (double)logits[i]));
    }
    if (!(worst < near * largest))
        fail_msg("cache in %s: logits differ by up to %g; the largest is %g", sh_dtypes[type].name,
                 worst, largest);

    free(logits);
    sh_pool_close(pool);
    sh_forward_close(&f);
    sh_group_close(g);
    sh_kv_close(&kv);
    sh_weights_free(&w);
    sh_model_file_close(m);
}

static void test_logits(void **state)
{
    const char *root = getenv("SHOAL_SOURCE_ROOT");
    char path[4096], model[] = "/tmp/shoal-golden-XXXXXX";
    json_error_t error;
    int fd = mkstemp(model);
    assert_non_null(root);
    assert_true(fd >= 0);
    close(fd);
    snprintf(path, sizeof path, "%s/tests/golden/%s.json", root, (const char *)*state);
    json_t *golden = json_load_file(path, 0, &error);
    if (!golden) fail_msg("%s: %s", path, error.text);
    make_model(model, golden);
    for (size_t i = 0; i < sizeof caches / sizeof *caches; i++)
        check(model, golden, caches[i].kv, caches[i].near);
    json_decref(golden);
    unlink(model);
}

#define GOLDEN(name)                                                                               \
    {                                                                                              \
        name, test_logits, NULL, NULL, (void *)name                                                \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        GOLDEN("tied"),        GOLDEN("untied-gqa"), GOLDEN("odd-head-dim"), GOLDEN("rope-linear"),
        GOLDEN("rope-llama3"), GOLDEN("gpt2-tied"),  GOLDEN("gpt2-untied"),  GOLDEN("gptj")};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
