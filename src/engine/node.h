/* A stage at work: one node's ranks with their weights, KV caches and threads. The engine's starter
 * and the worker of a secondary both drive one; the other ranks of its group follow. */
#ifndef SH_ENGINE_NODE_H
#define SH_ENGINE_NODE_H

#include <stdbool.h>

#include "comm/group.h"
#include "comm/step.h"
#include "model/family.h"
#include "model/plan.h"

typedef struct sh_node_options {
    const char *path; /* of the model file */
    int stage, n_stage;
    sh_range layer;
    int n_rank, n_thread; /* threads of each rank */
    int n_here;           /* of the ranks, on this host */
    bool arith_bf16;
    sh_dtype kv;
    int n_ctx, n_slot, n_batch;
    int cpu[64]; /* of this host: thread i of its rank r is tied to cpu[r * n_thread + i], if there
                  * are enough */
    int n_cpu;
} sh_node_options;

typedef struct sh_node sh_node;

/* Memory that stages need, all ranks together. */
typedef struct sh_need {
    size_t weight_bytes, kv_bytes, scratch_bytes;
} sh_need;

/** Adds what the stage of these options needs. */
void sh_node_need(sh_need *need, const sh_node_options *o, const sh_config *c,
                  const sh_model_file *m);
/** SH_ENOMEM: this host has less than that; the sentence says how much of each. */
sh_err sh_need_check(const sh_need *need, const char *model);

/** Opens the stage on rank 0 and starts the other ranks. */
sh_err sh_node_open(sh_node **out, const sh_node_options *opt);
void sh_node_close(sh_node *node);

/** One step on all ranks: x (n_tok, n_embd) goes through the stage's layers in place, then, with
 *  `logits`, (n, n_vocab) of the sequences that want them are computed (on the starter, which then
 * has all that it needs if it is the only stage). */
sh_err sh_node_layers(sh_node *node, const sh_step *step, float *x, float *logits);

/** The logits alone, from activations that have gone round the ring. */
sh_err sh_node_head(sh_node *node, const sh_step *step, float *x, float *logits);

/** On the starter: x (n_tok, n_embd) = the embeddings of the step's tokens, which are ids (n_tok).
 */
void sh_node_embed(const sh_node *node, const sh_step *step, const uint32_t *ids, float *x);

const sh_config *sh_node_config(const sh_node *node);
size_t sh_node_weight_bytes(const sh_node *node);

/** Rank > 0: serves rank 0 until the group ends, and closes it. */
sh_err sh_node_follow(sh_group *g);

#endif
