/* A group of processes that mpirun has started, on one host or several. Every rank has the same
 * command line: rank 0 obeys it, the others wait for the groups that rank 0 opens.
 *
 * MPI is reached through libshoal-mpi.so (mpi/module.h), which is loaded under mpirun only. Ranks
 * send each other their roots and messages straight, since they are few and the sums have our own
 * shape; waiting is ours too: MPI's own would hold a core for as long as a worker has nothing to
 * do.
 *
 * Whoever closes a group tells all others, and a rank that waits for one that has gone gives up. A
 * rank that dies is mpirun's business, which then ends them all. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "comm/group.h"
#include "comm/mpi/module.h"

enum {
    MAX_CPU = 64,
    HEAD_BYTES = 16 + 4 * 8,
    HEAD_TAG = 1,
    N_TAG = 1000,
    LINGER_MS = 500,
    YIELD_US = 200
};

typedef struct mpi_group {
    sh_group base;
    size_t part_floats, bcast_bytes; /* part_floats: rounded up, so that roots are aligned */
    int spin, data_tag, left_tag;
    bool joined; /* the others know of this rank; it tells them when it goes */
    float *room; /* (roots of all ranks, part_floats) */
    sh_roots roots;
    int first[SH_MAX_RANK]; /* a rank's first root in room */
    size_t room_bytes;
    void *blob;
    char report[SH_MAX_RANK][1024]; /* how loading went: the code's byte, then the sentence */
} mpi_group;

/* What mpirun has made of this process. There is one MPI in a process, so this is no object. */
static struct {
    const sh_mpi_module *m; /* NULL: not started by mpirun */
    int rank, n_rank;
    int here, n_here; /* of the ranks on this host */
    int cpu[MAX_CPU], n_cpu;
    bool open;        /* a group is; they join one at a time */
    unsigned n_group; /* groups opened so far: messages of one never meet those of another */
    bool broken;      /* nothing can be agreed upon any more: mpirun ends all when this one ends */
    uint8_t head[HEAD_BYTES];
} job = {.n_rank = 1, .n_here = 1};

/* ---- waiting ---- */

static sh_err check(int code)
{
    char text[512];
    if (!code) return SH_OK;
    job.broken = true;
    job.m->text(code, text, sizeof text);
    return sh_fail(SH_EPEER, "MPI failed: %s; start again", text);
}

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Waits until all that was begun is done. left_tag: of the messages of ranks that leave; -1: they
 * do not matter. Spins, then lets others have the core, then sleeps ever longer, up to 1 ms. */
static sh_err finish(int spin, int left_tag)
{
    int done, gone = -1;
    int64_t start_us = 0, gone_us = 0;
    for (int i = 0;; i++) {
        SH_TRY(check(job.m->test(&done)));
        if (done) return SH_OK;
        if (i < spin) {
            sh_cpu_pause();
            continue;
        }
        int64_t us = now_us();
        if (!start_us) start_us = us;
        if (left_tag >= 0 && gone < 0) {
            SH_TRY(check(job.m->peek(left_tag, &gone)));
            gone_us = us;
        }
        if (gone >= 0 &&
            us - gone_us > LINGER_MS * 1000) { /* what it sent before has had its time */
            job.m->drop();
            return sh_fail(SH_EPEER, "rank %d of %d has ended its work; start again", gone,
                           job.n_rank);
        }
        if (us - start_us < YIELD_US) { /* ranks that share a core are soon there */
            sched_yield();
            continue;
        }
        long nap_us = 10 + (long)(us - start_us) / 16;
        nanosleep(&(struct timespec){.tv_nsec = (nap_us < 1000 ? nap_us : 1000) * 1000}, NULL);
    }
}

static sh_err begin_send(const void *p, size_t n, int to, int tag)
{
    return check(job.m->send(p, n, to, tag));
}

static sh_err begin_recv(void *p, size_t n, int from, int tag)
{
    return check(job.m->recv(p, n, from, tag));
}

static sh_err finish_in(const mpi_group *g)
{
    return finish(g->spin, g->left_tag);
}

/* ---- mpirun ---- */

static int env_number(const char *a, const char *b)
{
    const char *s = getenv(a) ? getenv(a) : getenv(b);
    return s ? atoi(s) : 0;
}

