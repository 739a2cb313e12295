/* Every inner loop of the program and its contract. c/ is the specification; an instruction set
 * overlays the rows it improves, and must give the same bits (docs/numerics.md; the tests compare).
 *
 * All rows run with the floating point of sh_cpu_enter (flush-to-zero, round to nearest). Pointers
 * to activations and weights are aligned to 64 bytes where a row says so, else to their element. */
#ifndef SH_KERNELS_KERNELS_H
#define SH_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "kernels/train.h"

/* For what must be compiled with its constant arguments known, or its sums lie in memory. */
#define SH_INLINE static inline __attribute__((always_inline))

enum {
    SH_LANES = 16,  /* outputs of a panel; also the partial sums of a reduction */
    SH_RUN = 32,    /* k's of a quantised block and of a bf16 run */
    SH_N_SLICE = 8, /* canonical slices of a matrix that is cut by columns */
    SH_PAGE = 64,   /* positions of a KV page */
    SH_SPAN = 256,  /* positions of attention that are summed together */
};

/* How activations are written for a matrix product. */
typedef enum sh_form {
    SH_FORM_F32,  /* kp floats */
    SH_FORM_BF16, /* kp bf16 */
    SH_FORM_I8,   /* int8 q[kp]; then kp/32 float scales; then kp/32 int32 sums of the block's q */
    SH_N_FORM
} sh_form;

/* Where the k's of a matrix lie: n_slice slices of real k's [k[s], k[s+1]), each padded with zeros
 * to a multiple of SH_RUN in packed weights and in activations: [kp[s], kp[s+1]). A matrix that is
 * not cut by columns has one slice. Slices may be empty. */
typedef struct sh_kdim {
    int n_slice;
    int k[SH_N_SLICE + 1], kp[SH_N_SLICE + 1];
} sh_kdim;

/** One slice of n k's. */
sh_kdim sh_kdim_whole(int n);
/** The slices with the given bounds (n_slice + 1 of them, ascending), renumbered to begin at 0. */
sh_kdim sh_kdim_slices(const int *bound, int n_slice);
/** Bytes of one token's activations in that form, a multiple of 64. */
size_t sh_form_bytes(sh_form form, const sh_kdim *kd);

/* Packed weights: rows of outputs in panels of SH_LANES (the last one filled up with zeros).
 *   f32, f16  a panel is [kp][16]
 *   bf16      [kp/2][16][2]: pairs of k's, as the matrix unit takes them
 *   q8_0      [kp/32] blocks of [8][16][4] uint8 = q + 128, then [kp/32][16] f16 scales
 *   q4_0      [kp/32] blocks of [4][16][4] uint8: k = 4g+i in the low nibble (0..15, worth n - 8),
 *             k = 16+4g+i in the high one, then [kp/32][16] f16 scales
 * Panels begin at multiples of 64 bytes. */
typedef struct sh_mat {
    sh_dtype dtype;
    int rows, n_panel;
    sh_kdim kd;
    size_t panel_bytes;
    uint8_t *data; /* n_panel * panel_bytes */
} sh_mat;

/** Bytes of SH_RUN k's of a panel, without their scales. */
SH_INLINE size_t sh_run_bytes(sh_dtype dtype)
{
    static const size_t bytes[SH_N_DTYPE] = {
        [SH_F32] = 2048, [SH_F16] = 1024, [SH_BF16] = 1024, [SH_Q8_0] = 512, [SH_Q4_0] = 256};
    return bytes[dtype];
}
/** Where the scales of a panel of quantised weights begin. */
SH_INLINE const uint16_t *sh_scales(const sh_mat *m, const uint8_t *panel)
{
    size_t n_run = (size_t)m->kd.kp[m->kd.n_slice] / SH_RUN;
    return (const uint16_t *)(panel + n_run * sh_run_bytes(m->dtype));
}
/** Fills in all of m but data. */
void sh_mat_layout(sh_mat *m, sh_dtype dtype, int rows, const sh_kdim *kd);
/** Packs panels [lo, hi). `row(arg, r)` gives the bytes of row r of this rank's share at its first
 * k; the k's of all slices are consecutive there, beginning at a block boundary. Rows past m->rows
 * are not asked for. */
