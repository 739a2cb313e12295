/* The reader stays inside its bytes whatever is asked of it; what the writer writes reads back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/cursor.h"

static uint64_t random_state;

static uint64_t random_u64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Little-endian, byte by byte, on every machine. */
static void test_bytes(void **state)
{
    static const uint8_t want[] = {0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f, 0x0e, 0x0d,
                                   0x0c, 0x0b, 0x0a, 0x09, 0x08, 0x00, 0x00, 0x80, 0xbf, 0,
                                   0,    0,    0,    0,    0,    0xf8, 0x3f, 'h',  'i'};
    sh_buf b = {0};
    (void)state;
    sh_put_u8(&b, 0x01);
    sh_put_u16(&b, 0x0203);
    sh_put_u32(&b, 0x04050607);
    sh_put_u64(&b, 0x08090a0b0c0d0e0f);
    sh_put_f32(&b, -1);
    sh_put_f64(&b, 1.5);
    sh_put_bytes(&b, "hi", 2);
    sh_put_bytes(&b, NULL, 0);
    assert_false(b.bad);
    assert_int_equal(b.n, sizeof want);
    assert_memory_equal(b.p, want, sizeof want);
    sh_cursor c = sh_cursor_of(b.p, b.n);
    assert_int_equal(sh_get_u8(&c), 0x01);
    assert_int_equal(sh_get_u16(&c), 0x0203);
    assert_int_equal(sh_get_u32(&c), 0x04050607);
    assert_true(sh_get_u64(&c) == 0x08090a0b0c0d0e0f);
    assert_true(sh_get_f32(&c) == -1 && sh_get_f64(&c) == 1.5);
    assert_memory_equal(sh_get_bytes(&c, 2), "hi", 2);
    assert_int_equal(sh_cursor_left(&c), 0);
    assert_false(c.bad);
    sh_buf_free(&b);
    assert_null(b.p);
    sh_buf_free(&b);
}

/* Random values of random widths, read back until past the end, from a block of exactly their size.
 */
static void test_random(void **state)
{
    (void)state;
    random_state = 1;
    for (int round = 0; round < 2000; round++) {
        int kind[40], n = (int)(random_u64() % 40);
        uint64_t v[40];
        sh_buf b = {0};
        for (int i = 0; i < n; i++) {
            kind[i] = (int)(random_u64() % 6);
            v[i] = random_u64();
            switch (kind[i]) {
            case 0:
                sh_put_u8(&b, (uint8_t)v[i]);
                break;
            case 1:
                sh_put_u16(&b, (uint16_t)v[i]);
                break;
            case 2:
                sh_put_u32(&b, (uint32_t)v[i]);
                break;
            case 3:
                sh_put_u64(&b, v[i]);
                break;
            case 4:
                sh_put_f32(&b, (float)(int32_t)v[i]);
                break;
            default:
                sh_put_f64(&b, (double)(int64_t)v[i]);
            }
        }
        size_t cut = b.n ? random_u64() % (b.n + 1) : 0; /* the bytes end here */
        uint8_t *p = malloc(cut ? cut : 1);
        assert_non_null(p);
        if (cut) memcpy(p, b.p, cut);
        sh_cursor c = sh_cursor_of(p, cut);
        size_t at = 0;
        for (int i = 0; i < n; i++) {
            static const size_t width[] = {1, 2, 4, 8, 4, 8};
            bool fits = !c.bad && at + width[kind[i]] <= cut;
            double f = 0;
            uint64_t u = 0;
            switch (kind[i]) {
            case 0:
                u = sh_get_u8(&c), v[i] = (uint8_t)v[i];
                break;
            case 1:
                u = sh_get_u16(&c), v[i] = (uint16_t)v[i];
                break;
            case 2:
                u = sh_get_u32(&c), v[i] = (uint32_t)v[i];
                break;
            case 3:
                u = sh_get_u64(&c);
                break;
            case 4:
                f = (double)sh_get_f32(&c);
                break;
            default:
                f = sh_get_f64(&c);
            }
            assert_int_equal(c.bad, !fits);
            if (kind[i] < 4) assert_true(u == (fits ? v[i] : 0));
            if (kind[i] == 4) assert_true(f == (fits ? (double)(float)(int32_t)v[i] : 0));
            if (kind[i] == 5) assert_true(f == (fits ? (double)(int64_t)v[i] : 0));
            if (fits) at += width[kind[i]];
            assert_int_equal(sh_cursor_left(&c), cut - at); /* a failed read takes nothing */
        }
        free(p);
        sh_buf_free(&b);
    }
}

/* Sizes that would wrap around. */
static void test_limits(void **state)
{
    uint8_t bytes[4] = {1, 2, 3, 4};
    sh_cursor c = sh_cursor_of(bytes, 4);
    (void)state;
    assert_ptr_equal(sh_get_bytes(&c, 0), bytes);
    assert_null(sh_get_bytes(&c, SIZE_MAX));
    assert_true(c.bad);
    assert_null(sh_get_bytes(&c, 0)); /* bad stays bad */
    assert_int_equal(sh_get_u8(&c), 0);
    c = sh_cursor_of(bytes, 4);
    assert_null(sh_get_bytes(&c, 5));
    c = sh_cursor_of(bytes, 0);
    assert_int_equal(sh_get_u32(&c), 0);
    assert_true(c.bad);
}

/* A size that wraps around is no small one: the writer says so and stays as it was. */
static void test_too_much(void **state)
{
    sh_buf b = {0};
    (void)state;
    sh_put_u32(&b, 7);
    sh_put_bytes(&b, &b, SIZE_MAX - 2);
    assert_true(b.bad);
    sh_put_u8(&b, 1); /* bad stays bad */
    assert_int_equal(b.n, 4);
    sh_buf_free(&b);
    assert_false(b.bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_too_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
