/* Attention: the common source with this instruction set's vectors; of prompts, a span rounded to
 * bf16 once serves all queries. */
#include "kernels/avx512/avx512.h"

#include "kernels/attention_rows.h"

/* As load_page, but no more than the lanes of m. */
SH_INLINE __m512 load_first(const sh_dtype t, const void *page, size_t i, __mmask16 m)
{
    if (t == SH_F16)
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i));
    if (t == SH_BF16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i)), 16));
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, (const int8_t *)page + i)));
}

/* A span's K and V rounded to bf16, as floats. */
enum { MAX_DIM = SH_SPAN };
typedef struct rounded {
    _Alignas(64) float k[SH_SPAN / SH_LANES][MAX_DIM][SH_LANES];
    _Alignas(64) float v[SH_SPAN][MAX_DIM];
} rounded;

SH_INLINE void round_span(const sh_dtype t, rounded *b, const void *const *kpage,
                          const void *const *vpage, int n_pos, int head_dim)
{
    size_t dim = (size_t)head_dim;
    __m512 v, scale = _mm512_set1_ps(1);
    for (int p = 0; p * SH_LANES < n_pos; p++) {
        const void *page = kpage[p / 4];
        const uint16_t *scales = sh_kv_scales(page, head_dim) + p % 4 * 16;
        for (size_t d = 0; d < dim; d++) {
            v = load_page(t, page, ((size_t)(p % 4) * dim + d) * 16);
            if (t == SH_Q8_0 && d % SH_RUN == 0) scale = vec_f16(scales + d / SH_RUN * SH_PAGE);
            _mm512_store_ps(b->k[p][d],
                            (vec)vec_round_bf16(t == SH_Q8_0 ? _mm512_mul_ps(v, scale) : v));
        }
    }
    for (int j = 0; j < n_pos; j++) {
        const void *page = vpage[j / SH_PAGE];
        const uint16_t *scales = sh_kv_scales(page, head_dim) + j % SH_PAGE;
        for (int d = 0; d < head_dim; d += 16) {
            __mmask16 m = first_lanes(head_dim - d);
            v = load_first(t, page, (size_t)(j % SH_PAGE) * dim + (size_t)d, m);
            if (t == SH_Q8_0)
                v = _mm512_mul_ps(v, _mm512_set1_ps(_cvtsh_ss(scales[d / SH_RUN * SH_PAGE])));
            _mm512_store_ps(&b->v[j][d], (vec)vec_round_bf16(v));
        }
    }
}

/* acc += even + odd, for each run of 32 of n factors a[i] and rows row0 + i * stride: the bf16 sum.
 */
SH_INLINE __m512 bf16_sum(const float *a, int n, const float *row, size_t stride)
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

SH_INLINE void round_floats(float *out, const float *x, int n)
{
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        _mm512_store_ps(out + i, (vec)vec_round_bf16(_mm512_maskz_loadu_ps(m, x + i)));
    }
}

SH_INLINE void attend(const sh_dtype t, float *o, float *m, float *l, const float *const *q,
                      int n_row, const int *n_pos, const void *const *kpage,
                      const void *const *vpage, int head_dim, float scale)
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

void sh_attention_avx512(sh_kernels *k)
{
    attention_overlay(k);
    wide[SH_F16] = k->attend_bf16[SH_F16];
    wide[SH_BF16] = k->attend_bf16[SH_BF16];
    wide[SH_Q8_0] = k->attend_bf16[SH_Q8_0];
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
}
