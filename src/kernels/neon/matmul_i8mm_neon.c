/* NEON with the matrix product of bytes (i8mm): USMMLA multiplies 8 k's of two outputs by those of
 * two tokens, exactly, twice as many in an instruction as the dot product. So it is for two tokens
 * and more; one alone is left to NEON's row. */
#include "base/cpu.h"
#include "kernels/neon/neon.h"

enum { TILE = 4, PAIRS = TILE / 2 };

/* Of a block: the sums of two tokens by 16 outputs, two by two: (output, token), (output, next
 * token), (next output, token), .. */
typedef int32x4_t pair_sums[8];

/* Token i of n; the last one stands in for a partner that is not there. */
SH_INLINE const uint8_t *token(const uint8_t *x, size_t ldx, int n, int i)
{
    return x + (size_t)(i < n ? i : n - 1) * ldx;
}

/* What a dot of unsigned weights has too much, is taken away before it begins: `zero` times the sum
 * of the block's x's, which is `at` bytes into a token. */
SH_INLINE void begin(pair_sums dot, const uint8_t *a, const uint8_t *b, size_t at, int zero)
{
    int32_t sum[2];
    memcpy(sum, a + at, sizeof *sum);
    memcpy(sum + 1, b + at, sizeof *sum);
    int32x2_t minus = vmul_n_s32(vld1_s32(sum), -zero);
    for (int i = 0; i < 8; i++) dot[i] = vcombine_s32(minus, minus);
}

/* Sums i and i + 1 of each pair: four outputs' k's, 4 and the next 4, by the pair's 8 k's. */
SH_INLINE void multiply(pair_sums *dot, int i, uint8x16_t low, uint8x16_t high, const int8x16_t *x,
                        int n)
{
    uint32x4_t a = vreinterpretq_u32_u8(low), b = vreinterpretq_u32_u8(high);
    uint8x16_t two = vreinterpretq_u8_u32(vzip1q_u32(a, b));
    uint8x16_t next = vreinterpretq_u8_u32(vzip2q_u32(a, b));
    for (int t = 0; t < n; t += 2) {
        dot[t / 2][i] = vusmmlaq_s32(dot[t / 2][i], two, x[t / 2]);
        dot[t / 2][i + 1] = vusmmlaq_s32(dot[t / 2][i + 1], next, x[t / 2]);
    }
}

/* 8 k's of each pair, `at` bytes into the tokens. */
SH_INLINE void fetch(int8x16_t *v, const uint8_t *x, size_t ldx, size_t at, int n)
{
    for (int t = 0; t < n; t += 2)
        v[t / 2] = vreinterpretq_s8_u8(
            vcombine_u8(vld1_u8(token(x, ldx, n, t) + at), vld1_u8(token(x, ldx, n, t + 1) + at)));
}

/* The sums of a block go to acc (n, SH_LANES). */
SH_INLINE void end(float *acc, pair_sums *dot, const uint16_t *scale, const uint8_t *x, size_t ldx,
                   size_t at, int n)
{
    for (int t = 0; t < n; t++) {
        int32x4_t lane[4];
        float scale_x;
        memcpy(&scale_x, x + (size_t)t * ldx + at, sizeof scale_x);
        for (int i = 0; i < 4; i++) {
            int32x4_t a = dot[t / 2][2 * i], b = dot[t / 2][2 * i + 1];
            lane[i] = t % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
        }
        sh_add_block(acc + t * SH_LANES, lane, scale, scale_x);
    }
}

/* One block's weights, as packed, by the tokens' k's of the block, which begin `at` bytes in. */
SH_INLINE void q8_block(pair_sums *dot, const uint8_t *q, const uint8_t *x, size_t ldx, size_t at,
                        int n)
{
#pragma GCC unroll 1
    for (int g = 0; g < 8; g += 2) {
        int8x16_t v[PAIRS];
        fetch(v, x, ldx, at + (size_t)g * 4, n);
        for (int i = 0; i < 4; i++)
            multiply(dot, 2 * i, vld1q_u8(q + g * 64 + i * 16), vld1q_u8(q + g * 64 + 64 + i * 16),
                     v, n);
    }
}

