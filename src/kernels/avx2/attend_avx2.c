/* Attention of prompts in bf16: two products of runs of 32, as in matmul_float_avx2.c. Scores:
 * lanes are positions, tokens are queries, k is d. Values: lanes are d, k is positions. */
#include "kernels/avx2/avx2.h"
#include "kernels/kv_q8.h"

enum { N_ROW = 64 }; /* queries at a time: 96 KiB for their scores */

/* Eight values of a page from element i on, rounded to bf16; of q8_0 times their scales. */
SH_INLINE __m256 load(const sh_dtype t, const void *page, size_t i, __m256 scale)
{
    if (t == SH_BF16) return sh_bf16x8((const uint16_t *)page + i);
    __m256 v = t == SH_F16 ? sh_f16x8((const uint16_t *)page + i)
                           : _mm256_mul_ps(sh_i8x8((const int8_t *)page + i), scale);
    return _mm256_castsi256_ps(sh_round_bf16(v));
}

/* out[i] = x[i] rounded to bf16. */
static void round_row(uint16_t *out, const float *x, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i r = _mm256_srli_epi32(sh_round_bf16(_mm256_loadu_ps(x + i)), 16);
        _mm_storeu_si128((__m128i *)(out + i), _mm_packus_epi32(_mm256_castsi256_si128(r),
                                                                _mm256_extracti128_si256(r, 1)));
    }
    for (; i < n; i++) out[i] = sh_bf16_from_f32(x[i]);
}

typedef struct rows {
    _Alignas(32) float s[N_ROW][SH_SPAN];
    uint16_t x[N_ROW][SH_SPAN]; /* of q the d's of one run; then p */
    int most;                   /* positions that some row sees */
} rows;

/* s[r][j] for all rows and the positions that some row sees. */
SH_INLINE void scores(const sh_dtype type, rows *t, const float *const *q, int n_row,
                      const void *const *kpage, int head_dim, float scale)
{
    _Alignas(32) sh_run_w w;
    int n_panel = (t->most + SH_LANES - 1) / SH_LANES;
    for (int r = 0; r < n_row; r++) memset(t->s[r], 0, (size_t)n_panel * SH_LANES * sizeof(float));
    for (int d = 0; d < head_dim; d += SH_RUN) {
        int n_k = head_dim - d < SH_RUN ? head_dim - d : SH_RUN;
        for (int r = 0; r < n_row; r++) round_row(t->x[r], q[r] + d, n_k);
        for (int p = 0; p < n_panel; p++) {
            size_t at =
                ((size_t)(p % (SH_PAGE / SH_LANES)) * (size_t)head_dim + (size_t)d) * SH_LANES;
            const void *page = kpage[p / (SH_PAGE / SH_LANES)];
            const uint16_t *scales = sh_kv_scales(page, head_dim) + d / SH_RUN * SH_PAGE +
                                     p % (SH_PAGE / SH_LANES) * SH_LANES;
            for (int h = 0; h < SH_LANES; h += 8) {
                __m256 sc = type == SH_Q8_0 ? sh_f16x8(scales + h) : _mm256_setzero_ps();
                for (int k = 0; k < n_k; k++)
                    _mm256_store_ps(&w[k & 1][k / 2][h],
                                    load(type, page, at + (size_t)(k * SH_LANES + h), sc));
            }
            for (int r = 0; r < n_row; r += SH_RUN_TILE)
                sh_run_sums_avx2(t->s[r] + p * SH_LANES, SH_SPAN, w, t->x[r], sizeof *t->x, n_k,
                                 n_row - r < SH_RUN_TILE ? n_row - r : SH_RUN_TILE);
        }
    }
    for (int r = 0; r < n_row; r++)
        for (int j = 0; j < n_panel * SH_LANES; j += 8)
            _mm256_store_ps(t->s[r] + j,
                            _mm256_mul_ps(_mm256_load_ps(t->s[r] + j), _mm256_set1_ps(scale)));
}

