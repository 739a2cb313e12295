/* The ranks of one stage and their collectives. Every rank calls the same collectives in the same
 * order. Sums have the fixed shape of the canonical tree, so 1 to 8 ranks give the same bits.
 *
 * A transport is one const struct in one file and one row in sh_group_transports. */
#ifndef SH_COMM_GROUP_H
#define SH_COMM_GROUP_H

#include <stdbool.h>
#include <stddef.h>

#include "base/cursor.h"
#include "base/err.h"

enum { SH_MAX_RANK = 8, SH_MAX_ROOT = 4 };

/* Half-open. */
typedef struct sh_range {
    int lo, hi;
} sh_range;

static inline int sh_range_n(sh_range r)
{
    return r.hi - r.lo;
}

/** The canonical slices that rank r of n owns. */
static inline sh_range sh_rank_slices(int r, int n)
{
    return (sh_range){8 * r / n, 8 * (r + 1) / n};
}

/** The fewest subtrees of the canonical tree that make up the slices [lo, hi), ascending, in
 * root[]; returns how many (at most SH_MAX_ROOT). */
int sh_tree_roots(sh_range slices, sh_range root[SH_MAX_ROOT]);

/* The roots of all ranks. */
typedef struct sh_roots {
    int n_rank, n[SH_MAX_RANK];
    sh_range root[SH_MAX_RANK][SH_MAX_ROOT];
} sh_roots;
void sh_roots_make(sh_roots *t, int n_rank);
/** Whose root the subtree r is, and which of its roots; false if no rank has it as a root. */
bool sh_roots_find(const sh_roots *t, sh_range r, int *rank, int *root);

typedef struct sh_group sh_group;

typedef struct sh_group_options {
    const char *scheme; /* NULL chooses: "self" for one rank, "mpi" under mpirun, else "shm" */
    int n_rank;         /* 1 to SH_MAX_RANK */
    size_t part_floats; /* the most floats of one root, or of one rank's gather */
    size_t bcast_bytes; /* the longest broadcast */
    const void *blob;   /* what the other ranks need to know to open: given to them by join */
    size_t n_blob;
    int spin; /* pauses before a waiting rank sleeps */
} sh_group_options;

typedef struct sh_group_ops {
    const char *scheme;
    sh_err (*open)(sh_group **out, const sh_group_options *opt); /* on rank 0 */
    sh_err (*join)(sh_group **out, int rank, int fd);            /* on the others */
    void (*close)(sh_group *g);
    sh_err (*ready)(sh_group *g, sh_err mine);
    float *(*part)(sh_group *g, int root);
    sh_err (*meet)(sh_group *g, size_t n);
    void (*add_sum)(const sh_group *g, float *x, size_t at, size_t n);
    sh_err (*gather)(sh_group *g, float *y, size_t ldy, const sh_range *col, int n_row);
    sh_err (*bcast)(sh_group *g, void *p, size_t cap, size_t *n);
} sh_group_ops;

/* What every transport's struct begins with. */
struct sh_group {
    const sh_group_ops *ops;
    int rank, n_rank;
    int here, n_here; /* of the ranks that are on this host */
    const void *blob; /* rank > 0: rank 0's */
    size_t n_blob;
};

extern const sh_group_ops *const sh_group_transports[]; /* ends with NULL */
extern const sh_group_ops sh_group_self, sh_group_shm, sh_group_mpi;

/** Rank 0: opens the group. Its other ranks are processes that it starts, or that mpirun has
 *  started; they call sh_group_join. */
sh_err sh_group_open(sh_group **out, const sh_group_options *opt);
/** On the others. fd: what `shoal rank` is given, -1 under mpirun. */
sh_err sh_group_join(sh_group **out, int rank, int fd);
/** How many ranks: *n_rank 0 becomes what mpirun has started, or 1. SH_EARG: more than can be, or
 *  neither 1 nor mpirun's number; `flag` is what the user gave it with. */
sh_err sh_group_count(int *n_rank, const char *flag);
/** The logical CPUs, one of each core, that the ranks on this host share, a group of n_rank being
 *  opened or joined: rank `here` of *n_here may use the n / *n_here of them from here * (n /
 *  *n_here). Returns n, at most `max`; 0: there are fewer than ranks. */
