/* The ring over real sockets on 127.0.0.1: every node is a process. What must hold: what goes in
 * comes round, in order; whoever dies is named soon; whoever does not belong changes nothing. Every
 * process ends by itself after LIFE_S, and its children die with the test. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "comm/hop.h"
#include "comm/link.h"
#include "comm/ring.h"
#include "comm/wire.h"

enum { LIFE_S = 100, MAX_NODE = 5, SLOW_MS = 9000 };

static const uint8_t model[16] = "the right model";

/* ---- processes ---- */

typedef struct process {
    pid_t pid;
    int from; /* what it tells us, a letter for each event */
    int stop; /* closing it stops a worker */
    int port;
} process;

static pid_t start(void)
{
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(9);
        alarm(LIFE_S);
        setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure here ends this process, not the test's */
    }
    return pid;
}

static void finish(process *p)
{
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    if (p->from > 0) close(p->from);
    if (p->stop > 0) close(p->stop);
    *p = (process){0};
}

/* The next letter within ms; 0 if none. */
static char heard(const process *p, int ms)
{
    struct pollfd f = {.fd = p->from, .events = POLLIN};
    char c = 0;
    return poll(&f, 1, ms) == 1 && read(p->from, &c, 1) == 1 ? c : 0;
}

static void say(int fd, char c)
{
    if (write(fd, &c, 1) != 1) _exit(8);
}

/* ---- steps that both sides can make ---- */

enum { SLOTS = 20, CTX = 1000 };

static uint32_t rnd(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33);
}

static void make_step(sh_step *s, uint64_t id, uint32_t n_batch)
{
    uint64_t seed = id * 977 + 5;
    sh_step_clear(s);
    s->id = id;
    for (uint32_t i = rnd(&seed) % 4; i > 0; i--) {
        uint32_t slot = rnd(&seed) % (SLOTS - 1);
        sh_step_op op = {rnd(&seed) % 2 ? SH_OP_FREE : SH_OP_FORK, slot, slot + 1,
                         rnd(&seed) % CTX};
        assert_int_equal(sh_step_add_op(s, op), SH_OK);
    }
    for (uint32_t left = n_batch - rnd(&seed) % (n_batch / 2 + 1); left > 0;) {
        sh_step_seq q = {rnd(&seed) % SLOTS, rnd(&seed) % 100, rnd(&seed) % left + 1, id & 1,
                         id & 2};
        assert_int_equal(sh_step_add_seq(s, q), SH_OK);
        left -= q.n_tok;
    }
}

static bool same_step(const sh_step *a, const sh_step *b)
{
    sh_buf x = {0}, y = {0};
    sh_step_encode(a, &x);
    sh_step_encode(b, &y);
    bool same = x.n == y.n && memcmp(x.p, y.p, x.n) == 0 && a->n_tok == b->n_tok;
    sh_buf_free(&x);
    sh_buf_free(&y);
    return same;
}

/* ---- workers ---- */

typedef struct behaviour {
    uint64_t slow_step; /* computes this step for SLOW_MS without looking at the network */
    uint64_t fail_step; /* reports a failure at this one */
    int slow_load_ms;
} behaviour;

static void worker_run(sh_worker_link *w, int to, int stop_fd, behaviour b)
{
    sh_step step = {0}, want = {0};
    sh_load load = {0};
    float *x = NULL;
    for (;;) {
        sh_worker_event e;
        if (sh_worker_wait(w, stop_fd, &e, &load, &step, x)) _exit(7);
        if (e == SH_WORKER_STOP) break;
        if (e == SH_WORKER_END) say(to, 'E');
        if (e == SH_WORKER_LOAD) {
            say(to, 'L');
            free(x);
            x = malloc((size_t)load.n_batch * load.n_embd * 4);
            poll(NULL, 0, b.slow_load_ms);
            bool right = memcmp(load.model_hash, model, sizeof model) == 0;
            if (right ? sh_worker_ready(w) : sh_worker_refuse(w, "another model is here")) _exit(7);
        }
        if (e == SH_WORKER_STEP) {
            make_step(&want, step.id, load.n_batch);
            if (step.id == 1) say(to, 'S');
            if (!same_step(&step, &want)) {
                sh_worker_fail(w, "the step arrived changed");
                continue;
            }
            if (b.slow_step && step.id == b.slow_step) {
                say(to, 'w');
                poll(NULL, 0, SLOW_MS);
            }
            if (b.fail_step && step.id == b.fail_step) {
                sh_worker_fail(w, "the cooling\033[31m fan stands still");
                continue;
            }
            for (size_t i = 0; i < (size_t)step.n_tok * load.n_embd; i++) x[i] += 1;
            if (sh_worker_forward(w, &step, x)) _exit(7);
        }
    }
    sh_worker_close(w);
    sh_step_free(&step);
    sh_step_free(&want);
    free(x);
}

