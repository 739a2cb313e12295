/* Float32 matrices as operands of products, for training: one source for every instruction set,
 * without arithmetic but the rounding to bf16, in integers. A file of each instruction set includes
 * this one, where VEC is the number of words in a vector of the set (4, 8 or 16), and puts the rows
 * into the table. */
#ifndef SH_KERNELS_OPERANDS_H
#define SH_KERNELS_OPERANDS_H

#include <string.h>

#include "kernels/kernels.h"

enum { WORDS_VECTORS = SH_LANES / VEC };
typedef uint32_t words_vector __attribute__((vector_size(VEC * 4)));
typedef int32_t words_signed __attribute__((vector_size(VEC * 4)));

/* A line of 16 words. */
typedef struct sh_words {
    words_vector v[WORDS_VECTORS];
} sh_words;

/* n floats, 16 at most; zeros after them. */
SH_INLINE sh_words words_load(const float *x, int n)
{
    sh_words w = {0};
    if (n == SH_LANES)
        for (int i = 0; i < WORDS_VECTORS; i++) memcpy(&w.v[i], x + i * VEC, sizeof w.v[i]);
    else
        memcpy(&w, x, (size_t)n * sizeof *x);
    return w;
}

SH_INLINE void words_store(void *y, sh_words w)
{
    for (int i = 0; i < WORDS_VECTORS; i++) memcpy((uint32_t *)y + i * VEC, &w.v[i], sizeof w.v[i]);
}

/* A line of an operand that is read much later; an instruction set may write it past the caches,
 * which then need not read it first. */
#ifndef WORDS_STORE_FAR
#define WORDS_STORE_FAR(y, w) words_store(y, w)
#endif
SH_INLINE void words_store_line(void *y, sh_words w, bool far)
{
    if (far)
        WORDS_STORE_FAR(y, w);
    else
        words_store(y, w);
}

/* The high half of each word: bf16, rounded to even; NaN stays one. */
SH_INLINE words_vector words_round(words_vector v)
{
    words_vector nan = (words_vector)((words_signed)(v & 0x7fffffff) > 0x7f800000);
    words_vector rounded = v + 0x7fff + ((v >> 16) & 1);
    return (rounded & ~nan) | ((v | 0x400000) & nan);
}

/* Words (even, odd) of two k's as bf16 pairs. */
SH_INLINE words_vector words_pair(words_vector even, words_vector odd)
{
    return words_round(even) >> 16 | (words_round(odd) & 0xffff0000);
}
#ifndef WORDS_PAIR /* an instruction set may have its own */
#define WORDS_PAIR(even, odd) words_pair(even, odd)
#endif

/* Of two vectors: the even words, the odd ones; and for a transposition, what becomes of them when
 * their blocks of 1, 2, 4 or 8 words off the diagonal are exchanged. */
#if VEC == 4
#define EVEN 0, 2, 4, 6
#define ODD  1, 3, 5, 7
#define LO1  0, 4, 2, 6
#define HI1  1, 5, 3, 7
#define LO2  0, 1, 4, 5
#define HI2  2, 3, 6, 7
#elif VEC == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD  1, 3, 5, 7, 9, 11, 13, 15
#define LO1  0, 8, 2, 10, 4, 12, 6, 14
#define HI1  1, 9, 3, 11, 5, 13, 7, 15
#define LO2  0, 1, 8, 9, 4, 5, 12, 13
#define HI2  2, 3, 10, 11, 6, 7, 14, 15
#define LO4  0, 1, 2, 3, 8, 9, 10, 11
#define HI4  4, 5, 6, 7, 12, 13, 14, 15
#else
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD  1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LO1  0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HI1  1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LO2  0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HI2  2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LO4  0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HI4  4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LO8  0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HI8  8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#endif

/* A step of a transposition: of each two rows `step` apart, the blocks of `step` words off the
 * diagonal are exchanged: within vectors, or vectors as they are. */
#define STEP(w, step, lo, hi)                                                                      \
    for (int i = 0; i < SH_LANES; i++) {                                                           \
        if (i & (step)) continue;                                                                  \
        for (int j = 0; j < WORDS_VECTORS; j++) {                                                  \
            words_vector a = (w)[i].v[j], b = (w)[i + (step)].v[j];                                \
            (w)[i].v[j] = __builtin_shufflevector(a, b, lo);                                       \
            (w)[i + (step)].v[j] = __builtin_shufflevector(a, b, hi);                              \
        }                                                                                          \
    }
#define STEP_VECTORS(w, step)                                                                      \
    for (int i = 0; i < SH_LANES; i++) {                                                           \
        if (i & (step)) continue;                                                                  \
        for (int j = 0; j < WORDS_VECTORS; j++) {                                                  \
            if (j & ((step) / VEC)) continue;                                                      \
            words_vector a = (w)[i].v[j + (step) / VEC];                                           \
            (w)[i].v[j + (step) / VEC] = (w)[i + (step)].v[j];                                     \
            (w)[i + (step)].v[j] = a;                                                              \
        }                                                                                          \
    }

