/* Who holds what: the layers of each stage and the shares of each rank. */
#ifndef SH_MODEL_PLAN_H
#define SH_MODEL_PLAN_H

#include "comm/group.h"
#include "model/family.h"

typedef struct sh_plan {
    int stage, n_stage, rank, n_rank;
    sh_range layer;               /* of this stage */
    sh_range slice;               /* canonical slices of this rank */
    int q_bound[SH_N_SLICE + 1];  /* where the slices of SH_DIM_Q begin; ends with the dimension */
    int ff_bound[SH_N_SLICE + 1]; /* the same of SH_DIM_FF */
    sh_range local[SH_N_DIM];     /* this rank's share of each dimension; all of SH_DIM_EMBD */
    sh_range root[SH_MAX_ROOT];   /* subtrees of the canonical tree, numbered from this rank's first
                                     slice */
    int n_root;
} sh_plan;

/** The layers of each stage, so that every stage reads about the same bytes for a token; the
 * starter also has the head. layer[n_stage]. SH_EARG: more stages than layers. */
sh_err sh_plan_stages(sh_range *layer, const sh_config *c, const sh_model_file *m, int n_stage);

/** The share of one rank of a stage that holds `layer`. Slices begin at whole heads and whole
 * blocks. */
void sh_plan_make(sh_plan *p, const sh_config *c, const sh_model_file *m, int stage, int n_stage,
                  sh_range layer, int rank, int n_rank);

/** The columns of the head that rank r of n computes. */
sh_range sh_plan_vocab(const sh_config *c, int rank, int n_rank);

#endif
