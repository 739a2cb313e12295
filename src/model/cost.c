#include "model/cost.h"

static void add_matrix(const sh_config *c, const sh_tensor_row *r, const sh_tensor *t,
                       uint64_t *bytes, uint64_t *ops, uint64_t *of_type)
{
    int rows = c->dim[r->rows];
    sh_mat mat;
    sh_kdim kd = sh_kdim_whole((int)t->dim[0]);
    sh_mat_layout(&mat, t->dtype, rows, &kd);
    *bytes += (uint64_t)mat.n_panel * mat.panel_bytes;
    *ops += 2 * (uint64_t)t->dim[0] * (uint64_t)rows;
    of_type[t->dtype] += sh_family_bytes(c, r, t);
}

sh_cost sh_cost_of(const sh_config *c, const sh_model_file *m, sh_dtype kv)
{
    sh_cost cost = {0};
    uint64_t of_type[SH_N_DTYPE] = {0};
    for (const sh_tensor_row *r = c->family->ends; r->gguf; r++) {
        const sh_tensor *t = sh_family_tensor(m, r, -1);
        if (t && r->split == SH_BY_ROW && r->cols != SH_DIM_ONE)
            add_matrix(c, r, t, &cost.head_bytes, &cost.head_ops, of_type);
    }
    for (int l = 0; l < c->n_layer; l++)
        for (const sh_tensor_row *r = c->family->layer; r->gguf; r++) {
            const sh_tensor *t = sh_family_tensor(m, r, l);
            if (t && r->cols != SH_DIM_ONE)
                add_matrix(c, r, t, &cost.layer_bytes, &cost.layer_ops, of_type);
        }
    for (int t = 0; t < SH_N_DTYPE; t++)
        if (of_type[t] > of_type[cost.dtype]) cost.dtype = (sh_dtype)t;
    cost.pos_bytes = 2 * (uint64_t)c->n_layer * (uint64_t)c->n_kv_head *
                     sh_kv_page_bytes(kv, c->head_dim) / SH_PAGE;
    cost.pos_ops = 4 * (uint64_t)c->n_layer * (uint64_t)c->dim[SH_DIM_Q];
    return cost;
}
