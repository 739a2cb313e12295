/* The forward pass: one function for every family, rank and stage. */
#ifndef SH_MODEL_FORWARD_H
#define SH_MODEL_FORWARD_H

#include <stdatomic.h>

#include "base/threads.h"
#include "comm/group.h"
#include "comm/step.h"
#include "kernels/kernels.h"
#include "model/kv.h"
#include "model/weights.h"

/* What a thread has before it, one to a cache line. */
typedef struct sh_share_of {
    _Alignas(64) atomic_int taken;   /* panels of its share of a product that are taken */
    const uint8_t *ask, *end_of_ask; /* of its share of the next product's, what to ask for */
} sh_share_of;

/* The matrices that are multiplied after those at work, up to the first NULL. */
typedef struct sh_next {
    const sh_weight *w[6];
} sh_next;

typedef struct sh_forward {
    const sh_config *config;
    const sh_plan *plan;
    const sh_weights *w;
    const sh_kernels *k;
    sh_kv *kv;
    sh_group *group;
    sh_pool *pool;
    int n_batch;     /* tokens of a step at most */
    int n_slot;      /* sequences, and so rows of logits, at most */
    bool arith_bf16; /* arithmetic of prompts: bf16, else int8 */

    /* scratch for one step, shapes in comments; _local: this rank's share */
    float *xn;            /* (n_batch, n_embd) */
    float *q, *kk, *v;    /* (n_batch, n_q_local), (n_batch, n_kv_local) twice */
    float *ao;            /* (n_batch, n_q_local) */
    float *gate, *up;     /* (n_batch, n_ff_local); gate only where the family has one */
    float *y;             /* (n_batch, n_embd) */
    float *cos, *sin;     /* (n_batch, n_rot/2) */
    double *freq;         /* (n_rot/2) */
    void *act[SH_N_FORM]; /* (n_batch, act_bytes): activations prepared for a product */
    size_t act_bytes[SH_N_FORM];
    sh_range *vocab; /* columns of the head of each rank */
    float *span;     /* (n_thread, span_floats): parts of attention */
    size_t span_floats;
    int *tok_slot, *tok_pos; /* (n_batch) */
    int n_tok, n_sampled; /* of the step under way: the first n_sampled tokens are sampled ones */
    sh_range *block;      /* n_block runs of tokens that attention takes together */
    long *unit;           /* (n_block + 1): units of work (attend.c) before each, for one KV head */
    int n_block, n_single; /* of these the first n_single are single tokens */
    sh_share_of *share;    /* (n_thread) */
    sh_next next;
    bool attend_bf16; /* prompts of some layer attend in bf16 */
} sh_forward;

enum { SH_ROWS = 128 }; /* queries that attention takes together at most */

/** Allocates the scratch; the fields above it are set by the caller. Floats of a group part and
 * bytes of a broadcast that the caller must have given the group: sh_forward_part_floats. The pool
 * must be closed before f: its threads look there while they wait. */
sh_err sh_forward_open(sh_forward *f);
void sh_forward_close(sh_forward *f);
size_t sh_forward_part_floats(const sh_config *c, int n_rank, int n_batch, int n_slot);

/** x (step->n_tok, n_embd) = the embeddings of the step's tokens, which are ids (n_tok), each below
 * n_vocab, with those of their positions where the family learns them. On the starter's rank 0. */
void sh_forward_embed(const sh_forward *f, const sh_step *step, const uint32_t *ids, float *x);

/** Takes x (step->n_tok, n_embd) through the layers of this stage, in place, on every rank alike.
 *  Sampled sequences come before prompts in a step. SH_EPEER: a malformed step, or a lost rank. */
sh_err sh_forward_layers(sh_forward *f, const sh_step *step, float *x);

/** On the starter: logits (number of sequences that want them, n_vocab) of the last tokens of the
 * step's sequences that want logits, in the step's order; on rank 0, the others may give NULL. */
sh_err sh_forward_head(sh_forward *f, const sh_step *step, const float *x, float *logits);

#endif
