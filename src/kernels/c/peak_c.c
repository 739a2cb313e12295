/* What portable C can do at most: the rows `peak` and `read`. */
#include <math.h>

#include "kernels/c/c.h"

/* Values change behind the compiler's back, so that no round is left out. */
static void hide(void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

static double peak_f32(long n_round)
{
    float acc[SH_LANES] = {0}, w[SH_LANES] = {0}, x = 0.5f;
    hide(w);
    for (long r = 0; r < n_round; r++) {
        hide(&x);
        for (int l = 0; l < SH_LANES; l++) acc[l] = fmaf(w[l], x, acc[l]);
    }
    hide(acc);
    return (double)n_round * SH_LANES * 2;
}

static double peak_i8(long n_round)
{
    int32_t acc[SH_LANES] = {0};
    uint8_t w[SH_LANES * 4] = {0};
    int8_t x[4] = {1, 2, 3, 4};
    hide(w);
    for (long r = 0; r < n_round; r++) {
        hide(x);
        for (int l = 0; l < SH_LANES; l++)
            for (int i = 0; i < 4; i++) acc[l] += w[l * 4 + i] * x[i];
    }
    hide(acc);
    return (double)n_round * SH_LANES * 4 * 2;
}

static uint64_t read_all(const void *p, size_t n)
{
    const uint64_t *v = p;
    uint64_t s[8] = {0};
    for (size_t i = 0; i < n / 8; i += 8)
        for (size_t j = 0; j < 8; j++) s[j] ^= v[i + j];
    return s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

void sh_peak_c(sh_kernels *k)
{
    k->peak[SH_FORM_F32] = peak_f32;
    k->peak[SH_FORM_BF16] = peak_f32; /* bf16 is summed by float32 multiply-adds */
    k->peak[SH_FORM_I8] = peak_i8;
    k->read = read_all;
}
