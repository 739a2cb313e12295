/* How long a pass of training takes, forward and backward, and where the time goes; the share of
 * the peak that this process's cores measure in the same run. With one thread all is in CPU time,
 * so that other programs disturb less.
 *
 *     bench_train [SHAPE [THREADS [PASSES]]] */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
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
enum { N_SHAPE = sizeof shapes / sizeof *shapes };

static const char *const part_names[SH_N_PART] = {
    [SH_PART_PACK] = "weights to operands",   [SH_PART_FORWARD] = "products, forward",
    [SH_PART_BACK] = "products, dx",          [SH_PART_WEIGHTS] = "products, dw",
    [SH_PART_HEAD] = "products, head",        [SH_PART_LOSS] = "softmax and loss",
    [SH_PART_ATTEND] = "attention, forward",  [SH_PART_ATTEND_BACK] = "attention, backward",
    [SH_PART_BLOCKS] = "norms etc., forward", [SH_PART_BLOCKS_BACK] = "norms etc., backward",
};

static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(void)
{
    fprintf(stderr, "%s\n", sh_err_message());
    exit(1);
}

typedef struct peak_job {
    const sh_kernels *k;
    double ops[64];
} peak_job;

static void peak_share(void *arg, int thread, int n_thread)
{
    peak_job *j = arg;
    (void)n_thread;
    j->ops[thread] = j->k->peak[SH_FORM_BF16](200000);
}

/* The best of some tries, operations per second of all threads. */
static double measure_peak(const sh_kernels *k, sh_pool *pool)
{
    double best = 0;
    for (int i = 0; i < 10; i++) {
        peak_job j = {.k = k};
        double start = now(), ops = 0;
        sh_pool_run(pool, peak_share, &j);
        double s = now() - start;
        for (int t = 0; t < sh_pool_n_thread(pool); t++) ops += j.ops[t];
        if (ops / s > best) best = ops / s;
    }
    return best;
}

static void bench(int i, const sh_products *products, int n_pass)
{
    const sh_arch *a = &shapes[i].arch;
    const int n_seq = shapes[i].n_seq, n_tok = n_seq * a->n_ctx;
    double best = INFINITY, us[SH_N_PART] = {0}, loss[8];
    sh_params p;
    sh_pass *s;
    if (sh_params_open(&p, a) != SH_OK || sh_pass_open(&s, &p, products, n_seq) != SH_OK) fail();
    s->clock = clock_used;
    sh_params_draw(&p, 1);
    int32_t *ids = malloc((size_t)n_seq * (size_t)(a->n_ctx + 1) * sizeof *ids);
    float *dx = malloc((size_t)n_tok * (size_t)a->n_embd * sizeof *dx);
    if (!ids || !dx) exit(1);
    for (int t = 0; t < n_seq * (a->n_ctx + 1); t++)
        ids[t] = (int32_t)((unsigned)t * 2654435761u % (unsigned)a->n_vocab);
    const sh_batch b = {n_seq, {0, 8}, ids};
    for (int n = 0; n <= n_pass; n++) {
        memset(s->us, 0, sizeof s->us);
        double start = now();
        sh_pass_backward(s, &b, NULL, loss, dx);
        sh_pass_embed_grad(s, &b, dx);
        double time = now() - start;
        if (n == 0 || time >= best) continue;
        best = time;
        memcpy(us, s->us, sizeof us);
    }
    double peak = measure_peak(products->k, products->pool), ops = sh_pass_ops(a, n_tok);
    printf("%s: %.1f ms, %.0f tokens/s, %.2f TFLOP/s, %.3f of the peak of %.2f\n", shapes[i].name,
           best * 1e3, n_tok / best, ops / best * 1e-12, ops / best / peak, peak * 1e-12);
    for (int part = 0; part < SH_N_PART; part++)
        printf("  %-22s %9.2f ms %5.1f %%\n", part_names[part], us[part] * 1e-3,
               us[part] * 1e-4 / best);
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
    if (n_thread == 1) clock_used = CLOCK_PROCESS_CPUTIME_ID;
    if (sh_kernels_init(&k, NULL) != SH_OK ||
        sh_pool_open(&pool, n_thread, NULL, n_thread <= n_cpu ? 20000 : 0) != SH_OK)
        fail();
    const sh_products products = {&k, pool, SH_BF16};
    for (int i = 0; i < N_SHAPE; i++)
        if (argc < 2 || strcmp(argv[1], "all") == 0 || strcmp(argv[1], shapes[i].name) == 0)
            bench(i, &products, argc > 3 ? atoi(argv[3]) : i == 0 ? 3 : 20);
    sh_pool_close(pool);
    return 0;
}
