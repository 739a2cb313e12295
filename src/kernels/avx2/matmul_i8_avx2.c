/* Products of quantised weights and int8 activations. AVX2's byte product, vpmaddubsw, adds pairs
 * of unsigned * signed bytes into 16 bits and saturates, so each way below keeps its pairs within
 * them: q4_0: nibbles 0..15; a whole block stays below 2^15: 16 products of at most 15 * 127 in a
 * lane. q8_0, few tokens: |q| <= 128 times the sign of q given to x: 2 * 128 * 127 < 2^15. q8_0,
 * many tokens: q and x as 16-bit numbers, vpmaddwd; the widening is shared by the tokens. */
#include "kernels/avx2/avx2.h"

SH_INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

/* Four bytes of a token to all lanes. */
SH_INLINE __m256i spread4(const void *p)
{
    int v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Keeps a sum as it was written: left alone, gcc adds in another order, and runs out of registers.
 */
SH_INLINE __m256i pin(__m256i v)
{
    __asm__("" : "+x"(v));
    return v;
}

/* acc = fma(dot, scale_w * scale_x, acc), as the contract says it, for half a panel. */
SH_INLINE void add_block(float *acc, __m256i dot, __m256 scale_w, float scale_x)
{
    __m256 scale = _mm256_mul_ps(scale_w, _mm256_set1_ps(scale_x));
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, _mm256_loadu_ps(acc)));
}

/* ---- q8_0, few tokens ---- */

SH_INLINE void q8_sum(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const uint8_t *x, size_t ldx, const int n)
{
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8((char)0x80);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint8_t *scale = panel + kp * SH_LANES;
    memset(acc, 0, (size_t)n * SH_LANES * sizeof *acc);
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        const uint8_t *q = panel + (size_t)b * 512;
        __m256i dot[4][2];
        sh_ask_ahead(q, 512);
        sh_ask_scales(scale + (size_t)b * 32, w->panel_bytes, b);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i s = _mm256_xor_si256(load(q + g * 64 + h * 32), flip),
                        a = _mm256_abs_epi8(s);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++) {
                    __m256i v =
                        _mm256_sign_epi8(spread4(x + (size_t)t * ldx + b * SH_RUN + g * 4), s);
                    v = _mm256_madd_epi16(_mm256_maddubs_epi16(a, v), ones);
                    dot[t][h] = g ? pin(_mm256_add_epi32(dot[t][h], v)) : v;
                }
            }
        for (int h = 0; h < 2; h++) {
            __m256 d = vec_f16((const uint16_t *)scale + b * SH_LANES + h * 8);
            for (int t = 0; t < n; t++)
                add_block(acc + t * SH_LANES + h * 8, dot[t][h], d,
                          ((const float *)(x + (size_t)t * ldx + kp))[b]);
        }
    }
}

SH_SUMS(q8_sums, q8_sum, 4)

/* ---- q8_0, many tokens ---- */

enum {
    CHUNK = 16,          /* blocks that are widened at a time: 16 KiB */
    WIDE_K = 128 * 1024, /* widened k's of all tokens: 256 KiB */
    Q8_MANY = 16,        /* tokens from which widening pays */
};

/* Bytes to 16 bits in two registers: of each four bytes, the first and third, the second and
 * fourth. */
