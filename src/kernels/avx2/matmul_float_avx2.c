/* Products in float32: f32 and f16 weights by the common source; bf16, and weights that become
 * bf16, as chains of even and odd k's over runs of 32. */
#include "kernels/avx2/avx2.h"

#include "kernels/float_rows.h"

/* ---- bf16, few tokens ---- */

/* The even and odd values of pairs of bf16. */
SH_INLINE __m256 even_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
}
SH_INLINE __m256 odd_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000)));
}
SH_INLINE __m256i spread_pair(const uint8_t *x, int k)
{
    int v;
    memcpy(&v, x + k * 2, sizeof v);
    return _mm256_set1_epi32(v);
}

SH_INLINE void bf16_sum(float *acc, sh_turn turn, const uint8_t *x, size_t ldx, const int n)
{
    __m256 sum[2][2];
    for (int t = 0; t < n; t++)
        for (int h = 0; h < 2; h++) sum[t][h] = _mm256_loadu_ps(acc + t * SH_LANES + h * 8);
    for (int k = turn.lo; k < turn.hi; k += SH_RUN) {
        const uint8_t *p = turn.panel + (size_t)k * 32;
        __m256 even[2][2], odd[2][2];
        sh_ask_for(p, turn.ahead, 1024);
        for (int t = 0; t < n; t++)
            even[t][0] = even[t][1] = odd[t][0] = odd[t][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
        for (int i = 0; i < SH_RUN; i += 2) {
            __m256i w0 = _mm256_loadu_si256((const __m256i *)(p + i * 32));
            __m256i w1 = _mm256_loadu_si256((const __m256i *)(p + i * 32 + 32));
            for (int t = 0; t < n; t++) {
                __m256i v = spread_pair(x + (size_t)t * ldx, k + i);
                even[t][0] = _mm256_fmadd_ps(even_of(w0), even_of(v), even[t][0]);
                even[t][1] = _mm256_fmadd_ps(even_of(w1), even_of(v), even[t][1]);
                odd[t][0] = _mm256_fmadd_ps(odd_of(w0), odd_of(v), odd[t][0]);
                odd[t][1] = _mm256_fmadd_ps(odd_of(w1), odd_of(v), odd[t][1]);
            }
        }
        for (int t = 0; t < n; t++)
            for (int h = 0; h < 2; h++)
                sum[t][h] = _mm256_add_ps(sum[t][h], _mm256_add_ps(even[t][h], odd[t][h]));
    }
    for (int t = 0; t < n; t++) {
        _mm256_storeu_ps(acc + t * SH_LANES, sum[t][0]);
        _mm256_storeu_ps(acc + t * SH_LANES + 8, sum[t][1]);
    }
}

static void bf16_sums(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      int n)
{
    (void)w;
    if (n == 1)
        bf16_sum(acc, turn, x, ldx, 1);
    else
        bf16_sum(acc, turn, x, ldx, 2);
}

/* ---- bf16, many tokens; quantised weights that become bf16 ---- */

enum { BF16_MANY = 12 }; /* tokens from which unpacking pays */

static void unpack_bf16(void *run_w, const sh_mat *w, const uint8_t *panel, int run)
{
    float(*out)[SH_RUN / 2][SH_LANES] = run_w;
    const uint8_t *p = panel + (size_t)run * 1024;
    (void)w;
    for (int i = 0; i < 32; i++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i * 32));
        _mm256_store_ps(&out[0][i / 2][i % 2 * 8], even_of(v));
        _mm256_store_ps(&out[1][i / 2][i % 2 * 8], odd_of(v));
    }
}

/* bf16(d * q) for the k's 4g to 4g + 3 of half a panel; q: 8 dwords of four bytes, each 0..255. */
SH_INLINE void expand4(sh_run_w out, int g, int h, __m256i q, int zero, __m256 d)
{
    const __m256i byte = _mm256_set1_epi32(255);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i v = _mm256_and_si256(_mm256_srli_epi32(q, i * 8), byte);
        __m256 f = _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(zero)));
        __m256i r = (__m256i)vec_round_bf16(_mm256_mul_ps(d, f));
        _mm256_store_ps(&out[i & 1][g * 2 + i / 2][h * 8], _mm256_castsi256_ps(r));
    }
}

