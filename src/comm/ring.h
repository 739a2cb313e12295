/* The ring: starter, secondary 0, secondary 1, ..., starter, over ZeroMQ. A control connection from
 * the starter to every secondary settles who computes what; activations then go round, each node
 * sending to the next. docs/protocol.md has the frames.
 *
 * All functions of one ring are called from one thread. */
#ifndef SH_COMM_RING_H
#define SH_COMM_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "comm/nodes.h"
#include "comm/step.h"

enum { SH_PROTOCOL = 1, SH_MAX_STAGE = 64 };

/* What a node says of itself. */
typedef struct sh_welcome {
    uint8_t model_hash[16];
    uint32_t n_layer, n_embd;
    bool has_amx;     /* can run bf16 prompts at speed */
    char version[32]; /* of the program */
    uint32_t n_rank;  /* ranks of its group */
} sh_welcome;

/* What the starter asks of a secondary. */
typedef struct sh_load {
    uint8_t model_hash[16];
    uint32_t stage, n_stage;     /* this node is stage `stage` of n_stage; the starter is stage 0 */
    uint32_t layer_lo, layer_hi; /* half-open */
    uint32_t n_embd;             /* floats of one token's activations */
    uint32_t n_ctx, n_slot, n_batch;
    uint32_t arith; /* arithmetic of prompts */
    uint32_t kv;    /* element type of the KV cache */
} sh_load;

/* ---- starter ---- */

typedef struct sh_ring sh_ring;

/** Connects to every secondary and greets it. SH_EPEER, within timeout_ms: a node does not answer,
 *  speaks another protocol, or is busy with another starter; the sentence names its address. */
sh_err sh_ring_open(sh_ring **out, const sh_nodes *nodes, int timeout_ms);
const sh_welcome *sh_ring_welcome(const sh_ring *r, int node); /* node: 0 = first secondary */

/** Sends load[i] to secondary i, waits until all have loaded (no limit of time while they live),
 *  then joins them to a ring. SH_EPEER: one refused or was lost. */
sh_err sh_ring_load(sh_ring *r, const sh_load *load);

/** Sends one microbatch to the first secondary: x (step->n_tok, n_embd). Copies. Never blocks
 * longer than it takes to queue; SH_EPEER as sh_ring_recv. */
sh_err sh_ring_send(sh_ring *r, const sh_step *step, const float *x);

/** The next microbatch that has gone round: its step id and x (n_tok, n_embd) copied to x, which
 * has room for n_batch tokens. Waits up to timeout_ms (-1 no limit); *got false if none came, or a
 * signal interrupted the wait. SH_EPEER: a node was lost or reported a failure; the sentence names
 * the node; found within 10 s even if the node's host vanished. The ring can then only be closed.
 */
sh_err sh_ring_recv(sh_ring *r, int timeout_ms, bool *got, uint64_t *step_id, uint32_t *n_tok,
                    float *x);

/** Ends the session on every secondary, which then wait for the next starter. Accepts NULL. */
void sh_ring_close(sh_ring *r);

/* ---- secondary ---- */

typedef struct sh_worker_link sh_worker_link;

/** Binds the control port (a.port 0: any free one). SH_EARG: the port is in use or the address is
 * not this machine's; the sentence says so. */
sh_err sh_worker_listen(sh_worker_link **out, const sh_node_addr *a, const sh_welcome *self);
int sh_worker_port(const sh_worker_link *w);

typedef enum sh_worker_event {
    SH_WORKER_LOAD, /* a starter asks: answer with sh_worker_ready or sh_worker_refuse */
    SH_WORKER_STEP, /* compute, then sh_worker_forward */
    SH_WORKER_END,  /* the session is over (ended or its starter was lost): let go, wait again */
    SH_WORKER_STOP, /* stop_fd became readable: close and leave */
} sh_worker_event;

/** Waits for the next event. Strangers' bytes are logged and dropped here. stop_fd: a descriptor
 * that becomes readable when the worker shall stop (-1: none). For SH_WORKER_LOAD *load is filled;
 * for SH_WORKER_STEP *step and x (room for n_batch tokens as given in `load`). */
sh_err sh_worker_wait(sh_worker_link *w, int stop_fd, sh_worker_event *event, sh_load *load,
                      sh_step *step, float *x);
/* If the session has ended meanwhile, these do nothing, and the next wait gives SH_WORKER_END (not
 * after a refusal or a failure of the caller's own: those end the session as the caller knows). */
sh_err sh_worker_ready(sh_worker_link *w);
sh_err sh_worker_refuse(sh_worker_link *w, const char *sentence);
/** Sends the microbatch on to the next node. */
sh_err sh_worker_forward(sh_worker_link *w, const sh_step *step, const float *x);
/** Tells the starter that this node cannot go on; the session is over. */
void sh_worker_fail(sh_worker_link *w, const char *sentence);
void sh_worker_close(sh_worker_link *w);

#endif
