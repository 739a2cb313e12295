/* A group of processes on one host, over shared memory without a name (a memfd that the other ranks
 * inherit), so that nothing can be left behind in /dev/shm.
 *
 * Every collective has a number, counted alike on every rank. A rank's `arrived` word is the last
 * collective for which it has written its part (or that it has finished, if it had none to write).
 * Buffers alternate between two halves by the number's parity. Before writing for collective k a
 * rank waits until all have arrived at k-1 (in `part`, or in the broadcast): each of them has then
 * finished reading k-2, whose half is written now. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "comm/group.h"

typedef struct shared_rank {
    _Alignas(64) _Atomic uint32_t arrived;
    _Alignas(64) _Atomic uint32_t sleepers; /* ranks asleep on `arrived` */
    char message[1024];                     /* why this rank failed to load */
    int err;
} shared_rank;

/* Only processes of the same binary see this. */
typedef struct shared {
    uint64_t total_bytes, part_floats, bcast_bytes, n_blob;
    int n_rank, spin;
    _Atomic uint32_t aborted; /* a rank was lost: nobody waits any more */
    shared_rank rank[SH_MAX_RANK];
    uint64_t n_bcast[2];
    _Alignas(64) char data[]; /* blob, broadcasts [2], parts [rank][2][root] */
} shared;

typedef struct shm_group {
    sh_group base;
    shared *s;
    uint32_t op; /* collectives begun */
    int fd;
    sh_roots roots;
    pid_t pid[SH_MAX_RANK]; /* on rank 0 */
    char lost[160];         /* on rank 0: the sentence about a rank that was lost */
} shm_group;

static size_t pad64(size_t n)
{
    return (n + 63) / 64 * 64;
}
static size_t part_bytes(const shared *s)
{
    return pad64(s->part_floats * sizeof(float));
}
static char *bcast_of(shared *s, uint32_t op)
{
    return s->data + pad64(s->n_blob) + (op & 1) * pad64(s->bcast_bytes);
}
static float *part_of(shared *s, int rank, uint32_t op, int root)
{
    size_t index = ((size_t)rank * 2 + (op & 1)) * SH_MAX_ROOT + (size_t)root;
    return (float *)(s->data + pad64(s->n_blob) + 2 * pad64(s->bcast_bytes) +
                     index * part_bytes(s));
}

