/* Matrix products. A vector is one k of a panel's 16 outputs, or four k's as bytes; each weight
 * that is loaded serves up to 8 tokens. T is a constant wherever it stands, so that the loops over
 * tokens unroll and the sums stay in registers. */
#include "kernels/ahead.h"
#include "kernels/avx512/avx512.h"

/* One token's prepared activations, and the sums of one panel and slice: acc[T]. */
typedef void slice_fn(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                      int hi, const char *x, size_t ldx);

/* The sums of T tokens over slices, added as the canonical tree adds them. */
SH_INLINE void tokens(slice_fn *slice, const int T, float *y, size_t ldy, const sh_mat *w,
                      const uint8_t *panel, __mmask16 rows, int slice_lo, int slice_hi,
                      const char *x, size_t ldx)
{
    __m512 part[4][8];
    int depth = 0;
    for (int s = slice_lo; s < slice_hi; s++) {
        __m512 acc[8];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
        slice(T, acc, w, panel, w->kd.kp[s], w->kd.kp[s + 1], x, ldx);
        for (int i = s - slice_lo; i & 1; i >>= 1) {
            depth--;
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) acc[t] = _mm512_add_ps(part[depth][t], acc[t]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) part[depth][t] = acc[t];
        depth++;
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(y + (size_t)t * ldy, rows, part[0][t]);
}

/* The same for 1 to 8 tokens, compiled for each number by itself: as one function they would share
 * out the registers badly. */
typedef void tokens_fn(float *y, size_t ldy, const sh_mat *w, const uint8_t *panel, __mmask16 rows,
                       int slice_lo, int slice_hi, const char *x, size_t ldx);

static void run(tokens_fn *const *of, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                int panel_hi, int slice_lo, int slice_hi, const char *x, size_t ldx, int n_tok)
{
    for (int p = panel_lo; p < panel_hi; p++) {
        const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        __mmask16 rows = first_lanes(w->rows - p * SH_LANES);
        float *yp = y + (size_t)p * SH_LANES;
        for (int t = 0, n; t < n_tok; t += n) {
            n = n_tok - t < 8 ? n_tok - t : 8;
            of[n - 1](yp + (size_t)t * ldy, ldy, w, panel, rows, slice_lo, slice_hi,
                      x + (size_t)t * ldx, ldx);
        }
    }
}

#define TOKENS(T, slice)                                                                           \
    static void slice##_##T(float *y, size_t ldy, const sh_mat *w, const uint8_t *panel,           \
                            __mmask16 rows, int slice_lo, int slice_hi, const char *x, size_t ldx) \
    {                                                                                              \
        tokens(slice, T, y, ldy, w, panel, rows, slice_lo, slice_hi, x, ldx);                      \
    }

#define MATMUL(name, slice)                                                                        \
    TOKENS(1, slice)                                                                               \
    TOKENS(2, slice)                                                                               \
    TOKENS(3, slice)                                                                               \
    TOKENS(4, slice)                                                                               \
    TOKENS(5, slice)                                                                               \
    TOKENS(6, slice)                                                                               \
    TOKENS(7, slice)                                                                               \
    TOKENS(8, slice)                                                                               \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        static tokens_fn *const of[8] = {slice##_1, slice##_2, slice##_3, slice##_4,               \
                                         slice##_5, slice##_6, slice##_7, slice##_8};              \
        run(of, SH_MATMUL_ARGS);                                                                   \
    }

SH_INLINE void slice_f32(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                         int hi, const char *x, size_t ldx)
{
    const float *wf = (const float *)panel;
    (void)w;
    for (int k = lo; k < hi; k++) {
        __m512 v = _mm512_load_ps(wf + (size_t)k * SH_LANES);
        if (!(k & 3)) sh_ask_ahead(wf + (size_t)k * SH_LANES, 256);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(v, _mm512_set1_ps(((const float *)(x + (size_t)t * ldx))[k]),
                                     acc[t]);
    }
}
MATMUL(matmul_f32, slice_f32)

SH_INLINE void slice_f16(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                         int hi, const char *x, size_t ldx)
{
    (void)w;
    for (int k = lo; k < hi; k++) {
        const __m256i *p = (const __m256i *)(panel + (size_t)k * 32);
        __m512 v = _mm512_cvtph_ps(_mm256_load_si256(p));
        if (!(k & 7)) sh_ask_ahead(p, 256);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(v, _mm512_set1_ps(((const float *)(x + (size_t)t * ldx))[k]),
                                     acc[t]);
    }
}
MATMUL(matmul_f16, slice_f16)

