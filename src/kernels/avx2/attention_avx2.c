/* Attention over one page of the KV cache, and the parts of a softmax. K and V that are loaded and
 * widened serve up to four of the heads that share them. */
#include "kernels/avx2/avx2.h"

/* Eight values of the cache from element i on, as float32. */
typedef __m256 load_fn(const void *p, size_t i);

SH_INLINE __m256 load_f32(const void *p, size_t i)
{
    return _mm256_loadu_ps((const float *)p + i);
}
SH_INLINE __m256 load_f16(const void *p, size_t i)
{
    return sh_f16x8((const uint16_t *)p + i);
}
SH_INLINE __m256 load_bf16(const void *p, size_t i)
{
    return sh_bf16x8((const uint16_t *)p + i);
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

/* ---- scores: lanes are positions ---- */

/* n_head heads and n_panel panels of 16 positions, 8 chains between them. k: at the first panel. */
SH_INLINE void score_block(load_fn *load, const int n_head, const int n_panel, float *s, size_t lds,
                           const float *q, size_t ldq, const void *k, int head_dim, float scale)
{
    __m256 acc[4][8];
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_panel * 2; p++) acc[h][p] = _mm256_setzero_ps();
    for (int d = 0; d < head_dim; d++) {
        __m256 kv[8];
#pragma GCC unroll 8
        for (int p = 0; p < n_panel * 2; p++)
            kv[p] = load(k, ((size_t)(p / 2) * (size_t)head_dim + (size_t)d) * 16 +
                                (size_t)(p % 2 * 8));
#pragma GCC unroll 4
        for (int h = 0; h < n_head; h++) {
            __m256 v = _mm256_broadcast_ss(q + (size_t)h * ldq + d);
#pragma GCC unroll 8
            for (int p = 0; p < n_panel * 2; p++) acc[h][p] = _mm256_fmadd_ps(v, kv[p], acc[h][p]);
        }
    }
    for (int h = 0; h < n_head; h++)
        for (int p = 0; p < n_panel * 2; p++)
            _mm256_storeu_ps(s + (size_t)h * lds + p * 8,
                             _mm256_mul_ps(acc[h][p], _mm256_set1_ps(scale)));
}

SH_INLINE void scores(load_fn *load, size_t size, float *s, size_t lds, const float *q, size_t ldq,
                      int n_q, const void *kpage, int n_pos, int head_dim, float scale)
{
    int n_panel = (n_pos + 15) / 16, h = 0;
    size_t panel_bytes = (size_t)head_dim * 16 * size;
    for (; h + 4 <= n_q; h += 4, s += 4 * lds, q += 4 * ldq)
        for (int p = 0; p < n_panel; p++)
            score_block(load, 4, 1, s + p * 16, lds, q, ldq,
                        (const char *)kpage + (size_t)p * panel_bytes, head_dim, scale);
    for (; h < n_q; h++, s += lds, q += ldq) {
        int p = 0;
        if (n_panel == 4) {
            score_block(load, 1, 4, s, lds, q, ldq, kpage, head_dim, scale);
            continue;
        }
        for (; p < n_panel; p++)
            score_block(load, 1, 1, s + p * 16, lds, q, ldq,
                        (const char *)kpage + (size_t)p * panel_bytes, head_dim, scale);
    }
}

/* ---- values: lanes are d ---- */

/* n_head heads and n_vec * 8 values from element d on. */
SH_INLINE void value_block(load_fn *load, const int n_head, const int n_vec, float *o, size_t ldo,
                           const float *p, size_t ldp, const void *vpage, int n_pos, int head_dim,
                           int d)
{
    __m256 acc[4][8];
    for (int h = 0; h < n_head; h++)
        for (int i = 0; i < n_vec; i++)
            acc[h][i] = _mm256_loadu_ps(o + (size_t)h * ldo + d + i * 8);
    for (int j = 0; j < n_pos; j++) {
        __m256 v[8];
#pragma GCC unroll 8
        for (int i = 0; i < n_vec; i++) v[i] = load(vpage, (size_t)(j * head_dim + d + i * 8));
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

SH_INLINE void values(load_fn *load, float (*one)(const void *, size_t), float *o, size_t ldo,
                      const float *p, size_t ldp, int n_q, const void *vpage, int n_pos,
                      int head_dim)
{
    for (int h = 0, n; h < n_q; h += n, o += (size_t)n * ldo, p += (size_t)n * ldp) {
        int d = 0;
        n = n_q - h >= 4 ? 4 : 1;
        if (n == 4)
            for (; d + 16 <= head_dim; d += 16)
                value_block(load, 4, 2, o, ldo, p, ldp, vpage, n_pos, head_dim, d);
        else
            for (; d + 64 <= head_dim; d += 64)
                value_block(load, 1, 8, o, ldo, p, ldp, vpage, n_pos, head_dim, d);
        for (; d + 8 <= head_dim; d += 8)
            for (int i = 0; i < n; i++)
                value_block(load, 1, 1, o + (size_t)i * ldo, ldo, p + (size_t)i * ldp, ldp, vpage,
                            n_pos, head_dim, d);
        for (int i = 0; i < n; i++)
            for (int e = d; e < head_dim; e++)
                for (int j = 0; j < n_pos; j++)
                    o[(size_t)i * ldo + (size_t)e] =
                        fmaf(p[(size_t)i * ldp + (size_t)j], one(vpage, (size_t)(j * head_dim + e)),
                             o[(size_t)i * ldo + (size_t)e]);
    }
}

static float one_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}
static float one_f16(const void *p, size_t i)
{
    return sh_f16_to_f32(((const uint16_t *)p)[i]);
}
static float one_bf16(const void *p, size_t i)
{
    return sh_bf16_to_f32(((const uint16_t *)p)[i]);
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
        values(load_##type, one_##type, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim);              \
    }
ROWS(f32, 4)
ROWS(f16, 2)
ROWS(bf16, 2)

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
    k->attn_scores[SH_F32] = scores_f32;
    k->attn_scores[SH_F16] = scores_f16;
    k->attn_scores[SH_BF16] = scores_bf16;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    k->softmax_part = sh_softmax_part_avx2;
    k->softmax_merge = softmax_merge;
}
