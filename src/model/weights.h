/* The weights of one rank: its share of its stage's tensors, packed. */
#ifndef SH_MODEL_WEIGHTS_H
#define SH_MODEL_WEIGHTS_H

#include "base/threads.h"
#include "model/plan.h"

typedef struct sh_weights {
    const sh_config *config;
    const sh_plan *plan;
    sh_layer *layer; /* plan->layer of them */
    sh_ends ends;
    uint8_t *arena; /* all packed matrices */
    size_t n_bytes;
} sh_weights;

/** What sh_weights_load would allocate, bytes. */
size_t sh_weights_bytes(const sh_config *c, const sh_model_file *m, const sh_plan *p);

/** Loads and packs. Reads only this rank's share of the file; the file must stay open (the
 * embedding is looked up in it). SH_ENOMEM says how much was needed. */
sh_err sh_weights_load(sh_weights *w, const sh_config *c, const sh_model_file *m, const sh_plan *p,
                       sh_pool *pool);
void sh_weights_free(sh_weights *w);

#endif
