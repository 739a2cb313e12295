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

SH_INLINE void q8_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int m, const int n)
{
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8((char)0x80);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    for (int b = turn.lo / SH_RUN; b < turn.hi / SH_RUN; b++) {
        const uint8_t *q = turn.panel + (size_t)b * 512;
        const uint8_t *scale = turn.panel + kp * SH_LANES + (size_t)b * 32;
        __m256i dot[4][2]; /* of panel i and token t: i * n + t */
        for (int i = 0; i < m; i++) {
            sh_ask_for(q + i * turn.apart, turn.ahead, 512);
            sh_ask_scales(scale + i * turn.apart, w->panel_bytes, b);
        }
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++)
            for (int i = 0; i < m; i++) {
                const uint8_t *p = q + i * turn.apart + g * 64;
                __m256i s0 = _mm256_xor_si256(load(p), flip);
                __m256i s1 = _mm256_xor_si256(load(p + 32), flip);
                __m256i a0 = _mm256_abs_epi8(s0), a1 = _mm256_abs_epi8(s1);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++) {
                    __m256i v = spread4(x + (size_t)t * ldx + b * SH_RUN + g * 4);
                    __m256i v0 = _mm256_maddubs_epi16(a0, _mm256_sign_epi8(v, s0));
                    __m256i v1 = _mm256_maddubs_epi16(a1, _mm256_sign_epi8(v, s1));
                    __m256i *d = dot[i * n + t];
                    v0 = _mm256_madd_epi16(v0, ones);
                    v1 = _mm256_madd_epi16(v1, ones);
                    d[0] = g ? pin(_mm256_add_epi32(d[0], v0)) : v0;
                    d[1] = g ? pin(_mm256_add_epi32(d[1], v1)) : v1;
                }
            }
        for (int i = 0; i < m; i++)
            for (int h = 0; h < 2; h++) {
                __m256 d = vec_f16((const uint16_t *)(scale + i * turn.apart) + h * 8);
                for (int t = 0; t < n; t++)
                    add_block(acc + (i * n + t) * SH_LANES + h * 8, dot[i * n + t][h], d,
                              ((const float *)(x + (size_t)t * ldx + kp))[b]);
            }
    }
}

SH_PANEL_SUMS(q8, q8_sum, 4)

/* ---- q8_0, many tokens ---- */

enum { Q8_MANY = 16, Q4_MANY = 12 }; /* tokens from which unpacking pays */

/* Bytes as 16 bits; of each four k's the first and third, then the second and fourth. */
typedef struct q8_w {
    _Alignas(64) int16_t q[8][2][2][16]; /* four k's, which two of them, half a panel, 8 x 2 */
    float d[SH_LANES];
} q8_w;
typedef struct q8_x {
    _Alignas(32) int16_t q[SH_TILE][2][16]; /* token, which two of four k's, 8 x 2 */
    float d[8];
} q8_x;

