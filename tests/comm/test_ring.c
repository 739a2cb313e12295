/* The ring over real sockets: what goes in comes round, in order, from any number of nodes; a node
 * that is not there, refuses or is busy is named; ports are free again at once. */
#define _GNU_SOURCE
#include "ring_kit.h"

/* ---- what goes in comes round ---- */

static void test_round(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++) {
        cluster c;
        cluster_start(&c, n, "127.0.0.1");
        for (int session = 0; session < 2;
             session++) { /* workers serve one starter after the other */
            sh_ring *r = open_ring(&c, 8, 33);
            assert_int_equal(sh_ring_welcome(r, n - 1)->n_layer, 7);
            assert_int_equal(sh_ring_welcome(r, n - 1)->n_rank, 3);
            assert_true(sh_ring_welcome(r, n - 1)->has_amx);
            assert_string_equal(sh_ring_welcome(r, n - 1)->version, "test");
            go_round(r, n, 200, 1 + 3 * session * n, 8, 33);
            sh_ring_close(r);
            for (int i = 0; i < n; i++) {
                assert_int_equal(heard(&c.w[i], 2000), 'L');
                assert_int_equal(heard(&c.w[i], 2000), 'S');
                assert_int_equal(heard(&c.w[i], 2000), 'E');
            }
        }
        cluster_end(&c);
    }
}

static void test_large(void **state)
{
    (void)state;
    cluster c;
    cluster_start(&c, 2, "127.0.0.1");
    sh_ring *r = open_ring(&c, 512, 4096); /* 8 MiB a microbatch */
    go_round(r, 2, 12, 4, 512, 4096);
    sh_ring_close(r);
    cluster_end(&c);
}

static bool has_ipv6(void)
{
    int s = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool yes = s >= 0 && bind(s, (struct sockaddr *)&a, sizeof a) == 0;
    if (s >= 0) close(s);
    return yes;
}

static void test_names(void **state)
{
    (void)state;
    const char *host[] = {"localhost", "::1"};
    for (int i = 0; i < 1 + has_ipv6(); i++) {
        cluster c;
        cluster_start(&c, 2, host[i]);
        sh_ring *r = open_ring(&c, 4, 5);
        go_round(r, 2, 10, 3, 4, 5);
        sh_ring_close(r);
        cluster_end(&c);
    }
    const char *listens[] = {"", "127.0.0.1"}; /* every address; one of those that a name has */
    for (int i = 0; i < 2; i++) {
        cluster c;
        cluster_start(&c, 1, listens[i]);
        snprintf(c.nodes.starter.host, 20, "127.0.0.1");
        snprintf(c.addr[0].host, 20, i ? "localhost" : "127.0.0.1");
        sh_ring *r = open_ring(&c, 4, 5);
        go_round(r, 1, 10, 3, 4, 5);
        sh_ring_close(r);
        cluster_end(&c);
    }
}

/* ---- who is not there, or refuses ---- */

static int listen_at(int port)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s, 5), 0);
    return s;
}

static void test_missing(void **state)
{
    (void)state;
    cluster c;
    cluster_start(&c, 2, "127.0.0.1");
    int there = c.addr[1].port;
    c.addr[1].port = free_port();
    expect_no_ring(&c, 700, text_of(&c.addr[1]));
    assert_says(sh_err_message(), "shoal worker --listen");
    snprintf(c.addr[1].host, 40, "no-such-host.invalid");
    expect_no_ring(&c, 3000, "no-such-host.invalid");
    assert_says(sh_err_message(), "does not resolve");
    snprintf(c.addr[1].host, 40, "127.0.0.1");

    int s = listen_at(c.addr[1].port); /* somebody else's */
    expect_no_ring(&c, 700, text_of(&c.addr[1]));
    assert_says(sh_err_message(), "not answer as a shoal worker");
    close(s);

    c.addr[1].port = there; /* those who were there are free again */
    sh_ring *r = open_ring(&c, 4, 3);
    go_round(r, 2, 3, 1, 4, 3);
    sh_ring_close(r);
    cluster_end(&c);
}

