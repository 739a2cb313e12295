/* The thread pool: every thread runs every region once, regions see what earlier ones wrote, with
 * fewer and with more threads than cores, spinning and sleeping. Also run under TSan. */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "base/threads.h"

enum { MAX_THREAD = 16, N_ITEM = 1000, N_REGION = 300 };

typedef struct work {
    int ran[MAX_THREAD]; /* how often thread i ran */
    int n_thread;        /* as the threads were told */
    int64_t item[N_ITEM], sum[MAX_THREAD];
} work;

static void count(void *arg, int thread, int n_thread)
{
    work *w = arg;
    w->ran[thread]++;
    if (thread == 0) w->n_thread = n_thread;
}

/* Every thread its share, without locks: a share that overlaps is a race that TSan sees. */
static void add_to_items(void *arg, int thread, int n_thread)
{
    work *w = arg;
    int lo, hi;
    sh_share(N_ITEM, thread, n_thread, &lo, &hi);
    for (int i = lo; i < hi; i++) w->item[i] += i;
}

/* Reads what the others wrote in the region before. */
static void sum_items(void *arg, int thread, int n_thread)
{
    work *w = arg;
    (void)n_thread;
    w->sum[thread] = 0;
    for (int i = 0; i < N_ITEM; i++) w->sum[thread] += w->item[i];
}

static void each_thread_once(void **state)
{
    static const int n_thread[] = {1, 2, 3, 4, 7, MAX_THREAD};
    (void)state;
    for (size_t i = 0; i < sizeof n_thread / sizeof *n_thread; i++)
        for (int spin = 0; spin <= 2000; spin += 2000) {
            work w = {0};
            sh_pool *p;
            assert_int_equal(sh_pool_open(&p, n_thread[i], NULL, spin), SH_OK);
            assert_int_equal(sh_pool_n_thread(p), n_thread[i]);
            for (int r = 1; r <= N_REGION; r++) {
                sh_pool_run(p, count, &w);
                for (int t = 0; t < n_thread[i]; t++) assert_int_equal(w.ran[t], r);
                assert_int_equal(w.n_thread, n_thread[i]);
            }
            sh_pool_close(p);
        }
}

static void regions_follow_each_other(void **state)
{
    (void)state;
    for (int n = 1; n <= 5; n++) {
        work w = {0};
        sh_pool *p;
        assert_int_equal(sh_pool_open(&p, n, NULL, 100), SH_OK);
        for (int r = 1; r <= N_REGION; r++) {
            sh_pool_run(p, add_to_items, &w);
            sh_pool_run(p, sum_items, &w);
            for (int t = 0; t < n; t++)
                assert_int_equal(w.sum[t], (int64_t)r * N_ITEM * (N_ITEM - 1) / 2);
        }
        sh_pool_close(p);
    }
}

typedef struct waiting {
    int left[MAX_THREAD], called[MAX_THREAD]; /* each thread's own: TSan sees another's call */
} waiting;

static void late(void *arg, int thread, int n_thread)
{
    const struct timespec a_little = {.tv_nsec = 200000};
    waiting *w = arg;
    w->left[thread] = 3;
    if (thread == n_thread - 1) nanosleep(&a_little, NULL);
}

static bool idle(void *arg, int thread)
{
    waiting *w = arg;
    w->called[thread]++;
    return --w->left[thread] > 0;
}

static void waits_usefully(void **state)
{
    waiting w = {0};
    sh_pool *p;
    int n = 0;
    (void)state;
    assert_int_equal(sh_pool_open(&p, 3, NULL, 100), SH_OK);
    sh_pool_idle(p, idle, &w);
    for (int r = 0; r < 1000 && !(w.called[0] && w.called[1]); r++, n++) sh_pool_run(p, late, &w);
    sh_pool_close(p);
    /* thread 0 may wait twice in a region, for each of the others, and is done at the second call
     */
    assert_in_range(w.called[0], 1, 4 * n);
    for (int t = 1; t < 3; t++) assert_in_range(w.called[t], t < 2, 3 * n);
}

static void wakes_after_sleeping(void **state)
{
    const struct timespec pause = {.tv_nsec = 3000000};
    work w = {0};
    sh_pool *p;
    (void)state;
    assert_int_equal(sh_pool_open(&p, 3, NULL, 10), SH_OK);
    for (int r = 1; r <= 20; r++) {
        nanosleep(&pause, NULL); /* long past the spinning */
        sh_pool_run(p, count, &w);
        for (int t = 0; t < 3; t++) assert_int_equal(w.ran[t], r);
    }
    sh_pool_close(p);
}

static void opens_and_closes(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) { /* some without a single region */
        work w = {0};
        sh_pool *p;
        assert_int_equal(sh_pool_open(&p, 1 + i % 5, NULL, 0), SH_OK);
        for (int r = 0; r < i % 3; r++) sh_pool_run(p, count, &w);
        assert_int_equal(w.ran[i % 5], i % 3);
        sh_pool_close(p);
    }
    sh_pool_close(NULL);
}

