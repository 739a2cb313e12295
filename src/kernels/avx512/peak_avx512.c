/* What AVX-512 can do at most: the rows `peak` and `read`. */
#include "kernels/avx512/avx512.h"

enum { N_ACC = 16, AHEAD = 4096 }; /* sums under way; bytes that are asked for before they are read */

static double peak_f32(long n_round)
{
    __m512 acc[N_ACC], w = _mm512_set1_ps(1e-3f), x = _mm512_set1_ps(1e-3f);
    for (int i = 0; i < N_ACC; i++) acc[i] = _mm512_setzero_ps();
    for (long r = 0; r < n_round; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < N_ACC; i++) {
            acc[i] = _mm512_fmadd_ps(w, x, acc[i]);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
    return (double)n_round * N_ACC * 16 * 2;
}

static double peak_i8(long n_round)
{
    __m512i acc[N_ACC], w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(-2);
    for (int i = 0; i < N_ACC; i++) acc[i] = _mm512_setzero_si512();
    for (long r = 0; r < n_round; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < N_ACC; i++) {
            acc[i] = _mm512_dpbusd_epi32(acc[i], w, x);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
    return (double)n_round * N_ACC * 64 * 2;
}

static uint64_t read_all(const void *p, size_t n)
{
    const char *v = p;
    __m512i s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_si512();
    for (size_t at = 0; at < n; at += 256) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            _mm_prefetch(v + at + i * 64 + AHEAD, _MM_HINT_T0);
            s[i] = _mm512_xor_si512(s[i], _mm512_load_si512(v + at + i * 64));
        }
    }
    s[0] = _mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3]));
    return (uint64_t)_mm512_reduce_add_epi64(s[0]);
}

void sh_peak_avx512(sh_kernels *k)
{
    k->peak[SH_FORM_F32] = peak_f32;
    k->peak[SH_FORM_BF16] = peak_f32; /* the contract's chains of float32 multiply-adds */
    k->peak[SH_FORM_I8] = peak_i8;
    k->read = read_all;
}
