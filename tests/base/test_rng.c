/* Philox4x32-10: the known answers that its authors publish with Random123 (kat_vectors), and that
 * counter and key matter in every bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"

static void test_known_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        sh_philox(out, known[i].counter, known[i].key);
        assert_memory_equal(out, known[i].want, sizeof out);
    }
}

/* Of 192 bits in, each changes about half of the 128 that come out. */
static void test_every_bit(void **state)
{
    (void)state;
    for (int bit = 0; bit < 192; bit++) {
        uint32_t in[6] = {1, 2, 3, 4, 5, 6}, a[4], b[4];
        int n = 0;
        sh_philox(a, in, in + 4);
        in[bit / 32] ^= 1u << (bit % 32);
        sh_philox(b, in, in + 4);
        for (int i = 0; i < 4; i++) n += __builtin_popcount(a[i] ^ b[i]);
        assert_in_range(n, 36, 92); /* five standard deviations */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_every_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
