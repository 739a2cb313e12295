/* Our own exp, ln, sine and cosine against the C library's in float64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/fmath.h"

/* The distance between two floats around v. */
static double ulp(double v)
{
    int e;
    frexp(v, &e);
    return ldexp(1, e - 24 < -149 ? -149 : e - 24);
}

static void check_expf(float x)
{
    float y = sh_expf(x);
    double want = exp((double)x);
    if (x < -87.0f) {
        assert_true(y == 0 && !signbit(y));
    } else if (x > 88.7f) {
        assert_true(y == INFINITY);
    } else if (!(fabs((double)y - want) <= 3 * ulp(want))) {
        fail_msg("sh_expf(%a) is %a, and e^x %a: off by %.2f ulp", (double)x, (double)y, want,
                 fabs((double)y - want) / ulp(want));
    }
}

/* About every fiftieth float of either sign up to 128, and then larger ones. */
static void test_expf(void **state)
{
    (void)state;
    uint64_t fp = sh_cpu_enter(); /* as the kernels have it */
    for (uint32_t u = 0x30000000u; u < 0x43000000u; u += 97) {
        check_expf(sh_f32_from_bits(u));
        check_expf(sh_f32_from_bits(u | 0x80000000u));
    }
    for (uint32_t u = 0x43000000u; u < 0x7f800000u; u += 99991) {
        check_expf(sh_f32_from_bits(u));
        check_expf(sh_f32_from_bits(u | 0x80000000u));
    }
    sh_cpu_leave(fp);
}

static void test_expf_limits(void **state)
{
    (void)state;
    assert_true(sh_expf(0.0f) == 1.0f && sh_expf(-0.0f) == 1.0f);
    assert_true(sh_expf(0x1p-30f) == 1.0f && sh_expf(-0x1p-149f) == 1.0f);
    assert_true(sh_expf(INFINITY) == INFINITY && sh_expf(-INFINITY) == 0.0f);
    assert_true(isnan(sh_expf(NAN)) && isnan(sh_expf(-NAN)));
    assert_true(sh_expf(88.7f) < INFINITY && sh_expf(nextafterf(88.7f, 100)) == INFINITY);
    assert_true(sh_expf(-87.0f) >= 0x1p-126f && sh_expf(nextafterf(-87.0f, -100)) == 0);
}

/* It rises, but for the error of an ulp or two between neighbours. */
static void test_expf_rises(void **state)
{
    (void)state;
    float last = 0, most = 0;
    for (double x = -87.5; x < 89; x += 1.0 / 4096) {
        float y = sh_expf((float)x);
        assert_true(y >= last); /* a step of 2^-12 is far more than its error */
        last = y;
    }
    for (int at = -80; at < 80; at += 3) { /* neighbours */
        float x = (float)at + 0.3f;
        most = sh_expf(x);
        for (int i = 0; i < 20000; i++) {
            float y = sh_expf(x = nextafterf(x, 100));
            assert_true((double)(most - y) <= 2 * ulp((double)y));
            if (y > most) most = y;
        }
    }
}

static void test_exp_ln(void **state)
{
    (void)state;
    for (double x = -700; x < 700; x += 0.0973) {
        assert_true(fabs(sh_exp(x) - exp(x)) <= 1e-14 * exp(x));
        double y = exp(x);
        assert_true(fabs(sh_ln(y) - log(y)) <= 1e-15 * fabs(log(y)) + 1e-16);
    }
    for (double x = 0.5; x < 2; x += 0.000173) /* where the logarithm is small */
        assert_true(fabs(sh_ln(x) - log(x)) <= 2e-15 * fabs(log(x)));
    assert_true(sh_exp(0) == 1 && sh_ln(1) == 0);
    assert_true(sh_ln(2) == log(2.0));
}

static void test_sincos(void **state)
{
    (void)state;
    for (double x = 1e-8; x < 1e6; x *= 1.00013)
        for (int sign = -1; sign <= 1; sign += 2) {
            double s, c;
            sh_sincos(sign * x, &s, &c);
            assert_true(fabs(s - sin(sign * x)) <= 1e-14);
            assert_true(fabs(c - cos(x)) <= 1e-14);
        }
    for (int i = 0; i < 100000; i += 7) { /* positions, and about multiples of pi/2 */
        double s, c;
        sh_sincos(i, &s, &c);
        assert_true(fabs(s - sin(i)) <= 1e-14 && fabs(c - cos(i)) <= 1e-14);
        sh_sincos(i * 1.5707963267948966, &s, &c);
        assert_true(fabs(s - sin(i * 1.5707963267948966)) <= 1e-14);
        assert_true(fabs(c - cos(i * 1.5707963267948966)) <= 1e-14);
    }
    double s, c;
    sh_sincos(0, &s, &c);
    assert_true(s == 0 && c == 1);
}

static uint64_t hash(uint64_t h, uint64_t bits)
{
    return (h ^ bits) * 1099511628211u;
}

static uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The same bits on every machine and from every compiler: a hash of many of them. It changes only
 * when a formula does; then all answers change. */
static void test_bits(void **state)
{
    uint64_t e = 14695981039346656037u, d = e, fp = sh_cpu_enter();
    (void)state;
    for (int i = -355000; i < 355000; i++) e = hash(e, sh_f32_bits(sh_expf((float)i / 4000)));
    for (int i = 1; i < 100000; i++) {
        double s, c;
        sh_sincos(i * 1.37, &s, &c);
        d = hash(hash(d, bits_of(s)), bits_of(c));
        d = hash(hash(d, bits_of(sh_exp(i / 2000.0))), bits_of(sh_ln(i * 0.013)));
    }
    sh_cpu_leave(fp);
    assert_int_equal(e, 0x62e91d0410c3987f);
    assert_int_equal(d, 0x9f1f843a3d78c0f2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expf),       cmocka_unit_test(test_expf_limits),
        cmocka_unit_test(test_expf_rises), cmocka_unit_test(test_exp_ln),
        cmocka_unit_test(test_sincos),     cmocka_unit_test(test_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
