/* The C rows of products, which are the specification, and the packing of weights, against
 * references written here from the contract of kernels.h: in the same order of float32 operations
 * where it fixes the bits, in float64 where the question is whether the formula is right. */
#define _GNU_SOURCE
#include "kit.h"

static sh_kernels k;

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* A weight of a row in the file: its scale (1 for plain types) and its integer or value. */
static void weight_at(const uint8_t *row, sh_dtype t, int i, double *scale, double *v)
{
    const uint8_t *b = row + i / 32 * (t == SH_Q8_0 ? 34 : 18);
    float f;
    *scale = 1;
    switch (t) {
    case SH_F32:
        memcpy(&f, row + 4 * i, 4), *v = (double)f;
        break;
    case SH_F16:
        *v = half_value(get16(row + 2 * i));
        break;
    case SH_BF16:
        *v = (double)sh_f32_from_bits((uint32_t)get16(row + 2 * i) << 16);
        break;
    case SH_Q8_0:
        *scale = half_value(get16(b)), *v = (int8_t)b[2 + i % 32];
        break;
    default:
        *scale = half_value(get16(b));
        *v = (i % 32 < 16 ? b[2 + i % 32] & 15 : b[2 + i % 32 - 16] >> 4) - 8;
    }
}

/* ---- products ---- */

/* One slice of one output: n real k's, seen as if zeros followed up to a multiple of 32. */
typedef struct slice {
    const uint8_t *row; /* of the weights */
    int first, n;       /* its k's */
    const float *x;     /* all k's of the token */
    sh_dtype t;
} slice;

static float w_of(const slice *s, int i, bool bf16)
{
    double scale, v;
    if (i >= s->n) return 0;
    weight_at(s->row, s->t, s->first + i, &scale, &v);
    float f = (float)scale * (float)v;
    return bf16 && s->t != SH_BF16 ? to_bf16(f) : f;
}
static float x_of(const slice *s, int i)
{
    return i < s->n ? s->x[s->first + i] : 0;
}

static float slice_f32(const slice *s)
{
    float acc = 0;
    for (int i = 0; i < (s->n + 31) / 32 * 32; i++) acc = fmaf(w_of(s, i, false), x_of(s, i), acc);
    return acc;
}

static float slice_bf16(const slice *s)
{
    float acc = 0;
    for (int run = 0; run < s->n; run += 32) {
        float chain[2] = {0, 0};
        for (int i = 0; i < 32; i++)
            chain[i % 2] = fmaf(w_of(s, run + i, true), to_bf16(x_of(s, run + i)), chain[i % 2]);
        float both = chain[0] + chain[1];
        acc = acc + both;
    }
    return acc;
}

/* The block's scale and integers of an activation; exact products fit float64. */
static float quantise(const slice *s, int block, int *q)
{
    float amax = 0;
    for (int i = 0; i < 32; i++) amax = fmaxf(amax, fabsf(x_of(s, block + i)));
    float inv = amax < 1e-30f ? 0 : 127.0f / amax;
    for (int i = 0; i < 32; i++) q[i] = (int)nearbyint((double)x_of(s, block + i) * (double)inv);
    return amax < 1e-30f ? 0 : amax / 127.0f;
}

static float slice_i8(const slice *s)
{
    float acc = 0;
    for (int block = 0; block < s->n; block += 32) {
        int q[32];
        double scale = 0, v;
        int64_t dot = 0;
        float d = quantise(s, block, q);
        for (int i = 0; i < 32; i++) {
            weight_at(s->row, s->t, s->first + block + i, &scale, &v);
            dot += (int64_t)v * q[i];
        }
        acc = fmaf((float)dot, (float)scale * d, acc);
    }
    return acc;
}

typedef struct product {
    slice s; /* its row, x and type */
    const sh_kdim *kd;
    sh_form form;
} product;

static float sum_tree(product *p, int lo, int hi)
{
    if (hi - lo > 1) {
        float left = sum_tree(p, lo, (lo + hi) / 2), right = sum_tree(p, (lo + hi) / 2, hi);
        return left + right;
    }
    p->s.first = p->kd->k[lo];
    p->s.n = p->kd->k[hi] - p->kd->k[lo];
    return p->form == SH_FORM_F32    ? slice_f32(&p->s)
           : p->form == SH_FORM_BF16 ? slice_bf16(&p->s)
                                     : slice_i8(&p->s);
}

/* The true dot product over the slices, and the sum of its terms' magnitudes. */
static double true_sum(const product *p, int lo, int hi, double *size)
{
    double sum = 0, scale, v;
    *size = 0;
    for (int i = p->kd->k[lo]; i < p->kd->k[hi]; i++) {
        weight_at(p->s.row, p->s.t, i, &scale, &v);
        sum += scale * v * (double)p->s.x[i];
        *size += fabs(scale * v) * (double)fabsf(p->s.x[i]);
    }
    return sum;
}

