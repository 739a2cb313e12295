/* Whoever does not belong to a session changes nothing: bytes, messages and frames of strangers,
 * other versions, and nodes that do not do what they should. */
#define _GNU_SOURCE
#include "ring_kit.h"

/* ---- who does not belong ---- */

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
enum fake { GARBAGE, OTHER_PROTOCOL, CUT_DATA, HEARSAY, BAD_STEP };

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
            for (int i = 1; kind == HEARSAY && i >= 0;
                 i--) { /* the cause counts, not who was first */
                reply.type = SH_FRAME_FAIL;
                reply.hearsay = i;
                snprintf(reply.text, sizeof reply.text, "%s", i ? "a rumour" : "the cause");
                b.n = 0;
                sh_wire_encode(&reply, &b);
                zmq_send(control.sock, id, (size_t)n_id, ZMQ_SNDMORE);
                zmq_send(control.sock, b.p, b.n, 0);
                poll(NULL, 0, 100);
            }
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
            assert_says(why, kind == BAD_STEP  ? "activations"
                             : kind == HEARSAY ? "the cause"
                                               : text_of(&c.addr[1]));
            sh_ring_close(r);
        }
        cluster_end(&c);
    }
}

int main(void)
{
    alarm(LIFE_S);
    sh_log_set_level(getenv("SHOW_LOG") ? SH_LOG_DEBUG : SH_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_protocol),
        cmocka_unit_test(test_fakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