/* Beside the program where it was built, in ../lib/shoal where it was installed. */
static sh_err load_module(void)
{
    char program[4096], path[2][4200];
    SH_TRY(sh_program_path(program, sizeof program));
    char *slash = strrchr(program, '/');
    if (slash) *slash = 0;
    snprintf(path[0], sizeof path[0], "%s/libshoal-mpi.so", slash ? program : ".");
    snprintf(path[1], sizeof path[1], "%s/../lib/shoal/libshoal-mpi.so", slash ? program : ".");
    int i = access(path[0], F_OK) == 0 ? 0 : 1;
    if (i == 1 && access(path[1], F_OK) != 0)
        return sh_fail(SH_ESYS,
                       "%s is not there, which ranks under mpirun need: install the package "
                       "libopenmpi-dev and build again",
                       path[0]);
    /* Open MPI loads parts of its own, which look for MPI's symbols. */
    void *module = dlopen(path[i], RTLD_NOW | RTLD_GLOBAL);
    const sh_mpi_module *m = module ? dlsym(module, SH_MPI_SYMBOL) : NULL;
    if (!m)
        return sh_fail(SH_ESYS, "%s cannot be loaded: %s; install the package libopenmpi3", path[i],
                       dlerror());
    if (m->version != SH_MPI_MODULE)
        return sh_fail(SH_ESYS, "%s is of another build than this program: build both again",
                       path[i]);
    job.m = m;
    return SH_OK;
}

/* Shares the cores of this host out to its ranks: ranks that mpirun has tied to cores of their own
 * keep them, ranks that may use the same cores divide those. */
static sh_err share_cores(void)
{
    int mine[1 + MAX_CPU] = {0}, least = MAX_CPU, sharers[SH_MAX_RANK], before[SH_MAX_RANK];
    void *all = NULL;
    mine[0] = sh_cpu_cores(mine + 1, MAX_CPU);
    sh_err err = check(job.m->share(mine, sizeof mine, &job.here, &job.n_here, &all));
    const int(*list)[1 + MAX_CPU] = all;
    for (int i = 0; err == SH_OK && i < job.n_here; i++) {
        sharers[i] = before[i] = 0;
        for (int k = 0; k < job.n_here; k++) {
            bool same = memcmp(list[i], list[k], sizeof *list) == 0;
            sharers[i] += same;
            before[i] += same && k < i;
        }
        if (list[i][0] / sharers[i] < least) least = list[i][0] / sharers[i];
    }
    if (least > MAX_CPU / job.n_here) least = MAX_CPU / job.n_here;
    for (int i = 0; err == SH_OK && i < job.n_here; i++)
        for (int k = 0; k < least; k++) job.cpu[job.n_cpu++] = list[i][1 + before[i] * least + k];
    free(all);
    return err;
}

/* mpirun ties a rank to one core where it starts one or two on a host. */
static void warn_of_binding(void)
{
    cpu_set_t mine, its;
    if (sched_getaffinity(0, sizeof mine, &mine) || sched_getaffinity(getppid(), sizeof its, &its))
        return;
    if (job.rank == 0 && CPU_COUNT(&its) > CPU_COUNT(&mine) * job.n_here)
        sh_log(SH_LOG_WARN,
               "mpirun lets each of %d ranks use %d of this host's %d logical CPUs; mpirun "
               "--bind-to none lets them have all",
               job.n_here, CPU_COUNT(&mine), CPU_COUNT(&its));
}

sh_err sh_mpi_start(int *rank)
{
    int n = env_number("OMPI_COMM_WORLD_SIZE", "PMI_SIZE");
    *rank = 0;
    if (n <= 1) return SH_OK;
    *rank = env_number("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID");
    if (n > SH_MAX_RANK)
        return sh_fail(SH_EARG, "mpirun has started %d ranks: at most %d share a stage", n,
                       SH_MAX_RANK);
    (void)sh_cpu_features(); /* MPI starts threads, and the matrix unit is asked for before */
    SH_TRY(load_module());
    SH_TRY(check(job.m->start(&job.rank, &job.n_rank)));
    unsetenv("OMPI_COMM_WORLD_SIZE"); /* what this process starts is none of the ranks */
    unsetenv("PMI_SIZE");
    if (job.n_rank != n)
        return sh_fail(SH_ESYS,
                       "mpirun has started %d ranks and libshoal-mpi.so sees %d: it is built with "
                       "another MPI than this mpirun's",
                       n, job.n_rank);
    SH_TRY(share_cores());
    *rank = job.rank;
    warn_of_binding();
    return SH_OK;
}

