#define _GNU_SOURCE
#include "base/threads.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/mem.h"

typedef struct thread_arg {
    sh_pool *pool;
    int index, cpu;
} thread_arg;

/* What a thread does while it waits. */
typedef struct idle {
    bool (*fn)(void *arg, int thread); /* NULL: nothing */
    void *arg;
} idle;

struct sh_pool {
    int n_thread, spin;
    void (*fn)(void *, int, int);
    void *arg;
    idle idle;
    bool stop;
    _Alignas(64) atomic_uint go;      /* counts regions; the others wait for it to change */
    _Alignas(64) atomic_uint done;    /* threads that have ended the region */
    _Alignas(64) atomic_int sleepers; /* threads asleep on go or done */
    pthread_t *thread;
    thread_arg *args;
    int n_started;
    bool bound;       /* the thread that opened the pool is tied to a CPU until it closes it... */
    cpu_set_t before; /* ...and may then run here again */
};

static void wait_change(sh_pool *p, atomic_uint *word, unsigned old, idle d, int thread)
{
    bool more = d.fn && p->spin > 0;
    for (int i = 0; i < p->spin; i += !more) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        if (more)
            more = d.fn(d.arg, thread);
        else
            sh_cpu_pause();
    }
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(word) == old)
        syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void wake(sh_pool *p, atomic_uint *word)
{
    if (atomic_load(&p->sleepers))
        syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *thread_main(void *v)
{
    thread_arg *a = v;
    sh_pool *p = a->pool;
    unsigned seen = 0;
    idle d = {NULL, NULL};
    sigset_t all;
    sigfillset(&all); /* signals belong to the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    sh_cpu_bind(a->cpu);
    sh_cpu_enter();
    for (;;) {
        wait_change(p, &p->go, seen, d, a->index);
        seen++;
        if (p->stop) return NULL;
        d = p->idle;
        p->fn(p->arg, a->index, p->n_thread);
        atomic_fetch_add(&p->done, 1);
        wake(p, &p->done);
    }
}

sh_err sh_pool_open(sh_pool **out, int n_thread, const int *cpu, int spin)
{
    sh_err err = SH_OK;
    sh_pool *p = NULL;
    *out = NULL;
    if (n_thread < 1 || n_thread > 1024)
        return sh_fail(SH_EARG, "%d threads: give 1 to 1024", n_thread);
    SH_TRY(sh_alloc(&p, 1, sizeof *p, "the thread pool"));
    p->n_thread = n_thread;
    p->spin = spin;
    SH_GOTO(sh_alloc(&p->thread, (size_t)n_thread, sizeof *p->thread, "the thread pool"));
    SH_GOTO(sh_alloc(&p->args, (size_t)n_thread, sizeof *p->args, "the thread pool"));
    for (int i = 1; i < n_thread; i++) {
        p->args[i] = (thread_arg){p, i, cpu ? cpu[i] : -1};
        int rc = pthread_create(&p->thread[i], NULL, thread_main, &p->args[i]);
        if (rc != 0) {
            err = sh_fail(SH_ESYS, "thread %d of %d could not be started: %s; use fewer (-t)", i,
                          n_thread, strerror(rc));
            goto out;
        }
        p->n_started++;
    }
    if (cpu && cpu[0] >= 0) {
        p->bound = pthread_getaffinity_np(pthread_self(), sizeof p->before, &p->before) == 0;
        sh_cpu_bind(cpu[0]);
    }
    *out = p;
    return SH_OK;
out:
    sh_pool_close(p);
    return err;
}

void sh_pool_close(sh_pool *p)
{
    if (!p) return;
    p->stop = true;
    atomic_fetch_add(&p->go, 1);
    wake(p, &p->go);
    for (int i = 1; i <= p->n_started; i++) pthread_join(p->thread[i], NULL);
    if (p->bound) (void)pthread_setaffinity_np(pthread_self(), sizeof p->before, &p->before);
    free(p->thread);
    free(p->args);
    free(p);
}

int sh_pool_n_thread(const sh_pool *p)
{
    return p->n_thread;
}

void sh_pool_run(sh_pool *p, void (*fn)(void *, int, int), void *arg)
{
    uint64_t state = sh_cpu_enter();
    if (p->n_thread > 1) {
        p->fn = fn;
        p->arg = arg;
        atomic_store(&p->done, 0);
        atomic_fetch_add(&p->go, 1);
        wake(p, &p->go);
    }
    fn(arg, 0, p->n_thread);
    for (unsigned n; p->n_thread > 1 && (n = atomic_load(&p->done)) != (unsigned)p->n_thread - 1;)
        wait_change(p, &p->done, n, p->idle, 0);
    sh_cpu_leave(state);
}

void sh_pool_idle(sh_pool *p, bool (*fn)(void *arg, int thread), void *arg)
{
    p->idle = (idle){fn, arg};
}

typedef struct each_job {
    void (*fn)(void *arg, int i, int thread);
    void *arg;
    int n;
    atomic_int taken;
} each_job;

static void each_share(void *arg, int thread, int n_thread)
{
    each_job *j = arg;
    (void)n_thread;
    for (int i; (i = atomic_fetch_add(&j->taken, 1)) < j->n;) j->fn(j->arg, i, thread);
}

void sh_pool_each(sh_pool *p, int n, void (*fn)(void *, int, int), void *arg)
{
    each_job j = {.fn = fn, .arg = arg, .n = n};
    atomic_init(&j.taken, 0);
    if (n > 1) {
        sh_pool_run(p, each_share, &j);
    } else if (n == 1) {
        uint64_t state = sh_cpu_enter();
        fn(arg, 0, 0);
        sh_cpu_leave(state);
    }
}
