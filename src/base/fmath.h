/* Elementary functions that give the same bits on every machine, since the C library's do not:
 * built from operations that IEEE 754 rounds exactly. Used with the floating point of sh_cpu_enter.
 */
#ifndef SH_BASE_FMATH_H
#define SH_BASE_FMATH_H

#include <math.h>

#include "base/dtype.h"

/* e^x in float32, within 3 units in the last place. Below -87 it is 0, above 88.7 infinity.
 * n = round(x / ln 2) by the 1.5 * 2^23 trick; r = x - n ln 2 in two parts (Cody & Waite 1980); a
 * polynomial of degree 6 in r (Taylor coefficients, |r| <= 0.35); times 2^n through the exponent.
 */
static inline float sh_expf(float x)
{
    if (x != x) return x;
    if (x < -87.0f) return 0.0f;
    if (x > 88.7f) return INFINITY;
    float n = fmaf(x, 1.44269504f, 12582912.0f) - 12582912.0f;
    float r = fmaf(n, -0.693145752f, x); /* high part of ln 2: 15 bits */
    r = fmaf(n, -1.42860677e-6f, r);     /* low part */
    float p = 1.0f / 720.0f;
    p = fmaf(p, r, 1.0f / 120.0f);
    p = fmaf(p, r, 1.0f / 24.0f);
    p = fmaf(p, r, 1.0f / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* 2^128 is no float: two halves */
    int i = (int)n, h = i / 2;
    return p * sh_f32_from_bits((uint32_t)(h + 127) << 23) *
           sh_f32_from_bits((uint32_t)(i - h + 127) << 23);
}

/** e^x, ln x and the sine and cosine of x in float64, within some 1e-15 of the result (sine and
 *  cosine: of 1, for |x| below 1e6). For tables made at load. */
double sh_exp(double x);
double sh_ln(double x);
void sh_sincos(double x, double *sin, double *cos);

#endif
