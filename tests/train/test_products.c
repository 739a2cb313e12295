/* Products of training: y = a b^T from rows and columns of float32, against sums in float64 of the
 * rounded numbers, and every instruction set's operands against C byte for byte. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "base/rng.h"
#include "train/products.h"

static uint32_t counter;

static uint32_t draw(void)
{
    uint32_t out[4], at[4] = {counter++, 0, 0, 0}, key[2] = {7, 7};
    sh_philox(out, at, key);
    return out[0];
}

static float *numbers(size_t n)
{
    float *x;
    assert_int_equal(sh_alloc(&x, n + 1, sizeof *x, "numbers"), SH_OK);
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)draw() / 2147483648.0 - 1.0);
    return x;
}

static double rounded(float x, sh_dtype t)
{
    return (double)(t == SH_BF16 ? sh_bf16_to_f32(sh_bf16_from_f32(x)) : x);
}

/* a (m, k) and b (n, k), each stored by rows or by columns; the k's in slices. */
typedef struct sizes {
    int m, n, k, n_slice;
    bool a_cols, b_cols;
} sizes;

static sh_kdim slices(const sizes *z)
{
    int bound[9];
    for (int s = 0; s <= z->n_slice; s++) bound[s] = z->k * s / z->n_slice;
    return sh_kdim_slices(bound, z->n_slice);
}

static void operands(const sh_products *p, const sizes *z, const float *a, const float *b,
                     sh_left *left, sh_mat *right)
{
    left->kd = slices(z);
    left->ld = sh_left_ld(p, &left->kd);
    assert_int_equal(sh_alloc(&left->data, (size_t)z->m, left->ld, "left"), SH_OK);
    memset(left->data, 0, (size_t)z->m * left->ld);
    sh_mat_layout(right, p->dtype, z->n, &left->kd);
    assert_int_equal(sh_alloc(&right->data, (size_t)right->n_panel, right->panel_bytes, "right"),
                     SH_OK);
    memset(right->data, 0, (size_t)right->n_panel * right->panel_bytes);
    if (z->a_cols)
        sh_left_cols_all(p, left, a, (size_t)z->m, z->m);
    else
        sh_left_rows_all(p, left, a, (size_t)z->k, z->m);
    if (z->b_cols)
        sh_right_cols_all(p, right, b, (size_t)z->n);
    else
        sh_right_rows_all(p, right, b, (size_t)z->k);
}

static void compare(const sh_products *p, const sh_products *plain, const sizes *z)
{
    float *a = numbers((size_t)z->m * (size_t)z->k), *b = numbers((size_t)z->n * (size_t)z->k);
    float *y = numbers((size_t)z->m * (size_t)z->n + 3);
    float guard = y[(size_t)z->m * (size_t)z->n];
    sh_left left, left_plain;
    sh_mat right, right_plain;
    operands(p, z, a, b, &left, &right);
    operands(plain, z, a, b, &left_plain, &right_plain);
    assert_memory_equal(left.data, left_plain.data, (size_t)z->m * left.ld);
    assert_memory_equal(right.data, right_plain.data, (size_t)right.n_panel * right.panel_bytes);

    float *want = numbers((size_t)z->m * (size_t)z->n);
    sh_product_all(p, y, (size_t)z->n, &left, &right, z->m);
    sh_product_all(plain, want, (size_t)z->n, &left, &right, z->m);
    assert_memory_equal(y, want, (size_t)z->m * (size_t)z->n * sizeof *y);
    for (int i = 0; i < z->m; i++)
        for (int j = 0; j < z->n; j++) {
            double sum = 0, size = 0;
            for (int k = 0; k < z->k; k++) {
                double v = rounded(a[z->a_cols ? k * z->m + i : i * z->k + k], p->dtype) *
                           rounded(b[z->b_cols ? k * z->n + j : j * z->k + k], p->dtype);
                sum += v, size += fabs(v);
            }
            double off = fabs((double)y[i * z->n + j] - sum);
            if (off > 1e-6 * size + 1e-12)
                fail_msg("(%d, %d) of %d x %d x %d, %d slices: %g for %g", i, j, z->m, z->n, z->k,
                         z->n_slice, (double)y[i * z->n + j], sum);
        }
    assert_true(y[(size_t)z->m * (size_t)z->n] == guard);
    if (z->n_slice == 8) { /* a subtree that does not begin at the first slice */
        sh_form form = sh_products_form(p);
        p->k->matmul[p->dtype][form](y, (size_t)z->n, &right, 0, right.n_panel, 4, 8, left.data,
                                     left.ld, z->m);
        plain->k->matmul[p->dtype][form](want, (size_t)z->n, &right, 0, right.n_panel, 4, 8,
                                         left.data, left.ld, z->m);
        assert_memory_equal(y, want, (size_t)z->m * (size_t)z->n * sizeof *y);
    }
    free(left.data), free(right.data), free(left_plain.data), free(right_plain.data);
    free(a), free(b), free(y), free(want);
}

