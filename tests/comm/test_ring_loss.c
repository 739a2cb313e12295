/* Nodes that die, stop, fail or take long: who is lost is named within the promised time, who lives
 * on serves the next session, and who is only busy is not taken for dead. */
#define _GNU_SOURCE
#include "ring_kit.h"

/* ---- who dies ---- */

static void test_killed(void **state)
{
    (void)state;
    float x[8 * 3];
    for (int victim = 0; victim < 3; victim++) {
        cluster c;
        cluster_start(&c, 3, "127.0.0.1");
        sh_ring *r = open_ring(&c, 8, 3);
        go_round(r, 3, 20, 4, 8, 3);
        for (uint64_t i = 1; i <= 50; i++) OK(send_step(r, i, 8, 3, x));
        int64_t t = sh_link_now_ms();
        finish(&c.w[victim]);
        const char *why = ends_with(r, 9000, x);
        assert_says(why, text_of(&c.addr[victim]));
        assert_says(why, "lost");
        assert_true(sh_link_now_ms() - t < 2000);
        for (uint64_t i = 1; i <= 20; i++) assert_int_equal(send_step(r, i, 8, 3, x), SH_EPEER);
        assert_string_equal(ends_with(r, 100, x), why);
        sh_ring_close(r);
        c.w[victim] = worker_start("127.0.0.1", c.addr[victim].port, (behaviour){0});
        r = open_ring(&c, 8, 3);
        go_round(r, 3, 20, 4, 8, 3);
        sh_ring_close(r);
        cluster_end(&c);
    }
}

static void test_starter_killed(void **state)
{
    (void)state;
    cluster c;
    cluster_start(&c, 2, "127.0.0.1");
    for (int i = 0; i < 2; i++) {
        process s = starter_start(&c);
        assert_int_equal(heard(&s, 8000), 'r');
        finish(&s);
        for (int k = 0; k < 2; k++) {
            assert_int_equal(heard(&c.w[k], 2000), 'L');
            assert_int_equal(heard(&c.w[k], 2000), 'S');
            assert_int_equal(heard(&c.w[k], 2000), 'E');
        }
    }
    cluster_end(&c);
    /* A starter dies while the worker loads; the next one greets before the worker has seen it. */
    cluster_start(&c, 1, "127.0.0.1");
    finish(&c.w[0]);
    c.w[0] = worker_start("127.0.0.1", c.addr[0].port, (behaviour){.slow_load_ms = 700});
    process s = starter_start(&c);
    assert_int_equal(heard(&c.w[0], 8000), 'L');
    finish(&s);
    sh_ring *r = open_ring(&c, 8, 3);
    go_round(r, 1, 5, 2, 8, 3);
    sh_ring_close(r);
    const char *order = "ELSE";
    for (int i = 0; i < 4; i++) assert_int_equal(heard(&c.w[0], 3000), order[i]);
    cluster_end(&c);
}

static void test_fail(void **state)
{
    (void)state;
    cluster c;
    float x[8 * 3];
    cluster_start(&c, 3, "127.0.0.1");
    for (int i = 0; i < 3; i++) { /* also of a node that is gone right after */
        behaviour b = {.fail_step = 3, .fail_ends = i > 0};
        finish(&c.w[1]);
        c.w[1] = worker_start("127.0.0.1", c.addr[1].port, b);
        sh_ring *r = open_ring(&c, 8, 3);
        go_round(r, 3, 2, 2, 8, 3);
        OK(send_step(r, 3, 8, 3, x));
        const char *why = ends_with(r, 3000, x);
        assert_says(why, text_of(&c.addr[1]));
        assert_says(why, "the cooling [31m fan stands still"); /* the escape character is gone */
        sh_ring_close(r);
    }
    cluster_end(&c);
}

/* ---- what takes its time: all of it at once ---- */

static void test_slow(void **state)
{
    (void)state;
    float x[8 * 3];
    cluster stopped, computing, orphan, silent;
    cluster_start(&stopped, 2, "127.0.0.1");
    cluster_start(&computing, 1, "127.0.0.1");
    cluster_start(&orphan, 1, "127.0.0.1");
    cluster_start(&silent, 1, "127.0.0.1");
    finish(&computing.w[0]);
    behaviour b = {.slow_step = 2};
    computing.w[0] = worker_start("127.0.0.1", computing.addr[0].port, b);

    process long_run = {.pid = start()}; /* a node that computes for long is not taken for dead */
    if (long_run.pid == 0) {
        sh_ring *r = open_ring(&computing, 8, 3);
        go_round(r, 1, 4, 2, 8, 3);
        sh_ring_close(r);
        _exit(0);
    }
    process frozen = starter_start(&orphan); /* a starter whose host vanishes */
    assert_int_equal(heard(&frozen, 8000), 'r');
    kill(frozen.pid, SIGSTOP);
    process mute = {.pid = start()}; /* a stranger that says HELLO and no more */
    if (mute.pid == 0) {
        sh_frame hello = {.type = SH_FRAME_HELLO, .protocol = SH_PROTOCOL};
        send_frame(socket_to(zmq_ctx_new(), ZMQ_DEALER, silent.addr[0].port), &hello);
        for (;;) pause();
    }

    sh_ring *r = open_ring(&stopped, 8, 3); /* a worker whose host vanishes */
    go_round(r, 2, 5, 2, 8, 3);
    int64_t t = sh_link_now_ms();
    kill(stopped.w[1].pid, SIGSTOP);
    OK(send_step(r, 1, 8, 3, x));
    assert_says(ends_with(r, 15000, x), text_of(&stopped.addr[1]));
    assert_true(sh_link_now_ms() - t < 10000);
    sh_ring_close(r);

    assert_int_equal(heard(&orphan.w[0], 100), 'L');
    assert_int_equal(heard(&orphan.w[0], 100), 'S');
    assert_int_equal(heard(&orphan.w[0], (int)(t + 9500 - sh_link_now_ms())), 'E');
    expect_no_ring(&silent, 2000, "busy");
    kill(stopped.w[1].pid, SIGCONT); /* it comes back and serves the next */
    r = open_ring(&stopped, 8, 3);
    go_round(r, 2, 5, 2, 8, 3);
    sh_ring_close(r);
    poll(NULL, 0, (int)(t + 10500 - sh_link_now_ms()));
    r = open_ring(&silent, 8, 3);
    go_round(r, 1, 5, 2, 8, 3);
    sh_ring_close(r);
    int status;
    assert_int_equal(waitpid(long_run.pid, &status, 0), long_run.pid);
    assert_int_equal(status, 0);
    finish(&frozen);
    finish(&mute);
    cluster_end(&stopped);
    cluster_end(&computing);
    cluster_end(&orphan);
    cluster_end(&silent);
}

int main(void)
{
    alarm(LIFE_S);
    sh_log_set_level(getenv("SHOW_LOG") ? SH_LOG_DEBUG : SH_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_starter_killed),
        cmocka_unit_test(test_fail),
        cmocka_unit_test(test_slow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
