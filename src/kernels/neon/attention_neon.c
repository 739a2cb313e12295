/* Attention over one page of the KV cache, and the parts of a softmax. K and V that are loaded and
 * widened serve up to four of the heads that share them. */
#include "kernels/neon/neon.h"

/* Four values of the cache from element i on, as float32; and one. */
typedef float32x4_t load_fn(const void *p, size_t i);
typedef float load1_fn(const void *p, size_t i);

SH_INLINE float32x4_t load_f32(const void *p, size_t i)
{
    return vld1q_f32((const float *)p + i);
}
SH_INLINE float32x4_t load_f16(const void *p, size_t i)
{
    return sh_f16x4((const uint16_t *)p + i);
}
SH_INLINE float32x4_t load_bf16(const void *p, size_t i)
{
    return sh_bf16x4((const uint16_t *)p + i);
}
SH_INLINE float load1_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}
SH_INLINE float load1_f16(const void *p, size_t i)
{
    return sh_f16_to_f32(((const uint16_t *)p)[i]);
}
SH_INLINE float load1_bf16(const void *p, size_t i)
{
    return sh_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* ---- storing ---- */

static void put_f32(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    float *kp = (float *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    for (int d = 0; d < head_dim; d++) kp[d * 16] = k[d];
    memcpy((float *)vpage + (size_t)at * (size_t)head_dim, v, (size_t)head_dim * sizeof *v);
}

typedef uint16x4_t round_fn(float32x4_t v);

SH_INLINE uint16x4_t round_f16(float32x4_t v)
{
    return vreinterpret_u16_f16(vcvt_f16_f32(v));
}

SH_INLINE void put16(round_fn *round, uint16_t (*one)(float), void *kpage, void *vpage,
                     const float *k, const float *v, int at, int head_dim)
{
    uint16_t *kp = (uint16_t *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    uint16_t *vp = (uint16_t *)vpage + (size_t)at * (size_t)head_dim, r[4];
    int d = 0;
    for (; d + 4 <= head_dim; d += 4) {
        vst1_u16(r, round(vld1q_f32(k + d)));
        for (int i = 0; i < 4; i++) kp[(d + i) * 16] = r[i];
        vst1_u16(vp + d, round(vld1q_f32(v + d)));
    }
    for (; d < head_dim; d++) {
        kp[d * 16] = one(k[d]);
        vp[d] = one(v[d]);
    }
}

static void put_f16(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    put16(round_f16, sh_f16_from_f32, kpage, vpage, k, v, at, head_dim);
}
static void put_bf16(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    put16(sh_round_bf16, sh_bf16_from_f32, kpage, vpage, k, v, at, head_dim);
}

/* ---- scores: lanes are positions ---- */

/* n heads and 16 positions. */
SH_INLINE void score_block(load_fn *load, const int n, float *s, size_t lds, const float *q,
                           size_t ldq, const void *k, int head_dim, float scale)
{
    float32x4_t acc[4][4];
    for (int h = 0; h < n; h++)
        for (int i = 0; i < 4; i++) acc[h][i] = vdupq_n_f32(0);
    for (int d = 0; d < head_dim; d++)
        for (int i = 0; i < 4; i++) {
            float32x4_t v = load(k, (size_t)d * 16 + (size_t)i * 4);
            for (int h = 0; h < n; h++)
                acc[h][i] = vfmaq_n_f32(acc[h][i], v, q[(size_t)h * ldq + (size_t)d]);
        }
    for (int h = 0; h < n; h++)
        for (int i = 0; i < 4; i++)
            vst1q_f32(s + (size_t)h * lds + i * 4, vmulq_n_f32(acc[h][i], scale));
}

SH_INLINE void scores(load_fn *load, size_t size, float *s, size_t lds, const float *q, size_t ldq,
                      int n_q, const void *kpage, int n_pos, int head_dim, float scale)
{
    for (int h = 0, n; h < n_q; h += n, s += (size_t)n * lds, q += (size_t)n * ldq) {
        n = n_q - h >= 4 ? 4 : 1;
        for (int j = 0; j < n_pos; j += 16) {
            const char *k = (const char *)kpage + (size_t)j * (size_t)head_dim * size;
            if (n == 4)
                score_block(load, 4, s + j, lds, q, ldq, k, head_dim, scale);
            else
                score_block(load, 1, s + j, lds, q, ldq, k, head_dim, scale);
        }
    }
}

/* ---- values: lanes are d ---- */

/* n heads and n_vec * 4 values from element d on. */
SH_INLINE void value_block(load_fn *load, const int n, const int n_vec, float *o, size_t ldo,
                           const float *p, size_t ldp, const void *vpage, int n_pos, int head_dim,
                           int d)
{
    float32x4_t acc[4][4];
    for (int h = 0; h < n; h++)
        for (int i = 0; i < n_vec; i++) acc[h][i] = vld1q_f32(o + (size_t)h * ldo + d + i * 4);
    for (int j = 0; j < n_pos; j++)
        for (int i = 0; i < n_vec; i++) {
            float32x4_t v = load(vpage, (size_t)(j * head_dim + d + i * 4));
            for (int h = 0; h < n; h++)
                acc[h][i] = vfmaq_n_f32(acc[h][i], v, p[(size_t)h * ldp + (size_t)j]);
        }
    for (int h = 0; h < n; h++)
        for (int i = 0; i < n_vec; i++) vst1q_f32(o + (size_t)h * ldo + d + i * 4, acc[h][i]);
}

SH_INLINE void values(load_fn *load, load1_fn *load1, float *o, size_t ldo, const float *p,
                      size_t ldp, int n_q, const void *vpage, int n_pos, int head_dim)
{
    for (int h = 0, n; h < n_q; h += n, o += (size_t)n * ldo, p += (size_t)n * ldp) {
        int d = 0;
        n = n_q - h >= 4 ? 4 : 1;
        for (; d + 16 <= head_dim; d += 16)
            if (n == 4)
                value_block(load, 4, 4, o, ldo, p, ldp, vpage, n_pos, head_dim, d);
            else
                value_block(load, 1, 4, o, ldo, p, ldp, vpage, n_pos, head_dim, d);
        for (; d + 4 <= head_dim; d += 4)
            for (int i = 0; i < n; i++)
                value_block(load, 1, 1, o + (size_t)i * ldo, ldo, p + (size_t)i * ldp, ldp, vpage,
                            n_pos, head_dim, d);
        for (int i = 0; i < n; i++)
            for (int e = d; e < head_dim; e++) {
                float *out = &o[(size_t)i * ldo + (size_t)e];
                for (int j = 0; j < n_pos; j++)
                    *out = fmaf(p[(size_t)i * ldp + (size_t)j],
                                load1(vpage, (size_t)(j * head_dim + e)), *out);
            }
    }
}

#define ROWS(type, size)                                                                           \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale)             \
    {                                                                                              \
        scores(load_##type, size, s, lds, q, ldq, n_q, kpage, n_pos, head_dim, scale);             \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim)                          \
    {                                                                                              \
        values(load_##type, load1_##type, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim);            \
    }
ROWS(f32, 4)
ROWS(f16, 2)
ROWS(bf16, 2)

/* ---- softmax ---- */

float sh_softmax_part_neon(float *s, int n, float *sum)
{
    float m = s[0], lane[SH_LANES] = {0};
    float32x4_t top = vdupq_n_f32(m), acc[4];
    int j = 0;
    for (; j + 4 <= n;
         j += 4) { /* compared as in C, so that a NaN is passed over unless it comes first */
        float32x4_t v = vld1q_f32(s + j);
        top = vbslq_f32(vcgtq_f32(v, top), v, top);
    }
    vst1q_f32(lane, top);
    for (int i = 0; i < 4; i++) m = lane[i] > m ? lane[i] : m;
    for (; j < n; j++) m = s[j] > m ? s[j] : m;
    for (j = 0; m == 0; j++) /* of several zeros, the sign of the first */
        if (s[j] == 0) {
            m = s[j];
            break;
        }
    const float32x4_t mv = vdupq_n_f32(m);
    for (int i = 0; i < 4; i++) acc[i] = vdupq_n_f32(0);
    for (j = 0; j + SH_LANES <= n; j += SH_LANES)
        for (int i = 0; i < 4; i++) {
            float32x4_t v = sh_exp_neon(vsubq_f32(vld1q_f32(s + j + i * 4), mv));
            vst1q_f32(s + j + i * 4, v);
            acc[i] = vaddq_f32(acc[i], v);
        }
    for (int i = 0; i < 4; i++) vst1q_f32(lane + i * 4, acc[i]);
    for (; j < n; j++) {
        s[j] = sh_expf(s[j] - m);
        lane[j % SH_LANES] += s[j];
    }
    *sum = sh_sum_lanes(lane);
    return m;
}

static void softmax_merge(float *o, float *m, float *l, const float *o2, float m2, float l2, int n)
{
    float top = *m > m2 ? *m : m2, a = sh_expf(*m - top), b = sh_expf(m2 - top);
    int d = 0;
    *m = top;
    *l = fmaf(*l, a, l2 * b);
    for (; d + 4 <= n; d += 4)
        vst1q_f32(o + d, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(o2 + d), b), vld1q_f32(o + d), a));
    for (; d < n; d++) o[d] = fmaf(o[d], a, o2[d] * b);
}

void sh_attention_neon(sh_kernels *k)
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
    k->softmax_part = sh_softmax_part_neon;
    k->softmax_merge = softmax_merge;
}
