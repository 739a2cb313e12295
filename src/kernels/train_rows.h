/* The rows of training (train.h): one source, which a file of each instruction set includes.
 * Whatever instructions the compiler chooses for a vector of 16, each lane is rounded the same.
 *
 * A row is walked by a step for some values, SH_LANES at most; where that number is a constant,
 * which it is for all but a row's last values, the step is a few instructions. */
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

/* The first n values from x on, zeros after them. */
SH_INLINE lanes lanes_load(const float *x, size_t n)
{
    lanes v = {0};
    if (n == SH_LANES) return *(const lanes_anywhere *)x;
    for (size_t i = 0; i < n; i++) v[i] = x[i];
    return v;
}
SH_INLINE void lanes_store(float *y, lanes v, size_t n)
{
    if (n == SH_LANES)
        *(lanes_anywhere *)y = v;
    else
        for (size_t i = 0; i < n; i++) y[i] = v[i];
}
SH_INLINE lanes lanes_all(float a)
{
    return (lanes){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
}

/* a < b. gcc 12 makes scalars of comparisons that are wider than the instruction set's VEC. */
SH_INLINE lane_bits lanes_less(lanes a, lanes b)
{
    typedef float narrow __attribute__((vector_size(VEC * 4)));
    typedef int32_t narrow_bits __attribute__((vector_size(VEC * 4)));
    lane_bits less;
    for (int i = 0; i < SH_LANES / VEC; i++) {
        narrow x, y;
        memcpy(&x, (const narrow *)&a + i, sizeof x);
        memcpy(&y, (const narrow *)&b + i, sizeof y);
        narrow_bits mask = x < y;
        memcpy((narrow_bits *)&less + i, &mask, sizeof mask);
    }
    return less;
}
SH_INLINE lanes lanes_pick(lane_bits mask, lanes a, lanes b)
{
    return (lanes)((mask & (lane_bits)a) | (~mask & (lane_bits)b));
}
/* Zero where the mask is not set. */
SH_INLINE lanes lanes_where(lane_bits mask, lanes a)
{
    return (lanes)(mask & (lane_bits)a);
}
/* Between lo and hi, or NaN. */
SH_INLINE lanes lanes_clamp(lanes v, float lo, float hi)
{
    v = lanes_pick(lanes_less(v, lanes_all(lo)), lanes_all(lo), v);
    return lanes_pick(lanes_less(lanes_all(hi), v), lanes_all(hi), v);
}

/* Lanes added in halves: 8, 4, 2, 1. */
SH_INLINE float lanes_sum(lanes v)
{
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    eight a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    four b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* e^x for x from -87 to 88: x = n ln 2 + r, a polynomial in r, and n added to the exponent: it
 * stands in the low bits of x / ln 2 + 1.5 * 2^23. */
SH_INLINE lanes lanes_exp(lanes x)
{
    lanes t = x * 1.44269504f + 12582912.0f, n = t - 12582912.0f;
    lanes r = x - n * 0.693145752f - n * 1.42860677e-6f, r2 = r * r;
    lanes high = (r * (1.0f / 720.0f) + 1.0f / 120.0f) * r2 + (r * (1.0f / 24.0f) + 1.0f / 6.0f);
    lanes p = (high * (r2 * r) + (r2 * 0.5f + r)) + 1.0f;
    return (lanes)((lane_bits)p + ((lane_bits)t << 23));
}

/* ---- norms ---- */

/* A row's sums: vectors take turns, so that none waits for the one before. */
enum { TURNS = 4 };
typedef struct turns {
    lanes v[TURNS];
} turns;

SH_INLINE float turns_sum(const turns *t)
{
    return lanes_sum((t->v[0] + t->v[1]) + (t->v[2] + t->v[3]));
}

/* The sums of x; of (x - mean)^2. */
static float sum_of(const float *x, size_t n)
{
    turns sum = {0};
    size_t i = 0;
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++) sum.v[t] += lanes_load(x + i + t * SH_LANES, SH_LANES);
    for (; i + SH_LANES <= n; i += SH_LANES) sum.v[0] += lanes_load(x + i, SH_LANES);
    if (i < n) sum.v[1] += lanes_load(x + i, n - i);
    return turns_sum(&sum);
}
static float sum_squares_about(const float *x, float mean, size_t n)
{
    turns sum = {0};
    size_t i = 0;
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++) {
            lanes v = lanes_load(x + i + t * SH_LANES, SH_LANES) - mean;
            sum.v[t] += v * v;
        }
    for (; i + SH_LANES <= n; i += SH_LANES) {
        lanes v = lanes_load(x + i, SH_LANES) - mean;
        sum.v[0] += v * v;
    }
    for (size_t j = i; j < n; j++) sum.v[1][j - i] += (x[j] - mean) * (x[j] - mean);
    return turns_sum(&sum);
}