SH_INLINE void q4_block(pair_sums *dot, const uint8_t *q, const uint8_t *x, size_t ldx, size_t at,
                        int n)
{
    const uint8x16_t nibble = vdupq_n_u8(15);
#pragma GCC unroll 1
    for (int g = 0; g < 4; g += 2) {
        int8x16_t v[PAIRS], u[PAIRS];
        fetch(v, x, ldx, at + (size_t)g * 4, n);
        fetch(u, x, ldx, at + (size_t)g * 4 + 16, n);
        for (int i = 0; i < 4; i++) {
            uint8x16_t p0 = vld1q_u8(q + g * 64 + i * 16);
            uint8x16_t p1 = vld1q_u8(q + g * 64 + 64 + i * 16);
            multiply(dot, 2 * i, vandq_u8(p0, nibble), vandq_u8(p1, nibble), v, n);
            multiply(dot, 2 * i, vshrq_n_u8(p0, 4), vshrq_n_u8(p1, 4), u, n);
        }
    }
}

/* q8: of q8_0, else of q4_0 */
SH_INLINE void sum(const bool q8, float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x,
                   size_t ldx, const int n)
{
    const size_t bytes = q8 ? 512 : 256; /* of a block */
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice], n_block = kp / SH_RUN;
    const uint16_t *scale = sh_scales(w, turn.panel);
    for (size_t b = (size_t)turn.lo / SH_RUN; b < (size_t)turn.hi / SH_RUN; b++) {
        const uint8_t *q = turn.panel + b * bytes;
        pair_sums dot[PAIRS];
        sh_ask_for(q, turn.ahead, q8 ? 512 : 256);
        sh_ask_scales(scale + b * SH_LANES, w->panel_bytes, (int)b);
        for (int t = 0; t < n; t += 2)
            begin(dot[t / 2], token(x, ldx, n, t), token(x, ldx, n, t + 1),
                  kp + (n_block + b) * sizeof(float), q8 ? 128 : 8);
        if (q8)
            q8_block(dot, q, x, ldx, b * SH_RUN, n);
        else
            q4_block(dot, q, x, ldx, b * SH_RUN, n);
        end(acc, dot, scale + b * SH_LANES, x, ldx, kp + b * sizeof(float), n);
    }
}

SH_INLINE void q8_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int n)
{
    sum(true, acc, w, turn, x, ldx, n);
}
SH_INLINE void q4_sum(float *acc, const sh_mat *w, sh_turn turn, const uint8_t *x, size_t ldx,
                      const int n)
{
    sum(false, acc, w, turn, x, ldx, n);
}
SH_SUMS(q8_sums, q8_sum, TILE)
SH_SUMS(q4_sums, q4_sum, TILE)

static sh_matmul_fn *one_q8_0, *one_q4_0; /* for one token: the rows below in the table */

#define MATMUL(name, sums, one)                                                                    \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        if (n_tok == 1)                                                                            \
            one(y, ldy, w, panel_lo, panel_hi, slice_lo, slice_hi, x, ldx, 1);                     \
        else                                                                                       \
            sh_product_sums(sums, NULL, TILE, SH_MATMUL_ARGS);                                     \
    }
MATMUL(q8_i8, q8_sums, one_q8_0)
MATMUL(q4_i8, q4_sums, one_q4_0)

static double peak_i8(long n_round)
{
    enum { N_ACC = 16 };
    uint8x16_t a = vdupq_n_u8(3);
    int8x16_t b = vdupq_n_s8(3);
    int32x4_t acc[N_ACC];
    for (int i = 0; i < N_ACC; i++) acc[i] = vdupq_n_s32(0);
    for (long r = 0; r < n_round; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < N_ACC; i++) {
            acc[i] = vusmmlaq_s32(acc[i], a, b);
            __asm__ volatile("" : "+w"(acc[i]), "+w"(a), "+w"(b));
        }
    }
    return (double)n_round * N_ACC * 32 * 2;
}

static void overlay(sh_kernels *k)
{
    one_q8_0 = k->matmul[SH_Q8_0][SH_FORM_I8];
    one_q4_0 = k->matmul[SH_Q4_0][SH_FORM_I8];
    k->matmul[SH_Q8_0][SH_FORM_I8] = q8_i8;
    k->matmul[SH_Q4_0][SH_FORM_I8] = q4_i8;
    k->peak[SH_FORM_I8] = peak_i8;
}

const sh_isa sh_isa_i8mm = {.name = "i8mm", .needs = SH_CPU_I8MM, .overlay = overlay};
