/* The parts of the AVX-512 table, and what they share. */
#ifndef SH_KERNELS_AVX512_AVX512_H
#define SH_KERNELS_AVX512_AVX512_H

#include <immintrin.h>

#include "kernels/kernels.h"

#define INLINE static inline __attribute__((always_inline))

void sh_matmul_avx512(sh_kernels *k);
void sh_vector_avx512(sh_kernels *k);
void sh_attention_avx512(sh_kernels *k);
void sh_peak_avx512(sh_kernels *k);
void sh_operands_avx512(sh_kernels *k);
void sh_train_avx512(sh_kernels *k);
void sh_adamw_avx512(sh_kernels *k);

/* The first n lanes; n may be more than 16. */
INLINE __mmask16 first_lanes(int n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* Lanes added in halves: 8, 4, 2, 1. */
INLINE float sum_halves(__m512 v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* sh_expf of base/fmath.h, 16 at a time. The power of two is exact, however it is multiplied in. */
INLINE __m512 exp16(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic), magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145752f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720.0f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_scalef_ps(p, n);
    __mmask16 low = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(88.7f), _CMP_GT_OQ);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    p = _mm512_mask_mov_ps(p, low, _mm512_setzero_ps());
    p = _mm512_mask_mov_ps(p, high, _mm512_set1_ps(__builtin_inff()));
    return _mm512_mask_mov_ps(p, nan, x);
}

/* Rounds to bf16, as bits in the upper half of each lane; the lower half is zero. */
INLINE __m512i round_bf16(__m512 v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_mov_epi32(r, nan, _mm512_or_si512(u, _mm512_set1_epi32(0x400000)));
    return _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000));
}

#endif