static process worker_start(const char *host, int port, behaviour b)
{
    int up[2], down[2];
    process p = {0};
    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    if ((p.pid = start()) == 0) {
        sh_worker_link *w;
        sh_node_addr a = {.port = port};
        sh_welcome self = {
            .n_layer = 7, .n_embd = 64, .has_amx = true, .version = "test", .n_rank = 3};
        close(up[0]);
        close(down[1]);
        memcpy(self.model_hash, model, sizeof model);
        snprintf(a.host, sizeof a.host, "%s", host);
        if (sh_worker_listen(&w, &a, &self)) {
            fprintf(stderr, "%s\n", sh_err_message());
            _exit(6);
        }
        int bound = sh_worker_port(w);
        if (write(up[1], &bound, sizeof bound) != sizeof bound) _exit(8);
        worker_run(w, up[1], down[0], b);
        _exit(0);
    }
    close(up[1]);
    close(down[0]);
    p.from = up[0];
    p.stop = down[1];
    assert_int_equal(read(p.from, &p.port, sizeof p.port), sizeof p.port);
    return p;
}

/* ---- starters ---- */

typedef struct cluster {
    process w[MAX_NODE];
    sh_node_addr addr[MAX_NODE];
    sh_nodes nodes;
} cluster;

static void cluster_start(cluster *c, int n, const char *host)
{
    *c = (cluster){.nodes = {.secondary = c->addr, .n_secondary = n}};
    snprintf(c->nodes.starter.host, sizeof c->nodes.starter.host, "%s", host);
    for (int i = 0; i < n; i++) {
        c->w[i] = worker_start(host, 0, (behaviour){0});
        c->addr[i].port = c->w[i].port;
        snprintf(c->addr[i].host, sizeof c->addr[i].host, "%s", host);
    }
}

static void cluster_end(cluster *c)
{
    for (int i = 0; i < c->nodes.n_secondary; i++) finish(&c->w[i]);
}

static sh_err load_ring(sh_ring *r, int n, uint32_t n_batch, uint32_t n_embd)
{
    sh_load load[MAX_NODE] = {0};
    for (int i = 0; i < n; i++) {
        load[i] = (sh_load){.stage = (uint32_t)i + 1,
                            .n_stage = (uint32_t)n + 1,
                            .n_embd = n_embd,
                            .n_ctx = CTX,
                            .n_slot = SLOTS,
                            .n_batch = n_batch};
        memcpy(load[i].model_hash, model, sizeof model);
    }
    return sh_ring_load(r, load);
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s: %s", #call, sh_err_message());                          \
    } while (0)

static sh_ring *open_ring(cluster *c, uint32_t n_batch, uint32_t n_embd)
{
    sh_ring *r;
    OK(sh_ring_open(&r, &c->nodes, 8000));
    OK(load_ring(r, c->nodes.n_secondary, n_batch, n_embd));
    return r;
}

static sh_err send_step(sh_ring *r, uint64_t id, uint32_t n_batch, uint32_t n_embd, float *x)
{
    sh_step s = {0};
    make_step(&s, id, n_batch);
    for (size_t i = 0; i < (size_t)s.n_tok * n_embd; i++) x[i] = (float)(id * 16 + i % 1000);
    sh_err err = sh_ring_send(r, &s, x);
    sh_step_free(&s);
    return err;
}

static void expect_step(sh_ring *r, int n, uint64_t id, uint32_t n_batch, uint32_t n_embd, float *x)
{
    sh_step s = {0};
    uint64_t got_id;
    uint32_t n_tok;
    bool got;
    OK(sh_ring_recv(r, 20000, &got, &got_id, &n_tok, x));
    assert_true(got);
    make_step(&s, id, n_batch);
    assert_int_equal(got_id, id);
    assert_int_equal(n_tok, s.n_tok);
    for (size_t i = 0; i < (size_t)n_tok * n_embd; i++)
        if (x[i] != (float)(id * 16 + i % 1000 + (uint64_t)n))
            fail_msg("step %d, float %zu", (int)id, i);
    sh_step_free(&s);
}

/* n_step microbatches go round, `flight` of them at a time. */
static void go_round(sh_ring *r, int n, int n_step, int flight, uint32_t n_batch, uint32_t n_embd)
{
    float *x = malloc((size_t)n_batch * n_embd * 4);
    for (int i = 1; i <= n_step + flight; i++) {
        if (i > flight) expect_step(r, n, (uint64_t)(i - flight), n_batch, n_embd, x);
        if (i <= n_step) OK(send_step(r, (uint64_t)i, n_batch, n_embd, x));
    }
    free(x);
}

/* The error that the ring ends in, as a sentence, within ms. */
static const char *ends_with(sh_ring *r, int ms, float *x)
{
    int64_t until = sh_link_now_ms() + ms;
    while (sh_link_now_ms() < until) {
        bool got;
        uint64_t id;
        uint32_t n_tok;
        sh_err err = sh_ring_recv(r, 200, &got, &id, &n_tok, x);
        if (err) {
            assert_int_equal(err, SH_EPEER);
            return sh_err_message();
        }
    }
    return "no error";
}

static void assert_says(const char *sentence, const char *what)
{
    if (!strstr(sentence, what)) fail_msg("\"%s\" does not say \"%s\"", sentence, what);
}

static char *text_of(const sh_node_addr *a)
{
    static char text[300];
    sh_node_addr_text(a, text);
    return text;
}

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
    cluster c;
    cluster_start(&c, 1, ""); /* listens on every address */
    snprintf(c.nodes.starter.host, 20, "127.0.0.1");
    snprintf(c.addr[0].host, 20, "127.0.0.1");
    sh_ring *r = open_ring(&c, 4, 5);
    go_round(r, 1, 10, 3, 4, 5);
    sh_ring_close(r);
    cluster_end(&c);
}

