/* What the matrix unit can do at most: rounds of four independent products of tiles. */
#include "kernels/amx/amx.h"

/* Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights; all of them 16 rows of 64 bytes. */
static const tile_config config = {
    .palette = 1,
    .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

static void begin(void)
{
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

static double peak_bf16(long n_round)
{
    begin();
    for (long r = 0; r < n_round; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)n_round * 4 * (16 * 16 * 32) * 2;
}

static double peak_i8(long n_round)
{
    begin();
    for (long r = 0; r < n_round; r++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
    return (double)n_round * 4 * (16 * 16 * 64) * 2;
}

void sh_peak_amx(sh_kernels *k)
{
    k->peak[SH_FORM_BF16] = peak_bf16;
    k->peak[SH_FORM_I8] = peak_i8;
}
