/* Products in bf16 on the matrix unit, for tens of tokens and more: TDPBF16PS is the arithmetic
 * that the contract names. Two tiles of tokens by two panels of outputs are summed at once; a group
 * of panels is turned into bf16 tiles once and then serves all tokens from the second-level cache:
 * its tiles are loaded with the hint that they will not come again soon (TILELOADDT1), so that the
 * first level keeps the tokens. */
#include "kernels/amx/amx.h"

enum {
    TILE_BYTES = 1024,         /* 32 k's of 16 outputs, or of 16 tokens */
    GROUP_BYTES = 1024 * 1024, /* bf16 tiles that are kept at hand: half of a 2 MiB cache */
    PART_BYTES =
        64 * 1024, /* of one panel, in one go; more k's are taken in parts, if slices allow */
    MANY = 512,    /* tokens that are taken together, if there are parts, */
    PANELS = 32,   /* and panels */
    CHUNK = 256,   /* k's that are taken together where there are many slices, */
    SQUARES = 8,   /* and panels */
    FEW = 8,       /* tokens below which the vector unit is as fast */
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

/* The same number of tokens in both tiles: for the last ones, when they are 16 or fewer. */
#define BOTH(m)                                                                                    \
    {                                                                                              \
        .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64},                                   \
        .rows = {m, m, m, m, m, m, 16, 16},                                                        \
    }
static const tile_config both[17] = {BOTH(16), BOTH(1),  BOTH(2),  BOTH(3),  BOTH(4),  BOTH(5),
                                     BOTH(6),  BOTH(7),  BOTH(8),  BOTH(9),  BOTH(10), BOTH(11),
                                     BOTH(12), BOTH(13), BOTH(14), BOTH(15), BOTH(16)};

/* One panel's k's as tiles, [kp/32][1024 bytes]; `room` is where they are made if they must be. */
typedef const uint8_t *tiles_fn(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                int k_hi);

static const uint8_t *tiles_bf16(uint8_t *room, const sh_mat *w, const uint8_t *panel, int k_lo,
                                 int k_hi)
{
    (void)room, (void)w, (void)k_hi;
    return panel + (size_t)k_lo * 32; /* packed just so */
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
        for (int g = 0; g < 4; g++) {
            __m512i v = _mm512_load_si512(panel + (size_t)b * 256 + g * 64);
            dequantise_four(out + g * 128, _mm512_and_si512(v, nibble), d, zero);
            dequantise_four(out + 512 + g * 128, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble),
                            d, zero);
        }
    }
    return room;
}

/* A block of outputs under way: n tokens, of which the second tile has m, by one or two panels. */
typedef struct job {
    float *y; /* its first output */
    size_t ldy;
    __mmask16 rows[2]; /* the outputs that each panel has */
    int n, m;
    const char *x; /* its first token */
    size_t ldx;
    const uint8_t *b[2]; /* the panels' tiles */
    bool add;            /* the sums go onto what y holds: the subtree to their left */
    const char *next;    /* n_next tokens that come later, to be brought nearer meanwhile */
    int n_next;
} job;

/* Tile number i (0, 1: the first 16 tokens by both panels; 2, 3: the next m) goes to y. */
SH_INLINE void put_tile(const job *j, const bool two_tiles, int i, tile_sums *sums)
{
    float *y = j->y + (two_tiles && i >= 2 ? 16 * j->ldy : 0) + (i & 1) * SH_LANES;
    int n = i < 2 ? 16 : j->m;
    __mmask16 rows = j->rows[i & 1];
    if (j->add)
        for (int t = 0; t < n; t++)
            _mm512_store_ps((*sums)[t],
                            _mm512_add_ps(_mm512_maskz_loadu_ps(rows, y + (size_t)t * j->ldy),
                                          _mm512_load_ps((*sums)[t])));
    tile_out(y, j->ldy, sums, n, rows);
}

