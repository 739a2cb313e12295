/* The starter's side of the ring: greets the secondaries, tells them what to load, joins them, and
 * watches them while microbatches go round. */
#define _GNU_SOURCE
#include "comm/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "comm/hop.h"
#include "comm/link.h"
#include "comm/wire.h"

enum {
    RETRY_MS = 100,     /* between attempts to connect: a worker may be just starting */
    CONTROL_QUEUE = 64, /* frames */
    BLAME_MS = 500,     /* see complain */
    LOOK_MS = 100,      /* longest time without a look at the secondaries */
    CLOSE_LINGER_MS = 1000,
};

typedef struct node {
    sh_link link;
    char name[300]; /* its control address, for messages */
    sh_node_addr addr;
    bool connected, shaken, welcomed, ready, started;
    sh_welcome welcome;
    int data_port;
} node;

struct sh_ring {
    void *ctx;
    node *node;
    int n_node;
    sh_node_addr starter;
    uint8_t session[SH_SESSION_BYTES];
    sh_hop hop;
    sh_step step; /* of the microbatch that came back */
    zmq_pollitem_t *poll;
    sh_buf buf;
    bool lost; /* the error, for good */
    char why[1024];
    int64_t blame_at_ms; /* when a complaint becomes the error; 0: there is none */
    const node *complainer;
    bool hearsay;
    char complaint[1024];
};

/* ---- watching the secondaries ---- */

static sh_err lose(sh_ring *r)
{
    if (!r->lost) snprintf(r->why, sizeof r->why, "%s", sh_err_message());
    r->lost = true;
    return SH_EPEER;
}

/* A node that dies or fails is seen by its neighbour too, whose complaint about their connection
 * may be here first. The one to blame is the better answer, so a complaint waits a little, and one
 * that is hearsay gives way. */
static void complain(sh_ring *r, const node *who, bool hearsay, const char *sentence)
{
    if (r->blame_at_ms && (hearsay || !r->hearsay)) return;
    if (!r->blame_at_ms) r->blame_at_ms = sh_link_now_ms() + BLAME_MS;
    r->hearsay = hearsay;
    r->complainer = who;
    if (who)
        snprintf(r->complaint, sizeof r->complaint, "node %s failed: %.700s", who->name, sentence);
    else
        snprintf(r->complaint, sizeof r->complaint, "%s", sentence);
}

static sh_err handle_frame(sh_ring *r, node *d, const sh_frame *f)
{
    switch (f->type) {
    case SH_FRAME_WELCOME:
        d->welcomed = true;
        d->welcome = f->welcome;
        return SH_OK;
    case SH_FRAME_REFUSE:
        return sh_fail(SH_EPEER, "node %s refuses: %s", d->name, f->text);
    case SH_FRAME_READY:
        d->ready = true;
        d->data_port = f->port;
        return SH_OK;
    case SH_FRAME_STARTED:
        d->started = true;
        return SH_OK;
    case SH_FRAME_FAIL:
        complain(r, d, f->hearsay, f->text);
        return SH_OK;
    default:
        return sh_fail(SH_EPEER, "node %s sent a frame that only a starter sends", d->name);
    }
}

static sh_err hear(sh_ring *r, node *d)
{
    sh_message m;
    sh_err err = SH_OK;
    while (!err && sh_link_recv(&d->link, &m)) {
        sh_frame f;
        if (m.n != 1)
            err = sh_fail(SH_EPEER, "a message of several parts");
        else
            err = sh_wire_decode(&f, zmq_msg_data(&m.part[0]), zmq_msg_size(&m.part[0]));
        if (err)
            sh_fail_in(err, "node %s is not a worker of this program or is out of order", d->name);
        else
            err = handle_frame(r, d, &f);
        sh_message_close(&m);
    }
    return err;
}

