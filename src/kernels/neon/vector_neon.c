/* What happens to one token's vector. Whole steps of four in NEON, what is left as in C. */
#include "kernels/neon/neon.h"

static void prepare_f32(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        size_t n = (size_t)(kd->k[s + 1] - kd->k[s]), np = (size_t)(kd->kp[s + 1] - kd->kp[s]);
        float *out = (float *)y + kd->kp[s];
        memcpy(out, x + kd->k[s], n * sizeof *out);
        memset(out + n, 0, (np - n) * sizeof *out);
    }
}

static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        int n = kd->k[s + 1] - kd->k[s], np = kd->kp[s + 1] - kd->kp[s], i = 0;
        uint16_t *out = (uint16_t *)y + kd->kp[s];
        const float *in = x + kd->k[s];
        for (; i + 4 <= n; i += 4) vst1_u16(out + i, sh_round_bf16(vld1q_f32(in + i)));
        for (; i < n; i++) out[i] = sh_bf16_from_f32(in[i]);
        memset(out + n, 0, (size_t)(np - n) * sizeof *out);
    }
}

static void quantise_block(int8_t *q, float *scale, int32_t *sum, const float *x)
{
    const float32x4_t magic = vdupq_n_f32(12582912.0f);
    uint32x4_t big = vdupq_n_u32(0);
    int32x4_t total = vdupq_n_s32(0);
    for (int i = 0; i < SH_RUN; i += 4)
        big = vmaxq_u32(
            big, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x7fffffff)));
    uint32_t bits = vmaxvq_u32(big);
    float amax = sh_f32_from_bits(bits);
    memset(q, 0, SH_RUN);
    *sum = 0;
    *scale = bits >= 0x7f800000u ? NAN : 0.0f;
    if (bits >= 0x7f800000u || amax < 1e-30f) return;
    *scale = amax / 127.0f;
    const float32x4_t inv = vdupq_n_f32(127.0f / amax);
    for (int i = 0; i < SH_RUN; i += 8) {
        int32x4_t r[2];
        for (int j = 0; j < 2; j++) {
            float32x4_t v = vfmaq_f32(magic, vld1q_f32(x + i + j * 4), inv);
            r[j] = vcvtq_s32_f32(vsubq_f32(v, magic));
            total = vaddq_s32(total, r[j]);
        }
        vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(r[0]), vmovn_s32(r[1]))));
    }
    *sum = vaddvq_s32(total);
}

static void prepare_i8(void *y, const float *x, const sh_kdim *kd)
{
    int kp = kd->kp[kd->n_slice];
    int8_t *q = y;
    float *scale = (float *)(q + kp);
    int32_t *sum = (int32_t *)(scale + kp / SH_RUN);
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN) {
            float last[SH_RUN] = {0}; /* zeros change neither the largest nor the sum */
            int n = kd->k[s + 1] - k;
            if (n < SH_RUN) memcpy(last, x + k, (size_t)n * sizeof *x);
            quantise_block(q + p, scale + p / SH_RUN, sum + p / SH_RUN, n < SH_RUN ? last : x + k);
        }
}

static void rmsnorm(float *y, const float *x, const float *g, int n, float eps)
{
    float lane[SH_LANES];
    float32x4_t acc[4];
    int i = 0;
    for (int j = 0; j < 4; j++) acc[j] = vdupq_n_f32(0);
    for (; i + SH_LANES <= n; i += SH_LANES)
        for (int j = 0; j < 4; j++) {
            float32x4_t v = vld1q_f32(x + i + j * 4);
            acc[j] = vfmaq_f32(acc[j], v, v);
        }
    for (int j = 0; j < 4; j++) vst1q_f32(lane + j * 4, acc[j]);
    for (; i < n; i++) lane[i % SH_LANES] = fmaf(x[i], x[i], lane[i % SH_LANES]);
    float r = 1.0f / sqrtf(sh_sum_lanes(lane) / (float)n + eps);
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vmulq_f32(vld1q_f32(g + i), vmulq_n_f32(vld1q_f32(x + i), r)));
    for (; i < n; i++) y[i] = g[i] * (x[i] * r);
}

