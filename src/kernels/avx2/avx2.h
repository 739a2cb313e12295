/* The parts of the AVX2 table and what they share. */
#ifndef SH_KERNELS_AVX2_AVX2_H
#define SH_KERNELS_AVX2_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "base/fmath.h"
#include "kernels/product.h"

void sh_matmul_i8_avx2(sh_kernels *k);
void sh_matmul_float_avx2(sh_kernels *k);
void sh_vector_avx2(sh_kernels *k);
void sh_attention_avx2(sh_kernels *k);
void sh_attend_avx2(sh_kernels *k);
void sh_peak_avx2(sh_kernels *k);
void sh_operands_avx2(sh_kernels *k);
void sh_train_avx2(sh_kernels *k);
void sh_adamw_avx2(sh_kernels *k);

enum { SH_AHEAD = 4096 }; /* bytes of weights that are asked for ahead of their use */

/* A run of 32 k's of a panel in float32: even k's, odd k's. Aligned to 32 bytes. */
typedef float sh_run_w[2][SH_RUN / 2][SH_LANES];

enum { SH_RUN_TILE = 6 }; /* tokens of sh_run_sums_avx2 */

/* Adds the bf16 sums of the first n_k k's of a run to acc (n, lda), SH_LANES of each row; x (n, ldx
 * bytes): bf16, n at most SH_RUN_TILE. */
void sh_run_sums_avx2(float *acc, size_t lda, sh_run_w w, const void *x, size_t ldx, int n_k,
                      int n);

/* The row softmax_part. */
float sh_softmax_part_avx2(float *s, int n, float *sum);

SH_INLINE __m256 sh_f16x8(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
SH_INLINE __m256 sh_bf16x8(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
SH_INLINE __m256 sh_i8x8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
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
    const __m256 lo = _mm256_set1_ps(-87.0f), hi = _mm256_set1_ps(88.7f),
                 one = _mm256_set1_ps(1.0f);
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

#endif
