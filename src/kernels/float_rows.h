/* Products of f32 and f16 weights: one chain in k for each output. One source for the instruction
 * sets that have a vec.h. */
#ifndef SH_KERNELS_FLOAT_ROWS_H
#define SH_KERNELS_FLOAT_ROWS_H

#include "kernels/product.h"
#include "kernels/vec.h"

enum { CHAIN_TOKENS = VEC == 8 ? 6 : 4 }; /* whose sums have registers */

SH_INLINE void chain_sum(float *acc, sh_part part, const uint8_t *x, size_t ldx, const bool f16,
                         const int n)
{
    vec sum[CHAIN_TOKENS][VEC_PANEL];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < VEC_PANEL; i++) sum[t][i] = vec_load(acc + t * SH_LANES + i * VEC);
    for (int k = part.lo; k < part.hi; k++) {
        const size_t at = (size_t)k * SH_LANES;
        const float *p = (const float *)part.panel + at;
        const uint16_t *h = (const uint16_t *)part.panel + at;
        vec w[VEC_PANEL];
        if (k % (f16 ? 8 : 4) == 0) sh_ask_for(f16 ? (const void *)h : p, part.ahead, 256);
        for (int i = 0; i < VEC_PANEL; i++)
            w[i] = f16 ? vec_f16(h + i * VEC) : vec_load(p + i * VEC);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            vec v = vec_all(((const float *)(x + (size_t)t * ldx))[k]);
            for (int i = 0; i < VEC_PANEL; i++) sum[t][i] = vec_fma(w[i], v, sum[t][i]);
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < VEC_PANEL; i++) vec_store(acc + t * SH_LANES + i * VEC, sum[t][i]);
}

SH_INLINE void f32_sum(float *acc, const sh_mat *w, sh_part part, const uint8_t *x, size_t ldx,
                       const int n)
{
    (void)w;
    chain_sum(acc, part, x, ldx, false, n);
}
SH_INLINE void f16_sum(float *acc, const sh_mat *w, sh_part part, const uint8_t *x, size_t ldx,
                       const int n)
{
    (void)w;
    chain_sum(acc, part, x, ldx, true, n);
}
SH_SUMS(f32_sums, f32_sum, CHAIN_TOKENS)
SH_SUMS(f16_sums, f16_sum, CHAIN_TOKENS)

SH_MATMUL(f32_f32)
{
    sh_product_sums(f32_sums, CHAIN_TOKENS, SH_MATMUL_ARGS);
}
SH_MATMUL(f16_f32)
{
    sh_product_sums(f16_sums, CHAIN_TOKENS, SH_MATMUL_ARGS);
}

static void float_overlay(sh_kernels *k)
{
    k->matmul[SH_F32][SH_FORM_F32] = f32_f32;
    k->matmul[SH_F16][SH_FORM_F32] = f16_f32;
}

#endif
