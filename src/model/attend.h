/* The attention of a layer, shared out over the threads. */
#ifndef SH_MODEL_ATTEND_H
#define SH_MODEL_ATTEND_H

#include "model/forward.h"

/** Before the layers of a step whose tokens' slots and positions are noted: how it is shared out.
 */
void sh_attend_begin(sh_forward *f, const sh_step *step);

/** f->ao (n_tok, n_q_local) = attention of f->q over the caches of the tokens' sequences, in
 * `layer` of this stage. bf16: that of prompts in bf16 arithmetic. */
void sh_attend(sh_forward *f, int layer, bool bf16);

/** Floats of f->span that a thread needs. */
size_t sh_attend_floats(const sh_forward *f);

#endif
