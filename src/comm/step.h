/* The description of one step: which tokens of which sequences pass through the layers. It travels
 * ahead of the activations through the ring and is broadcast in every group, and everything a node
 * does to its KV cache follows from it, so that all nodes' caches agree without asking. */
#ifndef SH_COMM_STEP_H
#define SH_COMM_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cursor.h"
#include "base/err.h"

/* Done in order before the step's tokens. */
typedef enum sh_op_kind {
    SH_OP_FREE = 1, /* slot's pages are given back */
    SH_OP_FORK,     /* slot becomes a copy of the first n_pos positions of src, sharing its pages */
} sh_op_kind;

typedef struct sh_step_op {
    sh_op_kind kind;
    uint32_t slot, src, n_pos;
} sh_step_op;

/* A run of consecutive tokens of one sequence. */
typedef struct sh_step_seq {
    uint32_t slot;  /* which KV slot */
    uint32_t pos;   /* position of its first token */
    uint32_t n_tok; /* at least 1 */
    bool prompt;    /* prompt tokens (else sampled ones): chooses the arithmetic */
    bool logits;    /* the logits of its last token are wanted */
} sh_step_seq;

typedef struct sh_step {
    uint64_t id;
    uint32_t n_op, n_seq;
    uint32_t n_tok; /* sum over seq */
    sh_step_op *op; /* owned, capacities below */
    sh_step_seq *seq;
    size_t cap_op, cap_seq;
} sh_step;

/* The most that a step may name; a step beyond it is refused. */
typedef struct sh_step_limits {
    uint32_t n_slot, n_ctx, n_batch; /* n_batch: tokens in a step */
} sh_step_limits;

void sh_step_encode(const sh_step *s, sh_buf *b);
/** The longest encoding of a step within the limits (which allow 4 operations per slot). */
size_t sh_step_max_bytes(const sh_step_limits *limits);
/** Fills *s (zeroed or used before: its memory is used again). SH_EPEER: malformed or over limits;
 *  then *s describes nothing. */
sh_err sh_step_decode(sh_step *s, sh_cursor *c, const sh_step_limits *limits);
sh_err sh_step_add_op(sh_step *s, sh_step_op op);
sh_err sh_step_add_seq(sh_step *s, sh_step_seq seq);
void sh_step_clear(sh_step *s); /* keeps the memory */
void sh_step_free(sh_step *s);

#endif