/* A head: the version, then part_floats, bcast_bytes, n_blob, spin; empty if rank 0 ends. */
static sh_err send_head(const sh_group_options *opt)
{
    sh_buf b = {0};
    sh_err err = SH_OK;
    char version[16] = SHOAL_VERSION;
    sh_put_bytes(&b, version, opt ? sizeof version : 0);
    const uint64_t v[] = {opt ? opt->part_floats : 0, opt ? opt->bcast_bytes : 0,
                          opt ? opt->n_blob : 0, opt ? (uint64_t)opt->spin : 0};
    for (size_t i = 0; opt && i < sizeof v / sizeof *v; i++) sh_put_u64(&b, v[i]);
    if (b.bad) err = sh_fail(SH_ENOMEM, "no memory for the group");
    memset(job.head, 0, sizeof job.head);
    if (err == SH_OK && b.n) memcpy(job.head, b.p, b.n);
    sh_buf_free(&b);
    for (int r = 1; r < job.n_rank && err == SH_OK; r++)
        err = begin_send(job.head, HEAD_BYTES, r, HEAD_TAG);
    return err == SH_OK ? finish(0, -1) : err;
}

sh_err sh_mpi_next(bool *more)
{
    char version[16] = SHOAL_VERSION;
    if (job.broken) return SH_EPEER; /* as the sentence of that says */
    SH_TRY(begin_recv(job.head, HEAD_BYTES, 0, HEAD_TAG));
    SH_TRY(finish(0, -1));
    *more = job.head[0] != 0;
    job.broken = *more && memcmp(job.head, version, sizeof version) != 0;
    if (job.broken)
        return sh_fail(SH_EPEER, "rank %d is shoal " SHOAL_VERSION " and rank 0 shoal %.15s",
                       job.rank, (const char *)job.head);
    return SH_OK;
}

void sh_mpi_stop(void)
{
    if (!job.m || job.broken) return;
    if (job.rank != 0 || send_head(NULL) == SH_OK) job.m->stop();
    job.m = NULL;
}

sh_err sh_group_count(int *n_rank, const char *flag)
{
    if (*n_rank == 0) *n_rank = job.n_rank;
    if (*n_rank < 1 || *n_rank > SH_MAX_RANK)
        return sh_fail(SH_EARG, "%d ranks: give 1 to %d (%s)", *n_rank, SH_MAX_RANK, flag);
    if (job.m && *n_rank != job.n_rank && *n_rank != 1)
        return sh_fail(SH_EARG, "%d ranks, and mpirun has started %d: leave %s out", *n_rank,
                       job.n_rank, flag);
    return SH_OK;
}

int sh_group_cores(int n_rank, int *cpu, int max, int *n_here)
{
    *n_here = n_rank;
    if (!job.m || n_rank != job.n_rank) return sh_cpu_cores(cpu, max);
    *n_here = job.n_here;
    int n = job.n_cpu < max ? job.n_cpu : max;
    memcpy(cpu, job.cpu, (size_t)n * sizeof *cpu);
    return n;
}

void sh_group_place(const sh_group *g, int *cpu, int max, int *n_cpu, int *n_here, int *n_thread)
{
    *n_here = g->n_here;
    if (!job.m) return;
    *n_cpu = sh_group_cores(g->n_rank, cpu, max, n_here);
    int most = *n_cpu / *n_here > 0 ? *n_cpu / *n_here : 1;
    if (*n_thread > most) *n_thread = most;
}

bool sh_mpi_started(void)
{
    return job.m != NULL;
}

/* ---- the group ---- */

static void mpi_close(sh_group *base)
{
    mpi_group *g = (mpi_group *)base;
    char none = 0;
    sh_err err = g->joined && !job.broken ? SH_OK : SH_EPEER;
    for (int r = 0; r < base->n_rank && err == SH_OK; r++) {
        if (r == base->rank) continue;
        err = begin_send(&none, 0, r, g->left_tag);
        if (err == SH_OK) err = begin_recv(&none, 0, r, g->left_tag);
    }
    if (err == SH_OK) (void)finish(0, -1); /* all have gone, so nothing of it is under way */
    job.open = false;
    sh_unmap(g->room, g->room_bytes);
    free(g->blob);
    free(g);
}

