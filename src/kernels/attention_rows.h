/* Attention over one page of the KV cache, and the parts of a softmax. One source for the
 * instruction sets that have a vec.h. K and V that are loaded and widened serve several of the
 * heads that share them, as many as sums have registers. */
#ifndef SH_KERNELS_ATTENTION_ROWS_H
#define SH_KERNELS_ATTENTION_ROWS_H

#include "base/fmath.h"
#include "kernels/kv_q8.h"
#include "kernels/vec.h"

enum {
    PAGE_PANELS = SH_PAGE / SH_LANES,
    WIDE = 64,              /* d's of V that are taken together, at most */
    MOST_HEADS = 8,         /* heads that are, */
    MOST_VECS = WIDE / VEC, /* and vectors of each: of those d's, or of a page's positions */
};

SH_INLINE size_t size_of(const sh_dtype t)
{
    return t == SH_F32 ? 4 : t == SH_Q8_0 ? 1 : 2;
}

/* Asks for n bytes that will be read soon. */
SH_INLINE void ask(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i);
}

/* Elements of a page of type t, from element i on; of q8_0 their integers. */
SH_INLINE vec load_page(const sh_dtype t, const void *page, size_t i)
{
    switch (t) {
    case SH_F32:
        return vec_load((const float *)page + i);
    case SH_F16:
        return vec_f16((const uint16_t *)page + i);
    case SH_BF16:
        return vec_bf16((const uint16_t *)page + i);
    default:
        return vec_i8((const int8_t *)page + i);
    }
}

/* ---- storing ---- */