void sh_mat_pack(const sh_mat *m, int lo, int hi, const uint8_t *(*row)(const void *arg, int r),
                 const void *arg);

/* y (n_tok, ldy): y[t][o] for the outputs o of panels [panel_lo, panel_hi) that are below w->rows:
 * the tree sum over slices [slice_lo, slice_hi) of the slice's products with x. slice_lo..slice_hi
 * is one slice or an aligned subtree of the canonical tree (1, 2, 4 or 8 slices). x (n_tok, ldx
 * bytes) in the row's form, aligned to 64. Within a slice, k ascending:
 *   F32: acc = fma(w, x, acc), from 0
 *   BF16: for each run of 32, even = the fma chain over its k's 0, 2, .. and odd over 1, 3, ..,
 *       from 0; acc += even + odd. Quantised weights become bf16(scale * q) first.
 *   I8: for each block, dot = the sum of its q's products, exact;
 *       acc = fma((float)dot, scale_w * scale_x, acc) */
typedef void sh_matmul_fn(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,
                          int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok);

/* The head of such a function, and its arguments to hand on. */
#define SH_MATMUL(name)                                                                            \
    static void name(float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,            \
                     int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok)
#define SH_MATMUL_ARGS y, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi, x, ldx, n_tok

/* Where a float32 matrix goes as operands of products: its rows as rows of activations, its columns
 * as such, its columns as rows of a packed matrix. NULL: not there. */
typedef struct sh_spread {
    void *rows, *cols, *right;
    size_t ld_rows, ld_cols, panel_bytes;
    bool far; /* as of left_cols */
} sh_spread;

/* The numbers of a step of AdamW, alike for all weights that decay alike. rest1 = 1 - beta1, rest2
 * = 1 - beta2, keep = 1 - lr decay, rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t). */
typedef struct sh_adamw_step {
    float scale, beta1, rest1, beta2, rest2, keep, rate, root, eps;
} sh_adamw_step;

