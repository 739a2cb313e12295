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

SH_INLINE void bf16_sum(float *acc, const uint8_t *panel, int lo, int hi, const uint8_t *x,
                        size_t ldx, const int n)
{
    __m256 sum[2][2];
    for (int t = 0; t < n; t++) sum[t][0] = sum[t][1] = _mm256_setzero_ps();
    for (int k = lo; k < hi; k += SH_RUN) {
        const uint8_t *p = panel + (size_t)k * 32;
        __m256 even[2][2], odd[2][2];
        sh_ask_ahead(p, 1024);
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

static void bf16_sums(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const uint8_t *x, size_t ldx, int n)
{
    (void)w;
    if (n == 1)
        bf16_sum(acc, panel, lo, hi, x, ldx, 1);
    else
        bf16_sum(acc, panel, lo, hi, x, ldx, 2);
}

/* ---- bf16, many tokens; quantised weights that become bf16 ---- */

enum { CHUNK = 8, BF16_MANY = 12, RUN_TILE = 6 }; /* runs, tokens, tokens of one sum */

typedef struct runs {
    _Alignas(64) sh_run_w w[CHUNK];
} runs;

typedef void expand_fn(sh_run_w out, const sh_mat *w, const uint8_t *panel, int run);

static void expand_bf16(sh_run_w out, const sh_mat *w, const uint8_t *panel, int run)
{
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

static void expand_q8(sh_run_w out, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *p = panel + (size_t)run * 512;
    const uint16_t *scale = (const uint16_t *)(panel + (size_t)w->kd.kp[w->kd.n_slice] * SH_LANES);
    for (int h = 0; h < 2; h++) {
        __m256 d = vec_f16(scale + run * SH_LANES + h * 8);
        for (int g = 0; g < 8; g++)
            expand4(out, g, h, _mm256_loadu_si256((const __m256i *)(p + g * 64 + h * 32)), 128, d);
    }
}

static void expand_q4(sh_run_w out, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *p = panel + (size_t)run * 256;
    const uint16_t *scale =
        (const uint16_t *)(panel + (size_t)w->kd.kp[w->kd.n_slice] * (SH_LANES / 2));
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

/* The even or the odd chains of the first n_k k's of a run: kept = sum, or acc += kept + sum for
 * the odd ones, which end the run. acc, kept: a row of lda and of SH_LANES for each of n tokens. */
SH_INLINE void half_run(float *acc, size_t lda, float *kept, float w[SH_RUN / 2][SH_LANES],
                        const uint8_t *x, size_t ldx, const bool odd, int n_k, const int n)
{
    __m256 sum[RUN_TILE][2];
    for (int t = 0; t < n; t++) sum[t][0] = sum[t][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < (n_k + !odd) / 2; i++) {
        __m256 w0 = _mm256_load_ps(w[i]), w1 = _mm256_load_ps(w[i] + 8);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            __m256i pair = spread_pair(x + (size_t)t * ldx, i * 2);
            __m256 v = odd ? odd_of(pair) : even_of(pair);
            sum[t][0] = _mm256_fmadd_ps(w0, v, sum[t][0]);
            sum[t][1] = _mm256_fmadd_ps(w1, v, sum[t][1]);
        }
    }
    for (int t = 0; t < n; t++)
        for (int h = 0; h < 2; h++) {
            float *a = acc + (size_t)t * lda + h * 8, *e = kept + t * SH_LANES + h * 8;
            if (odd)
                _mm256_storeu_ps(a, _mm256_add_ps(_mm256_loadu_ps(a),
                                                  _mm256_add_ps(_mm256_loadu_ps(e), sum[t][h])));
            else
                _mm256_storeu_ps(e, sum[t][h]);
        }
}

SH_INLINE void run_sum(float *acc, size_t lda, sh_run_w w, const uint8_t *x, size_t ldx, int n_k,
                       const int n)
{
    float kept[RUN_TILE * SH_LANES];
    half_run(acc, lda, kept, w[0], x, ldx, false, n_k, n);
    half_run(acc, lda, kept, w[1], x, ldx, true, n_k, n);
}

/* n: at most RUN_TILE */
static void run_sum_few(float *acc, size_t lda, sh_run_w w, const uint8_t *x, size_t ldx, int n_k,
                        int n)
{
    switch (n) {
    case 1:
        run_sum(acc, lda, w, x, ldx, n_k, 1);
        break;
    case 2:
        run_sum(acc, lda, w, x, ldx, n_k, 2);
        break;
    case 3:
        run_sum(acc, lda, w, x, ldx, n_k, 3);
        break;
    case 4:
        run_sum(acc, lda, w, x, ldx, n_k, 4);
        break;
    case 5:
        run_sum(acc, lda, w, x, ldx, n_k, 5);
        break;
    default:
        run_sum(acc, lda, w, x, ldx, n_k, 6);
    }
}

void sh_run_sums_avx2(float *acc, size_t lda, sh_run_w w, const void *x, size_t ldx, int n_k, int n)
{
    for (int t = 0; t < n; t += RUN_TILE)
        run_sum_few(acc + (size_t)t * lda, lda, w, (const uint8_t *)x + (size_t)t * ldx, ldx, n_k,
                    n - t < RUN_TILE ? n - t : RUN_TILE);
}

/* One panel for n_tok tokens, at most SH_TOKENS. */
static void run_panel(expand_fn *expand, float *y, size_t ldy, const sh_mat *w, int p, int slice_lo,
                      int slice_hi, const uint8_t *x, size_t ldx, int n_tok)
{
    const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
    size_t run_bytes = w->panel_bytes * SH_RUN / ((size_t)w->kd.kp[w->kd.n_slice] + 1);
    float acc[SH_TOKENS * SH_LANES];
    sh_tree tree[SH_TOKENS];
    runs chunk;
    for (int s = slice_lo; s < slice_hi; s++) {
        int lo = w->kd.kp[s] / SH_RUN, hi = w->kd.kp[s + 1] / SH_RUN;
        memset(acc, 0, (size_t)n_tok * SH_LANES * sizeof *acc);
        for (int r = lo, n; r < hi; r += n) {
            n = hi - r < CHUNK ? hi - r : CHUNK;
            for (int i = 0; i < n; i++) expand(chunk.w[i], w, panel, r + i);
            const char *next = (const char *)panel + (size_t)(r + n) * run_bytes;
            for (size_t i = 0; i < (size_t)n * run_bytes; i += 64)
                _mm_prefetch(next + i, _MM_HINT_T1);
            for (int t = 0; t < n_tok; t += RUN_TILE)
                for (int i = 0; i < n; i++)
                    run_sum_few(acc + t * SH_LANES, SH_LANES, chunk.w[i],
                                x + (size_t)t * ldx + (r + i) * SH_RUN * 2, ldx, SH_RUN,
                                n_tok - t < RUN_TILE ? n_tok - t : RUN_TILE);
        }
        for (int t = 0; t < n_tok; t++) sh_tree_push(tree[t], s - slice_lo, acc + t * SH_LANES);
    }
    for (int t = 0; t < n_tok; t++) sh_tree_store(y, ldy, tree[t], w, p, t);
}

SH_INLINE void run_product(expand_fn *expand, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                           int panel_hi, int slice_lo, int slice_hi, const uint8_t *x, size_t ldx,
                           int n_tok)
{
    for (int t = 0, n; t < n_tok; t += n) {
        n = n_tok - t < SH_TOKENS ? n_tok - t : SH_TOKENS;
        for (int p = panel_lo; p < panel_hi; p++)
            run_panel(expand, y + (size_t)t * ldy, ldy, w, p, slice_lo, slice_hi,
                      x + (size_t)t * ldx, ldx, n);
    }
}

SH_MATMUL(bf16_bf16)
{
    if (n_tok >= BF16_MANY)
        run_product(expand_bf16, SH_MATMUL_ARGS);
    else
        sh_product(bf16_sums, 2, SH_MATMUL_ARGS);
}
SH_MATMUL(q8_bf16)
{
    run_product(expand_q8, SH_MATMUL_ARGS);
}
SH_MATMUL(q4_bf16)
{
    run_product(expand_q4, SH_MATMUL_ARGS);
}

void sh_matmul_float_avx2(sh_kernels *k)
{
    float_overlay(k);
    k->matmul[SH_BF16][SH_FORM_BF16] = bf16_bf16;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = q8_bf16;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = q4_bf16;
}
