/* A pool of threads that run one function together: the parallel regions of the forward pass.
 * Threads spin a little between regions and then sleep; with more threads than cores they do not
 * spin. (OpenMP was measured against it: bench/README.md.) */
#ifndef SH_BASE_THREADS_H
#define SH_BASE_THREADS_H

#include <stdbool.h>

#include "base/err.h"

typedef struct sh_pool sh_pool;

/** n_thread threads, the caller of sh_pool_run being number 0. cpu[i] >= 0 ties thread i to that
 *  logical CPU, the caller until sh_pool_close; cpu may be NULL. spin: how many pauses a waiting
 *  thread makes before it sleeps. */
sh_err sh_pool_open(sh_pool **out, int n_thread, const int *cpu, int spin);
void sh_pool_close(sh_pool *p);
int sh_pool_n_thread(const sh_pool *p);

/** Runs fn(arg, i, n_thread) on every thread i and returns when all have. fn's floating point is
 * set as by sh_cpu_enter. From one thread at a time. */
void sh_pool_run(sh_pool *p, void (*fn)(void *arg, int thread, int n_thread), void *arg);

/** From the next region on a thread that waits for others, before it sleeps, calls idle(arg,
 * thread) again and again until that returns false; it must be short. Not if threads do not spin.
 * arg must live until the pool is closed. */
void sh_pool_idle(sh_pool *p, bool (*idle)(void *arg, int thread), void *arg);

/** Calls fn(arg, i, thread) for every i in [0, n), each on a thread that has nothing else to do,
 * and returns when all are done. One alone is done by the caller. */
void sh_pool_each(sh_pool *p, int n, void (*fn)(void *arg, int i, int thread), void *arg);

/** Thread `i` of `n` does the items [*lo, *hi) of n_item. */
static inline void sh_share(int n_item, int i, int n, int *lo, int *hi)
{
    *lo = (int)((long long)n_item * i / n);
    *hi = (int)((long long)n_item * (i + 1) / n);
}

#endif
