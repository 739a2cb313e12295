/* Attention over one page of the KV cache, and the parts of a softmax. K and V that are loaded and
 * widened serve up to four of the heads that share them. */
#include "kernels/kv_q8.h"
#include "kernels/neon/neon.h"

SH_INLINE size_t size_of(const sh_dtype t)
{
    return t == SH_F32 ? 4 : t == SH_Q8_0 ? 1 : 2;
}

/* Asks for n bytes that will be read soon. */
SH_INLINE void ask(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i);
}

/* Four elements of a page of type t, from element i on; of q8_0 their integers. */
SH_INLINE float32x4_t load(const sh_dtype t, const void *page, size_t i)
{
    switch (t) {
    case SH_F32:
        return vld1q_f32((const float *)page + i);
    case SH_F16:
        return sh_f16x4((const uint16_t *)page + i);
    case SH_BF16:
        return sh_bf16x4((const uint16_t *)page + i);
    default:
        return sh_i8x4((const int8_t *)page + i);
    }
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

static void put_q8_0(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    sh_kv_put_q8(kpage, vpage, k, v, at, head_dim);
}

/* ---- scores: lanes are positions ---- */

/* n heads and 16 positions from j on; the same of the page `next`, if any, is asked for. */
SH_INLINE void score_block(const sh_dtype t, const int n, float *s, size_t lds, const float *q,
                           size_t ldq, const void *kpage, int j, int head_dim, float scale,
                           const void *next)
{
    const size_t step = 16 * size_of(t);
    const char *ahead = next ? (const char *)next + (size_t)(j * head_dim) * size_of(t) : NULL;
    float32x4_t acc[4][4], k_scale[4];
    for (int h = 0; h < n; h++)
        for (int i = 0; i < 4; i++) acc[h][i] = vdupq_n_f32(0);
    for (int d = 0, end; d < head_dim; d = end) {
        const uint16_t *scales = sh_kv_scales(kpage, head_dim) + d / SH_RUN * SH_PAGE + j;
        end = t == SH_Q8_0 && head_dim - d > SH_RUN ? d + SH_RUN : head_dim;
        for (int i = 0; t == SH_Q8_0 && i < 4; i++) k_scale[i] = sh_f16x4(scales + i * 4);
        for (int e = d; e < end; e++) {
            if (ahead) ask(ahead + (size_t)e * step, step);
            for (int i = 0; i < 4; i++) {
                float32x4_t v = load(t, kpage, (size_t)(j * head_dim + e * 16 + i * 4));
                if (t == SH_Q8_0) v = vmulq_f32(v, k_scale[i]);
                for (int h = 0; h < n; h++)
                    acc[h][i] = vfmaq_n_f32(acc[h][i], v, q[(size_t)h * ldq + (size_t)e]);
            }
        }
    }
    for (int h = 0; h < n; h++)
        for (int i = 0; i < 4; i++)
            vst1q_f32(s + (size_t)h * lds + i * 4, vmulq_n_f32(acc[h][i], scale));
}

SH_INLINE void scores(const sh_dtype t, float *s, size_t lds, const float *q, size_t ldq, int n_q,
                      const void *kpage, int n_pos, int head_dim, float scale, const void *next)
{
    for (int h = 0, n; h < n_q; h += n, next = NULL) {
        float *sh = s + (size_t)h * lds;
        const float *qh = q + (size_t)h * ldq;
        n = n_q - h >= 4 ? 4 : 1;
        for (int j = 0; j < n_pos; j += 16)
            if (n == 4)
                score_block(t, 4, sh + j, lds, qh, ldq, kpage, j, head_dim, scale, next);
            else
                score_block(t, 1, sh + j, lds, qh, ldq, kpage, j, head_dim, scale, next);
    }
}

/* ---- values: lanes are d ---- */

/* The scale of d's of q8_0 at position j. */
SH_INLINE float scale_at(const void *vpage, int head_dim, int j, int d)
{
    uint16x4_t one = vld1_dup_u16(sh_kv_scales(vpage, head_dim) + d / SH_RUN * SH_PAGE + j);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(one)), 0);
}

