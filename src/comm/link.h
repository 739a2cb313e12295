/* What the two ends of the ring share of ZeroMQ: sockets with our options, the coming and going of
 * their connections, whole messages, and addresses. */
#ifndef SH_COMM_LINK_H
#define SH_COMM_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>

#include "base/cursor.h"
#include "base/err.h"

/* A socket and, where its connections are watched, the inproc socket that tells of them. */
typedef struct sh_link {
    void *sock, *mon;
} sh_link;

typedef struct sh_link_options {
    int type;         /* ZMQ_DEALER ... */
    int events;       /* of connections to tell of: ZMQ_EVENT_... */
    size_t max_bytes; /* a longer message part closes the connection it came by */
    int max_queued;   /* messages, per direction and connection */
    bool heartbeat;   /* ask the peer for a sign of life; see link.c */
    int reconnect_ms; /* -1: a connection that ended stays away */
} sh_link_options;

/** ctx: of zmq_ctx_new. SH_ESYS. */
sh_err sh_link_open(sh_link *l, void *ctx, const sh_link_options *opt);
/** Unsent messages are kept for linger_ms at most. Accepts a zeroed link. */
void sh_link_close(sh_link *l, int linger_ms);

/** Binds "tcp", port 0 being any; *bound is the port. Tries for up to patience_ms while the port is
 * in use. SH_EARG: in use, or not an address of this machine. */
sh_err sh_link_bind(sh_link *l, const char *host, int port, int patience_ms, int *bound);
/** Starts to connect. SH_EPEER: the name does not resolve within timeout_ms. */
sh_err sh_link_connect(sh_link *l, const char *host, int port, int timeout_ms);

/** The next thing that happened to a connection; false if nothing has. fd: the connection's
 * descriptor, for ZMQ_EVENT_DISCONNECTED. */
bool sh_link_event(sh_link *l, int *event, int *fd);

/* A message taken in whole. Never holds more than these parts; a longer one is swallowed with n =
 * 0. */
enum { SH_LINK_PARTS = 2 };
typedef struct sh_message {
    zmq_msg_t part[SH_LINK_PARTS];
    int n;
} sh_message;

/** Without waiting; false if there is none. Close it each time that it was true. */
bool sh_link_recv(sh_link *l, sh_message *m);
void sh_message_close(sh_message *m);

/** One part, without waiting; false with errno if it cannot be queued. */
bool sh_link_send(sh_link *l, const void *p, size_t n, int flags);

int64_t sh_link_now_ms(void);

/* Strangers' messages: one line each few seconds. */
typedef struct sh_drops {
    int64_t quiet_until_ms;
    unsigned n_more;
} sh_drops;
void sh_drops_note(sh_drops *d, const char *where, const sh_message *m);

#endif
