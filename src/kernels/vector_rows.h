/* What happens to one token's vector: preparation for products, norm, activation, rotation. One
 * source for the instruction sets that have a vec.h. What little a vector takes is written once,
 * for n values, which is a constant for all but a row's last ones. */
#ifndef SH_KERNELS_VECTOR_ROWS_H
#define SH_KERNELS_VECTOR_ROWS_H

#include "base/fmath.h"
#include "kernels/vec.h"

static void prepare_f32(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        size_t n = (size_t)(kd->k[s + 1] - kd->k[s]), np = (size_t)(kd->kp[s + 1] - kd->kp[s]);
        float *out = (float *)y + kd->kp[s];
        memcpy(out, x + kd->k[s], n * sizeof *out);
        memset(out + n, 0, (np - n) * sizeof *out);
    }
}

SH_INLINE void round_some(uint16_t *y, const float *x, const int n)
{
    vec_put_bf16(y, vec_load_some(x, n));
}
static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        int n = kd->k[s + 1] - kd->k[s], np = kd->kp[s + 1] - kd->kp[s], i = 0;
        uint16_t *out = (uint16_t *)y + kd->kp[s];
        const float *in = x + kd->k[s];
        for (; i + VEC <= n; i += VEC) round_some(out + i, in + i, VEC);
        if (i < n) round_some(out + i, in + i, n - i), i += VEC; /* np: a multiple of SH_RUN */
        memset(out + i, 0, (size_t)(np - i) * sizeof *out);
    }
}

/* Up to SH_RUN x's, n of them real. */
SH_INLINE void quantise_block(int8_t *q, float *scale, int32_t *sum, const float *x, int n)
{
    const vec magic = vec_all(12582912.0f); /* 1.5 * 2^23: the integer is in the low bits */
    vec v[SH_RUN / VEC];
    vec_bits most = {0}, total = {0}; /* as integers, NaN is above infinity */
    for (int i = 0; i < SH_RUN / VEC; i++) {
        v[i] = vec_load_some(x + i * VEC, n - i * VEC);
        vec_bits size = (vec_bits)v[i] & 0x7fffffff;
        most = (vec_bits)vec_pick(size > most, (vec)size, (vec)most);
    }
    uint32_t bits = (uint32_t)vec_most(most);
    float amax = sh_f32_from_bits(bits);
    if (bits >= 0x7f800000u || amax < 1e-30f) {
        memset(q, 0, SH_RUN);
        *sum = 0;
        *scale = bits >= 0x7f800000u ? NAN : 0.0f;
        return;
    }
    const vec inv = vec_all(127.0f / amax);
    for (int i = 0; i < SH_RUN / VEC; i++) {
        vec_bits r = (vec_bits)vec_fma(v[i], inv, magic) - (vec_bits)magic;
        vec_put8(q + i * VEC, (vec_words)r);
        total += r;
    }
    *scale = amax / 127.0f;
    *sum = vec_total(total);
}

static void prepare_i8(void *y, const float *x, const sh_kdim *kd)
{
    int kp = kd->kp[kd->n_slice];
    int8_t *q = y;
    float *scale = (float *)(q + kp);
    int32_t *sum = (int32_t *)(scale + kp / SH_RUN);
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN) {
            int n = kd->k[s + 1] - k, b = p / SH_RUN;
            if (n >= SH_RUN)
                quantise_block(q + p, scale + b, sum + b, x + k, SH_RUN);
            else
                quantise_block(q + p, scale + b, sum + b, x + k, n);
        }
}

/* acc += x, or (x - mean)^2; n: at most 16 */
SH_INLINE void sum_some(vec *acc, const float *x, const int n, float mean, const bool square)
{
    for (int j = 0; j < VEC_PANEL; j++) {
        int left = n - j * VEC;
        vec v = vec_load_some(x + j * VEC, left), about = v - mean;
        if (left < VEC) about = vec_where(vec_first(left), about);
        if (square)
            acc[j] = vec_fma(about, about, acc[j]);
        else
            acc[j] += v;
    }
}
/* The sum of x, or of (x - mean)^2, in 16 lanes. */
SH_INLINE float sum_of(const float *x, int n, float mean, const bool square)
{
    float lane[SH_LANES];
    vec acc[VEC_PANEL] = {0};
    int i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES) sum_some(acc, x + i, SH_LANES, mean, square);
    if (i < n) sum_some(acc, x + i, n - i, mean, square);
    memcpy(lane, acc, sizeof lane);
    return sh_sum_lanes(lane);
}