/* Most instruction sets cannot hold all of it in registers, and inlined it compiles slowly. */
#ifndef WORDS_TRANSPOSE
#define WORDS_TRANSPOSE static __attribute__((noinline))
#endif
WORDS_TRANSPOSE void words_transpose(sh_words w[SH_LANES])
{
    _Pragma("GCC unroll 16") STEP(w, 1, LO1, HI1);
    _Pragma("GCC unroll 16") STEP(w, 2, LO2, HI2);
#if VEC == 4
    _Pragma("GCC unroll 16") STEP_VECTORS(w, 4);
#else
    _Pragma("GCC unroll 16") STEP(w, 4, LO4, HI4);
#endif
#if VEC == 16
    _Pragma("GCC unroll 16") STEP(w, 8, LO8, HI8);
#else
    _Pragma("GCC unroll 16") STEP_VECTORS(w, 8);
#endif
}

/* 16 columns (n_col of them there) and 32 k's as rows of pairs: w[i] = k's 2i and 2i + 1. */
SH_INLINE void pairs_of_columns(sh_words w[SH_LANES], const float *x, size_t ldx, int n_col,
                                int n_k)
{
    for (int i = 0; i < SH_LANES; i++) {
        const float *at = x + (size_t)(2 * i) * ldx;
        sh_words even = words_load(at, 2 * i < n_k ? n_col : 0);
        sh_words odd = words_load(at + ldx, 2 * i + 1 < n_k ? n_col : 0);
        for (int j = 0; j < WORDS_VECTORS; j++) w[i].v[j] = WORDS_PAIR(even.v[j], odd.v[j]);
    }
}

static void right_cols_bf16(void *y, const float *x, size_t ldx, int n_col, int n_k, bool far)
{
    for (int k = 0; k < n_k; k += SH_RUN, y = (char *)y + 1024) {
        sh_words v[SH_LANES];
        int n = n_k - k < SH_RUN ? n_k - k : SH_RUN;
        if (n == SH_RUN && n_col == SH_LANES)
            pairs_of_columns(v, x + (size_t)k * ldx, ldx, SH_LANES, SH_RUN);
        else
            pairs_of_columns(v, x + (size_t)k * ldx, ldx, n_col, n);
        for (int i = 0; i < SH_LANES; i++) words_store_line((char *)y + i * 64, v[i], far);
    }
}

static void left_cols_bf16(void *y, size_t ldy, const float *x, size_t ldx, int n_col, int n_k,
                           bool far)
{
    for (int k = 0; k < n_k; k += SH_RUN, y = (char *)y + 64) {
        sh_words v[SH_LANES];
        int n = n_k - k < SH_RUN ? n_k - k : SH_RUN;
        if (n == SH_RUN && n_col == SH_LANES)
            pairs_of_columns(v, x + (size_t)k * ldx, ldx, SH_LANES, SH_RUN);
        else
            pairs_of_columns(v, x + (size_t)k * ldx, ldx, n_col, n);
        words_transpose(v);
        for (int i = 0; i < n_col; i++) words_store_line((char *)y + (size_t)i * ldy, v[i], far);
    }
}

/* 32 floats (n of them there) of one row as 16 pairs. */
SH_INLINE sh_words pairs_of_row(const float *x, int n)
{
    sh_words first = words_load(x, n < SH_LANES ? n : SH_LANES);
    sh_words next = words_load(x + SH_LANES, n > SH_LANES ? n - SH_LANES : 0), pairs;
    words_vector v[2 * WORDS_VECTORS];
    for (int j = 0; j < WORDS_VECTORS; j++) v[j] = first.v[j], v[WORDS_VECTORS + j] = next.v[j];
    for (int j = 0; j < WORDS_VECTORS; j++)
        pairs.v[j] = WORDS_PAIR(__builtin_shufflevector(v[2 * j], v[2 * j + 1], EVEN),
                                __builtin_shufflevector(v[2 * j], v[2 * j + 1], ODD));
    return pairs;
}

static void right_rows_bf16(void *y, const float *x, size_t ldx, int n_row, int n_k)
{
    for (int k = 0; k < n_k; k += SH_RUN, y = (char *)y + 1024) {
        sh_words v[SH_LANES] = {0};
        int n = n_k - k < SH_RUN ? n_k - k : SH_RUN;
        if (n == SH_RUN && n_row == SH_LANES)
            for (int i = 0; i < SH_LANES; i++) v[i] = pairs_of_row(x + (size_t)i * ldx + k, SH_RUN);
        else
            for (int i = 0; i < n_row; i++) v[i] = pairs_of_row(x + (size_t)i * ldx + k, n);
        words_transpose(v);
        for (int i = 0; i < SH_LANES; i++) words_store((char *)y + i * 64, v[i]);
    }
}

static void right_cols_f32(void *y, const float *x, size_t ldx, int n_col, int n_k, bool far)
{
    int end = (n_k + SH_RUN - 1) / SH_RUN * SH_RUN;
    for (int k = 0; k < end; k++) {
        sh_words v = {0};
        if (k < n_k) v = words_load(x + (size_t)k * ldx, n_col);
        words_store_line((char *)y + (size_t)k * 64, v, far);
    }
}