/* From job.head, on every rank alike. */
static sh_err new_group(mpi_group **out, size_t *n_blob)
{
    mpi_group *g;
    size_t n_root = 0, bytes;
    sh_err err;
    sh_cursor c = sh_cursor_of(job.head + 16, HEAD_BYTES - 16);
    SH_TRY(sh_alloc(&g, 1, sizeof *g, "the group"));
    g->base = (sh_group){.ops = &sh_group_mpi,
                         .rank = job.rank,
                         .n_rank = job.n_rank,
                         .here = job.here,
                         .n_here = job.n_here};
    g->part_floats = ((size_t)sh_get_u64(&c) + 15) / 16 * 16;
    g->bcast_bytes = (size_t)sh_get_u64(&c);
    *n_blob = (size_t)sh_get_u64(&c);
    g->spin = job.n_cpu ? (int)sh_get_u64(&c) : 0; /* too few cores here: do not spin */
    g->data_tag = 2 + 2 * (int)(job.n_group++ % N_TAG);
    g->left_tag = g->data_tag + 1;
    sh_roots_make(&g->roots, job.n_rank);
    for (int r = 0; r < job.n_rank; r++) {
        g->first[r] = (int)n_root;
        n_root += (size_t)g->roots.n[r];
    }
    if (!sh_mul_size(g->part_floats, n_root * sizeof(float), &bytes)) {
        err = sh_fail(SH_EARG, "roots of %zu floats are too long", g->part_floats);
        goto out;
    }
    g->room_bytes = bytes ? bytes : 1;
    SH_GOTO(sh_map(&g->room, g->room_bytes, "the group's buffer"));
    SH_GOTO(sh_alloc(&g->blob, *n_blob, 1, "the group"));
    *out = g;
    return SH_OK;
out:
    mpi_close(&g->base);
    return err;
}

static sh_err mpi_open(sh_group **out, const sh_group_options *opt)
{
    mpi_group *g = NULL;
    size_t n_blob;
    sh_err err;
    if (!job.m)
        return sh_fail(SH_EARG, "the ranks of an MPI group are started with mpirun -n RANKS shoal");
    if (opt->n_rank != job.n_rank || job.rank != 0)
        return sh_fail(SH_EARG, "a group of %d ranks, and mpirun has started %d", opt->n_rank,
                       job.n_rank);
    if (job.open)
        return sh_fail(SH_EARG, "the ranks under mpirun are in one group and cannot join another");
    SH_TRY(send_head(opt));
    SH_GOTO(new_group(&g, &n_blob));
    for (int r = 1; r < job.n_rank && n_blob; r++)
        SH_GOTO(begin_send(opt->blob, n_blob, r, g->data_tag));
    SH_GOTO(finish_in(g));
    g->joined = job.open = true;
    *out = &g->base;
    return SH_OK;
out:
    job.broken = true;
    if (g) mpi_close(&g->base);
    return err;
}

static sh_err mpi_join(sh_group **out, int rank, int fd)
{
    mpi_group *g = NULL;
    size_t n_blob;
    sh_err err;
    (void)fd;
    *out = NULL;
    if (!job.m || rank != job.rank || rank == 0)
        return sh_fail(SH_EARG, "mpirun has not started this process as rank %d", rank);
    SH_GOTO(new_group(&g, &n_blob));
    if (n_blob) SH_GOTO(begin_recv(g->blob, n_blob, 0, g->data_tag));
    SH_GOTO(finish_in(g));
    g->base.blob = g->blob;
    g->base.n_blob = n_blob;
    g->joined = job.open = true;
    *out = &g->base;
    return SH_OK;
out:
    job.broken = true;
    if (g) mpi_close(&g->base);
    return err;
}

