/* The shape of sums over ranks, and groups of 1 to 8 processes on shared memory. The other ranks
 * are this program again: sh_group_open starts $SHOAL_PROGRAM rank R FD. With the argument `mpi` it
 * is each rank under mpirun and tests those groups (e2e/mpi.py). */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/spawn.h"
#include "comm/group.h"

enum { PART = 5000, BCAST = 3000, N_COL = 600 };

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

/* What the ranks are to do; rank 0's blob. */
typedef enum what {
    COLLECT, /* n_op random collectives */
    DIE,     /* the same, but `who` is killed halfway */
    REFUSE,  /* `who` cannot load */
    LEAVE,   /* `who` ends before it joins */
    QUIT,    /* `who` closes the group halfway */
    WAIT,    /* wait for rank 0 */
} what;

typedef struct orders {
    what what;
    int who, n_op;
    uint64_t seed;
} orders;

/* ---- numbers that every rank knows ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 1;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Value i of slice s in collective `op`; of many magnitudes, so that another order gives other
 * bits. */
static float value(uint64_t op, int s, size_t i)
{
    uint64_t r = mix(mix(op, (uint64_t)s), i);
    return ldexpf((float)(int32_t)(r >> 32) * 0x1p-31f, (int)(r & 7));
}

static float tree(uint64_t op, int lo, int hi, size_t i)
{
    if (hi - lo == 1) return value(op, lo, i);
    float left = tree(op, lo, (lo + hi) / 2, i), right = tree(op, (lo + hi) / 2, hi, i);
    return left + right;
}

/* ---- random collectives, on every rank ---- */

static sh_err wrong(const char *name, uint64_t op)
{
    return sh_fail(SH_EFILE, "%s %d gives a wrong value", name, (int)(op & 0xffff));
}

static sh_err do_sum(sh_group *g, uint64_t op)
{
    static float y[PART];
    size_t n = 1 + mix(op, 7) % (mix(op, 8) % 2 ? PART : 40), skip = mix(op, 9) % n;
    sh_range root[SH_MAX_ROOT];
    int n_root = sh_tree_roots(sh_rank_slices(g->rank, g->n_rank), root);
    for (int r = 0; r < n_root; r++) {
        float *part = sh_group_part(g, r);
        for (size_t i = 0; i < n; i++) part[i] = tree(op, root[r].lo, root[r].hi, i);
    }
    for (size_t i = skip; i < n; i++) y[i - skip] = (float)i;
    SH_TRY(sh_group_meet(g, n));
    for (size_t at = skip, m; at < n; at += m) { /* as threads share it out */
        m = 1 + mix(op, at) % (n - at);
        sh_group_add_sum(g, y + (at - skip), at, m);
    }
    for (size_t i = skip; i < n; i++)
        if (sh_f32_bits(y[i - skip]) != sh_f32_bits((float)i + tree(op, 0, 8, i)))
            return wrong("sum", op);
    return SH_OK;
}

/* Columns 0 to N_COL of some rows, cut at random places, some ranks having none. */
static sh_err do_gather(sh_group *g, uint64_t op)
{
    static float y[8 * (N_COL + 3)];
    int n_row = 1 + (int)(mix(op, 5) % 8), at = 0;
    size_t ldy = N_COL + mix(op, 6) % 4;
    sh_range col[SH_MAX_RANK];
    for (int r = 0; r < g->n_rank; r++) {
        int left = N_COL - at,
            n = r == g->n_rank - 1 ? left : (int)(mix(op, 10 + (uint64_t)r) % (uint64_t)(left + 1));
        if (mix(op, 20 + (uint64_t)r) % 4 == 0 && r < g->n_rank - 1) n = 0;
        col[r] = (sh_range){at, at + n};
        at += n;
    }
    float *part = sh_group_part(g, 0);
    for (int i = 0; i < n_row; i++)
        for (int c = col[g->rank].lo; c < col[g->rank].hi; c++) *part++ = value(op, i, (size_t)c);
    for (size_t i = 0; i < sizeof y / sizeof *y; i++) y[i] = 77;
    SH_TRY(sh_group_gather(g, g->rank ? NULL : y, ldy, col, n_row));
    for (int i = 0; g->rank == 0 && i < n_row; i++)
        for (size_t c = 0; c < ldy; c++)
            if (y[(size_t)i * ldy + c] != (c < N_COL ? value(op, i, c) : 77))
                return wrong("gather", op);
    return SH_OK;
}

