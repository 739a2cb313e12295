/* Products in float32: f32 and f16 weights by the common source; bf16, and weights that become
 * bf16, as chains of even and odd k's over runs of 32. */
#include "kernels/neon/neon.h"

#include "kernels/float_rows.h"

enum { RUN_TILE = 2 };

/* ---- bf16 ---- */

/* A run of weights as bf16 pairs, [16][SH_LANES][2]: where it lies, or made in `room`. */
typedef const uint32_t *run_fn(uint32_t *room, const sh_mat *w, const uint8_t *panel, int run);

static const uint32_t *run_bf16(uint32_t *room, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *p = panel + (size_t)run * (sizeof(sh_run_w));
    (void)room, (void)w;
    sh_ask_ahead(p, 1024);
    return (const uint32_t *)(const void *)p;
}

/* The pairs of the k's 4g to 4g + 3 of four lanes, bf16(d * q); q: four signed bytes of each lane.
 */
SH_INLINE void expand4(uint32_t *room, int g, int lane, int32x4_t q, float32x4_t d)
{
    uint32x4_t r[4];
    int32x4_t v[4] = {vshlq_n_s32(q, 24), vshlq_n_s32(q, 16), vshlq_n_s32(q, 8), q};
    for (int i = 0; i < 4; i++) {
        float32x4_t f = vcvtq_f32_s32(vshrq_n_s32(v[i], 24));
        r[i] = (vec_words)vec_round_bf16(d * f) >> 16;
    }
    for (int i = 0; i < 2; i++)
        vst1q_u32(room + (g * 2 + i) * SH_LANES + lane,
                  vorrq_u32(r[i * 2], vshlq_n_u32(r[i * 2 + 1], 16)));
}

static const uint32_t *run_q8(uint32_t *room, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *p = panel + (size_t)run * 512;
    const uint16_t *scale = sh_scales(w, panel);
    const uint8x16_t flip = vdupq_n_u8(0x80);
    for (int l = 0; l < SH_LANES; l += 4) {
        float32x4_t d = vec_f16(scale + run * SH_LANES + l);
        for (int g = 0; g < 8; g++)
            expand4(room, g, l, vreinterpretq_s32_u8(veorq_u8(vld1q_u8(p + g * 64 + l * 4), flip)),
                    d);
    }
    return room;
}

static const uint32_t *run_q4(uint32_t *room, const sh_mat *w, const uint8_t *panel, int run)
{
    const uint8_t *p = panel + (size_t)run * 256;
    const uint16_t *scale = sh_scales(w, panel);
    const uint8x16_t low = vdupq_n_u8(15), eight = vdupq_n_u8(8);
    for (int l = 0; l < SH_LANES; l += 4) {
        float32x4_t d = vec_f16(scale + run * SH_LANES + l);
        for (int g = 0; g < 4; g++) {
            uint8x16_t byte = vld1q_u8(p + g * 64 + l * 4);
            expand4(room, g, l, vreinterpretq_s32_u8(vsubq_u8(vandq_u8(byte, low), eight)), d);
            expand4(room, g + 4, l, vreinterpretq_s32_u8(vsubq_u8(vshrq_n_u8(byte, 4), eight)), d);
        }
    }
    return room;
}