static void wake_word(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void abort_group(shm_group *g)
{
    atomic_store(&g->s->aborted, 1);
    for (int r = 0; r < g->base.n_rank; r++) wake_word(&g->s->rank[r].arrived);
}

/* Rank 0 looks after its children; the others are killed with rank 0. */
static sh_err check_alive(shm_group *g)
{
    char how[64];
    for (int r = 1; r < g->base.n_rank; r++) {
        pid_t pid = g->pid[r];
        if (!sh_child_ended(&g->pid[r], how, sizeof how)) continue;
        if (*g->lost) continue; /* the others end because of the first */
        snprintf(g->lost, sizeof g->lost, "rank %d of %d (process %d) %s; start again", r,
                 g->base.n_rank, (int)pid, how);
        abort_group(g);
    }
    if (atomic_load(&g->s->aborted))
        return sh_fail(SH_EPEER, "%s", *g->lost ? g->lost : "another rank was lost; start again");
    return SH_OK;
}

/* Waits until rank r has arrived at collective op. */
static sh_err wait_rank(shm_group *g, int r, uint32_t op)
{
    shared_rank *sr = &g->s->rank[r];
    uint32_t have;
    for (int i = 0; i < g->s->spin; i++) {
        if ((int32_t)(atomic_load_explicit(&sr->arrived, memory_order_acquire) - op) >= 0)
            return SH_OK;
        sh_cpu_pause();
    }
    while ((int32_t)((have = atomic_load(&sr->arrived)) - op) < 0) {
        SH_TRY(check_alive(g));
        atomic_fetch_add(&sr->sleepers, 1);
        syscall(SYS_futex, (uint32_t *)&sr->arrived, FUTEX_WAIT, have,
                &(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL, 0);
        atomic_fetch_sub(&sr->sleepers, 1);
    }
    return SH_OK;
}

static sh_err wait_all(shm_group *g, uint32_t op)
{
    for (int r = 0; r < g->base.n_rank; r++)
        if (r != g->base.rank) SH_TRY(wait_rank(g, r, op));
    return SH_OK;
}

static void arrive(shm_group *g, uint32_t op)
{
    shared_rank *mine = &g->s->rank[g->base.rank];
    atomic_store(&mine->arrived, op);
    if (atomic_load(&mine->sleepers)) wake_word(&mine->arrived);
}

static void shm_close(sh_group *base)
{
    shm_group *g = (shm_group *)base;
    if (g->s && base->rank == 0) {
        abort_group(g); /* ranks that still wait give up */
        for (int r = 1; r < base->n_rank; r++) sh_child_wait(&g->pid[r], 1000);
    }
    if (g->s) munmap(g->s, g->s->total_bytes);
    if (g->fd >= 0) close(g->fd);
    free(g);
}

static sh_err new_group(shm_group **out, int rank, int n_rank)
{
    shm_group *g;
    SH_TRY(sh_alloc(&g, 1, sizeof *g, "the group"));
    g->base = (sh_group){
        .ops = &sh_group_shm, .rank = rank, .n_rank = n_rank, .here = rank, .n_here = n_rank};
    g->fd = -1;
    sh_roots_make(&g->roots, n_rank);
    *out = g;
    return SH_OK;
}

static sh_err shm_open_group(sh_group **out, const sh_group_options *opt)
{
    sh_err err = SH_OK;
    shm_group *g = NULL;
    shared head = {.part_floats = opt->part_floats,
                   .bcast_bytes = opt->bcast_bytes,
                   .n_blob = opt->n_blob,
                   .n_rank = opt->n_rank,
                   .spin = opt->spin};
    size_t bytes = sizeof head + pad64(opt->n_blob) + 2 * pad64(opt->bcast_bytes) +
                   (size_t)opt->n_rank * 2 * SH_MAX_ROOT * part_bytes(&head);
    SH_GOTO(new_group(&g, 0, opt->n_rank));
    head.total_bytes = bytes;
    g->fd = memfd_create("shoal group", MFD_CLOEXEC);
    void *p = MAP_FAILED;
    if (g->fd >= 0 && ftruncate(g->fd, (off_t)bytes) == 0)
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
    if (p == MAP_FAILED) {
        err = sh_fail(SH_ESYS, "cannot share %zu bytes between %d ranks: %s", bytes, opt->n_rank,
                      strerror(errno));
        goto out;
    }
    memcpy(p, &head, sizeof head);
    g->s = p;
    memcpy(g->s->data, opt->blob, opt->n_blob);
    for (int r = 1; r < opt->n_rank; r++) {
        char rank[16], fd[16];
        snprintf(rank, sizeof rank, "%d", r);
        snprintf(fd, sizeof fd, "%d", g->fd);
        char *argv[] = {"shoal", "rank", rank, fd, NULL};
        SH_GOTO(sh_spawn(&g->pid[r], NULL, argv, g->fd));
    }
    *out = &g->base;
    return SH_OK;
out:
    if (g) shm_close(&g->base);
    return err;
}

static sh_err shm_join(sh_group **out, int rank, int fd)
{
    struct stat st;
    shm_group *g = NULL;
    *out = NULL;
    if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof(shared))
        return sh_fail(SH_EARG, "descriptor %d holds no group: ranks are started by shoal itself",
                       fd);
    shared *s = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED) return sh_fail(SH_ESYS, "cannot map the group: %s", strerror(errno));
    if (s->total_bytes != (size_t)st.st_size || rank < 1 || rank >= s->n_rank) {
        munmap(s, (size_t)st.st_size);
        return sh_fail(SH_EARG, "descriptor %d holds no group with a rank %d", fd, rank);
    }
    sh_err err = new_group(&g, rank, s->n_rank);
    if (err != SH_OK) {
        munmap(s, (size_t)st.st_size);
        return err;
    }
    g->s = s;
    g->fd = fd;
    g->base.blob = s->data;
    g->base.n_blob = s->n_blob;
    *out = &g->base;
    return SH_OK;
}

