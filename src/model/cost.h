/* What a token costs, whoever computes it: the numbers that ceilings of speed are made of. */
#ifndef SH_MODEL_COST_H
#define SH_MODEL_COST_H

#include "model/family.h"

/* Of the whole model: all layers, ranks and stages. */
typedef struct sh_cost {
    sh_dtype dtype; /* of most of the weights */
    uint64_t
        layer_bytes; /* packed weights of the layers: read once in a step, whatever its tokens */
    uint64_t head_bytes; /* the same of the head */
    uint64_t pos_bytes;  /* KV cache that a token reads for each position it looks at */
    uint64_t layer_ops;  /* 2 for each weight of the layers, for each token */
    uint64_t head_ops;   /* 2 for each weight of the head, for each token whose logits are wanted */
    uint64_t pos_ops;    /* of attention, for each position a token looks at */
} sh_cost;

sh_cost sh_cost_of(const sh_config *c, const sh_model_file *m, sh_dtype kv);

#endif