int sh_group_cores(int n_rank, int *cpu, int max, int *n_here);
/** Rank > 0: sets n_here; under mpirun, where it may be on another host than rank 0, also what
 *  sh_group_cores says here, and no more threads than its share of the cores. */
void sh_group_place(const sh_group *g, int *cpu, int max, int *n_cpu, int *n_here, int *n_thread);

/** After loading, on every rank: `mine` is how it went there. On rank 0 waits for all and fails
 * with the first failing rank's sentence. */
static inline sh_err sh_group_ready(sh_group *g, sh_err mine)
{
    return g->ops->ready(g, mine);
}
/** Where to write this rank's root number `root` (part_floats of room) before they meet. Changes
 *  with every collective. */
static inline float *sh_group_part(sh_group *g, int root)
{
    return g->ops->part(g, root);
}
/** Waits until every rank has written the first n floats of its roots, n alike on all;
 *  sh_group_add_sum of those may follow, until the next sh_group_part or collective. SH_EPEER: a
 *  rank was lost; the sentence says which. The group can then only be closed. */
static inline sh_err sh_group_meet(sh_group *g, size_t n)
{
    return g->ops->meet(g, n);
}
/** x (n) += the values [at, at + n) of the tree sum of all ranks' roots, alike on every rank. Any
 * thread may do any part. */
static inline void sh_group_add_sum(const sh_group *g, float *x, size_t at, size_t n)
{
    g->ops->add_sum(g, x, at, n);
}
/** y (n) = the tree sum of all ranks' roots. */
sh_err sh_group_sum(sh_group *g, float *y, size_t n);
/** Rank r has written the columns col[r] of n_row rows, packed (n_row, width), to part 0. On rank 0
 *  all are put together in y (n_row, ldy). */
static inline sh_err sh_group_gather(sh_group *g, float *y, size_t ldy, const sh_range *col,
                                     int n_row)
{
    return g->ops->gather(g, y, ldy, col, n_row);
}
/** Rank 0 sends *n bytes at p; the others receive them into p (room for cap) and set *n. */
static inline sh_err sh_group_bcast(sh_group *g, void *p, size_t cap, size_t *n)
{
    return g->ops->bcast(g, p, cap, n);
}
/** Accepts NULL. Rank 0 ends the other ranks and frees what they shared. */
static inline void sh_group_close(sh_group *g)
{
    if (g) g->ops->close(g);
}

/* ---- under mpirun: every rank is this program with the same command line ---- */

/** At the start of the program, before there are threads: where mpirun has started it as one of
 *  several ranks, starts MPI; *rank is this one. Elsewhere does nothing; *rank is 0. Rank 0 then
 * does what the command line says and the groups that it opens are of all ranks; the others call
 *  sh_mpi_next. SH_ESYS: MPI cannot be had; the sentence says what is missing, and *rank is 0 for
 * one rank of each host, which is to say it. */
sh_err sh_mpi_start(int *rank);
/** Rank > 0: waits for rank 0 to open a group, which is then to be joined, or to end: *more is
 *  false. */
sh_err sh_mpi_next(bool *more);
/** On every rank at the end of the program; on rank 0 lets the others end. */
void sh_mpi_stop(void);
/** Whether this process is a rank under mpirun. */
bool sh_mpi_started(void);

/* ---- for transports ---- */

/* y (n) = the values [at, at + n) of the tree sum over [0, 8), where part(arg, {lo,
 * hi}) gives the floats of a subtree that some rank has sent, or NULL. n is at most SH_SUM_BLOCK.
 */
enum { SH_SUM_BLOCK = 1024 };
typedef const float *sh_part_fn(const void *arg, sh_range r);
void sh_tree_sum(float *y, size_t at, size_t n, sh_part_fn *part, const void *arg);
/* x (n) += that, for any n. */
void sh_tree_add(float *x, size_t at, size_t n, sh_part_fn *part, const void *arg);
/* The columns `col` of y (n_row, ldy) = part (n_row, width of col). */
void sh_put_columns(float *y, size_t ldy, const float *part, sh_range col, int n_row);

#endif
