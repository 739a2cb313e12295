/* Products of quantised weights and int8 activations: sdot adds four products of signed bytes to
 * each of four 32-bit sums, exactly. Weights are made signed as they are loaded. */
#include "kernels/neon/neon.h"

enum { TILE = 4 };

/* The loops over a block are not unrolled: gcc would mix their parts and run out of registers. */

/* Four bytes of a token to all lanes. */
SH_INLINE int8x16_t spread4(const uint8_t *p)
{
    return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(const void *)p));
}

SH_INLINE void q8_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int n)
{
    const uint8x16_t flip = vdupq_n_u8(0x80);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint16_t *scale = sh_scales(w, turn.panel);
    for (int b = turn.lo / SH_RUN; b < turn.hi / SH_RUN; b++) {
        const uint8_t *q = turn.panel + (size_t)b * 512;
        int32x4_t dot[TILE][4];
        sh_ask_for(q, turn.ahead, 512);
        sh_ask_scales(scale + b * SH_LANES, w->panel_bytes, b);
        for (int t = 0; t < n; t++)
            for (int i = 0; i < 4; i++) dot[t][i] = vdupq_n_s32(0);
#pragma GCC unroll 1
        for (int g = 0; g < 8; g++) {
            int8x16_t v[4];
            for (int i = 0; i < 4; i++)
                v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(q + g * 64 + i * 16), flip));
            for (int t = 0; t < n; t++) {
                int8x16_t xv = spread4(x + (size_t)t * ldx + b * SH_RUN + g * 4);
                for (int i = 0; i < 4; i++) dot[t][i] = vdotq_s32(dot[t][i], v[i], xv);
            }
        }
        for (int t = 0; t < n; t++)
            sh_add_block(acc + t * SH_LANES, dot[t], scale + b * SH_LANES,
                         ((const float *)(x + (size_t)t * ldx + kp))[b]);
    }
}

SH_INLINE void q4_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int n)
{
    const uint8x16_t low = vdupq_n_u8(15);
    const int8x16_t eight = vdupq_n_s8(8);
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const uint16_t *scale = sh_scales(w, turn.panel);
    for (int b = turn.lo / SH_RUN; b < turn.hi / SH_RUN; b++) {
        const uint8_t *q = turn.panel + (size_t)b * 256;
        int32x4_t dot[TILE][4];
        sh_ask_for(q, turn.ahead, 256);
        sh_ask_scales(scale + b * SH_LANES, w->panel_bytes, b);
        for (int t = 0; t < n; t++)
            for (int i = 0; i < 4; i++) dot[t][i] = vdupq_n_s32(0);
#pragma GCC unroll 1
        for (int g = 0; g < 4; g++) {
            int8x16_t v[4], u[4];
            for (int i = 0; i < 4; i++) {
                uint8x16_t byte = vld1q_u8(q + g * 64 + i * 16);
                v[i] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(byte, low)), eight);
                u[i] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(byte, 4)), eight);
            }
            for (int t = 0; t < n; t++) {
                const uint8_t *xb = x + (size_t)t * ldx + b * SH_RUN + g * 4;
                int8x16_t x0 = spread4(xb), x1 = spread4(xb + 16);
                for (int i = 0; i < 4; i++)
                    dot[t][i] = vdotq_s32(vdotq_s32(dot[t][i], v[i], x0), u[i], x1);
            }
        }
        for (int t = 0; t < n; t++)
            sh_add_block(acc + t * SH_LANES, dot[t], scale + b * SH_LANES,
                         ((const float *)(x + (size_t)t * ldx + kp))[b]);
    }
}

SH_SUMS(q8_sums, q8_sum, 4)
SH_SUMS(q4_sums, q4_sum, 4)

SH_MATMUL(q8_i8)
{
    sh_product_sums(q8_sums, NULL, TILE, SH_MATMUL_ARGS);
}
SH_MATMUL(q4_i8)
{
    sh_product_sums(q4_sums, NULL, TILE, SH_MATMUL_ARGS);
}

void sh_matmul_i8_neon(sh_kernels *k)
{
    k->matmul[SH_Q8_0][SH_FORM_I8] = q8_i8;
    k->matmul[SH_Q4_0][SH_FORM_I8] = q4_i8;
}
