/* Matrix products of training, on the kernels of the forward pass: y (m, n) = a (m, k) b (n, k)^T,
 * where a's rows stand as activations do and b is packed as weights are. Both are made from float32
 * rows or, transposed, from float32 columns; so one function serves y = x w^T, dx = dy w and
 * dw = dy^T x. The element type is bf16 (rounded once; sums as docs/numerics.md says) or f32. */
#ifndef SH_TRAIN_PRODUCTS_H
#define SH_TRAIN_PRODUCTS_H

#include "base/threads.h"
#include "kernels/kernels.h"

/* How numbers become operands; the same for all products of a run. */
typedef struct sh_products {
    const sh_kernels *k;
    sh_pool *pool;
    sh_dtype dtype; /* SH_BF16 or SH_F32 */
} sh_products;

/* The left operand: m rows of kd's k's in the form of the type. `data` is the caller's. */
typedef struct sh_left {
    void *data;
    size_t ld; /* bytes of a row: sh_left_ld */
    sh_kdim kd;
} sh_left;

static inline sh_form sh_products_form(const sh_products *p)
{
    return p->dtype == SH_BF16 ? SH_FORM_BF16 : SH_FORM_F32;
}
/** Bytes of a row of the left operand, and of m of them, a multiple of 64. */
static inline size_t sh_left_ld(const sh_products *p, const sh_kdim *kd)
{
    return sh_form_bytes(sh_products_form(p), kd);
}

/* On one thread; the rows [lo, hi) or panels [lo, hi) of the operand. Slices of kd are runs of the
 * k's that are summed each by itself; between them stand zeros (kernels.h). x is float32. */

/** a's rows r = x's rows: x (m, ldx). */
void sh_left_rows(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int lo,
                  int hi);
/** a's rows r = x's columns: x (k, ldx). */
void sh_left_cols(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int lo,
                  int hi);
/** b (laid out by sh_mat_layout; rows and type set): its rows are x's rows: x (n, ldx). */
void sh_right_rows(const sh_products *p, const sh_mat *b, const float *x, size_t ldx, int lo,
                   int hi);
/** b's rows are x's columns: x (k, ldx). */
void sh_right_cols(const sh_products *p, const sh_mat *b, const float *x, size_t ldx, int lo,
                   int hi);

/** y (m, ldy) for rows [row_lo, row_hi) and panels [lo, hi) of b: the tree sum of all slices of
 * a->kd, on this thread. a->kd may be a beginning of b's k's (attention looks at some positions
 * only). */
void sh_product(const sh_products *p, float *y, size_t ldy, const sh_left *a, const sh_mat *b,
                int row_lo, int row_hi, int lo, int hi);

/* The same, shared out over the threads of the pool. */
void sh_left_rows_all(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int m);
void sh_left_cols_all(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int m);
void sh_right_rows_all(const sh_products *p, const sh_mat *b, const float *x, size_t ldx);
void sh_right_cols_all(const sh_products *p, const sh_mat *b, const float *x, size_t ldx);
void sh_product_all(const sh_products *p, float *y, size_t ldy, const sh_left *a, const sh_mat *b,
                    int m);

#endif
