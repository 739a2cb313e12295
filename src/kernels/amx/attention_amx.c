/* Attention of prompts on the matrix unit: 16 queries at once against a span of 256 positions. K
 * and V of the span become bf16 tiles once for all queries. */
#include <string.h>

#include "kernels/amx/amx.h"
#include "kernels/kv_q8.h"

enum {
    MAX_DIM = 256, /* of a head; larger ones are left to the vector unit */
    N_PANEL = SH_SPAN / SH_LANES,
    N_RUN = SH_SPAN / SH_RUN,
};

/* Tiles 0 to 3: sums; 4: queries or weights p, 16 rows of 32 bf16; 6: K or V. */
static const tile_config config = {.palette = 1,
                                   .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                   .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* Elements of a page of type t; of q8_0 their integers. */
SH_INLINE __m512 load(const sh_dtype t, const void *page, size_t i, __mmask16 m)
{
    if (t == SH_F16)
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i));
    if (t == SH_Q8_0)
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, (const int8_t *)page + i)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, (const uint16_t *)page + i)), 16));
}

/* 16 d's from c * 16 on of V at position `at`. */
SH_INLINE __m512 load_v(const sh_dtype t, const void *page, int head_dim, int at, int c,
                        __mmask16 m)
{
    __m512 v = load(t, page, (size_t)(at * head_dim + c * 16), m);
    if (t != SH_Q8_0) return v;
    float scale = _cvtsh_ss(sh_kv_scales(page, head_dim)[c / 2 * SH_PAGE + at]);
    return _mm512_mul_ps(v, _mm512_set1_ps(scale));
}

typedef struct span {
    _Alignas(
        64) uint16_t k[MAX_DIM / SH_RUN][N_PANEL][512]; /* tiles [16 pairs of d][16 positions][2] */
    _Alignas(
        64) uint16_t v[MAX_DIM / 16][N_RUN][512]; /* tiles [16 pairs of positions][16 d's][2] */
    _Alignas(64) uint16_t q[MAX_DIM / SH_RUN][16][SH_RUN]; /* tiles [16 queries][32 d's] */
    _Alignas(64) float s[16][SH_SPAN];
    _Alignas(64) uint16_t p[N_RUN][16][SH_RUN]; /* tiles [16 queries][32 positions] */
    _Alignas(64) float o[16][MAX_DIM];
} span;

/* K and V of the positions below n_pos as tiles; positions above it, and d's above head_dim, are 0.
 */
SH_INLINE void make_tiles(const sh_dtype t, span *b, const void *const *kpage,
                          const void *const *vpage, int n_pos, int head_dim)
{
    const __m512 zero = _mm512_setzero_ps();
    size_t dim = (size_t)head_dim;
    for (int panel = 0; panel * 16 < n_pos; panel++) {
        const void *page = kpage[panel / 4];
        const uint16_t *scales = sh_kv_scales(page, head_dim) + panel % 4 * 16;
        size_t k = (size_t)(panel % 4) * dim * 16;
        int n = n_pos - panel * 16;
        __mmask16 m = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
        for (int run = 0; run * SH_RUN < head_dim; run++) {
            __m512 scale = zero;
            if (t == SH_Q8_0)
                scale = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, scales + run * SH_PAGE));
            for (int i = 0; i < 16; i++) {
                int d = run * SH_RUN + 2 * i;
                __m512 even = d < head_dim ? load(t, page, k + (size_t)d * 16, m) : zero;
                __m512 odd = d + 1 < head_dim ? load(t, page, k + (size_t)(d + 1) * 16, m) : zero;
                if (t == SH_Q8_0)
                    even = _mm512_mul_ps(even, scale), odd = _mm512_mul_ps(odd, scale);
                pair_row(b->k[run][panel] + i * 32, even, odd);
            }
        }
    }
    for (int run = 0; run * SH_RUN < n_pos; run++)
        for (int i = 0; i < 16; i++) {
            int j = run * SH_RUN + 2 * i, at = j % SH_PAGE;
            const void *page = vpage[j < n_pos ? j / SH_PAGE : 0];
            for (int c = 0; c * 16 < head_dim; c++) {
                int n = head_dim - c * 16;
                __mmask16 m = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
                __m512 even = j < n_pos ? load_v(t, page, head_dim, at, c, m) : zero;
                __m512 odd = j + 1 < n_pos ? load_v(t, page, head_dim, at + 1, c, m) : zero;
                pair_row(b->v[c][run] + i * 32, even, odd);
            }
        }
}