/* ---- who is not there, or refuses ---- */

static int free_port(void)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &n), 0);
    close(s);
    return ntohs(a.sin_port);
}

static void expect_no_ring(cluster *c, int timeout_ms, const char *says)
{
    sh_ring *r;
    int64_t t = sh_link_now_ms();
    assert_int_equal(sh_ring_open(&r, &c->nodes, timeout_ms), SH_EPEER);
    assert_null(r);
    assert_true(sh_link_now_ms() - t < timeout_ms + 1000);
    assert_says(sh_err_message(), says);
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

    int s = socket(AF_INET, SOCK_STREAM, 0); /* somebody else's port */
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)c.addr[1].port)};
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s, 5), 0);
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
    c.addr[0].port_in = free_port();
    for (int i = 0; i < 3; i++) { /* the same fixed port, at once again */
        r = open_ring(&c, 4, 3);
        go_round(r, 1, 3, 1, 4, 3);
        sh_ring_close(r);
    }
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

/* A starter in its own process, which sends one step and then stays. */
static process starter_start(cluster *c)
{
    int up[2];
    process p = {0};
    assert_int_equal(pipe(up), 0);
    if ((p.pid = start()) == 0) {
        sh_ring *r = open_ring(c, 8, 3);
        go_round(r, c->nodes.n_secondary, 1, 1, 8, 3);
        say(up[1], 'r');
        for (;;) pause();
    }
    close(up[1]);
    p.from = up[0];
    return p;
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
    finish(&c.w[1]);
    c.w[1] = worker_start("127.0.0.1", c.addr[1].port, (behaviour){.fail_step = 3});
    for (int i = 0; i < 2; i++) {
        sh_ring *r = open_ring(&c, 8, 3);
        for (uint64_t k = 1; k <= 3; k++) OK(send_step(r, k, 8, 3, x));
        for (uint64_t k = 1; k <= 2; k++) expect_step(r, 3, k, 8, 3, x);
        const char *why = ends_with(r, 3000, x);
        assert_says(why, text_of(&c.addr[1]));
        assert_says(why, "the cooling [31m fan stands still"); /* the escape character is gone */
        sh_ring_close(r);
    }
    cluster_end(&c);
}

/* ---- who does not belong ---- */

static void *socket_to(void *ctx, int type, int port)
{
    char endpoint[64];
    int linger = 200, timeout = 5000;
    void *s = zmq_socket(ctx, type);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(s, ZMQ_SNDTIMEO, &timeout, sizeof timeout);
    assert_int_equal(zmq_connect(s, endpoint), 0);
    return s;
}

