/* The loop around the products of an instruction set: panels, tokens, slices and their tree. */
#ifndef SH_KERNELS_PRODUCT_H
#define SH_KERNELS_PRODUCT_H

#include <string.h>

#include "kernels/ahead.h"
#include "kernels/vec.h"

enum {
    SH_TOKENS = 64,  /* tokens that a product takes at once: they stay in the second cache */
    SH_MAX_TILE = 8, /* panels times tokens of the sums that go on together, at most */
};

/* The roots of the finished subtrees of one token's canonical tree, for the lanes of a panel. */
typedef float sh_tree[4][SH_LANES];

/* Takes the sum of slice i, counted from the first; slices come in order. Before it there are as
 * many roots as i has ones, and each trailing one is a carry. */
SH_INLINE void sh_tree_push(sh_tree tree, int i, const float *sum)
{
    for (int l = 0; l < SH_LANES; l += VEC) {
        vec cur = vec_load(sum + l);
        int depth = __builtin_popcount((unsigned)i);
        for (int carry = i; carry & 1; carry >>= 1) cur = vec_load(&tree[--depth][l]) + cur;
        vec_store(&tree[depth][l], cur);
    }
}

/* The root of token t to the rows of panel p. */
SH_INLINE void sh_tree_store(float *y, size_t ldy, sh_tree tree, const sh_mat *w, int p, int t)
{
    const int o = p * SH_LANES, n = w->rows - o;
    for (int l = 0; l < SH_LANES && l < n; l += VEC)
        vec_store_some(y + (size_t)t * ldy + o + l, vec_load(&tree[0][l]), n - l);
}

/* A turn of reading: the padded k's [lo, hi) of a panel, or of two, the second `apart` bytes from
 * it; ahead: bytes from what is read to what will be read soon. */
typedef struct sh_turn {
    const uint8_t *panel;
    size_t apart;
    int lo, hi;
    ptrdiff_t ahead;
} sh_turn;

/* Adds a turn for n tokens: acc (n, SH_LANES); or, where it is said to take a pair of panels, for
 * one token: acc (2, SH_LANES). */
typedef void sh_sum_fn(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                       int n);

/* Such sums of one panel by 1 to `most` tokens (4 or 6), where `sum` is compiled for each number.
 */
#define SH_SUMS(name, sum, most)                                                                   \
    static void name(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,      \
                     int n)                                                                        \
    {                                                                                              \
        if (n == 1)                                                                                \
            sum(acc, w, turn, x, ldx, 1);                                                          \
        else if (n == 2)                                                                           \
            sum(acc, w, turn, x, ldx, 2);                                                          \
        else if (n == 3)                                                                           \
            sum(acc, w, turn, x, ldx, 3);                                                          \
        else if (most > 4 && n == 4)                                                               \
            sum(acc, w, turn, x, ldx, 4);                                                          \
        else if (most > 4 && n == 5)                                                               \
            sum(acc, w, turn, x, ldx, 5);                                                          \
        else                                                                                       \
            sum(acc, w, turn, x, ldx, most);                                                       \
    }

/* The same as TYPE_sums, and TYPE_pair of two panels, of a `sum` for m panels by n tokens. */
#define SH_PANEL_SUMS(type, sum, most)                                                             \
    SH_INLINE void type##_one(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x,         \
                              size_t ldx, const int n)                                             \
    {                                                                                              \
        sum(acc, w, turn, x, ldx, 1, n);                                                           \
    }                                                                                              \
    SH_SUMS(type##_sums, type##_one, most)                                                         \
    static void type##_pair(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x,           \
                            size_t ldx, int n)                                                     \
    {                                                                                              \
        (void)n;                                                                                   \
        sum(acc, w, turn, x, ldx, 2, 1);                                                           \
    }

/* Panels that are summed together: `n` of them, `apart` from one to the next. */
typedef struct sh_panels {
    int first, n, apart;
} sh_panels;

/* The sums of such panels for one slice: acc (panels, n, SH_LANES). They take turns of about 1 KiB,
 * `each` at a time, as `sum` takes them, and ask for the next turn of the panel two on. */
