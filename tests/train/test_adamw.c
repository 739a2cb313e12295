/* The optimiser: against the formulas in float64, the same bits on every instruction set and number
 * of threads, and 20 steps of a model against torch. */
#define _GNU_SOURCE
#include "train_kit.h"

#include <jansson.h>
#include <math.h>

#include "base/mem.h"
#include "base/rng.h"
#include "train/adamw.h"
#include "train/pass.h"

static uint32_t counter;

static float number(void) /* [-1, 1) */
{
    uint32_t out[4], at[4] = {counter++, 0, 0, 0}, key[2] = {3, 5};
    sh_philox(out, at, key);
    return (float)((double)out[0] / 2147483648.0 - 1.0);
}

/* Weights, gradients and moments of a model in the middle of its training. */
static void draw(sh_params *p, float size)
{
    for (int i = 0; i < p->n; i++)
        for (size_t j = p->list[i].at, end = j + (size_t)p->list[i].rows * (size_t)p->list[i].cols;
             j < end; j++) {
            p->w[j] = number();
            p->g[j] = size * number();
            p->m[j] = 0.1f * number();
            p->v[j] = 0.1f * fabsf(number());
        }
}

static void test_formulas(void **state)
{
    (void)state;
    const sh_adamw_numbers n = {
        .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .decay = 0.1, .scale = 0.5};
    sh_kernels k;
    sh_pool *pool;
    sh_adamw *a;
    sh_params p, q;
    OK(sh_kernels_init(&k, NULL));
    OK(sh_pool_open(&pool, 2, NULL, 0));
    for (int i = 0; i < N_KIT_ARCH; i++)
        for (int64_t t = 1; t < 5000; t *= 17) {
            OK(sh_params_open(&p, &kit_archs[i]));
            OK(sh_params_open(&q, &kit_archs[i]));
            draw(&p, 1);
            for (size_t j = 0; j < p.n_float; j++)
                q.w[j] = p.w[j], q.m[j] = p.m[j], q.v[j] = p.v[j];
            OK(sh_adamw_open(&a, &p, &k, pool));
            sh_adamw_update(a, p.g, t, &n);
            double left1 = 1 - pow(n.beta1, (double)t), left2 = 1 - pow(n.beta2, (double)t);
            for (int l = 0; l < p.n; l++) {
                const sh_param *r = &p.list[l];
                for (size_t j = r->at; j < r->at + (size_t)r->rows * (size_t)r->cols; j++) {
                    double g = (double)p.g[j] * n.scale;
                    double m = (double)q.m[j] * n.beta1 + g * (1 - n.beta1);
                    double v = (double)q.v[j] * n.beta2 + g * g * (1 - n.beta2);
                    double w = (double)q.w[j] * (1 - (r->decay ? n.lr * n.decay : 0)) -
                               n.lr * (m / left1) / (sqrt(v / left2) + 1e-8);
                    assert_true(fabs((double)p.m[j] - m) < 1e-7);
                    assert_true(fabs((double)p.v[j] - v) < 1e-7);
                    assert_true(fabs((double)p.w[j] - w) < 5e-7);
                }
            }
            for (size_t j = 0; j < p.n_float; j++) /* padding */
                if (q.w[j] == 0) assert_true(p.w[j] == 0 && p.m[j] == 0 && p.v[j] == 0);
            sh_adamw_close(a);
            sh_params_close(&p);
            sh_params_close(&q);
        }
    sh_pool_close(pool);
}

/* Larger than a piece, so that threads have work. */
static const sh_arch large = {.family = "gpt2",
                              .n_layer = 2,
                              .n_head = 2,
                              .n_kv_head = 2,
                              .head_dim = 41,
                              .n_embd = 82,
                              .n_ff = 333,
                              .n_vocab = 1501,
                              .n_ctx = 12,
                              .layer_norm = true,
                              .gelu = true,
                              .learned_pos = true,
                              .bias = true,
                              .tied = true,
                              .norm_eps = 1e-5f};