SH_INLINE void widen(void *out, size_t next, __m256i v)
{
    _mm256_store_si256(out, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
    _mm256_store_si256((__m256i *)((char *)out + next), _mm256_srai_epi16(v, 8));
}

typedef struct wide {
    _Alignas(
        64) int16_t q[CHUNK][8][2][2][16]; /* block, four k's, half, which of them, 8 x 2 k's */
    float d[CHUNK][SH_LANES];
} wide;

static void widen_weights(wide *out, const sh_mat *w, const uint8_t *panel, int b0, int n)
{
    const uint16_t *scale = (const uint16_t *)(panel + (size_t)w->kd.kp[w->kd.n_slice] * SH_LANES);
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    for (int b = 0; b < n; b++) {
        const uint8_t *q = panel + (size_t)(b0 + b) * 512;
        for (int i = 0; i < 16; i++)
            widen(out->q[b][i / 2][i % 2], 32, _mm256_xor_si256(load(q + i * 32), flip));
        for (int h = 0; h < 2; h++)
            _mm256_storeu_ps(out->d[b] + h * 8, vec_f16(scale + (b0 + b) * SH_LANES + h * 8));
    }
}

/* Adds n blocks to acc (n_tok, SH_LANES). x: widened, 32 to a block; d: the scales of x. */
SH_INLINE void wide_sum(float *acc, const wide *w, int n, const int16_t *x, size_t ldx,
                        const float *d, size_t ldd, const int n_tok)
{
    for (int b = 0; b < n; b++) {
        __m256i dot[4][2];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m256i w0 = load(w->q[b][i / 2][0][i % 2]), w1 = load(w->q[b][i / 2][1][i % 2]);
#pragma GCC unroll 4
            for (int t = 0; t < n_tok; t++) {
                __m256i v = spread4(x + (size_t)t * ldx + b * SH_RUN + i % 2 * 16 + i / 2 * 2);
                __m256i p0 = _mm256_madd_epi16(v, w0), p1 = _mm256_madd_epi16(v, w1);
                dot[t][0] = i ? pin(_mm256_add_epi32(dot[t][0], p0)) : p0;
                dot[t][1] = i ? pin(_mm256_add_epi32(dot[t][1], p1)) : p1;
            }
        }
        for (int t = 0; t < n_tok; t++)
            for (int h = 0; h < 2; h++)
                add_block(acc + t * SH_LANES + h * 8, dot[t][h], _mm256_loadu_ps(w->d[b] + h * 8),
                          d[(size_t)t * ldd + (size_t)b]);
    }
}

static void wide_sums(float *acc, const wide *w, int n, const int16_t *x, size_t ldx,
                      const float *d, size_t ldd, int n_tok)
{
    switch (n_tok) {
    case 1:
        wide_sum(acc, w, n, x, ldx, d, ldd, 1);
        break;
    case 2:
        wide_sum(acc, w, n, x, ldx, d, ldd, 2);
        break;
    case 3:
        wide_sum(acc, w, n, x, ldx, d, ldd, 3);
        break;
    default:
        wide_sum(acc, w, n, x, ldx, d, ldd, 4);
    }
}

/* One panel for n_tok tokens, at most SH_TOKENS; x16 (n_tok, padded k's of the slices): widened. */
static void wide_panel(float *y, size_t ldy, const sh_mat *w, int p, int slice_lo, int slice_hi,
                       const uint8_t *x, size_t ldx, const int16_t *x16, int n_tok)
{
    const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
    const float *scale = (const float *)(x + w->kd.kp[w->kd.n_slice]);
    int k0 = w->kd.kp[slice_lo], n_k = w->kd.kp[slice_hi] - k0;
    float acc[SH_TOKENS * SH_LANES];
    sh_tree tree[SH_TOKENS];
    wide chunk;
    for (int s = slice_lo; s < slice_hi; s++) {
        int lo = w->kd.kp[s] / SH_RUN, hi = w->kd.kp[s + 1] / SH_RUN;
        memset(acc, 0, (size_t)n_tok * SH_LANES * sizeof *acc);
        for (int b = lo, n; b < hi; b += n) {
            int left = (hi - b + CHUNK - 1) / CHUNK;
            n = (hi - b + left - 1) / left;
            widen_weights(&chunk, w, panel, b, n);
            const char *next = (const char *)panel + (size_t)(b + n) * 512;
            for (int t = 0; t < n_tok; t += 4) {
                for (int i = t * 512 * n / n_tok; i < (t + 4) * 512 * n / n_tok; i += 64)
                    _mm_prefetch(next + i, _MM_HINT_T1);
                wide_sums(acc + t * SH_LANES, &chunk, n, x16 + (size_t)t * n_k + (b * SH_RUN - k0),
                          (size_t)n_k, scale + (size_t)t * (ldx / 4) + b, ldx / 4,
                          n_tok - t < 4 ? n_tok - t : 4);
            }
        }
        for (int t = 0; t < n_tok; t++) sh_tree_push(tree[t], s - slice_lo, acc + t * SH_LANES);
    }
    for (int t = 0; t < n_tok; t++) sh_tree_store(y, ldy, tree[t], w, p, t);
}