static sh_err do_bcast(sh_group *g, uint64_t op)
{
    uint8_t p[BCAST];
    size_t want = mix(op, 3) % (BCAST + 1), n = g->rank == 0 ? want : 0;
    if (mix(op, 4) % 8 == 0) want = n = g->rank == 0 ? BCAST : 0;
    if (mix(op, 4) % 8 == 0) want = BCAST;
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)mix(op, i);
    SH_TRY(sh_group_bcast(g, p, BCAST, &n));
    if (g->n_rank == 1) return SH_OK;
    if (n != want) return wrong("the length of broadcast", op);
    for (size_t i = 0; i < n; i++)
        if (p[i] != (uint8_t)mix(op, i)) return wrong("broadcast", op);
    return SH_OK;
}

static sh_err collect(sh_group *g, const orders *o)
{
    for (int i = 0; i < o->n_op; i++) {
        uint64_t op = mix(o->seed, 0) << 16 | (uint64_t)i;
        if (o->what == DIE && g->rank == o->who && i == o->n_op / 2) raise(SIGKILL);
        if (o->what == QUIT && g->rank == o->who && i == o->n_op / 2) return SH_EEND;
        if (mix(op, 1) % 16 == (uint64_t)g->rank) usleep(300); /* one is late */
        switch (mix(op, 2) % 4) {
        case 0:
            SH_TRY(do_gather(g, op));
            break;
        case 1:
            SH_TRY(do_bcast(g, op));
            break;
        default:
            SH_TRY(do_sum(g, op));
        }
    }
    return SH_OK;
}

/* The program as a rank. */
static int follow(int rank, int fd)
{
    sh_group *g;
    orders o;
    if (getenv("TEST_LEAVE") && atoi(getenv("TEST_LEAVE")) == rank) return 7;
    if (sh_group_join(&g, rank, fd) != SH_OK) return 3;
    if (g->n_blob != sizeof o) return 4;
    memcpy(&o, g->blob, sizeof o);
    if (o.what == REFUSE && rank != o.who) usleep(100000); /* the one that fails is the first */
    sh_err mine = o.what == REFUSE && rank == o.who ? sh_fail(SH_EFILE, "the file is torn") : SH_OK;
    if (sh_group_ready(g, mine) == SH_OK) {
        size_t n;
        uint8_t p[BCAST];
        if (o.what == WAIT) mine = sh_group_bcast(g, p, sizeof p, &n);
        if (o.what == COLLECT || o.what == DIE || o.what == QUIT) {
            mine = collect(g, &o);
            if (mine != SH_EPEER && mine != SH_EEND && sh_group_ready(g, mine) == SH_OK)
                (void)sh_group_bcast(g, p, sizeof p, &n); /* rank 0 says when to leave */
        }
    }
    sh_group_close(g);
    return 0;
}