static sh_err mpi_ready(sh_group *base, sh_err mine)
{
    mpi_group *g = (mpi_group *)base;
    char *report = g->report[base->rank];
    report[0] = (char)mine;
    snprintf(report + 1, sizeof g->report[0] - 1, "%s", mine == SH_OK ? "" : sh_err_message());
    for (int r = 0; r < base->n_rank; r++) {
        if (r == base->rank) continue;
        SH_TRY(begin_send(report, sizeof g->report[0], r, g->data_tag));
        SH_TRY(begin_recv(g->report[r], sizeof g->report[0], r, g->data_tag));
    }
    sh_err err = finish_in(g);
    if (mine != SH_OK) return sh_fail(mine, "%s", report + 1);
    SH_TRY(err);
    for (int r = 0; r < base->n_rank; r++)
        if (g->report[r][0] != SH_OK)
            return sh_fail((sh_err)g->report[r][0], "rank %d of %d: %.900s", r, base->n_rank,
                           g->report[r] + 1);
    return SH_OK;
}

static float *room_of(const mpi_group *g, int rank, int root)
{
    return g->room + (size_t)(g->first[rank] + root) * g->part_floats;
}

static float *mpi_part(sh_group *base, int root)
{
    return room_of((mpi_group *)base, base->rank, root);
}

static sh_err mpi_meet(sh_group *base, size_t n)
{
    mpi_group *g = (mpi_group *)base;
    for (int r = 0; r < base->n_rank; r++) {
        if (r == base->rank) continue;
        for (int i = 0; i < g->roots.n[r]; i++)
            SH_TRY(begin_recv(room_of(g, r, i), n * sizeof(float), r, g->data_tag));
        for (int i = 0; i < g->roots.n[base->rank]; i++)
            SH_TRY(begin_send(mpi_part(base, i), n * sizeof(float), r, g->data_tag));
    }
    return finish_in(g);
}

static const float *find_part(const void *arg, sh_range r)
{
    const mpi_group *g = arg;
    int rank, i;
    return sh_roots_find(&g->roots, r, &rank, &i) ? room_of(g, rank, i) : NULL;
}

static void mpi_add_sum(const sh_group *base, float *x, size_t at, size_t n)
{
    sh_tree_add(x, at, n, find_part, base);
}

static sh_err mpi_gather(sh_group *base, float *y, size_t ldy, const sh_range *col, int n_row)
{
    mpi_group *g = (mpi_group *)base;
    const size_t row_bytes = (size_t)n_row * sizeof(float);
    if (base->rank != 0) {
        SH_TRY(begin_send(room_of(g, base->rank, 0),
                          row_bytes * (size_t)sh_range_n(col[base->rank]), 0, g->data_tag));
        return finish_in(g);
    }
    for (int r = 1; r < base->n_rank; r++)
        SH_TRY(
            begin_recv(room_of(g, r, 0), row_bytes * (size_t)sh_range_n(col[r]), r, g->data_tag));
    SH_TRY(finish_in(g));
    for (int r = 0; r < base->n_rank; r++) sh_put_columns(y, ldy, room_of(g, r, 0), col[r], n_row);
    return SH_OK;
}

static sh_err mpi_bcast(sh_group *base, void *p, size_t cap, size_t *n)
{
    mpi_group *g = (mpi_group *)base;
    uint8_t length[8];
    if (base->rank == 0) {
        if (*n > g->bcast_bytes)
            return sh_fail(SH_EARG, "a broadcast of %zu bytes, more than was agreed", *n);
        for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)*n >> 8 * i);
        for (int r = 1; r < base->n_rank; r++) {
            SH_TRY(begin_send(length, sizeof length, r, g->data_tag));
            if (*n) SH_TRY(begin_send(p, *n, r, g->data_tag));
        }
        return finish_in(g);
    }
    SH_TRY(begin_recv(length, sizeof length, 0, g->data_tag));
    SH_TRY(finish_in(g));
    sh_cursor c = sh_cursor_of(length, sizeof length);
    *n = (size_t)sh_get_u64(&c);
    if (*n > cap) return sh_fail(SH_EPEER, "a broadcast of %zu bytes, more than was agreed", *n);
    if (*n) SH_TRY(begin_recv(p, *n, 0, g->data_tag));
    return finish_in(g);
}

const sh_group_ops sh_group_mpi = {
    .scheme = "mpi",
    .open = mpi_open,
    .join = mpi_join,
    .close = mpi_close,
    .ready = mpi_ready,
    .part = mpi_part,
    .meet = mpi_meet,
    .add_sum = mpi_add_sum,
    .gather = mpi_gather,
    .bcast = mpi_bcast,
};
