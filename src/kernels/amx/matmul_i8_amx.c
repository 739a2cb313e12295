/* Products of int8 blocks on the matrix unit, for batches of sequences: a tile operation sums one
 * block of 32 k's exactly, for 16 tokens by 16 outputs; the vector unit scales and adds the blocks
 * in order. */
#include "kernels/amx/amx.h"

enum {
    AT_ONCE = 4, /* blocks under way in the matrix unit while others are scaled */
    FEW = 12,    /* tokens below which the vector unit is as fast */
};

/* Tiles 0 to 3: dots of 16 tokens by 16 outputs, of four blocks; 4: tokens, 32 bytes of each; 6: 8
 * rows of a panel, four k's each. */
static const tile_config config = {.palette = 1,
                                   .bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                                   .rows = {16, 16, 16, 16, 16, 16, 8, 8}};

typedef int dots[SH_LANES][SH_LANES];

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

/* Adds block b of 16 tokens: acc[t] += (float)(dot - 2^shift sum) * (scale_w * scale_x). */
INLINE void add_block(__m512 *acc, dots *d, __m512 dw, const char *x, size_t ldx, size_t kp, int b,
                      const unsigned shift)
{
    for (int t = 0; t < SH_LANES; t++) {
        const float *xd = (const float *)(x + (size_t)t * ldx + kp);
        const int *sum = (const int *)(xd + kp / SH_RUN);
        __m512i v = _mm512_sub_epi32(_mm512_load_si512((*d)[t]),
                                     _mm512_slli_epi32(_mm512_set1_epi32(sum[b]), shift));
        acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_mul_ps(dw, _mm512_set1_ps(xd[b])),
                                 acc[t]);
    }
}

INLINE void tile_dot(const int j, const uint8_t *w, const char *x, size_t ldx)
{
    _tile_loadd(4, x, (int)ldx);
    _tile_loadd(6, w, 64);
#define DOT(tile)                                                                                  \
    case tile:                                                                                     \
        _tile_zero(tile);                                                                          \
        _tile_dpbsud(tile, 4, 6);                                                                  \
        break
    switch (j) { /* a tile's number is part of the instruction */
        DOT(0);
        DOT(1);
        DOT(2);
        DOT(3);
    }
#undef DOT
}

INLINE void tile_save(const int j, dots *d)
{
    switch (j) {
    case 0:
        _tile_stored(0, d, 64);
        break;
    case 1:
        _tile_stored(1, d, 64);
        break;
    case 2:
        _tile_stored(2, d, 64);
        break;
    default:
        _tile_stored(3, d, 64);
        break;
    }
}

/* One panel by 16 tokens; blocks [lo, hi) of one slice. */
INLINE void slice(bytes_fn *bytes, const unsigned shift, tile_sums *out, const sh_mat *w,
                  const uint8_t *panel, const uint8_t *scale, int lo, int hi, const char *x,
                  size_t ldx)
{
    _Alignas(64) uint8_t room[AT_ONCE][512];
    _Alignas(64) dots d[2][AT_ONCE];
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    __m512 acc[SH_LANES];
    for (int t = 0; t < SH_LANES; t++) acc[t] = _mm512_setzero_ps();
    int flip = 0, before = 0; /* blocks of the round before, to be scaled now */
    for (int b = lo; b < hi || before; flip ^= 1) {
        int n = hi - b < AT_ONCE ? hi - b : AT_ONCE;
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; j++)
            if (j < n) tile_dot(j, bytes(room[j], panel, b + j), x + (size_t)(b + j) * SH_RUN, ldx);
        for (int j = 0; j < before; j++) {
            int c = b - before + j;
            __m512 dw =
                _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(scale + (size_t)c * 32)));
            add_block(acc, &d[flip ^ 1][j], dw, x, ldx, kp, c, shift);
        }
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; j++)
            if (j < n) tile_save(j, &d[flip][j]);
        before = n;
        b += n;
    }
    for (int t = 0; t < SH_LANES; t++) _mm512_store_ps((*out)[t], acc[t]);
}

INLINE void tokens(bytes_fn *bytes, const int block_bytes, const unsigned shift, float *y,
                   size_t ldy, const sh_mat *w, int panel_lo, int panel_hi, int slice_lo,
                   int slice_hi, const char *x, size_t ldx)
{
    _Alignas(64) tile_sums level[5];
    for (int p = panel_lo; p < panel_hi; p++) {
        const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        const uint8_t *scale =
            panel + (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN * (size_t)block_bytes;
        int depth = 0;
        for (int s = slice_lo; s < slice_hi; s++) {
            slice(bytes, shift, &level[depth], w, panel, scale, w->kd.kp[s] / SH_RUN,
                  w->kd.kp[s + 1] / SH_RUN, x, ldx);
            tile_tree(level, &depth, s - slice_lo);
        }
        tile_out(y + (size_t)p * SH_LANES, ldy, &level[0], SH_LANES, panel_rows(w, p));
    }
}

/* n_tok: whole tiles of 16. */
INLINE void run(bytes_fn *bytes, const int block_bytes, const unsigned shift, float *y, size_t ldy,
                const sh_mat *w, int panel_lo, int panel_hi, int slice_lo, int slice_hi,
                const char *x, size_t ldx, int n_tok)
{
    _tile_loadconfig(&config);
    /* a few panels at a time, so that their bytes are still near for the next tile of tokens */
    for (int p = panel_lo; p < panel_hi; p += 4) {
        int end = p + 4 < panel_hi ? p + 4 : panel_hi;
        for (int t = 0; t + 16 <= n_tok; t += 16)
            tokens(bytes, block_bytes, shift, y + (size_t)t * ldy, ldy, w, p, end, slice_lo,
                   slice_hi, x + (size_t)t * ldx, ldx);
    }
    _tile_release();
}

static sh_matmul_fn *few_q8_0, *few_q4_0;

#define MATMUL(name, bytes, block_bytes, shift, few)                                               \
    static void name(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,            \
                     int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok)             \
    {                                                                                              \
        int whole = n_tok < FEW ? 0 : n_tok / 16 * 16; /* tokens in full tiles */                  \
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