SH_INLINE void rmsnorm_some(float *y, const float *x, const float *g, const int n, float r)
{
    vec_store_some(y, vec_load_some(g, n) * (vec_load_some(x, n) * r), n);
}
static void rmsnorm(float *y, const float *x, const float *g, int n, float eps)
{
    float r = 1.0f / sqrtf(sum_of(x, n, 0, true) / (float)n + eps);
    int i = 0;
    for (; i + VEC <= n; i += VEC) rmsnorm_some(y + i, x + i, g + i, VEC, r);
    if (i < n) rmsnorm_some(y + i, x + i, g + i, n - i, r);
}

SH_INLINE void layernorm_some(float *y, const float *x, const float *g, const float *b, const int n,
                              float mean, float r)
{
    vec v = (vec_load_some(x, n) - mean) * r;
    vec_store_some(y, vec_fma(vec_load_some(g, n), v, vec_load_some(b, n)), n);
}
static void layernorm(float *y, const float *x, const float *g, const float *b, int n, float eps)
{
    float mean = sum_of(x, n, 0, false) / (float)n;
    float r = 1.0f / sqrtf(sum_of(x, n, mean, true) / (float)n + eps);
    int i = 0;
    for (; i + VEC <= n; i += VEC) layernorm_some(y + i, x + i, g + i, b + i, VEC, mean, r);
    if (i < n) layernorm_some(y + i, x + i, g + i, b + i, n - i, mean, r);
}

SH_INLINE void add_some(float *y, const float *x, const int n)
{
    vec_store_some(y, vec_load_some(y, n) + vec_load_some(x, n), n);
}
static void add(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + VEC <= n; i += VEC) add_some(y + i, x + i, VEC);
    if (i < n) add_some(y + i, x + i, (int)(n - i));
}

static void silu_mul(float *g, const float *u, size_t size)
{
    const int n = (int)size;
    for (int i = 0; i < n; i += VEC) {
        vec v = vec_load_some(g + i, n - i);
        v = v / (1.0f + vec_exp(-v)) * vec_load_some(u + i, n - i);
        vec_store_some(g + i, v, n - i);
    }
}

static void gelu(float *x, size_t size)
{
    const int n = (int)size;
    for (int i = 0; i < n; i += VEC) {
        vec v = vec_load_some(x + i, n - i);
        vec u = v * vec_fma(v * v, vec_all(SH_GELU_3), vec_all(SH_GELU_1));
        vec_store_some(x + i, v / (1.0f + vec_exp(-u)), n - i);
    }
}

/* out = fma(x0, a, x1 b) with a = c, s, c, s, .. and b = -s, c, -s, c, .. */
static void rope(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot)
{
    float a[VEC] = {0}, b[VEC] = {0};
    for (int i = 0; i < n_rot; i += VEC) {
        const int n = n_rot - i;
        for (int j = 0; j < VEC && j < n; j += 2) {
            a[j] = c[(i + j) / 2], a[j + 1] = s[(i + j) / 2];
            b[j] = -a[j + 1], b[j + 1] = a[j];
        }
        const vec av = vec_load(a), bv = vec_load(b);
        for (int h = 0; h < n_head; h++) {
            float *p = x + (size_t)h * (size_t)head_dim + i;
            vec v = vec_load_some(p, n);
            vec x0 = VEC_SHUFFLE(v, VEC_AND, ~1), x1 = VEC_SHUFFLE(v, VEC_OR, 1);
            vec_store_some(p, vec_fma(x0, av, x1 * bv), n);
        }
    }
}

static void vector_overlay(sh_kernels *k)
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

#endif