typedef struct sh_kernels {
    sh_matmul_fn *matmul[SH_N_DTYPE][SH_N_FORM]; /* NULL where a type has no such arithmetic */

    /* Writes one token's activations x (kd->k[n_slice]) in that form; zeros between slices.
     *   I8: per block, amax = max |x|; scale = amax / 127; q = x * (127 / amax) rounded to even;
     *       all 0 if amax < 1e-30; scale NaN and q 0 if some x is infinite or NaN. */
    void (*prepare[SH_N_FORM])(void *y, const float *x, const sh_kdim *kd);

    /* y[i] = g[i] * (x[i] * (1 / sqrt(mean(x^2) + eps))); x, g, y (n); y may be x. The mean: lane
     * i%16 sums x[i]^2 by fma, ascending; lanes are added in halves (8, 4, 2, 1). Source: Zhang &
     * Sennrich 2019, arXiv:1910.07467, section 4. */
    void (*rmsnorm)(float *y, const float *x, const float *g, int n, float eps);

    /* y[i] = fma(g[i], (x[i] - mean) * (1 / sqrt(mean((x - mean)^2) + eps)), b[i]); x, g, b, y (n);
     * y may be x. The means: lane i%16 sums x[i], and then (x[i] - mean)^2 by fma, ascending; lanes
     * are added in halves. Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450. */
    void (*layernorm)(float *y, const float *x, const float *g, const float *b, int n, float eps);

    /* y[i] = y[i] + x[i] */
    void (*add)(float *y, const float *x, size_t n);

    /* g[i] = silu(g[i]) * u[i], silu(x) = x / (1 + e^-x).  Shazeer 2020, arXiv:2002.05202. */
    void (*silu_mul)(float *g, const float *u, size_t n);

    /* x[i] = x[i] / (1 + e^-(x[i] w)), w = fma(x[i]^2, SH_GELU_3, SH_GELU_1): x/2 (1 + tanh(u)), u
     * = sqrt(2/pi) (x + 0.044715 x^3), since 1 + tanh(u) = 2 / (1 + e^-2u). Source: Hendrycks &
     * Gimpel 2016, arXiv:1606.08415, section 2. */
    void (*gelu)(float *x, size_t n);

    /* Rotates pairs (x[2i], x[2i+1]) of each of n_head heads by the angle whose cosine and sine are
     * c[i], s[i], i < n_rot/2: (fma(x0, c, -(x1 s)), fma(x0, s, x1 c)). x (n_head, head_dim).
     * Source: Su et al. 2021, arXiv:2104.09864. */
    void (*rope)(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot);

    /* KV cache of one head and page, sh_kv_page_bytes of K and as many of V:
     *   f32, f16, bf16  K is [SH_PAGE/16][head_dim][16], V is [SH_PAGE][head_dim]
     *   q8_0  int8 in that order, then f16 scales [groups of SH_RUN d's, the last one may be
     *         shorter][SH_PAGE]; a value is scale * q, which float32 holds exactly
     * kv_put stores k and v (head_dim) at position `at` of the page, rounded to even.
     *   q8_0: as prepare for I8, group by group; then the scale is rounded to f16. */
    void (*kv_put[SH_N_DTYPE])(void *kpage, void *vpage, const float *k, const float *v, int at,
                               int head_dim);
    /* s[h][j] = scale * (fma chain over d ascending of q[h][d] * k[j][d]), h < n_q, j < n_pos <=
     * SH_PAGE. s (n_q, lds) may be written up to j = n_pos rounded up to 16. next: the page that
     * will be read after this one, whose memory may be asked for ahead; NULL: none. */
    void (*attn_scores[SH_N_DTYPE])(float *s, size_t lds, const float *q, size_t ldq, int n_q,
                                    const void *kpage, int n_pos, int head_dim, float scale,
                                    const void *next);
    /* o[h][d] = fma chain over j ascending of p[h][j] * v[j][d], from o[h][d]. next: as above. */
    void (*attn_values[SH_N_DTYPE])(float *o, size_t ldo, const float *p, size_t ldp, int n_q,
                                    const void *vpage, int n_pos, int head_dim, const void *next);
    /* m = max of s; s[j] = e^(s[j] - m); returns m, and in *sum the sum: lane j%16, then halves. */
    float (*softmax_part)(float *s, int n, float *sum);
    /* Puts the part (o2, m2, l2) after (o, *m, *l): n = max(m, m2), a = e^(m-n), b = e^(m2-n),
     * l = fma(l, a, l2 b), o = fma(o, a, o2 b). */
    void (*softmax_merge)(float *o, float *m, float *l, const float *o2, float m2, float l2, int n);

    /* Attention of prompt tokens in bf16 arithmetic: one KV head, one span, n_row queries (tokens
     * by the heads that share it), query r seeing the first n_pos[r] (1 to SH_SPAN) positions of
     * the span. q[r] (head_dim); kpage, vpage: the span's pages. q, k, p and v are rounded to bf16.
     *   s[j] = scale * the bf16 sum (as matmul, runs of 32 d's) of q[r] and k[j]
     *   m[r], l[r] = softmax_part of s over the positions it sees; p[j] = e^(s[j] - m)
     *   o[r][d] = the bf16 sum over j (runs of 32 positions from the span's first) of p[j] *
     * v[j][d] o (n_row, head_dim). Not for f32 caches. */
    void (*attend_bf16[SH_N_DTYPE])(float *o, float *m, float *l, const float *const *q, int n_row,
                                    const int *n_pos, const void *const *kpage,
                                    const void *const *vpage, int head_dim, float scale);

    /* Float32 matrices as operands of products, for training; types f32 and bf16 (rounded to
     * even), n_k k's of one slice, zeros after them to a multiple of SH_RUN.
     * left_cols: columns of x (n_k, ldx) as rows of activations: y (n_col <= SH_LANES, ldy bytes).
     * right_rows, right_cols: rows of x (n_row <= SH_LANES, ldx), or columns of x (n_k, ldx), as
     * one slice of a panel; zeros for the rows that are not there. `far`: it is read much later
     * and may be written past the caches; other threads see it from the end of a pool's region on
     * (whose locked instructions wait for such stores). */
    void (*left_cols[SH_N_DTYPE])(void *y, size_t ldy, const float *x, size_t ldx, int n_col,
                                  int n_k, bool far);
    void (*right_rows[SH_N_DTYPE])(void *y, const float *x, size_t ldx, int n_row, int n_k);
    void (*right_cols[SH_N_DTYPE])(void *y, const float *x, size_t ldx, int n_col, int n_k,
                                   bool far);
    /* All that `to` names of x (n_row <= SH_RUN, n_col; ldx), at once: `rows` as prepare writes
     * rows of one slice, `cols` and `right` as left_cols and right_cols do; all begin at multiples
     * of 64 bytes. */
    void (*spread[SH_N_DTYPE])(const sh_spread *to, const float *x, size_t ldx, int n_row,
                               int n_col);

    /* One step of AdamW for n weights, their gradients and moments, every operation rounded:
     *   g' = g scale + 0 (no -0);  m = m beta1 + g' rest1;  v = v beta2 + (g' g') rest2;
     *   w = w keep - (rate m) / (sqrt(v) root + eps)
     * Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2. */
    void (*adamw)(float *w, const float *g, float *m, float *v, size_t n, const sh_adamw_step *s);
    /* The sum of x[i]^2 in float64: lane i%16, ascending; lanes in halves. */
    double (*sum_squares)(const float *x, size_t n);

    sh_train_rows train;

    /* What this instruction set can do at most, for the bench. peak: n_round rounds of its fastest
     * multiply-adds for products in that form, on registers; returns operations done (2 for each
     * multiply-add). read: reads all n bytes (a multiple of 4096, p aligned to 64) and returns
     * something that depends on them. */
    double (*peak[SH_N_FORM])(long n_round);
    uint64_t (*read)(const void *p, size_t n);
} sh_kernels;

