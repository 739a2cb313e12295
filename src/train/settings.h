/* The numbers of a training run that stay the same from its first iteration to its last, also when
 * it is broken off and goes on; and the learning rate that follows from them. */
#ifndef SH_TRAIN_SETTINGS_H
#define SH_TRAIN_SETTINGS_H

#include <stdint.h>

#include "base/cursor.h"
#include "base/dtype.h"

typedef struct sh_settings {
    int batch_size; /* sequences of a micro-batch, over all ranks */
    int n_acc;      /* micro-batches of an iteration */
    int max_iters, warmup;
    int decay_iters; /* the cosine ends there; 0: max_iters */
    int ckpt_interval, log_interval, eval_iters;
    int patience; /* evaluations without improvement before it stops; 0: no limit */
    int always_update;
    int dtype; /* of the operands: SH_BF16 or SH_F32 */
    int64_t seed;
    float lr, min_lr, weight_decay, beta1, beta2;
    float grad_clip; /* 0: none */
    float dropout;
} sh_settings;

/** nanoGPT's, where it has them. */
extern const sh_settings sh_settings_default;

void sh_settings_put(const sh_settings *s, sh_buf *b);
/** c->bad if there are too few bytes; values are not checked. */
void sh_settings_get(sh_settings *s, sh_cursor *c);

/** Of iteration number iter, from 0: from lr / warmup up to lr in a line, then down to min_lr in
 * half a cosine. */
double sh_settings_lr(const sh_settings *s, int64_t iter);

#endif
