/* Attention over one page of the KV cache: each K and V that is loaded serves all heads that share
 * it. */
#include "kernels/avx512/avx512.h"

#include "base/fmath.h"
#include "kernels/kv_q8.h"

INLINE size_t size_of(const sh_dtype t)
{
    return t == SH_F32 ? 4 : t == SH_Q8_0 ? 1 : 2;
}

/* Elements of a page of type t; of q8_0 their integers. */
INLINE __m512 load(const sh_dtype t, const void *page, size_t i, __mmask16 m)
{
    switch (t) {
    case SH_F32:
        return _mm512_maskz_loadu_ps(m, (const float *)page + i);
    case SH_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i));
    case SH_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i)), 16));
    default:
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, (const int8_t *)page + i)));
    }
}

INLINE __m512 load_scales(const uint16_t *scale)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scale));
}

/* Asks for n bytes that will be read soon. */
INLINE void ask(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
}

/* H heads, P panels of 16 positions from panel `panel` of the page on; the same panels of the page
 * `next`, if any, are asked for. */
INLINE void scores_block(const sh_dtype t, const int H, const int P, float *s, size_t lds,
                         const float *q, size_t ldq, const void *kpage, int panel, int head_dim,
                         float scale, const void *next)
{
    const size_t dim = (size_t)head_dim, k0 = (size_t)panel * dim * 16, step = P * 16 * size_of(t);
    const char *ahead = next ? (const char *)next + k0 * size_of(t) : NULL;
    __m512 acc[8][4], k_scale[4];
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++) acc[h][p] = _mm512_setzero_ps();
    for (int d = 0, end; d < head_dim; d = end) {
        int group = d / SH_RUN * SH_PAGE + panel * 16;
        const uint16_t *scales = sh_kv_scales(kpage, head_dim) + group;
        end = t == SH_Q8_0 && head_dim - d > SH_RUN ? d + SH_RUN : head_dim;
        for (int p = 0; t == SH_Q8_0 && p < P; p++) k_scale[p] = load_scales(scales + p * 16);
        if (t == SH_Q8_0 && ahead) ask((const char *)(sh_kv_scales(next, head_dim) + group), 64);
        for (int e = d; e < end; e++) {
            __m512 k[4];
            if (ahead) ask(ahead + (size_t)e * step, step);
            for (int p = 0; p < P; p++) {
                k[p] = load(t, kpage, k0 + ((size_t)p * dim + (size_t)e) * 16, 0xffff);
                if (t == SH_Q8_0) k[p] = _mm512_mul_ps(k[p], k_scale[p]);
            }
            for (int h = 0; h < H; h++) {
                __m512 v = _mm512_set1_ps(q[(size_t)h * ldq + (size_t)e]);
                for (int p = 0; p < P; p++) acc[h][p] = _mm512_fmadd_ps(v, k[p], acc[h][p]);
            }
        }
    }
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++)
            _mm512_storeu_ps(s + (size_t)h * lds + p * 16,
                             _mm512_mul_ps(acc[h][p], _mm512_set1_ps(scale)));
}

/* P panels with all heads: 16 sums at a time, where there are as many. */
INLINE void scores_panels(const sh_dtype t, const int P, float *s, size_t lds, const float *q,
                          size_t ldq, int n_q, const void *kpage, int panel, int head_dim,
                          float scale, const void *next)
{
    for (int h = 0, n; h < n_q; h += n, next = NULL) {
        float *sh = s + (size_t)h * lds + panel * 16;
        const float *qh = q + (size_t)h * ldq;
        n = n_q - h;
        if (n >= 8 && P == 4) {
            scores_block(t, 8, 2, sh, lds, qh, ldq, kpage, panel, head_dim, scale, next);
            scores_block(t, 8, 2, sh + 32, lds, qh, ldq, kpage, panel + 2, head_dim, scale, next);
            n = 8;
        } else if (n >= 8) {
            scores_block(t, 8, P, sh, lds, qh, ldq, kpage, panel, head_dim, scale, next), n = 8;
        } else if (n >= 4) {
            scores_block(t, 4, P, sh, lds, qh, ldq, kpage, panel, head_dim, scale, next), n = 4;
        } else if (n >= 2) {
            scores_block(t, 2, P, sh, lds, qh, ldq, kpage, panel, head_dim, scale, next), n = 2;
        } else {
            scores_block(t, 1, P, sh, lds, qh, ldq, kpage, panel, head_dim, scale, next), n = 1;
        }
    }
}