static void send_frame(void *s, const sh_frame *f)
{
    sh_buf b = {0};
    sh_wire_encode(f, &b);
    assert_int_equal(zmq_send(s, b.p, b.n, 0), b.n);
    sh_buf_free(&b);
}

static sh_frame answer(void *s)
{
    char bytes[4096];
    sh_frame f;
    int n = zmq_recv(s, bytes, sizeof bytes, 0);
    assert_true(n > 0);
    OK(sh_wire_decode(&f, bytes, (size_t)n));
    return f;
}

static void send_raw(int port, uint64_t seed, int kind)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    assert_int_equal(connect(s, (struct sockaddr *)&a, sizeof a), 0);
    uint8_t b[3000];
    for (size_t i = 0; i < sizeof b; i++) b[i] = (uint8_t)rnd(&seed);
    static const uint8_t greeting[] = {0xff, 0,    0, 0, 0,   0,   0,   0,
                                       1,    0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    if (kind == 1) memcpy(b, greeting, sizeof greeting); /* of ZeroMQ, then noise */
    if (kind == 2) snprintf((char *)b, sizeof b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    size_t n = kind == 1 && seed % 2 ? 10 : seed % sizeof b + 1;
    if (send(s, b, n, MSG_NOSIGNAL) < 0) assert_true(errno == EPIPE || errno == ECONNRESET);
    if (seed % 3) poll(NULL, 0, 2);
    close(s);
}

static void send_random_messages(void *s, int n, uint64_t seed)
{
    for (int i = 0; i < n; i++) {
        uint8_t b[600];
        sh_buf frame = {0};
        sh_frame f = {.type = (sh_frame_type)(SH_FRAME_WELCOME + rnd(&seed) % 8),
                      .protocol = SH_PROTOCOL,
                      .port = 9};
        for (size_t k = 0; k < sizeof b; k++) b[k] = (uint8_t)rnd(&seed);
        sh_wire_encode(&f, &frame);
        int kind = (int)(rnd(&seed) % 4);
        if (kind == 0) zmq_send(s, b, rnd(&seed) % sizeof b, 0);
        if (kind == 1) zmq_send(s, frame.p, frame.n, 0);
        if (kind == 2) zmq_send(s, frame.p, rnd(&seed) % frame.n, 0);
        if (kind == 3) {
            for (uint32_t k = rnd(&seed) % 5; k > 0; k--) zmq_send(s, b, k * 9, ZMQ_SNDMORE);
            zmq_send(s, b, 3, 0);
        }
        sh_buf_free(&frame);
    }
}

static void be_strange(int control, int data)
{
    void *ctx = zmq_ctx_new();
    for (int i = 0; i < 60; i++) send_raw(i % 2 ? data : control, (uint64_t)i * 31, i / 2 % 3);
    void *d = socket_to(ctx, ZMQ_DEALER, control), *p = socket_to(ctx, ZMQ_PUSH, data);
    void *q = socket_to(ctx, ZMQ_REQ, control);
    send_random_messages(d, 400, 1);
    send_random_messages(p, 400, 2);
    zmq_send(q, "hello", 5, 0);
    sh_frame hello = {.type = SH_FRAME_HELLO, .protocol = SH_PROTOCOL};
    send_frame(d, &hello);
    sh_frame no = answer(d);
    assert_int_equal(no.type, SH_FRAME_REFUSE);
    assert_says(no.text, "busy");
    sh_step s = {0};
    sh_buf b = {0};
    static float x[1000];
    make_step(&s, 3, 8);
    sh_wire_put_step(&b, hello.session, &s); /* right, but for the session */
    for (int i = 0; i < 300; i++) {
        zmq_send(p, b.p, b.n, ZMQ_SNDMORE);
        zmq_send(p, x, (size_t)s.n_tok * 3 * 4, 0);
    }
    sh_buf_free(&b);
    sh_step_free(&s);
    zmq_close(d);
    zmq_close(p);
    zmq_close(q);
    zmq_ctx_term(ctx);
}

static void test_strangers(void **state)
{
    (void)state;
    cluster c;
    cluster_start(&c, 2, "127.0.0.1");
    for (int i = 0; i < 2; i++) c.addr[i].port_in = free_port();
    c.nodes.starter.port_in = free_port();
    const int data[] = {c.addr[0].port_in, c.addr[1].port_in, c.nodes.starter.port_in};
    for (int i = 0; i < 50; i++)
        send_raw(c.addr[0].port, (uint64_t)i, i % 3); /* before any session */
    int go[2];
    pid_t pid[3];
    assert_int_equal(pipe(go), 0);
    for (int i = 0; i < 3; i++) {
        if ((pid[i] = start()) == 0) {
            char ch;
            if (read(go[0], &ch, 1) != 1) _exit(1);
            be_strange(c.addr[i % 2].port, data[i]);
            _exit(0);
        }
    }
    sh_ring *r = open_ring(&c, 8, 3);
    if (write(go[1], "123", 3) != 3) fail();
    int left = 3;
    for (int64_t t = sh_link_now_ms(); left > 0 && sh_link_now_ms() - t < 30000;) {
        int status;
        go_round(r, 2, 10, 3, 8, 3);
        if (waitpid(-1, &status, WNOHANG) > 0) {
            assert_int_equal(status, 0);
            left--;
        }
    }
    assert_int_equal(left, 0);
    go_round(r, 2, 50, 3, 8, 3);
    sh_ring_close(r);
    for (int i = 0; i < 2; i++) { /* one session, and nothing else happened */
        const char *order = "LSE";
        char ch, last = 0;
        for (int k = 0; (ch = heard(&c.w[i], 1000)) != 0; last = ch) /* 'S' once a round */
            if (ch != last) assert_int_equal(ch, order[k++]);
        assert_int_equal(last, 'E');
    }
    r = open_ring(&c, 8, 3);
    go_round(r, 2, 5, 3, 8, 3);
    sh_ring_close(r);
    close(go[0]);
    close(go[1]);
    cluster_end(&c);
}

static void test_protocol(void **state)
{
    (void)state;
    process w = worker_start("127.0.0.1", 0, (behaviour){0});
    void *ctx = zmq_ctx_new();
    void *a = socket_to(ctx, ZMQ_DEALER, w.port), *b = socket_to(ctx, ZMQ_DEALER, w.port);
    sh_frame hello = {.type = SH_FRAME_HELLO, .protocol = SH_PROTOCOL + 1}, f;
    send_frame(a, &hello);
    f = answer(a);
    assert_int_equal(f.type, SH_FRAME_REFUSE);
    assert_says(f.text, "protocol");
    hello.protocol = SH_PROTOCOL;
    send_frame(a, &hello);
    assert_int_equal(answer(a).type, SH_FRAME_WELCOME);
    send_frame(b, &hello);
    assert_int_equal(answer(b).type, SH_FRAME_REFUSE);
    sh_frame ready = {.type = SH_FRAME_READY, .protocol = SH_PROTOCOL, .port = 1};
    send_frame(a, &ready); /* out of order: the session is over */
    assert_int_equal(answer(a).type, SH_FRAME_FAIL);
    send_frame(b, &hello);
    assert_int_equal(answer(b).type, SH_FRAME_WELCOME);
    zmq_send(b, "shoa", 4, 0);
    assert_int_equal(answer(b).type, SH_FRAME_FAIL);
    send_frame(a, &hello);
    assert_int_equal(answer(a).type, SH_FRAME_WELCOME);
    sh_frame end = {.type = SH_FRAME_END, .protocol = SH_PROTOCOL};
    send_frame(b, &end);
    send_frame(a, &end);
    poll(NULL, 0, 100);
    send_frame(b, &hello);
    assert_int_equal(answer(b).type, SH_FRAME_WELCOME);
    send_frame(a, &end); /* not his to end */
    send_frame(a, &hello);
    assert_int_equal(answer(a).type, SH_FRAME_REFUSE);
    send_frame(b, &end);
    poll(NULL, 0, 100);
    send_frame(a, &hello);
    assert_int_equal(answer(a).type, SH_FRAME_WELCOME);
    zmq_close(a); /* its connection ends: so does its session */
    for (int i = 0; i < 50; i++) {
        send_frame(b, &hello);
        if ((f = answer(b)).type == SH_FRAME_WELCOME) break;
        poll(NULL, 0, 20);
    }
    assert_int_equal(f.type, SH_FRAME_WELCOME);
    zmq_close(b);
    zmq_ctx_term(ctx);
    assert_int_equal(heard(&w, 0), 0); /* the caller was never bothered */
    finish(&w);
}

/* A worker that does not do what it should. */
enum fake { GARBAGE, OTHER_PROTOCOL, CUT_DATA, BAD_STEP };

static process fake_start(enum fake kind)
{
    int up[2];
    process p = {0};
    assert_int_equal(pipe(up), 0);
    if ((p.pid = start()) == 0) {
        void *ctx = zmq_ctx_new();
        sh_link control = {.sock = zmq_socket(ctx, ZMQ_ROUTER)};
        sh_hop hop = {0};
        uint8_t session[16] = {0};
        int port;
        OK(sh_link_bind(&control, "127.0.0.1", 0, 0, &port));
        if (write(up[1], &port, sizeof port) != sizeof port) _exit(8);
        for (;;) {
            uint8_t id[255], bytes[4096];
            sh_frame f, reply = {.protocol = SH_PROTOCOL};
            int n_id = zmq_recv(control.sock, id, sizeof id, 0);
            int n = zmq_recv(control.sock, bytes, sizeof bytes, 0);
            OK(sh_wire_decode(&f, bytes, (size_t)n));
            if (f.type == SH_FRAME_HELLO) {
                memcpy(session, f.session, sizeof session);
                reply.type = kind == GARBAGE ? SH_FRAME_LOAD : SH_FRAME_WELCOME;
                if (kind == OTHER_PROTOCOL) {
                    reply = (sh_frame){.type = SH_FRAME_REFUSE, .protocol = 99, .text = "only 99"};
                }
            } else if (f.type == SH_FRAME_LOAD) {
                OK(sh_hop_open(&hop, ctx, session, &f.load, "127.0.0.1", 0));
                reply.type = SH_FRAME_READY;
                reply.port = (uint16_t)hop.port;
            } else if (f.type == SH_FRAME_START) {
                OK(sh_hop_join(&hop, f.host, f.port, f.text));
                while (hop.state != SH_HOP_JOINED) OK(sh_hop_watch(&hop));
                reply.type = SH_FRAME_STARTED;
            } else {
                continue;
            }
            sh_buf b = {0};
            sh_wire_encode(&reply, &b);
            zmq_send(control.sock, id, (size_t)n_id, ZMQ_SNDMORE);
            zmq_send(control.sock, b.p, b.n, 0);
            if (reply.type != SH_FRAME_STARTED) continue;
            poll(NULL, 0, 300);
            if (kind == CUT_DATA) sh_link_close(&hop.in, 0);
            if (kind == BAD_STEP) {
                sh_step s = {0};
                bool sent;
                hop.n_embd = 1;
                make_step(&s, 1, 8);
                OK(sh_hop_send(&hop, &s, (float[100]){0}, &sent));
            }
        }
    }
    close(up[1]);
    p.from = up[0];
    assert_int_equal(read(p.from, &p.port, sizeof p.port), sizeof p.port);
    return p;
}

static void test_fakes(void **state)
{
    (void)state;
    float x[8 * 3];
    for (enum fake kind = GARBAGE; kind <= BAD_STEP; kind++) {
        cluster c;
        cluster_start(&c, 2, "127.0.0.1");
        finish(&c.w[1]);
        c.w[1] = fake_start(kind);
        c.addr[1].port = c.w[1].port;
        if (kind == GARBAGE || kind == OTHER_PROTOCOL) {
            expect_no_ring(&c, 5000, kind == GARBAGE ? text_of(&c.addr[1]) : "only 99");
        } else {
            sh_ring *r = open_ring(&c, 8, 3);
            const char *why = ends_with(r, 5000, x);
            assert_says(why, kind == CUT_DATA ? text_of(&c.addr[1]) : "activations");
            sh_ring_close(r);
        }
        cluster_end(&c);
    }
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
    alarm(2 * LIFE_S);
    sh_log_set_level(getenv("SHOW_LOG") ? SH_LOG_DEBUG : SH_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round),          cmocka_unit_test(test_large),
        cmocka_unit_test(test_names),          cmocka_unit_test(test_missing),
        cmocka_unit_test(test_late),           cmocka_unit_test(test_refused),
        cmocka_unit_test(test_busy),           cmocka_unit_test(test_killed),
        cmocka_unit_test(test_starter_killed), cmocka_unit_test(test_fail),
        cmocka_unit_test(test_strangers),      cmocka_unit_test(test_protocol),
        cmocka_unit_test(test_fakes),          cmocka_unit_test(test_listen),
        cmocka_unit_test(test_slow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
