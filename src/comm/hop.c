/* Microbatches in and out: one PULL socket that is bound, one PUSH socket that is connected. */
#define _GNU_SOURCE
#include "comm/hop.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    QUEUE = 256, /* microbatches at each end of a connection; many times what a scheduler keeps on a
                    ring */
    JOIN_MS = 8000,
    TAKE_MESSAGES = 64, /* looked at in one go: a flood of strangers' does not hold up the rest */
    BIND_PATIENCE_MS = 2000, /* an earlier session's socket is closed in the background */
};

sh_err sh_hop_open(sh_hop *h, void *ctx, const uint8_t session[SH_SESSION_BYTES],
                   const sh_load *load, const char *host, int port)
{
    *h = (sh_hop){.ctx = ctx, .n_embd = load->n_embd};
    h->limits = (sh_step_limits){load->n_slot, load->n_ctx, load->n_batch};
    memcpy(h->session, session, SH_SESSION_BYTES);
    size_t step = SH_STEP_HEAD_BYTES + sh_step_max_bytes(&h->limits);
    size_t x = (size_t)load->n_batch * load->n_embd * 4;
    sh_link_options opt = {.type = ZMQ_PULL, .max_bytes = step > x ? step : x, .max_queued = QUEUE};
    sh_err err;
    SH_GOTO(sh_link_open(&h->in, ctx, &opt));
    SH_GOTO(sh_link_bind(&h->in, host, port, BIND_PATIENCE_MS, &h->port));
    h->state = SH_HOP_OPEN;
    return SH_OK;
out:
    sh_hop_close(h);
    return err;
}

sh_err sh_hop_join(sh_hop *h, const char *host, int port, const char *name)
{
    sh_link_options opt = {.type = ZMQ_PUSH,
                           .events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED,
                           .max_bytes = SH_CONTROL_MAX_BYTES, /* nothing comes back on it */
                           .max_queued = QUEUE,
                           .reconnect_ms = -1};
    snprintf(h->next, sizeof h->next, "%s", name);
    SH_TRY(sh_link_open(&h->out, h->ctx, &opt));
    SH_TRY(sh_link_connect(&h->out, host, port, JOIN_MS));
    h->state = SH_HOP_JOINING;
    h->join_until_ms = sh_link_now_ms() + JOIN_MS;
    return SH_OK;
}

sh_err sh_hop_watch(sh_hop *h)
{
    int event, fd;
    while (sh_link_event(&h->out, &event, &fd)) {
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED && h->state == SH_HOP_JOINING)
            h->state = SH_HOP_JOINED;
        if (event == ZMQ_EVENT_DISCONNECTED && h->state == SH_HOP_JOINED) {
            h->state = SH_HOP_CUT;
            return sh_fail(SH_EPEER, "the data connection to the next node, %s, ended", h->next);
        }
    }
    if (h->state != SH_HOP_JOINING || sh_link_now_ms() < h->join_until_ms) return SH_OK;
    h->state = SH_HOP_CUT;
    return sh_fail(SH_EPEER,
                   "no data connection to the next node, %s, within %d s: is the address of "
                   "the nodes file reachable from here?",
                   h->next, JOIN_MS / 1000);
}

sh_err sh_hop_send(sh_hop *h, const sh_step *step, const float *x, bool *sent)
{
    size_t n = (size_t)step->n_tok * h->n_embd;
    zmq_msg_t body;
    *sent = false;
    h->buf.n = 0;
    sh_wire_put_step(&h->buf, h->session, step);
    if (h->buf.bad || zmq_msg_init_size(&body, n * 4))
        return sh_fail(SH_ENOMEM, "no memory for a microbatch of %zu bytes", n * 4);
    sh_wire_put_floats(zmq_msg_data(&body), x, n);
    if (sh_link_send(&h->out, h->buf.p, h->buf.n, ZMQ_SNDMORE)) {
        int r;
        do r = zmq_msg_send(&body, h->out.sock, ZMQ_DONTWAIT);
        while (r < 0 && zmq_errno() == EINTR);
        *sent = r >= 0; /* if not, ZeroMQ has taken the first part back */
    }
    zmq_msg_close(&body); /* empty where it was sent */
    return SH_OK;
}

static sh_err take(sh_hop *h, const sh_message *m, sh_step *step, float *x)
{
    const void *head = zmq_msg_data((zmq_msg_t *)&m->part[0]);
    SH_TRY(sh_wire_get_step(step, head, zmq_msg_size(&m->part[0]), &h->limits));
    size_t n = (size_t)step->n_tok * h->n_embd;
    if (m->n != 2 || zmq_msg_size(&m->part[1]) != n * 4)
        return sh_fail(SH_EPEER, "step %" PRIu64 " came without its %zu bytes of activations",
                       step->id, n * 4);
    sh_wire_get_floats(x, zmq_msg_data((zmq_msg_t *)&m->part[1]), n);
    return SH_OK;
}

sh_err sh_hop_recv(sh_hop *h, bool *got, sh_step *step, float *x)
{
    sh_message m;
    sh_err err = SH_OK;
    *got = false;
    for (int i = 0; i < TAKE_MESSAGES && !*got && !err && sh_link_recv(&h->in, &m); i++) {
        if (m.n &&
            sh_wire_is_step_of(zmq_msg_data(&m.part[0]), zmq_msg_size(&m.part[0]), h->session)) {
            err = take(h, &m, step, x);
            *got = err == SH_OK;
        } else {
            sh_drops_note(&h->drops, "data", &m);
        }
        sh_message_close(&m);
    }
    return err;
}

void sh_hop_close(sh_hop *h)
{
    sh_link_close(&h->in, 0);
    sh_link_close(&h->out, 0);
    sh_buf_free(&h->buf);
    *h = (sh_hop){0};
}