static void layernorm(float *y, const float *x, const float *g, const float *b, int n, float eps)
{
    float lane[SH_LANES];
    float32x4_t sum[4], square[4];
    int whole = n / SH_LANES * SH_LANES, i;
    for (int j = 0; j < 4; j++) sum[j] = square[j] = vdupq_n_f32(0);
    for (i = 0; i < whole; i += SH_LANES)
        for (int j = 0; j < 4; j++) sum[j] = vaddq_f32(sum[j], vld1q_f32(x + i + j * 4));
    for (int j = 0; j < 4; j++) vst1q_f32(lane + j * 4, sum[j]);
    for (; i < n; i++) lane[i % SH_LANES] += x[i];
    float mean = sh_sum_lanes(lane) / (float)n;
    const float32x4_t m = vdupq_n_f32(mean);
    for (i = 0; i < whole; i += SH_LANES)
        for (int j = 0; j < 4; j++) {
            float32x4_t d = vsubq_f32(vld1q_f32(x + i + j * 4), m);
            square[j] = vfmaq_f32(square[j], d, d);
        }
    for (int j = 0; j < 4; j++) vst1q_f32(lane + j * 4, square[j]);
    for (; i < n; i++) lane[i % SH_LANES] = fmaf(x[i] - mean, x[i] - mean, lane[i % SH_LANES]);
    float r = 1.0f / sqrtf(sh_sum_lanes(lane) / (float)n + eps);
    for (i = 0; i + 4 <= n; i += 4) {
        float32x4_t v = vmulq_n_f32(vsubq_f32(vld1q_f32(x + i), m), r);
        vst1q_f32(y + i, vfmaq_f32(vld1q_f32(b + i), vld1q_f32(g + i), v));
    }
    for (; i < n; i++) y[i] = fmaf(g[i], (x[i] - mean) * r, b[i]);
}

static void add(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vaddq_f32(vld1q_f32(y + i), vld1q_f32(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

static void silu_mul(float *g, const float *u, size_t n)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(g + i), e = sh_exp_neon(vnegq_f32(v));
        vst1q_f32(g + i, vmulq_f32(vdivq_f32(v, vaddq_f32(one, e)), vld1q_f32(u + i)));
    }
    for (; i < n; i++) g[i] = g[i] / (1.0f + sh_expf(-g[i])) * u[i];
}

static void gelu(float *x, size_t n)
{
    const float32x4_t one = vdupq_n_f32(1.0f), c1 = vdupq_n_f32(SH_GELU_1);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        float32x4_t u = vmulq_f32(v, vfmaq_n_f32(c1, vmulq_f32(v, v), SH_GELU_3));
        vst1q_f32(x + i, vdivq_f32(v, vaddq_f32(one, sh_exp_neon(vnegq_f32(u)))));
    }
    for (; i < n; i++) {
        float u = x[i] * fmaf(x[i] * x[i], SH_GELU_3, SH_GELU_1);
        x[i] = x[i] / (1.0f + sh_expf(-u));
    }
}

static void rope(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot)
{
    for (int h = 0; h < n_head; h++, x += head_dim) {
        int i = 0;
        for (; i + 4 <= n_rot / 2; i += 4) {
            float32x4x2_t v = vld2q_f32(x + 2 * i), r;
            float32x4_t ci = vld1q_f32(c + i), si = vld1q_f32(s + i);
            r.val[0] = vfmaq_f32(vnegq_f32(vmulq_f32(v.val[1], si)), v.val[0], ci);
            r.val[1] = vfmaq_f32(vmulq_f32(v.val[1], ci), v.val[0], si);
            vst2q_f32(x + 2 * i, r);
        }
        for (; i < n_rot / 2; i++) {
            float x0 = x[2 * i], x1 = x[2 * i + 1];
            x[2 * i] = fmaf(x0, c[i], -(x1 * s[i]));
            x[2 * i + 1] = fmaf(x0, s[i], x1 * c[i]);
        }
    }
}

void sh_vector_neon(sh_kernels *k)
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
