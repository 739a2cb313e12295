/* Products of many tokens, a chunk of k's at a time: its activations are unpacked once for a block
 * of panels, its weights once for a block of tokens, both to what sums load without further ado. So
 * weights lie in the first-level cache, activations and sums in the second. */
#include "kernels/avx2/avx2.h"

enum {
    CHUNK = 8,   /* runs of SH_RUN k's */
    PANELS = 32, /* of a block */
    TILES = 11,
    TOKENS = TILES * SH_TILE, /* of a block */
    MOST_X = SH_TILE * SH_RUN * 4,
    MOST_W = SH_RUN * SH_LANES * 4, /* bytes of a run, at most */
};

typedef float sums[PANELS][TOKENS][SH_LANES];

typedef struct room {
    _Alignas(64) uint8_t w[CHUNK * MOST_W];
    uint8_t x[TILES][CHUNK * MOST_X];
    sums root[4]; /* of the finished subtrees of the canonical tree; the last is of the slice itself
                   */
} room;

/* Adds the runs [lo, hi), CHUNK at most, of n_panel panels for n_tok tokens, from x on. */
static void add_chunk(room *r, sums acc, const sh_chunks *c, const sh_mat *w, int panel,
                      int n_panel, int lo, int hi, const uint8_t *x, size_t ldx, int n_tok)
{
    const int n_tile = (n_tok + SH_TILE - 1) / SH_TILE, n_run = hi - lo;
    const size_t run = sh_run_bytes(w->dtype);
    /* A tile asks for its share of the next panel's chunk. */
    const size_t ask = ((size_t)n_run * run / (size_t)n_tile + 63) / 64 * 64;
    for (int t = 0; t < n_tile; t++)
        for (int i = 0; i < n_run; i++)
            c->unpack_x(r->x[t] + (size_t)i * c->x_bytes, w, x + (size_t)(t * SH_TILE) * ldx, ldx,
                        lo + i, sh_min(n_tok - t * SH_TILE, SH_TILE));
    for (int p = 0; p < n_panel; p++) {
        const uint8_t *at = w->data + (size_t)(panel + p) * w->panel_bytes;
        const uint8_t *next = at + w->panel_bytes + (size_t)lo * run;
        for (int i = 0; i < n_run; i++) c->unpack_w(r->w + (size_t)i * c->w_bytes, w, at, lo + i);
        for (int t = 0; t < n_tile; t++, next += ask) {
            for (size_t i = 0; i < ask; i += 64) __builtin_prefetch(next + i, 0, 2);
            c->sum[sh_min(n_tok - t * SH_TILE, SH_TILE) - 1](acc[p][t * SH_TILE], r->w, r->x[t],
                                                             n_run);
        }
    }
}

static void add_sums(sums y, sums x, int n_panel, int n_tok)
{
    for (int p = 0; p < n_panel; p++)
        for (int t = 0; t < n_tok; t++)
            for (int i = 0; i < SH_LANES; i += VEC)
                vec_store(&y[p][t][i], vec_load(&y[p][t][i]) + vec_load(&x[p][t][i]));
}

static void block(const sh_chunks *c, float *y, size_t ldy, const sh_mat *w, int panel, int n_panel,
                  int slice_lo, int slice_hi, const uint8_t *x, size_t ldx, int n_tok)
{
    room r;
    for (int s = slice_lo; s < slice_hi; s++) {
        int end = w->kd.kp[s + 1] / SH_RUN, i = s - slice_lo,
            depth = __builtin_popcount((unsigned)i);
        for (int p = 0; p < n_panel; p++)
            memset(r.root[depth][p], 0, (size_t)n_tok * sizeof *r.root[depth][p]);
        for (int k = w->kd.kp[s] / SH_RUN; k < end; k += CHUNK)
            add_chunk(&r, r.root[depth], c, w, panel, n_panel, k, sh_min(k + CHUNK, end), x, ldx,
                      n_tok);
        for (; i & 1; i >>= 1, depth--) add_sums(r.root[depth - 1], r.root[depth], n_panel, n_tok);
    }
    for (int p = 0; p < n_panel; p++) {
        int o = (panel + p) * SH_LANES, n = sh_min(w->rows - o, SH_LANES);
        for (int t = 0; t < n_tok; t++)
            for (int i = 0; i < n; i += VEC)
                vec_store_some(y + (size_t)t * ldy + o + i, vec_load(&r.root[0][p][t][i]), n - i);
    }
}

void sh_product_chunks(const sh_chunks *c, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                       int panel_hi, int slice_lo, int slice_hi, const void *x, size_t ldx,
                       int n_tok)
{
    for (int p = panel_lo; p < panel_hi; p += PANELS)
        for (int t = 0; t < n_tok; t += TOKENS)
            block(c, y + (size_t)t * ldy, ldy, w, p, sh_min(panel_hi - p, PANELS), slice_lo,
                  slice_hi, (const uint8_t *)x + (size_t)t * ldx, ldx, sh_min(n_tok - t, TOKENS));
}
