/* Attention over one page of the KV cache, and the parts of a softmax. */
#include <math.h>

#include "base/fmath.h"
#include "kernels/c/c.h"

static float load_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}
static float load_f16(const void *p, size_t i)
{
    return sh_f16_to_f32(((const uint16_t *)p)[i]);
}
static float load_bf16(const void *p, size_t i)
{
    return sh_bf16_to_f32(((const uint16_t *)p)[i]);
}
static void store_f32(void *p, size_t i, float v)
{
    ((float *)p)[i] = v;
}
static void store_f16(void *p, size_t i, float v)
{
    ((uint16_t *)p)[i] = sh_f16_from_f32(v);
}
static void store_bf16(void *p, size_t i, float v)
{
    ((uint16_t *)p)[i] = sh_bf16_from_f32(v);
}

/* The three rows for one element type. */
#define ROWS(type)                                                                                 \
    static void put_##type(void *kpage, void *vpage, const float *k, const float *v, int at,       \
                           int head_dim)                                                           \
    {                                                                                              \
        for (int d = 0; d < head_dim; d++) {                                                       \
            store_##type(kpage, (size_t)((at / 16 * head_dim + d) * 16 + at % 16), k[d]);          \
            store_##type(vpage, (size_t)(at * head_dim + d), v[d]);                                \
        }                                                                                          \
    }                                                                                              \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale)             \
    {                                                                                              \
        for (int h = 0; h < n_q; h++)                                                              \
            for (int j = 0; j < n_pos; j++) {                                                      \
                float acc = 0;                                                                     \
                for (int d = 0; d < head_dim; d++)                                                 \
                    acc = fmaf(                                                                    \
                        q[(size_t)h * ldq + (size_t)d],                                            \
                        load_##type(kpage, (size_t)((j / 16 * head_dim + d) * 16 + j % 16)), acc); \
                s[(size_t)h * lds + (size_t)j] = acc * scale;                                      \
            }                                                                                      \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim)                          \
    {                                                                                              \
        for (int h = 0; h < n_q; h++)                                                              \
            for (int j = 0; j < n_pos; j++)                                                        \
                for (int d = 0; d < head_dim; d++) {                                               \
                    float *out = &o[(size_t)h * ldo + (size_t)d];                                  \
                    *out = fmaf(p[(size_t)h * ldp + (size_t)j],                                    \
                                load_##type(vpage, (size_t)(j * head_dim + d)), *out);             \
                }                                                                                  \
    }
ROWS(f32)
ROWS(f16)
ROWS(bf16)

static float round16(float x)
{
    return sh_bf16_to_f32(sh_bf16_from_f32(x));
}

static float softmax_part(float *s, int n, float *sum);

/* One span of one query. `load` reads the cache's type. */
static void attend_row(float (*load)(const void *, size_t), float *o, float *m, float *l,
                       const float *q, int n_pos, const void *const *kpage,
                       const void *const *vpage, int head_dim, float scale)
{
    float s[SH_SPAN];
    for (int j = 0; j < n_pos; j++) {
        int at = j % SH_PAGE;
        float acc = 0;
        for (int run = 0; run < head_dim; run += SH_RUN) {
            float part[2] = {0, 0}; /* even, odd */
            for (int d = run; d < run + SH_RUN && d < head_dim; d++) {
                float k =
                    load(kpage[j / SH_PAGE], (size_t)((at / 16 * head_dim + d) * 16 + at % 16));
                part[d & 1] = fmaf(round16(q[d]), round16(k), part[d & 1]);
            }
            acc += part[0] + part[1];
        }
        s[j] = acc * scale;
    }
    *m = softmax_part(s, n_pos, l);
    for (int d = 0; d < head_dim; d++) {
        float acc = 0;
        for (int run = 0; run < n_pos; run += SH_RUN) {
            float part[2] = {0, 0};
            for (int j = run; j < run + SH_RUN && j < n_pos; j++) {
                float v = load(vpage[j / SH_PAGE], (size_t)(j % SH_PAGE * head_dim + d));
                part[j & 1] = fmaf(round16(s[j]), round16(v), part[j & 1]);
            }
            acc += part[0] + part[1];
        }
        o[d] = acc;
    }
}

static void attend_f16(float *o, float *m, float *l, const float *const *q, int n_row,
                       const int *n_pos, const void *const *kpage, const void *const *vpage,
                       int head_dim, float scale)
{
    for (int r = 0; r < n_row; r++)
        attend_row(load_f16, o + (size_t)r * (size_t)head_dim, m + r, l + r, q[r], n_pos[r], kpage,
                   vpage, head_dim, scale);
}
static void attend_bf16(float *o, float *m, float *l, const float *const *q, int n_row,
                        const int *n_pos, const void *const *kpage, const void *const *vpage,
                        int head_dim, float scale)
{
    for (int r = 0; r < n_row; r++)
        attend_row(load_bf16, o + (size_t)r * (size_t)head_dim, m + r, l + r, q[r], n_pos[r], kpage,
                   vpage, head_dim, scale);
}

static float softmax_part(float *s, int n, float *sum)
{
    float m = s[0], lane[SH_LANES] = {0};
    for (int j = 1; j < n; j++) m = s[j] > m ? s[j] : m;
    for (int j = 0; j < n; j++) {
        s[j] = sh_expf(s[j] - m);
        lane[j % SH_LANES] += s[j];
    }
    *sum = sh_sum_lanes(lane);
    return m;
}

static void softmax_merge(float *o, float *m, float *l, const float *o2, float m2, float l2, int n)
{
    float top = *m > m2 ? *m : m2, a = sh_expf(*m - top), b = sh_expf(m2 - top);
    *m = top;
    *l = fmaf(*l, a, l2 * b);
    for (int d = 0; d < n; d++) o[d] = fmaf(o[d], a, o2[d] * b);
}

void sh_attention_c(sh_kernels *k)
{
    k->kv_put[SH_F32] = put_f32;
    k->kv_put[SH_F16] = put_f16;
    k->kv_put[SH_BF16] = put_bf16;
    k->attn_scores[SH_F32] = scores_f32;
    k->attn_scores[SH_F16] = scores_f16;
    k->attn_scores[SH_BF16] = scores_bf16;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->softmax_part = softmax_part;
    k->softmax_merge = softmax_merge;
}