static void two_pools_at_once(void **state)
{
    work a = {0}, b = {0};
    sh_pool *p, *q;
    (void)state;
    assert_int_equal(sh_pool_open(&p, 2, NULL, 0), SH_OK);
    assert_int_equal(sh_pool_open(&q, 3, NULL, 0), SH_OK);
    for (int r = 1; r <= 100; r++) {
        sh_pool_run(p, count, &a);
        sh_pool_run(q, count, &b);
        assert_int_equal(a.ran[1], r);
        assert_int_equal(b.ran[2], r);
    }
    sh_pool_close(p);
    sh_pool_close(q);
}

static void shares_tile(void **state)
{
    (void)state;
    for (int n_item = 0; n_item < 40; n_item++)
        for (int n = 1; n <= 9; n++) {
            int at = 0, lo, hi;
            for (int i = 0; i < n; i++) {
                sh_share(n_item, i, n, &lo, &hi);
                assert_int_equal(lo, at);
                assert_in_range(hi - lo, n_item / n, n_item / n + 1);
                at = hi;
            }
            assert_int_equal(at, n_item);
        }
}

/* Adds to item i; flags a thread that is none, and floating point that is not a region's. */
static void add_to_item(void *arg, int i, int thread)
{
    work *w = arg;
    volatile float least = 0x1p-126f, half = least * 0.5f;
    w->item[i] += i + 1;
    if (thread < 0 || thread >= w->n_thread || half != 0.0f) w->item[i] = -1;
}

/* Each item once, however many there are for the threads; what one call did the next one sees. */
static void each_item_once(void **state)
{
    static const int n_item[] = {0, 1, 2, 5, N_ITEM};
    (void)state;
    for (int n = 1; n <= 5; n++)
        for (size_t j = 0; j < sizeof n_item / sizeof *n_item; j++) {
            work w = {.n_thread = n};
            sh_pool *p;
            assert_int_equal(sh_pool_open(&p, n, NULL, 100), SH_OK);
            for (int r = 0; r < 50; r++) sh_pool_each(p, n_item[j], add_to_item, &w);
            for (int i = 0; i < N_ITEM; i++)
                assert_int_equal(w.item[i], i < n_item[j] ? 50 * (i + 1) : 0);
            sh_pool_close(p);
        }
}

/* Half of the least normal number is zero in a region, on every thread, and only there. */
static void halve(void *arg, int thread, int n_thread)
{
    volatile float least = 0x1p-126f, half = least * 0.5f;
    (void)n_thread;
    ((int *)arg)[thread] = half == 0.0f;
}

static void flushes_to_zero(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++) {
        int flushed[4] = {0};
        volatile float least = 0x1p-126f;
        sh_pool *p;
        assert_int_equal(sh_pool_open(&p, n, NULL, 0), SH_OK);
        sh_pool_run(p, halve, flushed);
        for (int t = 0; t < n; t++) assert_int_equal(flushed[t], 1);
        assert_true(least * 0.5f > 0.0f);
        sh_pool_close(p);
    }
}

/* The only CPU that the thread may run on; -1: it has several. */
static void note_cpu(void *arg, int thread, int n_thread)
{
    cpu_set_t set;
    int *only = (int *)arg + thread;
    (void)n_thread;
    *only = -1;
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) != 1) return;
    while (!CPU_ISSET(++*only, &set)) {
    }
}

/* Threads run where they are told to; the caller is free again afterwards. */
static void ties_to_cpus(void **state)
{
    int ran[3], cpu[3];
    cpu_set_t before, after;
    sh_pool *p;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int i = CPU_SETSIZE - 1; i >= 0; i--)
        if (CPU_ISSET(i, &before)) cpu[0] = cpu[1] = cpu[2] = i;
    cpu[2] = -1;
    assert_int_equal(sh_pool_open(&p, 3, cpu, 0), SH_OK);
    sh_pool_run(p, note_cpu, ran);
    assert_true(ran[0] == cpu[0] && ran[1] == cpu[1]);
    assert_true(ran[2] == -1 || CPU_COUNT(&before) == 1);
    sh_pool_close(p);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

static void bad_counts(void **state)
{
    sh_pool *p = (sh_pool *)&p;
    (void)state;
    assert_int_equal(sh_pool_open(&p, 0, NULL, 0), SH_EARG);
    assert_null(p);
    assert_int_equal(sh_pool_open(&p, -5, NULL, 0), SH_EARG);
    assert_int_equal(sh_pool_open(&p, 1 << 30, NULL, 0), SH_EARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_thread_once), cmocka_unit_test(regions_follow_each_other),
        cmocka_unit_test(waits_usefully),   cmocka_unit_test(wakes_after_sleeping),
        cmocka_unit_test(opens_and_closes), cmocka_unit_test(two_pools_at_once),
        cmocka_unit_test(shares_tile),      cmocka_unit_test(flushes_to_zero),
        cmocka_unit_test(ties_to_cpus),     cmocka_unit_test(bad_counts),
        cmocka_unit_test(each_item_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
