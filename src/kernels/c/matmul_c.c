/* Matrix products in portable C: the specification of the arithmetic. */
#include <math.h>

#include "kernels/c/c.h"

/* Adds the sums of slices as the canonical tree does, when they come one after the other: like the
 * carries of a binary counter. part[depth] holds the roots of finished subtrees. */
static void tree_push(float part[][SH_LANES], int *depth, int i, const float *slice)
{
    float cur[SH_LANES];
    for (int l = 0; l < SH_LANES; l++) cur[l] = slice[l];
    for (; i & 1; i >>= 1) {
        (*depth)--;
        for (int l = 0; l < SH_LANES; l++) cur[l] = part[*depth][l] + cur[l];
    }
    for (int l = 0; l < SH_LANES; l++) part[*depth][l] = cur[l];
    (*depth)++;
}

typedef void slice_fn(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const void *x);

/* The loop that all products share; `slice` sums the padded k's [lo, hi) of one panel and token. */
static void run(slice_fn *slice, float *y, size_t ldy, const sh_mat *w, int panel_lo, int panel_hi,
                int slice_lo, int slice_hi, const void *x, size_t ldx, int n_tok)
{
    for (int p = panel_lo; p < panel_hi; p++) {
        const uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        int o = p * SH_LANES, n = w->rows - o < SH_LANES ? w->rows - o : SH_LANES;
        for (int t = 0; t < n_tok; t++) {
            float part[4][SH_LANES] = {{0}};
            int depth = 0;
            for (int s = slice_lo; s < slice_hi; s++) {
                float acc[SH_LANES] = {0};
                slice(acc, w, panel, w->kd.kp[s], w->kd.kp[s + 1],
                      (const char *)x + (size_t)t * ldx);
                tree_push(part, &depth, s - slice_lo, acc);
            }
            for (int l = 0; l < n; l++) y[(size_t)t * ldy + (size_t)(o + l)] = part[0][l];
        }
    }
}

#define MATMUL(name, slice)                                                                        \
    SH_MATMUL(name)                                                                                \
    {                                                                                              \
        run(slice, SH_MATMUL_ARGS);                                                                \
    }

static void slice_f32(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const void *x)
{
    const float *wf = (const float *)panel, *xf = x;
    (void)w;
    for (int k = lo; k < hi; k++)
        for (int l = 0; l < SH_LANES; l++) acc[l] = fmaf(wf[k * SH_LANES + l], xf[k], acc[l]);
}
MATMUL(matmul_f32, slice_f32)

static void slice_f16(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                      const void *x)
{
    const uint16_t *wh = (const uint16_t *)panel;
    const float *xf = x;
    (void)w;
    for (int k = lo; k < hi; k++)
        for (int l = 0; l < SH_LANES; l++)
            acc[l] = fmaf(sh_f16_to_f32(wh[k * SH_LANES + l]), xf[k], acc[l]);
}
MATMUL(matmul_f16, slice_f16)

/* One run of 32 k's; wr is [32][16] bf16 in k order. */
static void bf16_run(float *acc, uint16_t wr[][SH_LANES], const uint16_t *x)
{
    for (int l = 0; l < SH_LANES; l++) {
        float even = 0, odd = 0;
        for (int k = 0; k < SH_RUN; k += 2) {
            even = fmaf(sh_bf16_to_f32(wr[k][l]), sh_bf16_to_f32(x[k]), even);
            odd = fmaf(sh_bf16_to_f32(wr[k + 1][l]), sh_bf16_to_f32(x[k + 1]), odd);
        }
        acc[l] += even + odd;
    }
}

static void slice_bf16(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                       const void *x)
{
    const uint16_t *wh = (const uint16_t *)panel, *xh = x;
    uint16_t wr[SH_RUN][SH_LANES];
    (void)w;
    for (int k = lo; k < hi; k += SH_RUN) {
        for (int i = 0; i < SH_RUN; i++)
            for (int l = 0; l < SH_LANES; l++)
                wr[i][l] = wh[((k + i) / 2 * SH_LANES + l) * 2 + (i & 1)];
        bf16_run(acc, wr, xh + k);
    }
}
MATMUL(matmul_bf16, slice_bf16)