typedef struct sh_isa {
    const char *name;
    unsigned needs; /* SH_CPU_ bits */
    void (*overlay)(sh_kernels *k);
} sh_isa;

extern const sh_isa *const sh_isas[]; /* from the plainest to the best; ends with NULL */
extern const sh_isa sh_isa_c, sh_isa_avx2, sh_isa_avx512, sh_isa_amx, sh_isa_neon, sh_isa_i8mm;

/** Fills the table: C first, then every instruction set of the list that the machine allows, up to
 *  `upto` (NULL: $SHOAL_CPU, or all). SH_EARG: no such name; lists them. */
sh_err sh_kernels_init(sh_kernels *k, const char *upto);

/** Whether bf16 prompts run at the speed of a matrix unit here; $SHOAL_CPU can hold it back. */
bool sh_kernels_have_amx(void);

/** The best instruction set that sh_kernels_init(k, NULL) uses. */
const char *sh_kernels_best(void);

/** Calls fn for every row that some instruction set fills in, with the one that serves it; `upto`
 * and errors as sh_kernels_init. */
sh_err sh_kernels_list(const char *upto, void (*fn)(void *arg, const char *row, const char *isa),
                       void *arg);

/** The form that a weight type takes for one arithmetic of prompts; sampled tokens take
 *  sh_form_of(t, false). */
static inline sh_form sh_form_of(sh_dtype t, bool bf16)
{
    switch (t) {
    case SH_BF16:
        return SH_FORM_BF16;
    case SH_Q8_0:
    case SH_Q4_0:
        return bf16 ? SH_FORM_BF16 : SH_FORM_I8;
    default:
        return SH_FORM_F32;
    }
}

/** Bytes of the K, or of the V, of one head and page in a KV cache of that type. */
static inline size_t sh_kv_page_bytes(sh_dtype t, int head_dim)
{
    size_t n = SH_PAGE * (size_t)head_dim, n_group = (size_t)(head_dim + SH_RUN - 1) / SH_RUN;
    return t == SH_Q8_0 ? n + SH_PAGE * n_group * sizeof(uint16_t) : sh_dtype_bytes(t, n);
}

/** Whether there are KV caches of that type. */
static inline bool sh_kv_has(sh_dtype t)
{
    return t == SH_F32 || t == SH_F16 || t == SH_BF16 || t == SH_Q8_0;
}

/* Parts that every instruction set shares. */

SH_INLINE int sh_min(int a, int b)
{
    return a < b ? a : b;
}

#define SH_GELU_1 1.59576912f   /* 2 sqrt(2/pi) */
#define SH_GELU_3 0.0713548163f /* 0.044715 times that */

/** Adds 16 lanes in halves: 8, 4, 2, 1. */
static inline float sh_sum_lanes(float *a)
{
    for (int h = SH_LANES / 2; h; h /= 2)
        for (int i = 0; i < h; i++) a[i] += a[i + h];
    return a[0];
}

#endif
