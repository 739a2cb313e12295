/* Attention over one page of the KV cache, and the parts of a softmax. */
#include <math.h>

#include "base/fmath.h"
#include "kernels/c/c.h"
#include "kernels/kv_q8.h"

/* Element i of a page: d of position j. */
typedef float load_fn(const void *page, size_t i, int head_dim, int j, int d);

SH_INLINE float load_f32(const void *page, size_t i, int head_dim, int j, int d)
{
    (void)head_dim, (void)j, (void)d;
    return ((const float *)page)[i];
}
SH_INLINE float load_f16(const void *page, size_t i, int head_dim, int j, int d)
{
    (void)head_dim, (void)j, (void)d;
    return sh_f16_to_f32(((const uint16_t *)page)[i]);
}
SH_INLINE float load_bf16(const void *page, size_t i, int head_dim, int j, int d)
{
    (void)head_dim, (void)j, (void)d;
    return sh_bf16_to_f32(((const uint16_t *)page)[i]);
}
SH_INLINE float load_q8_0(const void *page, size_t i, int head_dim, int j, int d)
{
    float scale = sh_f16_to_f32(sh_kv_scales(page, head_dim)[d / SH_RUN * SH_PAGE + j]);
    return scale * (float)((const int8_t *)page)[i];
}

SH_INLINE float k_at(load_fn *load, const void *page, int head_dim, int j, int d)
{
    return load(page, (size_t)((j / 16 * head_dim + d) * 16 + j % 16), head_dim, j, d);
}
SH_INLINE float v_at(load_fn *load, const void *page, int head_dim, int j, int d)
{
    return load(page, (size_t)(j * head_dim + d), head_dim, j, d);
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

#define PUT(type)                                                                                  \
    static void put_##type(void *kpage, void *vpage, const float *k, const float *v, int at,       \
                           int head_dim)                                                           \
    {                                                                                              \
        for (int d = 0; d < head_dim; d++) {                                                       \
            store_##type(kpage, (size_t)((at / 16 * head_dim + d) * 16 + at % 16), k[d]);          \
            store_##type(vpage, (size_t)(at * head_dim + d), v[d]);                                \
        }                                                                                          \
    }
PUT(f32)
PUT(f16)
PUT(bf16)

static void put_q8_0(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    sh_kv_put_q8(kpage, vpage, k, v, at, head_dim);
}

SH_INLINE void scores(load_fn *load, float *s, size_t lds, const float *q, size_t ldq, int n_q,
                      const void *kpage, int n_pos, int head_dim, float scale)
{
    for (int h = 0; h < n_q; h++, s += lds, q += ldq)
        for (int j = 0; j < n_pos; j++) {
            float acc = 0;
            for (int d = 0; d < head_dim; d++)
                acc = fmaf(q[d], k_at(load, kpage, head_dim, j, d), acc);
            s[j] = acc * scale;
        }
}

SH_INLINE void values(load_fn *load, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                      const void *vpage, int n_pos, int head_dim)
{
    for (int h = 0; h < n_q; h++, o += ldo, p += ldp)
        for (int j = 0; j < n_pos; j++)
            for (int d = 0; d < head_dim; d++)
                o[d] = fmaf(p[j], v_at(load, vpage, head_dim, j, d), o[d]);
}

static float round16(float x)
{
    return sh_bf16_to_f32(sh_bf16_from_f32(x));
}

static float softmax_part(float *s, int n, float *sum);

/* One span of one query. */
SH_INLINE void attend_row(load_fn *load, float *o, float *m, float *l, const float *q, int n_pos,
                          const void *const *kpage, const void *const *vpage, int head_dim,
                          float scale)
{
    float s[SH_SPAN];
    for (int j = 0; j < n_pos; j++) {
        float acc = 0;
        for (int run = 0; run < head_dim; run += SH_RUN) {
            float part[2] = {0, 0}; /* even, odd */
            for (int d = run; d < run + SH_RUN && d < head_dim; d++) {
                float k = k_at(load, kpage[j / SH_PAGE], head_dim, j % SH_PAGE, d);
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
                float v = v_at(load, vpage[j / SH_PAGE], head_dim, j % SH_PAGE, d);
                part[j & 1] = fmaf(round16(s[j]), round16(v), part[j & 1]);
            }
            acc += part[0] + part[1];
        }
        o[d] = acc;
    }
}

/* The rows that read one type. */
#define ROWS(type)                                                                                 \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale,             \
                              const void *next)                                                    \
    {                                                                                              \
        (void)next;                                                                                \
        scores(load_##type, s, lds, q, ldq, n_q, kpage, n_pos, head_dim, scale);                   \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim, const void *next)        \
    {                                                                                              \
        (void)next;                                                                                \
        values(load_##type, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim);                          \
    }
#define ATTEND(type)                                                                               \
    static void attend_##type(float *o, float *m, float *l, const float *const *q, int n_row,      \
                              const int *n_pos, const void *const *kpage,                          \
                              const void *const *vpage, int head_dim, float scale)                 \
    {                                                                                              \
        for (int r = 0; r < n_row; r++)                                                            \
            attend_row(load_##type, o + (size_t)r * (size_t)head_dim, m + r, l + r, q[r],          \
                       n_pos[r], kpage, vpage, head_dim, scale);                                   \
    }
ROWS(f32)
ROWS(f16)
ROWS(bf16)
ROWS(q8_0)
ATTEND(f16)
ATTEND(bf16)
ATTEND(q8_0)

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
    k->kv_put[SH_Q8_0] = put_q8_0;
    k->attn_scores[SH_F32] = scores_f32;
    k->attn_scores[SH_F16] = scores_f16;
    k->attn_scores[SH_BF16] = scores_bf16;
    k->attn_scores[SH_Q8_0] = scores_q8_0;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    k->attn_values[SH_Q8_0] = values_q8_0;
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
    k->softmax_part = softmax_part;
    k->softmax_merge = softmax_merge;
}
