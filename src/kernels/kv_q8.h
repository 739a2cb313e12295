/* The q8_0 KV cache: what the rows of every instruction set share. */
#ifndef SH_KERNELS_KV_Q8_H
#define SH_KERNELS_KV_Q8_H

#include <string.h>

#include "kernels/kernels.h"

/* The f16 scales of a page: [groups of SH_RUN d's][SH_PAGE]. */
static inline const uint16_t *sh_kv_scales(const void *page, int head_dim)
{
    return (const uint16_t *)((const char *)page + SH_PAGE * (size_t)head_dim);
}

/* n (at most SH_RUN) values as integers; returns their scale. Adding 1.5 * 2^23 rounds to an
 * integer, to even, and leaves it in the low bits. */
static inline uint16_t sh_kv_quantise(int8_t *q, const float *x, int n)
{
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t u = sh_f32_bits(x[i]) & 0x7fffffffu;
        most = u > most ? u : most;
    }
    if (most >= 0x7f800000u) {
        memset(q, 0, (size_t)n);
        return 0x7e00; /* NaN: nothing hides */
    }
    float amax = sh_f32_from_bits(most), inv = amax < 1e-30f ? 0 : 127.0f / amax;
    for (int i = 0; i < n; i++) q[i] = (int8_t)sh_f32_bits(x[i] * inv + 12582912.0f);
    return sh_f16_from_f32(amax / 127.0f);
}

/* The row kv_put. */
static inline void sh_kv_put_q8(void *kpage, void *vpage, const float *k, const float *v, int at,
                                int head_dim)
{
    int8_t *kq = (int8_t *)kpage + (size_t)(at / 16 * head_dim * 16 + at % 16), q[SH_RUN];
    int8_t *vq = (int8_t *)vpage + (size_t)(at * head_dim);
    uint16_t *kscale = (uint16_t *)((char *)kpage + SH_PAGE * (size_t)head_dim) + at;
    uint16_t *vscale = (uint16_t *)((char *)vpage + SH_PAGE * (size_t)head_dim) + at;
    for (int d = 0; d < head_dim; d += SH_RUN, kscale += SH_PAGE, vscale += SH_PAGE) {
        int n = head_dim - d < SH_RUN ? head_dim - d : SH_RUN;
        *kscale = sh_kv_quantise(q, k + d, n);
        for (int i = 0; i < n; i++) kq[(size_t)(d + i) * 16] = q[i];
        *vscale = sh_kv_quantise(vq + d, v + d, n);
    }
}

#endif
