#define _GNU_SOURCE
#include "engine/measure.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/threads.h"

enum { N_PASS = 5, PAGE = 4096 };
static const double pass_s = 0.02; /* about how long a pass of the multiply-adds is */

typedef struct job {
    const sh_kernels *k;
    uint8_t *memory; /* n_page pages */
    int n_page;
    sh_form form;
    long n_round;
    double *amount, *seconds; /* (n_thread): bytes read or operations done, by all passes so far */
    uint64_t *sum;            /* (n_thread): what was read, so that it is */
} job;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void touch_share(void *arg, int thread, int n_thread)
{
    const job *j = arg;
    int lo, hi;
    sh_share(j->n_page, thread, n_thread, &lo, &hi);
    memset(j->memory + (size_t)lo * PAGE, 1, (size_t)(hi - lo) * PAGE);
}

static void read_share(void *arg, int thread, int n_thread)
{
    const job *j = arg;
    int lo, hi;
    double start = now_s();
    sh_share(j->n_page, thread, n_thread, &lo, &hi);
    j->sum[thread] ^= j->k->read(j->memory + (size_t)lo * PAGE, (size_t)(hi - lo) * PAGE);
    j->seconds[thread] += now_s() - start;
    j->amount[thread] += (double)(hi - lo) * PAGE;
}

static void peak_share(void *arg, int thread, int n_thread)
{
    const job *j = arg;
    double start = now_s();
    (void)n_thread;
    j->amount[thread] += j->k->peak[j->form](j->n_round);
    j->seconds[thread] += now_s() - start;
}

/* One pass of all threads; the seconds it took. */
static double pass(sh_pool *pool, void (*fn)(void *, int, int), job *j)
{
    double start = now_s();
    sh_pool_run(pool, fn, j);
    return now_s() - start;
}

static void forget(job *j, int n_thread)
{
    memset(j->amount, 0, (size_t)n_thread * sizeof *j->amount);
    memset(j->seconds, 0, (size_t)n_thread * sizeof *j->seconds);
}

/* Each thread's own rate: work that is shared out as they ask for it keeps all of them busy. */
static double rate(const job *j, int n_thread)
{
    double sum = 0;
    for (int t = 0; t < n_thread; t++)
        if (j->seconds[t] > 0) sum += j->amount[t] / j->seconds[t];
    return sum;
}

/* 1 GiB, or four times the last cache if that is more; less where memory is short. */
static size_t read_bytes(void)
{
    size_t n = (size_t)1 << 30, free_bytes = sh_memory_free_bytes();
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (cache > 0 && 4 * (size_t)cache > n) n = 4 * (size_t)cache;
    if (free_bytes && n > free_bytes / 2) n = free_bytes / 2;
    return n / PAGE * PAGE;
}

static sh_err measure_read(sh_measured *out, sh_pool *pool, job *j)
{
    size_t n = read_bytes();
    SH_TRY(sh_map(&j->memory, n, "the measuring of memory"));
    j->n_page = (int)(n / PAGE);
    sh_pool_run(pool, touch_share, j);
    forget(j, sh_pool_n_thread(pool));
    for (int i = 0; i < N_PASS; i++) pass(pool, read_share, j);
    out->read_bytes_per_s = rate(j, sh_pool_n_thread(pool));
    sh_unmap(j->memory, n);
    return SH_OK;
}

static void measure_peak(sh_measured *out, sh_pool *pool, job *j, sh_form form)
{
    j->form = form;
    j->n_round = 1000;
    while (pass(pool, peak_share, j) < pass_s / 2) j->n_round *= 2; /* longer rounds first */
    forget(j, sh_pool_n_thread(pool));
    for (int i = 0; i < N_PASS; i++) pass(pool, peak_share, j);
    out->ops_per_s[form] = rate(j, sh_pool_n_thread(pool));
}

sh_err sh_measure(sh_measured *out, int n_thread, const int *cpu)
{
    sh_err err;
    sh_kernels k;
    sh_pool *pool = NULL;
    job j = {.k = &k};
    *out = (sh_measured){0};
    SH_TRY(sh_kernels_init(&k, NULL));
    SH_GOTO(sh_pool_open(&pool, n_thread, cpu, 20000));
    SH_GOTO(sh_alloc(&j.amount, (size_t)n_thread, sizeof *j.amount, "the measuring"));
    SH_GOTO(sh_alloc(&j.seconds, (size_t)n_thread, sizeof *j.seconds, "the measuring"));
    SH_GOTO(sh_alloc(&j.sum, (size_t)n_thread, sizeof *j.sum, "the measuring"));
    SH_GOTO(measure_read(out, pool, &j));
    for (int f = 0; f < SH_N_FORM; f++) measure_peak(out, pool, &j, (sh_form)f);
out:
    sh_pool_close(pool);
    free(j.amount);
    free(j.seconds);
    free(j.sum);
    return err;
}
