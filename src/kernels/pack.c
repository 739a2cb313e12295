/* The layout of packed weights and the packing of a file's rows into it, once, at load. */
#include <string.h>

#include "kernels/kernels.h"

static int pad_run(int n)
{
    return (n + SH_RUN - 1) / SH_RUN * SH_RUN;
}

sh_kdim sh_kdim_slices(const int *bound, int n_slice)
{
    sh_kdim kd = {.n_slice = n_slice};
    for (int s = 0; s < n_slice; s++) {
        kd.k[s + 1] = bound[s + 1] - bound[0];
        kd.kp[s + 1] = kd.kp[s] + pad_run(bound[s + 1] - bound[s]);
    }
    return kd;
}

sh_kdim sh_kdim_whole(int n)
{
    return sh_kdim_slices((int[]){0, n}, 1);
}

static size_t pad64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t sh_form_bytes(sh_form form, const sh_kdim *kd)
{
    size_t kp = (size_t)kd->kp[kd->n_slice];
    size_t n = form == SH_FORM_BF16 ? kp * 2 : form == SH_FORM_I8 ? kp + kp / SH_RUN * 8 : kp * 4;
    /* an odd number of cache lines, so that the tokens of a tile do not fall on the same sets */
    return (n + 63) / 64 * 64 | 64;
}

void sh_mat_layout(sh_mat *m, sh_dtype dtype, int rows, const sh_kdim *kd)
{
    /* bytes of SH_RUN k's of one panel */
    static const size_t run_bytes[SH_N_DTYPE] = {
        [SH_F32] = 2048, [SH_F16] = 1024, [SH_BF16] = 1024, [SH_Q8_0] = 544, [SH_Q4_0] = 288};
    *m = (sh_mat){.dtype = dtype, .rows = rows, .n_panel = (rows + SH_LANES - 1) / SH_LANES, .kd = *kd};
    m->panel_bytes = pad64((size_t)kd->kp[kd->n_slice] / SH_RUN * run_bytes[dtype]);
}

/* One row of one slice: n real k's at src become padded k's from kp0 on in lane `lane` of panel p. */
static void pack_row(const sh_mat *m, uint8_t *p, int lane, int kp0, const uint8_t *src, int n)
{
    size_t n_run = (size_t)m->kd.kp[m->kd.n_slice] / SH_RUN;
    switch (m->dtype) {
    case SH_F32:
        for (int k = 0; k < n; k++) memcpy(p + ((size_t)(kp0 + k) * SH_LANES + lane) * 4, src + k * 4, 4);
        break;
    case SH_F16:
        for (int k = 0; k < n; k++) memcpy(p + ((size_t)(kp0 + k) * SH_LANES + lane) * 2, src + k * 2, 2);
        break;
    case SH_BF16:
        for (int k = 0; k < n; k++) {
            size_t at = ((size_t)((kp0 + k) / 2) * SH_LANES + lane) * 2 + (size_t)(k & 1);
            memcpy(p + at * 2, src + k * 2, 2);
        }
        break;
    case SH_Q8_0:
        for (int b = 0; b < n / SH_RUN; b++, src += 34) {
            size_t block = (size_t)kp0 / SH_RUN + (size_t)b;
            memcpy(p + n_run * 512 + (block * SH_LANES + (size_t)lane) * 2, src, 2);
            for (int k = 0; k < SH_RUN; k++)
                p[block * 512 + (size_t)(k / 4 * 64 + lane * 4 + k % 4)] = (uint8_t)(src[2 + k] ^ 0x80);
        }
        break;
    case SH_Q4_0:
        for (int b = 0; b < n / SH_RUN; b++, src += 18) {
            size_t block = (size_t)kp0 / SH_RUN + (size_t)b;
            memcpy(p + n_run * 256 + (block * SH_LANES + (size_t)lane) * 2, src, 2);
            for (int k = 0; k < SH_RUN / 2; k++)
                p[block * 256 + (size_t)(k / 4 * 64 + lane * 4 + k % 4)] = src[2 + k];
        }
        break;
    default: break;
    }
}

void sh_mat_pack(const sh_mat *m, int lo, int hi, const uint8_t *(*row)(const void *arg, int r),
                 const void *arg)
{
    const sh_dtype_info *t = &sh_dtypes[m->dtype];
    for (int p = lo; p < hi; p++) {
        uint8_t *panel = m->data + (size_t)p * m->panel_bytes;
        memset(panel, 0, m->panel_bytes);
        for (int lane = 0; lane < SH_LANES && p * SH_LANES + lane < m->rows; lane++) {
            const uint8_t *src = row(arg, p * SH_LANES + lane);
            for (int s = 0; s < m->kd.n_slice; s++)
                pack_row(m, panel, lane, m->kd.kp[s],
                         src + (size_t)(m->kd.k[s] / t->block) * (size_t)t->block_bytes,
                         m->kd.k[s + 1] - m->kd.k[s]);
        }
    }
}
