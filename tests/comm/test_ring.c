/* The ring over real sockets on 127.0.0.1: every node is a process. What must hold: what goes in comes
 * round, in order; whoever dies is named soon; whoever does not belong changes nothing.
 * Every process ends by itself after LIFE_S, and its children die with the test. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
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
        sh_step_op op = {rnd(&seed) % 2 ? SH_OP_FREE : SH_OP_FORK, slot, slot + 1, rnd(&seed) % CTX};
        assert_int_equal(sh_step_add_op(s, op), SH_OK);
    }
    for (uint32_t left = n_batch - rnd(&seed) % (n_batch / 2 + 1); left > 0;) {
        sh_step_seq q = {rnd(&seed) % SLOTS, rnd(&seed) % 100, rnd(&seed) % left + 1, id & 1, id & 2};
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
        sh_welcome self = {.n_layer = 7, .n_embd = 64, .has_amx = true, .version = "test", .n_rank = 3};
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
        load[i] = (sh_load){.stage = (uint32_t)i + 1, .n_stage = (uint32_t)n + 1, .n_embd = n_embd,
                            .n_ctx = CTX, .n_slot = SLOTS, .n_batch = n_batch};
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
        if (x[i] != (float)(id * 16 + i % 1000 + (uint64_t)n)) fail_msg("step %d, float %zu", (int)id, i);
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
        for (int session = 0; session < 2; session++) { /* workers serve one starter after the other */
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

int main(void)
{
    alarm(4 * LIFE_S);
    sh_log_set_level(SH_LOG_WARN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
