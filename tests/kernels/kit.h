/* What the kernel tests share: random numbers, buffers at the end of a page, matrices as a file has
 * them, and comparison bit for bit. */
#ifndef TESTS_KERNELS_KIT_H
#define TESTS_KERNELS_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "base/cpu.h"
#include "kernels/kernels.h"

/* Sanitizers make the C rows some ten times slower: then fewer cases (tests/meson.build says). */
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- random numbers: splitmix64 ---- */

static uint64_t random_state;

static inline uint64_t random_u64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
static inline int random_in(int lo, int hi) /* [lo, hi] */
{
    return lo + (int)(random_u64() % (uint64_t)(hi - lo + 1));
}
static inline float random_unit(void) /* [-1, 1) */
{
    return (float)(int32_t)(random_u64() >> 32) * 0x1p-31f;
}
#define PICK(...)                                                                                  \
    ((const int[]){__VA_ARGS__}[random_u64() % (sizeof((int[]){__VA_ARGS__}) / sizeof(int))])

/* What values look like. */
typedef enum look {
    LOOK_UNIT,    /* [-1, 1) */
    LOOK_WIDE,    /* magnitudes from 2^-30 to 2^30 */
    LOOK_TINY,    /* products and sums about the least normal number, and below */
    LOOK_EXTREME, /* 1, -1 and 0: the largest integers when quantised */
    LOOK_SPECIAL, /* now and then an infinity, a NaN, a denormal number, a zero */
    N_LOOK
} look;

static inline float random_value(look l)
{
    switch (l) {
    case LOOK_WIDE:
        return ldexpf(random_unit(), random_in(-30, 30));
    case LOOK_TINY:
        return ldexpf(random_unit(), random_in(-80, -50));
    case LOOK_EXTREME:
        return (float)random_in(-1, 1);
    case LOOK_SPECIAL:
        switch (random_in(0, 99)) {
        case 0:
            return INFINITY;
        case 1:
            return -INFINITY;
        case 2:
            return NAN;
        case 3:
            return sh_f32_from_bits((uint32_t)random_u64() & 0x807fffffu);
        case 4:
            return 0.0f;
        case 5:
            return -0.0f;
        case 6:
            return ldexpf(random_unit(), -120);
        case 7:
            return ldexpf(random_unit(), 120);
        default:
            return random_unit();
        }
    default:
        return random_unit();
    }
}
static inline void random_fill(float *x, size_t n, look l)
{
    for (size_t i = 0; i < n; i++) x[i] = random_value(l);
}

/* ---- buffers ---- */

/* n bytes that end where the page does: a read or write past them is a fault. In front there are 64
 * guard bytes. Everything is 0xa5 at first. */
typedef struct buffer {
    void *p; /* the bytes */
    size_t n;
    uint8_t *map;
    size_t map_bytes;
} buffer;

enum { GUARD = 64, FILL = 0xa5 };

static inline buffer buffer_of(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (n + GUARD + page - 1) / page * page;
    buffer b = {.n = n, .map_bytes = whole + page};
    b.map = mmap(NULL, b.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(b.map != MAP_FAILED);
    assert_int_equal(mprotect(b.map + whole, page, PROT_NONE), 0);
    memset(b.map, FILL, whole);
    b.p = b.map + whole - n;
    return b;
}
static inline buffer buffer_copy(const buffer *from)
{
    buffer b = buffer_of(from->n);
    memcpy(b.p, from->p, from->n);
    return b;
}
static inline buffer buffer_floats(size_t n, look l)
{
    buffer b = buffer_of(n * sizeof(float));
    random_fill(b.p, n, l);
    return b;
}
/* Nothing in front of it was written. */
static inline bool buffer_guarded(const buffer *b)
{
    for (int i = 1; i <= GUARD; i++)
        if (((uint8_t *)b->p)[-i] != FILL) return false;
    return true;
}
static inline void buffer_free(buffer *b)
{
    munmap(b->map, b->map_bytes);
}

/* ---- comparison ---- */

/* The same bits, but any NaN is as good as another: which one comes out is no part of the contract.
 */
static inline bool same(float a, float b)
{
    return sh_f32_bits(a) == sh_f32_bits(b) || (a != a && b != b);
}
/* The first of n floats that is not the same, or -1. */
static inline long differs(const void *a, const void *b, size_t n)
{
    const float *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (!same(x[i], y[i])) return (long)i;
    return -1;
}
/* The same for 16-bit floats of an element type. */
static inline long differs_half(const uint16_t *a, const uint16_t *b, size_t n, sh_dtype t)
{
    int inf = t == SH_F16 ? 0x7c00 : 0x7f80;
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i] && !((a[i] & 0x7fff) > inf && (b[i] & 0x7fff) > inf)) return (long)i;
    return -1;
}

/* ---- values by their definition ---- */