static void test_same_bits(void **state)
{
    (void)state;
    const sh_adamw_numbers n = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .decay = 0.1, .scale = 1};
    sh_params p, q;
    double norm = 0;
    OK(sh_params_open(&q, &large)); /* what the first gave */
    for (int i = 0; sh_isas[i]; i++)
        for (int n_thread = 1; n_thread <= 4; n_thread += SANITIZED ? 2 : 1) {
            sh_kernels k;
            sh_pool *pool;
            sh_adamw *a;
            OK(sh_kernels_init(&k, sh_isas[i]->name));
            OK(sh_pool_open(&pool, n_thread, NULL, 0));
            OK(sh_params_open(&p, &large));
            counter = 0;
            draw(&p, 1e-3f);
            OK(sh_adamw_open(&a, &p, &k, pool));
            double got = sh_adamw_norm(a, p.g);
            for (int t = 1; t <= 3; t++) sh_adamw_update(a, p.g, t, &n);
            if (norm == 0) {
                double sum = 0;
                for (size_t j = 0; j < p.n_float; j++) sum += (double)p.g[j] * (double)p.g[j];
                assert_true(fabs(got / sqrt(sum) - 1) < 1e-12);
                norm = got;
                memcpy(q.w, p.w, p.n_float * sizeof(float));
                memcpy(q.m, p.m, p.n_float * sizeof(float));
                memcpy(q.v, p.v, p.n_float * sizeof(float));
            }
            assert_true(got == norm);
            assert_memory_equal(p.w, q.w, p.n_float * sizeof(float));
            assert_memory_equal(p.m, q.m, p.n_float * sizeof(float));
            assert_memory_equal(p.v, q.v, p.n_float * sizeof(float));
            sh_adamw_close(a);
            sh_params_close(&p);
            sh_pool_close(pool);
        }
    sh_params_close(&q);
}

/* The sign of a zero among the gradients makes no difference: sums over ranks have none that is
 * negative. */
static void test_zero(void **state)
{
    (void)state;
    const sh_adamw_step s = {1, 0.9f, 0.1f, 0.99f, 0.01f, 1, 1e-3f, 1, 1e-8f};
    for (int i = 0; sh_isas[i]; i++) {
        sh_kernels k;
        float w[2] = {-0.0f, -0.0f}, m[2] = {-0.0f, -0.0f}, v[2] = {0}, g[2] = {0.0f, -0.0f};
        OK(sh_kernels_init(&k, sh_isas[i]->name));
        k.adamw(w, g, m, v, 2, &s);
        assert_memory_equal(&w[0], &w[1], sizeof *w);
        assert_memory_equal(&m[0], &m[1], sizeof *m);
    }
}

/* ---- against torch ---- */

typedef struct golden {
    json_t *json;
    sh_params p;
    sh_products products;
    sh_kernels k;
    sh_pool *pool;
    sh_pass *pass;
    sh_adamw *adamw;
    float *dx;
    int32_t *ids;
} golden;

static double value(const golden *g, const char *key)
{
    return json_number_value(json_object_get(g->json, key));
}

static void read_batch(golden *g, size_t step, int *n_seq)
{
    json_t *batch = json_array_get(json_object_get(g->json, "batches"), step);
    size_t n = (size_t)g->p.arch.n_ctx + 1;
    *n_seq = (int)json_array_size(batch);
    for (size_t i = 0; i < (size_t)*n_seq * n; i++)
        g->ids[i] =
            (int32_t)json_integer_value(json_array_get(json_array_get(batch, i / n), i % n));
}