static void test_late(void **state)
{
    (void)state; /* a worker that starts a little after the starter is found */
    cluster c = {.nodes = {.secondary = c.addr, .n_secondary = 1}};
    snprintf(c.nodes.starter.host, 20, "127.0.0.1");
    snprintf(c.addr[0].host, 20, "127.0.0.1");
    c.addr[0].port = free_port();
    pid_t pid = start();
    if (pid == 0) {
        sh_ring *r = open_ring(&c, 4, 3);
        go_round(r, 1, 3, 1, 4, 3);
        sh_ring_close(r);
        _exit(0);
    }
    poll(NULL, 0, 400);
    c.w[0] = worker_start("127.0.0.1", c.addr[0].port, (behaviour){0});
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    cluster_end(&c);
}

static void test_refused(void **state)
{
    (void)state;
    cluster c;
    sh_ring *r;
    sh_load load = {.stage = 1, .n_stage = 2, .n_embd = 3, .n_ctx = 9, .n_slot = 1, .n_batch = 2};
    cluster_start(&c, 1, "127.0.0.1");
    OK(sh_ring_open(&r, &c.nodes, 8000));
    load.n_batch = 0;
    assert_int_equal(sh_ring_load(r, &load), SH_EARG);
    load.n_batch = 2;
    assert_int_equal(sh_ring_load(r, &load), SH_EPEER);
    assert_says(sh_err_message(), "another model is here");
    assert_says(sh_err_message(), text_of(&c.addr[0]));
    sh_ring_close(r);
    c.addr[0].port_in =
        c.addr[0].port; /* a port that is taken is refused before anything is loaded */
    OK(sh_ring_open(&r, &c.nodes, 8000));
    assert_int_equal(load_ring(r, 1, 4, 3), SH_EPEER);
    assert_says(sh_err_message(), "in use");
    sh_ring_close(r);
    /* A port that comes free soon is waited for. */
    c.addr[0].port_in = free_port();
    int held = listen_at(c.addr[0].port_in);
    pid_t holder = start();
    if (holder == 0) {
        poll(NULL, 0, 300);
        _exit(0);
    }
    close(held);
    for (int i = 0; i < 3; i++) { /* the same fixed port, at once again */
        r = open_ring(&c, 4, 3);
        go_round(r, 1, 3, 1, 4, 3);
        sh_ring_close(r);
    }
    waitpid(holder, NULL, 0);
    cluster_end(&c);
}

static void test_busy(void **state)
{
    (void)state;
    cluster c;
    cluster_start(&c, 2, "127.0.0.1");
    sh_ring *r = open_ring(&c, 4, 3);
    expect_no_ring(&c, 5000, "busy with a starter at 127.0.0.1");
    go_round(r, 2, 3, 1, 4, 3);
    sh_ring_close(r);
    cluster_end(&c);
}

/* ---- ports and stopping ---- */

static void test_listen(void **state)
{
    (void)state;
    process w = worker_start("127.0.0.1", 0, (behaviour){0});
    sh_worker_link *l;
    sh_node_addr a = {.host = "127.0.0.1", .port = w.port};
    sh_welcome self = {0};
    assert_int_equal(sh_worker_listen(&l, &a, &self), SH_EARG);
    assert_null(l);
    assert_says(sh_err_message(), text_of(&a));
    assert_says(sh_err_message(), "in use");
    snprintf(a.host, sizeof a.host, "192.0.2.1");
    assert_int_equal(sh_worker_listen(&l, &a, &self), SH_EARG);
    assert_says(sh_err_message(), "does not have that address");
    close(w.stop); /* stops it */
    w.stop = 0;
    int status;
    assert_int_equal(waitpid(w.pid, &status, 0), w.pid);
    assert_int_equal(status, 0);
    w.pid = 0;
    snprintf(a.host, sizeof a.host, "127.0.0.1"); /* and its port is free at once */
    OK(sh_worker_listen(&l, &a, &self));
    assert_int_equal(sh_worker_port(l), a.port);
    sh_worker_close(l);
    finish(&w);
}

int main(void)
{
    alarm(LIFE_S);
    sh_log_set_level(getenv("SHOW_LOG") ? SH_LOG_DEBUG : SH_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round), cmocka_unit_test(test_large),
        cmocka_unit_test(test_names), cmocka_unit_test(test_missing),
        cmocka_unit_test(test_late),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_busy),  cmocka_unit_test(test_listen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