static void left_cols_f32(void *y, size_t ldy, const float *x, size_t ldx, int n_col, int n_k,
                          bool far)
{
    int end = (n_k + SH_RUN - 1) / SH_RUN * SH_RUN;
    for (int k = 0; k < end; k += SH_LANES) {
        sh_words v[SH_LANES] = {0};
        for (int i = 0; i < SH_LANES && k + i < n_k; i++)
            v[i] = words_load(x + (size_t)(k + i) * ldx, n_col);
        words_transpose(v);
        for (int i = 0; i < n_col; i++)
            words_store_line((char *)y + (size_t)i * ldy + k * 4, v[i], far);
    }
}

static void right_rows_f32(void *y, const float *x, size_t ldx, int n_row, int n_k)
{
    int end = (n_k + SH_RUN - 1) / SH_RUN * SH_RUN;
    for (int k = 0; k < end; k += SH_LANES) {
        sh_words v[SH_LANES] = {0};
        int n = n_k - k < SH_LANES ? n_k - k : SH_LANES;
        for (int i = 0; i < n_row && n > 0; i++) v[i] = words_load(x + (size_t)i * ldx + k, n);
        words_transpose(v);
        for (int i = 0; i < SH_LANES; i++) words_store((char *)y + (size_t)(k + i) * 64, v[i]);
    }
}

/* ---- several operands at once ---- */

/* n_row (32 at most) by n_col (32 at most) of x, which begins at column `col`. */
SH_INLINE void spread_tile(const sh_spread *to, const float *x, size_t ldx, int n_row, int n_col,
                           int col, bool far)
{
    for (int r = 0; to->rows && r < n_row; r++)
        words_store_line((char *)to->rows + (size_t)r * to->ld_rows + (size_t)col * 2,
                         pairs_of_row(x + (size_t)r * ldx, n_col), far);
    for (int c = 0; (to->cols || to->right) && c < n_col; c += SH_LANES) {
        sh_words v[SH_LANES];
        int n = n_col - c < SH_LANES ? n_col - c : SH_LANES;
        pairs_of_columns(v, x + c, ldx, n, n_row);
        size_t panel = (size_t)((col + c) / SH_LANES) * to->panel_bytes;
        for (int i = 0; to->right && i < SH_LANES; i++)
            words_store_line((char *)to->right + panel + i * 64, v[i], far);
        if (!to->cols) continue;
        words_transpose(v);
        char *at = (char *)to->cols + (size_t)(col + c) * to->ld_cols;
        for (int i = 0; i < n; i++) words_store_line(at + (size_t)i * to->ld_cols, v[i], far);
    }
}

SH_INLINE void spread_tiles(const sh_spread *to, const float *x, size_t ldx, int n_row, int n_col,
                            bool far)
{
    int c = 0;
    for (; n_row == SH_RUN && c + SH_RUN <= n_col; c += SH_RUN)
        spread_tile(to, x + c, ldx, SH_RUN, SH_RUN, c, far);
    for (; c < n_col; c += SH_RUN)
        spread_tile(to, x + c, ldx, n_row, n_col - c < SH_RUN ? n_col - c : SH_RUN, c, far);
}

static void spread_bf16(const sh_spread *to, const float *x, size_t ldx, int n_row, int n_col)
{
    if (to->far)
        spread_tiles(to, x, ldx, n_row, n_col, true);
    else
        spread_tiles(to, x, ldx, n_row, n_col, false);
}

static void spread_f32(const sh_spread *to, const float *x, size_t ldx, int n_row, int n_col)
{
    for (int r = 0; to->rows && r < n_row; r++)
        for (int c = 0; c < (n_col + SH_RUN - 1) / SH_RUN * SH_RUN; c += SH_LANES) {
            sh_words v = {0};
            int n = n_col - c < SH_LANES ? n_col - c : SH_LANES;
            if (n > 0) v = words_load(x + (size_t)r * ldx + c, n);
            words_store_line((char *)to->rows + (size_t)r * to->ld_rows + c * 4, v, to->far);
        }
    for (int c = 0; c < n_col; c += SH_LANES) {
        int n = n_col - c < SH_LANES ? n_col - c : SH_LANES;
        if (to->cols)
            left_cols_f32((char *)to->cols + (size_t)c * to->ld_cols, to->ld_cols, x + c, ldx, n,
                          n_row, to->far);
        if (to->right)
            right_cols_f32((char *)to->right + (size_t)(c / SH_LANES) * to->panel_bytes, x + c, ldx,
                           n, n_row, to->far);
    }
}

static inline void operands_overlay(sh_kernels *k)
{
    k->left_cols[SH_BF16] = left_cols_bf16;
    k->left_cols[SH_F32] = left_cols_f32;
    k->right_rows[SH_BF16] = right_rows_bf16;
    k->right_rows[SH_F32] = right_rows_f32;
    k->right_cols[SH_BF16] = right_cols_bf16;
    k->right_cols[SH_F32] = right_cols_f32;
    k->spread[SH_BF16] = spread_bf16;
    k->spread[SH_F32] = spread_f32;
}

#endif