/* ---- rank 0: the tests ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int count_in(const char *dir, const char *part)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += strstr(e->d_name, part) != NULL;
    closedir(d);
    return n;
}

static sh_group *open_group(const char *scheme, int n_rank, const orders *o, int spin)
{
    sh_group *g;
    OK(sh_group_open(&g, &(sh_group_options){.scheme = scheme,
                                             .n_rank = n_rank,
                                             .part_floats = PART,
                                             .bcast_bytes = BCAST,
                                             .blob = o,
                                             .n_blob = sizeof *o,
                                             .spin = spin}));
    assert_int_equal(g->rank, 0);
    assert_int_equal(g->n_rank, n_rank);
    return g;
}

static void run(const char *scheme, int n_rank, int spin)
{
    orders o = {COLLECT, 0, 120, (uint64_t)(n_rank * 10 + spin)};
    int n_fd = count_in("/proc/self/fd", ""), n_shm = count_in("/dev/shm", "shoal");
    sh_group *g = open_group(scheme, n_rank, &o, spin);
    OK(sh_group_ready(g, SH_OK));
    sh_err mine = collect(g, &o);
    if (mine != SH_OK) print_message("# rank 0 of %d: %s\n", n_rank, sh_err_message());
    OK(sh_group_ready(g, mine)); /* on rank 0, the first fault of any rank */
    size_t n = 0;
    OK(sh_group_bcast(g, (char[]){0}, 0, &n));
    assert_int_equal(count_in("/dev/shm", "shoal"), n_shm);
    sh_group_close(g);
    assert_int_equal(count_in("/proc/self/fd", ""), n_fd);
    assert_true(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* Sums, gathers and broadcasts of random sizes in a random order give every rank what they should.
 */
static void test_collectives(void **state)
{
    (void)state;
    run("self", 1, 0);
    run("shm", 1, 0);
    for (int n = 1; n <= 8; n++) run(NULL, n, n % 2 ? 0 : 200);
    run("shm", 3, 20000);
}

static void test_killed(void **state)
{
    (void)state;
    for (int n = 2; n <= 8; n += 3) {
        char who[32];
        orders o = {DIE, n - 1, 40, (uint64_t)n};
        sh_group *g = open_group(NULL, n, &o, 100);
        OK(sh_group_ready(g, SH_OK));
        double start = now_s();
        assert_int_equal(collect(g, &o), SH_EPEER);
        assert_true(now_s() - start < 2);
        snprintf(who, sizeof who, "rank %d of %d", n - 1, n);
        if (!strstr(sh_err_message(), who) || !strstr(sh_err_message(), "signal 9"))
            fail_msg("%s: should name %s and how it ended", sh_err_message(), who);
        uint8_t p[4];
        size_t n_bytes = sizeof p;
        (void)sh_group_bcast(g, p, sizeof p, &n_bytes); /* as a node does that closes; it ends */
        start = now_s();
        sh_group_close(g);
        assert_true(now_s() - start < 1); /* the others end by themselves */
        assert_true(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    }
}

/* A rank that cannot load says why, even if it is gone before the others are ready. */
static void test_refuses(void **state)
{
    (void)state;
    for (int who = 1; who < 4; who++) {
        char text[64];
        orders o = {REFUSE, who, 0, 0};
        sh_group *g = open_group(NULL, 4, &o, 0);
        assert_int_equal(sh_group_ready(g, SH_OK), SH_EFILE);
        snprintf(text, sizeof text, "rank %d of 4: the file is torn", who);
        assert_string_equal(sh_err_message(), text);
        sh_group_close(g);
    }
    orders o = {WAIT, 0, 0, 0};
    sh_group *g = open_group(NULL, 3, &o, 0);
    double start = now_s();
    assert_int_equal(sh_group_ready(g, sh_fail(SH_ENOMEM, "rank 0 is full")), SH_ENOMEM);
    assert_string_equal(sh_err_message(), "rank 0 is full");
    sh_group_close(g);
    assert_true(now_s() - start < 1);
}

/* A rank that ends before it joins. */
static void test_leaves(void **state)
{
    (void)state;
    orders o = {LEAVE, 2, 0, 0};
    setenv("TEST_LEAVE", "2", 1);
    sh_group *g = open_group(NULL, 3, &o, 0);
    double start = now_s();
    assert_int_equal(sh_group_ready(g, SH_OK), SH_EPEER);
    assert_true(now_s() - start < 2);
    assert_non_null(strstr(sh_err_message(), "rank 2 of 3"));
    assert_non_null(strstr(sh_err_message(), "status 7"));
    sh_group_close(g);
    unsetenv("TEST_LEAVE");
}

/* Rank 0 is killed: the others end. They hold the pipe's other end until they do. */
static void test_rank0_killed(void **state)
{
    int fd[2];
    char byte, text[16];
    pid_t pid;
    (void)state;
    assert_int_equal(pipe(fd), 0); /* inherited by all */
    snprintf(text, sizeof text, "%d", fd[1]);
    char *argv[] = {"test_group", "starter", text, NULL};
    OK(sh_spawn(&pid, NULL, argv, fd[1]));
    close(fd[1]);
    assert_int_equal(read(fd[0], &byte, 1), 1); /* the group stands */
    struct pollfd p = {.fd = fd[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 100), 0); /* and waits */
    kill(pid, SIGKILL);
    assert_int_equal(poll(&p, 1, 2000), 1);
    assert_int_equal(read(fd[0], &byte, 1), 0);
    sh_child_kill(&pid);
    close(fd[0]);
}

static int starter(int fd)
{
    orders o = {WAIT, 0, 0, 0};
    sh_group *g = open_group(NULL, 4, &o, 0);
    OK(sh_group_ready(g, SH_OK));
    if (write(fd, "+", 1) != 1) return 1;
    pause();
    return 1;
}

static void test_bad_options(void **state)
{
    sh_group *g;
    (void)state;
    assert_int_equal(sh_group_open(&g, &(sh_group_options){.n_rank = 0}), SH_EARG);
    assert_int_equal(sh_group_open(&g, &(sh_group_options){.n_rank = 9}), SH_EARG);
    assert_int_equal(sh_group_open(&g, &(sh_group_options){.n_rank = 2, .scheme = "self"}),
                     SH_EARG);
    assert_int_equal(sh_group_open(&g, &(sh_group_options){.n_rank = 1, .scheme = "fax"}), SH_EARG);
    assert_null(g);
    assert_int_equal(sh_group_shm.join(&g, 1, STDIN_FILENO), SH_EARG); /* not started by shoal */
    sh_group_close(NULL);
}

/* ---- under mpirun ---- */

static int n_mpi; /* ranks */

/* Groups one after the other, each doing as test_collectives has it. */
static void collect_mpi(uint64_t seed, int spin)
{
    orders o = {COLLECT, 0, 120, seed};
    sh_group *g = open_group(NULL, n_mpi, &o, spin);
    assert_string_equal(g->ops->scheme, "mpi");
    OK(sh_group_ready(g, SH_OK));
    sh_err mine = collect(g, &o);
    if (mine != SH_OK) print_message("# rank 0 of %d: %s\n", n_mpi, sh_err_message());
    OK(sh_group_ready(g, mine));
    size_t n = 0;
    OK(sh_group_bcast(g, (char[]){0}, 0, &n));
    sh_group_close(g);
}

static void test_mpi_collectives(void **state)
{
    (void)state;
    collect_mpi(1, 0);
    collect_mpi(2, 200);
    collect_mpi(3, 20000);
}

static void test_mpi_refuses(void **state)
{
    (void)state;
    for (int who = 1; who < n_mpi; who++) {
        char text[64];
        orders o = {REFUSE, who, 0, 0};
        sh_group *g = open_group(NULL, n_mpi, &o, 0);
        assert_int_equal(sh_group_ready(g, SH_OK), SH_EFILE);
        snprintf(text, sizeof text, "rank %d of %d: the file is torn", who, n_mpi);
        assert_string_equal(sh_err_message(), text);
        sh_group_close(g);
    }
    orders o = {WAIT, 0, 0, 0};
    sh_group *g = open_group(NULL, n_mpi, &o, 0);
    assert_int_equal(sh_group_ready(g, sh_fail(SH_ENOMEM, "rank 0 is full")), SH_ENOMEM);
    assert_string_equal(sh_err_message(), "rank 0 is full");
    sh_group_close(g);
}

/* A rank, be it rank 0, that closes the group while the others wait for it. */
static void test_mpi_quits(void **state)
{
    (void)state;
    for (int who = 0; who < n_mpi; who++) {
        char text[64];
        orders o = {QUIT, who, 40, (uint64_t)who};
        sh_group *g = open_group(NULL, n_mpi, &o, 100);
        OK(sh_group_ready(g, SH_OK));
        double start = now_s();
        assert_int_equal(collect(g, &o), who == 0 ? SH_EEND : SH_EPEER);
        snprintf(text, sizeof text, "rank %d of %d has ended its work", who, n_mpi);
        if (who > 0 && !strstr(sh_err_message(), text))
            fail_msg("%s: should say: %s", sh_err_message(), text);
        sh_group_close(g);
        assert_true(now_s() - start < 3);
    }
    collect_mpi(4, 0); /* nothing is left of all that */
}

static void test_mpi_options(void **state)
{
    sh_group *g, *other;
    orders o = {WAIT, 0, 0, 0};
    size_t n_byte = 0;
    int n = 0;
    (void)state;
    OK(sh_group_count(&n, "--tp"));
    assert_int_equal(n, n_mpi);
    n = n_mpi + 1;
    assert_int_equal(sh_group_count(&n, "--tp"), SH_EARG);
    assert_int_equal(sh_group_open(&g, &(sh_group_options){.n_rank = n_mpi + 1}), SH_EARG);
    g = open_group(NULL, n_mpi, &o, 0);
    OK(sh_group_ready(g, SH_OK));
    assert_int_equal(sh_group_open(&other, &(sh_group_options){.n_rank = n_mpi}), SH_EARG);
    OK(sh_group_open(&other, &(sh_group_options){.n_rank = 1, .part_floats = 1}));
    sh_group_close(other);
    OK(sh_group_bcast(g, (char[]){0}, 0, &n_byte));
    sh_group_close(g);
}

static int under_mpi(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mpi_options),
        cmocka_unit_test(test_mpi_collectives),
        cmocka_unit_test(test_mpi_refuses),
        cmocka_unit_test(test_mpi_quits),
    };
    bool more;
    int rank, status = 0;
    if (sh_mpi_start(&rank) != SH_OK || !sh_mpi_started()) return 1;
    if (rank == 0) {
        if (sh_group_count(&n_mpi, "-n") != SH_OK) return 1;
        status = cmocka_run_group_tests(tests, NULL, NULL);
    }
    while (rank > 0 && sh_mpi_next(&more) == SH_OK && more) status |= follow(rank, -1);
    sh_mpi_stop();
    return status;
}

