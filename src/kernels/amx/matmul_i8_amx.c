/* Products of int8 blocks on the matrix unit, for batches of sequences: a tile operation sums one
 * block of 32 k's exactly, for 16 tokens by 16 outputs; the vector unit scales the blocks and adds
 * them in order. What made it fast, and what did not, is in bench/README.md.
 *
 * Work comes in groups of four blocks of one panel and tile of tokens, and goes through three
 * steps: its weights are made signed bytes; its dots are made; they are scaled. One group's third
 * step is woven into the next one's second and the first of the one after. */
#include <string.h>

#include "kernels/ahead.h"
#include "kernels/amx/amx.h"

enum {
    FEW = 9,          /* tokens below which the vector unit is as fast */
    MAX_BLOCKS = 512, /* of one product; longer ones are left to the vector unit */
    GROUP = 4,        /* blocks */
};

/* Tiles 0 to 3: dots; 4, 5: tokens, 32 bytes of each; 6, 7: 8 rows of a panel, four k's each. */
#define BYTES 64, 64, 64, 64, 32, 32, 64, 64
#define ROWS(n)                                                                                    \
    {                                                                                              \
        1, 0, {0}, {BYTES},                                                                        \
        {                                                                                          \
            n, n, n, n, n, n, 8, 8                                                                 \
        }                                                                                          \
    }
static const tile_config config[SH_LANES] = {
    ROWS(1), ROWS(2),  ROWS(3),  ROWS(4),  ROWS(5),  ROWS(6),  ROWS(7),  ROWS(8),
    ROWS(9), ROWS(10), ROWS(11), ROWS(12), ROWS(13), ROWS(14), ROWS(15), ROWS(16)};

typedef int32_t dots[SH_LANES][SH_LANES];
typedef uint8_t weights[8][64]; /* of one block: 8 rows of a tile */

typedef struct group {
    int n;                      /* blocks */
    bool first, last;           /* of its panel */
    bool fresh;                 /* its weights are not unpacked for an earlier tile of tokens */
    int slice;                  /* of its first block, counted from the first one asked for */
    unsigned ends;              /* bit b: its block b is the last of a slice */
    const uint8_t *w, *scale_w; /* as packed */
    const uint8_t *ask;         /* the part of w whose successors this tile of tokens asks for */
    const char *x;
    float (*scale_x)[SH_LANES];
    tile_sums *level;
    float *y;
    __mmask16 rows;
} group;

typedef struct work {
    _Alignas(64) dots dot[2][GROUP];
    weights w[GROUP];
    tile_sums level[2][5]; /* for each tile of tokens */
    float scale_x[2][MAX_BLOCKS][SH_LANES];
    size_t ldx, ldy, panel_bytes;
    int n_row; /* tokens of a tile */
} work;

/* Block b of a panel as signed bytes. */
typedef void unpack_fn(weights *out, const uint8_t *w, int b);

SH_INLINE void unpack_q8_0(weights *out, const uint8_t *w, int b)
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const uint8_t *p = w + b * 512 + i * 64;
        _mm512_store_si512((*out)[i], _mm512_xor_si512(_mm512_load_si512(p), flip));
    }
}

SH_INLINE void unpack_q4_0(weights *out, const uint8_t *w, int b)
{
    const __m512i nibble = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const uint8_t *p = w + b * 256 + i * 64;
        __m512i v = _mm512_load_si512(p), high = _mm512_srli_epi16(v, 4);
        _mm512_store_si512((*out)[i], _mm512_sub_epi8(_mm512_and_si512(v, nibble), eight));
        _mm512_store_si512((*out)[i + 4], _mm512_sub_epi8(_mm512_and_si512(high, nibble), eight));
    }
}

/* As a float, exactly: a dot is below 2^20. Conversions and additions have ports of their
 * own, so that every other row takes the way by additions: its bits become those of a float of
 * 1.5 * 2^23 more. */