SH_INLINE void sh_slice(sh_sum_fn *sum, const int each, float *acc, const sh_mat *w, sh_panels p,
                        int slice, const uint8_t *x, size_t ldx, int n)
{
    enum { TURN = 1024 };
    const size_t run = sh_run_bytes(w->dtype), apart = (size_t)p.apart * w->panel_bytes;
    const int k_turn = run < TURN ? (int)(TURN / run) * SH_RUN : SH_RUN;
    const int end = w->kd.kp[slice + 1], all = w->kd.kp[w->kd.n_slice];
    for (int r = 0; r < p.n * n; r++) memset(acc + r * SH_LANES, 0, SH_LANES * sizeof *acc);
    for (int lo = w->kd.kp[slice], hi; lo < end; lo = hi) {
        const uint8_t *panel = w->data + (size_t)p.first * w->panel_bytes;
        hi = p.n == 1 ? end : sh_min(lo + k_turn, end);
        /* to the same panel's next turn, or to the beginning of the panel after it */
        size_t on = hi < all ? (size_t)(hi - lo) / SH_RUN * run
                             : w->panel_bytes - (size_t)lo / SH_RUN * run;
        for (int i = 0; i < p.n; i += each, panel += (size_t)each * apart) {
            size_t two = i + 2 < p.n ? 2 * apart : on - (size_t)(p.n - 2) * apart;
            ptrdiff_t ahead = p.n == 1 ? SH_AHEAD : (ptrdiff_t)two;
            sum(acc + i * n * SH_LANES, w, (sh_turn){panel, apart, lo, hi, ahead}, x, ldx, n);
        }
    }
}

/* n tokens: as many that p.n * n is at most SH_MAX_TILE. */
SH_INLINE void sh_tokens(sh_sum_fn *sum, const int each, float *y, size_t ldy, const sh_mat *w,
                         sh_panels p, int slice_lo, int slice_hi, const uint8_t *x, size_t ldx,
                         int n)
{
    float acc[SH_MAX_TILE * SH_LANES];
    sh_tree tree[SH_MAX_TILE];
    for (int s = slice_lo; s < slice_hi; s++) {
        sh_slice(sum, each, acc, w, p, s, x, ldx, n);
        for (int r = 0; r < p.n * n; r++) sh_tree_push(tree[r], s - slice_lo, acc + r * SH_LANES);
    }
    for (int i = 0; i < p.n; i++)
        for (int t = 0; t < n; t++)
            sh_tree_store(y, ldy, tree[i * n + t], w, p.first + i * p.apart, t);
}

/* Whether SH_STREAMS panels are read at once: where memory is waited for and not arithmetic. See
 * bench/README.md, "Streams". */
SH_INLINE bool sh_streams(const sh_mat *w, int n_tok)
{
    return sh_cpu_streams && (n_tok == 1 || (n_tok == 2 && w->dtype != SH_Q4_0));
}

/* The product made of such sums, `tile` tokens at a time, straight from the packed weights; pair:
 * that of two panels, or NULL. */
SH_INLINE void sh_product_sums(sh_sum_fn *sum, sh_sum_fn *pair, int tile, float *y, size_t ldy,
                               const sh_mat *w, int panel_lo, int panel_hi, int slice_lo,
                               int slice_hi, const void *x, size_t ldx, int n_tok)
{
    const uint8_t *xb = x;
    int p = panel_lo;
    if (sh_streams(w, n_tok))
        for (int apart = (panel_hi - p) / SH_STREAMS, i = 0; i < apart; i++, p += SH_STREAMS) {
            sh_panels four = {panel_lo + i, SH_STREAMS, apart};
            if (n_tok == 2)
                sh_tokens(sum, 1, y, ldy, w, four, slice_lo, slice_hi, xb, ldx, 2);
            else if (pair)
                sh_tokens(pair, 2, y, ldy, w, four, slice_lo, slice_hi, xb, ldx, 1);
            else
                sh_tokens(sum, 1, y, ldy, w, four, slice_lo, slice_hi, xb, ldx, 1);
        }
    for (int t0 = 0; t0 < n_tok; t0 += SH_TOKENS)
        for (int q = p; q < panel_hi; q++) {
            int end = sh_min(n_tok, t0 + SH_TOKENS);
            for (int t = t0, n; t < end; t += n) {
                n = sh_min(end - t, tile);
                sh_tokens(sum, 1, y + (size_t)t * ldy, ldy, w, (sh_panels){q, 1, 1}, slice_lo,
                          slice_hi, xb + (size_t)t * ldx, ldx, n);
            }
        }
}

#endif