/* The sums of e = dy g and of e (x - mean). */
typedef struct back_sums {
    turns e, product;
} back_sums;

SH_INLINE void back_sums_step(back_sums *s, int turn, const float *dy, const float *x,
                              const float *g, float mean, size_t n)
{
    lanes e = lanes_load(dy, n) * lanes_load(g, n);
    s->e.v[turn] += e;
    s->product.v[turn] += e * (lanes_load(x, n) - mean);
}
SH_INLINE void back_sums_all(back_sums *s, const float *dy, const float *x, const float *g,
                             float mean, size_t n)
{
    size_t i = 0;
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++) {
            size_t at = i + (size_t)t * SH_LANES;
            back_sums_step(s, t, dy + at, x + at, g + at, mean, SH_LANES);
        }
    for (; i + SH_LANES <= n; i += SH_LANES)
        back_sums_step(s, 0, dy + i, x + i, g + i, mean, SH_LANES);
    if (i < n) back_sums_step(s, 1, dy + i, x + i, g + i, mean, n - i);
}

/* dx += (e - shift - x^ back) r; dg += dy x^; db += dy */
SH_INLINE void norm_step(float *dx, float *dg, float *db, const float *dy, const float *x,
                         const float *g, float mean, float r, float shift, float back, size_t n)
{
    lanes d = lanes_load(dy, n), hat = (lanes_load(x, n) - mean) * r;
    lanes e = d * lanes_load(g, n);
    lanes_store(dx, lanes_load(dx, n) + (e - shift - hat * back) * r, n);
    lanes_store(dg, lanes_load(dg, n) + d * hat, n);
    if (db) lanes_store(db, lanes_load(db, n) + d, n);
}

static void rmsnorm_back(float *dx, float *dg, const float *dy, const float *x, const float *g,
                         int n_, float eps)
{
    size_t n = (size_t)n_, i = 0;
    back_sums s = {0};
    float r = 1.0f / sqrtf(sum_squares_about(x, 0, n) / (float)n_ + eps);
    back_sums_all(&s, dy, x, g, 0, n);
    float back = turns_sum(&s.product) * r / (float)n_;
    for (; i + SH_LANES <= n; i += SH_LANES)
        norm_step(dx + i, dg + i, NULL, dy + i, x + i, g + i, 0, r, 0, back, SH_LANES);
    if (i < n) norm_step(dx + i, dg + i, NULL, dy + i, x + i, g + i, 0, r, 0, back, n - i);
}

static void layernorm_back(float *dx, float *dg, float *db, const float *dy, const float *x,
                           const float *g, int n_, float eps)
{
    size_t n = (size_t)n_, i = 0;
    back_sums s = {0};
    float mean = sum_of(x, n) / (float)n_;
    float r = 1.0f / sqrtf(sum_squares_about(x, mean, n) / (float)n_ + eps);
    back_sums_all(&s, dy, x, g, mean, n);
    float back = turns_sum(&s.product) * r / (float)n_, shift = turns_sum(&s.e) / (float)n_;
    for (; i + SH_LANES <= n; i += SH_LANES)
        norm_step(dx + i, dg + i, db ? db + i : NULL, dy + i, x + i, g + i, mean, r, shift, back,
                  SH_LANES);
    if (i < n)
        norm_step(dx + i, dg + i, db ? db + i : NULL, dy + i, x + i, g + i, mean, r, shift, back,
                  n - i);
}

/* ---- activations ---- */