/* One or two panels by one or two tiles of tokens, all slices. */
SH_INLINE void block(const bool two_tiles, const bool two_panels, const job *j, const sh_mat *w,
                     int slice_lo, int slice_hi)
{
    _Alignas(64)
        tile_sums level[4][5]; /* of each tile: roots of the canonical tree's finished subtrees */
    const bool use[4] = {two_tiles, two_tiles && two_panels, true, two_panels};
    const char *x1 = two_tiles ? j->x + 16 * j->ldx : j->x; /* the second tile's tokens */
    const uint8_t *b0 = j->b[0], *b1 = j->b[1];
    int ldx = (int)j->ldx, depth = 0, n_run = (w->kd.kp[slice_hi] - w->kd.kp[slice_lo]) / SH_RUN;
    int per_run = n_run ? (j->n + n_run - 1) / n_run : 0, line = 0;
    for (int s = slice_lo; s < slice_hi; s++) {
        if (use[0]) _tile_zero(0);
        if (use[1]) _tile_zero(1);
        _tile_zero(2);
        if (use[3]) _tile_zero(3);
        for (int k = w->kd.kp[s]; k < w->kd.kp[s + 1];
             k += SH_RUN, b0 += TILE_BYTES, b1 += TILE_BYTES) {
            _tile_stream_loadd(6, b0, 64);
            if (two_tiles) _tile_loadd(4, j->x + (size_t)k * 2, ldx);
            if (two_tiles) _tile_dpbf16ps(0, 4, 6);
            if (two_panels) _tile_stream_loadd(7, b1, 64);
            if (two_tiles && two_panels) _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x1 + (size_t)k * 2, ldx);
            _tile_dpbf16ps(2, 5, 6);
            if (two_panels) _tile_dpbf16ps(3, 5, 7);
            /* the lines of y that will be written come while the sums are made */
            for (int i = 0; i < per_run && line < j->n; i++, line++) {
                __builtin_prefetch(j->y + (size_t)line * j->ldy, 1);
                if (two_panels) __builtin_prefetch(j->y + (size_t)line * j->ldy + SH_LANES, 1);
            }
            for (int r = 0; r < j->n_next; r++)
                _mm_prefetch(j->next + (size_t)r * j->ldx + (size_t)k * 2, _MM_HINT_T1);
        }
        if (slice_hi - slice_lo == 1 && !j->add && j->rows[0] == 0xffff &&
            (!two_panels || j->rows[1] == 0xffff)) {
            /* one slice and whole panels: nothing to add, nothing to leave out */
            int ld = (int)(j->ldy * sizeof(float));
            float *y1 = two_tiles ? j->y + 16 * j->ldy : j->y;
            if (use[0]) _tile_stored(0, j->y, ld);
            if (use[1]) _tile_stored(1, j->y + 16, ld);
            _tile_stored(2, y1, ld);
            if (use[3]) _tile_stored(3, y1 + 16, ld);
            return;
        }
        if (use[0]) _tile_stored(0, level[0][depth], 64);
        if (use[1]) _tile_stored(1, level[1][depth], 64);
        _tile_stored(2, level[2][depth], 64);
        if (use[3]) _tile_stored(3, level[3][depth], 64);
        int d = depth;
        for (int i = 0; i < 4; i++)
            if (use[i]) d = depth, tile_tree(level[i], &d, s - slice_lo);
        depth = d;
    }
    for (int i = 0; i < 4; i++)
        if (use[i]) put_tile(j, two_tiles, i, &level[i][0]);
}

/* All tokens by a group of panels whose tiles are ready. */
static void group(bool add, float *y, size_t ldy, const sh_mat *w, int panel_lo, int n_panel,
                  int slice_lo, int slice_hi, const uint8_t **tiles, const char *x, size_t ldx,
                  int n_tok)
{
    int loaded = -1, n_pair = (n_panel + 1) / 2;
    for (int t = 0, n; t < n_tok; t += n) {
        bool two = n_tok - t > 16;
        n = two && n_tok - t > 32 ? 32 : n_tok - t;
        job j = {.add = add,
                 .ldy = ldy,
                 .n = n,
                 .m = two ? n - 16 : n,
                 .x = x + (size_t)t * ldx,
                 .ldx = ldx};
        int left = n_tok - t - n < 32 ? n_tok - t - n : 32; /* tokens of the next block */
        if (j.m != loaded) _tile_loadconfig(&config[j.m]);
        loaded = j.m;
        for (int p = 0; p < n_panel; p += 2) {
            bool pair = p + 1 < n_panel;
            int next = left * (p / 2) / n_pair;
            j.y = y + (size_t)t * ldy + (size_t)p * SH_LANES;
            j.rows[0] = panel_rows(w, panel_lo + p);
            j.rows[1] = pair ? panel_rows(w, panel_lo + p + 1) : 0;
            j.b[0] = tiles[p];
            j.b[1] = tiles[pair ? p + 1 : p];
            j.next = j.x + (size_t)(n + next) * ldx;
            j.n_next = left * (p / 2 + 1) / n_pair - next;
            if (two && pair)
                block(true, true, &j, w, slice_lo, slice_hi);
            else if (two)
                block(true, false, &j, w, slice_lo, slice_hi);
            else if (pair)
                block(false, true, &j, w, slice_lo, slice_hi);
            else
                block(false, false, &j, w, slice_lo, slice_hi);
        }
    }
    _tile_release();
}

