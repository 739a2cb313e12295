/* The rows of training (train.h): one source, which a file of each instruction set includes.
 * Whatever instructions the compiler chooses for a vector of 16, each lane is rounded the same. */
#ifndef SH_KERNELS_TRAIN_ROWS_H
#define SH_KERNELS_TRAIN_ROWS_H

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t lane_bits __attribute__((vector_size(64)));
typedef uint32_t lane_words __attribute__((vector_size(64)));
typedef uint64_t lane_pairs __attribute__((vector_size(64)));
typedef float lanes_anywhere __attribute__((vector_size(64), aligned(4), may_alias));

#define LANES_INLINE static inline __attribute__((always_inline))

/* The values from x on; zeros past the n that there are. */
LANES_INLINE lanes lanes_load(const float *x, size_t n)
{
    lanes v = {0};
    if (n >= SH_LANES) return *(const lanes_anywhere *)x;
    for (size_t i = 0; i < n; i++) v[i] = x[i];
    return v;
}
LANES_INLINE void lanes_store(float *y, lanes v, size_t n)
{
    if (n >= SH_LANES)
        *(lanes_anywhere *)y = v;
    else
        for (size_t i = 0; i < n; i++) y[i] = v[i];
}
LANES_INLINE lanes lanes_all(float a)
{
    return (lanes){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
}
LANES_INLINE lanes lanes_pick(lane_bits mask, lanes a, lanes b)
{
    return (lanes)((mask & (lane_bits)a) | (~mask & (lane_bits)b));
}
LANES_INLINE float lanes_sum(lanes v)
{
    float a[SH_LANES];
    memcpy(a, &v, sizeof a);
    return sh_sum_lanes(a);
}

/* e^x: x = n ln 2 + r, a polynomial in r, and n added to the exponent: it stands in the low bits of
 * x / ln 2 + 1.5 * 2^23. Below -87 it is 0, above 88 infinity. */
LANES_INLINE lanes lanes_exp(lanes x)
{
    lanes t = x * 1.44269504f + 12582912.0f, n = t - 12582912.0f;
    lanes r = x - n * 0.693145752f - n * 1.42860677e-6f;
    lanes p = r * (1.0f / 720.0f) + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    p = (lanes)((lane_bits)p + ((lane_bits)t << 23));
    p = lanes_pick(x < -87.0f, lanes_all(0), p);
    p = lanes_pick(x > 88.0f, lanes_all(INFINITY), p);
    return lanes_pick(x != x, x, p);
}

static void rmsnorm_back(float *dx, float *dg, const float *dy, const float *x, const float *g,
                         int n, float eps)
{
    size_t n_in = (size_t)n;
    lanes square = {0}, product = {0};
    for (size_t i = 0; i < n_in; i += SH_LANES) {
        lanes v = lanes_load(x + i, n_in - i);
        square += v * v;
        product += lanes_load(dy + i, n_in - i) * lanes_load(g + i, n_in - i) * v;
    }
    float r = 1.0f / sqrtf(lanes_sum(square) / (float)n + eps);
    float back = lanes_sum(product) * r / (float)n; /* mean(e x^) */
    for (size_t i = 0; i < n_in; i += SH_LANES) {
        lanes d = lanes_load(dy + i, n_in - i), hat = lanes_load(x + i, n_in - i) * r;
        lanes e = d * lanes_load(g + i, n_in - i);
        lanes_store(dx + i, lanes_load(dx + i, n_in - i) + (e - hat * back) * r, n_in - i);
        lanes_store(dg + i, lanes_load(dg + i, n_in - i) + d * hat, n_in - i);
    }
}

static void layernorm_back(float *dx, float *dg, float *db, const float *dy, const float *x,
                           const float *g, int n, float eps)
{
    size_t n_in = (size_t)n, whole = n_in / SH_LANES * SH_LANES;
    lanes sum = {0}, square = {0}, first = {0}, product = {0};
    for (size_t i = 0; i < n_in; i += SH_LANES) sum += lanes_load(x + i, n_in - i);
    float mean = lanes_sum(sum) / (float)n;
    for (size_t i = 0; i < whole; i += SH_LANES) {
        lanes v = lanes_load(x + i, SH_LANES) - mean;
        square += v * v;
    }
    for (size_t i = whole; i < n_in; i++) square[i - whole] += (x[i] - mean) * (x[i] - mean);
    float r = 1.0f / sqrtf(lanes_sum(square) / (float)n + eps);
    for (size_t i = 0; i < n_in; i += SH_LANES) {
        lanes e = lanes_load(dy + i, n_in - i) * lanes_load(g + i, n_in - i);
        first += e;
        product += e * ((lanes_load(x + i, n_in - i) - mean) * r);
    }
    float back = lanes_sum(product) / (float)n, shift = lanes_sum(first) / (float)n;
    for (size_t i = 0; i < n_in; i += SH_LANES) {
        lanes d = lanes_load(dy + i, n_in - i), hat = (lanes_load(x + i, n_in - i) - mean) * r;
        lanes e = d * lanes_load(g + i, n_in - i);
        lanes_store(dx + i, lanes_load(dx + i, n_in - i) + (e - shift - hat * back) * r, n_in - i);
        lanes_store(dg + i, lanes_load(dg + i, n_in - i) + d * hat, n_in - i);
        if (db) lanes_store(db + i, lanes_load(db + i, n_in - i) + d, n_in - i);
    }
}

static void gelu_back(float *y, float *dx, const float *d, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += SH_LANES) {
        lanes v = lanes_load(x + i, n - i), far = v; /* past 30 the derivative is 0 or 1 */
        v = lanes_pick(v < -30.0f, lanes_all(-30), v);
        v = lanes_pick(v > 30.0f, lanes_all(30), v);
        lanes w = v * v * SH_GELU_3;
        lanes s = 1.0f / (1.0f + lanes_exp(-(v * (w + SH_GELU_1)))), vs = v * s;
        lanes slope = s + vs * (1.0f - s) * (w * 3.0f + SH_GELU_1);
        lanes_store(y + i, lanes_pick(far > 30.0f, far, vs), n - i);
        lanes_store(dx + i, lanes_load(d + i, n - i) * slope, n - i);
    }
}

