/* ZeroMQ, as the ring uses it.
 *
 * A peer's life is watched on control connections by ZeroMQ's heartbeats: its I/O thread answers
 * them, so a node that computes or loads for minutes is alive, and one whose process is stopped or
 * whose host is gone is not. Data connections have none: a heartbeat would wait its turn behind
 * megabytes of activations on a slow link; there the kernel gives up on bytes that nobody
 * acknowledges. */
#define _GNU_SOURCE
#include "comm/link.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/log.h"

/* A peer that is gone is found after at most HEARTBEAT_IVL_MS + HEARTBEAT_TIMEOUT_MS. */
enum {
    HEARTBEAT_IVL_MS = 1000,
    HEARTBEAT_TIMEOUT_MS = 6000,
    UNACKNOWLEDGED_MS = 8000,
    HANDSHAKE_MS = 5000,
    MONITOR_QUEUE = 100000, /* ZeroMQ's I/O thread stands still when it is full */
    DROP_QUIET_MS = 5000,
};

int64_t sh_link_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool set_int(void *sock, int option, int value)
{
    return zmq_setsockopt(sock, option, &value, sizeof value) == 0;
}

static bool set_options(void *sock, const sh_link_options *o)
{
    int64_t max_bytes = (int64_t)o->max_bytes;
    bool ok = zmq_setsockopt(sock, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) == 0;
    ok &= set_int(sock, ZMQ_LINGER, 0);
    ok &= set_int(sock, ZMQ_SNDHWM, o->max_queued) && set_int(sock, ZMQ_RCVHWM, o->max_queued);
    ok &= set_int(sock, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    ok &= set_int(sock, ZMQ_RECONNECT_IVL, o->reconnect_ms);
    ok &= set_int(sock, ZMQ_TCP_KEEPALIVE, 1) && set_int(sock, ZMQ_TCP_KEEPALIVE_IDLE, 2) &&
          set_int(sock, ZMQ_TCP_KEEPALIVE_INTVL, 2) && set_int(sock, ZMQ_TCP_KEEPALIVE_CNT, 3);
    ok &= set_int(sock, ZMQ_TCP_MAXRT, UNACKNOWLEDGED_MS);
    if (o->heartbeat)
        ok &= set_int(sock, ZMQ_HEARTBEAT_IVL, HEARTBEAT_IVL_MS) &&
              set_int(sock, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS) &&
              set_int(sock, ZMQ_HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS);
    if (o->type == ZMQ_ROUTER) ok &= set_int(sock, ZMQ_ROUTER_MANDATORY, 1);
    if (o->type == ZMQ_PUSH) ok &= set_int(sock, ZMQ_IMMEDIATE, 1);
    return ok;
}

static bool open_monitor(sh_link *l, void *ctx, int events)
{
    static atomic_uint serial;
    char name[64];
    snprintf(name, sizeof name, "inproc://connections-%u", atomic_fetch_add(&serial, 1));
    l->mon = zmq_socket(ctx, ZMQ_PAIR);
    return l->mon && set_int(l->mon, ZMQ_RCVHWM, MONITOR_QUEUE) && set_int(l->mon, ZMQ_LINGER, 0) &&
           zmq_socket_monitor(l->sock, name, events) == 0 && zmq_connect(l->mon, name) == 0;
}

sh_err sh_link_open(sh_link *l, void *ctx, const sh_link_options *opt)
{
    *l = (sh_link){0};
    l->sock = zmq_socket(ctx, opt->type);
    if (l->sock && set_options(l->sock, opt) && (!opt->events || open_monitor(l, ctx, opt->events)))
        return SH_OK;
    int e = zmq_errno();
    sh_link_close(l, 0);
    return sh_fail(SH_ESYS, "the system refuses a network socket: %s", zmq_strerror(e));
}

void sh_link_close(sh_link *l, int linger_ms)
{
    if (l->sock) {
        if (l->mon) zmq_socket_monitor(l->sock, NULL, 0);
        set_int(l->sock, ZMQ_LINGER, linger_ms);
        zmq_close(l->sock);
    }
    if (l->mon) zmq_close(l->mon);
    *l = (sh_link){0};
}

/* ---- addresses ---- */

/* The lookup runs in a thread of the C library: a name server that is silent may hold it for
 * minutes. The request is then left to it for good, because it cannot be called back. */
static sh_err look_up(const char *host, int timeout_ms, struct addrinfo **out)
{
    struct {
        struct gaicb cb;
        struct addrinfo hints;
        char host[256];
    } *ask = calloc(1, sizeof *ask);
    if (!ask) return sh_fail(SH_ENOMEM, "no memory to look up %s", host);
    snprintf(ask->host, sizeof ask->host, "%s", host);
    ask->hints = (struct addrinfo){.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    ask->cb = (struct gaicb){.ar_name = ask->host, .ar_request = &ask->hints};
    const struct gaicb *wait[] = {&ask->cb};
    int64_t until = sh_link_now_ms() + timeout_ms;
    int e = getaddrinfo_a(GAI_NOWAIT, (struct gaicb *[]){&ask->cb}, 1, NULL);
    if (e == 0) {
        while ((e = gai_error(&ask->cb)) == EAI_INPROGRESS) {
            int64_t left = until - sh_link_now_ms();
            if (left <= 0)
                return sh_fail(
                    SH_EPEER, "the name %s does not resolve: no answer from the name server", host);
            gai_suspend(wait, 1, &(struct timespec){left / 1000, left % 1000 * 1000000});
        }
        *out = ask->cb.ar_result;
    }
    free(ask);
    if (e == 0 && *out) return SH_OK;
    return sh_fail(SH_EPEER,
                   "the name %s does not resolve (%s); write a known name or an IP address", host,
                   e ? gai_strerror(e) : "no address");
}

/* IPv4 goes first where a name has both: "localhost" does, and people bind 127.0.0.1. */
static sh_err resolve(const char *host, int timeout_ms, char *numeric, size_t cap, bool *v6)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *list = NULL;
    if (getaddrinfo(host, NULL, &hints, &list) != 0) SH_TRY(look_up(host, timeout_ms, &list));
    const struct addrinfo *a = list;
    for (const struct addrinfo *i = list; i; i = i->ai_next)
        if (i->ai_family == AF_INET) {
            a = i;
            break;
        }
    *v6 = a->ai_family == AF_INET6;
    int e =
        getnameinfo(a->ai_addr, a->ai_addrlen, numeric, (socklen_t)cap, NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(list);
    return e ? sh_fail(SH_EPEER, "the name %s does not resolve (%s)", host, gai_strerror(e))
             : SH_OK;
}

static sh_err bind_failure(int e, const char *host, int port)
{
    const char *l = strchr(host, ':') ? "[" : "", *r = *l ? "]" : "";
    if (e == EADDRINUSE)
        return sh_fail(SH_EARG,
                       "%s%s%s:%d is in use; choose another port or end what listens there", l,
                       host, r, port);
    if (e == EADDRNOTAVAIL || e == ENODEV)
        return sh_fail(SH_EARG, "%s%s%s:%d: this machine does not have that address", l, host, r,
                       port);
    if (e == EACCES)
        return sh_fail(SH_EARG, "%s%s%s:%d: not allowed; choose a port above 1023", l, host, r,
                       port);
    return sh_fail(SH_ESYS, "cannot listen on %s%s%s:%d: %s", l, host, r, port, zmq_strerror(e));
}

static int port_of(void *sock)
{
    char name[256] = "";
    size_t n = sizeof name;
    zmq_getsockopt(sock, ZMQ_LAST_ENDPOINT, name, &n);
    const char *colon = strrchr(name, ':');
    return colon ? atoi(colon + 1) : 0;
}

sh_err sh_link_bind(sh_link *l, const char *host, int port, int patience_ms, int *bound)
{
    char numeric[128] = "*", endpoint[192];
    bool v6 = true;
    int64_t until = sh_link_now_ms() + patience_ms;
    if (host[0] && resolve(host, 8000, numeric, sizeof numeric, &v6))
        return sh_fail(SH_EARG, "%s", sh_err_message());
    for (;;) {
        const char *format = v6 && host[0] ? "tcp://[%s]:%s" : "tcp://%s:%s";
        char port_text[8] = "*";
        if (port) snprintf(port_text, sizeof port_text, "%d", port);
        snprintf(endpoint, sizeof endpoint, format, numeric, port_text);
        set_int(l->sock, ZMQ_IPV6, v6);
        if (zmq_bind(l->sock, endpoint) == 0) break;
        int e = zmq_errno();
        if (!host[0] && v6 && e != EADDRINUSE) { /* every address of a machine without IPv6 */
            v6 = false;
            continue;
        }
        if (e != EADDRINUSE || sh_link_now_ms() >= until) return bind_failure(e, host, port);
        nanosleep(&(struct timespec){0, 20 * 1000000}, NULL);
    }
    *bound = port_of(l->sock);
    return SH_OK;
}

sh_err sh_link_connect(sh_link *l, const char *host, int port, int timeout_ms)
{
    char numeric[128], endpoint[192];
    bool v6;
    SH_TRY(resolve(host, timeout_ms, numeric, sizeof numeric, &v6));
    snprintf(endpoint, sizeof endpoint, v6 ? "tcp://[%s]:%d" : "tcp://%s:%d", numeric, port);
    set_int(l->sock, ZMQ_IPV6, v6);
    if (zmq_connect(l->sock, endpoint) == 0) return SH_OK;
    return sh_fail(SH_EPEER, "cannot connect to %s port %d: %s", host, port,
                   zmq_strerror(zmq_errno()));
}

/* ---- messages ---- */

bool sh_link_event(sh_link *l, int *event, int *fd)
{
    uint8_t head[6]; /* what ZeroMQ writes: event and value in this machine's byte order */
    uint16_t e;
    char peer[1];
    if (!l->mon) return false;
    int n = zmq_recv(l->mon, head, sizeof head, ZMQ_DONTWAIT);
    if (n < 0) return false;
    zmq_recv(l->mon, peer, sizeof peer, ZMQ_DONTWAIT);
    memcpy(&e, head, sizeof e);
    memcpy(fd, head + 2, sizeof *fd);
    *event = e;
    return true;
}

bool sh_link_recv(sh_link *l, sh_message *m)
{
    bool more = true;
    m->n = 0;
    zmq_msg_init(&m->part[0]);
    while (zmq_msg_recv(&m->part[0], l->sock, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() == EINTR) continue;
        zmq_msg_close(&m->part[0]);
        return false;
    }
    m->n = 1;
    /* The parts of a message arrive together: none of the following has to be waited for. */
    for (more = zmq_msg_more(&m->part[0]); more && m->n < SH_LINK_PARTS; m->n++) {
        zmq_msg_init(&m->part[m->n]);
        if (zmq_msg_recv(&m->part[m->n], l->sock, 0) < 0) {
            sh_message_close(m);
            return true;
        }
        more = zmq_msg_more(&m->part[m->n]);
    }
    if (!more) return true;
    sh_message_close(m);
    while (more) {
        zmq_msg_t rest;
        zmq_msg_init(&rest);
        more = zmq_msg_recv(&rest, l->sock, 0) >= 0 && zmq_msg_more(&rest);
        zmq_msg_close(&rest);
    }
    return true;
}

void sh_message_close(sh_message *m)
{
    for (int i = 0; i < m->n; i++) zmq_msg_close(&m->part[i]);
    m->n = 0;
}

bool sh_link_send(sh_link *l, const void *p, size_t n, int flags)
{
    int sent;
    do sent = zmq_send(l->sock, p, n, flags | ZMQ_DONTWAIT);
    while (sent < 0 && zmq_errno() == EINTR);
    return sent >= 0;
}

void sh_drops_note(sh_drops *d, const char *where, const sh_message *m)
{
    int64_t now = sh_link_now_ms();
    if (now < d->quiet_until_ms) {
        d->n_more++;
        return;
    }
    const char *peer = m->n ? zmq_msg_gets(&m->part[m->n - 1], "Peer-Address") : NULL;
    size_t n = m->n ? zmq_msg_size(&m->part[m->n - 1]) : 0;
    sh_log(SH_LOG_WARN,
           "dropped a message on the %s connection that is not of this session (from %s, %zu "
           "bytes; %u more before)",
           where, peer ? peer : "an unknown peer", n, d->n_more);
    *d = (sh_drops){.quiet_until_ms = now + DROP_QUIET_MS};
}
