#include "model/plan.h"

static int gcd(int a, int b)
{
    while (b) {
        int t = a % b;
        a = b;
        b = t;
    }
    return a;
}

/* Eight near-equal slices of n in units of `unit`; what is left over belongs to the last. */
static void cut(int *bound, int n, int unit)
{
    int n_unit = n / unit;
    for (int s = 0; s <= SH_N_SLICE; s++) bound[s] = n_unit * s / SH_N_SLICE * unit;
    bound[SH_N_SLICE] = n;
}

static size_t layer_bytes(const sh_config *c, const sh_model_file *m, int l)
{
    size_t n = 0;
    for (const sh_tensor_row *r = c->family->layer; r->gguf; r++) {
        const sh_tensor *t = sh_family_tensor(m, r, l);
        if (t) n += sh_family_bytes(c, r, t);
    }
    return n;
}

sh_err sh_plan_stages(sh_range *layer, const sh_config *c, const sh_model_file *m, int n_stage)
{
    if (n_stage < 1 || n_stage > c->n_layer)
        return sh_fail(SH_EARG, "%d stages for a model of %d layers: give 1 to %d", n_stage,
                       c->n_layer, c->n_layer);
    size_t mine = 0, left; /* bytes of this stage and of all from it on; the head is the first's */
    for (const sh_tensor_row *r = c->family->ends; r->gguf; r++) {
        const sh_tensor *t = sh_family_tensor(m, r, -1);
        if (t && r->split == SH_BY_ROW) mine += sh_family_bytes(c, r, t);
    }
    left = mine;
    for (int l = 0; l < c->n_layer; l++) left += layer_bytes(c, m, l);
    for (int s = 0, l = 0; s < n_stage; s++, mine = 0) {
        int after = n_stage - s - 1; /* each later stage needs a layer */
        size_t fair = left / (size_t)(after + 1);
        layer[s].lo = l;
        do {
            mine += layer_bytes(c, m, l++);
            /* one more if that brings the sum nearer to its fair share */
        } while (l < c->n_layer - after && (after == 0 || mine + layer_bytes(c, m, l) / 2 <= fair));
        layer[s].hi = l;
        left -= mine;
    }
    return SH_OK;
}

sh_range sh_plan_vocab(const sh_config *c, int rank, int n_rank)
{
    int n_panel = (c->dim[SH_DIM_VOCAB] + SH_LANES - 1) / SH_LANES;
    sh_range r = {n_panel * rank / n_rank * SH_LANES, n_panel * (rank + 1) / n_rank * SH_LANES};
    if (r.hi > c->dim[SH_DIM_VOCAB]) r.hi = c->dim[SH_DIM_VOCAB];
    return r;
}

void sh_plan_make(sh_plan *p, const sh_config *c, const sh_model_file *m, int stage, int n_stage,
                  sh_range layer, int rank, int n_rank)
{
    *p = (sh_plan){
        .stage = stage, .n_stage = n_stage, .rank = rank, .n_rank = n_rank, .layer = layer};
    p->slice = sh_rank_slices(rank, n_rank);
    int q_block = sh_config_block(c, m, SH_DIM_Q), ff_block = sh_config_block(c, m, SH_DIM_FF);
    cut(p->q_bound, c->dim[SH_DIM_Q], c->head_dim / gcd(c->head_dim, q_block) * q_block);
    cut(p->ff_bound, c->dim[SH_DIM_FF], ff_block > SH_RUN ? ff_block : SH_RUN);

    sh_range *local = p->local;
    for (int d = 0; d < SH_N_DIM; d++) local[d] = (sh_range){0, c->dim[d]};
    local[SH_DIM_Q] = (sh_range){p->q_bound[p->slice.lo], p->q_bound[p->slice.hi]};
    local[SH_DIM_FF] = (sh_range){p->ff_bound[p->slice.lo], p->ff_bound[p->slice.hi]};
    local[SH_DIM_VOCAB] = sh_plan_vocab(c, rank, n_rank);
    /* the KV heads that its heads look at: neighbours may hold the same one */
    int group = c->dim[SH_DIM_Q] / c->n_kv_head; /* columns of Q that share a KV head */
    sh_range q = local[SH_DIM_Q];
    local[SH_DIM_KV] = q.lo == q.hi ? (sh_range){0, 0}
                                    : (sh_range){q.lo / group * c->head_dim,
                                                 (q.hi + group - 1) / group * c->head_dim};

    p->n_root = sh_tree_roots(p->slice, p->root);
    for (int i = 0; i < p->n_root; i++) {
        p->root[i].lo -= p->slice.lo;
        p->root[i].hi -= p->slice.lo;
    }
}
