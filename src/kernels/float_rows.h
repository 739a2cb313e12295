/* Products of f32 and f16 weights: one chain in k for each output. One source for the instruction
 * sets that have a vec.h. */
#ifndef SH_KERNELS_FLOAT_ROWS_H
#define SH_KERNELS_FLOAT_ROWS_H

#include "kernels/product.h"
#include "kernels/vec.h"

enum { CHAIN_TOKENS = VEC == 8 ? 6 : 4 }; /* whose sums have registers */

SH_INLINE void chain_sum(float *acc, sh_turn turn, const uint8_t *x, size_t ldx, const bool f16,
                         const int m, const int n)
{
    vec sum[CHAIN_TOKENS][VEC_PANEL]; /* of panel i and token t: i * n + t */
    for (int r = 0; r < m * n; r++)
        for (int j = 0; j < VEC_PANEL; j++) sum[r][j] = vec_load(acc + r * SH_LANES + j * VEC);
    for (int k = turn.lo; k < turn.hi; k++)
        for (int i = 0; i < m; i++) {
            const uint8_t *panel = turn.panel + i * turn.apart;
            const float *p = (const float *)panel + (size_t)k * SH_LANES;
            const uint16_t *h = (const uint16_t *)panel + (size_t)k * SH_LANES;
            vec w[VEC_PANEL];
            if (k % (f16 ? 8 : 4) == 0) sh_ask_for(f16 ? (const void *)h : p, turn.ahead, 256);
            for (int j = 0; j < VEC_PANEL; j++)
                w[j] = f16 ? vec_f16(h + j * VEC) : vec_load(p + j * VEC);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                vec v = vec_all(((const float *)(x + (size_t)t * ldx))[k]), *s = sum[i * n + t];
                for (int j = 0; j < VEC_PANEL; j++) s[j] = vec_fma(w[j], v, s[j]);
            }
        }
    for (int r = 0; r < m * n; r++)
        for (int j = 0; j < VEC_PANEL; j++) vec_store(acc + r * SH_LANES + j * VEC, sum[r][j]);
}

SH_INLINE void f32_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                       const int m, const int n)
{
    (void)w;
    chain_sum(acc, turn, x, ldx, false, m, n);
}
SH_INLINE void f16_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                       const int m, const int n)
{
    (void)w;
    chain_sum(acc, turn, x, ldx, true, m, n);
}
SH_PANEL_SUMS(f32, f32_sum, CHAIN_TOKENS)
SH_PANEL_SUMS(f16, f16_sum, CHAIN_TOKENS)

SH_MATMUL(f32_f32)
{
    sh_product_sums(f32_sums, f32_pair, CHAIN_TOKENS, SH_MATMUL_ARGS);
}
SH_MATMUL(f16_f32)
{
    sh_product_sums(f16_sums, f16_pair, CHAIN_TOKENS, SH_MATMUL_ARGS);
}

static void float_overlay(sh_kernels *k)
{
    k->matmul[SH_F32][SH_FORM_F32] = f32_f32;
    k->matmul[SH_F16][SH_FORM_F32] = f16_f32;
}

#endif
