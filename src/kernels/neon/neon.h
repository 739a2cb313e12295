/* The parts of the NEON table and what they share. */
#ifndef SH_KERNELS_NEON_NEON_H
#define SH_KERNELS_NEON_NEON_H

#include <arm_neon.h>

#include "base/fmath.h"
#include "kernels/product.h"

void sh_matmul_i8_neon(sh_kernels *k);
void sh_matmul_float_neon(sh_kernels *k);
void sh_vector_neon(sh_kernels *k);
void sh_attention_neon(sh_kernels *k);
void sh_attend_neon(sh_kernels *k);
void sh_peak_neon(sh_kernels *k);
void sh_operands_neon(sh_kernels *k);
void sh_train_neon(sh_kernels *k);
void sh_adamw_neon(sh_kernels *k);

enum { SH_AHEAD = 4096 }; /* bytes of weights that are asked for ahead of their use */

enum { SH_RUN_PAIRS = SH_RUN / 2 * SH_LANES }; /* pairs of bf16 in a run of 32 k's of a panel */

/* Adds the bf16 sums of the first n_k k's of a run to acc (n, lda), SH_LANES of each row. w: pairs,
 * [16][SH_LANES]; x (n, ldx bytes): bf16. */
void sh_run_sums_neon(float *acc, size_t lda, const uint32_t *w, const void *x, size_t ldx, int n_k,
                      int n);

/* The row softmax_part. */
float sh_softmax_part_neon(float *s, int n, float *sum);

SH_INLINE float32x4_t sh_f16x4(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
SH_INLINE float32x4_t sh_bf16x4(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
SH_INLINE float32x4_t sh_i8x4(const int8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}

/* acc = fma(dot, scale_w * scale_x, acc) for the lanes of a panel. scale: f16. */
SH_INLINE void sh_add_block(float *acc, const int32x4_t dot[4], const uint16_t *scale,
                            float scale_x)
{
    for (int i = 0; i < 4; i++) {
        float32x4_t d = vmulq_n_f32(sh_f16x4(scale + i * 4), scale_x);
        vst1q_f32(acc + i * 4, vfmaq_f32(vld1q_f32(acc + i * 4), vcvtq_f32_s32(dot[i]), d));
    }
}

/* sh_bf16_from_f32 of each value. */
SH_INLINE uint16x4_t sh_round_bf16(float32x4_t v)
{
    uint32x4_t u = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t nan = vorrq_u32(u, vdupq_n_u32(0x400000));
    uint32x4_t number = vcleq_u32(vandq_u32(u, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x7f800000));
    return vshrn_n_u32(vbslq_u32(number, r, nan), 16);
}

/* sh_expf of each value: the same operations. */
SH_INLINE float32x4_t sh_exp_neon(float32x4_t x)
{
    const float32x4_t lo = vdupq_n_f32(-87.0f), hi = vdupq_n_f32(88.7f), one = vdupq_n_f32(1.0f);
    const float32x4_t magic = vdupq_n_f32(12582912.0f);
    float32x4_t v = vminq_f32(vmaxq_f32(x, lo), hi);
    float32x4_t n = vsubq_f32(vfmaq_f32(magic, v, vdupq_n_f32(1.44269504f)), magic);
    float32x4_t r = vfmaq_f32(v, n, vdupq_n_f32(-0.693145752f));
    r = vfmaq_f32(r, n, vdupq_n_f32(-1.42860677e-6f));
    float32x4_t p = vdupq_n_f32(1.0f / 720.0f);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(one, p, r);
    p = vfmaq_f32(one, p, r);
    int32x4_t i = vcvtq_s32_f32(n), bias = vdupq_n_s32(127);
    uint32x4_t sign = vshrq_n_u32(vreinterpretq_u32_s32(i), 31);
    int32x4_t h = vshrq_n_s32(vaddq_s32(i, vreinterpretq_s32_u32(sign)), 1); /* i / 2 */
    int32x4_t a = vshlq_n_s32(vaddq_s32(h, bias), 23);
    int32x4_t b = vshlq_n_s32(vaddq_s32(vsubq_s32(i, h), bias), 23);
    p = vmulq_f32(vmulq_f32(p, vreinterpretq_f32_s32(a)), vreinterpretq_f32_s32(b));
    p = vbslq_f32(vcltq_f32(x, lo), vdupq_n_f32(0), p);
    p = vbslq_f32(vcgtq_f32(x, hi), vdupq_n_f32(INFINITY), p);
    return vbslq_f32(vceqq_f32(x, x), p, x);
}

#endif