static void silu_mul_back(float *y, float *dg, float *du, const float *d, const float *g,
                          const float *u, size_t n)
{
    for (size_t i = 0; i < n; i += SH_LANES) {
        lanes e = lanes_load(d + i, n - i), v = lanes_load(g + i, n - i);
        lanes w = lanes_load(u + i, n - i), s = 1.0f / (1.0f + lanes_exp(-v));
        lanes vs = lanes_pick(s == 0.0f, s, v * s); /* v may be infinite */
        lanes_store(y + i, vs * w, n - i);
        lanes_store(dg + i, e * w * (s + vs * (1.0f - s)), n - i);
        lanes_store(du + i, e * vs, n - i);
    }
}

static void attend_back(float *s, float *d, int n, float max, float inv_sum, float dot_)
{
    size_t n_in = (size_t)n;
    for (size_t i = 0; i < n_in; i += SH_LANES) {
        lanes p = lanes_exp(lanes_load(s + i, n_in - i) - max) * inv_sum;
        lanes_store(s + i, p, n_in - i);
        lanes_store(d + i, p * (lanes_load(d + i, n_in - i) - dot_), n_in - i);
    }
}

static float dot(const float *x, const float *y, int n)
{
    size_t n_in = (size_t)n;
    lanes sum = {0};
    for (size_t i = 0; i < n_in; i += SH_LANES)
        sum += lanes_load(x + i, n_in - i) * lanes_load(y + i, n_in - i);
    return lanes_sum(sum);
}

static void gather(float *y, const float *x, size_t ldx, int n_row, int n, const float *bias)
{
    size_t n_in = (size_t)n;
    for (int r = 0; r < n_row; r++, x += ldx, y += n_in)
        for (size_t i = 0; i < n_in; i += SH_LANES) {
            lanes v = lanes_load(x + i, n_in - i);
            lanes_store(y + i, bias ? v + lanes_load(bias + i, n_in - i) : v, n_in - i);
        }
}

static void scale(float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i += SH_LANES)
        lanes_store(x + i, lanes_load(x + i, n - i) * a, n - i);
}

/* 32 by 32 bits: the high and the low word of each product, lane by lane. */
LANES_INLINE void lanes_product(lane_words *high, lane_words *low, lane_words a, uint32_t b)
{
    lane_pairs v = (lane_pairs)a;
    lane_pairs even = (v & 0xffffffffu) * (uint64_t)b, odd = (v >> 32) * (uint64_t)b;
    *low = (lane_words)((even & 0xffffffffu) | odd << 32);
    *high = (lane_words)(even >> 32 | (odd & 0xffffffff00000000u));
}

static void dropout(float *x, size_t n, const sh_drop *drop)
{
    const lane_words zero = {0};
    lane_words at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (size_t i = 0; i < n; at += SH_LANES) {
        lane_words c[4] = {at, zero + drop->at[0], zero + drop->at[1], zero + drop->at[2]};
        uint32_t k0 = drop->key[0], k1 = drop->key[1];
        for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
            lane_words h0, l0, h1, l1;
            lanes_product(&h0, &l0, c[0], 0xd2511f53u);
            lanes_product(&h1, &l1, c[2], 0xcd9e8d57u);
            c[0] = h1 ^ c[1] ^ k0;
            c[1] = l1;
            c[2] = h0 ^ c[3] ^ k1;
            c[3] = l0;
        }
        for (int w = 0; w < 4 && i < n; w++, i += SH_LANES) {
            lane_bits out = (lane_bits)(c[w] < drop->below);
            lanes v = lanes_load(x + i, n - i) * drop->scale;
            lanes_store(x + i, lanes_pick(out, lanes_all(0), v), n - i);
        }
    }
}

static inline void train_overlay(sh_kernels *k)
{
    k->train = (sh_train_rows){
        .rmsnorm_back = rmsnorm_back,
        .layernorm_back = layernorm_back,
        .gelu_back = gelu_back,
        .silu_mul_back = silu_mul_back,
        .attend_back = attend_back,
        .dot = dot,
        .gather = gather,
        .scale = scale,
        .dropout = dropout,
    };
}

#endif
