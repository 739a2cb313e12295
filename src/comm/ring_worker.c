/* A secondary's side of the ring: serves one starter after the other, and nobody else.
 *
 * A session belongs to the connection that its HELLO came by: ZeroMQ's name for that connection
 * (the routing id) is unique to it, and the descriptor under it is what the end of the connection
 * is reported with. Whatever other connections bring or do is logged and changes nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "comm/hop.h"
#include "comm/link.h"
#include "comm/ring.h"
#include "comm/wire.h"

enum {
    SILENT_MS = 10000,  /* a starter that greeted and then asks for nothing gives way after this */
    LOOK_MS = 250,      /* longest wait while something has a deadline */
    LOOK_MESSAGES = 64, /* taken in at one look: a flood of them does not hold up the rest */
    FULL_QUEUE_MS = 20, /* between attempts to hand a microbatch on */
    CLOSE_LINGER_MS = 500,
    CONTROL_QUEUE = 64,
    MAX_ID_BYTES = 255,
};

typedef enum state {
    IDLE,
    GREETED, /* LOAD is to come */
    LOADING, /* the caller has been or will be asked */
    READY,   /* START is to come */
    JOINING, /* connecting to the next node */
    RUNNING,
} state;

struct sh_worker_link {
    void *ctx;
    sh_link control;
    sh_node_addr addr;
    int port;
    sh_welcome self;

    state state;
    uint8_t id[MAX_ID_BYTES]; /* the starter's connection */
    size_t n_id;
    int fd;
    char peer[64];
    int64_t greeted_ms;
    uint8_t session[SH_SESSION_BYTES];
    sh_load load;
    sh_hop hop;
    bool complained; /* the starter knows that this node cannot go on */

    bool owe_load, owe_end; /* events that the caller has to be given */
    bool told;              /* this session is the one that the caller knows of */
    sh_buf buf;
    sh_drops drops;
};

/* ---- the session ---- */

static bool send_to(sh_worker_link *w, const void *id, size_t n_id, const sh_frame *f)
{
    w->buf.n = 0;
    sh_wire_encode(f, &w->buf);
    return !w->buf.bad && sh_link_send(&w->control, id, n_id, ZMQ_SNDMORE) &&
           sh_link_send(&w->control, w->buf.p, w->buf.n, 0);
}

static void end_session(sh_worker_link *w)
{
    sh_hop_close(&w->hop);
    w->state = IDLE;
    w->owe_load = false;
    w->owe_end |= w->told;
    w->told = false;
}

/* A starter that takes no frames is lost: queues are far longer than a session's frames. */
static void say(sh_worker_link *w, sh_frame *f)
{
    f->protocol = SH_PROTOCOL;
    if (w->state == IDLE || send_to(w, w->id, w->n_id, f)) return;
    sh_log(SH_LOG_WARN, "the starter at %s was lost: %s", w->peer, zmq_strerror(zmq_errno()));
    end_session(w);
}

static void say_sentence(sh_worker_link *w, sh_frame_type type, const char *sentence)
{
    sh_frame f = {.type = type};
    snprintf(f.text, sizeof f.text, "%s", sentence);
    say(w, &f);
}

/* The starter hears of it and ends the session; its END is waited for. */
static void complain(sh_worker_link *w, bool hearsay, const char *sentence)
{
    sh_frame f = {.type = SH_FRAME_FAIL, .hearsay = hearsay};
    if (w->complained) return;
    w->complained = true;
    sh_log(SH_LOG_DEBUG, "to the starter: %s", sentence);
    snprintf(f.text, sizeof f.text, "%s", sentence);
    say(w, &f);
}

static void refuse(sh_worker_link *w, const char *sentence)
{
    sh_log(SH_LOG_WARN, "refused the starter at %s: %s", w->peer, sentence);
    say_sentence(w, SH_FRAME_REFUSE, sentence);
    w->told = false; /* the caller knows */
    end_session(w);
}

static void watch_connections(sh_worker_link *w)
{
    int event, fd;
    while (sh_link_event(&w->control, &event, &fd)) {
        if (event != ZMQ_EVENT_DISCONNECTED || w->state == IDLE || fd != w->fd) continue;
        sh_log(w->state == GREETED ? SH_LOG_INFO : SH_LOG_WARN, "the starter at %s was lost",
               w->peer);
        end_session(w);
    }
}

/* ---- frames ---- */