INLINE void scores(const sh_dtype t, float *s, size_t lds, const float *q, size_t ldq, int n_q,
                   const void *kpage, int n_pos, int head_dim, float scale, const void *next)
{
    int n_panel = (n_pos + 15) / 16;
    if (n_panel == 4) scores_panels(t, 4, s, lds, q, ldq, n_q, kpage, 0, head_dim, scale, next);
    for (int p = 0; n_panel < 4 && p < n_panel; p++)
        scores_panels(t, 1, s, lds, q, ldq, n_q, kpage, p, head_dim, scale, next);
}

/* The scales of 64 d's from a multiple of SH_RUN on: those of each group. */
typedef float group_scales[2 * SH_PAGE];

INLINE void widen_scales(group_scales out, const void *vpage, int head_dim, int d)
{
    const uint16_t *scale = sh_kv_scales(vpage, head_dim) + d / SH_RUN * SH_PAGE;
    for (int g = 0; g < 2 && d + g * SH_RUN < head_dim; g++)
        for (int j = 0; j < SH_PAGE; j += 16)
            _mm512_storeu_ps(out + g * SH_PAGE + j, load_scales(scale + g * SH_PAGE + j));
}

/* H heads, D vectors of 16 values from column d on, m: the lanes of the last vector; as many
 * bytes of the page `next`, if any, are asked for. */
INLINE void values_block(const sh_dtype t, const int H, const int D, float *o, size_t ldo,
                         const float *p, size_t ldp, const void *vpage, const float *scale,
                         int n_pos, int head_dim, int d, __mmask16 m, const void *next)
{
    const size_t dim = (size_t)head_dim, size = size_of(t);
    const char *ahead = next ? (const char *)next + (size_t)(d * n_pos) * size : NULL;
    __m512 acc[8][4];
    for (int h = 0; h < H; h++)
        for (int i = 0; i < D; i++)
            acc[h][i] = _mm512_maskz_loadu_ps(m, o + (size_t)h * ldo + d + i * 16);
    for (int j = 0; j < n_pos; j++) {
        __m512 v[4];
        if (ahead) ask(ahead + (size_t)(j * D) * 16 * size, D * 16 * size);
        for (int i = 0; i < D; i++) {
            v[i] = load(t, vpage, (size_t)j * dim + (size_t)(d + i * 16), m);
            if (t == SH_Q8_0)
                v[i] = _mm512_mul_ps(v[i], _mm512_set1_ps(scale[i / 2 * SH_PAGE + j]));
        }
        for (int h = 0; h < H; h++) {
            __m512 w = _mm512_set1_ps(p[(size_t)h * ldp + (size_t)j]);
            for (int i = 0; i < D; i++) acc[h][i] = _mm512_fmadd_ps(w, v[i], acc[h][i]);
        }
    }
    for (int h = 0; h < H; h++)
        for (int i = 0; i < D; i++)
            _mm512_mask_storeu_ps(o + (size_t)h * ldo + d + i * 16, m, acc[h][i]);
}

