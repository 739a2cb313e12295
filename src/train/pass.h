/* One pass of training: the loss of some sequences, forward, and the gradients of all parameters,
 * backward. Gradients of a batch are summed over its tokens in the canonical tree of 8 slices of
 * sequences, so 1, 2, 4 and 8 ranks give the same bits. */
#ifndef SH_TRAIN_PASS_H
#define SH_TRAIN_PASS_H

#include <stdint.h>

#include "comm/group.h"
#include "train/params.h"
#include "train/products.h"

typedef struct sh_pass sh_pass;

/* The sequences of a batch that one rank takes. A batch of n sequences is cut into 8 canonical
 * slices: slice s holds the sequences [n s / 8, n (s+1) / 8) (some may be empty); rank r of 1, 2, 4
 * or 8 owns sh_rank_slices(r, n_rank), a subtree. */
typedef struct sh_batch {
    int n_seq;          /* of the whole batch */
    sh_range slice;     /* this rank's slices */
    const int32_t *ids; /* (n_seq, n_ctx + 1): the whole batch's; targets are shifted by one */
} sh_batch;

/* Dropout: of the embeddings' sum and of both halves' outputs before they are added, and of
 * attention's weights. Which values are dropped depends on these numbers and the value's place in
 * the whole batch alone. */
typedef struct sh_dropout {
    float rate; /* 0: none */
    uint64_t seed, step;
} sh_dropout;

/** Scratch and stashed activations for up to n_seq sequences (of this rank) of n_ctx tokens.
 *  SH_ENOMEM says how much was needed. */
sh_err sh_pass_open(sh_pass **out, const sh_params *p, const sh_products *products, int n_seq);
void sh_pass_close(sh_pass *s); /* accepts NULL */

/** Loss only. loss (8): sums of the tokens' losses, natural logarithm, for this rank's slices; 0
 * for others. */
void sh_pass_forward(sh_pass *s, const sh_batch *b, double loss[8]);

/** Loss, and p->g (all but what sh_pass_embed_grad adds) = the gradient of (sum of this rank's
 * tokens' losses) / (n_seq n_ctx): the root of its subtree. Where each tensor's sum over tokens is
 * the tree sum of slices, tokens ascending within a slice.
 *  dx (n_seq n_ctx, n_embd) of the whole batch: this rank's rows are written (the gradient of the
 *  embeddings' sum), the other rows set to 0; summed over ranks by the caller like p->g. */
void sh_pass_backward(sh_pass *s, const sh_batch *b, const sh_dropout *drop, double loss[8],
                      float *dx);

/** p->g of embedding and positions += the rows of dx (summed over ranks), batch order. Every rank
 *  does the same. */
void sh_pass_embed_grad(sh_pass *s, const sh_batch *b, const float *dx);

/** Floating-point operations of products and attention of one forward and backward for n_tok tokens
 *  (for the share of the peak): 6 for each weight of the matrices, 12 n_layer n_q n_ctx for
 *  attention (causal: half of it is computed, as usual all of it is not counted: 6). */
double sh_pass_ops(const sh_arch *a, double n_tok);

#endif
