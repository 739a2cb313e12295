/* A vector of an instruction set, for the sources that several sets share (vector_rows.h,
 * float_rows.h, attention_rows.h, attend_rows.h). A set's header includes this one after it has
 * defined
 *
 *     vec, VEC    the type of a vector of floats, and how many: 4, 8 or 16
 *     VEC_SUMS    vectors of sums that have registers while others are loaded
 *
 * and defines after it the functions that are only declared here. The operators of C work on
 * vectors; a comparison gives words of all ones or zeros. */
#ifndef SH_KERNELS_VEC_H
#define SH_KERNELS_VEC_H

#include <string.h>

#include "kernels/kernels.h"

/* f of each lane's number and x, with commas between them */
#if VEC == 4
#define VEC_EACH(f, x) f(0, x), f(1, x), f(2, x), f(3, x)
#elif VEC == 8
#define VEC_EACH(f, x) f(0, x), f(1, x), f(2, x), f(3, x), f(4, x), f(5, x), f(6, x), f(7, x)
#else
#define VEC_EACH(f, x)                                                                             \
    f(0, x), f(1, x), f(2, x), f(3, x), f(4, x), f(5, x), f(6, x), f(7, x), f(8, x), f(9, x),      \
        f(10, x), f(11, x), f(12, x), f(13, x), f(14, x), f(15, x)
#endif
#define VEC_SAME(i, x) (i)
#define VEC_XOR(i, x)  (((i) ^ (x)) % VEC)
#define VEC_AND(i, x)  ((i) & (x))
#define VEC_OR(i, x)   ((i) | (x))
/* Lane i of the result is lane f(i, x) of v. */
#define VEC_SHUFFLE(v, f, x) __builtin_shufflevector(v, v, VEC_EACH(f, x))

typedef int32_t vec_bits __attribute__((vector_size(VEC * 4)));
typedef uint32_t vec_words __attribute__((vector_size(VEC * 4)));
typedef float vec_anywhere __attribute__((vector_size(VEC * 4), aligned(4), may_alias));

/* ---- the instruction set's ---- */

/* a b + c, rounded once */
SH_INLINE vec vec_fma(vec a, vec b, vec c);
/* The first n values, n from 0 to VEC - 1; zeros after them. */
SH_INLINE vec vec_load_first(const float *p, int n);
SH_INLINE void vec_store_first(float *p, vec v, int n);
/* VEC values as floats; as f16, rounded to even. */
SH_INLINE vec vec_f16(const uint16_t *p);
SH_INLINE vec vec_bf16(const uint16_t *p);
SH_INLINE vec vec_i8(const int8_t *p);
SH_INLINE void vec_put_f16(uint16_t *out, vec v);
/* The low halves of the words; their low bytes. */
SH_INLINE void vec_put16(uint16_t *out, vec_words v);
SH_INLINE void vec_put8(int8_t *out, vec_words v);

/* ---- all sets' ---- */

enum { VEC_PANEL = SH_LANES / VEC }; /* vectors of the 16 lanes of a panel, or of a sum */

SH_INLINE vec vec_load(const float *p)
{
    return *(const vec_anywhere *)p;
}
SH_INLINE void vec_store(float *p, vec v)
{
    *(vec_anywhere *)p = v;
}
/* A whole vector where n is VEC or more, else the first n values. */
SH_INLINE vec vec_load_some(const float *p, int n)
{
    return n >= VEC ? vec_load(p) : vec_load_first(p, n < 0 ? 0 : n);
}
SH_INLINE void vec_store_some(float *p, vec v, int n)
{
    if (n >= VEC)
        vec_store(p, v);
    else
        vec_store_first(p, v, n);
}

SH_INLINE vec vec_all(float a)
{
    return a - (vec){0}; /* -0 stays -0 */
}
SH_INLINE vec vec_pick(vec_bits mask, vec a, vec b)
{
    return (vec)((mask & (vec_bits)a) | (~mask & (vec_bits)b));
}

/* The first n lanes. */
SH_INLINE vec_bits vec_first(int n)
{
    return (vec_bits){VEC_EACH(VEC_SAME, 0)} < n;
}
SH_INLINE vec vec_where(vec_bits mask, vec a)
{
    return (vec)(mask & (vec_bits)a);
}

/* Lanes that are h apart (8, 4, 2 or 1) change places. */
SH_INLINE vec vec_swap(vec v, const int h)
{
    if (h == 8) return VEC_SHUFFLE(v, VEC_XOR, 8);
    if (h == 4) return VEC_SHUFFLE(v, VEC_XOR, 4);
    if (h == 2) return VEC_SHUFFLE(v, VEC_XOR, 2);
    return VEC_SHUFFLE(v, VEC_XOR, 1);
}
/* The largest lane; the sum of the lanes. */
SH_INLINE int32_t vec_most(vec_bits v)
{
#pragma GCC unroll 4
    for (int h = VEC / 2; h; h /= 2) {
        vec_bits other = (vec_bits)vec_swap((vec)v, h);
        v = (vec_bits)vec_pick(other > v, (vec)other, (vec)v);
    }
    return v[0];
}
SH_INLINE int32_t vec_total(vec_bits v)
{
#pragma GCC unroll 4
    for (int h = VEC / 2; h; h /= 2) v += (vec_bits)vec_swap((vec)v, h);
    return v[0];
}

/* sh_expf of each value: the same operations, but for the power of two, which is added to the
 * exponent: from -87 to 88.7 the result is no subnormal and no infinity. */
SH_INLINE vec vec_exp(vec x)
{
    const vec magic = vec_all(12582912.0f), one = vec_all(1.0f);
    vec t = vec_fma(x, vec_all(1.44269504f), magic), n = t - magic;
    vec r = vec_fma(n, vec_all(-0.693145752f), x);
    r = vec_fma(n, vec_all(-1.42860677e-6f), r);
    vec p = vec_all(1.0f / 720.0f);
    p = vec_fma(p, r, vec_all(1.0f / 120.0f));
    p = vec_fma(p, r, vec_all(1.0f / 24.0f));
    p = vec_fma(p, r, vec_all(1.0f / 6.0f));
    p = vec_fma(p, r, vec_all(0.5f));
    p = vec_fma(p, r, one);
    p = vec_fma(p, r, one);
    p = (vec)((vec_words)p + ((vec_words)t << 23));
    p = vec_where(x >= -87.0f, p);
    p = vec_pick(x > 88.7f, vec_all(__builtin_inff()), p);
    return vec_pick(x == x, p, x);
}

/* sh_bf16_from_f32 of each value, in the upper halves; the lower are 0. */
SH_INLINE vec_bits vec_round_bf16(vec v)
{
    vec_words u = (vec_words)v, r = u + 0x7fff + ((u >> 16) & 1);
    vec number = vec_pick(v == v, (vec)r, (vec)(u | 0x400000));
    return (vec_bits)number & (int32_t)0xffff0000;
}
SH_INLINE void vec_put_bf16(uint16_t *out, vec v)
{
    vec_put16(out, (vec_words)vec_round_bf16(v) >> 16);
}

#endif
