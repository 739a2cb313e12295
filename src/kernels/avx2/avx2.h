/* The parts of the AVX2 table and what they share. */
#ifndef SH_KERNELS_AVX2_AVX2_H
#define SH_KERNELS_AVX2_AVX2_H

#include <immintrin.h>

#include "kernels/kernels.h"

void sh_matmul_i8_avx2(sh_kernels *k);
void sh_matmul_float_avx2(sh_kernels *k);
void sh_vector_avx2(sh_kernels *k);
void sh_attention_avx2(sh_kernels *k);
void sh_peak_avx2(sh_kernels *k);
void sh_operands_avx2(sh_kernels *k);
void sh_train_avx2(sh_kernels *k);
void sh_adamw_avx2(sh_kernels *k);

typedef __m256 vec;
#define VEC      8
#define VEC_SUMS 8
#include "kernels/product.h"

SH_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
SH_INLINE vec vec_load_first(const float *p, int n)
{
    return _mm256_maskload_ps(p, (__m256i)vec_first(n));
}
SH_INLINE void vec_store_first(float *p, vec v, int n)
{
    _mm256_maskstore_ps(p, (__m256i)vec_first(n), v);
}
SH_INLINE vec vec_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
SH_INLINE vec vec_bf16(const uint16_t *p)
{
    __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
SH_INLINE vec vec_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
SH_INLINE void vec_put_f16(uint16_t *out, vec v)
{
    _mm_storeu_si128((__m128i *)out, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
SH_INLINE void vec_put16(uint16_t *out, vec_words v)
{
    __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(0xffff));
    _mm_storeu_si128((__m128i *)out, _mm_packus_epi32(_mm256_castsi256_si128(low),
                                                      _mm256_extracti128_si256(low, 1)));
}
SH_INLINE void vec_put8(int8_t *out, vec_words v)
{
    const __m256i first = _mm256_setr_epi32(0x0c080400, 0, 0, 0, 0x0c080400, 0, 0, 0);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)v, first);
    _mm_storeu_si64(
        out, _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

enum { SH_TILE = 6 }; /* tokens of one sum, which has 12 registers */

/* acc (tokens, SH_LANES) += n_run unpacked runs. */
typedef void sh_tile_fn(float *acc, const void *w, const void *x, int n_run);

/* A product of many tokens by chunks of k's (chunks_avx2.c). */
typedef struct sh_chunks {
    size_t x_bytes, w_bytes; /* to which a run of SH_TILE tokens, or of a panel, is unpacked:
                                multiples of 32, at most those of floats */
    void (*unpack_x)(void *out, const sh_mat *w, const uint8_t *x, size_t ldx, int run, int n_tok);
    void (*unpack_w)(void *out, const sh_mat *w, const uint8_t *panel, int run);
    sh_tile_fn *const *sum; /* for 1 to SH_TILE tokens */
} sh_chunks;

void sh_product_chunks(const sh_chunks *c, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                       int panel_hi, int slice_lo, int slice_hi, const void *x, size_t ldx,
                       int n_tok);

/* The table `name` of such functions; `sum` adds run i of w and x to acc for n tokens. Each number
 * of tokens is a function by itself: as one they would share out the registers badly. */
#define SH_TILE_SUM(name, T, sum)                                                                  \
    static void name##_##T(float *acc, const void *w, const void *x, int n_run)                    \
    {                                                                                              \
        enum { n = T };                                                                            \
        for (int i = 0; i < n_run; i++) sum;                                                       \
    }
#define SH_TILE_SUMS(name, sum)                                                                    \
    SH_TILE_SUM(name, 1, sum)                                                                      \
    SH_TILE_SUM(name, 2, sum)                                                                      \
    SH_TILE_SUM(name, 3, sum)                                                                      \
    SH_TILE_SUM(name, 4, sum)                                                                      \
    SH_TILE_SUM(name, 5, sum)                                                                      \
    SH_TILE_SUM(name, 6, sum)                                                                      \
    static sh_tile_fn *const name[SH_TILE] = {name##_1, name##_2, name##_3,                        \
                                              name##_4, name##_5, name##_6};

/* A run of 32 k's of a panel in float32: even k's, odd k's. Aligned to 32 bytes. */
typedef float sh_run_w[2][SH_RUN / 2][SH_LANES];

SH_INLINE void sh_run_put(sh_run_w w, int k, int lane, vec v)
{
    vec_store(&w[k & 1][k / 2][lane], v);
}

/* Adds the bf16 sums of the first n_k k's of a run to acc (n, lda), SH_LANES of each row; x (n, ldx
 * bytes): bf16. */
void sh_run_sums_avx2(float *acc, size_t lda, sh_run_w w, const void *x, size_t ldx, int n_k,
                      int n);
#define sh_run_sums sh_run_sums_avx2

#endif