SH_INLINE __m512 as_float(__m512i dot, const bool by_addition)
{
    if (!by_addition) return _mm512_cvtepi32_ps(dot);
    const __m512 far = _mm512_set1_ps(12582912.0f);
    return _mm512_sub_ps(_mm512_castsi512_ps(_mm512_add_epi32(dot, _mm512_castps_si512(far))), far);
}

/* acc[t] += (float)dot * (scale_w * scale_x), for tokens [lo, hi) of one block */
SH_INLINE void add_rows(__m512 *acc, const int lo, const int hi, dots *d, __m512 scale_w,
                        const float *scale_x)
{
#pragma GCC unroll 16
    for (int t = lo; t < hi; t++) {
        __m512 dot = as_float(_mm512_load_si512((*d)[t]), t % 2 == 0);
        acc[t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale_w, _mm512_set1_ps(scale_x[t])), acc[t]);
    }
}

SH_INLINE __m512 scales(const uint8_t *scale_w, int b)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(scale_w + b * 32)));
}

/* Where the sums of a slice gather; see tile_tree. */
SH_INLINE tile_sums *sums_of(tile_sums *level, int slice)
{
    return &level[__builtin_popcount((unsigned)slice)];
}

/* Out of the way: a processor whose other half is busy feels the length of the loop. */
static __attribute__((noinline, cold)) void add_slice(tile_sums *level, int slice)
{
    int depth = (int)(sums_of(level, slice) - level);
    tile_tree(level, &depth, slice);
}

/* If block b of g ends its slice, the sums go to the tree. Returns the slice that goes on. */
SH_INLINE int end_slice(const group *g, const int b, __m512 *acc, int slice)
{
    if (__builtin_expect(!(g->ends >> b & 1), 1)) return slice;
    float(*sums)[SH_LANES] = *sums_of(g->level, slice);
#pragma GCC unroll 16
    for (int t = 0; t < SH_LANES; t++) {
        _mm512_store_ps(sums[t], acc[t]);
        acc[t] = _mm512_setzero_ps();
    }
    add_slice(g->level, slice);
    return slice + 1;
}

/* Block b of u is unpacked if it is fresh, and its part of the blocks to come asked for. */
SH_INLINE void take_block(unpack_fn *unpack, const int ask, work *k, const group *u, const int b)
{
    sh_ask_ahead(u->ask + b * ask, ask);
    if (!u->fresh) return;
    unpack(&k->w[b], u->w, b);
    sh_ask_scales(u->scale_w + b * 32, k->panel_bytes, b);
}

/* Block B: of g it is scaled, of h its dots are made in tile B, of u it is unpacked. `store` an
 * earlier tile, as the processor waits where one is stored right after it was made. */
#define BLOCK(B, tokens, panel, store)                                                             \
    do {                                                                                           \
        __m512 sw = scales(g->scale_w, B);                                                         \
        const float *sx = g->scale_x[B];                                                           \
        add_rows(acc, 0, 1, &now[B], sw, sx);                                                      \
        _tile_zero(B);                                                                             \
        add_rows(acc, 1, 4, &now[B], sw, sx);                                                      \
        store;                                                                                     \
        add_rows(acc, 4, 8, &now[B], sw, sx);                                                      \
        _tile_loadd(tokens, h->x + B * SH_RUN, k->ldx);                                            \
        add_rows(acc, 8, 11, &now[B], sw, sx);                                                     \
        _tile_loadd(panel, k->w[B], 64);                                                           \
        take_block(unpack, ask, k, u, B);                                                          \
        add_rows(acc, 11, 14, &now[B], sw, sx);                                                    \
        _tile_dpbssd(B, tokens, panel);                                                            \
        add_rows(acc, 14, 16, &now[B], sw, sx);                                                    \
        slice = end_slice(g, B, acc, slice);                                                       \
    } while (0)

#define DOTS(B, tokens, panel)                                                                     \
    do {                                                                                           \
        _tile_zero(B);                                                                             \
        _tile_loadd(tokens, h->x + B * SH_RUN, k->ldx);                                            \
        _tile_loadd(panel, k->w[B], 64);                                                           \
        _tile_dpbssd(B, tokens, panel);                                                            \
    } while (0)

