/* Operands of training and activations in bf16: two vectors are rounded by one instruction. It
 * takes numbers too small to be normal for zero, so the common source rounds those. */
#include "kernels/amx/amx.h"

/* A line past the caches. */
SH_INLINE void store_far(void *y, __m512i v)
{
    if ((uintptr_t)y % 64 == 0)
        _mm512_stream_si512(y, v);
    else
        _mm512_storeu_si512(y, v);
}

SH_INLINE __m512i pair_native(__m512i even, __m512i odd);
#define VEC                   16
#define WORDS_PAIR(even, odd) ((words_vector)pair_native((__m512i)(even), (__m512i)(odd)))
#define WORDS_STORE_FAR(y, w) store_far(y, (__m512i)(w).v[0])
#define WORDS_TRANSPOSE       SH_INLINE /* 16 of 32 registers */
#include "kernels/operands.h"

/* The lanes that hold a denormal number: of the class of zeros (denormal ones are in it or not, as
 * the thread's mode is), but not zero. */
SH_INLINE __mmask16 tiny(__m512 v)
{
    enum { ZERO = 0x06, DENORMAL = 0x20 };
    return _mm512_mask_test_epi32_mask(_mm512_fpclass_ps_mask(v, ZERO | DENORMAL),
                                       _mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
SH_INLINE bool any_tiny(__m512 a, __m512 b)
{
    return (tiny(a) | tiny(b)) != 0;
}

SH_INLINE __m512i pair_native(__m512i even, __m512i odd)
{
    __m512 e = _mm512_castsi512_ps(even), o = _mm512_castsi512_ps(odd);
    if (__builtin_expect(any_tiny(e, o), false))
        return (__m512i)words_pair((words_vector)even, (words_vector)odd);
    __m512i v;
    pair_row(&v, e, o);
    return v;
}

/* 32 values of a slice, of which n are there. */
SH_INLINE void round_run(uint16_t *y, const float *x, int n)
{
    __mmask16 low = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
    __mmask16 high = n >= 32 ? 0xffff : n > 16 ? (__mmask16)((1u << (n - 16)) - 1) : 0;
    __m512 a = _mm512_maskz_loadu_ps(low, x), b = _mm512_maskz_loadu_ps(high, x + 16);
    if (__builtin_expect(any_tiny(a, b), false))
        for (int i = 0; i < SH_RUN; i++) y[i] = i < n ? sh_bf16_from_f32(x[i]) : 0;
    else
        _mm512_store_si512(y, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN)
            round_run((uint16_t *)y + p, x + k, kd->k[s + 1] - k);
}

void sh_operands_amx(sh_kernels *k)
{
    operands_overlay(k);
    k->prepare[SH_FORM_BF16] = prepare_bf16;
}
