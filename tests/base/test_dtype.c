/* Element types: conversions against plain references, and the quantisers' error bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "base/dtype.h"

/* The value of a 16-bit float by its definition. */
static double value_of(uint16_t h, int exp_bits, int man_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1, exp = (h & 0x7fff) >> man_bits,
        man = h & ((1 << man_bits) - 1);
    double v = exp == (1 << exp_bits) - 1 ? (man ? NAN : INFINITY)
               : exp                      ? ldexp(man + (1 << man_bits), exp - bias - man_bits)
                                          : ldexp(man, 1 - bias - man_bits);
    return h & 0x8000 ? -v : v;
}

/* All 65536 values there and back; between neighbours, to the nearest and on a tie to the even one.
 */
static void check_half(float (*to)(uint16_t), uint16_t (*from)(float), int exp_bits, int man_bits)
{
    for (int i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        double want = value_of(h, exp_bits, man_bits);
        float got = to(h);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(to(from(got))));
            continue;
        }
        assert_true((double)got == want && !signbit(got) == !signbit(want));
        assert_int_equal(from(got), h);
    }
    int inf = ((1 << exp_bits) - 1) << man_bits;
    for (int i = 0; i < inf; i++) { /* magnitudes; the one after the last is infinity */
        double lo = value_of((uint16_t)i, exp_bits, man_bits);
        double step = i + 1 < inf ? value_of((uint16_t)(i + 1), exp_bits, man_bits) - lo
                                  : lo - value_of((uint16_t)(i - 1), exp_bits, man_bits);
        float mid = (float)(lo + step / 2);
        assert_true((double)mid == lo + step / 2);
        assert_int_equal(from(mid), i + (i & 1));
        assert_int_equal(from(nextafterf(mid, INFINITY)), i + 1);
        assert_int_equal(from(nextafterf(mid, 0)), i);
        assert_int_equal(from(-mid), 0x8000 | (i + (i & 1)));
    }
}

static float bf16_to(uint16_t h)
{
    return sh_bf16_to_f32(h);
}
static uint16_t bf16_from(float f)
{
    return sh_bf16_from_f32(f);
}

static void test_f16(void **state)
{
    (void)state;
    check_half(sh_f16_to_f32, sh_f16_from_f32, 5, 10);
    assert_int_equal(sh_f16_from_f32(INFINITY), 0x7c00);
    assert_int_equal(sh_f16_from_f32(1e30f), 0x7c00);
    assert_int_equal(sh_f16_from_f32(-1e-30f), 0x8000);
}

static void test_bf16(void **state)
{
    (void)state;
    check_half(bf16_to, bf16_from, 8, 7);
    assert_int_equal(sh_bf16_from_f32(-INFINITY), 0xff80);
}

/* A NaN whose payload is only in the low bits must not become infinity. */
static void test_nan(void **state)
{
    (void)state;
    for (uint32_t payload = 1; payload < 1u << 23; payload <<= 1) {
        float f = sh_f32_from_bits(0xff800000u | payload);
        assert_true(isnan(sh_f16_to_f32(sh_f16_from_f32(f))));
        assert_true(isnan(sh_bf16_to_f32(sh_bf16_from_f32(f))));
    }
}

/* n blocks of values of many magnitudes, some blocks of zeros, one of a single spike. */
static void fill(float *x, int n_block)
{
    unsigned seed = 7;
    for (int b = 0; b < n_block; b++)
        for (int j = 0; j < 32; j++) {
            seed = seed * 1664525u + 1013904223u;
            float u = (float)(int)(seed >> 8 & 0xffff) / 32768.0f - 1.0f;
            float scale = ldexpf(1.0f, b % 20 - 5);
            x[32 * b + j] = b % 7 == 3 ? 0.0f : b % 7 == 5 ? (j == 11 ? -scale : 0.0f) : u * scale;
        }
}