static sh_err watch_connection(sh_ring *r, node *d)
{
    int event, fd;
    while (sh_link_event(&d->link, &event, &fd)) {
        if (event == ZMQ_EVENT_CONNECTED) d->connected = true;
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) d->shaken = true;
        if (event != ZMQ_EVENT_DISCONNECTED || !d->shaken) continue;
        if (r->blame_at_ms && r->complainer == d) /* it has said why */
            return sh_fail(SH_EPEER, "%s", r->complaint);
        return sh_fail(
            SH_EPEER,
            "node %s was lost: its process ended or its host cannot be reached; start its "
            "worker again and repeat the command",
            d->name);
    }
    return SH_OK;
}

/* Everything that has happened since the last look. */
static sh_err look(sh_ring *r)
{
    for (int i = 0; i < r->n_node; i++) SH_TRY(hear(r, &r->node[i]));
    for (int i = 0; i < r->n_node; i++) SH_TRY(watch_connection(r, &r->node[i]));
    if (sh_hop_watch(&r->hop)) complain(r, NULL, true, sh_err_message());
    if (r->blame_at_ms && sh_link_now_ms() >= r->blame_at_ms)
        return sh_fail(SH_EPEER, "%s", r->complaint);
    return SH_OK;
}

/* Waits until something may have happened, timeout_ms at most, and looks. *stopped: a signal came.
 */
static sh_err wait_and_look(sh_ring *r, int timeout_ms, bool *stopped)
{
    int n = 0;
    for (int i = 0; i < r->n_node; i++) {
        r->poll[n++] = (zmq_pollitem_t){.socket = r->node[i].link.sock, .events = ZMQ_POLLIN};
        r->poll[n++] = (zmq_pollitem_t){.socket = r->node[i].link.mon, .events = ZMQ_POLLIN};
    }
    if (r->hop.out.mon)
        r->poll[n++] = (zmq_pollitem_t){.socket = r->hop.out.mon, .events = ZMQ_POLLIN};
    if (r->hop.in.sock)
        r->poll[n++] = (zmq_pollitem_t){.socket = r->hop.in.sock, .events = ZMQ_POLLIN};
    if (r->blame_at_ms || r->hop.state == SH_HOP_JOINING || timeout_ms < 0)
        timeout_ms = timeout_ms < 0 || timeout_ms > LOOK_MS ? LOOK_MS : timeout_ms;
    int ready = zmq_poll(r->poll, n, timeout_ms);
    if (stopped) *stopped = ready < 0 && zmq_errno() == EINTR;
    return look(r) ? lose(r) : SH_OK;
}

static sh_err say(sh_ring *r, node *d, const sh_frame *f)
{
    r->buf.n = 0;
    sh_wire_encode(f, &r->buf);
    if (r->buf.bad) return sh_fail(SH_ENOMEM, "no memory for a frame");
    if (sh_link_send(&d->link, r->buf.p, r->buf.n, 0)) return SH_OK;
    return sh_fail(SH_EPEER, "node %s takes no messages: %s", d->name, zmq_strerror(zmq_errno()));
}

/* ---- open ---- */

static sh_err connect_node(sh_ring *r, int i, const sh_node_addr *a, int timeout_ms)
{
    node *d = &r->node[i];
    sh_frame hello = {.type = SH_FRAME_HELLO, .protocol = SH_PROTOCOL};
    sh_link_options opt = {.type = ZMQ_DEALER,
                           .events = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                                     ZMQ_EVENT_DISCONNECTED,
                           .max_bytes = SH_CONTROL_MAX_BYTES,
                           .max_queued = CONTROL_QUEUE,
                           .heartbeat = true,
                           .reconnect_ms = RETRY_MS};
    d->addr = *a;
    sh_node_addr_text(a, d->name);
    SH_TRY(sh_link_open(&d->link, r->ctx, &opt));
    sh_err err = sh_link_connect(&d->link, a->host, a->port, timeout_ms);
    if (err) return sh_fail_in(err, "node %s", d->name);
    memcpy(hello.session, r->session, sizeof hello.session);
    return say(r, d, &hello);
}

