/* Products of int8 blocks on the matrix unit, for batches of sequences: a tile operation sums one
 * block of 32 k's exactly, for 16 tokens by 16 outputs; the vector unit scales the blocks and adds
 * them in order. */
#include "kernels/amx/amx.h"

enum {
    FEW = 12,         /* tokens below which the vector unit is as fast */
    MAX_BLOCKS = 512, /* of one product; longer ones are left to the vector unit */
};

/* Tiles 0 and 1: dots of 16 tokens by 16 outputs, of two blocks; 4, 5: tokens, 32 bytes of each;
 * 6, 7: 8 rows of a panel, four k's each. */
static const tile_config config = {.palette = 1,
                                   .bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                                   .rows = {16, 16, 16, 16, 16, 16, 8, 8}};

typedef int dots[SH_LANES][SH_LANES];

/* What 16 tokens have beside their bytes, block by block. */
typedef struct tokens16 {
    const char *x; /* the first token */
    size_t ldx;
    float scale[MAX_BLOCKS][SH_LANES];
    int zero[MAX_BLOCKS][SH_LANES]; /* what the weights' zero point adds to the dot */
} tokens16;

static void gather_tokens(tokens16 *t, const sh_mat *w, const char *x, size_t ldx, int shift)
{
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice], n_block = kp / SH_RUN;
    t->x = x;
    t->ldx = ldx;
    for (int i = 0; i < SH_LANES; i++) {
        const float *scale = (const float *)(x + (size_t)i * ldx + kp);
        const int *sum = (const int *)(scale + n_block);
        for (size_t b = 0; b < n_block; b++) {
            t->scale[b][i] = scale[b];
            t->zero[b][i] = sum[b] * (1 << shift);
        }
    }
}

/* Where block b's bytes of a panel are: q8_0 as packed; q4_0 spread out into `room`. */
typedef const uint8_t *bytes_fn(uint8_t *room, const uint8_t *panel, int b);

INLINE const uint8_t *bytes_q8_0(uint8_t *room, const uint8_t *panel, int b)
{
    (void)room;
    return panel + (size_t)b * 512;
}

INLINE const uint8_t *bytes_q4_0(uint8_t *room, const uint8_t *panel, int b)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int g = 0; g < 4; g++) {
        __m512i v = _mm512_load_si512(panel + (size_t)b * 256 + g * 64);
        _mm512_store_si512(room + g * 64, _mm512_and_si512(v, nibble));
        _mm512_store_si512(room + 256 + g * 64, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
    }
    return room;
}

/* acc[t] += (float)(dot - zero) * (scale_w * scale_x), for block b of each token */
INLINE void add_block(__m512 *acc, dots *d, const uint8_t *scale, const tokens16 *x, int b)
{
    __m512 dw = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(scale + (size_t)b * 32)));
#pragma GCC unroll 16
    for (int t = 0; t < SH_LANES; t++) {
        __m512i v = _mm512_sub_epi32(_mm512_load_si512((*d)[t]), _mm512_set1_epi32(x->zero[b][t]));
        __m512 s = _mm512_mul_ps(dw, _mm512_set1_ps(x->scale[b][t]));
        acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), s, acc[t]);
    }
}

/* The dots of block b of a panel, and of the next one if `two`. */
INLINE void tile_dots(const bool two, bytes_fn *bytes, dots *d, uint8_t room[2][512],
                      const uint8_t *panel, int b, const tokens16 *x)
{
    const char *xb = x->x + (size_t)b * SH_RUN;
    int ldx = (int)x->ldx;
    _tile_zero(0);
    _tile_loadd(4, xb, ldx);
    _tile_loadd(6, bytes(room[0], panel, b), 64);
    _tile_dpbsud(0, 4, 6);
    if (two) {
        _tile_zero(1);
        _tile_loadd(5, xb + SH_RUN, ldx);
        _tile_loadd(7, bytes(room[1], panel, b + 1), 64);
        _tile_dpbsud(1, 5, 7);
    }
    _tile_stored(0, d[0], 64);
    if (two) _tile_stored(1, d[1], 64);
}

/* One panel by 16 tokens; blocks [lo, hi) of one slice. The dots of two blocks are made and stored
 * before the two earlier ones are read: a vector load that follows a tile store of the same bytes
 * waits until the store has left the processor. */