/* ---- the canonical tree ---- */

/* The fewest aligned powers of two that tile [lo, hi), by trying all first pieces. */
static int fewest(int lo, int hi)
{
    int best = 99;
    if (lo == hi) return 0;
    for (int size = 1; size <= 8; size *= 2)
        if (lo % size == 0 && lo + size <= hi) {
            int n = 1 + fewest(lo + size, hi);
            if (n < best) best = n;
        }
    return best;
}

static void test_roots(void **state)
{
    (void)state;
    for (int lo = 0; lo <= 8; lo++)
        for (int hi = lo; hi <= 8; hi++) {
            sh_range root[SH_MAX_ROOT];
            int n = sh_tree_roots((sh_range){lo, hi}, root), at = lo;
            assert_int_equal(n, fewest(lo, hi));
            assert_in_range(n, 0, SH_MAX_ROOT);
            for (int i = 0; i < n; at = root[i++].hi) {
                int size = sh_range_n(root[i]);
                assert_int_equal(root[i].lo, at);
                assert_true(size > 0 && (size & (size - 1)) == 0 && at % size == 0);
            }
            assert_int_equal(at, hi);
        }
}

static void test_shares(void **state)
{
    (void)state;
    for (int n = 1; n <= 8; n++)
        for (int r = 0, at = 0; r < n; r++) {
            sh_range s = sh_rank_slices(r, n);
            assert_int_equal(s.lo, at);
            assert_true(s.hi > s.lo && (r < n - 1 || s.hi == 8));
            at = s.hi;
        }
}