/* n (up to 32) floats as bf16, zeros up to 32. */
SH_INLINE void round_row(uint16_t *out, const float *x, int n)
{
    __mmask16 lo = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
    __mmask16 hi = n >= 32 ? 0xffff : n > 16 ? (__mmask16)((1u << (n - 16)) - 1) : 0;
    __m512 a = _mm512_maskz_loadu_ps(lo, x),
           c = hi ? _mm512_maskz_loadu_ps(hi, x + 16) : _mm512_setzero_ps();
    _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(c, a));
}

/* One tile of n (up to 16) queries. softmax: the row of the table. */
SH_INLINE void queries(span *b, float (*softmax)(float *, int, float *), float *o, float *m,
                       float *l, const float *const *q, int n, const int *n_pos, int head_dim,
                       float scale)
{
    int most = 0, n_run = (head_dim + SH_RUN - 1) / SH_RUN;
    for (int r = 0; r < 16; r++) { /* a tile that is not full repeats its last query */
        const float *row = q[r < n ? r : n - 1];
        for (int run = 0; run < n_run; run++)
            round_row(b->q[run][r], row + run * SH_RUN, head_dim - run * SH_RUN);
        if (r < n && n_pos[r] > most) most = n_pos[r];
    }
    for (int panel = 0; panel * 16 < most; panel += 2) {
        bool two = (panel + 1) * 16 < most;
        _tile_zero(0);
        _tile_zero(1);
        for (int run = 0; run < n_run; run++) {
            _tile_loadd(4, b->q[run], 64);
            _tile_loadd(6, b->k[run][panel], 64);
            _tile_dpbf16ps(0, 4, 6);
            if (two) {
                _tile_loadd(7, b->k[run][panel + 1], 64);
                _tile_dpbf16ps(1, 4, 7);
            }
        }
        _tile_stored(0, &b->s[0][panel * 16], sizeof b->s[0]);
        if (two) _tile_stored(1, &b->s[0][panel * 16 + 16], sizeof b->s[0]);
    }
    for (int r = 0; r < 16; r++) {
        int see = r < n ? n_pos[r] : 0;
        for (int j = 0; j < see; j += 16)
            _mm512_store_ps(&b->s[r][j],
                            _mm512_mul_ps(_mm512_load_ps(&b->s[r][j]), _mm512_set1_ps(scale)));
        if (see) m[r] = softmax(b->s[r], see, &l[r]);
        for (int run = 0; run * SH_RUN < most; run++)
            round_row(b->p[run][r], b->s[r] + run * SH_RUN,
                      see > run * SH_RUN ? see - run * SH_RUN : 0);
    }
    for (int c = 0; c * 16 < head_dim; c += 2) {
        bool two = (c + 1) * 16 < head_dim;
        _tile_zero(0);
        _tile_zero(1);
        for (int run = 0; run * SH_RUN < most; run++) {
            _tile_loadd(4, b->p[run], 64);
            _tile_loadd(6, b->v[c][run], 64);
            _tile_dpbf16ps(0, 4, 6);
            if (two) {
                _tile_loadd(7, b->v[c + 1][run], 64);
                _tile_dpbf16ps(1, 4, 7);
            }
        }
        _tile_stored(0, &b->o[0][c * 16], sizeof b->o[0]);
        if (two) _tile_stored(1, &b->o[0][c * 16 + 16], sizeof b->o[0]);
    }
    for (int r = 0; r < n; r++)
        memcpy(o + (size_t)r * (size_t)head_dim, b->o[r], (size_t)head_dim * sizeof *o);
}

static float (*softmax_row)(float *, int, float *);
static void (*wide[SH_N_DTYPE])(float *, float *, float *, const float *const *, int, const int *,
                                const void *const *, const void *const *, int, float);

SH_INLINE void attend(const sh_dtype t, float *o, float *m, float *l, const float *const *q,
                      int n_row, const int *n_pos, const void *const *kpage,
                      const void *const *vpage, int head_dim, float scale)
{
    span b;
    int most = 0;
    for (int r = 0; r < n_row; r++) most = n_pos[r] > most ? n_pos[r] : most;
    make_tiles(t, &b, kpage, vpage, most, head_dim);
    _tile_loadconfig(&config);
    for (int r = 0; r < n_row; r += 16)
        queries(&b, softmax_row, o + (size_t)r * (size_t)head_dim, m + r, l + r, q + r,
                n_row - r < 16 ? n_row - r : 16, n_pos + r, head_dim, scale);
    _tile_release();
}

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

void sh_attention_amx(sh_kernels *k)
{
    softmax_row = k->softmax_part;
    for (int t = 0; t < SH_N_DTYPE; t++) wide[t] = k->attend_bf16[t];
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
}
