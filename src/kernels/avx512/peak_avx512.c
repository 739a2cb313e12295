/* What AVX-512 can do at most: the rows `peak` and `read`. */
#include "kernels/ahead.h"
#include "kernels/avx512/avx512.h"

enum { N_ACC = 12 }; /* sums under way */

/* The sums have names, as an array of them would lie in memory. */
static double peak_f32(long n_round)
{
    const __m512 w = _mm512_set1_ps(1e-3f), x = w;
    __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps(), c = _mm512_setzero_ps();
    __m512 d = _mm512_setzero_ps(), e = _mm512_setzero_ps(), f = _mm512_setzero_ps();
    __m512 g = _mm512_setzero_ps(), h = _mm512_setzero_ps(), i = _mm512_setzero_ps();
    __m512 j = _mm512_setzero_ps(), k = _mm512_setzero_ps(), l = _mm512_setzero_ps();
    for (long r = 0; r < n_round; r++) {
        a = _mm512_fmadd_ps(w, x, a);
        b = _mm512_fmadd_ps(w, x, b);
        c = _mm512_fmadd_ps(w, x, c);
        d = _mm512_fmadd_ps(w, x, d);
        e = _mm512_fmadd_ps(w, x, e);
        f = _mm512_fmadd_ps(w, x, f);
        g = _mm512_fmadd_ps(w, x, g);
        h = _mm512_fmadd_ps(w, x, h);
        i = _mm512_fmadd_ps(w, x, i);
        j = _mm512_fmadd_ps(w, x, j);
        k = _mm512_fmadd_ps(w, x, k);
        l = _mm512_fmadd_ps(w, x, l);
        __asm__ volatile(""
                         : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h),
                           "+v"(i), "+v"(j), "+v"(k), "+v"(l));
    }
    return (double)n_round * N_ACC * 16 * 2;
}

static double peak_i8(long n_round)
{
    const __m512i w = _mm512_set1_epi8(3), x = w;
    __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512(), c = _mm512_setzero_si512();
    __m512i d = _mm512_setzero_si512(), e = _mm512_setzero_si512(), f = _mm512_setzero_si512();
    __m512i g = _mm512_setzero_si512(), h = _mm512_setzero_si512(), i = _mm512_setzero_si512();
    __m512i j = _mm512_setzero_si512(), k = _mm512_setzero_si512(), l = _mm512_setzero_si512();
    for (long r = 0; r < n_round; r++) {
        a = _mm512_dpbusd_epi32(a, w, x);
        b = _mm512_dpbusd_epi32(b, w, x);
        c = _mm512_dpbusd_epi32(c, w, x);
        d = _mm512_dpbusd_epi32(d, w, x);
        e = _mm512_dpbusd_epi32(e, w, x);
        f = _mm512_dpbusd_epi32(f, w, x);
        g = _mm512_dpbusd_epi32(g, w, x);
        h = _mm512_dpbusd_epi32(h, w, x);
        i = _mm512_dpbusd_epi32(i, w, x);
        j = _mm512_dpbusd_epi32(j, w, x);
        k = _mm512_dpbusd_epi32(k, w, x);
        l = _mm512_dpbusd_epi32(l, w, x);
        __asm__ volatile(""
                         : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h),
                           "+v"(i), "+v"(j), "+v"(k), "+v"(l));
    }
    return (double)n_round * N_ACC * 64 * 2;
}

static uint64_t read_all(const void *p, size_t n)
{
    const char *v = p;
    __m512i s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_si512();
    for (size_t at = 0; at < n; at += 256) {
        sh_ask_ahead(v + at, 256);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            s[i] = _mm512_xor_si512(s[i], _mm512_load_si512(v + at + i * 64));
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
