/* The parts of the AVX2 table and what they share. */
#ifndef SH_KERNELS_AVX2_AVX2_H
#define SH_KERNELS_AVX2_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "base/fmath.h"
#include "kernels/kernels.h"

void sh_matmul_i8_avx2(sh_kernels *k);
void sh_matmul_float_avx2(sh_kernels *k);
void sh_vector_avx2(sh_kernels *k);
void sh_attention_avx2(sh_kernels *k);
void sh_peak_avx2(sh_kernels *k);

/* A function whose number of tokens must be a constant for its sums to stay in registers. */
#define SH_INLINE static inline __attribute__((always_inline))

enum {
    SH_AHEAD = 4096, /* bytes of weights that are asked for ahead of their use */
    SH_TOKENS = 64,  /* tokens that a product takes at once: they stay in the second cache */
};

SH_INLINE __m256 sh_f16x8(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
SH_INLINE __m256 sh_bf16x8(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

/* sh_bf16_from_f32 of each value, in the upper halves; the lower are 0. */
SH_INLINE __m256i sh_round_bf16(__m256 v)
{
    const __m256i top = _mm256_set1_epi32((int)0xffff0000);
    __m256i u = _mm256_castps_si256(v), odd = _mm256_srli_epi32(_mm256_slli_epi32(u, 15), 31);
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    r = _mm256_blendv_epi8(r, nan, _mm256_castps_si256(is_nan));
    return _mm256_and_si256(r, top);
}

/* sh_expf of each value: the same operations. */
SH_INLINE __m256 sh_exp_avx2(__m256 x)
{
    const __m256 lo = _mm256_set1_ps(-87.0f), hi = _mm256_set1_ps(88.7f), one = _mm256_set1_ps(1.0f);
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    __m256 v = _mm256_min_ps(_mm256_max_ps(x, lo), hi);
    __m256 n = _mm256_sub_ps(_mm256_fmadd_ps(v, _mm256_set1_ps(1.44269504f), magic), magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693145752f), v);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-1.42860677e-6f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720.0f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    __m256i i = _mm256_cvttps_epi32(n), bias = _mm256_set1_epi32(127);
    __m256i h = _mm256_srai_epi32(_mm256_add_epi32(i, _mm256_srli_epi32(i, 31)), 1); /* i / 2 */
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(h, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, h), bias), 23);
    p = _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
    p = _mm256_andnot_ps(_mm256_cmp_ps(x, lo, _CMP_LT_OQ), p);
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, hi, _CMP_GT_OQ));
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* ---- what all products share ---- */

/* The roots of the finished subtrees of one token's canonical tree, for the lanes of a panel. */
typedef float sh_tree[4][SH_LANES];

/* Takes the sum of slice i, counted from the first; slices come in order. Before it there are as many
 * roots as i has ones, and each trailing one is a carry. */
SH_INLINE void sh_tree_push(sh_tree tree, int i, const float *sum)
{
    __m256 lo = _mm256_loadu_ps(sum), hi = _mm256_loadu_ps(sum + 8);
    int depth = __builtin_popcount((unsigned)i);
    for (; i & 1; i >>= 1) {
        depth--;
        lo = _mm256_add_ps(_mm256_loadu_ps(tree[depth]), lo);
        hi = _mm256_add_ps(_mm256_loadu_ps(tree[depth] + 8), hi);
    }
    _mm256_storeu_ps(tree[depth], lo);
    _mm256_storeu_ps(tree[depth] + 8, hi);
}

/* The root of token t to the rows of panel p. */
SH_INLINE void sh_tree_store(float *y, size_t ldy, sh_tree tree, const sh_mat *w, int p, int t)
{
    int o = p * SH_LANES, n = w->rows - o < SH_LANES ? w->rows - o : SH_LANES;
    memcpy(y + (size_t)t * ldy + o, tree[0], (size_t)n * sizeof(float));
}

/* Sums the padded k's [lo, hi) of a panel for n tokens: acc (n, SH_LANES). */
typedef void sh_sum_fn(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                       const uint8_t *x, size_t ldx, int n);

enum { SH_MAX_TILE = 8 };

/* The product made of such sums, `tile` tokens at a time, straight from the packed weights. */
SH_INLINE void sh_product(sh_sum_fn *sum, int tile, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                          int panel_hi, int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok)
{
    for (int t0 = 0; t0 < n_tok; t0 += SH_TOKENS)
        for (int p = panel_lo; p < panel_hi; p++) {
            const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
            int end = n_tok - t0 < SH_TOKENS ? n_tok : t0 + SH_TOKENS;
            for (int t = t0, n; t < end; t += n) {
                float acc[SH_MAX_TILE * SH_LANES];
                sh_tree tree[SH_MAX_TILE];
                n = end - t < tile ? end - t : tile;
                for (int s = slice_lo; s < slice_hi; s++) {
                    sum(acc, w, panel, w->kd.kp[s], w->kd.kp[s + 1], (const uint8_t *)x + (size_t)t * ldx,
                        ldx, n);
                    for (int i = 0; i < n; i++) sh_tree_push(tree[i], s - slice_lo, acc + i * SH_LANES);
                }
                for (int i = 0; i < n; i++) sh_tree_store(y, ldy, tree[i], w, p, t + i);
            }
        }
}

#endif