typedef struct given {
    float *p[SH_MAX_RANK * SH_MAX_ROOT];
    sh_range r[SH_MAX_RANK * SH_MAX_ROOT];
    int n;
} given;

static const float *find(const void *arg, sh_range r)
{
    const given *g = arg;
    for (int i = 0; i < g->n; i++)
        if (g->r[i].lo == r.lo && g->r[i].hi == r.hi) return g->p[i];
    return NULL;
}

static void test_tree_sum(void **state)
{
    enum { N = 2 * SH_SUM_BLOCK };
    (void)state;
    for (int n_rank = 1; n_rank <= 8; n_rank++) {
        given g = {.n = 0};
        float y[SH_SUM_BLOCK + 1];
        for (int r = 0; r < n_rank; r++) {
            int m = sh_tree_roots(sh_rank_slices(r, n_rank), &g.r[g.n]);
            for (; m > 0; m--, g.n++) {
                assert_non_null(g.p[g.n] = malloc(N * sizeof *y));
                for (size_t i = 0; i < N; i++) g.p[g.n][i] = tree(3, g.r[g.n].lo, g.r[g.n].hi, i);
            }
        }
        for (size_t n = 1; n <= SH_SUM_BLOCK;
             n = n * 3 + 1 > SH_SUM_BLOCK && n < SH_SUM_BLOCK ? SH_SUM_BLOCK : n * 3 + 1) {
            size_t at = N - SH_SUM_BLOCK - n % 7;
            y[n] = 77;
            sh_tree_sum(y, at, n, find, &g);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(sh_f32_bits(y[i]), sh_f32_bits(tree(3, 0, 8, at + i)));
            assert_true(y[n] == 77);
        }
        for (int i = 0; i < g.n; i++) free(g.p[i]);
    }
}

int main(int argc, char **argv)
{
    static char path[4096];
    if (argc == 4 && strcmp(argv[1], "rank") == 0) return follow(atoi(argv[2]), atoi(argv[3]));
    if (argc == 2 && strcmp(argv[1], "mpi") == 0) return under_mpi();
    if (readlink("/proc/self/exe", path, sizeof path - 1) <= 0) return 1;
    setenv("SHOAL_PROGRAM", path, 1);
    if (argc == 3 && strcmp(argv[1], "starter") == 0) return starter(atoi(argv[2]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roots),        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_tree_sum),     cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_collectives),  cmocka_unit_test(test_killed),
        cmocka_unit_test(test_refuses),      cmocka_unit_test(test_leaves),
        cmocka_unit_test(test_rank0_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