/* The integers of block b of a panel, [32][16], and its scales. */
static void unpack_q8_0(int q[][SH_LANES], float *d, const sh_mat *w, const uint8_t *panel, int b)
{
    size_t n_run = (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN;
    const uint8_t *p = panel + (size_t)b * 512;
    const uint16_t *scale = (const uint16_t *)(panel + n_run * 512) + b * SH_LANES;
    for (int k = 0; k < SH_RUN; k++)
        for (int l = 0; l < SH_LANES; l++) q[k][l] = p[k / 4 * 64 + l * 4 + k % 4] - 128;
    for (int l = 0; l < SH_LANES; l++) d[l] = sh_f16_to_f32(scale[l]);
}

static void unpack_q4_0(int q[][SH_LANES], float *d, const sh_mat *w, const uint8_t *panel, int b)
{
    size_t n_run = (size_t)w->kd.kp[w->kd.n_slice] / SH_RUN;
    const uint8_t *p = panel + (size_t)b * 256;
    const uint16_t *scale = (const uint16_t *)(panel + n_run * 256) + b * SH_LANES;
    for (int k = 0; k < SH_RUN / 2; k++)
        for (int l = 0; l < SH_LANES; l++) {
            q[k][l] = (p[k / 4 * 64 + l * 4 + k % 4] & 15) - 8;
            q[k + 16][l] = (p[k / 4 * 64 + l * 4 + k % 4] >> 4) - 8;
        }
    for (int l = 0; l < SH_LANES; l++) d[l] = sh_f16_to_f32(scale[l]);
}

typedef void unpack_fn(int q[][SH_LANES], float *d, const sh_mat *w, const uint8_t *panel, int b);

static void slice_i8(unpack_fn *unpack, float *acc, const sh_mat *w, const uint8_t *panel, int lo,
                     int hi, const void *x)
{
    size_t kp = (size_t)w->kd.kp[w->kd.n_slice];
    const int8_t *xq = x;
    const float *xd = (const float *)(xq + kp);
    int q[SH_RUN][SH_LANES];
    float d[SH_LANES];
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        unpack(q, d, w, panel, b);
        for (int l = 0; l < SH_LANES; l++) {
            int dot = 0;
            for (int k = 0; k < SH_RUN; k++) dot += q[k][l] * xq[b * SH_RUN + k];
            acc[l] = fmaf((float)dot, d[l] * xd[b], acc[l]);
        }
    }
}
static void slice_q8_0_i8(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                          const void *x)
{
    slice_i8(unpack_q8_0, acc, w, panel, lo, hi, x);
}
static void slice_q4_0_i8(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                          const void *x)
{
    slice_i8(unpack_q4_0, acc, w, panel, lo, hi, x);
}
MATMUL(matmul_q8_0_i8, slice_q8_0_i8)
MATMUL(matmul_q4_0_i8, slice_q4_0_i8)

static void slice_q_bf16(unpack_fn *unpack, float *acc, const sh_mat *w, const uint8_t *panel,
                         int lo, int hi, const void *x)
{
    const uint16_t *xh = x;
    int q[SH_RUN][SH_LANES];
    float d[SH_LANES];
    uint16_t wr[SH_RUN][SH_LANES];
    for (int b = lo / SH_RUN; b < hi / SH_RUN; b++) {
        unpack(q, d, w, panel, b);
        for (int k = 0; k < SH_RUN; k++)
            for (int l = 0; l < SH_LANES; l++) wr[k][l] = sh_bf16_from_f32(d[l] * (float)q[k][l]);
        bf16_run(acc, wr, xh + b * SH_RUN);
    }
}
static void slice_q8_0_bf16(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                            const void *x)
{
    slice_q_bf16(unpack_q8_0, acc, w, panel, lo, hi, x);
}
static void slice_q4_0_bf16(float *acc, const sh_mat *w, const uint8_t *panel, int lo, int hi,
                            const void *x)
{
    slice_q_bf16(unpack_q4_0, acc, w, panel, lo, hi, x);
}
MATMUL(matmul_q8_0_bf16, slice_q8_0_bf16)
MATMUL(matmul_q4_0_bf16, slice_q4_0_bf16)

void sh_matmul_c(sh_kernels *k)
{
    k->matmul[SH_F32][SH_FORM_F32] = matmul_f32;
    k->matmul[SH_F16][SH_FORM_F32] = matmul_f16;
    k->matmul[SH_BF16][SH_FORM_BF16] = matmul_bf16;
    k->matmul[SH_Q8_0][SH_FORM_I8] = matmul_q8_0_i8;
    k->matmul[SH_Q8_0][SH_FORM_BF16] = matmul_q8_0_bf16;
    k->matmul[SH_Q4_0][SH_FORM_I8] = matmul_q4_0_i8;
    k->matmul[SH_Q4_0][SH_FORM_BF16] = matmul_q4_0_bf16;
}