static void unpack_q8(void *run_w, const sh_mat *w, const uint8_t *panel, int run)
{
    float(*out)[SH_RUN / 2][SH_LANES] = run_w;
    const uint8_t *p = panel + (size_t)run * 512;
    const uint16_t *scale = sh_scales(w, panel);
    for (int h = 0; h < 2; h++) {
        __m256 d = vec_f16(scale + run * SH_LANES + h * 8);
        for (int g = 0; g < 8; g++)
            expand4(out, g, h, _mm256_loadu_si256((const __m256i *)(p + g * 64 + h * 32)), 128, d);
    }
}

static void unpack_q4(void *run_w, const sh_mat *w, const uint8_t *panel, int run)
{
    float(*out)[SH_RUN / 2][SH_LANES] = run_w;
    const uint8_t *p = panel + (size_t)run * 256;
    const uint16_t *scale = sh_scales(w, panel);
    const __m256i low = _mm256_set1_epi8(15);
    for (int h = 0; h < 2; h++) {
        __m256 d = vec_f16(scale + run * SH_LANES + h * 8);
        for (int g = 0; g < 4; g++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(p + g * 64 + h * 32));
            expand4(out, g, h, _mm256_and_si256(v, low), 8, d);
            expand4(out, g + 4, h, _mm256_and_si256(_mm256_srli_epi16(v, 4), low), 8, d);
        }
    }
}

/* The even k's of a run, then the odd ones: four of them of each token of a tile, and so on. */
typedef float run_x[2][SH_RUN / 8][SH_TILE][4];

SH_INLINE void put_x(run_x out, int t, const uint8_t *x)
{
    const __m128i top = _mm_set1_epi32((int)0xffff0000);
    for (int i = 0; i < SH_RUN / 8; i++) {
        __m128i v = _mm_loadu_si128((const __m128i *)(x + i * 16));
        _mm_store_ps(out[0][i][t], _mm_castsi128_ps(_mm_slli_epi32(v, 16)));
        _mm_store_ps(out[1][i][t], _mm_castsi128_ps(_mm_and_si128(v, top)));
    }
}

static void unpack_x(void *out, const sh_mat *w, const uint8_t *x, size_t ldx, int run, int n_tok)
{
    (void)w;
    for (int t = 0; t < n_tok; t++) put_x(out, t, x + (size_t)t * ldx + run * SH_RUN * 2);
}

/* acc += w v. gcc, left to choose among the forms of this instruction, moves sums from register to
 * register and to memory. */
SH_INLINE void multiply_add(__m256 *acc, __m256 w, __m256 v)
{
    __asm__ volatile("vfmadd231ps %1, %2, %0" : "+x"(*acc) : "x"(w), "x"(v));
}

SH_INLINE void add_k(__m256 sum[][2], const float *w, const float *x, const int n)
{
    __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8);
#pragma GCC unroll 3
    for (int t = 0; t < n; t++) {
        __m256 v = _mm256_broadcast_ss(x + t * 4);
        multiply_add(&sum[t][0], w0, v);
        multiply_add(&sum[t][1], w1, v);
    }
}

/* acc (n, lda) += the first n_k k's of a run for n tokens, 3 at most: so the sums of even and of
 * odd k's have registers. even_x, odd_x: the tokens' first even and odd k's. */
SH_INLINE void run_part(float *acc, size_t lda, sh_run_w w, const float *even_x, const float *odd_x,
                        int n_k, const int n)
{
    /* Amid four k's, and each a pointer by itself: so what instructions add to them is one byte. */
    const float *even_w = w[0][2], *odd_w = w[1][2];
    __m256 even[3][2], odd[3][2];
    int k = 0;
#pragma GCC unroll 3
    for (int t = 0; t < n; t++)
        even[t][0] = even[t][1] = odd[t][0] = odd[t][1] = _mm256_setzero_ps();
    for (; k + 8 <= n_k; k += 8) {
        __asm__("" : "+r"(even_w), "+r"(odd_w), "+r"(even_x), "+r"(odd_x));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            add_k(even, even_w + (i - 2) * SH_LANES, even_x + i, n);
            add_k(odd, odd_w + (i - 2) * SH_LANES, odd_x + i, n);
        }
        even_w += 4 * SH_LANES, odd_w += 4 * SH_LANES;
        even_x += 4 * SH_TILE, odd_x += 4 * SH_TILE;
    }
    for (; k < n_k; k += 2) {
        add_k(even, even_w - 2 * SH_LANES, even_x++, n);
        if (k + 1 < n_k) add_k(odd, odd_w - 2 * SH_LANES, odd_x++, n);
        even_w += SH_LANES, odd_w += SH_LANES;
    }
