/* What the tests of the ring share: nodes as processes on 127.0.0.1, and microbatches that both
 * ends can make, so that whatever is lost or changed on the way is seen. Every process ends by
 * itself after LIFE_S, and its children die with the test. */
#ifndef SH_TEST_RING_KIT_H
#define SH_TEST_RING_KIT_H

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

#define UNUSED __attribute__((unused)) /* not every program uses all */

enum { LIFE_S = 100, MAX_NODE = 5, SLOW_MS = 9000 };

static const uint8_t model[16] = "the right model";

/* ---- processes ---- */

typedef struct process {
    pid_t pid;
    int from; /* what it tells us, a letter for each event */
    int stop; /* closing it stops a worker */
    int port;
} process;

UNUSED static pid_t start(void)
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

UNUSED static void finish(process *p)
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
UNUSED static char heard(const process *p, int ms)
{
    struct pollfd f = {.fd = p->from, .events = POLLIN};
    char c = 0;
    return poll(&f, 1, ms) == 1 && read(p->from, &c, 1) == 1 ? c : 0;
}

UNUSED static void say(int fd, char c)
{
    if (write(fd, &c, 1) != 1) _exit(8);
}

/* ---- steps that both sides can make ---- */

enum { SLOTS = 20, CTX = 1000 };

UNUSED static uint32_t rnd(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33);
}

UNUSED static void make_step(sh_step *s, uint64_t id, uint32_t n_batch)
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

UNUSED static bool same_step(const sh_step *a, const sh_step *b)
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
    bool fail_ends;     /* and then its process ends */
    int slow_load_ms;
} behaviour;

UNUSED static void worker_run(sh_worker_link *w, int to, int stop_fd, behaviour b)
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
                if (b.fail_ends) break;
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

UNUSED static process worker_start(const char *host, int port, behaviour b)
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

UNUSED static void cluster_start(cluster *c, int n, const char *host)
{
    *c = (cluster){.nodes = {.secondary = c->addr, .n_secondary = n}};
    snprintf(c->nodes.starter.host, sizeof c->nodes.starter.host, "%s", host);
    for (int i = 0; i < n; i++) {
        c->w[i] = worker_start(host, 0, (behaviour){0});
        c->addr[i].port = c->w[i].port;
        snprintf(c->addr[i].host, sizeof c->addr[i].host, "%s", host);
    }
}

UNUSED static void cluster_end(cluster *c)
{
    for (int i = 0; i < c->nodes.n_secondary; i++) finish(&c->w[i]);
}

UNUSED static sh_err load_ring(sh_ring *r, int n, uint32_t n_batch, uint32_t n_embd)
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

UNUSED static sh_ring *open_ring(cluster *c, uint32_t n_batch, uint32_t n_embd)
{
    sh_ring *r;
    OK(sh_ring_open(&r, &c->nodes, 8000));
    OK(load_ring(r, c->nodes.n_secondary, n_batch, n_embd));
    return r;
}

UNUSED static sh_err send_step(sh_ring *r, uint64_t id, uint32_t n_batch, uint32_t n_embd, float *x)
{
    sh_step s = {0};
    make_step(&s, id, n_batch);
    for (size_t i = 0; i < (size_t)s.n_tok * n_embd; i++) x[i] = (float)(id * 16 + i % 1000);
    sh_err err = sh_ring_send(r, &s, x);
    sh_step_free(&s);
    return err;
}

UNUSED static void expect_step(sh_ring *r, int n, uint64_t id, uint32_t n_batch, uint32_t n_embd,
                               float *x)
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
UNUSED static void go_round(sh_ring *r, int n, int n_step, int flight, uint32_t n_batch,
                            uint32_t n_embd)
{
    float *x = malloc((size_t)n_batch * n_embd * 4);
    for (int i = 1; i <= n_step + flight; i++) {
        if (i > flight) expect_step(r, n, (uint64_t)(i - flight), n_batch, n_embd, x);
        if (i <= n_step) OK(send_step(r, (uint64_t)i, n_batch, n_embd, x));
    }
    free(x);
}

/* The error that the ring ends in, as a sentence, within ms. */
UNUSED static const char *ends_with(sh_ring *r, int ms, float *x)
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

UNUSED static void assert_says(const char *sentence, const char *what)
{
    if (!strstr(sentence, what)) fail_msg("\"%s\" does not say \"%s\"", sentence, what);
}

UNUSED static char *text_of(const sh_node_addr *a)
{
    static char text[300];
    sh_node_addr_text(a, text);
    return text;
}

UNUSED static int free_port(void)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &n), 0);
    close(s);
    return ntohs(a.sin_port);
}

UNUSED static void expect_no_ring(cluster *c, int timeout_ms, const char *says)
{
    sh_ring *r;
    int64_t t = sh_link_now_ms();
    assert_int_equal(sh_ring_open(&r, &c->nodes, timeout_ms), SH_EPEER);
    assert_null(r);
    assert_true(sh_link_now_ms() - t < timeout_ms + 1000);
    assert_says(sh_err_message(), says);
}

/* A starter in its own process, which sends one step and then stays. */
UNUSED static process starter_start(cluster *c)
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

UNUSED static void *socket_to(void *ctx, int type, int port)
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

UNUSED static void send_frame(void *s, const sh_frame *f)
{
    sh_buf b = {0};
    sh_wire_encode(f, &b);
    assert_int_equal(zmq_send(s, b.p, b.n, 0), b.n);
    sh_buf_free(&b);
}

#endif