/* The even and the odd bf16 of 32 activations, as floats: e[16], then o[16]. */
SH_INLINE void spread_bf16(float *out, const void *x)
{
    __m512i v = _mm512_loadu_si512(x);
    _mm512_storeu_si512(out, _mm512_slli_epi32(v, 16));
    _mm512_storeu_si512(out + 16, _mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)));
}

SH_INLINE void slice_bf16(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                          int hi, const char *x, size_t ldx)
{
    (void)w;
    for (int k = lo; k < hi; k += SH_RUN) {
        const uint8_t *p = panel + (size_t)k * 32;
        float xs[8][32];
        __m512 even[8], odd[8];
        sh_ask_ahead(p, 1024);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            spread_bf16(xs[t], x + (size_t)t * ldx + (size_t)k * 2);
            even[t] = odd[t] = _mm512_setzero_ps();
        }
        /* not all sixteen: of few tokens the x's would go through registers, by shuffles */
#pragma GCC unroll 2
        for (int i = 0; i < 16; i++) {
            __m512i v = _mm512_load_si512(p + i * 64);
            __m512 we = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
            __m512 wo =
                _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)));
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                even[t] = _mm512_fmadd_ps(we, _mm512_set1_ps(xs[t][i]), even[t]);
                odd[t] = _mm512_fmadd_ps(wo, _mm512_set1_ps(xs[t][16 + i]), odd[t]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) acc[t] = _mm512_add_ps(acc[t], _mm512_add_ps(even[t], odd[t]));
    }
}
MATMUL(matmul_bf16, slice_bf16)

SH_INLINE __m512 scales(const uint8_t *first, size_t panel_bytes, int b)
{
    const uint8_t *p = first + (size_t)b * 32;
    sh_ask_scales(p, panel_bytes, b);
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
}

/* acc += (float)(dot - 2^shift * sum of the x's) * (scale_w * scale_x), for block b of one token */
SH_INLINE __m512 add_block(__m512 acc, __m512i dot, __m512 dw, const char *x, size_t kp, int b,
                           int shift)
{
    const float *xd = (const float *)(x + kp);
    const int *sum = (const int *)(xd + kp / SH_RUN);
    dot = _mm512_sub_epi32(dot, _mm512_slli_epi32(_mm512_set1_epi32(sum[b]), (unsigned)shift));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(dw, _mm512_set1_ps(xd[b])), acc);
}

/* d += the products of four k's, as bytes in q for every output, and those at x. One instruction,
 * of which compilers make a broadcast and a dot: that took a fifth more time for 8 tokens. */
SH_INLINE __m512i dot_four(__m512i d, __m512i q, const char *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(d) : "v"(q), "m"(*(const char(*)[4])x));
    return d;
}

SH_INLINE void slice_q8_0(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                          int hi, const char *x, size_t ldx)
{
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint8_t *scale = panel + kp / SH_RUN * 512;
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        const uint8_t *p = panel + (size_t)b * 512;
        __m512 dw = scales(scale, w->panel_bytes, b);
        __m512i q[8];
        sh_ask_ahead(p, 512);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) q[g] = _mm512_load_si512(p + g * 64);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const char *xt = x + (size_t)t * ldx, *xb = xt + b * SH_RUN;
            __m512i d0 = _mm512_setzero_si512(), d1 = d0;
#pragma GCC unroll 8
            for (int g = 0; g < 8; g += 2) {
                d0 = dot_four(d0, q[g], xb + g * 4);
                d1 = dot_four(d1, q[g + 1], xb + g * 4 + 4);
            }
            acc[t] = add_block(acc[t], _mm512_add_epi32(d0, d1), dw, xt, kp, b, 7);
        }
    }
}
MATMUL(matmul_q8_0_i8, slice_q8_0)

SH_INLINE void slice_q4_0(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel, int lo,
                          int hi, const char *x, size_t ldx)
{
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint8_t *scale = panel + kp / SH_RUN * 256;
    const __m512i nibble = _mm512_set1_epi8(15);
    const bool times_16 = T < 4; /* high nibbles stay where they are, and the sum is shifted */
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        const uint8_t *p = panel + (size_t)b * 256;
        __m512 dw = scales(scale, w->panel_bytes, b);
        __m512i q[8];
        sh_ask_ahead(p, 256);
        for (int g = 0; g < 4; g++) {
            __m512i v = _mm512_load_si512(p + g * 64);
            q[g] = _mm512_and_si512(v, nibble);
            q[g + 4] = times_16 ? _mm512_andnot_si512(nibble, v)
                                : _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const char *xt = x + (size_t)t * ldx, *xb = xt + b * SH_RUN;
            __m512i d0 = _mm512_setzero_si512(), d1 = d0;
#pragma GCC unroll 8
            for (int g = 0; g < 4; g++) {
                d0 = dot_four(d0, q[g], xb + g * 4);
                d1 = dot_four(d1, q[g + 4], xb + 16 + g * 4);
            }
            if (times_16) d1 = _mm512_srai_epi32(d1, 4);
            acc[t] = add_block(acc[t], _mm512_add_epi32(d0, d1), dw, xt, kp, b, 3);
        }
    }
}
MATMUL(matmul_q4_0_i8, slice_q4_0)

