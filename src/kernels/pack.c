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
    *m = (sh_mat){
        .dtype = dtype, .rows = rows, .n_panel = (rows + SH_LANES - 1) / SH_LANES, .kd = *kd};
    size_t scales = sh_dtypes[dtype].block > 1 ? SH_LANES * sizeof(uint16_t) : 0;
    m->panel_bytes = pad64((size_t)kd->kp[kd->n_slice] / SH_RUN * (sh_run_bytes(dtype) + scales));
}

/* Where the 16 rows of a panel stand in the file; a row past the end of the matrix reads zeros. */
typedef struct lanes {
    const uint8_t *src[SH_LANES];
    size_t step[SH_LANES]; /* bytes of SH_RUN k's; 0 past the end */
} lanes;

static const uint8_t zeros[SH_RUN * 4];

typedef uint32_t four __attribute__((vector_size(16)));

/* dst[i][lane] = word i (of n, a multiple of 4) of each lane's bytes at `off`, with some bits
 * turned over; squares of 4 by 4 words are transposed. */
static void put_words(uint8_t *dst, const lanes *a, size_t off, int n, uint32_t flip)
{
    for (int i = 0; i < n; i += 4)
        for (int l = 0; l < SH_LANES; l += 4) {
            four v[4];
            for (int j = 0; j < 4; j++) {
                memcpy(&v[j], a->src[l + j] + off + (size_t)i * 4, sizeof v[j]);
                v[j] ^= flip;
            }
            four a0 = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
            four a1 = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
            four b0 = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
            four b1 = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
            v[0] = __builtin_shufflevector(a0, a1, 0, 1, 4, 5);
            v[1] = __builtin_shufflevector(a0, a1, 2, 3, 6, 7);
            v[2] = __builtin_shufflevector(b0, b1, 0, 1, 4, 5);
            v[3] = __builtin_shufflevector(b0, b1, 2, 3, 6, 7);
            for (int j = 0; j < 4; j++)
                memcpy(dst + ((i + j) * SH_LANES + l) * 4, &v[j], sizeof v[j]);
        }
}

/* The same for 16-bit words. */
static void put_halves(uint8_t *dst, const lanes *a, int n)
{
    for (int i = 0; i < n; i++)
        for (int l = 0; l < SH_LANES; l++)
            memcpy(dst + (i * SH_LANES + l) * 2, a->src[l] + i * 2, 2);
}

/* SH_RUN k's of all lanes become run number `run` of the panel, which has n_run. */
static void pack_run(sh_dtype t, uint8_t *panel, size_t run, size_t n_run, const lanes *a)
{
    switch (t) {
    case SH_F32:
        put_words(panel + run * 2048, a, 0, 32, 0);
        break;
    case SH_BF16:
        put_words(panel + run * 1024, a, 0, 16, 0);
        break;
    case SH_F16:
        put_halves(panel + run * 1024, a, 32);
        break;
    case SH_Q8_0:
        put_words(panel + run * 512, a, 2, 8, 0x80808080u);
        put_halves(panel + n_run * 512 + run * 32, a, 1);
        break;
    case SH_Q4_0:
        put_words(panel + run * 256, a, 2, 4, 0);
        put_halves(panel + n_run * 256 + run * 32, a, 1);
        break;
    default:
        break;
    }
}

/* The last k's of a slice, fewer than SH_RUN, filled up with zeros; plain types only. */
static void pack_rest(const sh_mat *m, uint8_t *panel, size_t run, size_t n_run, const lanes *a,
                      int n)
{
    uint8_t row[SH_LANES][SH_RUN * 4] = {{0}};
    lanes rest;
    for (int l = 0; l < SH_LANES; l++) {
        memcpy(row[l], a->src[l], sh_dtype_bytes(m->dtype, (size_t)n));
        rest.src[l] = row[l];
    }
    pack_run(m->dtype, panel, run, n_run, &rest);
}

/* next: where the rows after these begin, if they lie in sequence; they are asked for. */
static void pack_panel(const sh_mat *m, uint8_t *panel, lanes *a, const uint8_t *next)
{
    size_t n_run = (size_t)m->kd.kp[m->kd.n_slice] / SH_RUN;
    for (int s = 0; s < m->kd.n_slice; s++) {
        int n = m->kd.k[s + 1] - m->kd.k[s];
        size_t run = (size_t)m->kd.kp[s] / SH_RUN;
        for (; n >= SH_RUN; n -= SH_RUN, run++) {
            pack_run(m->dtype, panel, run, n_run, a);
            for (int l = 0; l < SH_LANES; l++) a->src[l] += a->step[l];
            for (const uint8_t *end = next + a->step[0] * SH_LANES; next < end; next += 64)
                __builtin_prefetch(next, 0, 2);
        }
        if (n == 0) continue;
        pack_rest(m, panel, run, n_run, a, n);
        for (int l = 0; l < SH_LANES; l++) a->src[l] += a->step[l] / SH_RUN * (size_t)n;
    }
}

void sh_mat_pack(const sh_mat *m, int lo, int hi, const uint8_t *(*row)(const void *arg, int r),
                 const void *arg)
{
    size_t step = sh_dtype_bytes(m->dtype, SH_RUN);
    size_t n_byte = (size_t)m->kd.kp[m->kd.n_slice] / SH_RUN * step * SH_LANES;
    for (int p = lo; p < hi; p++) {
        uint8_t *panel = m->data + (size_t)p * m->panel_bytes;
        lanes a;
        for (int l = 0; l < SH_LANES; l++) {
            int r = p * SH_LANES + l;
            a.src[l] = r < m->rows ? row(arg, r) : zeros;
            a.step[l] = r < m->rows ? step : 0;
        }
        pack_panel(m, panel, &a, a.src[0] + n_byte);
        memset(panel + n_byte, 0, m->panel_bytes - n_byte);
    }
}