INLINE void values(const sh_dtype t, float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                   const void *vpage, int n_pos, int head_dim, const void *next_page)
{
    group_scales sc;
    for (int d = 0, step; d < head_dim; d += step) {
        bool wide = d + 64 <= head_dim;
        __mmask16 m = first_lanes(head_dim - d);
        const void *next = next_page;
        step = wide ? 64 : 16;
        if (t == SH_Q8_0) widen_scales(sc, vpage, head_dim, d);
        for (int h = 0, n; h < n_q; h += n, next = NULL) {
            float *oh = o + (size_t)h * ldo;
            const float *ph = p + (size_t)h * ldp;
            n = n_q - h;
            if (n >= 8 && wide) {
                values_block(t, 8, 2, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                values_block(t, 8, 2, oh, ldo, ph, ldp, vpage, sc + SH_PAGE, n_pos, head_dim,
                             d + 32, m, next);
                n = 8;
            } else if (n >= 4 && wide) {
                values_block(t, 4, 4, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                n = 4;
            } else if (n >= 2 && wide) {
                values_block(t, 2, 4, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                n = 2;
            } else if (wide) {
                values_block(t, 1, 4, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                n = 1;
            } else if (n >= 8) {
                values_block(t, 8, 1, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                n = 8;
            } else {
                values_block(t, 1, 1, oh, ldo, ph, ldp, vpage, sc, n_pos, head_dim, d, m, next);
                n = 1;
            }
        }
    }
}

#define ROWS(type, dtype)                                                                          \
    static void scores_##type(float *s, size_t lds, const float *q, size_t ldq, int n_q,           \
                              const void *kpage, int n_pos, int head_dim, float scale,             \
                              const void *next)                                                    \
    {                                                                                              \
        scores(dtype, s, lds, q, ldq, n_q, kpage, n_pos, head_dim, scale, next);                   \
    }                                                                                              \
    static void values_##type(float *o, size_t ldo, const float *p, size_t ldp, int n_q,           \
                              const void *vpage, int n_pos, int head_dim, const void *next)        \
    {                                                                                              \
        values(dtype, o, ldo, p, ldp, n_q, vpage, n_pos, head_dim, next);                          \
    }
ROWS(f32, SH_F32)
ROWS(f16, SH_F16)
ROWS(bf16, SH_BF16)
ROWS(q8_0, SH_Q8_0)

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

INLINE void round_span(const sh_dtype t, rounded *b, const void *const *kpage,
                       const void *const *vpage, int n_pos, int head_dim)
{
    size_t dim = (size_t)head_dim;
    __m512 v, scale = _mm512_set1_ps(1);
    for (int p = 0; p * SH_LANES < n_pos; p++) {
        const void *page = kpage[p / 4];
        const uint16_t *scales = sh_kv_scales(page, head_dim) + p % 4 * 16;
        for (size_t d = 0; d < dim; d++) {
            v = load(t, page, ((size_t)(p % 4) * dim + d) * 16, 0xffff);
            if (t == SH_Q8_0 && d % SH_RUN == 0) scale = load_scales(scales + d / SH_RUN * SH_PAGE);
            _mm512_store_ps(b->k[p][d], round16(t == SH_Q8_0 ? _mm512_mul_ps(v, scale) : v));
        }
    }
    for (int j = 0; j < n_pos; j++) {
        const void *page = vpage[j / SH_PAGE];
        const uint16_t *scales = sh_kv_scales(page, head_dim) + j % SH_PAGE;
        for (int d = 0; d < head_dim; d += 16) {
            __mmask16 m = first_lanes(head_dim - d);
            v = load(t, page, (size_t)(j % SH_PAGE) * dim + (size_t)d, m);
            if (t == SH_Q8_0)
                v = _mm512_mul_ps(v, _mm512_set1_ps(_cvtsh_ss(scales[d / SH_RUN * SH_PAGE])));
            _mm512_store_ps(&b->v[j][d], round16(v));
        }
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

INLINE void attend(const sh_dtype t, float *o, float *m, float *l, const float *const *q, int n_row,
                   const int *n_pos, const void *const *kpage, const void *const *vpage,
                   int head_dim, float scale)
{
    rounded b;
    _Alignas(64) float s[SH_SPAN], a[SH_SPAN];
    int most = 0;
    for (int r = 0; r < n_row; r++) most = n_pos[r] > most ? n_pos[r] : most;
    round_span(t, &b, kpage, vpage, most, head_dim);
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
            attend(dtype, o, m, l, q, n_row, n_pos, kpage, vpage, head_dim, scale);                \
    }
ATTEND(f16, SH_F16)
ATTEND(bf16, SH_BF16)
ATTEND(q8_0, SH_Q8_0)

static void put_q8_0(void *kpage, void *vpage, const float *k, const float *v, int at, int head_dim)
{
    sh_kv_put_q8(kpage, vpage, k, v, at, head_dim);
}

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
    k->attn_scores[SH_Q8_0] = scores_q8_0;
    k->attn_values[SH_F32] = values_f32;
    k->attn_values[SH_F16] = values_f16;
    k->attn_values[SH_BF16] = values_bf16;
    k->attn_values[SH_Q8_0] = values_q8_0;
    wide[SH_F16] = k->attend_bf16[SH_F16];
    wide[SH_BF16] = k->attend_bf16[SH_BF16];
    wide[SH_Q8_0] = k->attend_bf16[SH_Q8_0];
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
    k->kv_put[SH_F16] = put_f16;
    k->kv_put[SH_Q8_0] = put_q8_0;
    k->softmax_part = softmax_part;
    k->softmax_merge = softmax_merge;
}