/* What each form may lose of the magnitudes: roundings of float32, of bf16 (twice 2^-9), of int8
 * (1/254 of the block's largest activation, which may be all of its magnitude; up to 32 times for
 * the rest). */
static const double loss[SH_N_FORM] = {
    [SH_FORM_F32] = 1e-5, [SH_FORM_BF16] = 0x1p-7, [SH_FORM_I8] = 0.05};

static void check_product(sh_dtype t, sh_form form, int rows, const sh_kdim *kd, int n_tok, int lo,
                          int hi, look l)
{
    matrix m = matrix_random(t, rows, kd, l);
    size_t n = (size_t)kd->k[kd->n_slice], ldx = sh_form_bytes(form, kd), ldy = (size_t)rows + 3;
    float *x = malloc((n * (size_t)n_tok + 1) * sizeof *x),
          *y = malloc(ldy * (size_t)n_tok * sizeof *y);
    buffer xp = buffer_of((size_t)n_tok * ldx);
    assert_true(x && y);
    random_fill(x, n * (size_t)n_tok, l);
    for (size_t i = 0; i < ldy * (size_t)n_tok; i++) y[i] = 77;
    for (int j = 0; j < n_tok; j++)
        k.prepare[form]((char *)xp.p + (size_t)j * ldx, x + (size_t)j * n, kd);
    k.matmul[t][form](y, ldy, &m.mat, 0, m.mat.n_panel, lo, hi, xp.p, ldx, n_tok);
    for (int j = 0; j < n_tok; j++) {
        for (int r = 0; r < rows; r++) {
            product p = {{matrix_row(&m, r), 0, 0, x + (size_t)j * n, t}, kd, form};
            float want = sum_tree(&p, lo, hi), got = y[(size_t)j * ldy + (size_t)r];
            double size, real = true_sum(&p, lo, hi, &size);
            if (!same(got, want))
                fail_msg("%s, form %d: %a, want %a; rows %d, k %zu, slices %d to %d of %d, look %d",
                         sh_dtypes[t].name, (int)form, (double)got, (double)want, rows, n, lo, hi,
                         kd->n_slice, (int)l);
            if (l == LOOK_UNIT) assert_true(fabs((double)got - real) <= loss[form] * size + 1e-30);
        }
        for (size_t r = (size_t)rows; r < ldy; r++) assert_true(y[(size_t)j * ldy + r] == 77);
    }
    buffer_free(&xp);
    matrix_free(&m);
    free(x);
    free(y);
}

static const struct {
    sh_dtype t;
    sh_form form;
} products[] = {{SH_F32, SH_FORM_F32},  {SH_F16, SH_FORM_F32}, {SH_BF16, SH_FORM_BF16},
                {SH_Q8_0, SH_FORM_I8},  {SH_Q4_0, SH_FORM_I8}, {SH_Q8_0, SH_FORM_BF16},
                {SH_Q4_0, SH_FORM_BF16}};
enum { N_PRODUCT = sizeof products / sizeof *products };

static void test_matmul(void **state)
{
    static const int rows[] = {1, 15, 16, 17, 100}, ks[] = {1, 31, 32, 33, 96, 172};
    (void)state;
    random_state = 2;
    for (int i = 0; i < N_PRODUCT; i++) {
        int block = sh_dtypes[products[i].t].block;
        for (int r = 0; r < 5; r++)
            for (int j = 0; j < 6; j++) {
                sh_kdim kd = sh_kdim_whole((ks[j] + block - 1) / block * block);
                check_product(products[i].t, products[i].form, rows[r], &kd, 1 + (r + j) % 3, 0, 1,
                              (look)((r + j) % LOOK_SPECIAL));
            }
    }
}

/* All of a canonical tree, its subtrees, and the subtrees of a rank that begins in the middle. */
static void test_matmul_slices(void **state)
{
    (void)state;
    random_state = 3;
    for (int i = 0; i < N_PRODUCT; i++)
        for (int n = 0; n < 25; n++) {
            sh_kdim kd = random_kdim(PICK(8, 64, 100, 300), sh_dtypes[products[i].t].block);
            int size = PICK(1, 2, 4, 8, 8, 8);
            while (size > kd.n_slice) size /= 2;
            int lo = random_in(0, kd.n_slice - size);
            check_product(products[i].t, products[i].form, PICK(1, 17, 20), &kd, PICK(1, 2), lo,
                          lo + size, (look)(n % LOOK_SPECIAL));
        }
}