static void q8_many(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi, int slice_lo,
                    int slice_hi, const uint8_t *x, size_t ldx, int n_tok)
{
    _Alignas(64) int16_t x16[WIDE_K];
    int k0 = w->kd.kp[slice_lo], n_k = w->kd.kp[slice_hi] - k0, most = WIDE_K / n_k / 4 * 4;
    if (most > SH_TOKENS) most = SH_TOKENS;
    for (int t0 = 0, n; t0 < n_tok; t0 += n) {
        const uint8_t *xt = x + (size_t)t0 * ldx;
        n = n_tok - t0 < most ? n_tok - t0 : most;
        for (int t = 0; t < n; t++)
            for (int k = 0; k < n_k; k += SH_RUN)
                widen(x16 + (size_t)t * n_k + k, 32, load(xt + (size_t)t * ldx + k0 + k));
        for (int p = panel_lo; p < panel_hi; p++)
            wide_panel(y + (size_t)t0 * ldy, ldy, w, p, slice_lo, slice_hi, xt, ldx, x16, n);
    }
}

SH_MATMUL(q8_i8)
{
    int n_k = w->kd.kp[slice_hi] - w->kd.kp[slice_lo];
    if (n_tok >= Q8_MANY && n_k > 0 && WIDE_K / n_k >= Q8_MANY)
        q8_many(SH_MATMUL_ARGS);
    else
        sh_product(q8_sums, 4, SH_MATMUL_ARGS);
}

/* ---- q4_0 ---- */

SH_INLINE void q4_sum(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const uint8_t *x, size_t ldx, const int n)
{
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint8_t *scale = panel + kp * (SH_LANES / 2);
    memset(acc, 0, (size_t)n * SH_LANES * sizeof *acc);
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        const uint8_t *q = panel + (size_t)b * 256;
        __m256i dot[4][2];
        sh_ask_ahead(q, 256);
        sh_ask_scales(scale + (size_t)b * 32, w->panel_bytes, b);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i v = load(q + g * 64 + h * 32), q0 = _mm256_and_si256(v, low);
                __m256i q1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++) {
                    const uint8_t *xb = x + (size_t)t * ldx + b * SH_RUN + g * 4;
                    __m256i p0 = _mm256_maddubs_epi16(q0, spread4(xb));
                    __m256i p1 = _mm256_maddubs_epi16(q1, spread4(xb + 16));
                    dot[t][h] = g ? pin(_mm256_add_epi16(dot[t][h], p0)) : p0;
                    dot[t][h] = pin(_mm256_add_epi16(dot[t][h], p1));
                }
            }
        __m256 d0 = vec_f16((const uint16_t *)scale + b * SH_LANES);
        __m256 d1 = vec_f16((const uint16_t *)scale + b * SH_LANES + 8);
        for (int t = 0; t < n; t++) {
            const uint8_t *xs = x + (size_t)t * ldx + kp;
            __m256i eight = _mm256_slli_epi32(spread4(xs + kp / 8 + b * 4), 3);
            float d = ((const float *)xs)[b];
            add_block(acc + t * SH_LANES,
                      _mm256_sub_epi32(_mm256_madd_epi16(dot[t][0], ones), eight), d0, d);
            add_block(acc + t * SH_LANES + 8,
                      _mm256_sub_epi32(_mm256_madd_epi16(dot[t][1], ones), eight), d1, d);
        }
    }
}

SH_SUMS(q4_sums, q4_sum, 4)

SH_MATMUL(q4_i8)
{
    sh_product(q4_sums, 4, SH_MATMUL_ARGS);
}

void sh_matmul_i8_avx2(sh_kernels *k)
{
    k->matmul[SH_Q8_0][SH_FORM_I8] = q8_i8;
    k->matmul[SH_Q4_0][SH_FORM_I8] = q4_i8;
}