SH_INLINE void gelu_step(float *y, float *dx, const float *d, const float *x, size_t n)
{
    /* past 8, gelu is x or 0 and its derivative 1 or 0 */
    lanes far = lanes_load(x, n), v = lanes_clamp(far, -8, 8);
    lanes w = v * v * SH_GELU_3;
    lanes s = 1.0f / (1.0f + lanes_exp(-(v * (w + SH_GELU_1)))), vs = v * s;
    lanes slope = s + vs * (1.0f - s) * (w * 3.0f + SH_GELU_1);
    lanes_store(y, lanes_pick(lanes_less(lanes_all(8), far), far, vs), n);
    lanes_store(dx, lanes_load(d, n) * slope, n);
}

static void gelu_back(float *y, float *dx, const float *d, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES) gelu_step(y + i, dx + i, d + i, x + i, SH_LANES);
    if (i < n) gelu_step(y + i, dx + i, d + i, x + i, n - i);
}

SH_INLINE void silu_mul_step(float *y, float *dg, float *du, const float *d, const float *g,
                             const float *u, size_t n)
{
    lanes e = lanes_load(d, n), w = lanes_load(u, n);
    lanes far = lanes_load(g, n), v = lanes_clamp(far, -60, 60);
    lanes s = 1.0f / (1.0f + lanes_exp(-v)),
          vs = lanes_pick(lanes_less(lanes_all(60), far), far, v * s);
    lanes_store(y, vs * w, n);
    lanes_store(dg, e * w * (s + v * s * (1.0f - s)), n);
    lanes_store(du, e * vs, n);
}

static void silu_mul_back(float *y, float *dg, float *du, const float *d, const float *g,
                          const float *u, size_t n)
{
    size_t i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES)
        silu_mul_step(y + i, dg + i, du + i, d + i, g + i, u + i, SH_LANES);
    if (i < n) silu_mul_step(y + i, dg + i, du + i, d + i, g + i, u + i, n - i);
}

/* ---- attention ---- */

SH_INLINE void attend_step(float *s, float *d, float max, float inv_sum, float mean, size_t n)
{
    lanes x = lanes_load(s, n) - max;
    lanes p = lanes_where(~lanes_less(x, lanes_all(-87)), lanes_exp(x)) * inv_sum;
    lanes_store(s, p, n);
    lanes_store(d, p * (lanes_load(d, n) - mean), n);
}

static void attend_back(float *s, float *d, int n_, float max, float inv_sum, float mean)
{
    size_t n = (size_t)n_, i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES)
        attend_step(s + i, d + i, max, inv_sum, mean, SH_LANES);
    if (i < n) attend_step(s + i, d + i, max, inv_sum, mean, n - i);
}

/* e^(x - max), 0 where that is too small. */
SH_INLINE lanes softmax_step(const float *x, float max, size_t n)
{
    lanes v = lanes_load(x, n) - max;
    return lanes_where(~lanes_less(v, lanes_all(-87)), lanes_exp(v));
}

SH_INLINE lanes lanes_max(lanes a, lanes b)
{
    return lanes_pick(lanes_less(a, b), b, a);
}

static float max_of(const float *x, size_t n)
{
    turns most;
    size_t i = 0;
    float max;
    for (int t = 0; t < TURNS; t++) most.v[t] = lanes_all(-INFINITY);
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++)
            most.v[t] = lanes_max(most.v[t], lanes_load(x + i + t * SH_LANES, SH_LANES));
    most.v[0] = lanes_max(lanes_max(most.v[0], most.v[1]), lanes_max(most.v[2], most.v[3]));
    max = most.v[0][0];
    for (int l = 1; l < SH_LANES; l++) max = most.v[0][l] > max ? most.v[0][l] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float softmax_sum(const float *x, size_t n, float *sum)
{
    const float max = max_of(x, n);
    turns all = {0};
    size_t i = 0;
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++)
            all.v[t] += softmax_step(x + i + t * SH_LANES, max, SH_LANES);
    for (; i + SH_LANES <= n; i += SH_LANES) all.v[0] += softmax_step(x + i, max, SH_LANES);
    if (i < n) {
        lanes v = softmax_step(x + i, max, n - i);
        for (size_t l = 0; l < n - i; l++) all.v[1][l] += v[l];
    }
    *sum = turns_sum(&all);
    return max;
}

