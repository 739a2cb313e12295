#define _GNU_SOURCE
#include "kernels/measure.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { N_PASS = 5, PAGE = 4096 };
static const double pass_s = 0.02; /* about how long a pass of the multiply-adds is */

/* What a thread has done in all passes so far. */
typedef struct done {
    double amount, seconds; /* bytes read or operations */
    uint64_t sum;           /* of what was read, so that it is */
} done;

typedef struct job {
    const sh_kernels *k;
    uint8_t *memory; /* n_page pages */
    int n_page;
    sh_form form;
    long n_round;
    done *by; /* (n_thread) */
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
    j->by[thread].sum ^= j->k->read(j->memory + (size_t)lo * PAGE, (size_t)(hi - lo) * PAGE);
    j->by[thread].seconds += now_s() - start;
    j->by[thread].amount += (double)(hi - lo) * PAGE;
}

static void peak_share(void *arg, int thread, int n_thread)
{
    const job *j = arg;
    double start = now_s();
    (void)n_thread;
    j->by[thread].amount += j->k->peak[j->form](j->n_round);
    j->by[thread].seconds += now_s() - start;
}

/* All threads do fn N_PASS times; *rate: the sum of their own rates, as work that is shared out as
 * they ask for it keeps all of them busy. */
static sh_err passes(double *rate, sh_pool *pool, void (*fn)(void *, int, int), job *j)
{
    int n = sh_pool_n_thread(pool);
    *rate = 0;
    SH_TRY(sh_alloc(&j->by, (size_t)n, sizeof *j->by, "the measuring"));
    for (int i = 0; i < N_PASS; i++) sh_pool_run(pool, fn, j);
    for (int t = 0; t < n; t++)
        if (j->by[t].seconds > 0) *rate += j->by[t].amount / j->by[t].seconds;
    free(j->by);
    return SH_OK;
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

static sh_err measure_read(double *bytes_per_s, const sh_kernels *k, sh_pool *pool)
{
    job j = {.k = k};
    size_t n = read_bytes();
    SH_TRY(sh_map(&j.memory, n, "the measuring of memory"));
    j.n_page = (int)(n / PAGE);
    sh_pool_run(pool, touch_share, &j);
    sh_err err = passes(bytes_per_s, pool, read_share, &j);
    sh_unmap(j.memory, n);
    return err;
}

sh_err sh_measure_peak(double *ops_per_s, const sh_kernels *k, sh_pool *pool, sh_form form)
{
    double start, s;
    job j = {.k = k, .form = form, .n_round = 1000};
    do { /* until a pass is long enough; that warms up, too */
        start = now_s();
        k->peak[form](j.n_round *= 2);
        s = now_s() - start;
    } while (s < pass_s / 2);
    return passes(ops_per_s, pool, peak_share, &j);
}

sh_err sh_measure(sh_measured *out, int n_thread, const int *cpu)
{
    sh_err err;
    sh_kernels k;
    sh_pool *pool = NULL;
    *out = (sh_measured){0};
    SH_TRY(sh_kernels_init(&k, NULL));
    SH_TRY(sh_pool_open(&pool, n_thread, cpu, 20000));
    SH_GOTO(measure_read(&out->read_bytes_per_s, &k, pool));
    for (int f = 0; f < SH_N_FORM; f++)
        SH_GOTO(sh_measure_peak(&out->ops_per_s[f], &k, pool, (sh_form)f));
out:
    sh_pool_close(pool);
    return err;
}