SH_INLINE void widen(int16_t *first, int16_t *second, __m256i v)
{
    _mm256_store_si256((__m256i *)first, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
    _mm256_store_si256((__m256i *)second, _mm256_srai_epi16(v, 8));
}

/* The scale of block `run` of a token. */
SH_INLINE float scale_of(const sh_mat *w, const uint8_t *x, int run)
{
    return ((const float *)(x + w->kd.kp[w->kd.n_slice]))[run];
}

static void q8_unpack_x(void *out, const sh_mat *w, const uint8_t *x, size_t ldx, int run,
                        int n_tok)
{
    q8_x *o = out;
    for (int t = 0; t < n_tok; t++, x += ldx) {
        widen(o->q[t][0], o->q[t][1], load(x + run * SH_RUN));
        o->d[t] = scale_of(w, x, run);
    }
}

/* The scales of block `run` of a panel. */
SH_INLINE void put_scales(float *d, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint16_t *scale = sh_scales(w, panel) + run * SH_LANES;
    for (int l = 0; l < SH_LANES; l += 8) _mm256_store_ps(d + l, vec_f16(scale + l));
}

static void q8_unpack_w(void *out, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *q = panel + (size_t)run * 512;
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    q8_w *o = out;
    for (int g = 0; g < 8; g++)
        for (int h = 0; h < 2; h++)
            widen(o->q[g][0][h], o->q[g][1][h], _mm256_xor_si256(load(q + g * 64 + h * 32), flip));
    put_scales(o->d, w, panel, run);
}

SH_INLINE void q8_tile(float *acc, const q8_w *w, const q8_x *x, const int n)
{
    __m256i dot[SH_TILE][2];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m256i w0 = load(w->q[i / 2][i % 2][0]), w1 = load(w->q[i / 2][i % 2][1]);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            __m256i v = spread4(&x->q[t][i % 2][i / 2 * 2]);
            __m256i p0 = _mm256_madd_epi16(v, w0), p1 = _mm256_madd_epi16(v, w1);
            dot[t][0] = i ? pin(_mm256_add_epi32(dot[t][0], p0)) : p0;
            dot[t][1] = i ? pin(_mm256_add_epi32(dot[t][1], p1)) : p1;
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            add_block(acc + t * SH_LANES + h * 8, dot[t][h], _mm256_load_ps(w->d + h * 8), x->d[t]);
    __asm__ volatile("" ::"r"(acc) : "memory"); /* the sums of all blocks have no registers */
}
SH_TILE_SUMS(q8_tiles, q8_tile(acc, (const q8_w *)w + i, (const q8_x *)x + i, n))

static const sh_chunks q8_i8_chunks = {sizeof(q8_x), sizeof(q8_w), q8_unpack_x, q8_unpack_w,
                                       q8_tiles};

SH_MATMUL(q8_i8)
{
    if (n_tok >= Q8_MANY)
        sh_product_chunks(&q8_i8_chunks, SH_MATMUL_ARGS);
    else
        sh_product_sums(q8_sums, q8_pair, 4, SH_MATMUL_ARGS);
}

/* ---- q4_0 ---- */

SH_INLINE void q4_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int m, const int n)
{
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    for (int b = turn.lo / SH_RUN; b < turn.hi / SH_RUN; b++) {
        const uint8_t *q = turn.panel + (size_t)b * 256;
        const uint8_t *scale = turn.panel + kp * (SH_LANES / 2) + (size_t)b * 32;
        __m256i dot[4][2]; /* of panel i and token t: i * n + t */
        for (int i = 0; i < m; i++) {
            sh_ask_for(q + i * turn.apart, turn.ahead, 256);
            sh_ask_scales(scale + i * turn.apart, w->panel_bytes, b);
        }
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            for (int i = 0; i < m; i++) {
                const uint8_t *p = q + i * turn.apart + g * 64;
                __m256i w0 = load(p), w1 = load(p + 32);
#pragma GCC unroll 2
                for (int high = 0; high < 2; high++) { /* the low nibbles, the high ones */
                    __m256i q0 = _mm256_and_si256(high ? _mm256_srli_epi16(w0, 4) : w0, low);
                    __m256i q1 = _mm256_and_si256(high ? _mm256_srli_epi16(w1, 4) : w1, low);
#pragma GCC unroll 4
                    for (int t = 0; t < n; t++) {
                        const uint8_t *xb = x + (size_t)t * ldx + b * SH_RUN + high * 16;
                        __m256i v = spread4(xb + g * 4), *d = dot[i * n + t];
                        __m256i p0 = _mm256_maddubs_epi16(q0, v), p1 = _mm256_maddubs_epi16(q1, v);
                        d[0] = g + high ? pin(_mm256_add_epi16(d[0], p0)) : p0;
                        d[1] = g + high ? pin(_mm256_add_epi16(d[1], p1)) : p1;
                    }
                }
            }
        for (int i = 0; i < m; i++) {
            const uint16_t *si = (const uint16_t *)(scale + i * turn.apart);
            __m256 s0 = vec_f16(si), s1 = vec_f16(si + 8);
            for (int t = 0; t < n; t++) {
                const uint8_t *xs = x + (size_t)t * ldx + kp;
                __m256i eight = _mm256_slli_epi32(spread4(xs + kp / 8 + b * 4), 3);
                __m256i d0 = _mm256_madd_epi16(dot[i * n + t][0], ones);
                __m256i d1 = _mm256_madd_epi16(dot[i * n + t][1], ones);
                float *to = acc + (i * n + t) * SH_LANES, scale_x = ((const float *)xs)[b];
                add_block(to, _mm256_sub_epi32(d0, eight), s0, scale_x);
                add_block(to + 8, _mm256_sub_epi32(d1, eight), s1, scale_x);
            }
        }
    }
}

