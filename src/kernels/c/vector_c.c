/* What happens to one token's vector: preparation for products, norm, activation, rotation. */
#include <math.h>
#include <string.h>

#include "base/fmath.h"
#include "kernels/c/c.h"

static void prepare_f32(void *y, const float *x, const sh_kdim *kd)
{
    float *yf = y;
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p++, k++)
            yf[p] = k < kd->k[s + 1] ? x[k] : 0.0f;
}

static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    uint16_t *yh = y;
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p++, k++)
            yh[p] = k < kd->k[s + 1] ? sh_bf16_from_f32(x[k]) : 0;
}

/* Up to 32 x's, n of them real. */
static void quantise_block(int8_t *q, float *scale, int32_t *sum, const float *x, int n)
{
    uint32_t big = 0; /* as integers, magnitudes order like floats, with NaN above infinity */
    for (int i = 0; i < n; i++) {
        uint32_t a = sh_f32_bits(x[i]) & 0x7fffffffu;
        if (a > big) big = a;
    }
    float amax = sh_f32_from_bits(big);
    memset(q, 0, SH_RUN);
    *sum = 0;
    if (big >= 0x7f800000u) {
        *scale = NAN;
    } else if (amax < 1e-30f) {
        *scale = 0;
    } else {
        float inv = 127.0f / amax;
        *scale = amax / 127.0f;
        for (int i = 0; i < n; i++) { /* adding 1.5 * 2^23 rounds to an integer, ties to even */
            float r = fmaf(x[i], inv, 12582912.0f) - 12582912.0f;
            q[i] = (int8_t)r;
            *sum += q[i];
        }
    }
}

static void prepare_i8(void *y, const float *x, const sh_kdim *kd)
{
    int kp = kd->kp[kd->n_slice];
    int8_t *q = y;
    float *scale = (float *)(q + kp);
    int32_t *sum = (int32_t *)(scale + kp / SH_RUN);
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN) {
            int n = kd->k[s + 1] - k < SH_RUN ? kd->k[s + 1] - k : SH_RUN;
            quantise_block(q + p, scale + p / SH_RUN, sum + p / SH_RUN, x + k, n);
        }
}

static void rmsnorm(float *y, const float *x, const float *g, int n, float eps)
{
    float lane[SH_LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % SH_LANES] = fmaf(x[i], x[i], lane[i % SH_LANES]);
    float r = 1.0f / sqrtf(sh_sum_lanes(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = g[i] * (x[i] * r);
}

static void layernorm(float *y, const float *x, const float *g, const float *b, int n, float eps)
{
    float lane[SH_LANES] = {0}, square[SH_LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % SH_LANES] += x[i];
    float mean = sh_sum_lanes(lane) / (float)n;
    for (int i = 0; i < n; i++) {
        float d = x[i] - mean;
        square[i % SH_LANES] = fmaf(d, d, square[i % SH_LANES]);
    }
    float r = 1.0f / sqrtf(sh_sum_lanes(square) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = fmaf(g[i], (x[i] - mean) * r, b[i]);
}

static void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void silu_mul(float *g, const float *u, size_t n)
{
    for (size_t i = 0; i < n; i++) g[i] = g[i] / (1.0f + sh_expf(-g[i])) * u[i];
}

static void gelu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float u = x[i] * fmaf(x[i] * x[i], SH_GELU_3, SH_GELU_1);
        x[i] = x[i] / (1.0f + sh_expf(-u));
    }
}

static void rope(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot)
{
    for (int h = 0; h < n_head; h++, x += head_dim)
        for (int i = 0; i < n_rot / 2; i++) {
            float x0 = x[2 * i], x1 = x[2 * i + 1];
            x[2 * i] = fmaf(x0, c[i], -(x1 * s[i]));
            x[2 * i + 1] = fmaf(x0, s[i], x1 * c[i]);
        }
}

void sh_vector_c(sh_kernels *k)
{
    k->prepare[SH_FORM_F32] = prepare_f32;
    k->prepare[SH_FORM_BF16] = prepare_bf16;
    k->prepare[SH_FORM_I8] = prepare_i8;
    k->rmsnorm = rmsnorm;
    k->layernorm = layernorm;
    k->add = add;
    k->silu_mul = silu_mul;
    k->gelu = gelu;
    k->rope = rope;
}