static void get_hello(sh_worker_link *w, const sh_message *m, const sh_frame *hello)
{
    zmq_msg_t *id = (zmq_msg_t *)&m->part[0], *body = (zmq_msg_t *)&m->part[1];
    const char *peer = zmq_msg_gets(body, "Peer-Address");
    sh_frame no = {.type = SH_FRAME_REFUSE, .protocol = SH_PROTOCOL};
    if (w->state == GREETED && sh_link_now_ms() - w->greeted_ms >= SILENT_MS)
        refuse(w, "nothing was asked for 10 s and another starter came");
    if (hello->protocol != SH_PROTOCOL)
        snprintf(no.text, sizeof no.text,
                 "it speaks protocol %d, the starter %u; use the same version "
                 "of shoal on all nodes",
                 SH_PROTOCOL, hello->protocol);
    else if (w->state != IDLE)
        snprintf(no.text, sizeof no.text,
                 "it is busy with a starter at %s; try again when that has "
                 "ended",
                 w->peer);
    if (no.text[0]) {
        sh_log(SH_LOG_INFO, "refused a starter at %s: %s", peer ? peer : "?", no.text);
        send_to(w, zmq_msg_data(id), zmq_msg_size(id), &no);
        return;
    }
    w->n_id = zmq_msg_size(id);
    memcpy(w->id, zmq_msg_data(id), w->n_id);
    w->fd = zmq_msg_get(body, ZMQ_SRCFD);
    snprintf(w->peer, sizeof w->peer, "%s", peer ? peer : "an unknown address");
    memcpy(w->session, hello->session, sizeof w->session);
    w->greeted_ms = sh_link_now_ms();
    w->complained = false;
    w->state = GREETED;
    sh_frame welcome = {.type = SH_FRAME_WELCOME, .welcome = w->self};
    say(w, &welcome);
}

static void get_load(sh_worker_link *w, const sh_frame *f)
{
    w->load = f->load;
    if (sh_hop_open(&w->hop, w->ctx, w->session, &w->load, w->addr.host, f->port)) {
        refuse(w, sh_err_message());
        return;
    }
    w->state = LOADING;
    w->owe_load = true;
}

static void get_start(sh_worker_link *w, const sh_frame *f)
{
    w->state = JOINING;
    if (sh_hop_join(&w->hop, f->host, f->port, f->text)) complain(w, false, sh_err_message());
}

/* A frame of the session's own starter. */
static void get_frame(sh_worker_link *w, const sh_frame *f)
{
    if (f->type == SH_FRAME_END) {
        sh_log(SH_LOG_INFO, "the starter at %s has ended the session", w->peer);
        end_session(w);
    } else if (f->type == SH_FRAME_LOAD && w->state == GREETED) {
        get_load(w, f);
    } else if (f->type == SH_FRAME_START && w->state == READY) {
        get_start(w, f);
    } else {
        complain(w, false, "the starter sent a frame out of order");
        end_session(w);
    }
}

static void get_message(sh_worker_link *w, const sh_message *m)
{
    zmq_msg_t *id = (zmq_msg_t *)&m->part[0], *body = (zmq_msg_t *)&m->part[1];
    sh_frame f;
    bool ours = m->n == 2 && w->state != IDLE && zmq_msg_size(id) == w->n_id &&
                memcmp(zmq_msg_data(id), w->id, w->n_id) == 0;
    bool good = m->n == 2 && zmq_msg_size(id) <= MAX_ID_BYTES &&
                sh_wire_decode(&f, zmq_msg_data(body), zmq_msg_size(body)) == SH_OK;
    if (ours && !good) {
        complain(w, false, "the starter sent a malformed frame");
        end_session(w);
    } else if (ours) {
        get_frame(w, &f);
    } else if (good && f.type == SH_FRAME_HELLO) {
        /* An earlier connection's end is told before a later one can have its descriptor: read it
         * now, so that it is not taken for the end of this one. */
        watch_connections(w);
        get_hello(w, m, &f);
    } else if (!good || f.type != SH_FRAME_END) { /* a starter says END also after it was refused */
        sh_drops_note(&w->drops, "control", m);
    }
}

/* What has happened since the last look, without waiting. */
static void look(sh_worker_link *w)
{
    sh_message m;
    for (int i = 0; i < LOOK_MESSAGES && sh_link_recv(&w->control, &m); i++) {
        get_message(w, &m);
        sh_message_close(&m);
    }
    watch_connections(w);
    if (sh_hop_watch(&w->hop)) complain(w, true, sh_err_message());
    if (w->state == JOINING && w->hop.state == SH_HOP_JOINED) {
        sh_frame started = {.type = SH_FRAME_STARTED};
        w->state = RUNNING;
        say(w, &started);
    }
}

/* ---- the caller's side ---- */