#pragma GCC unroll 3
    for (int t = 0; t < n; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            float *a = acc + (size_t)t * lda + h * 8;
            __m256 sum = _mm256_add_ps(even[t][h], odd[t][h]);
            _mm256_storeu_ps(a, _mm256_add_ps(_mm256_loadu_ps(a), sum));
        }
    /* What is in memory stays there: the registers are for the sums of a run. */
    __asm__ volatile("" ::"r"(acc) : "memory");
}

/* acc (n, lda) += the first n_k k's of a run. */
SH_INLINE void run_tile(float *acc, size_t lda, sh_run_w w, run_x x, int n_k, const int n)
{
    const int some = n > 3 ? (n + 1) / 2 : n;
    run_part(acc, lda, w, x[0][0][0], x[1][0][0], n_k, some);
    if (n > some)
        run_part(acc + (size_t)some * lda, lda, w, x[0][0][some], x[1][0][some], n_k, n - some);
}

SH_TILE_SUMS(whole_runs, run_tile(acc, SH_LANES, ((sh_run_w *)w)[i], ((run_x *)x)[i], SH_RUN, n))

static const sh_chunks bf16_chunks = {sizeof(run_x), sizeof(sh_run_w), unpack_x, unpack_bf16,
                                      whole_runs};
static const sh_chunks q8_bf16_chunks = {sizeof(run_x), sizeof(sh_run_w), unpack_x, unpack_q8,
                                         whole_runs};
static const sh_chunks q4_bf16_chunks = {sizeof(run_x), sizeof(sh_run_w), unpack_x, unpack_q4,
                                         whole_runs};

SH_MATMUL(bf16_bf16)
{
    if (n_tok >= BF16_MANY)
        sh_product_chunks(&bf16_chunks, SH_MATMUL_ARGS);
    else
        sh_product_sums(bf16_sums, NULL, 2, SH_MATMUL_ARGS);
}
SH_MATMUL(q8_bf16)
{
    sh_product_chunks(&q8_bf16_chunks, SH_MATMUL_ARGS);
}
SH_MATMUL(q4_bf16)
{
    sh_product_chunks(&q4_bf16_chunks, SH_MATMUL_ARGS);
}

/* ---- a run by itself ---- */

static void part_6(float *acc, size_t lda, sh_run_w w, run_x x, int n_k)
{
    run_tile(acc, lda, w, x, n_k, SH_TILE);
}
static void part_2(float *acc, size_t lda, sh_run_w w, run_x x, int n_k)
{
    run_tile(acc, lda, w, x, n_k, 2);
}
static void part_1(float *acc, size_t lda, sh_run_w w, run_x x, int n_k)
{
    run_tile(acc, lda, w, x, n_k, 1);
}

void sh_run_sums_avx2(float *acc, size_t lda, sh_run_w w, const void *x, size_t ldx, int n_k, int n)
{
    _Alignas(32) run_x tile;
    for (int t = 0, some; t < n; t += some) {
        some = n - t >= SH_TILE ? SH_TILE : n - t >= 2 ? 2 : 1;
        for (int i = 0; i < some; i++) put_x(tile, i, (const uint8_t *)x + (size_t)(t + i) * ldx);
        (some == SH_TILE ? part_6
         : some == 2     ? part_2
                         : part_1)(acc + (size_t)t * lda, lda, w, tile, n_k);
    }
}

void sh_matmul_float_avx2(sh_kernels *k)
{
    float_overlay(k);
    k->matmul[SH_BF16][SH_FORM_BF16] = bf16_bf16;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = q8_bf16;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = q4_bf16;
}
