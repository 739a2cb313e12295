/* The rows of the optimiser: one source, which a file of each instruction set includes. Each value
 * is computed by itself, or in a lane by itself, so whatever vectors the compiler chooses give the
 * same bits; products and sums are rounded one by one. */
#ifndef SH_KERNELS_ADAMW_ROWS_H
#define SH_KERNELS_ADAMW_ROWS_H

#include <math.h>

#include "kernels/kernels.h"

static void adamw(float *restrict w, const float *restrict g, float *restrict m, float *restrict v,
                  size_t n, const sh_adamw_step *s)
{
    const sh_adamw_step c = *s; /* not behind a pointer that w might change */
    for (size_t i = 0; i < n; i++) {
        float gi = g[i] * c.scale + 0.0f;
        float mi = m[i] * c.beta1 + gi * c.rest1;
        float vi = v[i] * c.beta2 + gi * gi * c.rest2;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] * c.keep - c.rate * mi / (sqrtf(vi) * c.root + c.eps);
    }
}

static double sum_squares(const float *x, size_t n)
{
    double lane[SH_LANES] = {0};
    size_t i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES)
        for (int l = 0; l < SH_LANES; l++) lane[l] += (double)x[i + (size_t)l] * x[i + (size_t)l];
    for (; i < n; i++) lane[i % SH_LANES] += (double)x[i] * x[i];
    for (int h = SH_LANES / 2; h; h /= 2)
        for (int l = 0; l < h; l++) lane[l] += lane[l + h];
    return lane[0];
}

static inline void adamw_overlay(sh_kernels *k)
{
    k->adamw = adamw;
    k->sum_squares = sum_squares;
}

#endif
