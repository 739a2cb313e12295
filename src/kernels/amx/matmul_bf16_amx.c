/* Products in bf16 on the matrix unit, for tens of tokens and more: TDPBF16PS is the arithmetic
 * that the contract names. Two tiles of tokens by two panels of outputs are summed at once; a group
 * of panels is turned into bf16 tiles once and then serves all tokens from the second-level cache:
 * its tiles are loaded with the hint that they will not come again soon (TILELOADDT1), so that the
 * first level keeps the tokens. */
#include <string.h>

#include "kernels/ahead.h"
#include "kernels/amx/amx.h"

enum {
    TILE_BYTES = 1024,         /* 32 k's of 16 outputs, or of 16 tokens */
    GROUP_BYTES = 1024 * 1024, /* bf16 tiles that are kept at hand: half of a 2 MiB cache */
    PART_BYTES = 64 * 1024,    /* of one panel, in one go; more k's are taken in parts, */
    MANY = 512,                /* of so many tokens */
    PANELS = 32,               /* and panels */
    FEW = 8,                   /* tokens below which the vector unit is as fast */
};

/* Tiles: 0, 1 = the first 16 tokens by two panels; 2, 3 = the next m tokens by the same; 4, 5 = the
 * tokens; 6, 7 = the panels. */
#define CONFIG(m)                                                                                  \
    {                                                                                              \
        .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64},                                   \
        .rows = {16, 16, m, m, 16, m, 16, 16},                                                     \
    }
static const tile_config config[17] = {CONFIG(16), CONFIG(1),  CONFIG(2),  CONFIG(3),  CONFIG(4),
                                       CONFIG(5),  CONFIG(6),  CONFIG(7),  CONFIG(8),  CONFIG(9),
                                       CONFIG(10), CONFIG(11), CONFIG(12), CONFIG(13), CONFIG(14),
                                       CONFIG(15), CONFIG(16)};

/* One panel's k's as tiles, [kp/32][1024 bytes]; `room` is where they are made if they must be. */
typedef const uint8_t *tiles_fn(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                int k_hi);

static const uint8_t *tiles_bf16(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                 int k_hi)
{
    (void)room, (void)w, (void)k_hi;
    return panel + (size_t)k_lo * 32; /* packed just so */
}

static const uint8_t *tiles_copied(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                   int k_hi)
{
    (void)w;
    return memcpy(room, panel + (size_t)k_lo * 32, (size_t)(k_hi - k_lo) * 32);
}

/* Four k's of 16 outputs as bytes become two rows of a tile, pairs of bf16(d (q - zero)).
 * fma(q, d, -zero d) is that product rounded once, since zero is a power of two. */
SH_INLINE void dequantise_four(uint8_t *out, __m512i v, __m512 d, __m512 minus_zero_d)
{
    const __m512i byte = _mm512_set1_epi32(255);
    __m512 f0 = _mm512_cvtepi32_ps(_mm512_and_si512(v, byte));
    __m512 f1 = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 8), byte));
    __m512 f2 = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 16), byte));
    __m512 f3 = _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 24));
    f0 = _mm512_fmadd_ps(f0, d, minus_zero_d);
    f1 = _mm512_fmadd_ps(f1, d, minus_zero_d);
    f2 = _mm512_fmadd_ps(f2, d, minus_zero_d);
    f3 = _mm512_fmadd_ps(f3, d, minus_zero_d);
    pair_row(out, f0, f1);
    pair_row(out + 64, f2, f3);
}

SH_INLINE __m512 scales(const uint8_t *first, int b)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(first + (size_t)b * 32)));
}

