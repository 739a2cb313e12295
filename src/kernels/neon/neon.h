/* The parts of the NEON table and what they share. */
#ifndef SH_KERNELS_NEON_NEON_H
#define SH_KERNELS_NEON_NEON_H

#include <arm_neon.h>

#include "kernels/kernels.h"

void sh_matmul_i8_neon(sh_kernels *k);
void sh_matmul_float_neon(sh_kernels *k);
void sh_vector_neon(sh_kernels *k);
void sh_attention_neon(sh_kernels *k);
void sh_peak_neon(sh_kernels *k);
void sh_operands_neon(sh_kernels *k);
void sh_train_neon(sh_kernels *k);
void sh_adamw_neon(sh_kernels *k);

typedef float32x4_t vec;
#define VEC      4
#define VEC_SUMS 16
#include "kernels/product.h"

SH_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}
SH_INLINE vec vec_load_first(const float *p, int n)
{
    vec v = vdupq_n_f32(0);
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}
SH_INLINE void vec_store_first(float *p, vec v, int n)
{
    memcpy(p, &v, (size_t)n * sizeof *p);
}
SH_INLINE vec vec_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
SH_INLINE vec vec_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
SH_INLINE vec vec_i8(const int8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}
SH_INLINE void vec_put_f16(uint16_t *out, vec v)
{
    vst1_u16(out, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
SH_INLINE void vec_put16(uint16_t *out, vec_words v)
{
    vst1_u16(out, vmovn_u32(v));
}
SH_INLINE void vec_put8(int8_t *out, vec_words v)
{
    uint16x4_t halves = vmovn_u32(v);
    uint8x8_t bytes = vmovn_u16(vcombine_u16(halves, halves));
    memcpy(out, &bytes, VEC);
}

/* acc = fma(dot, scale_w * scale_x, acc) for the lanes of a panel. scale: f16. */
SH_INLINE void sh_add_block(float *acc, const int32x4_t dot[4], const uint16_t *scale,
                            float scale_x)
{
    for (int i = 0; i < 4; i++) {
        float32x4_t d = vmulq_n_f32(vec_f16(scale + i * 4), scale_x);
        vst1q_f32(acc + i * 4, vfmaq_f32(vld1q_f32(acc + i * 4), vcvtq_f32_s32(dot[i]), d));
    }
}

/* A run of 32 k's of a panel: pairs of bf16. */
typedef uint32_t sh_run_w[SH_RUN / 2][SH_LANES];

SH_INLINE void sh_run_put(sh_run_w w, int k, int lane, vec v)
{
    uint32_t *pair = &w[k / 2][lane];
    if (k & 1)
        vst1q_u32(pair, vorrq_u32(vld1q_u32(pair), (vec_words)v));
    else
        vst1q_u32(pair, (vec_words)v >> 16);
}

/* Adds the bf16 sums of the first n_k k's of a run to acc (n, lda), SH_LANES of each row. w: pairs,
 * [16][SH_LANES]; x (n, ldx bytes): bf16. */
void sh_run_sums_neon(float *acc, size_t lda, const uint32_t *w, const void *x, size_t ldx, int n_k,
                      int n);
#define sh_run_sums(acc, lda, w, x, ldx, n_k, n) sh_run_sums_neon(acc, lda, (w)[0], x, ldx, n_k, n)

#endif
