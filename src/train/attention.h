/* Attention of training: causal, over the positions of one sequence, KV heads shared by groups of
 * heads. */
#ifndef SH_TRAIN_ATTENTION_H
#define SH_TRAIN_ATTENTION_H

#include "train/state.h"

/** Bytes of scratch that a thread needs. */
size_t sh_attention_bytes(const sh_pass *s);

/** The layer's ao, max and sum, from its qkv, to which biases and rotation are still to come. */
void sh_attention_forward(sh_pass *s, int layer);
/** s->d (n_tok, n_qkv) = the gradient of qkv, from dao (n_tok, n_q), ao's. */
void sh_attention_back(sh_pass *s, int layer, const float *dao);

#endif