INLINE void slice(bytes_fn *bytes, tile_sums *out, const uint8_t *panel, const uint8_t *scale,
                  int lo, int hi, const tokens16 *x)
{
    _Alignas(64) uint8_t room[2][512];
    _Alignas(64) dots d[2][2];
    __m512 acc[SH_LANES];
#pragma GCC unroll 16
    for (int t = 0; t < SH_LANES; t++) acc[t] = _mm512_setzero_ps();
    int b = lo, flip = 0;
    if (b + 2 <= hi) tile_dots(true, bytes, d[0], room, panel, b, x);
    for (; b + 2 <= hi; b += 2, flip ^= 1) {
        if (b + 4 <= hi) tile_dots(true, bytes, d[flip ^ 1], room, panel, b + 2, x);
        add_block(acc, &d[flip][0], scale, x, b);
        add_block(acc, &d[flip][1], scale, x, b + 1);
    }
    if (b < hi) {
        tile_dots(false, bytes, d[0], room, panel, b, x);
        add_block(acc, &d[0][0], scale, x, b);
    }
#pragma GCC unroll 16
    for (int t = 0; t < SH_LANES; t++) _mm512_store_ps((*out)[t], acc[t]);
}

/* 16 tokens by panels [panel_lo, panel_hi). */
INLINE void panels(bytes_fn *bytes, const int block_bytes, float *y, size_t ldy, const sh_mat *w,
                   int panel_lo, int panel_hi, int slice_lo, int slice_hi, const tokens16 *x)
{
    _Alignas(64) tile_sums level[5];
    size_t n_block = (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN;
    for (int p = panel_lo; p < panel_hi; p++) {
        const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        const uint8_t *scale = panel + n_block * (size_t)block_bytes;
        int depth = 0;
        for (int s = slice_lo; s < slice_hi; s++) {
            slice(bytes, &level[depth], panel, scale, w->kd.kp[s] / SH_RUN,
                  w->kd.kp[s + 1] / SH_RUN, x);
            tile_tree(level, &depth, s - slice_lo);
        }
        tile_out(y + (size_t)p * SH_LANES, ldy, &level[0], SH_LANES, panel_rows(w, p));
    }
}

/* n_tok: whole tiles of 16. Two of them at a time pass by a few panels, whose bytes are then still
 * near for the second. */
INLINE void run(bytes_fn *bytes, const int block_bytes, const int shift, float *y, size_t ldy,
                const sh_mat *w, int panel_lo, int panel_hi, int slice_lo, int slice_hi,
                const char *x, size_t ldx, int n_tok)
{
    tokens16 tok[2];
    _tile_loadconfig(&config);
    for (int t = 0; t < n_tok; t += 32) {
        int n = n_tok - t >= 32 ? 2 : 1;
        for (int i = 0; i < n; i++)
            gather_tokens(&tok[i], w, x + (size_t)(t + 16 * i) * ldx, ldx, shift);
        for (int p = panel_lo; p < panel_hi; p += 2) {
            int end = p + 2 < panel_hi ? p + 2 : panel_hi;
            for (int i = 0; i < n; i++)
                panels(bytes, block_bytes, y + (size_t)(t + 16 * i) * ldy, ldy, w, p, end, slice_lo,
                       slice_hi, &tok[i]);
        }
    }
    _tile_release();
}

static sh_matmul_fn *few_q8_0, *few_q4_0; /* for few tokens: the rows below in the table */

#define MATMUL(name, bytes, block_bytes, shift, few)                                               \
    static void name(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,            \
                     int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok)             \
    {                                                                                              \
        bool fits = w->kd.kp[w->kd.n_slice] <= MAX_BLOCKS * SH_RUN;                                \
        int whole = n_tok < FEW || !fits ? 0 : n_tok / 16 * 16; /* tokens in full tiles */         \
        if (whole)                                                                                 \
            run(bytes, block_bytes, shift, y, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi, x,   \
                ldx, whole);                                                                       \
        if (whole < n_tok)                                                                         \
            few(y + (size_t)whole * ldy, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi,           \
                (const char *)x + (size_t)whole * ldx, ldx, n_tok - whole);                        \
    }
MATMUL(matmul_q8_0, bytes_q8_0, 512, 7, few_q8_0)
MATMUL(matmul_q4_0, bytes_q4_0, 256, 3, few_q4_0)

void sh_matmul_i8_amx(sh_kernels *k)
{
    few_q8_0 = k->matmul[SH_Q8_0][SH_FORM_I8];
    few_q4_0 = k->matmul[SH_Q4_0][SH_FORM_I8];
    k->matmul[SH_Q8_0][SH_FORM_I8] = matmul_q8_0;
    k->matmul[SH_Q4_0][SH_FORM_I8] = matmul_q4_0;
}
