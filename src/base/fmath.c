/* Only + - * / and exact scaling: the compiler may not fuse them (-ffp-contract=off). */
#include "base/fmath.h"

/* fdlibm's split of ln 2 and pi/2 into parts with trailing zeros, so that n times the first is
 * exact. */
static const double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
static const double pio2_1 = 1.57079632673412561417e+00, pio2_2 = 6.07710050630396597660e-11,
                    pio2_3 = 2.02226624871116645580e-21;

double sh_exp(double x)
{
    double n = floor(x / 0.693147180559945309417 + 0.5);
    double r = (x - n * ln2_hi) - n * ln2_lo, sum = 1, term = 1;
    for (int i = 1; i <= 20; i++) {
        term = term * r / i;
        sum += term;
    }
    return ldexp(sum, (int)n);
}

/* x = m 2^e with m in [sqrt(1/2), sqrt 2); ln m = 2 atanh((m-1)/(m+1)), a series in odd powers. */
double sh_ln(double x)
{
    int e;
    double m = frexp(x, &e);
    if (m < 0.70710678118654752440) {
        m *= 2;
        e--;
    }
    double s = (m - 1) / (m + 1), s2 = s * s, power = s, sum = 0;
    for (int i = 1; i < 50; i += 2) {
        sum += power / i;
        power *= s2;
    }
    return e * ln2_hi + (2 * sum + e * ln2_lo);
}

void sh_sincos(double x, double *sin, double *cos)
{
    double n = floor(x / 1.57079632679489661923 + 0.5);
    double r = ((x - n * pio2_1) - n * pio2_2) - n * pio2_3, r2 = r * r;
    double s = r, c = 1, st = r, ct = 1;
    for (int i = 2; i <= 22; i += 2) {
        ct = -ct * r2 / ((i - 1) * i);
        st = -st * r2 / (i * (i + 1));
        c += ct;
        s += st;
    }
    switch ((long long)n & 3) {
    case 0:
        *sin = s, *cos = c;
        break;
    case 1:
        *sin = c, *cos = -s;
        break;
    case 2:
        *sin = -s, *cos = -c;
        break;
    default:
        *sin = -c, *cos = s;
        break;
    }
}