static sh_err no_answer(const sh_ring *r, int timeout_ms)
{
    char names[600] = "";
    const node *first = NULL;
    int n_more = 0;
    for (int i = 0; i < r->n_node; i++) {
        const node *d = &r->node[i];
        if (d->welcomed) continue;
        if (first) n_more++;
        if (!first) first = d;
    }
    if (n_more) snprintf(names, sizeof names, " (nor do %d others)", n_more);
    if (first->shaken)
        return sh_fail(SH_EPEER,
                       "node %s takes connections but did not answer within %.1f s%s; it may be "
                       "busy for an earlier starter: try again later",
                       first->name, timeout_ms / 1e3, names);
    if (first->connected)
        return sh_fail(SH_EPEER,
                       "what listens at %s does not answer as a shoal worker does%s; check the "
                       "address, or start the worker there again",
                       first->name, names);
    return sh_fail(SH_EPEER,
                   "node %s does not answer%s, tried for %.1f s; start `shoal worker --listen "
                   "%s` there",
                   first->name, names, timeout_ms / 1e3, first->name);
}

static sh_err greet(sh_ring *r, const sh_nodes *nodes, int timeout_ms)
{
    int64_t until = sh_link_now_ms() + timeout_ms;
    for (int i = 0; i < r->n_node; i++) {
        int64_t left = until - sh_link_now_ms();
        SH_TRY(connect_node(r, i, &nodes->secondary[i], left > 0 ? (int)left : 0));
    }
    for (;;) {
        int n_welcome = 0;
        for (int i = 0; i < r->n_node; i++) n_welcome += r->node[i].welcomed;
        if (n_welcome == r->n_node) return SH_OK;
        int64_t left = until - sh_link_now_ms();
        if (left <= 0) return no_answer(r, timeout_ms);
        SH_TRY(wait_and_look(r, (int)left, NULL));
    }
}

sh_err sh_ring_open(sh_ring **out, const sh_nodes *nodes, int timeout_ms)
{
    sh_ring *r = NULL;
    sh_err err;
    *out = NULL;
    if (nodes->n_secondary < 1 || nodes->n_secondary >= SH_MAX_STAGE)
        return sh_fail(SH_EARG, "%d secondary nodes: a ring has 1 to %d", nodes->n_secondary,
                       SH_MAX_STAGE - 1);
    if (sodium_init() < 0) return sh_fail(SH_ESYS, "the system gives no random numbers");
    SH_GOTO(sh_alloc(&r, 1, sizeof *r, "the ring"));
    r->n_node = nodes->n_secondary;
    r->starter = nodes->starter;
    SH_GOTO(sh_alloc(&r->node, (size_t)r->n_node, sizeof *r->node, "the nodes"));
    SH_GOTO(sh_alloc(&r->poll, 2 * (size_t)r->n_node + 2, sizeof *r->poll, "the nodes"));
    randombytes_buf(r->session, sizeof r->session);
    if (!(r->ctx = zmq_ctx_new())) {
        err = sh_fail(SH_ESYS, "cannot start ZeroMQ: %s", zmq_strerror(zmq_errno()));
        goto out;
    }
    SH_GOTO(greet(r, nodes, timeout_ms));
    *out = r;
    return SH_OK;
out:
    sh_ring_close(r);
    return err;
}

const sh_welcome *sh_ring_welcome(const sh_ring *r, int i)
{
    return &r->node[i].welcome;
}

/* ---- load and join ---- */

static sh_err tell_next(sh_ring *r, int i)
{
    bool last = i + 1 == r->n_node;
    sh_frame start = {.type = SH_FRAME_START, .protocol = SH_PROTOCOL};
    const char *host = last ? r->starter.host : r->node[i + 1].addr.host;
    start.port = (uint16_t)(last ? r->hop.port : r->node[i + 1].data_port);
    snprintf(start.host, sizeof start.host, "%s", host);
    if (last)
        snprintf(start.text, sizeof start.text, "the starter at %s", host);
    else
        snprintf(start.text, sizeof start.text, "%s", r->node[i + 1].name);
    return say(r, &r->node[i], &start);
}