static void softmax(float *y, const float *x, size_t n, float max, float scale)
{
    size_t i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES)
        lanes_store(y + i, softmax_step(x + i, max, SH_LANES) * scale, SH_LANES);
    if (i < n) lanes_store(y + i, softmax_step(x + i, max, n - i) * scale, n - i);
}

static float dot(const float *x, const float *y, int n_)
{
    size_t n = (size_t)n_, i = 0;
    turns sum = {0};
    for (; i + TURNS * SH_LANES <= n; i += TURNS * SH_LANES)
        for (int t = 0; t < TURNS; t++) {
            size_t at = i + (size_t)t * SH_LANES;
            sum.v[t] += lanes_load(x + at, SH_LANES) * lanes_load(y + at, SH_LANES);
        }
    for (; i + SH_LANES <= n; i += SH_LANES)
        sum.v[0] += lanes_load(x + i, SH_LANES) * lanes_load(y + i, SH_LANES);
    if (i < n) sum.v[1] += lanes_load(x + i, n - i) * lanes_load(y + i, n - i);
    return turns_sum(&sum);
}

/* ---- the rest ---- */

enum { ROWS_AHEAD = 12 }; /* short rows far apart are not foreseen by the machine */

SH_INLINE void gather_step(float *y, const float *x, const float *bias, size_t n)
{
    lanes v = lanes_load(x, n);
    lanes_store(y, bias ? v + lanes_load(bias, n) : v, n);
}

static void gather(float *y, const float *x, size_t ldx, int n_row, int n_, const float *bias)
{
    size_t n = (size_t)n_;
    for (int r = 0; r < n_row; r++, x += ldx, y += n) {
        size_t i = 0;
        for (; i + SH_LANES <= n; i += SH_LANES) {
            __builtin_prefetch((const char *)x + (ROWS_AHEAD * ldx + i) * sizeof *x);
            gather_step(y + i, x + i, bias ? bias + i : NULL, SH_LANES);
        }
        if (i < n) gather_step(y + i, x + i, bias ? bias + i : NULL, n - i);
    }
}

static void dots(float *out, const float *x, size_t ldx, const float *y, size_t ldy, int n_row,
                 int n)
{
    for (int r = 0; r < n_row; r++, x += ldx, y += ldy) {
        for (int i = 0; i < n; i += SH_LANES)
            __builtin_prefetch((const char *)y + (ROWS_AHEAD * ldy + (size_t)i) * sizeof *y);
        out[r] = dot(x, y, n);
    }
}

SH_INLINE void sum_rows_step(float *y, const float *x, size_t ldx, int n_row, size_t n)
{
    lanes sum = {0};
    for (int r = 0; r < n_row; r++) sum += lanes_load(x + (size_t)r * ldx, n);
    lanes_store(y, sum, n);
}

static void sum_rows(float *y, const float *x, size_t ldx, int n_row, int n_)
{
    size_t n = (size_t)n_, i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES) sum_rows_step(y + i, x + i, ldx, n_row, SH_LANES);
    if (i < n) sum_rows_step(y + i, x + i, ldx, n_row, n - i);
}

static void scale(float *x, float a, size_t n)
{
    size_t i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES)
        lanes_store(x + i, lanes_load(x + i, SH_LANES) * a, SH_LANES);
    for (; i < n; i++) x[i] *= a;
}

/* 32 by 32 bits: the high and the low word of each product, lane by lane. */
SH_INLINE void lanes_product(lane_words *high, lane_words *low, lane_words a, uint32_t b)
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
            size_t some = n - i < SH_LANES ? n - i : SH_LANES;
            lanes v = lanes_load(x + i, some) * drop->scale;
            lanes_store(x + i, lanes_where((lane_bits)(c[w] >= drop->below), v), some);
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
        .softmax_sum = softmax_sum,
        .softmax = softmax,
        .dots = dots,
        .gather = gather,
        .sum_rows = sum_rows,
        .scale = scale,
        .dropout = dropout,
    };
}

#endif