/* Whoever computes an output, however the work is cut: the same bits. */
static void test_matmul_cuts(void **state)
{
    (void)state;
    random_state = 4;
    for (int i = 0; i < N_PRODUCT; i++) {
        enum { ROWS = 100, TOK = 5 };
        float whole[TOK * ROWS], part[TOK * ROWS];
        sh_kdim kd = sh_kdim_slices((int[]){0, 32, 96, 128, 128, 160, 224, 256, 320}, 8);
        matrix m = matrix_random(products[i].t, ROWS, &kd, LOOK_UNIT);
        size_t ldx = sh_form_bytes(products[i].form, &kd);
        buffer x = prepared(&k, products[i].form, &kd, TOK, LOOK_UNIT);
        sh_matmul_fn *f = k.matmul[products[i].t][products[i].form];
        f(whole, ROWS, &m.mat, 0, 7, 0, 8, x.p, ldx, TOK);
        memset(part, 0, sizeof part);
        for (int p = 0; p < 7; p++)
            for (int t = 0; t < TOK; t++)
                f(part + t * ROWS, ROWS, &m.mat, p, p + 1, 0, 8, (char *)x.p + (size_t)t * ldx, ldx,
                  1);
        assert_memory_equal(whole, part, sizeof whole);
        float root[3][TOK * ROWS]; /* ranks that own slices 0 to 3, 4 to 5, 6 to 7 */
        f(root[0], ROWS, &m.mat, 0, 7, 0, 4, x.p, ldx, TOK);
        f(root[1], ROWS, &m.mat, 0, 7, 4, 6, x.p, ldx, TOK);
        f(root[2], ROWS, &m.mat, 0, 7, 6, 8, x.p, ldx, TOK);
        for (int j = 0; j < TOK * ROWS; j++) part[j] = root[0][j] + (root[1][j] + root[2][j]);
        assert_memory_equal(whole, part, sizeof whole);
        buffer_free(&x);
        matrix_free(&m);
    }
}

/* ---- packing ---- */

/* Where k and lane lie in a panel, as kernels.h says. */
static double packed_at(const sh_mat *m, int panel, int kp, int lane)
{
    const uint8_t *p = m->data + (size_t)panel * m->panel_bytes;
    int n_run = m->kd.kp[m->kd.n_slice] / 32, b = kp / 32, i = kp % 32;
    float f;
    const uint8_t *scale = p + n_run * (m->dtype == SH_Q8_0 ? 512 : 256) + (b * 16 + lane) * 2;
    switch (m->dtype) {
    case SH_F32:
        memcpy(&f, p + (kp * 16 + lane) * 4, 4);
        return (double)f;
    case SH_F16:
        return half_value(get16(p + (kp * 16 + lane) * 2));
    case SH_BF16:
        return (double)sh_f32_from_bits((uint32_t)get16(p + ((kp / 2 * 16 + lane) * 2 + kp % 2) * 2)
                                        << 16);
    case SH_Q8_0:
        return half_value(get16(scale)) * (p[b * 512 + (i / 4 * 16 + lane) * 4 + i % 4] - 128);
    default: {
        uint8_t v = p[b * 256 + (i % 16 / 4 * 16 + lane) * 4 + i % 4];
        return half_value(get16(scale)) * ((i < 16 ? v & 15 : v >> 4) - 8);
    }
    }
}

/* Every weight of the file is at its place; between slices and past the last row there are zeros.
 */
static void test_pack(void **state)
{
    (void)state;
    random_state = 5;
    for (int n = 0; n < 60; n++) {
        sh_dtype t = (sh_dtype)(n % SH_N_DTYPE);
        int rows = PICK(1, 15, 16, 17, 40);
        sh_kdim kd = random_kdim(PICK(1, 33, 100, 200), sh_dtypes[t].block);
        matrix m = matrix_random(t, rows, &kd, LOOK_UNIT);
        assert_int_equal(m.mat.n_panel, (rows + 15) / 16);
        assert_int_equal(m.mat.panel_bytes % 64, 0);
        for (int s = 0; s < kd.n_slice; s++)
            for (int kp = kd.kp[s]; kp < kd.kp[s + 1]; kp++)
                for (int o = 0; o < m.mat.n_panel * 16; o++) {
                    double scale = 0, v = 0;
                    int at = kd.k[s] + kp - kd.kp[s];
                    if (o < rows && at < kd.k[s + 1])
                        weight_at(matrix_row(&m, o), t, at, &scale, &v);
                    assert_true(packed_at(&m.mat, o / 16, kp, o % 16) == scale * v);
                }
        assert_true(buffer_guarded(&m.packed));
        matrix_free(&m);
    }
}