/* A run of positions by 16 d's; past head_dim it is 0. */
SH_INLINE void value_run(const sh_dtype t, sh_run_w w, const void *page, int at, int n_k, int d,
                         int head_dim)
{
    const size_t size = t == SH_Q8_0 ? 1 : 2;
    const uint16_t *scales = sh_kv_scales(page, head_dim) + d / SH_RUN * SH_PAGE + at;
    for (int k = 0; k < n_k; k++) {
        size_t i = (size_t)((at + k) * head_dim + d);
        float *out = w[k & 1][k / 2];
        __m256 sc = t == SH_Q8_0 ? _mm256_set1_ps(_cvtsh_ss(scales[k])) : _mm256_setzero_ps();
        for (int h = 0; h < SH_LANES; h += 8) {
            if (d + h + 8 <= head_dim) {
                _mm256_store_ps(out + h, load(t, page, i + (size_t)h, sc));
                continue;
            }
            uint16_t last[8] = {0};
            int left = head_dim - d - h;
            if (left > 0)
                memcpy(last, (const char *)page + (i + (size_t)h) * size, (size_t)left * size);
            _mm256_store_ps(out + h, load(t, last, 0, sc));
        }
    }
}

/* o[r][d] for all rows. Neighbours that see as much of a run are summed together. */
SH_INLINE void values(const sh_dtype type, float *o, const rows *t, int n_row, const int *n_pos,
                      const void *const *vpage, int head_dim)
{
    _Alignas(32) sh_run_w w;
    float acc[N_ROW][SH_LANES];
    for (int d = 0; d < head_dim; d += SH_LANES) {
        memset(acc, 0, sizeof acc);
        for (int j = 0; j < t->most; j += SH_RUN) {
            int n_k = t->most - j < SH_RUN ? t->most - j : SH_RUN;
            value_run(type, w, vpage[j / SH_PAGE], j % SH_PAGE, n_k, d, head_dim);
            for (int r = 0, n; r < n_row; r += n) {
                int sees = n_pos[r] - j < SH_RUN ? n_pos[r] - j : SH_RUN;
                for (n = 1; n < SH_RUN_TILE && r + n < n_row; n++)
                    if ((n_pos[r + n] - j < SH_RUN ? n_pos[r + n] - j : SH_RUN) != sees) break;
                if (sees > 0)
                    sh_run_sums_avx2(acc[r], SH_LANES, w, t->x[r] + j, sizeof *t->x, sees, n);
            }
        }
        int n = head_dim - d < SH_LANES ? head_dim - d : SH_LANES;
        for (int r = 0; r < n_row; r++)
            memcpy(o + (size_t)r * (size_t)head_dim + d, acc[r], (size_t)n * sizeof *o);
    }
}

SH_INLINE void attend(const sh_dtype type, float *o, float *m, float *l, const float *const *q,
                      int n_row, const int *n_pos, const void *const *kpage,
                      const void *const *vpage, int head_dim, float scale)
{
    rows t;
    for (int r0 = 0, n; r0 < n_row; r0 += n) {
        n = n_row - r0 < N_ROW ? n_row - r0 : N_ROW;
        t.most = 0;
        for (int r = 0; r < n; r++)
            if (n_pos[r0 + r] > t.most) t.most = n_pos[r0 + r];
        scores(type, &t, q + r0, n, kpage, head_dim, scale);
        for (int r = 0; r < n; r++) {
            m[r0 + r] = sh_softmax_part_avx2(t.s[r], n_pos[r0 + r], &l[r0 + r]);
            round_row(t.x[r], t.s[r], n_pos[r0 + r]);
        }
        values(type, o + (size_t)r0 * (size_t)head_dim, &t, n, n_pos + r0, vpage, head_dim);
    }
}

#define ATTEND(type, dtype)                                                                        \
    static void attend_##type(float *o, float *m, float *l, const float *const *q, int n_row,      \
                              const int *n_pos, const void *const *kpage,                          \
                              const void *const *vpage, int head_dim, float scale)                 \
    {                                                                                              \
        attend(dtype, o, m, l, q, n_row, n_pos, kpage, vpage, head_dim, scale);                    \
    }
ATTEND(f16, SH_F16)
ATTEND(bf16, SH_BF16)
ATTEND(q8_0, SH_Q8_0)

void sh_attend_avx2(sh_kernels *k)
{
    k->attend_bf16[SH_F16] = attend_f16;
    k->attend_bf16[SH_BF16] = attend_bf16;
    k->attend_bf16[SH_Q8_0] = attend_q8_0;
}