SH_PANEL_SUMS(q4, q4_sum, 4)

typedef struct q4_w {
    _Alignas(64) uint8_t q[8][2][32]; /* four k's, half a panel, 8 x 4; 0 to 15 */
    float d[SH_LANES];
} q4_w;
typedef struct q4_x {
    _Alignas(32) int8_t q[SH_TILE][SH_RUN];
    float d[8];
    int32_t eight[8]; /* 8 times the sum of its q's */
} q4_x;

static void q4_unpack_x(void *out, const sh_mat *w, const uint8_t *x, size_t ldx, int run,
                        int n_tok)
{
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    q4_x *o = out;
    for (int t = 0; t < n_tok; t++, x += ldx) {
        memcpy(o->q[t], x + run * SH_RUN, SH_RUN);
        o->d[t] = scale_of(w, x, run);
        o->eight[t] = ((const int32_t *)(x + kp + kp / 8))[run] * 8;
    }
}

static void q4_unpack_w(void *out, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *q = panel + (size_t)run * 256;
    const __m256i low = _mm256_set1_epi8(15);
    q4_w *o = out;
    for (int i = 0; i < 8; i++) {
        __m256i v = load(q + i * 32);
        _mm256_store_si256((__m256i *)o->q[i / 2][i % 2], _mm256_and_si256(v, low));
        _mm256_store_si256((__m256i *)o->q[i / 2 + 4][i % 2],
                           _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    }
    put_scales(o->d, w, panel, run);
}

SH_INLINE void q4_tile(float *acc, const q4_w *w, const q4_x *x, const int n)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i dot[SH_TILE][2];
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        __m256i w0 = load(w->q[g][0]), w1 = load(w->q[g][1]);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            __m256i v = spread4(x->q[t] + g * 4);
            __m256i p0 = _mm256_maddubs_epi16(w0, v), p1 = _mm256_maddubs_epi16(w1, v);
            dot[t][0] = g ? pin(_mm256_add_epi16(dot[t][0], p0)) : p0;
            dot[t][1] = g ? pin(_mm256_add_epi16(dot[t][1], p1)) : p1;
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
        __m256i eight = _mm256_set1_epi32(x->eight[t]);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            add_block(acc + t * SH_LANES + h * 8,
                      _mm256_sub_epi32(_mm256_madd_epi16(dot[t][h], ones), eight),
                      _mm256_load_ps(w->d + h * 8), x->d[t]);
    }
    __asm__ volatile("" ::"r"(acc) : "memory"); /* sums of all runs have no registers */
}
SH_TILE_SUMS(q4_tiles, q4_tile(acc, (const q4_w *)w + i, (const q4_x *)x + i, n))

static const sh_chunks q4_i8_chunks = {sizeof(q4_x), sizeof(q4_w), q4_unpack_x, q4_unpack_w,
                                       q4_tiles};

SH_MATMUL(q4_i8)
{
    if (n_tok >= Q4_MANY)
        sh_product_chunks(&q4_i8_chunks, SH_MATMUL_ARGS);
    else
        sh_product_sums(q4_sums, q4_pair, 4, SH_MATMUL_ARGS);
}

void sh_matmul_i8_avx2(sh_kernels *k)
{
    k->matmul[SH_Q8_0][SH_FORM_I8] = q8_i8;
    k->matmul[SH_Q4_0][SH_FORM_I8] = q4_i8;
}
