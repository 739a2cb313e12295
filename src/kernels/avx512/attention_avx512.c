/* Attention over one page of the KV cache: each K and V that is loaded serves all heads that share
 * it. */
#include "kernels/avx512/avx512.h"

#include "base/fmath.h"

typedef __m512 load_fn(const void *p, size_t i, __mmask16 m);

INLINE __m512 load_f32(const void *p, size_t i, __mmask16 m)
{
    return _mm512_maskz_loadu_ps(m, (const float *)p + i);
}
INLINE __m512 load_f16(const void *p, size_t i, __mmask16 m)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i));
}
INLINE __m512 load_bf16(const void *p, size_t i, __mmask16 m)
{
    __m256i v = _mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* H heads, P panels of 16 positions from kpage on. */
INLINE void scores_block(load_fn *load, const int H, const int P, float *s, size_t lds,
                         const float *q, size_t ldq, const void *kpage, int head_dim, float scale)
{
    __m512 acc[8][4];
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++) acc[h][p] = _mm512_setzero_ps();
    for (int d = 0; d < head_dim; d++) {
        __m512 k[4];
        for (int p = 0; p < P; p++)
            k[p] = load(kpage, ((size_t)p * (size_t)head_dim + (size_t)d) * 16, 0xffff);
        for (int h = 0; h < H; h++) {
            __m512 v = _mm512_set1_ps(q[(size_t)h * ldq + (size_t)d]);
            for (int p = 0; p < P; p++) acc[h][p] = _mm512_fmadd_ps(v, k[p], acc[h][p]);
        }
    }
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++)
            _mm512_storeu_ps(s + (size_t)h * lds + p * 16,
                             _mm512_mul_ps(acc[h][p], _mm512_set1_ps(scale)));
}

INLINE void scores(load_fn *load, size_t size, float *s, size_t lds, const float *q, size_t ldq,
                   int n_q, const void *kpage, int n_pos, int head_dim, float scale)
{
    int n_panel = (n_pos + 15) / 16, p = 0;
    for (int step; p < n_panel; p += step) {
        const char *k = (const char *)kpage + (size_t)p * (size_t)head_dim * 16 * size;
        step = p + 4 <= n_panel ? 4 : 1;
        for (int h = 0; h < n_q;) {
            float *sp = s + (size_t)h * lds + p * 16;
            const float *qh = q + (size_t)h * ldq;
            if (step == 4 && h + 4 <= n_q)
                scores_block(load, 4, 4, sp, lds, qh, ldq, k, head_dim, scale), h += 4;
            else if (step == 4)
                scores_block(load, 1, 4, sp, lds, qh, ldq, k, head_dim, scale), h += 1;
            else if (h + 8 <= n_q)
                scores_block(load, 8, 1, sp, lds, qh, ldq, k, head_dim, scale), h += 8;
            else
                scores_block(load, 1, 1, sp, lds, qh, ldq, k, head_dim, scale), h += 1;
        }
    }
}

/* H heads, D vectors of 16 values from column d on; m: the lanes of the last vector. */
INLINE void values_block(load_fn *load, const int H, const int D, float *o, size_t ldo,
                         const float *p, size_t ldp, const void *vpage, int n_pos, int head_dim,
                         int d, __mmask16 m)
{
    __m512 acc[8][4];
    for (int h = 0; h < H; h++)
        for (int i = 0; i < D; i++)
            acc[h][i] = _mm512_maskz_loadu_ps(m, o + (size_t)h * ldo + d + i * 16);
    for (int j = 0; j < n_pos; j++) {
        __m512 v[4];
        for (int i = 0; i < D; i++)
            v[i] = load(vpage, (size_t)j * (size_t)head_dim + (size_t)(d + i * 16), m);
        for (int h = 0; h < H; h++) {
            __m512 w = _mm512_set1_ps(p[(size_t)h * ldp + (size_t)j]);
            for (int i = 0; i < D; i++) acc[h][i] = _mm512_fmadd_ps(w, v[i], acc[h][i]);
        }
    }
    for (int h = 0; h < H; h++)
        for (int i = 0; i < D; i++)
            _mm512_mask_storeu_ps(o + (size_t)h * ldo + d + i * 16, m, acc[h][i]);
}