/* Adds the first n_k k's of a run to acc (n, lda). x: bf16, at the run's first k. */
SH_INLINE void run_sum(float *acc, size_t lda, const uint32_t *w, const uint8_t *x, size_t ldx,
                       int n_k, const int n)
{
    const uint32x4_t top = vdupq_n_u32(0xffff0000);
    float32x4_t even[RUN_TILE][4], odd[RUN_TILE][4];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < 4; i++) even[t][i] = odd[t][i] = vdupq_n_f32(0);
    for (int k = 0; k + 2 <= n_k; k += 2, w += SH_LANES)
        for (int i = 0; i < 4; i++) {
            uint32x4_t pair = vld1q_u32(w + i * 4);
            float32x4_t w0 = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
            float32x4_t w1 = vreinterpretq_f32_u32(vandq_u32(pair, top));
            for (int t = 0; t < n; t++) {
                const uint16_t *v = (const uint16_t *)(x + (size_t)t * ldx) + k;
                even[t][i] = vfmaq_n_f32(even[t][i], w0, sh_bf16_to_f32(v[0]));
                odd[t][i] = vfmaq_n_f32(odd[t][i], w1, sh_bf16_to_f32(v[1]));
            }
        }
    for (int i = 0; n_k % 2 && i < 4; i++) {
        float32x4_t w0 = vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(w + i * 4), 16));
        for (int t = 0; t < n; t++) {
            const uint16_t *v = (const uint16_t *)(x + (size_t)t * ldx) + n_k - 1;
            even[t][i] = vfmaq_n_f32(even[t][i], w0, sh_bf16_to_f32(v[0]));
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < 4; i++) {
            float *a = acc + (size_t)t * lda + i * 4;
            vst1q_f32(a, vaddq_f32(vld1q_f32(a), vaddq_f32(even[t][i], odd[t][i])));
        }
}

void sh_run_sums_neon(float *acc, size_t lda, const uint32_t *w, const void *x, size_t ldx, int n_k,
                      int n)
{
    const uint8_t *xb = x;
    int t = 0;
    for (; t + 2 <= n; t += 2)
        run_sum(acc + (size_t)t * lda, lda, w, xb + (size_t)t * ldx, ldx, n_k, 2);
    if (t < n) run_sum(acc + (size_t)t * lda, lda, w, xb + (size_t)t * ldx, ldx, n_k, 1);
}

/* One panel for n_tok tokens, at most SH_TOKENS. */
SH_INLINE void run_panel(run_fn *get, float *y, size_t ldy, const sh_mat *w, int p, int slice_lo,
                         int slice_hi, const uint8_t *x, size_t ldx, int n_tok)
{
    const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
    float acc[SH_TOKENS * SH_LANES];
    sh_run_w room;
    sh_tree tree[SH_TOKENS];
    for (int s = slice_lo; s < slice_hi; s++) {
        memset(acc, 0, (size_t)n_tok * SH_LANES * sizeof *acc);
        for (int k = w->kd.kp[s]; k < w->kd.kp[s + 1]; k += SH_RUN) {
            const uint32_t *run = get(room[0], w, panel, k / SH_RUN);
            sh_run_sums_neon(acc, SH_LANES, run, x + k * 2, ldx, SH_RUN, n_tok);
        }
        for (int t = 0; t < n_tok; t++) sh_tree_push(tree[t], s - slice_lo, acc + t * SH_LANES);
    }
    for (int t = 0; t < n_tok; t++) sh_tree_store(y, ldy, tree[t], w, p, t);
}

SH_INLINE void run_product(run_fn *get, float *y, size_t ldy, const sh_mat *w, int panel_lo,
                           int panel_hi, int slice_lo, int slice_hi, const uint8_t *x, size_t ldx,
                           int n_tok)
{
    for (int t = 0, n; t < n_tok; t += n) {
        n = n_tok - t < SH_TOKENS ? n_tok - t : SH_TOKENS;
        for (int p = panel_lo; p < panel_hi; p++)
            run_panel(get, y + (size_t)t * ldy, ldy, w, p, slice_lo, slice_hi, x + (size_t)t * ldx,
                      ldx, n);
    }
}

SH_MATMUL(bf16_bf16)
{
    run_product(run_bf16, SH_MATMUL_ARGS);
}
SH_MATMUL(q8_bf16)
{
    run_product(run_q8, SH_MATMUL_ARGS);
}
SH_MATMUL(q4_bf16)
{
    run_product(run_q4, SH_MATMUL_ARGS);
}

void sh_matmul_float_neon(sh_kernels *k)
{
    float_overlay(k);
    k->matmul[SH_BF16][SH_FORM_BF16] = bf16_bf16;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = q8_bf16;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = q4_bf16;
}