static const uint8_t *tiles_q8_0(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                 int k_hi)
{
    const uint8_t *scale = panel + (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN * 512;
    uint8_t *out = room;
    for (int b = k_lo / SH_RUN; b < k_hi / SH_RUN; b++) {
        __m512 d = scales(scale, b), zero = _mm512_mul_ps(d, _mm512_set1_ps(-128.0f));
        sh_ask_ahead(panel + (size_t)b * 512, 512);
        for (int g = 0; g < 8; g++, out += 128)
            dequantise_four(out, _mm512_load_si512(panel + (size_t)b * 512 + g * 64), d, zero);
    }
    return room;
}

static const uint8_t *tiles_q4_0(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                 int k_hi)
{
    const uint8_t *scale = panel + (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN * 256;
    const __m512i nibble = _mm512_set1_epi8(15);
    uint8_t *out = room;
    for (int b = k_lo / SH_RUN; b < k_hi / SH_RUN; b++, out += TILE_BYTES) {
        __m512 d = scales(scale, b), zero = _mm512_mul_ps(d, _mm512_set1_ps(-8.0f));
        sh_ask_ahead(panel + (size_t)b * 256, 256);
        for (int g = 0; g < 4; g++) {
            __m512i v = _mm512_load_si512(panel + (size_t)b * 256 + g * 64);
            dequantise_four(out + g * 128, _mm512_and_si512(v, nibble), d, zero);
            dequantise_four(out + 512 + g * 128, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble),
                            d, zero);
        }
    }
    return room;
}

/* What the sums of k's do with what y holds. */
typedef enum how_put {
    SET,  /* they replace it */
    ADD,  /* they are added to it: the subtree to their left */
    CARRY /* they go on from it: the k's before these of the same slice */
} how_put;

/* Whole slices, or k's of one slice. */
typedef struct ks {
    int slice_lo, slice_hi, k_lo, k_hi;
} ks;

static size_t bytes_of(ks k)
{
    return (size_t)(k.k_hi - k.k_lo) * 32; /* of one panel's tiles */
}

/* Tokens by panels. */
typedef struct area {
    tiles_fn *make;
    uint8_t *room; /* GROUP_BYTES */
    const sh_mat *w;
    int panel_lo, panel_hi, n_tok;
    const char *x;
    size_t ldx;
} area;

/* A block of outputs under way: n tokens, of which the second tile has m, by one or two panels. */
typedef struct job {
    float *y; /* its first output */
    size_t ldy;
    how_put how;
    __mmask16 rows[2]; /* the outputs that each panel has */
    int n, m;
    const char *x; /* its first token */
    size_t ldx;
    const uint8_t *b[2]; /* the panels' tiles */
    const char *next;    /* n_next tokens that come later, to be brought nearer meanwhile */
    int n_next;
} job;

/* Where tile number i (0, 1: the first 16 tokens by both panels; 2, 3: the next m) is in y. */
SH_INLINE float *tile_at(const job *j, const bool two_tiles, int i)
{
    return j->y + (two_tiles && i >= 2 ? 16 * j->ldy : 0) + (i & 1) * SH_LANES;
}

/* A tile goes to y. */
SH_INLINE void put_tile(const job *j, const bool two_tiles, int i, tile_sums *sums)
{
    float *y = tile_at(j, two_tiles, i);
    int n = i < 2 ? 16 : j->m;
    __mmask16 rows = j->rows[i & 1];
    for (int t = 0; j->how == ADD && t < n; t++)
        _mm512_store_ps((*sums)[t],
                        _mm512_add_ps(_mm512_maskz_loadu_ps(rows, y + (size_t)t * j->ldy),
                                      _mm512_load_ps((*sums)[t])));
    tile_out(y, j->ldy, sums, n, rows);
}

/* What y has of a tile. */
SH_INLINE void get_tile(const job *j, const bool two_tiles, int i, tile_sums *sums)
{
    const float *y = tile_at(j, two_tiles, i);
    int n = i < 2 ? 16 : j->m;
    for (int t = 0; t < n; t++)
        _mm512_store_ps((*sums)[t], _mm512_maskz_loadu_ps(j->rows[i & 1], y + (size_t)t * j->ldy));
}

/* One or two panels by one or two tiles of tokens. */
SH_INLINE void block(const bool two_tiles, const bool two_panels, const job *j, const sh_mat *w,
                     ks at)
{
    _Alignas(64)
        tile_sums level[4][5]; /* of each tile: roots of the canonical tree's finished subtrees */
    const bool use[4] = {two_tiles, two_tiles && two_panels, true, two_panels};
    const char *x1 = two_tiles ? j->x + 16 * j->ldx : j->x; /* the second tile's tokens */
    const uint8_t *b0 = j->b[0], *b1 = j->b[1];
    int ldx = (int)j->ldx, depth = 0, n_run = (at.k_hi - at.k_lo) / SH_RUN;
    int per_run = n_run ? (j->n + n_run - 1) / n_run : 0, line = 0;
    for (int s = at.slice_lo; s < at.slice_hi; s++) {
        int lo = s == at.slice_lo ? at.k_lo : w->kd.kp[s];
        int hi = s + 1 == at.slice_hi ? at.k_hi : w->kd.kp[s + 1];
        if (j->how == CARRY) {
            for (int i = 0; i < 4; i++)
                if (use[i]) get_tile(j, two_tiles, i, &level[i][0]);
            if (use[0]) _tile_loadd(0, level[0][0], 64);
            if (use[1]) _tile_loadd(1, level[1][0], 64);
            _tile_loadd(2, level[2][0], 64);
            if (use[3]) _tile_loadd(3, level[3][0], 64);
        } else {
            if (use[0]) _tile_zero(0);
            if (use[1]) _tile_zero(1);
            _tile_zero(2);
            if (use[3]) _tile_zero(3);
        }
        for (int k = lo; k < hi; k += SH_RUN, b0 += TILE_BYTES, b1 += TILE_BYTES) {
            /* loads first: beside a busy sibling thread each change between loads and
             * multiplications costs as much as a quarter of a load */
            _tile_stream_loadd(6, b0, 64);
            if (two_panels) _tile_stream_loadd(7, b1, 64);
            if (two_tiles) _tile_loadd(4, j->x + (size_t)k * 2, ldx);
            _tile_loadd(5, x1 + (size_t)k * 2, ldx);
            if (two_tiles) _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
            if (two_panels) _tile_dpbf16ps(3, 5, 7);
            if (two_tiles && two_panels) _tile_dpbf16ps(1, 4, 7);
            /* the lines of y that will be written come while the sums are made */
            for (int i = 0; i < per_run && line < j->n; i++, line++) {
                __builtin_prefetch(j->y + (size_t)line * j->ldy, 1);
                if (two_panels) __builtin_prefetch(j->y + (size_t)line * j->ldy + SH_LANES, 1);
            }
            for (int r = 0; r < j->n_next; r++)
                _mm_prefetch(j->next + (size_t)r * j->ldx + (size_t)k * 2, _MM_HINT_T1);
        }
        if (at.slice_hi - at.slice_lo == 1 && j->how != ADD && j->rows[0] == 0xffff &&
            (!two_panels || j->rows[1] == 0xffff)) {
            /* one slice and whole panels: nothing to add, nothing to leave out */
            int ld = (int)(j->ldy * sizeof(float));
            if (use[0]) _tile_stored(0, tile_at(j, two_tiles, 0), ld);
            if (use[1]) _tile_stored(1, tile_at(j, two_tiles, 1), ld);
            _tile_stored(2, tile_at(j, two_tiles, 2), ld);
            if (use[3]) _tile_stored(3, tile_at(j, two_tiles, 3), ld);
            return;
        }
        if (use[0]) _tile_stored(0, level[0][depth], 64);
        if (use[1]) _tile_stored(1, level[1][depth], 64);
        _tile_stored(2, level[2][depth], 64);
        if (use[3]) _tile_stored(3, level[3][depth], 64);
        int d = depth;
        for (int i = 0; i < 4; i++)
            if (use[i]) d = depth, tile_tree(level[i], &d, s - at.slice_lo);
        depth = d;
    }
    for (int i = 0; i < 4; i++)
        if (use[i]) put_tile(j, two_tiles, i, &level[i][0]);
}

/* All tokens by the n_panel panels from panel_lo on, whose tiles are ready. */
static void group(const area *a, how_put how, float *y, size_t ldy, ks k, int panel_lo, int n_panel,
                  const uint8_t **tiles)
{
    int loaded = -1, n_pair = (n_panel + 1) / 2;
    for (int t = 0, n; t < a->n_tok; t += n) {
        bool two = a->n_tok - t > 16;
        n = two && a->n_tok - t > 32 ? 32 : a->n_tok - t;
        job j = {.how = how,
                 .ldy = ldy,
                 .n = n,
                 .m = two ? n - 16 : n,
                 .x = a->x + (size_t)t * a->ldx,
                 .ldx = a->ldx};
        int left = a->n_tok - t - n < 32 ? a->n_tok - t - n : 32; /* tokens of the next block */
        if (j.m != loaded) _tile_loadconfig(&config[j.m]);
        loaded = j.m;
        for (int p = 0; p < n_panel; p += 2) {
            bool pair = p + 1 < n_panel;
            int next = left * (p / 2) / n_pair;
            j.y = y + (size_t)t * ldy + (size_t)p * SH_LANES;
            j.rows[0] = panel_rows(a->w, panel_lo + p);
            j.rows[1] = pair ? panel_rows(a->w, panel_lo + p + 1) : 0;
            j.b[0] = tiles[p];
            j.b[1] = tiles[pair ? p + 1 : p];
            j.next = j.x + (size_t)(n + next) * a->ldx;
            j.n_next = left * (p / 2 + 1) / n_pair - next;
            if (two && pair)
                block(true, true, &j, a->w, k);
            else if (two)
                block(true, false, &j, a->w, k);
            else if (pair)
                block(false, true, &j, a->w, k);
            else
                block(false, false, &j, a->w, k);
        }
    }
    _tile_release();
}

/* All of the area in one go, for k's whose tiles fit; y: its first output. */
static void part(const area *a, how_put how, float *y, size_t ldy, ks k)
{
    const uint8_t *tiles[PANELS];
    size_t bytes = bytes_of(k);
    int at_once = bytes * PANELS <= GROUP_BYTES ? PANELS : (int)(GROUP_BYTES / bytes) & ~1;
    for (int p = a->panel_lo, n; p < a->panel_hi; p += n) {
        n = a->panel_hi - p < at_once ? a->panel_hi - p : at_once;
        for (int i = 0; i < n; i++)
            tiles[i] = a->make(a->room + (size_t)i * bytes, a->w,
                               a->w->data + (size_t)(p + i) * a->w->panel_bytes, k.k_lo, k.k_hi);
        group(a, how, y + (size_t)(p - a->panel_lo) * SH_LANES, ldy, k, p, n, tiles);
    }
}

static void add_parts(const area *a, float *y, size_t ldy, ks k);

/* Any number of k's, for up to MANY tokens and PANELS panels: slices are halved as the canonical
 * tree is until their tiles fit, and one that does not is taken in parts. */
static void parts(const area *a, float *y, size_t ldy, ks k)
{
    if (bytes_of(k) <= PART_BYTES) {
        part(a, SET, y, ldy, k);
    } else if (k.slice_hi - k.slice_lo == 1) {
        for (int lo = k.k_lo, step = PART_BYTES / 32; lo < k.k_hi; lo += step) {
            int hi = lo + step < k.k_hi ? lo + step : k.k_hi;
            part(a, lo == k.k_lo ? SET : CARRY, y, ldy, (ks){k.slice_lo, k.slice_hi, lo, hi});
        }
    } else {
        int mid = (k.slice_lo + k.slice_hi) / 2, k_mid = a->w->kd.kp[mid];
        ks right = {mid, k.slice_hi, k_mid, k.k_hi};
        parts(a, y, ldy, (ks){k.slice_lo, mid, k.k_lo, k_mid});
        if (bytes_of(right) <= PART_BYTES)
            part(a, ADD, y, ldy, right);
        else
            add_parts(a, y, ldy, right);
    }
}

/* The same, added to y, by way of a buffer. Not inlined: that is on the stack only where it is
 * needed. */
static __attribute__((noinline)) void add_parts(const area *a, float *y, size_t ldy, ks k)
{
    _Alignas(64) float sums[MANY][PANELS * SH_LANES];
    parts(a, sums[0], PANELS * SH_LANES, k);
    for (int t = 0; t < a->n_tok; t++)
        for (int p = a->panel_lo; p < a->panel_hi; p++) {
            float *out = y + (size_t)t * ldy + (size_t)(p - a->panel_lo) * SH_LANES;
            __mmask16 rows = panel_rows(a->w, p);
            __m512 left = _mm512_maskz_loadu_ps(rows, out);
            __m512 right = _mm512_load_ps(&sums[t][(p - a->panel_lo) * SH_LANES]);
            _mm512_mask_storeu_ps(out, rows, _mm512_add_ps(left, right));
        }
}

/* Not inlined: its buffer is only on the stack while it runs. */
static __attribute__((noinline)) void run(tiles_fn *make, float *y, size_t ldy, const sh_mat *w,
                                          int panel_lo, int panel_hi, int slice_lo, int slice_hi,
                                          const char *x, size_t ldx, int n_tok)
{
    _Alignas(64) uint8_t room[GROUP_BYTES];
    ks k = {slice_lo, slice_hi, w->kd.kp[slice_lo], w->kd.kp[slice_hi]};
    area all = {make, room, w, panel_lo, panel_hi, n_tok, x, ldx};
    if (bytes_of(k) <= PART_BYTES) {
        part(&all, SET, y + (size_t)panel_lo * SH_LANES, ldy, k);
        return;
    }
    /* parts of panels that are that far apart would share the same lines of the cache */
    if (make == tiles_bf16 && w->panel_bytes % PART_BYTES == 0) all.make = tiles_copied;
    for (int t = 0; t < n_tok; t += MANY)
        for (int p = panel_lo; p < panel_hi; p += PANELS) {
            area a = all;
            a.panel_lo = p;
            a.panel_hi = p + PANELS < panel_hi ? p + PANELS : panel_hi;
            a.n_tok = n_tok - t < MANY ? n_tok - t : MANY;
            a.x = x + (size_t)t * ldx;
            parts(&a, y + (size_t)t * ldy + (size_t)p * SH_LANES, ldy, k);
        }
}

static sh_matmul_fn *few_bf16, *few_q8_0,
    *few_q4_0; /* for few tokens: the rows below in the table */

#define MATMUL(name, make, few)                                                                    \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        if (n_tok < FEW)                                                                           \
            few(SH_MATMUL_ARGS);                                                                   \
        else                                                                                       \
            run(make, SH_MATMUL_ARGS);                                                             \
    }
MATMUL(matmul_bf16, tiles_bf16, few_bf16)
MATMUL(matmul_q8_0_bf16, tiles_q8_0, few_q8_0)
MATMUL(matmul_q4_0_bf16, tiles_q4_0, few_q4_0)

void sh_matmul_bf16_amx(sh_kernels *k)
{
    few_bf16 = k->matmul[SH_BF16][SH_FORM_BF16];
    few_q8_0 = k->matmul[SH_Q8_0][SH_FORM_BF16];
    few_q4_0 = k->matmul[SH_Q4_0][SH_FORM_BF16];
    k->matmul[SH_BF16][SH_FORM_BF16] = matmul_bf16;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = matmul_q8_0_bf16;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = matmul_q4_0_bf16;
}