/* A run of panels and slices by all tokens; y: the first panel's first output. */
static void part(tiles_fn *make, uint8_t *room, bool add, float *y, size_t ldy, const sh_mat *w,
                 int panel_lo, int panel_hi, int slice_lo, int slice_hi, const char *x, size_t ldx,
                 int n_tok)
{
    const uint8_t *tiles[PANELS];
    int k_lo = w->kd.kp[slice_lo], k_hi = w->kd.kp[slice_hi];
    size_t bytes = (size_t)(k_hi - k_lo) * 32; /* of one panel */
    int at_once = bytes * PANELS <= GROUP_BYTES ? PANELS : (int)(GROUP_BYTES / bytes) & ~1;
    for (int p = panel_lo, n; p < panel_hi; p += n) {
        n = panel_hi - p < at_once ? panel_hi - p : at_once;
        for (int i = 0; i < n; i++)
            tiles[i] = make(room + (size_t)i * bytes, w, w->data + (size_t)(p + i) * w->panel_bytes,
                            k_lo, k_hi);
        group(add, y + (size_t)(p - panel_lo) * SH_LANES, ldy, w, p, n, slice_lo, slice_hi, tiles,
              x, ldx, n_tok);
    }
}

/* Four parts, each a quarter of the slices: y = (0 + 1) + (2 + 3), the second pair by way of
 * `half`. */
static void four_parts(tiles_fn *make, uint8_t *room, float *y, size_t ldy, const sh_mat *w,
                       int panel_lo, int panel_hi, int slice_lo, int slice_hi, const char *x,
                       size_t ldx, int n_tok)
{
    _Alignas(64) float half[MANY][PANELS * SH_LANES];
    int step = (slice_hi - slice_lo) / 4;
    for (int q = 0; q < 4; q++)
        part(make, room, q & 1, q < 2 ? y : half[0], q < 2 ? ldy : PANELS * SH_LANES, w, panel_lo,
             panel_hi, slice_lo + q * step, slice_lo + (q + 1) * step, x, ldx, n_tok);
    for (int t = 0; t < n_tok; t++)
        for (int p = panel_lo; p < panel_hi; p++) {
            float *out = y + (size_t)t * ldy + (size_t)(p - panel_lo) * SH_LANES;
            __mmask16 rows = panel_rows(w, p);
            __m512 left = _mm512_maskz_loadu_ps(rows, out);
            __m512 right = _mm512_load_ps(&half[t][(p - panel_lo) * SH_LANES]);
            _mm512_mask_storeu_ps(out, rows, _mm512_add_ps(left, right));
        }
}

/* ---- many k's, weights that are tiles already ---- */

/* A square of 32 by 32 outputs whose sums come from and go to `at`. */
typedef struct square {
    const char *x[2]; /* its first and its 17th token at the chunk's first k */
    size_t ldx;
    const uint8_t *b[2]; /* the panels' tiles of the chunk */
    int n_run;           /* runs of k's in the chunk */
    tile_sums *at;       /* (4) */
    bool first;          /* the sums begin here */
} square;

SH_INLINE void square_chunk(const square *q)
{
    const char *x0 = q->x[0], *x1 = q->x[1];
    const uint8_t *b0 = q->b[0], *b1 = q->b[1];
    if (q->first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, q->at[0], 64);
        _tile_loadd(1, q->at[1], 64);
        _tile_loadd(2, q->at[2], 64);
        _tile_loadd(3, q->at[3], 64);
    }
    for (int i = 0; i < q->n_run;
         i++, x0 += SH_RUN * 2, x1 += SH_RUN * 2, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        _tile_stream_loadd(6, b0, 64);
        _tile_loadd(4, x0, q->ldx);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x1, q->ldx);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, q->at[0], 64);
    _tile_stored(1, q->at[1], 64);
    _tile_stored(2, q->at[2], 64);
    _tile_stored(3, q->at[3], 64);
}

/* left += right, as the canonical tree adds */
SH_INLINE void add_square(tile_sums *left, tile_sums *right)
{
    float *l = left[0][0], *r = right[0][0];
    for (int i = 0; i < 4 * SH_LANES * SH_LANES; i += SH_LANES)
        _mm512_store_ps(l + i, _mm512_add_ps(_mm512_load_ps(l + i), _mm512_load_ps(r + i)));
}

/* A line of y is written as a whole without being read first, where it is one. */
SH_INLINE void put_past_caches(float *y, __mmask16 rows, __m512 v)
{
    if (rows == 0xffff && (uintptr_t)y % 64 == 0)
        _mm512_stream_ps(y, v);
    else
        _mm512_mask_storeu_ps(y, rows, v);
}

/* Up to 32 tokens by up to SQUARES panels; tiles: those of all k's from the first slice's first.
 * Before a slice's last chunk is over its sums stand in the level of the tree that is free; then
 * they are added to the subtrees to their left. */
