/* What a parallel region costs: base/threads.c against OpenMP, for the same work.
 *
 * A token of tinyllama is about 250 regions, so at 50 tok/s a microsecond for each is over 1 % of
 * the time. Prints microseconds per region: for empty regions, and for regions in which every
 * thread works some microseconds. Threads are not tied. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdio.h>
#include <time.h>

#include "base/cpu.h"
#include "base/threads.h"

enum { N_PASS = 15, N_REGION = 2000 };

static long n_spin; /* rounds of work in a region */

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void work(void *arg, int thread, int n_thread)
{
    (void)arg, (void)thread, (void)n_thread;
    for (long i = 0; i < n_spin; i++) __asm__ volatile("");
}

static void regions_pool(sh_pool *pool)
{
    for (int i = 0; i < N_REGION; i++) sh_pool_run(pool, work, NULL);
}

static void regions_openmp(int n_thread)
{
    for (int i = 0; i < N_REGION; i++) {
#pragma omp parallel num_threads(n_thread)
        work(NULL, omp_get_thread_num(), n_thread);
    }
}

static void regions_none(void)
{
    for (int i = 0; i < N_REGION; i++) work(NULL, 0, 1);
}

/* us per region of the three ways; the best of passes that alternate, as other programs disturb. */
static void measure(double best[3], sh_pool *pool, int n_thread)
{
    for (int w = 0; w < 3; w++) best[w] = 1e9;
    for (int p = 0; p < N_PASS; p++)
        for (int w = 0; w < 3; w++) {
            double start = now_us();
            if (w == 0)
                regions_none();
            else if (w == 1)
                regions_pool(pool);
            else
                regions_openmp(n_thread);
            double us = (now_us() - start) / N_REGION;
            if (us < best[w]) best[w] = us;
        }
}

int main(void)
{
    int cpu[64], n_cpu = sh_cpu_cores(cpu, 64);
    const long spins[] = {0, 20000}; /* some 10 us on a processor of 2 to 3 GHz */
    printf("| threads | work alone, us | pool, us beyond it | OpenMP, us beyond it |\n"
           "| ------: | -------------: | -----------------: | -------------------: |\n");
    for (int n = 1; n <= 4; n *= 2)
        for (int i = 0; i < 2; i++) {
            double us[3];
            sh_pool *pool;
            n_spin = spins[i];
            /* as engine/node.c: threads spin where each has a core */
            if (sh_pool_open(&pool, n, NULL, n <= n_cpu ? 20000 : 0) != SH_OK) {
                fprintf(stderr, "%s\n", sh_err_message());
                return 1;
            }
            measure(us, pool, n);
            sh_pool_close(pool);
            printf("| %7d | %14.2f | %18.2f | %20.2f |\n", n, us[0], us[1] - us[0], us[2] - us[0]);
        }
    return 0;
}