static inline double half_value(uint16_t h)
{
    int exp = h >> 10 & 31, man = h & 1023;
    double v =
        exp == 31 ? (man ? NAN : INFINITY) : ldexp(exp ? man + 1024 : man, (exp ? exp : 1) - 25);
    return h & 0x8000 ? -v : v;
}

/* The nearer of the two bf16 about v; on a tie the even one. */
static inline float to_bf16(float v)
{
    uint32_t down = sh_f32_bits(v) & 0xffff0000u, up = down + 0x10000u;
    double a = fabs((double)v - (double)sh_f32_from_bits(down));
    double b = fabs((double)sh_f32_from_bits(up) - (double)v);
    return sh_f32_from_bits(a < b || (a == b && !(down & 0x10000u)) ? down : up);
}

/* ---- matrices ---- */

/* A matrix as a file has it, and packed. */
typedef struct matrix {
    sh_mat mat;
    uint8_t *raw; /* (rows, row_bytes), at an odd address */
    size_t row_bytes;
    buffer raw_buffer, packed;
} matrix;

static inline const uint8_t *matrix_row(const void *arg, int r)
{
    const matrix *m = arg;
    assert_in_range(r, 0, m->mat.rows - 1);
    return m->raw + (size_t)r * m->row_bytes;
}

static inline uint16_t random_f16(look l)
{
    return sh_f16_from_f32(l == LOOK_TINY ? ldexpf(random_unit(), random_in(-24, -10))
                                          : random_value(l));
}

/* n values of a row, written as a file would have them. Every bit pattern of the integers of
 * quantised blocks occurs; some scales are zero, some not normal. */
static inline void random_row(uint8_t *p, sh_dtype t, int n, look l)
{
    const sh_dtype_info *info = &sh_dtypes[t];
    for (int i = 0; i < n / info->block; i++, p += info->block_bytes) {
        float f = random_value(l);
        uint16_t h = t == SH_BF16 ? sh_bf16_from_f32(f) : random_f16(l);
        switch (t) {
        case SH_F32:
            memcpy(p, &f, 4);
            break;
        case SH_F16:
        case SH_BF16:
            memcpy(p, &h, 2);
            break;
        default:
            h = random_in(0, 9) == 0 ? 0 : random_in(0, 9) == 0 ? (uint16_t)random_in(0, 0x3ff) : h;
            memcpy(p, &h, 2);
            for (int j = 2; j < info->block_bytes; j++)
                p[j] = l == LOOK_EXTREME ? (uint8_t)PICK(0x80, 0x7f, 0x81, 0, 0xff)
                                         : (uint8_t)random_u64();
        }
    }
}

static inline matrix matrix_random(sh_dtype t, int rows, const sh_kdim *kd, look l)
{
    matrix m = {0};
    sh_mat_layout(&m.mat, t, rows, kd);
    int k = kd->k[kd->n_slice];
    m.row_bytes = sh_dtype_bytes(t, (size_t)k);
    m.raw_buffer = buffer_of((size_t)rows * m.row_bytes + 1);
    m.raw = (uint8_t *)m.raw_buffer.p + 1;
    for (int r = 0; r < rows; r++) random_row(m.raw + (size_t)r * m.row_bytes, t, k, l);
    m.packed = buffer_of((size_t)m.mat.n_panel * m.mat.panel_bytes);
    m.mat.data = m.packed.p;
    int mid = random_in(0, m.mat.n_panel); /* two threads pack it */
    sh_mat_pack(&m.mat, mid, m.mat.n_panel, matrix_row, &m);
    sh_mat_pack(&m.mat, 0, mid, matrix_row, &m);
    return m;
}
static inline void matrix_free(matrix *m)
{
    buffer_free(&m->raw_buffer);
    buffer_free(&m->packed);
}

/* Random slices of at most about k values: sometimes one, sometimes several, uneven, some empty. */
static inline sh_kdim random_kdim(int k, int block)
{
    int bound[SH_N_SLICE + 1] = {random_in(0, 3) * block}, n = PICK(1, 1, 2, 3, 5, 8);
    k = (k + block - 1) / block * block;
    if (n == 1) return sh_kdim_whole(k);
    for (int s = 0; s < n; s++) {
        int most = k / block / n + 1;
        bound[s + 1] = bound[s] + (random_in(0, 4) == 0 ? 0 : block * random_in(0, 2 * most));
    }
    return sh_kdim_slices(bound, n);
}

/* n_tok tokens in a form, as the C rows write them. */
static inline buffer prepared(const sh_kernels *c, sh_form form, const sh_kdim *kd, int n_tok,
                              look l)
{
    size_t n = (size_t)kd->k[kd->n_slice], ldx = sh_form_bytes(form, kd);
    float *x = malloc((n + 1) * sizeof *x);
    buffer b = buffer_of((size_t)n_tok * ldx);
    assert_non_null(x);
    for (int t = 0; t < n_tok; t++) {
        random_fill(x, n, l);
        c->prepare[form]((char *)b.p + (size_t)t * ldx, x, kd);
    }
    free(x);
    return b;
}

#endif
