/* Attention over one page of the KV cache, and the parts of a softmax. K and V that are loaded and
 * widened serve up to four of the heads that share them. */
#include "kernels/avx2/avx2.h"
#include "kernels/kv_q8.h"

SH_INLINE size_t size_of(const sh_dtype t)
{
    return t == SH_F32 ? 4 : t == SH_Q8_0 ? 1 : 2;
}

/* Asks for n bytes that will be read soon. */
SH_INLINE void ask(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
}

/* Eight elements of a page of type t, from element i on; of q8_0 their integers. */
SH_INLINE __m256 load(const sh_dtype t, const void *page, size_t i)
{
    switch (t) {
    case SH_F32:
        return _mm256_loadu_ps((const float *)page + i);
    case SH_F16:
        return sh_f16x8((const uint16_t *)page + i);
    case SH_BF16:
        return sh_bf16x8((const uint16_t *)page + i);
    default:
        return sh_i8x8((const int8_t *)page + i);
    }
}

/* ---- storing ---- */

static void put_f32(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    float *kp = (float *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    for (int d = 0; d < head_dim; d++) kp[d * 16] = k[d];
    memcpy((float *)vpage + (size_t)at * (size_t)head_dim, v, (size_t)head_dim * sizeof *v);
}

/* Eight values rounded to 16 bits. */
typedef __m128i round_fn(__m256 v);

SH_INLINE __m128i round_f16(__m256 v)
{
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}
SH_INLINE __m128i round_bf16(__m256 v)
{
    __m256i r = _mm256_srli_epi32(sh_round_bf16(v), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

SH_INLINE void put16(round_fn *round, uint16_t (*one)(float), void *kpage, void *vpage,
                     const float *k, const float *v, int at, int head_dim)
{
    uint16_t *kp = (uint16_t *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    uint16_t *vp = (uint16_t *)vpage + (size_t)at * (size_t)head_dim, r[8];
    int d = 0;
    for (; d + 8 <= head_dim; d += 8) {
        _mm_storeu_si128((__m128i *)r, round(_mm256_loadu_ps(k + d)));
        for (int i = 0; i < 8; i++) kp[(d + i) * 16] = r[i];
        _mm_storeu_si128((__m128i *)(vp + d), round(_mm256_loadu_ps(v + d)));
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
    put16(round_bf16, sh_bf16_from_f32, kpage, vpage, k, v, at, head_dim);
}

static void put_q8_0(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    sh_kv_put_q8(kpage, vpage, k, v, at, head_dim);
}

/* ---- scores: lanes are positions ---- */

/* n_head heads and n_panel panels of 16 positions from `panel` on, 8 chains between them; the same
 * panels of the page `next`, if any, are asked for. */
SH_INLINE void score_block(const sh_dtype t, const int n_head, const int n_panel, float *s,
                           size_t lds, const float *q, size_t ldq, const void *kpage, int panel,
                           int head_dim, float scale, const void *next)
{
    const size_t step = (size_t)n_panel * 16 * size_of(t);
    const char *ahead =
        next ? (const char *)next + (size_t)(panel * head_dim) * 16 * size_of(t) : NULL;
    __m256 acc[4][8], k_scale[8];
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_panel * 2; p++) acc[h][p] = _mm256_setzero_ps();
    for (int d = 0, end; d < head_dim; d = end) {
        const uint16_t *scales = sh_kv_scales(kpage, head_dim) + d / SH_RUN * SH_PAGE + panel * 16;
        end = t == SH_Q8_0 && head_dim - d > SH_RUN ? d + SH_RUN : head_dim;
        for (int p = 0; t == SH_Q8_0 && p < n_panel * 2; p++) k_scale[p] = sh_f16x8(scales + p * 8);
        for (int e = d; e < end; e++) {
            __m256 kv[8];
            if (ahead) ask(ahead + (size_t)e * step, step);
#pragma GCC unroll 8
            for (int p = 0; p < n_panel * 2; p++) {
                size_t at = (size_t)((panel + p / 2) * head_dim + e) * 16 + (size_t)(p % 2 * 8);
                kv[p] = load(t, kpage, at);
                if (t == SH_Q8_0) kv[p] = _mm256_mul_ps(kv[p], k_scale[p]);
            }
#pragma GCC unroll 4
            for (int h = 0; h < n_head; h++) {
                __m256 v = _mm256_broadcast_ss(q + (size_t)h * ldq + e);
#pragma GCC unroll 8
                for (int p = 0; p < n_panel * 2; p++)
                    acc[h][p] = _mm256_fmadd_ps(v, kv[p], acc[h][p]);
            }
        }
    }
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_panel * 2; p++)
            _mm256_storeu_ps(s + (size_t)h * lds + p * 8,
                             _mm256_mul_ps(acc[h][p], _mm256_set1_ps(scale)));
}

SH_INLINE void scores(const sh_dtype t, float *s, size_t lds, const float *q, size_t ldq, int n_q,
                      const void *kpage, int n_pos, int head_dim, float scale, const void *next)
{
    int n_panel = (n_pos + 15) / 16, h = 0;
    for (; h + 4 <= n_q; h += 4, s += 4 * lds, q += 4 * ldq, next = NULL)
        for (int p = 0; p < n_panel; p++)
            score_block(t, 4, 1, s + p * 16, lds, q, ldq, kpage, p, head_dim, scale, next);
    for (; h < n_q; h++, s += lds, q += ldq, next = NULL) {
        if (n_panel == 4) {
            score_block(t, 1, 4, s, lds, q, ldq, kpage, 0, head_dim, scale, next);
            continue;
        }
        for (int p = 0; p < n_panel; p++)
            score_block(t, 1, 1, s + p * 16, lds, q, ldq, kpage, p, head_dim, scale, next);
    }
}

/* ---- values: lanes are d ---- */

/* The scales of 64 d's from a multiple of SH_RUN on. */
typedef float group_scales[2][SH_PAGE];

SH_INLINE void widen_scales(group_scales out, const void *vpage, int head_dim, int d)
{
    const uint16_t *scale = sh_kv_scales(vpage, head_dim) + d / SH_RUN * SH_PAGE;
    for (int g = 0; g < 2 && d + g * SH_RUN < head_dim; g++)
        for (int j = 0; j < SH_PAGE; j += 8)
            _mm256_storeu_ps(out[g] + j, sh_f16x8(scale + g * SH_PAGE + j));
}

/* n_head heads and n_vec * 8 values from element d on, whose scales are those from group 0 on. */
SH_INLINE void value_block(const sh_dtype t, const int n_head, const int n_vec, float *o,
                           size_t ldo, const float *p, size_t ldp, const void *vpage,
                           group_scales scale, int n_pos, int head_dim, int d, const void *next)
{
    const size_t size = size_of(t);
    const char *ahead = next ? (const char *)next + (size_t)(d * n_pos) * size : NULL;
    __m256 acc[4][8];
    for (int h = 0; h < n_head; h++)
        for (int i = 0; i < n_vec; i++)
            acc[h][i] = _mm256_loadu_ps(o + (size_t)h * ldo + d + i * 8);
    for (int j = 0; j < n_pos; j++) {
        __m256 v[8];
        if (ahead) ask(ahead + (size_t)(j * n_vec) * 8 * size, (size_t)n_vec * 8 * size);
#pragma GCC unroll 8
        for (int i = 0; i < n_vec; i++) {
            v[i] = load(t, vpage, (size_t)(j * head_dim + d + i * 8));
            if (t == SH_Q8_0) v[i] = _mm256_mul_ps(v[i], _mm256_broadcast_ss(&scale[i / 4][j]));
        }
#pragma GCC unroll 4
        for (int h = 0; h < n_head; h++) {
            __m256 pj = _mm256_broadcast_ss(p + (size_t)h * ldp + j);
#pragma GCC unroll 8
            for (int i = 0; i < n_vec; i++) acc[h][i] = _mm256_fmadd_ps(pj, v[i], acc[h][i]);
        }
    }
    for (int h = 0; h < n_head; h++)
        for (int i = 0; i < n_vec; i++)
            _mm256_storeu_ps(o + (size_t)h * ldo + d + i * 8, acc[h][i]);
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

SH_INLINE void values(const sh_dtype t, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                      const void *vpage, int n_pos, int head_dim, const void *next_page)
{
    group_scales sc;
    for (int d = 0, step; d < head_dim; d += step) {
        int left = head_dim - d;
        const void *next = next_page;
        step = left >= 64 ? 64 : left >= 16 ? 16 : left >= 8 ? 8 : left;
        if (t == SH_Q8_0) widen_scales(sc, vpage, head_dim, d);
        for (int h = 0, n; h < n_q; h += n, next = NULL) {
            float *oh = o + (size_t)h * ldo;
            const float *ph = p + (size_t)h * ldp;
            n = step >= 16 && n_q - h >= 4 ? 4 : 1;
            if (n == 4)
                for (int e = 0; e < step; e += 16)
                    value_block(t, 4, 2, oh, ldo, ph, ldp, vpage, sc + e / SH_RUN, n_pos, head_dim,
                                d + e, next);
            else if (step == 64)
                value_block(t, 1, 8, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else if (step == 16)
                value_block(t, 1, 2, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else if (step == 8)
                value_block(t, 1, 1, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, next);
            else
                for (int e = d; e < head_dim; e++)
                    for (int j = 0; j < n_pos; j++)
                        oh[e] = fmaf(ph[j], one(t, vpage, sc, head_dim, j, e), oh[e]);
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

/* The first m lanes of 8 that are below n. */
SH_INLINE __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

float sh_softmax_part_avx2(float *s, int n, float *sum)
{
    float m = s[0], lane[SH_LANES];
    __m256 top = _mm256_set1_ps(m), a = _mm256_setzero_ps(), b = a;
    int j = 0;
    /* max_ps(x, y) is x > y ? x : y, so that a NaN is passed over unless it comes first, as in C */
    for (; j + 8 <= n; j += 8) top = _mm256_max_ps(_mm256_loadu_ps(s + j), top);
    _mm256_storeu_ps(lane, top);
    for (int i = 0; i < 8; i++) m = lane[i] > m ? lane[i] : m;
    for (; j < n; j++) m = s[j] > m ? s[j] : m;
    for (j = 0; m == 0; j++) /* of several zeros, the sign of the first */
        if (s[j] == 0) {
            m = s[j];
            break;
        }
    const __m256 mv = _mm256_set1_ps(m);
    for (j = 0; j < n; j += SH_LANES) {
        __m256i low = lanes_below(n - j), high = lanes_below(n - j - 8);
        __m256 u = sh_exp_avx2(_mm256_sub_ps(_mm256_maskload_ps(s + j, low), mv));
        __m256 v = sh_exp_avx2(_mm256_sub_ps(_mm256_maskload_ps(s + j + 8, high), mv));
        _mm256_maskstore_ps(s + j, low, u);
        _mm256_maskstore_ps(s + j + 8, high, v);
        a = _mm256_add_ps(a, _mm256_and_ps(u, _mm256_castsi256_ps(low)));
        b = _mm256_add_ps(b, _mm256_and_ps(v, _mm256_castsi256_ps(high)));
    }
    _mm256_storeu_ps(lane, a);
    _mm256_storeu_ps(lane + 8, b);
    *sum = sh_sum_lanes(lane);
    return m;
}

static void softmax_merge(float *o, float *m, float *l, const float *o2, float m2, float l2, int n)
{
    float top = *m > m2 ? *m : m2, a = sh_expf(*m - top), b = sh_expf(m2 - top);
    const __m256 av = _mm256_set1_ps(a), bv = _mm256_set1_ps(b);
    int d = 0;
    *m = top;
    *l = fmaf(*l, a, l2 * b);
    for (; d + 8 <= n; d += 8)
        _mm256_storeu_ps(o + d, _mm256_fmadd_ps(_mm256_loadu_ps(o + d), av,
                                                _mm256_mul_ps(_mm256_loadu_ps(o2 + d), bv)));
    for (; d < n; d++) o[d] = fmaf(o[d], a, o2[d] * b);
}

void sh_attention_avx2(sh_kernels *k)
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
    k->softmax_part = sh_softmax_part_avx2;
    k->softmax_merge = softmax_merge;
}
