/* The head and the cross-entropy, some tokens at a time: all logits of a batch would be too many.
 */
#ifndef SH_TRAIN_LOSS_H
#define SH_TRAIN_LOSS_H

#include "train/state.h"

enum { SH_CHUNK = 256 }; /* tokens whose logits are made at once, at most */

/** Floats of scratch that a thread needs. */
size_t sh_loss_floats(void);

/** loss (8) as pass.h says, from s->rows, the last norm's output. `back`: also s->dxn (n_tok,
 *  n_embd), the gradient of that output, and s->cols[0], that of the logits. */
void sh_loss(sh_pass *s, double loss[8], bool back);

#endif
