/* The shape of sums over ranks, the list of transports, and the group of one rank. */
#include "comm/group.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

int sh_tree_roots(sh_range s, sh_range root[SH_MAX_ROOT])
{
    int n = 0;
    while (s.lo < s.hi) {
        int size = 8; /* the largest subtree that begins at lo and does not pass hi */
        while (s.lo % size || s.lo + size > s.hi) size /= 2;
        root[n++] = (sh_range){s.lo, s.lo + size};
        s.lo += size;
    }
    return n;
}

void sh_roots_make(sh_roots *t, int n_rank)
{
    t->n_rank = n_rank;
    for (int r = 0; r < n_rank; r++) t->n[r] = sh_tree_roots(sh_rank_slices(r, n_rank), t->root[r]);
}

bool sh_roots_find(const sh_roots *t, sh_range r, int *rank, int *root)
{
    for (*rank = 0; *rank < t->n_rank; ++*rank)
        for (*root = 0; *root < t->n[*rank]; ++*root) {
            sh_range have = t->root[*rank][*root];
            if (have.lo == r.lo && have.hi == r.hi) return true;
        }
    return false;
}

static void sum_range(float *y, size_t at, size_t n, sh_range r, sh_part_fn *part, const void *arg)
{
    const float *p = part(arg, r);
    if (p) {
        memcpy(y, p + at, n * sizeof *y);
        return;
    }
    float right[SH_SUM_BLOCK];
    int mid = (r.lo + r.hi) / 2;
    sum_range(y, at, n, (sh_range){r.lo, mid}, part, arg);
    sum_range(right, at, n, (sh_range){mid, r.hi}, part, arg);
    for (size_t i = 0; i < n; i++) y[i] += right[i];
}

void sh_tree_sum(float *y, size_t at, size_t n, sh_part_fn *part, const void *arg)
{
    sum_range(y, at, n, (sh_range){0, 8}, part, arg);
}

void sh_tree_add(float *x, size_t at, size_t n, sh_part_fn *part, const void *arg)
{
    float sum[SH_SUM_BLOCK];
    for (size_t done = 0; done < n; done += SH_SUM_BLOCK) {
        size_t m = n - done < SH_SUM_BLOCK ? n - done : SH_SUM_BLOCK;
        sh_tree_sum(sum, at + done, m, part, arg);
        for (size_t i = 0; i < m; i++) x[done + i] += sum[i];
    }
}

void sh_put_columns(float *y, size_t ldy, const float *part, sh_range col, int n_row)
{
    size_t width = (size_t)sh_range_n(col);
    for (size_t i = 0; i < (size_t)n_row; i++)
        memcpy(y + i * ldy + col.lo, part + i * width, width * sizeof *y);
}

sh_err sh_group_sum(sh_group *g, float *y, size_t n)
{
    SH_TRY(sh_group_meet(g, n));
    memset(y, 0, n * sizeof *y);
    sh_group_add_sum(g, y, 0, n);
    return SH_OK;
}

/* ---- one rank: the whole tree is its own ---- */

typedef struct self_group {
    sh_group base;
    float *part;
} self_group;

static void self_close(sh_group *g)
{
    free(((self_group *)g)->part);
    free(g);
}
static sh_err self_open(sh_group **out, const sh_group_options *opt)
{
    self_group *g;
    if (opt->n_rank != 1) return sh_fail(SH_EARG, "a group without transport has one rank");
    SH_TRY(sh_alloc(&g, 1, sizeof *g, "the group"));
    g->base = (sh_group){.ops = &sh_group_self, .n_rank = 1, .n_here = 1};
    sh_err err = sh_alloc(&g->part, opt->part_floats, sizeof(float), "the group's buffer");
    if (err != SH_OK) {
        self_close(&g->base);
        return err;
    }
    *out = &g->base;
    return SH_OK;
}
static sh_err self_ready(sh_group *g, sh_err mine)
{
    (void)g;
    return mine;
}
static float *self_part(sh_group *g, int root)
{
    (void)root;
    return ((self_group *)g)->part;
}
static sh_err self_meet(sh_group *g, size_t n)
{
    (void)g, (void)n;
    return SH_OK;
}
static void self_add_sum(const sh_group *g, float *x, size_t at, size_t n)
{
    const float *part = ((const self_group *)g)->part + at;
    for (size_t i = 0; i < n; i++) x[i] += part[i];
}
static sh_err self_gather(sh_group *g, float *y, size_t ldy, const sh_range *col, int n_row)
{
    sh_put_columns(y, ldy, ((self_group *)g)->part, col[0], n_row);
    return SH_OK;
}
static sh_err self_bcast(sh_group *g, void *p, size_t cap, size_t *n)
{
    (void)g, (void)p, (void)cap, (void)n;
    return SH_OK;
}

const sh_group_ops sh_group_self = {
    .scheme = "self",
    .open = self_open,
    .close = self_close,
    .ready = self_ready,
    .part = self_part,
    .meet = self_meet,
    .add_sum = self_add_sum,
    .gather = self_gather,
    .bcast = self_bcast,
};

const sh_group_ops *const sh_group_transports[] = {&sh_group_self, &sh_group_shm, &sh_group_mpi,
                                                   NULL};

sh_err sh_group_open(sh_group **out, const sh_group_options *opt)
{
    const char *scheme = opt->scheme        ? opt->scheme
                         : opt->n_rank == 1 ? "self"
                         : sh_mpi_started() ? "mpi"
                                            : "shm";
    *out = NULL;
    if (opt->n_rank < 1 || opt->n_rank > SH_MAX_RANK)
        return sh_fail(SH_EARG, "%d ranks: give 1 to %d per stage; for more, add stages (--ring)",
                       opt->n_rank, SH_MAX_RANK);
    for (int i = 0; sh_group_transports[i]; i++)
        if (strcmp(sh_group_transports[i]->scheme, scheme) == 0)
            return sh_group_transports[i]->open(out, opt);
    return sh_fail(SH_EARG, "no group transport is called '%s'", scheme);
}

sh_err sh_group_join(sh_group **out, int rank, int fd)
{
    return fd < 0 ? sh_group_mpi.join(out, rank, fd) : sh_group_shm.join(out, rank, fd);
}
