/* What happens to tokens between products, block by block: norms, activations, dropout, the
 * residual stream, and the making of operands. */
#ifndef SH_TRAIN_BLOCKS_H
#define SH_TRAIN_BLOCKS_H

#include "train/state.h"

/* Places of dropout; a layer has one at the end of each half (0 attention, 1 feed forward), and one
 * for its attention's weights. */
enum { SH_SITE_EMBD = 0 };
static inline uint32_t sh_site_half(int layer, int half)
{
    return 1 + 4 * (uint32_t)layer + (uint32_t)half;
}
static inline uint32_t sh_site_attention(int layer)
{
    return 1 + 4 * (uint32_t)layer + 2;
}

/* A norm, by where its parts begin in p->w. */
typedef struct sh_norm_at {
    size_t g, b;
} sh_norm_at;

/** Floats of scratch that a thread needs. */
size_t sh_blocks_floats(const sh_pass *s);
/** Floats of the widest sums of a block. */
size_t sh_blocks_sums(const sh_pass *s);

/* What a block of tokens' rows of `width` columns become: any of these operands, or NULL. */
typedef struct sh_block_operands {
    int width;
    void *rows, *cols, *right;
} sh_block_operands;

/** The columns [at, at + n) of a block's rows, x (b->n, ldx), become their part of the operands; at
 * is a multiple of SH_RUN, and so is n if others follow. */
void sh_block_spread(const sh_pass *s, const sh_block *b, const float *x, size_t ldx, int at, int n,
                     sh_block_operands o);

/* Forward. */

/** x = the embeddings of the batch; s->rows = the norm of x. */
void sh_blocks_embed(sh_pass *s, float *x, sh_norm_at norm);
/** y = x + dropout(y + bias); s->rows = the norm of y. */
void sh_blocks_join(sh_pass *s, float *y, const float *x, size_t bias, uint32_t site,
                    sh_norm_at norm);
/** s->rows = the activation of u and its bias. */
void sh_blocks_activate(sh_pass *s, int layer);

/* Backward. dx (n_tok, n_embd) is the gradient of the residual stream. */

/** s->right[0] = the norm of x. */
void sh_blocks_norm(sh_pass *s, const float *x, sh_norm_at norm);

/* To where a half of a layer ends, through the norm that comes next, of x, whose output's gradient
 * is s->dxn: dx += the way back through it; the norm's gradients. Then s->rows and s->cols[0] = the
 * gradient of the half's last product, and its bias's gradient. */

/** The end of the embeddings: dx is their gradient. */
void sh_blocks_leave(sh_pass *s, float *dx, const float *x, sh_norm_at norm);
void sh_blocks_leave_ffn(sh_pass *s, float *dx, int layer, const float *x, sh_norm_at norm);
/** Also s->right[0] = ao. */
void sh_blocks_leave_attention(sh_pass *s, float *dx, int layer, const float *x, sh_norm_at norm);

/* To where a half begins: s->rows and s->cols = the gradient of its first product, s->right that
 * product's input, the norm; its bias's gradient. */

/** From s->d, the gradient of the activation. In s->cols[1] and s->right[1]; s->right[0] = the
 *  activation. */
void sh_blocks_enter_ffn(sh_pass *s, int layer, sh_norm_at norm);
/** From s->d, the gradient of qkv, but where attention has done that (sh_pass_heads_apart). In
 * s->cols[0] and s->right[0]. */
void sh_blocks_enter_attention(sh_pass *s, int layer, sh_norm_at norm);

#endif
