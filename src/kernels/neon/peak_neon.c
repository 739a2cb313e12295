/* What NEON can do at most: the rows `peak` and `read`. */
#include "kernels/neon/neon.h"

enum { N_ACC = 16 }; /* sums under way: four pipes, four cycles */

static double peak_f32(long n_round)
{
    float32x4_t w = vdupq_n_f32(1e-3f), acc[N_ACC];
    for (int i = 0; i < N_ACC; i++) acc[i] = vdupq_n_f32(0);
    for (long r = 0; r < n_round; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < N_ACC; i++) {
            acc[i] = vfmaq_f32(acc[i], w, w);
            __asm__ volatile("" : "+w"(acc[i]), "+w"(w));
        }
    }
    return (double)n_round * N_ACC * 4 * 2;
}

static double peak_i8(long n_round)
{
    int8x16_t w = vdupq_n_s8(3);
    int32x4_t acc[N_ACC];
    for (int i = 0; i < N_ACC; i++) acc[i] = vdupq_n_s32(0);
    for (long r = 0; r < n_round; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < N_ACC; i++) {
            acc[i] = vdotq_s32(acc[i], w, w);
            __asm__ volatile("" : "+w"(acc[i]), "+w"(w));
        }
    }
    return (double)n_round * N_ACC * 16 * 2;
}

static uint64_t read_all(const void *p, size_t n)
{
    const uint8_t *v = p;
    uint64x2_t s[4];
    for (int i = 0; i < 4; i++) s[i] = vdupq_n_u64(0);
    for (size_t at = 0; at < n; at += 64) {
        sh_ask_ahead(v + at, 64);
        for (int i = 0; i < 4; i++)
            s[i] = veorq_u64(s[i], vreinterpretq_u64_u8(vld1q_u8(v + at + (size_t)i * 16)));
    }
    s[0] = veorq_u64(veorq_u64(s[0], s[1]), veorq_u64(s[2], s[3]));
    return vgetq_lane_u64(s[0], 0) ^ vgetq_lane_u64(s[0], 1);
}

void sh_peak_neon(sh_kernels *k)
{
    k->peak[SH_FORM_F32] = peak_f32;
    k->peak[SH_FORM_BF16] = peak_f32; /* the contract's chains of float32 multiply-adds */
    k->peak[SH_FORM_I8] = peak_i8;
    k->read = read_all;
}
