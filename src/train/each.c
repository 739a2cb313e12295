#include "train/each.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct each {
    sh_err (*fn)(void *, int, size_t);
    void *arg;
    size_t n;
    atomic_size_t next;
    atomic_bool stop;
    pthread_mutex_t lock; /* of what follows */
    sh_err err;
    size_t failed;
    char message[1024];
} each;

static void run(void *v, int thread, int n_thread)
{
    each *e = v;
    size_t i;
    (void)n_thread;
    while (!atomic_load(&e->stop) && (i = atomic_fetch_add(&e->next, 1)) < e->n) {
        sh_err err = e->fn(e->arg, thread, i);
        if (err == SH_OK) continue;
        atomic_store(&e->stop, true);
        pthread_mutex_lock(&e->lock);
        if (i < e->failed) {
            e->failed = i;
            e->err = err;
            snprintf(e->message, sizeof e->message, "%s", sh_err_message());
        }
        pthread_mutex_unlock(&e->lock);
    }
}

sh_err sh_each(sh_pool *pool, size_t n, sh_err (*fn)(void *arg, int thread, size_t i), void *arg)
{
    each e = {.fn = fn, .arg = arg, .n = n, .failed = SIZE_MAX};
    pthread_mutex_init(&e.lock, NULL);
    sh_pool_run(pool, run, &e);
    pthread_mutex_destroy(&e.lock);
    return e.err == SH_OK ? SH_OK : sh_fail(e.err, "%s", e.message);
}