static float largest(const float *x)
{
    float m = 0;
    for (int j = 0; j < 32; j++) m = fmaxf(m, fabsf(x[j]));
    return m;
}

/* The rounded scale is off by 2^-11 at most, the quantum by half of one; q4_0 has no +8, so the
 * value opposite to the largest may be off by a whole one. */
static void check_blocks(sh_dtype t, float quantum, float off)
{
    enum { N_BLOCK = 200, N = 32 * N_BLOCK };
    const sh_dtype_info *d = &sh_dtypes[t];
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    size_t n_bytes = sh_dtype_bytes(t, N);
    uint8_t *q = malloc(n_bytes + 1), *again = malloc(n_bytes);
    assert_true(x && y && q && again);
    fill(x, N_BLOCK);
    d->from_f32(q + 1, x, N); /* at an odd address, as in a file */
    d->to_f32(y, q + 1, N);
    for (int i = 0; i < N; i++) {
        float m = largest(x + i / 32 * 32);
        assert_true(fabsf(y[i] - x[i]) <= m * (quantum * off + 0x1p-11f) * 1.0001f);
        if (x[i] == 0) assert_true(y[i] == 0);
    }
    d->from_f32(again, y, N); /* values that are of the type are kept */
    assert_memory_equal(again, q + 1, n_bytes);
    free(x);
    free(y);
    free(q);
    free(again);
}

static void test_q8_0(void **state)
{
    (void)state;
    check_blocks(SH_Q8_0, 1.0f / 127, 0.5f);
}

static void test_q4_0(void **state)
{
    (void)state;
    check_blocks(SH_Q4_0, 1.0f / 8, 1.0f);
}

/* The halves of a q4_0 block, by hand. */
static void test_q4_0_layout(void **state)
{
    (void)state;
    float x[32] = {0}, y[32];
    uint8_t q[18];
    for (int j = 0; j < 32; j++) x[j] = (float)(j % 16 - 8) * 0.5f;
    sh_dtypes[SH_Q4_0].from_f32(q, x, 32);
    assert_int_equal(q[0] | q[1] << 8, sh_f16_from_f32(0.5f));
    for (int j = 0; j < 16; j++) assert_int_equal(q[2 + j], j | j << 4);
    sh_dtypes[SH_Q4_0].to_f32(y, q, 32);
    assert_memory_equal(x, y, sizeof x);
}

/* Values too small for any scale become zero, never infinity times zero. */
static void test_extremes(void **state)
{
    (void)state;
    const float bad[] = {1e-45f, -0x1p-130f, 1e-40f, -0.0f};
    for (int t = SH_Q8_0; t <= SH_Q4_0; t++)
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            float x[32] = {0}, y[32];
            uint8_t q[34];
            x[5] = bad[i];
            sh_dtypes[t].from_f32(q, x, 32);
            sh_dtypes[t].to_f32(y, q, 32);
            for (int j = 0; j < 32; j++) assert_true(y[j] == 0);
        }
}

static void test_table(void **state)
{
    (void)state;
    for (int t = 0; t < SH_N_DTYPE; t++) {
        const sh_dtype_info *d = &sh_dtypes[t];
        assert_int_equal(sh_dtype_by_name(d->name), t);
        assert_int_equal(sh_dtype_by_gguf_id(d->gguf_id), t);
        assert_string_equal(sh_gguf_type_name(d->gguf_id), d->name);
        assert_non_null(strstr(sh_dtype_list(), d->name));
        assert_int_equal(sh_dtype_bytes((sh_dtype)t, 320), 320 / d->block * d->block_bytes);
    }
    assert_int_equal(sh_dtype_by_name("q4_k"), -1);
    assert_int_equal(sh_dtype_by_gguf_id(12), -1);
    assert_string_equal(sh_gguf_type_name(12), "q4_k");
    assert_null(sh_gguf_type_name(1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),      cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_nan),      cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_q4_0),     cmocka_unit_test(test_q4_0_layout),
        cmocka_unit_test(test_extremes), cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
