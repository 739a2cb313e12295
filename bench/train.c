/* How long a pass of training takes, forward and backward, and where the time goes; its share of
 * the peak that the same cores measure right before and after it. Medians of the passes, after one
 * that is not counted.
 *
 *     bench_train [SHAPE [THREADS [PASSES]]] */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "kernels/measure.h"
#include "train/state.h"

static const struct {
    const char *name;
    int n_seq;
    sh_arch arch;
} shapes[] = {
    {"gpt2-124m",
     8,
     {"gpt2", 12, 12, 12, 64, 768, 3072, 50257, 512, 0, true, true, true, true, true,
      .norm_eps = 1e-5f}},
    {"gpt2-256",
     32,
     {"gpt2", 6, 8, 8, 32, 256, 1024, 4096, 256, 0, true, true, true, true, true,
      .norm_eps = 1e-5f}},
    {"llama-256",
     32,
     {"llama", 6, 8, 4, 32, 256, 768, 4096, 256, 32, .norm_eps = 1e-5f, .rope_base = 10000,
      .rope_linear = 1, .tied = true}},
    {"shakespeare",
     12,
     {"gpt2", 4, 4, 4, 32, 128, 512, 65, 64, 0, true, true, true, true, true, .norm_eps = 1e-5f}},
};
enum { N_SHAPE = sizeof shapes / sizeof *shapes, MAX_PASS = 1000 };

static const char *const part_names[SH_N_PART] = {
    [SH_PART_PACK] = "weights to operands",   [SH_PART_FORWARD] = "products, forward",
    [SH_PART_BACK] = "products, dx",          [SH_PART_WEIGHTS] = "products, dw",
    [SH_PART_HEAD] = "products, head",        [SH_PART_LOSS] = "softmax and loss",
    [SH_PART_ATTEND] = "attention, forward",  [SH_PART_ATTEND_BACK] = "attention, backward",
    [SH_PART_BLOCKS] = "norms etc., forward", [SH_PART_BLOCKS_BACK] = "norms etc., backward",
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(void)
{
    fprintf(stderr, "%s\n", sh_err_message());
    exit(1);
}

static double measure_peak(const sh_products *p)
{
    double ops;
    if (sh_measure_peak(&ops, p->k, p->pool, SH_FORM_BF16)) fail();
    return ops;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return (v[(n - 1) / 2] + v[n / 2]) / 2;
}

static void bench(int i, const sh_products *products, int n_pass)
{
    const sh_arch *a = &shapes[i].arch;
    const int n_seq = shapes[i].n_seq, n_tok = n_seq * a->n_ctx;
    double time[MAX_PASS], share[MAX_PASS], loss[8], sum = 0, best_peak = 0;
    const double ops = sh_pass_ops(a, n_tok);
    sh_params p;
    sh_pass *s;
    if (sh_params_open(&p, a) != SH_OK || sh_pass_open(&s, &p, products, n_seq) != SH_OK) fail();
    sh_params_draw(&p, 1);
    int32_t *ids = malloc((size_t)n_seq * (size_t)(a->n_ctx + 1) * sizeof *ids);
    float *dx = malloc((size_t)n_tok * (size_t)a->n_embd * sizeof *dx);
    if (!ids || !dx) exit(1);
    for (int t = 0; t < n_seq * (a->n_ctx + 1); t++)
        ids[t] = (int32_t)((unsigned)t * 2654435761u % (unsigned)a->n_vocab);
    const sh_batch b = {n_seq, {0, 8}, ids};
    double before = measure_peak(products), after;
    for (int n = -1; n < n_pass; n++, before = after) {
        if (n <= 0) memset(s->us, 0, sizeof s->us);
        double start = now();
        sh_pass_backward(s, &b, NULL, loss, dx);
        sh_pass_embed_grad(s, &b, dx);
        double seconds = now() - start, peak;
        after = measure_peak(products);
        peak = (before + after) / 2;
        if (n < 0) continue;
        time[n] = seconds;
        share[n] = ops / seconds / peak;
        sum += seconds;
        if (after > best_peak) best_peak = after;
    }
    double t = median(time, n_pass);
    printf(
        "%s: %.1f ms, %.0f tokens/s (best %.0f), %.2f TFLOP/s, %.3f of the peak then, %.3f of the "
        "best peak, %.2f TFLOP/s\n",
        shapes[i].name, t * 1e3, n_tok / t, n_tok / time[0], ops / t * 1e-12, median(share, n_pass),
        ops / t / best_peak, best_peak * 1e-12);
    for (int part = 0; part < SH_N_PART; part++)
        printf("  %-22s %9.2f ms %5.1f %%\n", part_names[part], s->us[part] * 1e-3 / n_pass,
               s->us[part] * 1e-4 / sum);
    free(ids);
    free(dx);
    sh_pass_close(s);
    sh_params_close(&p);
}

int main(int argc, char **argv)
{
    int cpu[64], n_cpu = sh_cpu_cores(cpu, 64), n_thread = argc > 2 ? atoi(argv[2]) : n_cpu;
    sh_pool *pool;
    sh_kernels k;
    int n_pass = argc > 3 ? atoi(argv[3]) : 0;
    if (n_pass < 0 || n_pass > MAX_PASS || n_thread < 1 || n_thread > 64) return 2;
    if (sh_kernels_init(&k, NULL) != SH_OK ||
        sh_pool_open(&pool, n_thread, NULL, n_thread <= n_cpu ? 20000 : 0) != SH_OK)
        fail();
    const sh_products products = {&k, pool, SH_BF16};
    for (int i = 0; i < N_SHAPE; i++)
        if (argc < 2 || strcmp(argv[1], "all") == 0 || strcmp(argv[1], shapes[i].name) == 0)
            bench(i, &products, n_pass ? n_pass : i == 0 ? 3 : 20);
    sh_pool_close(pool);
    return 0;
}