static sh_err shm_ready(sh_group *base, sh_err mine)
{
    shm_group *g = (shm_group *)base;
    shared_rank *sr = &g->s->rank[base->rank];
    sr->err = mine;
    snprintf(sr->message, sizeof sr->message, "%s", mine == SH_OK ? "" : sh_err_message());
    arrive(g, ++g->op);
    if (mine != SH_OK) return mine;
    sh_err err = wait_all(g, g->op);
    for (int r = 0; r < base->n_rank; r++) { /* one that failed may have ended while we waited */
        sr = &g->s->rank[r];
        if ((int32_t)(atomic_load(&sr->arrived) - g->op) >= 0 && sr->err != SH_OK)
            return sh_fail((sh_err)sr->err, "rank %d of %d: %.900s", r, base->n_rank, sr->message);
    }
    return err;
}

static float *shm_part(sh_group *base, int root)
{
    shm_group *g = (shm_group *)base;
    (void)wait_all(g, g->op); /* if a rank is lost, the collective that follows says so */
    return part_of(g->s, base->rank, g->op + 1, root);
}

static const float *find_part(const void *arg, sh_range r)
{
    const shm_group *g = arg;
    int rank, i;
    return sh_roots_find(&g->roots, r, &rank, &i) ? part_of(g->s, rank, g->op, i) : NULL;
}

static sh_err shm_meet(sh_group *base, size_t n)
{
    (void)n; /* the others read them where they were written */
    shm_group *g = (shm_group *)base;
    arrive(g, ++g->op);
    return wait_all(g, g->op);
}

static void shm_add_sum(const sh_group *base, float *x, size_t at, size_t n)
{
    sh_tree_add(x, at, n, find_part, base);
}

static sh_err shm_gather(sh_group *base, float *y, size_t ldy, const sh_range *col, int n_row)
{
    shm_group *g = (shm_group *)base;
    uint32_t op = ++g->op;
    if (base->rank == 0) {
        for (int r = 0; r < base->n_rank; r++) {
            if (r != 0) SH_TRY(wait_rank(g, r, op));
            sh_put_columns(y, ldy, part_of(g->s, r, op, 0), col[r], n_row);
        }
    }
    arrive(g, op);
    return SH_OK;
}

static sh_err shm_bcast(sh_group *base, void *p, size_t cap, size_t *n)
{
    shm_group *g = (shm_group *)base;
    uint32_t op = ++g->op;
    if (base->rank == 0) {
        if (*n > g->s->bcast_bytes)
            return sh_fail(SH_EARG, "a broadcast of %zu bytes, more than was agreed", *n);
        SH_TRY(wait_all(g, op - 1));
        if (*n) memcpy(bcast_of(g->s, op), p, *n); /* p may be NULL for no bytes */
        g->s->n_bcast[op & 1] = *n;
        arrive(g, op);
        return SH_OK;
    }
    SH_TRY(wait_rank(g, 0, op));
    *n = g->s->n_bcast[op & 1];
    if (*n > cap) return sh_fail(SH_EPEER, "a broadcast of %zu bytes, more than was agreed", *n);
    if (*n) memcpy(p, bcast_of(g->s, op), *n);
    arrive(g, op);
    return SH_OK;
}

const sh_group_ops sh_group_shm = {
    .scheme = "shm",
    .open = shm_open_group,
    .join = shm_join,
    .close = shm_close,
    .ready = shm_ready,
    .part = shm_part,
    .meet = shm_meet,
    .add_sum = shm_add_sum,
    .gather = shm_gather,
    .bcast = shm_bcast,
};
