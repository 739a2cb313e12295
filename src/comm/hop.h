/* The data half of a node: takes microbatches in from the node before it and hands them on to the
 * node after it. The starter and the secondaries have the same. */
#ifndef SH_COMM_HOP_H
#define SH_COMM_HOP_H

#include "comm/link.h"
#include "comm/ring.h"
#include "comm/wire.h"

typedef enum sh_hop_state {
    SH_HOP_CLOSED,
    SH_HOP_OPEN,    /* takes in; is not connected to the next node yet */
    SH_HOP_JOINING, /* connecting */
    SH_HOP_JOINED,
    SH_HOP_CUT, /* the connection to the next node ended: microbatches are lost */
} sh_hop_state;

typedef struct sh_hop {
    sh_hop_state state;
    sh_link in, out;
    void *ctx;
    uint8_t session[SH_SESSION_BYTES];
    sh_step_limits limits;
    uint32_t n_embd;
    int port;              /* where it takes in */
    char next[1024];       /* the next node's name in messages */
    int64_t join_until_ms; /* while joining */
    sh_buf buf;
    sh_drops drops;
} sh_hop;

/** Binds host:port (0: any). Errors as sh_link_bind. */
sh_err sh_hop_open(sh_hop *h, void *ctx, const uint8_t session[SH_SESSION_BYTES],
                   const sh_load *load, const char *host, int port);
/** Starts to connect to the next node; sh_hop_watch says what came of it. SH_EPEER. */
sh_err sh_hop_join(sh_hop *h, const char *host, int port, const char *name);
/** Brings the state up to date, without waiting. SH_EPEER: the next node cannot be reached or is
 * lost; said once. */
sh_err sh_hop_watch(sh_hop *h);
/** *sent is false if the next node's queue is full or it is lost. */
sh_err sh_hop_send(sh_hop *h, const sh_step *step, const float *x, bool *sent);
/** The next microbatch, if one is there, into *step and x (n_batch, n_embd). Messages that are not
 * of this session are dropped. SH_EPEER: one of this session is malformed. */
sh_err sh_hop_recv(sh_hop *h, bool *got, sh_step *step, float *x);
/** Accepts a zeroed or closed hop. */
void sh_hop_close(sh_hop *h);

#endif
