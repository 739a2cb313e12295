/* What AVX2 can do at most: the rows `peak` and `read`. */
#include "kernels/avx2/avx2.h"

/* The sums have names, as an array of them would lie in memory. */
static double peak_f32(long n_round)
{
    const __m256 w = _mm256_set1_ps(1e-3f), x = w;
    __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a, e = a, f = a;
    __m256 g = a, h = a, i = a, j = a, k = a, l = a;
    for (long r = 0; r < n_round; r++) {
        a = _mm256_fmadd_ps(w, x, a);
        b = _mm256_fmadd_ps(w, x, b);
        c = _mm256_fmadd_ps(w, x, c);
        d = _mm256_fmadd_ps(w, x, d);
        e = _mm256_fmadd_ps(w, x, e);
        f = _mm256_fmadd_ps(w, x, f);
        g = _mm256_fmadd_ps(w, x, g);
        h = _mm256_fmadd_ps(w, x, h);
        i = _mm256_fmadd_ps(w, x, i);
        j = _mm256_fmadd_ps(w, x, j);
        k = _mm256_fmadd_ps(w, x, k);
        l = _mm256_fmadd_ps(w, x, l);
        __asm__ volatile(""
                         : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f), "+x"(g), "+x"(h),
                           "+x"(i), "+x"(j), "+x"(k), "+x"(l));
    }
    return (double)n_round * 12 * 8 * 2;
}

/* Bytes by bytes into 16 bits: exact for q4_0. q8_0 needs twice the instructions
 * (matmul_i8_avx2.c). */
static double peak_i8(long n_round)
{
    __m256i w = _mm256_set1_epi8(3), x = w, a = _mm256_setzero_si256(), b = a, c = a, d = a, e = a,
            f = a;
    for (long r = 0; r < n_round; r++) {
        a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x)); /* or one product would serve all sums */
        b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x));
        c = _mm256_add_epi16(c, _mm256_maddubs_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x));
        d = _mm256_add_epi16(d, _mm256_maddubs_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x));
        e = _mm256_add_epi16(e, _mm256_maddubs_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x));
        f = _mm256_add_epi16(f, _mm256_maddubs_epi16(w, x));
        __asm__ volatile(""
                         : "+x"(w), "+x"(x), "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f));
    }
    return (double)n_round * 6 * 32 * 2;
}

/* As products of one token read. */
static uint64_t read_all(const void *p, size_t n)
{
    const size_t part = sh_cpu_streams ? n / SH_STREAMS : n;
    __m256i s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm256_setzero_si256();
    for (size_t at = 0; at < part; at += 256)
        for (const char *v = (const char *)p + at; v < (const char *)p + n; v += part) {
            if (!sh_cpu_streams) sh_ask_ahead(v, 256);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                __m256i w = _mm256_load_si256((const __m256i *)(v + i * 32));
                s[i % 4] = _mm256_xor_si256(s[i % 4], w);
            }
        }
    s[0] = _mm256_xor_si256(_mm256_xor_si256(s[0], s[1]), _mm256_xor_si256(s[2], s[3]));
    uint64_t sum[4];
    _mm256_storeu_si256((__m256i *)sum, s[0]);
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

void sh_peak_avx2(sh_kernels *k)
{
    k->peak[SH_FORM_F32] = peak_f32;
    k->peak[SH_FORM_BF16] = peak_f32; /* the contract's chains of float32 multiply-adds */
    k->peak[SH_FORM_I8] = peak_i8;
    k->read = read_all;
}