/* Four k's of 16 outputs, as bytes in `v`, become four rows of bf16(scale * (q - zero)) held as
 * floats. fma(q, d, -zero d) is d (q - zero) rounded once, as zero is a power of two. */
SH_INLINE void dequantise_four(float (*out)[SH_LANES], __m512i v, __m512 d, __m512 minus_zero_d)
{
    for (int i = 0; i < 4; i++) {
        __m512i q =
            _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)(8 * i)), _mm512_set1_epi32(255));
        __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), d, minus_zero_d);
        _mm512_store_si512(out[i], (__m512i)vec_round_bf16(f));
    }
}

/* The bf16 arithmetic over a block of 32 rows of floats. */
SH_INLINE void bf16_block(const int T, __m512 *acc, float (*wr)[SH_LANES], int b, const char *x,
                          size_t ldx)
{
    float xs[8][32];
    __m512 even[8], odd[8];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        spread_bf16(xs[t], x + (size_t)t * ldx + (size_t)b * SH_RUN * 2);
        even[t] = odd[t] = _mm512_setzero_ps();
    }
#pragma GCC unroll 2
    for (int i = 0; i < 16; i++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            even[t] = _mm512_fmadd_ps(_mm512_load_ps(wr[2 * i]), _mm512_set1_ps(xs[t][i]), even[t]);
            odd[t] = _mm512_fmadd_ps(_mm512_load_ps(wr[2 * i + 1]), _mm512_set1_ps(xs[t][16 + i]),
                                     odd[t]);
        }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[t] = _mm512_add_ps(acc[t], _mm512_add_ps(even[t], odd[t]));
}

SH_INLINE void slice_q8_0_bf16(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel,
                               int lo, int hi, const char *x, size_t ldx)
{
    const uint8_t *scale = panel + (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN * 512;
    _Alignas(64) float wr[SH_RUN][SH_LANES];
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        __m512 d = scales(scale, w->panel_bytes, b),
               zero = _mm512_mul_ps(d, _mm512_set1_ps(-128.0f));
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++)
            dequantise_four(wr + 4 * g, _mm512_load_si512(panel + (size_t)b * 512 + g * 64), d,
                            zero);
        bf16_block(T, acc, wr, b, x, ldx);
    }
}
MATMUL(matmul_q8_0_bf16, slice_q8_0_bf16)

SH_INLINE void slice_q4_0_bf16(const int T, __m512 *acc, const sh_mat *w, const uint8_t *panel,
                               int lo, int hi, const char *x, size_t ldx)
{
    const uint8_t *scale = panel + (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN * 256;
    const __m512i nibble = _mm512_set1_epi8(15);
    _Alignas(64) float wr[SH_RUN][SH_LANES];
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        __m512 d = scales(scale, w->panel_bytes, b), zero = _mm512_mul_ps(d, _mm512_set1_ps(-8.0f));
        for (int g = 0; g < 4; g++) {
            __m512i v = _mm512_load_si512(panel + (size_t)b * 256 + g * 64);
            dequantise_four(wr + 4 * g, _mm512_and_si512(v, nibble), d, zero);
            dequantise_four(wr + 16 + 4 * g, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble), d,
                            zero);
        }
        bf16_block(T, acc, wr, b, x, ldx);
    }
}
MATMUL(matmul_q4_0_bf16, slice_q4_0_bf16)

void sh_matmul_avx512(sh_kernels *k)
{
    k->matmul[SH_F32][SH_FORM_F32] = matmul_f32;
    k->matmul[SH_F16][SH_FORM_F32] = matmul_f16;
    k->matmul[SH_BF16][SH_FORM_BF16] = matmul_bf16;
    k->matmul[SH_Q8_0][SH_FORM_I8] = matmul_q8_0_i8;
    k->matmul[SH_Q4_0][SH_FORM_I8] = matmul_q4_0_i8;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = matmul_q8_0_bf16;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = matmul_q4_0_bf16;
}