INLINE void values(load_fn *load, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                   const void *vpage, int n_pos, int head_dim)
{
    for (int d = 0, step; d < head_dim; d += step) {
        bool wide = d + 64 <= head_dim;
        __mmask16 m = first_lanes(head_dim - d);
        step = wide ? 64 : 16;
        for (int h = 0; h < n_q;) {
            float *oh = o + (size_t)h * ldo;
            const float *ph = p + (size_t)h * ldp;
            if (wide && h + 4 <= n_q)
                values_block(load, 4, 4, oh, ldo, ph, ldp, vpage, n_pos, head_dim, d, m), h += 4;
            else if (wide)
                values_block(load, 1, 4, oh, ldo, ph, ldp, vpage, n_pos, head_dim, d, m), h += 1;
            else if (h + 8 <= n_q)
                values_block(load, 8, 1, oh, ldo, ph, ldp, vpage, n_pos, head_dim, d, m), h += 8;
            else
                values_block(load, 1, 1, oh, ldo, ph, ldp, vpage, n_pos, head_dim, d, m), h += 1;
        }
    }
}

#define ROWS(type, size)                                                                           \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale)             \
    {                                                                                              \
        scores(load_##type, size, s, lds, q, ldq, n_q, kpage, n_pos, head_dim, scale);             \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim)                          \
    {                                                                                              \
        values(load_##type, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim);                          \
    }
ROWS(f32, 4)
ROWS(f16, 2)
ROWS(bf16, 2)

/* A span's K and V rounded to bf16, as floats. */
enum { MAX_DIM = SH_SPAN };
typedef struct rounded {
    _Alignas(64) float k[SH_SPAN / SH_LANES][MAX_DIM][SH_LANES];
    _Alignas(64) float v[SH_SPAN][MAX_DIM];
} rounded;

INLINE __m512 round16(__m512 v)
{
    return _mm512_castsi512_ps(round_bf16(v));
}

INLINE void round_span(load_fn *load, rounded *b, const void *const *kpage,
                       const void *const *vpage, int n_pos, int head_dim)
{
    size_t dim = (size_t)head_dim;
    for (int p = 0; p * SH_LANES < n_pos; p++)
        for (size_t d = 0; d < dim; d++)
            _mm512_store_ps(b->k[p][d],
                            round16(load(kpage[p / 4], ((size_t)(p % 4) * dim + d) * 16, 0xffff)));
    for (int j = 0; j < n_pos; j++)
        for (int d = 0; d < head_dim; d += 16) {
            __mmask16 m = first_lanes(head_dim - d);
            _mm512_store_ps(&b->v[j][d], round16(load(vpage[j / SH_PAGE],
                                                      (size_t)(j % SH_PAGE) * dim + (size_t)d, m)));
        }
}

/* acc += even + odd, for each run of 32 of n factors a[i] and rows row0 + i * stride: the bf16 sum.
 */
INLINE __m512 bf16_sum(const float *a, int n, const float *row, size_t stride)
{
    __m512 acc = _mm512_setzero_ps();
    for (int run = 0; run < n; run += SH_RUN) {
        __m512 even = _mm512_setzero_ps(), odd = even;
        int end = n - run < SH_RUN ? n : run + SH_RUN;
        for (int i = run; i < end; i += 2) {
            even = _mm512_fmadd_ps(_mm512_set1_ps(a[i]), _mm512_load_ps(row + (size_t)i * stride),
                                   even);
            if (i + 1 < end)
                odd = _mm512_fmadd_ps(_mm512_set1_ps(a[i + 1]),
                                      _mm512_load_ps(row + (size_t)(i + 1) * stride), odd);
        }
        acc = _mm512_add_ps(acc, _mm512_add_ps(even, odd));
    }
    return acc;
}

INLINE void round_floats(float *out, const float *x, int n)
{
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        _mm512_store_ps(out + i, round16(_mm512_maskz_loadu_ps(m, x + i)));
    }
}

static float softmax_part(float *s, int n, float *sum);

INLINE void attend(load_fn *load, float *o, float *m, float *l, const float *const *q, int n_row,
                   const int *n_pos, const void *const *kpage, const void *const *vpage,
                   int head_dim, float scale)
{
    rounded b;
    _Alignas(64) float s[SH_SPAN], a[SH_SPAN];
    int most = 0;
    for (int r = 0; r < n_row; r++) most = n_pos[r] > most ? n_pos[r] : most;
    round_span(load, &b, kpage, vpage, most, head_dim);
    for (int r = 0; r < n_row; r++) {
        round_floats(a, q[r], head_dim);
        for (int p = 0; p * SH_LANES < n_pos[r]; p++)
            _mm512_store_ps(
                s + p * SH_LANES,
                _mm512_mul_ps(bf16_sum(a, head_dim, b.k[p][0], SH_LANES), _mm512_set1_ps(scale)));
        m[r] = softmax_part(s, n_pos[r], &l[r]);
        round_floats(a, s, n_pos[r]);
        for (int d = 0; d < head_dim; d += 16) {
            __mmask16 mask = first_lanes(head_dim - d);
            _mm512_mask_storeu_ps(o + (size_t)r * (size_t)head_dim + d, mask,
                                  bf16_sum(a, n_pos[r], &b.v[0][d], MAX_DIM));
        }
    }
}

static void (*wide[SH_N_DTYPE])(float *, float *, float *, const float *const *, int, const int *,
                                const void *const *, const void *const *, int, float);

#define ATTEND(type, dtype)                                                                        \
    static void attend_##type(float *o, float *m, float *l, const float *const *q, int n_row,      \
                              const int *n_pos, const void *const *kpage,                          \
                              const void *const *vpage, int head_dim, float scale)                 \
    {                                                                                              \
        if (head_dim > MAX_DIM)                                                                    \
            wide[dtype](o, m, l, q, n_row, n_pos, kpage, vpage, head_dim, scale);                  \
        else                                                                                       \
            attend(load_##type, o, m, l, q, n_row, n_pos, kpage, vpage, head_dim, scale);          \
    }
ATTEND(f16, SH_F16)
ATTEND(bf16, SH_BF16)

static void put_f16(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    uint16_t *kp = (uint16_t *)kpage + (size_t)(at / 16) * (size_t)head_dim * 16 + at % 16;
    uint16_t *vp = (uint16_t *)vpage + (size_t)at * (size_t)head_dim;
    for (int d = 0; d < head_dim; d++) {
        kp[(size_t)d * 16] = _cvtss_sh(k[d], _MM_FROUND_TO_NEAREST_INT);
        vp[d] = _cvtss_sh(v[d], _MM_FROUND_TO_NEAREST_INT);
    }
}

static float softmax_part(float *s, int n, float *sum)
{
    const __m512 low = _mm512_set1_ps(s[0]);
    __m512 top = low, lane = _mm512_setzero_ps();
    for (int j = 0; j < n; j += 16) {
        __mmask16 m = first_lanes(n - j);
        top = _mm512_max_ps(_mm512_mask_loadu_ps(low, m, s + j), top);
    }
    float max = _mm512_reduce_max_ps(top);
    for (int j = 0; j < n; j += 16) {
        __mmask16 m = first_lanes(n - j);
        __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, s + j), _mm512_set1_ps(max)));
        _mm512_mask_storeu_ps(s + j, m, e);
        lane = _mm512_mask_add_ps(lane, m, lane, e);
    }
    *sum = sum_halves(lane);
    return max;
}

static void softmax_merge(float *o, float *m, float *l, const float *o2, float m2, float l2, int n)
{
    float top = *m > m2 ? *m : m2, a = sh_expf(*m - top), b = sh_expf(m2 - top);
    *m = top;
    *l = fmaf(*l, a, l2 * b);
    for (int d = 0; d < n; d++) o[d] = fmaf(o[d], a, o2[d] * b);
}

void sh_attention_avx512(sh_kernels *k)
{
    k->attn_scores[SH_F32] = scores_f32;
    k->attn_scores[SH_F16] = scores_f16;
    k->attn_scores[SH_BF16] = scores_bf16;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    wide[SH_F16] = k->attend_bf16[SH_F16];
    wide[SH_BF16] = k->attend_bf16[SH_BF16];
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->kv_put[SH_F16] = put_f16;
    k->softmax_part = softmax_part;
    k->softmax_merge = softmax_merge;
}