/* Rows as all three operands at once: the same bytes as one by one, and no others. */
static void spread(const sh_products *p, int n_row, int n_col, bool far)
{
    enum { ROOM = 3 }; /* runs of other columns on both sides */
    const size_t unit = p->dtype == SH_BF16 ? 2 : 4, ldx = (size_t)n_col + 5;
    const int width = (n_col + SH_RUN - 1) / SH_RUN * SH_RUN + 2 * ROOM * SH_RUN,
              at = ROOM * SH_RUN;
    const sh_kdim across = sh_kdim_whole(width), down = sh_kdim_whole(n_row);
    const sh_kdim part = sh_kdim_whole(n_col);
    sh_left rows[2], cols[2];
    sh_mat right[2];
    float *x = numbers(ldx * (size_t)n_row);
    for (int i = 0; i < 2; i++) {
        rows[i] = (sh_left){NULL, sh_left_ld(p, &across), part};
        cols[i] = (sh_left){NULL, sh_left_ld(p, &down), down};
        sh_mat_layout(&right[i], p->dtype, width, &down);
        assert_int_equal(sh_alloc(&rows[i].data, (size_t)n_row, rows[i].ld, "rows"), SH_OK);
        assert_int_equal(sh_alloc(&cols[i].data, (size_t)width, cols[i].ld, "columns"), SH_OK);
        assert_int_equal(
            sh_alloc(&right[i].data, (size_t)right[i].n_panel, right[i].panel_bytes, "right"),
            SH_OK);
    }
    p->k->spread[p->dtype](
        &(sh_spread){.rows = (char *)rows[0].data + (size_t)at * unit,
                     .ld_rows = rows[0].ld,
                     .cols = (char *)cols[0].data + (size_t)at * cols[0].ld,
                     .ld_cols = cols[0].ld,
                     .right = right[0].data + (size_t)(at / SH_LANES) * right[0].panel_bytes,
                     .panel_bytes = right[0].panel_bytes,
                     .far = far},
        x, ldx, n_row, n_col);
    const sh_left to_rows = {(char *)rows[1].data + (size_t)at * unit, rows[1].ld, part};
    const sh_left to_cols = {(char *)cols[1].data + (size_t)at * cols[1].ld, cols[1].ld, down};
    sh_mat to_right = right[1];
    to_right.rows = n_col;
    to_right.data += (size_t)(at / SH_LANES) * right[1].panel_bytes;
    sh_left_rows(p, &to_rows, x, ldx, 0, n_row);
    sh_left_cols(p, &to_cols, x, ldx, 0, n_col);
    sh_right_cols(p, &to_right, x, ldx, 0, (n_col + SH_LANES - 1) / SH_LANES);
    assert_memory_equal(rows[0].data, rows[1].data, (size_t)n_row * rows[0].ld);
    assert_memory_equal(cols[0].data, cols[1].data, (size_t)width * cols[0].ld);
    assert_memory_equal(right[0].data, right[1].data,
                        (size_t)right[0].n_panel * right[0].panel_bytes);
    for (int i = 0; i < 2; i++) free(rows[i].data), free(cols[i].data), free(right[i].data);
    free(x);
}

static void products(void **state)
{
    (void)state;
    for (int i = 0; sh_isas[i]; i++) {
        if ((sh_isas[i]->needs & sh_cpu_features()) != sh_isas[i]->needs) continue;
        sh_kernels k, c;
        sh_pool *pool;
        assert_int_equal(sh_kernels_init(&k, sh_isas[i]->name), SH_OK);
        assert_int_equal(sh_kernels_init(&c, "c"), SH_OK);
        assert_int_equal(sh_pool_open(&pool, 2, NULL, 100), SH_OK);
        for (int round = 0; round < (SANITIZED ? 6 : 30); round++) {
            sh_products p = {&k, pool, round & 1 ? SH_BF16 : SH_F32};
            sh_products plain = {&c, pool, p.dtype};
            sizes z = {1 + (int)(draw() % 90),
                       1 + (int)(draw() % 90),
                       1 + (int)(draw() % 200),
                       1 << draw() % 4,
                       draw() & 1,
                       draw() & 1};
            compare(&p, &plain, &z);
        }
        for (int round = 0; round < (SANITIZED ? 10 : 60); round++) {
            sh_products p = {&k, pool, round & 1 ? SH_BF16 : SH_F32};
            int n_row = draw() & 1 ? SH_RUN : 1 + (int)(draw() % SH_RUN);
            spread(&p, n_row, 1 + (int)(draw() % 130), draw() & 1);
        }
        /* so many k's that kernels take them in parts; batches of training have such */
        if (sh_isas[i]->needs != 0)
            for (int n_slice = 1; n_slice <= 8; n_slice *= 8) {
                sizes z = {SANITIZED ? 9 : 45, 20, n_slice < 4 ? 16900 : 4500, n_slice, true, true};
                compare(&(sh_products){&k, pool, SH_BF16}, &(sh_products){&c, pool, SH_BF16}, &z);
            }
        sh_pool_close(pool);
    }
}

/* A product over the first k's of an operand reads nothing beyond them. */
static void beginning(void **state)
{
    (void)state;
    sh_kernels k;
    sh_pool *pool;
    assert_int_equal(sh_kernels_init(&k, NULL), SH_OK);
    assert_int_equal(sh_pool_open(&pool, 1, NULL, 100), SH_OK);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        sh_products p = {&k, pool, bf16 ? SH_BF16 : SH_F32};
        sizes all = {20, 33, 128, 1, false, true}, part = {20, 33, 64, 1, false, true};
        float *a = numbers(20 * 128), *b = numbers(33 * 128), y[20 * 33], want[20 * 33];
        sh_left left, left_part;
        sh_mat right, right_part;
        operands(&p, &all, a, b, &left, &right);
        float *a_part = numbers(20 * 64);
        for (int i = 0; i < 20; i++)
            memcpy(a_part + (size_t)i * 64, a + (size_t)i * 128, 64 * sizeof *a);
        operands(&p, &part, a_part, b, &left_part, &right_part);
        sh_product_all(&p, want, 33, &left_part, &right_part, 20);
        left.kd = left_part.kd;
        sh_product_all(&p, y, 33, &left, &right, 20);
        assert_memory_equal(y, want, sizeof y);
        free(left.data), free(right.data), free(left_part.data), free(right_part.data);
        free(a), free(b), free(a_part);
    }
    sh_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products),
        cmocka_unit_test(beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