/* g is scaled, the dots of h are made, u is unpacked and `ask` bytes a block are asked for. Of a
 * whole group the last two tiles are stored by the step after. */
SH_INLINE void step(unpack_fn *unpack, const int ask, work *k, const group *g, const group *h,
                    const group *u, int parity)
{
    dots *now = k->dot[parity], *next = k->dot[parity ^ 1];
    int slice = g->slice;
    __m512 acc[SH_LANES];
#pragma GCC unroll 16
    for (int t = 0; t < SH_LANES; t++)
        acc[t] = g->first ? _mm512_setzero_ps() : _mm512_load_ps((*sums_of(g->level, slice))[t]);
    if (g->n == GROUP && h->n == GROUP && u->n == GROUP) {
        BLOCK(0, 4, 6, _tile_stored(2, now[2], 64));
        BLOCK(1, 5, 7, _tile_stored(3, now[3], 64));
        BLOCK(2, 4, 6, _tile_stored(0, next[0], 64));
        BLOCK(3, 5, 7, _tile_stored(1, next[1], 64));
    } else { /* one thing after the other */
        if (g->n == GROUP) {
            _tile_stored(2, now[2], 64);
            _tile_stored(3, now[3], 64);
        }
        if (h->n > 0) {
            DOTS(0, 4, 6);
            _tile_stored(0, next[0], 64);
        }
        if (h->n > 1) {
            DOTS(1, 5, 7);
            _tile_stored(1, next[1], 64);
        }
        if (h->n > 2) DOTS(2, 4, 6);
        if (h->n == 3) _tile_stored(2, next[2], 64);
        if (h->n > 3) DOTS(3, 5, 7);
        for (int b = 0; b < u->n; b++) take_block(unpack, ask, k, u, b);
        for (int b = 0; b < g->n; b++) {
            add_rows(acc, 0, 16, &now[b], scales(g->scale_w, b), g->scale_x[b]);
            slice = end_slice(g, b, acc, slice);
        }
    }
    if (g->last) {
        tile_out(g->y, k->ldy, &g->level[0], k->n_row, g->rows);
    } else {
#pragma GCC unroll 16
        for (int t = 0; t < SH_LANES; t++) _mm512_store_ps((*sums_of(g->level, slice))[t], acc[t]);
    }
}

/* The scales of a tile's tokens, block by block. */
static void gather_scales(float (*out)[SH_LANES], const sh_mat *w, const char *x, size_t ldx,
                          int n_tok, int lo, int hi)
{
    for (int t = 0; t < n_tok; t++) {
        const float *scale = (const float *)(x + (size_t)t * ldx + w->kd.kp[w->kd.n_slice]);
        for (int b = lo; b < hi; b++) out[b][t] = scale[b];
    }
}

/* Up to 16 tokens in one tile, or 32 in two, by panels [panel_lo, panel_hi); if there are fewer
 * than 32 two tiles share some tokens. */