/* n heads and n_vec * 4 values from element d on, all of one group. */
SH_INLINE void value_block(const sh_dtype t, const int n, const int n_vec, float *o, size_t ldo,
                           const float *p, size_t ldp, const void *vpage, int n_pos, int head_dim,
                           int d, const void *next)
{
    const size_t size = size_of(t);
    const char *ahead = next ? (const char *)next + (size_t)(d * n_pos) * size : NULL;
    float32x4_t acc[4][4];
    for (int h = 0; h < n; h++)
        for (int i = 0; i < n_vec; i++) acc[h][i] = vld1q_f32(o + (size_t)h * ldo + d + i * 4);
    for (int j = 0; j < n_pos; j++) {
        float scale = t == SH_Q8_0 ? scale_at(vpage, head_dim, j, d) : 0;
        if (ahead) ask(ahead + (size_t)(j * n_vec) * 4 * size, (size_t)n_vec * 4 * size);
        for (int i = 0; i < n_vec; i++) {
            float32x4_t v = load(t, vpage, (size_t)(j * head_dim + d + i * 4));
            if (t == SH_Q8_0) v = vmulq_n_f32(v, scale);
            for (int h = 0; h < n; h++)
                acc[h][i] = vfmaq_n_f32(acc[h][i], v, p[(size_t)h * ldp + (size_t)j]);
        }
    }
    for (int h = 0; h < n; h++)
        for (int i = 0; i < n_vec; i++) vst1q_f32(o + (size_t)h * ldo + d + i * 4, acc[h][i]);
}

/* One value of position j. */
SH_INLINE float one(const sh_dtype t, const void *vpage, int head_dim, int j, int d)
{
    size_t i = (size_t)(j * head_dim + d);
    switch (t) {
    case SH_F32:
        return ((const float *)vpage)[i];
    case SH_F16:
        return sh_f16_to_f32(((const uint16_t *)vpage)[i]);
    case SH_BF16:
        return sh_bf16_to_f32(((const uint16_t *)vpage)[i]);
    default:
        return scale_at(vpage, head_dim, j, d) * (float)((const int8_t *)vpage)[i];
    }
}

SH_INLINE void values(const sh_dtype t, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                      const void *vpage, int n_pos, int head_dim, const void *next)
{
    for (int h = 0, n; h < n_q; h += n, o += (size_t)n * ldo, p += (size_t)n * ldp, next = NULL) {
        int d = 0;
        n = n_q - h >= 4 ? 4 : 1;
        for (; d + 16 <= head_dim; d += 16)
            if (n == 4)
                value_block(t, 4, 4, o, ldo, p, ldp, vpage, n_pos, head_dim, d, next);
            else
                value_block(t, 1, 4, o, ldo, p, ldp, vpage, n_pos, head_dim, d, next);
        for (; d + 4 <= head_dim; d += 4)
            for (int i = 0; i < n; i++)
                value_block(t, 1, 1, o + (size_t)i * ldo, ldo, p + (size_t)i * ldp, ldp, vpage,
                            n_pos, head_dim, d, next);
        for (int i = 0; i < n; i++)
            for (int e = d; e < head_dim; e++) {
                float *out = &o[(size_t)i * ldo + (size_t)e];
                for (int j = 0; j < n_pos; j++)
                    *out =
                        fmaf(p[(size_t)i * ldp + (size_t)j], one(t, vpage, head_dim, j, e), *out);
            }
    }
}

#define ROWS(type, dtype)                                                                          \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale,             \
                              const void *next)                                                    \
    {                                                                                              \
        scores(dtype, s, lds, q, ldq, n_q, kpage, n_pos, head_dim, scale, next);                   \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim, const void *next)        \
    {                                                                                              \
        values(dtype, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim, next);                          \
    }
ROWS(f32, SH_F32)
ROWS(f16, SH_F16)
ROWS(bf16, SH_BF16)
ROWS(q8_0, SH_Q8_0)

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
    k->kv_put[SH_Q8_0] = put_q8_0;
    k->attn_scores[SH_F32] = scores_f32;
    k->attn_scores[SH_F16] = scores_f16;
    k->attn_scores[SH_BF16] = scores_bf16;
    k->attn_scores[SH_Q8_0] = scores_q8_0;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    k->attn_values[SH_Q8_0] = values_q8_0;
    k->softmax_part = sh_softmax_part_neon;
    k->softmax_merge = softmax_merge;
}