static void make_step(golden *g, int step)
{
    int n_seq;
    double loss[8], sum = 0, clip = value(g, "clip");
    read_batch(g, (size_t)step, &n_seq);
    sh_batch b = {.n_seq = n_seq, .slice = {0, 8}, .ids = g->ids};
    sh_dropout none = {0};
    sh_pass_backward(g->pass, &b, &none, loss, g->dx);
    sh_pass_embed_grad(g->pass, &b, g->dx);
    for (int i = 0; i < 8; i++) sum += loss[i];
    double want =
        json_number_value(json_array_get(json_object_get(g->json, "losses"), (size_t)step));
    assert_true(fabs(sum / (n_seq * g->p.arch.n_ctx) - want) < 1e-4 * want);
    double norm = sh_adamw_norm(g->adamw, g->p.g);
    sh_adamw_update(g->adamw, g->p.g, step + 1,
                    &(sh_adamw_numbers){.lr = value(g, "lr"),
                                        .beta1 = value(g, "beta1"),
                                        .beta2 = value(g, "beta2"),
                                        .decay = value(g, "decay"),
                                        .scale = norm > clip ? clip / norm : 1});
}

/* Every tensor within 1e-4 of its largest value. The keys' part of gpt2's fused bias has no effect
 * and its gradient is noise (tests/golden/train_golden.py). */
static void check_weights(const golden *g, const char *path)
{
    sh_model_file *m;
    sh_params want;
    OK(sh_model_file_open(&m, path));
    OK(sh_params_open(&want, &g->p.arch));
    OK(sh_params_load(&want, m));
    for (int i = 0; i < g->p.n; i++) {
        const sh_param *t = &g->p.list[i];
        double largest = 0, worst = 0;
        bool fused = strstr(t->name, "attn_qkv.bias") != NULL;
        for (int j = 0; j < t->rows * t->cols; j++) {
            double w = (double)want.w[t->at + (size_t)j], x = (double)g->p.w[t->at + (size_t)j];
            if (fused && j >= t->rows / 3 && j < 2 * t->rows / 3) continue;
            largest = fmax(largest, fabs(w));
            worst = fmax(worst, fabs(w - x));
        }
        if (!(worst < 1e-4 * largest))
            fail_msg("%s: %s is off by %g; the largest is %g", path, t->name, worst, largest);
    }
    sh_params_close(&want);
    sh_model_file_close(m);
}

static void check_golden(const char *name)
{
    const char *root = getenv("SHOAL_SOURCE_ROOT");
    char path[4096];
    golden g = {0};
    sh_model_file *m;
    sh_arch a;
    json_error_t error;
    assert_non_null(root);
    snprintf(path, sizeof path, "%s/tests/golden/train/%s.json", root, name);
    if (!(g.json = json_load_file(path, 0, &error))) fail_msg("%s: %s", path, error.text);
    snprintf(path, sizeof path, "%s/tests/golden/train/%s.gguf", root, name);
    OK(sh_model_file_open(&m, path));
    kit_arch_of(&a, m);
    OK(sh_params_open(&g.p, &a));
    OK(sh_params_load(&g.p, m));
    OK(sh_kernels_init(&g.k, NULL));
    OK(sh_pool_open(&g.pool, 2, NULL, 0));
    g.products = (sh_products){.k = &g.k, .pool = g.pool, .dtype = SH_F32};
    OK(sh_pass_open(&g.pass, &g.p, &g.products, 8));
    OK(sh_adamw_open(&g.adamw, &g.p, &g.k, g.pool));
    OK(sh_alloc(&g.ids, 8 * ((size_t)a.n_ctx + 1), sizeof *g.ids, "ids"));
    OK(sh_alloc(&g.dx, 8 * (size_t)a.n_ctx * (size_t)a.n_embd, sizeof *g.dx, "dx"));
    for (int step = 0; step < 20; step++) {
        make_step(&g, step);
        if (step != 0 && step != 19) continue;
        snprintf(path, sizeof path, "%s/tests/golden/train/%s.%d.gguf", root, name, step + 1);
        check_weights(&g, path);
    }
    free(g.ids);
    free(g.dx);
    sh_adamw_close(g.adamw);
    sh_pass_close(g.pass);
    sh_pool_close(g.pool);
    sh_params_close(&g.p);
    sh_arch_free(&a);
    sh_model_file_close(m);
    json_decref(g.json);
}

static void test_golden(void **state)
{
    (void)state;
    check_golden("llama");
    check_golden("llama-tied");
    check_golden("gpt2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formulas),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
