#include "train/each.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct each {
    sh_err (*fn)(void *, int, size_t);
    void *arg;
    atomic_bool stop;
    pthread_mutex_t lock; /* of what follows */
    sh_err err;
    int failed;
    char message[1024];
} each;

static void run(void *v, int i, int thread)
{
    each *e = v;
    sh_err err = atomic_load(&e->stop) ? SH_OK : e->fn(e->arg, thread, (size_t)i);
    if (err == SH_OK) return;
    atomic_store(&e->stop, true);
    pthread_mutex_lock(&e->lock);
    if (i < e->failed) {
        e->failed = i;
        e->err = err;
        snprintf(e->message, sizeof e->message, "%s", sh_err_message());
    }
    pthread_mutex_unlock(&e->lock);
}

sh_err sh_each(sh_pool *pool, size_t n, sh_err (*fn)(void *arg, int thread, size_t i), void *arg)
{
    each e = {.fn = fn, .arg = arg, .failed = INT_MAX};
    pthread_mutex_init(&e.lock, NULL);
    sh_pool_each(pool, (int)n, run, &e);
    pthread_mutex_destroy(&e.lock);
    return e.err == SH_OK ? SH_OK : sh_fail(e.err, "%s", e.message);
}