static void squares(float *y, size_t ldy, const sh_mat *w, int panel, int n_panel, int slice_lo,
                    int slice_hi, const uint8_t **tiles, const char *x, size_t ldx, int n_tok)
{
    _Alignas(64)
        tile_sums level[4][SQUARES / 2][4]; /* 8 slices: 3 subtrees wait, a fourth is made */
    int depth = 0, k_lo = w->kd.kp[slice_lo];
    for (int s = slice_lo; s < slice_hi; s++) {
        int k = w->kd.kp[s], slice_end = w->kd.kp[s + 1], n_add = 0;
        while ((s - slice_lo) >> n_add & 1) n_add++;
        do {
            int end = k + CHUNK < slice_end ? k + CHUNK : slice_end;
            for (int p = 0; p < n_panel; p += 2) {
                const char *first = x + (size_t)k * 2;
                size_t at = (size_t)(k - k_lo) * 32;
                square_chunk(
                    &(square){.x = {first, n_tok > 16 ? first + 16 * ldx : first},
                              .ldx = ldx,
                              .b = {tiles[p] + at, tiles[p + 1 < n_panel ? p + 1 : p] + at},
                              .n_run = (end - k) / SH_RUN,
                              .at = level[depth][p / 2],
                              .first = k == w->kd.kp[s]});
                for (int i = 0; end == slice_end && i < n_add; i++)
                    add_square(level[depth - i - 1][p / 2], level[depth - i][p / 2]);
            }
            k = end;
        } while (k < slice_end);
        depth += 1 - n_add;
    }
    for (int p = 0; p < n_panel; p++)
        for (int t = 0; t < n_tok; t++)
            put_past_caches(y + (size_t)t * ldy + (size_t)p * SH_LANES, panel_rows(w, panel + p),
                            _mm512_load_ps(level[0][p / 2][t / 16 * 2 + p % 2][t % 16]));
}

/* SQUARES panels stay in the second-level cache while all tokens pass by. */
static void many_slices(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,
                        int slice_lo, int slice_hi, const char *x, size_t ldx, int n_tok)
{
    int k_lo = w->kd.kp[slice_lo];
    for (int p = panel_lo, n; p < panel_hi; p += n) {
        const uint8_t *tiles[SQUARES];
        n = panel_hi - p < SQUARES ? panel_hi - p : SQUARES;
        for (int i = 0; i < n; i++)
            tiles[i] = tiles_bf16(NULL, w, w->data + (size_t)(p + i) * w->panel_bytes, k_lo, 0);
        for (int t = 0; t < n_tok; t += 32) {
            int n_t = n_tok - t < 32 ? n_tok - t : 32;
            if (t == 0 || n_t < 32) _tile_loadconfig(n_t > 16 ? &config[n_t - 16] : &both[n_t]);
            squares(y + (size_t)t * ldy + (size_t)(p - panel_lo) * SH_LANES, ldy, w, p, n, slice_lo,
                    slice_hi, tiles, x + (size_t)t * ldx, ldx, n_t);
        }
        _tile_release();
    }
    _mm_sfence(); /* what went past the caches is seen by other threads */
}

/* Not inlined: its buffer is only on the stack while it runs. */
static __attribute__((noinline)) void run(tiles_fn *make, float *y, size_t ldy, const sh_mat *w,
                                          int panel_lo, int panel_hi, int slice_lo, int slice_hi,
                                          const char *x, size_t ldx, int n_tok)
{
    _Alignas(64) uint8_t room[GROUP_BYTES];
    size_t bytes = (size_t)(w->kd.kp[slice_hi] - w->kd.kp[slice_lo]) * 32; /* of one panel */
    bool fits = bytes <= GROUP_BYTES / 2; /* two panels in the room */
    if (bytes <= PART_BYTES || (slice_hi - slice_lo < 4 && fits)) {
        part(make, room, false, y + (size_t)panel_lo * SH_LANES, ldy, w, panel_lo, panel_hi,
             slice_lo, slice_hi, x, ldx, n_tok);
        return;
    }
    if (make == tiles_bf16) {
        many_slices(y + (size_t)panel_lo * SH_LANES, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi,
                    x, ldx, n_tok);
        return;
    }
    for (int t = 0; t < n_tok; t += MANY)
        for (int p = panel_lo; p < panel_hi; p += PANELS)
            four_parts(make, room, y + (size_t)t * ldy + (size_t)p * SH_LANES, ldy, w, p,
                       p + PANELS < panel_hi ? p + PANELS : panel_hi, slice_lo, slice_hi,
                       x + (size_t)t * ldx, ldx, n_tok - t < MANY ? n_tok - t : MANY);
}

static sh_matmul_fn *few_bf16, *few_q8_0,
    *few_q4_0; /* for few tokens: the rows below in the table */

#define MATMUL(name, make, few)                                                                    \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        size_t bytes = (size_t)(w->kd.kp[slice_hi] - w->kd.kp[slice_lo]) * 32;                     \
        if (n_tok < FEW || (make != tiles_bf16 && bytes > GROUP_BYTES / 2))                        \
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