static void put_f32(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    float *kp = (float *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    for (int d = 0; d < head_dim; d++) kp[d * 16] = k[d];
    memcpy((float *)vpage + (size_t)at * (size_t)head_dim, v, (size_t)head_dim * sizeof *v);
}

SH_INLINE void round_to(const sh_dtype t, uint16_t *out, vec v)
{
    if (t == SH_F16)
        vec_put_f16(out, v);
    else
        vec_put_bf16(out, v);
}
/* n of the values, VEC at most. */
SH_INLINE void put_some(const sh_dtype t, uint16_t *kp, uint16_t *vp, const float *k,
                        const float *v, const int n)
{
    uint16_t r[VEC];
    round_to(t, r, vec_load_some(k, n));
    for (int i = 0; i < n; i++) kp[i * 16] = r[i];
    round_to(t, r, vec_load_some(v, n));
    memcpy(vp, r, (size_t)n * sizeof *r);
}
SH_INLINE void put16(const sh_dtype t, void *kpage, void *vpage, const float *k, const float *v,
                     int at, int head_dim)
{
    uint16_t *kp = (uint16_t *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    uint16_t *vp = (uint16_t *)vpage + (size_t)at * (size_t)head_dim;
    int d = 0;
    for (; d + VEC <= head_dim; d += VEC) put_some(t, kp + d * 16, vp + d, k + d, v + d, VEC);
    if (d < head_dim) put_some(t, kp + d * 16, vp + d, k + d, v + d, head_dim - d);
}

static void put_f16(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    put16(SH_F16, kpage, vpage, k, v, at, head_dim);
}
static void put_bf16(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    put16(SH_BF16, kpage, vpage, k, v, at, head_dim);
}
static void put_q8_0(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    sh_kv_put_q8(kpage, vpage, k, v, at, head_dim);
}

/* Heads of n that are taken together: as many as leave a panel's sums in registers. */
SH_INLINE int heads_at_once(int n)
{
    return n >= 8 && VEC_SUMS / VEC_PANEL >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

/* ---- scores: lanes are positions ---- */

/* n_head heads by n_panel panels from `panel` on; the same panels of the page `next`, if any, are
 * asked for. */
SH_INLINE void score_block(const sh_dtype t, const int n_head, const int n_panel, float *s,
                           size_t lds, const float *q, size_t ldq, const void *kpage, int panel,
                           int head_dim, float scale, const void *next)
{
    const int n_vec = n_panel * VEC_PANEL;
    const size_t first = (size_t)(panel * head_dim) * 16, step = n_panel * 16 * size_of(t);
    const char *ahead = next ? (const char *)next + first * size_of(t) : NULL;
    vec acc[MOST_HEADS][MOST_VECS], k_scale[MOST_VECS];
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_vec; p++) acc[h][p] = (vec){0};
    for (int d = 0, end; d < head_dim; d = end) {
        const int group = d / SH_RUN * SH_PAGE + panel * 16;
        const uint16_t *scales = sh_kv_scales(kpage, head_dim) + group;
        end = t == SH_Q8_0 && head_dim - d > SH_RUN ? d + SH_RUN : head_dim;
        for (int p = 0; t == SH_Q8_0 && p < n_vec; p++) k_scale[p] = vec_f16(scales + p * VEC);
        if (t == SH_Q8_0 && ahead) ask((const char *)(sh_kv_scales(next, head_dim) + group), 64);
        for (int e = d; e < end; e++) {
            vec k[MOST_VECS];
            if (ahead) ask(ahead + (size_t)e * step, step);
#pragma GCC unroll 16
            for (int p = 0; p < n_vec; p++) {
                size_t at = (size_t)(p / VEC_PANEL * head_dim + e) * 16;
                k[p] = load_page(t, kpage, first + at + (size_t)(p % VEC_PANEL * VEC));
                if (t == SH_Q8_0) k[p] *= k_scale[p];
            }
#pragma GCC unroll 8
            for (int h = 0; h < n_head; h++) {
                vec v = vec_all(q[(size_t)h * ldq + (size_t)e]);
#pragma GCC unroll 16
                for (int p = 0; p < n_vec; p++) acc[h][p] = vec_fma(v, k[p], acc[h][p]);
            }
        }
    }
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_vec; p++) vec_store(s + (size_t)h * lds + p * VEC, acc[h][p] * scale);
}

/* n_head heads by n_panel panels, as many of these at a time as there are sums. */
SH_INLINE void score_heads(const sh_dtype t, const int n_head, int n_panel, float *s, size_t lds,
                           const float *q, size_t ldq, const void *kpage, int head_dim, float scale,
                           const void *next)
{
    const int sums = VEC_SUMS / VEC_PANEL / n_head;
    const int at_once = sums < PAGE_PANELS ? sums : PAGE_PANELS;
    int p = 0;
    for (; p + at_once <= n_panel; p += at_once)
        score_block(t, n_head, at_once, s + p * 16, lds, q, ldq, kpage, p, head_dim, scale, next);
    for (; p < n_panel; p++)
        score_block(t, n_head, 1, s + p * 16, lds, q, ldq, kpage, p, head_dim, scale, next);
}

SH_INLINE void scores(const sh_dtype t, float *s, size_t lds, const float *q, size_t ldq, int n_q,
                      const void *kpage, int n_pos, int head_dim, float scale, const void *next)
{
    const int n_panel = (n_pos + 15) / 16;
    for (int h = 0, n; h < n_q; h += n, s += (size_t)n * lds, q += (size_t)n * ldq, next = NULL) {
        n = heads_at_once(n_q - h);
        if (n == 8)
            score_heads(t, 8, n_panel, s, lds, q, ldq, kpage, head_dim, scale, next);
        else if (n == 4)
            score_heads(t, 4, n_panel, s, lds, q, ldq, kpage, head_dim, scale, next);
        else if (n == 2)
            score_heads(t, 2, n_panel, s, lds, q, ldq, kpage, head_dim, scale, next);
        else
            score_heads(t, 1, n_panel, s, lds, q, ldq, kpage, head_dim, scale, next);
    }
}

/* ---- values: lanes are d ---- */

/* The scales of 64 d's from a multiple of SH_RUN on. */
typedef float group_scales[WIDE / SH_RUN][SH_PAGE];

SH_INLINE void widen_scales(group_scales out, const void *vpage, int head_dim, int d)
{
    const uint16_t *scale = sh_kv_scales(vpage, head_dim) + d / SH_RUN * SH_PAGE;
    for (int g = 0; g < WIDE / SH_RUN && d + g * SH_RUN < head_dim; g++)
        for (int j = 0; j < SH_PAGE; j += VEC)
            vec_store(out[g] + j, vec_f16(scale + g * SH_PAGE + j));
}

/* n_head heads by n_vec vectors from element d on; `scale` are those of the group of d. */
SH_INLINE void value_block(const sh_dtype t, const int n_head, const int n_vec, float *o,
                           size_t ldo, const float *p, size_t ldp, const void *vpage,
                           group_scales scale, int n_pos, int head_dim, int d, const void *next)
{
    const size_t size = size_of(t), step = (size_t)n_vec * VEC * size;
    const char *ahead = next ? (const char *)next + (size_t)(d * n_pos) * size : NULL;
    vec acc[MOST_HEADS][MOST_VECS];
    for (int h = 0; h < n_head; h++)
        for (int i = 0; i < n_vec; i++) acc[h][i] = vec_load(o + (size_t)h * ldo + d + i * VEC);
    for (int j = 0; j < n_pos; j++) {
        vec v[MOST_VECS];
        if (ahead) ask(ahead + (size_t)j * step, step);
#pragma GCC unroll 16
        for (int i = 0; i < n_vec; i++) {
            v[i] = load_page(t, vpage, (size_t)(j * head_dim + d + i * VEC));
            if (t == SH_Q8_0) v[i] *= scale[i * VEC / SH_RUN][j];
        }
#pragma GCC unroll 8
        for (int h = 0; h < n_head; h++) {
            vec w = vec_all(p[(size_t)h * ldp + (size_t)j]);
#pragma GCC unroll 16
            for (int i = 0; i < n_vec; i++) acc[h][i] = vec_fma(w, v[i], acc[h][i]);
        }
    }
    for (int h = 0; h < n_head; h++)
        for (int i = 0; i < n_vec; i++) vec_store(o + (size_t)h * ldo + d + i * VEC, acc[h][i]);
}

/* One value of position j. */
SH_INLINE float one(const sh_dtype t, const void *vpage, group_scales scale, int head_dim, int j,
                    int d)
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
        return scale[0][j] * (float)((const int8_t *)vpage)[i];
    }
}