static bool all_ready(const sh_ring *r)
{
    bool all = true;
    for (int i = 0; i < r->n_node; i++) all &= r->node[i].ready;
    return all;
}

static bool all_joined(const sh_ring *r)
{
    bool all = r->hop.state == SH_HOP_JOINED;
    for (int i = 0; i < r->n_node; i++) all &= r->node[i].started;
    return all;
}

static sh_err load_all(sh_ring *r, const sh_load *load)
{
    for (int i = 0; i < r->n_node; i++) {
        sh_frame f = {.type = SH_FRAME_LOAD, .protocol = SH_PROTOCOL, .load = load[i]};
        f.port = (uint16_t)r->node[i].addr.port_in;
        SH_TRY(say(r, &r->node[i], &f));
    }
    while (!all_ready(r)) SH_TRY(wait_and_look(r, -1, NULL));
    for (int i = 0; i < r->n_node; i++) SH_TRY(tell_next(r, i));
    SH_TRY(sh_hop_join(&r->hop, r->node[0].addr.host, r->node[0].data_port, r->node[0].name));
    while (!all_joined(r)) SH_TRY(wait_and_look(r, -1, NULL));
    return SH_OK;
}

sh_err sh_ring_load(sh_ring *r, const sh_load *load)
{
    const sh_node_addr *s = &r->starter;
    if (r->lost) return sh_fail(SH_EPEER, "%s", r->why);
    if (r->hop.state != SH_HOP_CLOSED) return sh_fail(SH_EARG, "a ring is loaded once");
    for (int i = 0; i < r->n_node; i++) SH_TRY(sh_wire_check_load(&load[i]));
    sh_err err = sh_hop_open(&r->hop, r->ctx, r->session, &load[0], s->host, s->port_in);
    if (err)
        return sh_fail_in(err, "the starter's address for activations (addr, inference.port_in)");
    err = load_all(r, load);
    return err == SH_EPEER ? lose(r) : err;
}

/* ---- microbatches ---- */

sh_err sh_ring_send(sh_ring *r, const sh_step *step, const float *x)
{
    if (r->lost) return sh_fail(SH_EPEER, "%s", r->why);
    for (;;) {
        bool sent;
        SH_TRY(sh_hop_send(&r->hop, step, x, &sent));
        if (sent) return SH_OK;
        /* Lost, which the look finds out within BLAME_MS; or hundreds of microbatches are on the
         * ring. */
        SH_TRY(wait_and_look(r, 1, NULL));
    }
}

sh_err sh_ring_recv(sh_ring *r, int timeout_ms, bool *got, uint64_t *step_id, uint32_t *n_tok,
                    float *x)
{
    int64_t until = sh_link_now_ms() + timeout_ms;
    bool stopped = false;
    *got = false;
    if (r->lost) return sh_fail(SH_EPEER, "%s", r->why);
    for (;;) {
        if (sh_hop_recv(&r->hop, got, &r->step, x)) return lose(r);
        if (*got) {
            *step_id = r->step.id;
            *n_tok = r->step.n_tok;
            return SH_OK;
        }
        int64_t left = timeout_ms < 0 ? LOOK_MS : until - sh_link_now_ms();
        SH_TRY(wait_and_look(r, left > 0 ? (int)left : 0, &stopped));
        if (stopped || left <= 0) return SH_OK;
    }
}

void sh_ring_close(sh_ring *r)
{
    if (!r) return;
    for (int i = 0; r->node && i < r->n_node; i++) {
        node *d = &r->node[i];
        sh_frame end = {.type = SH_FRAME_END, .protocol = SH_PROTOCOL};
        if (d->shaken) say(r, d, &end);
    }
    sh_hop_close(&r->hop);
    for (int i = 0; r->node && i < r->n_node; i++)
        sh_link_close(&r->node[i].link, r->node[i].shaken ? CLOSE_LINGER_MS : 0);
    if (r->ctx) zmq_ctx_term(r->ctx);
    sh_step_free(&r->step);
    sh_buf_free(&r->buf);
    free(r->node);
    free(r->poll);
    free(r);
}
