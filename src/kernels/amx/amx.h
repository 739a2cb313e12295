/* The parts of the AMX table. */
#ifndef SH_KERNELS_AMX_AMX_H
#define SH_KERNELS_AMX_AMX_H

#include <immintrin.h>

#include "kernels/kernels.h"

void sh_matmul_bf16_amx(sh_kernels *k);
void sh_matmul_i8_amx(sh_kernels *k);
void sh_attention_amx(sh_kernels *k);
void sh_operands_amx(sh_kernels *k);
void sh_peak_amx(sh_kernels *k);

/* The shapes of the eight tiles, as LDTILECFG reads them. Always static and const: built on the
 * stack, a compiler may drop the stores that make it. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} tile_config;

/* The sums of slices, 16 outputs of 16 tokens, added as the canonical tree adds them: slice number
 * i of a run was stored to level[*depth]. */
typedef float tile_sums[SH_LANES][SH_LANES];

SH_INLINE void tile_tree(tile_sums *level, int *depth, int i)
{
    for (; i & 1; i >>= 1) {
        (*depth)--;
        for (int t = 0; t < SH_LANES; t++) {
            __m512 left = _mm512_load_ps(level[*depth][t]);
            _mm512_store_ps(level[*depth][t],
                            _mm512_add_ps(left, _mm512_load_ps(level[*depth + 1][t])));
        }
    }
    (*depth)++;
}

/* y (n_tok, ldy) = the sums, the outputs that the mask has. */
SH_INLINE void tile_out(float *y, size_t ldy, tile_sums *sums, int n_tok, __mmask16 rows)
{
    for (int t = 0; t < n_tok; t++)
        _mm512_mask_storeu_ps(y + (size_t)t * ldy, rows, _mm512_load_ps((*sums)[t]));
}

/* A row of a tile: pairs (even[i], odd[i]) in bf16. */
SH_INLINE void pair_row(void *out, __m512 even, __m512 odd)
{
    static const uint16_t interleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    _mm512_store_si512(out, _mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), v));
}

/* The outputs that a panel has. */
SH_INLINE __mmask16 panel_rows(const sh_mat *w, int panel)
{
    int n = w->rows - panel * SH_LANES;
    return n >= SH_LANES ? 0xffff : (__mmask16)((1u << n) - 1);
}

#endif