sh_err sh_worker_listen(sh_worker_link **out, const sh_node_addr *a, const sh_welcome *self)
{
    sh_worker_link *w = NULL;
    sh_err err;
    sh_link_options opt = {.type = ZMQ_ROUTER,
                           .events = ZMQ_EVENT_DISCONNECTED,
                           .max_bytes = SH_CONTROL_MAX_BYTES,
                           .max_queued = CONTROL_QUEUE,
                           .heartbeat = true,
                           .reconnect_ms = -1};
    *out = NULL;
    SH_GOTO(sh_alloc(&w, 1, sizeof *w, "the worker"));
    w->addr = *a;
    w->self = *self;
    if (!(w->ctx = zmq_ctx_new())) {
        err = sh_fail(SH_ESYS, "cannot start ZeroMQ: %s", zmq_strerror(zmq_errno()));
        goto out;
    }
    SH_GOTO(sh_link_open(&w->control, w->ctx, &opt));
    SH_GOTO(sh_link_bind(&w->control, a->host, a->port, 0, &w->port));
    *out = w;
    return SH_OK;
out:
    sh_worker_close(w);
    return err;
}

int sh_worker_port(const sh_worker_link *w)
{
    return w->port;
}

static bool takes_steps(const sh_worker_link *w)
{
    return w->told && w->state == RUNNING && !w->complained;
}

/* *stop: stop_fd is readable. */
static sh_err wait_some(sh_worker_link *w, int stop_fd, bool *stop)
{
    zmq_pollitem_t item[5];
    int n = 0, timeout_ms = w->state == JOINING ? LOOK_MS : -1;
    item[n++] = (zmq_pollitem_t){.socket = w->control.sock, .events = ZMQ_POLLIN};
    item[n++] = (zmq_pollitem_t){.socket = w->control.mon, .events = ZMQ_POLLIN};
    if (takes_steps(w))
        item[n++] = (zmq_pollitem_t){.socket = w->hop.in.sock, .events = ZMQ_POLLIN};
    if (w->hop.out.mon)
        item[n++] = (zmq_pollitem_t){.socket = w->hop.out.mon, .events = ZMQ_POLLIN};
    if (stop_fd >= 0) item[n++] = (zmq_pollitem_t){.fd = stop_fd, .events = ZMQ_POLLIN};
    int ready = zmq_poll(item, n, timeout_ms);
    if (ready < 0 && zmq_errno() != EINTR)
        return sh_fail(SH_ESYS, "waiting for messages failed: %s", zmq_strerror(zmq_errno()));
    *stop = ready > 0 && stop_fd >= 0 && item[n - 1].revents;
    return SH_OK;
}

static void take_step(sh_worker_link *w, bool *got, sh_step *step, float *x)
{
    *got = false;
    if (takes_steps(w) && sh_hop_recv(&w->hop, got, step, x)) complain(w, false, sh_err_message());
}

sh_err sh_worker_wait(sh_worker_link *w, int stop_fd, sh_worker_event *event, sh_load *load,
                      sh_step *step, float *x)
{
    bool stop = false, got = false;
    for (;;) {
        struct pollfd p = {.fd = stop_fd, .events = POLLIN};
        if (stop || (stop_fd >= 0 && poll(&p, 1, 0) > 0)) {
            *event = SH_WORKER_STOP;
            return SH_OK;
        }
        look(w);
        if (w->owe_end) {
            w->owe_end = false;
            *event = SH_WORKER_END;
            return SH_OK;
        }
        if (w->owe_load) {
            w->owe_load = false;
            w->told = true;
            *load = w->load;
            *event = SH_WORKER_LOAD;
            return SH_OK;
        }
        take_step(w, &got, step, x);
        if (got) {
            *event = SH_WORKER_STEP;
            return SH_OK;
        }
        SH_TRY(wait_some(w, stop_fd, &stop));
    }
}

sh_err sh_worker_ready(sh_worker_link *w)
{
    sh_frame ready = {.type = SH_FRAME_READY, .port = (uint16_t)w->hop.port};
    look(w); /* loading may have taken long */
    if (!w->told) return SH_OK;
    w->state = READY;
    say(w, &ready);
    return SH_OK;
}

sh_err sh_worker_refuse(sh_worker_link *w, const char *sentence)
{
    if (w->told) refuse(w, sentence);
    w->owe_end = false;
    return SH_OK;
}

sh_err sh_worker_forward(sh_worker_link *w, const sh_step *step, const float *x)
{
    bool sent = false;
    while (takes_steps(w)) {
        SH_TRY(sh_hop_send(&w->hop, step, x, &sent));
        if (sent) break;
        poll(NULL, 0, FULL_QUEUE_MS);
        look(w);
    }
    return SH_OK;
}

void sh_worker_fail(sh_worker_link *w, const char *sentence)
{
    if (w->told) {
        sh_log(SH_LOG_ERROR, "%s", sentence);
        say_sentence(w, SH_FRAME_FAIL, sentence);
        w->told = false; /* the caller knows */
        end_session(w);
    }
    w->owe_end = false;
}

void sh_worker_close(sh_worker_link *w)
{
    if (!w) return;
    sh_hop_close(&w->hop);
    sh_link_close(&w->control, CLOSE_LINGER_MS);
    if (w->ctx) zmq_ctx_term(w->ctx);
    sh_buf_free(&w->buf);
    free(w);
}
