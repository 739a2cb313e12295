/* Attention of prompts in bf16: two products of runs of 32, as the instruction set's matmul_float
 * makes them. Scores: lanes are positions, tokens are queries, k is d. Values: lanes are d, k is
 * positions. One source for the sets that have a vec.h and, for a run of 32 k's by 16 lanes,
 *
 *     sh_run_w                            the run
 *     sh_run_put(w, k, lane, v)           VEC lanes of its k'th k, an even one before its odd one
 *     sh_run_sums(acc, lda, w, x, ldx, n_k, n)
 *
 * Included after attention_rows.h. */
#ifndef SH_KERNELS_ATTEND_ROWS_H
#define SH_KERNELS_ATTEND_ROWS_H

#include "kernels/attention_rows.h"

enum { N_ROW = 64 }; /* queries at a time: 96 KiB for their scores */

/* Values of a page from element i on, rounded to bf16; of q8_0 times their scales. */
SH_INLINE vec load_rounded(const sh_dtype t, const void *page, size_t i, vec scale)
{
    vec v = load_page(t, page, i);
    if (t == SH_Q8_0) v *= scale;
    return t == SH_BF16 ? v : (vec)vec_round_bf16(v);
}

/* out[i] = x[i] rounded to bf16; zeros up to a whole vector. */
static void round_row(uint16_t *out, const float *x, int n)
{
    for (int i = 0; i < n; i += VEC) vec_put_bf16(out + i, vec_load_some(x + i, n - i));
}

typedef struct rows {
    _Alignas(64) float s[N_ROW][SH_SPAN];
    uint16_t x[N_ROW][SH_SPAN]; /* of q the d's of one run; then p */
    int most;                   /* positions that some row sees */
} rows;

/* s[r][j] for all rows and the positions that some row sees. */
SH_INLINE void attend_scores(const sh_dtype type, rows *t, const float *const *q, int n_row,
                             const void *const *kpage, int head_dim, float scale)
{
    _Alignas(64) sh_run_w w;
    int n_panel = (t->most + SH_LANES - 1) / SH_LANES;
    for (int r = 0; r < n_row; r++) memset(t->s[r], 0, (size_t)n_panel * SH_LANES * sizeof(float));
    for (int d = 0; d < head_dim; d += SH_RUN) {
        int n_k = sh_min(head_dim - d, SH_RUN);
        for (int r = 0; r < n_row; r++) round_row(t->x[r], q[r] + d, n_k);
        for (int p = 0; p < n_panel; p++) {
            const void *page = kpage[p / PAGE_PANELS];
            size_t at = (size_t)(p % PAGE_PANELS * head_dim + d) * SH_LANES;
            const uint16_t *scales =
                sh_kv_scales(page, head_dim) + d / SH_RUN * SH_PAGE + p % PAGE_PANELS * SH_LANES;
            for (int h = 0; h < SH_LANES; h += VEC) {
                vec sc = type == SH_Q8_0 ? vec_f16(scales + h) : (vec){0};
                for (int k = 0; k < n_k; k++)
                    sh_run_put(w, k, h,
                               load_rounded(type, page, at + (size_t)(k * SH_LANES + h), sc));
            }
            sh_run_sums(t->s[0] + p * SH_LANES, SH_SPAN, w, t->x, sizeof *t->x, n_k, n_row);
        }
    }
    for (int r = 0; r < n_row; r++)
        for (int j = 0; j < n_panel * SH_LANES; j += VEC)
            vec_store(t->s[r] + j, vec_load(t->s[r] + j) * scale);
}

/* A run of positions by 16 d's; past head_dim it is 0. */
SH_INLINE void value_run(const sh_dtype t, sh_run_w w, const void *page, int at, int n_k, int d,
                         int head_dim)
{
    const size_t size = size_of(t);
    const uint16_t *scales = sh_kv_scales(page, head_dim) + d / SH_RUN * SH_PAGE + at;
    for (int k = 0; k < n_k; k++) {
        size_t i = (size_t)((at + k) * head_dim + d);
        vec sc = vec_all(t == SH_Q8_0 ? sh_f16_to_f32(scales[k]) : 0);
        for (int h = 0; h < SH_LANES; h += VEC) {
            uint16_t last[VEC] = {0};
            int left = head_dim - d - h;
            if (left >= VEC) {
                sh_run_put(w, k, h, load_rounded(t, page, i + (size_t)h, sc));
                continue;
            }
            if (left > 0)
                memcpy(last, (const char *)page + (i + (size_t)h) * size, (size_t)left * size);
            sh_run_put(w, k, h, load_rounded(t, last, 0, sc));
        }
    }
}

/* o[r][d] for all rows. Neighbours that see as much of a run are summed together. */
SH_INLINE void attend_values(const sh_dtype type, float *o, const rows *t, int n_row,
                             const int *n_pos, const void *const *vpage, int head_dim)
{
    _Alignas(64) sh_run_w w;
    float acc[N_ROW][SH_LANES];
    for (int d = 0; d < head_dim; d += SH_LANES) {
        memset(acc, 0, sizeof acc);
        for (int j = 0; j < t->most; j += SH_RUN) {
            int n_k = sh_min(t->most - j, SH_RUN);
            value_run(type, w, vpage[j / SH_PAGE], j % SH_PAGE, n_k, d, head_dim);
            for (int r = 0, n; r < n_row; r += n) {
                int sees = sh_min(n_pos[r] - j, SH_RUN);
                for (n = 1; r + n < n_row; n++)
                    if (sh_min(n_pos[r + n] - j, SH_RUN) != sees) break;
                if (sees > 0) sh_run_sums(acc[r], SH_LANES, w, t->x[r] + j, sizeof *t->x, sees, n);
            }
        }
        int n = sh_min(head_dim - d, SH_LANES);
        for (int r = 0; r < n_row; r++)
            memcpy(o + (size_t)r * (size_t)head_dim + d, acc[r], (size_t)n * sizeof *o);
    }
}

SH_INLINE void attend(const sh_dtype type, float *o, float *m, float *l, const float *const *q,
                      int n_row, const int *n_pos, const void *const *kpage,
                      const void *const *vpage, int head_dim, float scale)
{
    rows t;
    for (int r0 = 0, n; r0 < n_row; r0 += n) {
        n = sh_min(n_row - r0, N_ROW);
        t.most = 0;
        for (int r = 0; r < n; r++)
            if (n_pos[r0 + r] > t.most) t.most = n_pos[r0 + r];
        attend_scores(type, &t, q + r0, n, kpage, head_dim, scale);
        for (int r = 0; r < n; r++) {
            m[r0 + r] = softmax_part(t.s[r], n_pos[r0 + r], &l[r0 + r]);
            round_row(t.x[r], t.s[r], n_pos[r0 + r]);
        }
        attend_values(type, o + (size_t)r0 * (size_t)head_dim, &t, n, n_pos + r0, vpage, head_dim);
    }
}

#define ATTEND(type, dtype)                                                                        \
    static void attend_##type(float *o, float *m, float *l, const float *const *q, int n_row,      \
                              const int *n_pos, const void *const *kpage,                          \
                              const void *const *vpage, int head_dim, float scale)                 \
    {                                                                                              \
        attend(dtype, o, m, l, q, n_row, n_pos, kpage, vpage, head_dim, scale);                    \
    }
ATTEND(f16, SH_F16)
ATTEND(bf16, SH_BF16)
ATTEND(q8_0, SH_Q8_0)
#undef ATTEND

static void attend_overlay(sh_kernels *k)
{
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
}

#endif