/* n_head heads by `width` d's from d on, as many of these at a time as there are sums. */
SH_INLINE void value_heads(const sh_dtype t, const int n_head, int width, float *o, size_t ldo,
                           const float *p, size_t ldp, const void *vpage, group_scales sc,
                           int n_pos, int head_dim, int d, const void *next)
{
    const int sums = VEC_SUMS / n_head;
    const int n_vec = sums < WIDE / VEC ? sums : WIDE / VEC;
    int e = 0;
    for (; e + n_vec * VEC <= width; e += n_vec * VEC)
        value_block(t, n_head, n_vec, o, ldo, p, ldp, vpage, sc + e / SH_RUN, n_pos, head_dim,
                    d + e, next);
    for (; e + VEC <= width; e += VEC)
        value_block(t, n_head, 1, o, ldo, p, ldp, vpage, sc + e / SH_RUN, n_pos, head_dim, d + e,
                    next);
    for (int h = 0; e < width && h < n_head; h++)
        for (int i = d + e; i < d + width; i++) {
            float *out = &o[(size_t)h * ldo + (size_t)i];
            for (int j = 0; j < n_pos; j++)
                *out = fmaf(p[(size_t)h * ldp + (size_t)j],
                            one(t, vpage, sc + e / SH_RUN, head_dim, j, i), *out);
        }
}

SH_INLINE void values(const sh_dtype t, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                      const void *vpage, int n_pos, int head_dim, const void *next_page)
{
    group_scales sc;
    for (int d = 0; d < head_dim; d += WIDE) {
        const int width = sh_min(head_dim - d, WIDE);
        const void *next = next_page;
        if (t == SH_Q8_0) widen_scales(sc, vpage, head_dim, d);
        for (int h = 0, n; h < n_q; h += n, next = NULL) {
            float *oh = o + (size_t)h * ldo;
            const float *ph = p + (size_t)h * ldp;
            n = heads_at_once(n_q - h);
            if (n == 8)
                value_heads(t, 8, width, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else if (n == 4)
                value_heads(t, 4, width, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else if (n == 2)
                value_heads(t, 2, width, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else
                value_heads(t, 1, width, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
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
#undef ROWS

/* ---- softmax ---- */

/* The largest of n values. They are compared as in C, so that a NaN is passed over unless it comes
 * first. */
SH_INLINE float largest_of(const float *s, int n)
{
    vec top = vec_all(s[0]);
    for (int j = 0; j < n; j += VEC) {
        vec v = vec_load_some(s + j, n - j);
        vec_bits above = v > top;
        if (n - j < VEC) above &= vec_first(n - j);
        top = vec_pick(above, v, top);
    }
#pragma GCC unroll 4
    for (int h = VEC / 2; h; h /= 2) {
        vec other = vec_swap(top, h);
        top = vec_pick(other > top, other, top);
    }
    const float m = top[0];
    for (int j = 0; m == 0; j++) /* of several zeros, the sign of the first */
        if (s[j] == 0) return s[j];
    return m;
}

static float softmax_part(float *s, int n, float *sum)
{
    const float m = largest_of(s, n);
    float lane[SH_LANES];
    vec acc[VEC_PANEL] = {0};
    for (int j = 0; j < n; j += SH_LANES)
        for (int i = 0; i < VEC_PANEL; i++) {
            const int at = j + i * VEC, left = n - at;
            if (left <= 0) break;
            vec v = vec_exp(vec_load_some(s + at, left) - m);
            vec_store_some(s + at, v, left);
            acc[i] += left < VEC ? vec_where(vec_first(left), v) : v;
        }
    memcpy(lane, acc, sizeof lane);
    *sum = sh_sum_lanes(lane);
    return m;
}

static void softmax_merge(float *o, float *m, float *l, const float *o2, float m2, float l2, int n)
{
    float top = *m > m2 ? *m : m2, a = sh_expf(*m - top), b = sh_expf(m2 - top);
    int d = 0;
    *m = top;
    *l = fmaf(*l, a, l2 * b);
    for (; d + VEC <= n; d += VEC)
        vec_store(o + d, vec_fma(vec_load(o + d), vec_all(a), vec_load(o2 + d) * b));
    for (; d < n; d++) o[d] = fmaf(o[d], a, o2[d] * b);
}

static void attention_overlay(sh_kernels *k)
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
    k->softmax_part = softmax_part;
    k->softmax_merge = softmax_merge;
}

#endif