static void test_kdim(void **state)
{
    (void)state;
    random_state = 6;
    for (int n = 0; n < 200; n++) {
        int bound[9] = {random_in(0, 50)}, n_slice = random_in(1, 8);
        for (int s = 0; s < n_slice; s++)
            bound[s + 1] = bound[s] + random_in(0, 3) * random_in(0, 40);
        sh_kdim kd = sh_kdim_slices(bound, n_slice);
        assert_true(kd.n_slice == n_slice && kd.k[0] == 0 && kd.kp[0] == 0);
        for (int s = 0; s < n_slice; s++) { /* the least multiples of 32 that hold the slices */
            int real = kd.k[s + 1] - kd.k[s], room = kd.kp[s + 1] - kd.kp[s];
            assert_int_equal(real, bound[s + 1] - bound[s]);
            assert_true(room % 32 == 0 && room >= real && room < real + 32);
        }
        for (int form = 0; form < SH_N_FORM; form++) {
            size_t kp = (size_t)kd.kp[n_slice], bytes = sh_form_bytes((sh_form)form, &kd);
            size_t need = form == SH_FORM_F32    ? 4 * kp
                          : form == SH_FORM_BF16 ? 2 * kp
                                                 : kp + kp / 4;
            /* an odd number of cache lines: rows do not fall on the same sets */
            assert_true(bytes % 128 == 64 && bytes >= need && bytes < need + 128);
        }
    }
}

/* ---- preparation ---- */

static void test_prepare(void **state)
{
    (void)state;
    random_state = 7;
    for (int n = 0; n < 300; n++) {
        look l = (look)(n % LOOK_SPECIAL);
        sh_kdim kd = random_kdim(PICK(1, 31, 32, 33, 100, 300), 1);
        int kp = kd.kp[kd.n_slice];
        buffer x = buffer_floats((size_t)kd.k[kd.n_slice], l), y[SH_N_FORM];
        if (n % 3 == 2) /* about the least block that is not zero */
            for (int i = 0; i < kd.k[kd.n_slice]; i++) ((float *)x.p)[i] *= 1e-30f;
        for (int form = 0; form < SH_N_FORM; form++) {
            y[form] = buffer_of(sh_form_bytes((sh_form)form, &kd));
            k.prepare[form](y[form].p, x.p, &kd);
            assert_true(buffer_guarded(&y[form]));
        }
        const int8_t *q8 = y[SH_FORM_I8].p;
        const float *scale = (const float *)(q8 + kp);
        const int32_t *sum = (const int32_t *)(scale + kp / 32);
        for (int s = 0; s < kd.n_slice; s++) {
            slice sl = {NULL, kd.k[s], kd.k[s + 1] - kd.k[s], x.p, SH_F32};
            for (int i = 0; i < kd.kp[s + 1] - kd.kp[s]; i++) {
                int at = kd.kp[s] + i;
                float h = sh_f32_from_bits((uint32_t)((uint16_t *)y[SH_FORM_BF16].p)[at] << 16);
                assert_true(same(((float *)y[SH_FORM_F32].p)[at], x_of(&sl, i)));
                assert_true(same(h, to_bf16(x_of(&sl, i))));
                int q[32], total = 0;
                if (i % 32) continue;
                assert_true(same(scale[at / 32], quantise(&sl, i, q)));
                for (int j = 0; j < 32; j++) {
                    assert_int_equal(q8[at + j], q[j]);
                    assert_in_range(q[j] + 127, 0, 254);
                    total += q[j];
                }
                assert_int_equal(sum[at / 32], total);
            }
        }
        for (int form = 0; form < SH_N_FORM; form++) buffer_free(&y[form]);
        buffer_free(&x);
    }
}

/* A value that is no number spoils its own block, visibly, and no other. */
static void test_prepare_special(void **state)
{
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    (void)state;
    random_state = 8;
    for (int i = 0; i < 4 * 64; i++) {
        sh_kdim kd = sh_kdim_whole(64);
        float x[64];
        _Alignas(64) int8_t y[128];
        random_fill(x, 64, LOOK_UNIT);
        x[i % 64] = bad[i / 64];
        k.prepare[SH_FORM_I8](y, x, &kd);
        const float *scale = (const float *)(y + 64);
        const int32_t *sum = (const int32_t *)(y + 72);
        int b = i % 64 / 32;
        assert_true(isnan(scale[b]) && sum[b] == 0 && scale[!b] > 0);
        for (int j = 0; j < 32; j++) assert_int_equal(y[32 * b + j], 0);
        uint16_t h[64];
        k.prepare[SH_FORM_BF16](h, x, &kd);
        assert_true(same(sh_f32_from_bits((uint32_t)h[i % 64] << 16), x[i % 64]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_slices),
        cmocka_unit_test(test_matmul_cuts),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_kdim),
        cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_prepare_special),
    };
    sh_cpu_enter();
    if (sh_kernels_init(&k, "c") != SH_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
