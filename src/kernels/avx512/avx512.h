/* The parts of the AVX-512 table, and what they share. */
#ifndef SH_KERNELS_AVX512_AVX512_H
#define SH_KERNELS_AVX512_AVX512_H

#include <immintrin.h>

#include "kernels/kernels.h"

void sh_matmul_avx512(sh_kernels *k);
void sh_vector_avx512(sh_kernels *k);
void sh_attention_avx512(sh_kernels *k);
void sh_peak_avx512(sh_kernels *k);
void sh_operands_avx512(sh_kernels *k);
void sh_train_avx512(sh_kernels *k);
void sh_adamw_avx512(sh_kernels *k);

/* The first n lanes; n may be more than 16. */
SH_INLINE __mmask16 first_lanes(int n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

typedef __m512 vec;
#define VEC      16
#define VEC_SUMS 16
#include "kernels/vec.h"

SH_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
SH_INLINE vec vec_load_first(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
SH_INLINE void vec_store_first(float *p, vec v, int n)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
SH_INLINE vec vec_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
SH_INLINE vec vec_bf16(const uint16_t *p)
{
    __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
SH_INLINE vec vec_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
SH_INLINE void vec_put_f16(uint16_t *out, vec v)
{
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
SH_INLINE void vec_put16(uint16_t *out, vec_words v)
{
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16((__m512i)v));
}
SH_INLINE void vec_put8(int8_t *out, vec_words v)
{
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8((__m512i)v));
}

#endif
