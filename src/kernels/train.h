/* The elementwise loops of training: what goes backward, and dropout. One source for every
 * instruction set (train_rows.h), in vectors of SH_LANES and without fused multiply-adds, gives the
 * same bits everywhere. e^x is within 4 units in the last place; NaNs stay NaN. */
#ifndef SH_KERNELS_TRAIN_H
#define SH_KERNELS_TRAIN_H

#include <stddef.h>
#include <stdint.h>

/* Which values a pass drops: the 32 random bits of value i are word (i / 16) % 4 of Philox4x32-10
 * for key and the counter {i / 64 * 16 + i % 16, at[0], at[1], at[2]}; below `below` it is dropped,
 * else scaled. */
typedef struct sh_drop {
    uint32_t key[2], at[3];
    uint32_t below;
    float scale;
} sh_drop;

typedef struct sh_train_rows {
    /* One token's norm backward. y = g x^ with x^ = x r, r = 1 / sqrt(mean(x^2) + eps), or y = g x^
     * + b with x^ = (x - mean(x)) r, r = 1 / sqrt(mean((x - mean(x))^2) + eps). With e = dy g:
     *   dx += r (e - x^ mean(e x^)), or dx += r (e - mean(e) - x^ mean(e x^))
     *   dg += dy x^; db += dy
     * All (n); db may be NULL. */
    void (*rmsnorm_back)(float *dx, float *dg, const float *dy, const float *x, const float *g,
                         int n, float eps);
    void (*layernorm_back)(float *dx, float *dg, float *db, const float *dy, const float *x,
                           const float *g, int n, float eps);
    /* y[i] = gelu(x[i]) (kernels.h, but for the rounding); dx[i] = d[i] times its derivative. */
    void (*gelu_back)(float *y, float *dx, const float *d, const float *x, size_t n);
    /* y[i] = silu(g[i]) u[i]; dg, du: the gradients of g and u from y's, d. */
    void (*silu_mul_back)(float *y, float *dg, float *du, const float *d, const float *g,
                          const float *u, size_t n);
    /* One query's softmax backward: s[i] = e^(s[i] - max) * inv_sum, its weights;
     * d[i] = s[i] (d[i] - mean), the scores' gradient from the weights'. */
    void (*attend_back)(float *s, float *d, int n, float max, float inv_sum, float mean);
    /* Returns the largest x[i]; *sum: of e^(x[i] - it), in lanes of four vectors in turns. */
    float (*softmax_sum)(const float *x, size_t n, float *sum);
    /* y[i] = e^(x[i] - max) * scale; y may be x. */
    void (*softmax)(float *y, const float *x, size_t n, float max, float scale);
    /* out[r] = the sum of x[r][i] y[r][i]; x (n_row, ldx), y (n_row, ldy), n of each row. */
    void (*dots)(float *out, const float *x, size_t ldx, const float *y, size_t ldy, int n_row,
                 int n);
    /* y (n_row, n) = the rows of x (n_row, ldx) + bias (n), which may be NULL. */
    void (*gather)(float *y, const float *x, size_t ldx, int n_row, int n, const float *bias);
    /* y (n) = the sum of the rows of x (n_row, ldx), ascending, from 0. */
    void (*sum_rows)(float *y, const float *x, size_t ldx, int n_row, int n);
    /* x[i] *= a */
    void (*scale)(float *x, float a, size_t n);
    /* x[i] = 0 if it is dropped, else x[i] * scale. */
    void (*dropout)(float *x, size_t n, const sh_drop *drop);
} sh_train_rows;

#endif