SH_INLINE void run(unpack_fn *unpack, const int block_bytes, const int n_tile, float *y, size_t ldy,
                   const sh_mat *w, int panel_lo, int panel_hi, int slice_lo, int slice_hi,
                   const char *x, size_t ldx, int n_tok)
{
    work k;
    int n_row = n_tile == 2 ? SH_LANES : n_tok, at = 0;
    size_t token[2] = {0, (size_t)(n_tok - n_row)}; /* the first of each tile */
    size_t n_block = (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN;
    int lo = w->kd.kp[slice_lo] / SH_RUN, hi = w->kd.kp[slice_hi] / SH_RUN;
    group ring[3] = {{.level = k.level[0]}, {.level = k.level[0]}, {.level = k.level[0]}};
    memset(k.dot, 0, sizeof k.dot);
    memset(k.scale_x, 0, n_row < SH_LANES ? n_block * sizeof k.scale_x[0][0] : 0);
    k.ldx = ldx, k.ldy = ldy, k.panel_bytes = w->panel_bytes, k.n_row = n_row;
    for (int i = 0; i < n_tile; i++)
        gather_scales(k.scale_x[i], w, x + token[i] * ldx, ldx, n_row, lo, hi);
    _tile_loadconfig(&config[n_row - 1]);
#define STEP()                                                                                     \
    (step(unpack, block_bytes / n_tile, &k, &ring[(at + 1) % 3], &ring[(at + 2) % 3],              \
          &ring[at % 3], at & 1),                                                                  \
     at++)
    for (int p = panel_lo; p < panel_hi; p++) {
        const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        const uint8_t *scale_w = panel + n_block * (size_t)block_bytes;
        int s = slice_lo;
        for (int b = lo, n; b < hi; b += n) {
            unsigned ends = 0;
            int slice = s - slice_lo;
            n = hi - b < GROUP ? hi - b : GROUP;
            for (; s < slice_hi && w->kd.kp[s + 1] / SH_RUN <= b + n; s++)
                ends |= 1u << (w->kd.kp[s + 1] / SH_RUN - 1 - b);
            for (int i = 0; i < n_tile; i++) {
                ring[at % 3] = (group){
                    .n = n,
                    .first = b == lo,
                    .last = b + n == hi,
                    .fresh = i == 0,
                    .slice = slice,
                    .ends = ends,
                    .w = panel + b * block_bytes,
                    .scale_w = scale_w + b * 32,
                    .ask = panel + b * block_bytes + i * (GROUP * block_bytes / n_tile),
                    .x = x + token[i] * ldx + b * SH_RUN,
                    .scale_x = k.scale_x[i] + b,
                    .level = k.level[i],
                    .y = y + token[i] * ldy + (size_t)p * SH_LANES,
                    .rows = panel_rows(w, p),
                };
                STEP();
            }
        }
    }
    for (int i = 0; i < 2; i++) { /* what is still on its way */
        ring[at % 3] = (group){.first = true, .level = k.level[0]};
        STEP();
    }
#undef STEP
    _tile_release();
}

static sh_matmul_fn *few_q8_0, *few_q4_0; /* for few tokens: the rows below in the table */

/* Whether the matrix unit takes the product: not if a slice has no blocks. */
static bool fits(const sh_mat *w, int slice_lo, int slice_hi)
{
    if (w->kd.kp[w->kd.n_slice] > MAX_BLOCKS * SH_RUN) return false;
    for (int s = slice_lo; s < slice_hi; s++)
        if (w->kd.kp[s] == w->kd.kp[s + 1]) return false;
    return true;
}

#define MATMUL(name, unpack, block_bytes, few)                                                     \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        int t = 0, most = fits(w, slice_lo, slice_hi) && panel_lo < panel_hi ? n_tok : 0;          \
        for (int n; most - t >= FEW; t += n) {                                                     \
            n = most - t < 2 * SH_LANES ? most - t : 2 * SH_LANES;                                 \
            if (n > SH_LANES)                                                                      \
                run(unpack, block_bytes, 2, y + (size_t)t * ldy, ldy, w, panel_lo, panel_hi,       \
                    slice_lo, slice_hi, (const char *)x + (size_t)t * ldx, ldx, n);                \
            else                                                                                   \
                run(unpack, block_bytes, 1, y + (size_t)t * ldy, ldy, w, panel_lo, panel_hi,       \
                    slice_lo, slice_hi, (const char *)x + (size_t)t * ldx, ldx, n);                \
        }                                                                                          \
        if (t < n_tok)                                                                             \
            few(y + (size_t)t * ldy, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi,               \
                (const char *)x + (size_t)t * ldx, ldx, n_tok - t);                                \
    }
MATMUL(matmul_q8_0, unpack_q8_0, 512, few_q8_0)
MATMUL(matmul_q4_0, unpack_q4_0, 256, few_q4_0)

void sh_matmul_i8_amx(sh_kernels *k)
{
    few_q8_0 = k->matmul[SH_Q8_0][SH_FORM_I8];
    few_q4_0 = k->matmul[SH_Q4_0][SH_FORM_I8];
    k->matmul[SH_Q8_0][SH_FORM_I8] = matmul_q8_0;
    k->matmul[SH_Q4_0][SH_FORM_I8] = matmul_q4_0;
}
