/* The rows of training: those of C against their formulas in float64 and against Philox as
 * base/rng.h has it, and those of every instruction set that this machine allows against C's, bit
 * for bit; at awkward sizes, on memory that ends where the arguments do. */
#define _GNU_SOURCE
#include "kit.h"

#include "base/rng.h"

enum { N_TRY = SANITIZED ? 60 : 300 };

static sh_kernels c, k; /* k: of the instruction set under test; c itself at first */
static const char *isa;

static int some_size(int i)
{
    return i < 70 ? i + 1 : PICK(96, 100, 127, 128, 288, 300, 768, 1023);
}
static look some_look(int i)
{
    return i % 3 ? LOOK_UNIT : (look)(i / 3 % N_LOOK);
}

/* A row's array before and after, by C and by the set under test. */
typedef struct trio {
    buffer from, want, got;
} trio;

static trio trio_floats(int n, look l)
{
    trio t = {.from = buffer_floats((size_t)n, l)};
    t.want = buffer_copy(&t.from);
    t.got = buffer_copy(&t.from);
    return t;
}
static void trio_check(const char *row, trio *t)
{
    long at = differs(t->want.p, t->got.p, t->from.n / 4);
    if (at >= 0)
        fail_msg("%s: %s differs from c at %ld of %zu: %a instead of %a", isa, row, at,
                 t->from.n / 4, (double)((float *)t->got.p)[at], (double)((float *)t->want.p)[at]);
    if (!buffer_guarded(&t->want) || !buffer_guarded(&t->got))
        fail_msg("%s: %s writes before its output", isa, row);
}
static void trio_free(trio *t)
{
    buffer_free(&t->from);
    buffer_free(&t->want);
    buffer_free(&t->got);
}

static void near(const char *row, float got, double want, double room)
{
    if (!(fabs((double)got - want) <= room))
        fail_msg("%s: %.9g instead of %.9g", row, (double)got, want);
}

/* By the definition, in float64; `layer`: LayerNorm. */
static void check_norm(bool layer, const float *dx0, const float *dx, const float *dg0,
                       const float *dg, const float *dy, const float *x, const float *g, int n,
                       double eps)
{
    double mean = 0, square = 0, first = 0, product = 0;
    for (int i = 0; i < n && layer; i++) mean += (double)x[i] / n;
    for (int i = 0; i < n; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean) / n;
    double r = 1 / sqrt(square + eps);
    for (int i = 0; i < n; i++) {
        double e = (double)dy[i] * (double)g[i];
        first += layer ? e / n : 0;
        product += e * ((double)x[i] - mean) * r / n;
    }
    for (int i = 0; i < n; i++) {
        double hat = ((double)x[i] - mean) * r;
        double d = r * ((double)dy[i] * (double)g[i] - first - hat * product);
        near("norm dx", dx[i], (double)dx0[i] + d, 1e-5 * (1 + r));
        near("norm dg", dg[i], (double)dg0[i] + (double)dy[i] * hat, 1e-5 * (1 + fabs(hat)));
    }
}

static void try_norms(int i)
{
    int n = some_size(i);
    bool layer = i % 2;
    look l = some_look(i / 2);
    trio dx = trio_floats(n, l), dg = trio_floats(n, l), db = trio_floats(n, l);
    buffer dy = buffer_floats((size_t)n, l), x = buffer_floats((size_t)n, l);
    buffer g = buffer_floats((size_t)n, l);
    bool with_db = i % 5;
    if (layer) {
        c.train.layernorm_back(dx.want.p, dg.want.p, with_db ? db.want.p : NULL, dy.p, x.p, g.p, n,
                               1e-5f);
        k.train.layernorm_back(dx.got.p, dg.got.p, with_db ? db.got.p : NULL, dy.p, x.p, g.p, n,
                               1e-5f);
    } else {
        c.train.rmsnorm_back(dx.want.p, dg.want.p, dy.p, x.p, g.p, n, 1e-5f);
        k.train.rmsnorm_back(dx.got.p, dg.got.p, dy.p, x.p, g.p, n, 1e-5f);
    }
    trio_check("norm dx", &dx);
    trio_check("norm dg", &dg);
    trio_check("norm db", &db);
    if (l == LOOK_UNIT && n > 1)
        check_norm(layer, dx.from.p, dx.got.p, dg.from.p, dg.got.p, dy.p, x.p, g.p, n, 1e-5);
    for (int j = 0; j < n && l == LOOK_UNIT; j++)
        near("norm db", ((float *)db.got.p)[j],
             (double)((float *)db.from.p)[j] + (layer && with_db ? (double)((float *)dy.p)[j] : 0),
             1e-6);
    trio_free(&dx);
    trio_free(&dg);
    trio_free(&db);
    buffer_free(&dy);
    buffer_free(&x);
    buffer_free(&g);
}

static double gelu(double x)
{
    return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double silu(double x)
{
    return x / (1 + exp(-x));
}

static void try_activations(int i)
{
    int n = some_size(i);
    look l = some_look(i);
    trio dg = trio_floats(n, l), du = trio_floats(n, l), y = trio_floats(n, l);
    trio dx = trio_floats(n, l), z = trio_floats(n, l);
    buffer d = buffer_floats((size_t)n, l), x = buffer_floats((size_t)n, l),
           u = buffer_floats((size_t)n, l);
    float *xf = x.p, *uf = u.p, *df = d.p;
    if (l == LOOK_UNIT)
        for (int j = 0; j < n; j++) xf[j] *= (float)(i % 12 + 1);
    c.train.silu_mul_back(y.want.p, dg.want.p, du.want.p, d.p, x.p, u.p, (size_t)n);
    k.train.silu_mul_back(y.got.p, dg.got.p, du.got.p, d.p, x.p, u.p, (size_t)n);
    trio_check("silu_mul_back y", &y);
    trio_check("silu_mul_back dg", &dg);
    trio_check("silu_mul_back du", &du);
    c.train.gelu_back(z.want.p, dx.want.p, d.p, x.p, (size_t)n);
    k.train.gelu_back(z.got.p, dx.got.p, d.p, x.p, (size_t)n);
    trio_check("gelu_back y", &z);
    trio_check("gelu_back dx", &dx);
    for (int j = 0; j < n && l == LOOK_UNIT; j++) {
        double v = (double)xf[j], e = (double)df[j], h = 1e-5;
        near("gelu_back y", ((float *)z.got.p)[j], gelu(v), 1e-5);
        near("silu_mul_back y", ((float *)y.got.p)[j], silu(v) * (double)uf[j], 1e-5);
        near("gelu_back dx", ((float *)dx.got.p)[j], e * (gelu(v + h) - gelu(v - h)) / (2 * h),
             5e-6);
        near("silu_mul_back dg", ((float *)dg.got.p)[j],
             e * (double)uf[j] * (silu(v + h) - silu(v - h)) / (2 * h), 5e-6);
        near("silu_mul_back du", ((float *)du.got.p)[j], e * silu(v), 1e-5);
    }
    trio *all[] = {&dg, &du, &y, &dx, &z};
    for (int j = 0; j < 5; j++) trio_free(all[j]);
    buffer_free(&d);
    buffer_free(&x);
    buffer_free(&u);
}

static void try_attention(int i)
{
    int n = some_size(i);
    look l = some_look(i);
    trio s = trio_floats(n, l), d = trio_floats(n, l);
    const float *sf = s.from.p, *df = d.from.p, max = i % 4 ? 1.0f : 60.0f;
    c.train.attend_back(s.want.p, d.want.p, n, max, 0.25f, 0.1f);
    k.train.attend_back(s.got.p, d.got.p, n, max, 0.25f, 0.1f);
    trio_check("attend_back s", &s);
    trio_check("attend_back d", &d);
    for (int j = 0; j < n && l == LOOK_UNIT; j++) {
        double p = exp((double)(sf[j] - max)) * 0.25, e = p * ((double)df[j] - 0.1);
        near("attend_back s", ((float *)s.got.p)[j], p, 1e-6 * p);
        near("attend_back d", ((float *)d.got.p)[j], e, 2e-6 * fabs(e) + 1e-7 * p);
    }
    trio_free(&s);
    trio_free(&d);
}

static void try_softmax(int i)
{
    int n = some_size(i);
    look l = some_look(i);
    trio y = trio_floats(n, l);
    const float *x = y.from.p;
    float a, b, max = c.train.softmax_sum(x, (size_t)n, &a);
    float top = k.train.softmax_sum(x, (size_t)n, &b);
    if (!same(a, b) || !same(max, top))
        fail_msg("%s: softmax_sum is %a, %a instead of %a, %a", isa, (double)top, (double)b,
                 (double)max, (double)a);
    c.train.softmax(y.want.p, x, (size_t)n, max, 0.5f);
    k.train.softmax(y.got.p, x, (size_t)n, max, 0.5f);
    trio_check("softmax", &y);
    double sum = 0;
    float most = x[0];
    for (int j = 0; j < n; j++) most = x[j] > most ? x[j] : most;
    for (int j = 0; j < n && l == LOOK_UNIT; j++) {
        double p = exp((double)(x[j] - most));
        sum += p;
        near("softmax", ((float *)y.got.p)[j], p / 2, 1e-6 * p);
    }
    if (l == LOOK_UNIT) {
        assert_true(same(top, most));
        near("softmax_sum", b, sum, 2e-6 * sum);
    }
    trio_free(&y);
}

/* Sums along rows and down columns. */
static void try_sums(int i)
{
    int n = some_size(i), n_row = random_in(1, 40);
    look l = some_look(i);
    size_t ldx = (size_t)(n + random_in(0, 9)), ldy = (size_t)(n + random_in(0, 9));
    trio along = trio_floats(n_row, l), down = trio_floats(n, l);
    buffer x = buffer_floats(ldx * (size_t)(n_row - 1) + (size_t)n, l);
    buffer y = buffer_floats(ldy * (size_t)(n_row - 1) + (size_t)n, l);
    const float *xf = x.p, *yf = y.p;
    c.train.dots(along.want.p, xf, ldx, yf, ldy, n_row, n);
    k.train.dots(along.got.p, xf, ldx, yf, ldy, n_row, n);
    trio_check("dots", &along);
    c.train.sum_rows(down.want.p, xf, ldx, n_row, n);
    k.train.sum_rows(down.got.p, xf, ldx, n_row, n);
    trio_check("sum_rows", &down);
    for (int r = 0; r < n_row && l == LOOK_UNIT; r++) {
        double sum = 0;
        for (size_t j = 0; j < (size_t)n; j++)
            sum += (double)xf[(size_t)r * ldx + j] * (double)yf[(size_t)r * ldy + j];
        near("dots", ((float *)along.got.p)[r], sum, 1e-5 * (1 + fabs(sum)));
    }
    for (int j = 0; j < n; j++) { /* ascending, from 0 */
        float sum = 0;
        for (int r = 0; r < n_row; r++) sum += xf[(size_t)r * ldx + (size_t)j];
        assert_true(same(((float *)down.got.p)[j], sum));
    }
    trio_free(&along);
    trio_free(&down);
    buffer_free(&x);
    buffer_free(&y);
}

static void try_scale(int i)
{
    int n = some_size(i);
    trio x = trio_floats(n, some_look(i));
    c.train.scale(x.want.p, 0.3f, (size_t)n);
    k.train.scale(x.got.p, 0.3f, (size_t)n);
    trio_check("scale", &x);
    for (int j = 0; j < n; j++)
        assert_true(same(((float *)x.got.p)[j],
                         ((float *)x.from.p)[j] * 0.3f)); /* as sh_cpu_enter rounds */
    trio_free(&x);
}

static void try_gather(int i)
{
    int n = some_size(i), n_row = random_in(1, 5);
    size_t ldx = (size_t)(n + random_in(0, 9));
    trio y = trio_floats(n * n_row, LOOK_UNIT);
    buffer x = buffer_floats(ldx * (size_t)(n_row - 1) + (size_t)n, LOOK_UNIT);
    buffer bias = buffer_floats((size_t)n, LOOK_UNIT);
    const float *b = i % 3 ? bias.p : NULL, *xf = x.p;
    c.train.gather(y.want.p, x.p, ldx, n_row, n, b);
    k.train.gather(y.got.p, x.p, ldx, n_row, n, b);
    trio_check("gather", &y);
    for (int r = 0; r < n_row; r++)
        for (int j = 0; j < n; j++)
            assert_true(
                same(((float *)y.got.p)[r * n + j],
                     b ? xf[(size_t)r * ldx + (size_t)j] + b[j] : xf[(size_t)r * ldx + (size_t)j]));
    trio_free(&y);
    buffer_free(&x);
    buffer_free(&bias);
}

/* Word by word as base/rng.h draws them. */
static void try_dropout(int i)
{
    int n = some_size(i), n_dropped = 0;
    trio x = trio_floats(n, LOOK_UNIT);
    sh_drop drop = {.below = (uint32_t)PICK(0, 1 << 28, 1 << 30, 0x7fffffff), .scale = 1.25f};
    for (int j = 0; j < 2; j++) drop.key[j] = (uint32_t)random_u64();
    for (int j = 0; j < 3; j++) drop.at[j] = (uint32_t)random_u64();
    c.train.dropout(x.want.p, (size_t)n, &drop);
    k.train.dropout(x.got.p, (size_t)n, &drop);
    trio_check("dropout", &x);
    for (int j = 0; j < n; j++) {
        uint32_t out[4], at = (uint32_t)(j / 64 * 16 + j % 16);
        sh_philox(out, (uint32_t[]){at, drop.at[0], drop.at[1], drop.at[2]}, drop.key);
        bool dropped = out[j / 16 % 4] < drop.below;
        n_dropped += dropped;
        assert_true(same(((float *)x.got.p)[j], dropped ? 0 : ((float *)x.from.p)[j] * 1.25f));
    }
    double share = drop.below * 0x1p-32, room = 6 * sqrt(n * share * (1 - share));
    assert_true(fabs(n_dropped - n * share) <= room);
    trio_free(&x);
}

/* The set sh_isas[*state]. */
static void test_isa(void **state)
{
    const sh_isa *const *list = *state;
    isa = list[0]->name;
    random_state = 1;
    if ((list[0]->needs & sh_cpu_features()) != list[0]->needs) {
        print_message("# %s: this machine does not have it: nothing was compared\n", isa);
        return;
    }
    assert_int_equal(sh_kernels_init(&c, sh_isas[0]->name), SH_OK);
    assert_int_equal(sh_kernels_init(&k, isa), SH_OK);
    uint64_t fp = sh_cpu_enter();
    for (int i = 0; i < N_TRY; i++) {
        try_norms(i);
        try_activations(i);
        try_attention(i);
        try_softmax(i);
        try_sums(i);
        try_gather(i);
        try_scale(i);
        try_dropout(i);
    }
    sh_cpu_leave(fp);
}

/* Nothing on the left, `right` on the right. */
static void check_far(const float y[4], float right)
{
    assert_true(fabsf(y[0]) < 1e-15f && y[1] == right && fabsf(y[2]) < 1e-15f && isnan(y[3]));
}

/* Far out, where e^x overflows, derivatives are 0 or 1, and NaN stays NaN. */
static void test_far(void **state)
{
    (void)state;
    const float x[4] = {-1e30f, 1e30f, -INFINITY, NAN}, d[4] = {1, 1, 1, 1}, u[4] = {1, 1, 1, 1};
    float y[4], dg[4], du[4];
    assert_int_equal(sh_kernels_init(&k, NULL), SH_OK);
    k.train.silu_mul_back(y, dg, du, d, x, u, 4);
    check_far(dg, 1);
    check_far(du, 1e30f);
    check_far(y, 1e30f);
    k.train.gelu_back(y, dg, d, x, 4);
    check_far(dg, 1);
    check_far(y, 1e30f);
    float s[3] = {-1e30f, 0, NAN}, e[3] = {1, 1, 1};
    k.train.attend_back(s, e, 3, 0, 1, 0);
    assert_true(s[0] == 0 && s[1] == 1 && isnan(s[2]));
    float sum, z[3] = {-INFINITY, 2, NAN};
    assert_true(k.train.softmax_sum(z, 2, &sum) == 2 && sum == 1);
    k.train.softmax_sum(z, 3, &sum);
    assert_true(isnan(sum)); /* wherever the NaN stands */
    k.train.softmax_sum(&z[2], 1, &sum);
    assert_true(isnan(sum));
}

int main(void)
{
    struct CMUnitTest tests[16] = {cmocka_unit_test(test_far)};
    size_t n = 1;
    for (int i = 0; sh_isas[i] && n < 16; i++)
        tests[n++] = (struct CMUnitTest){sh_isas[i]->name, test_isa, NULL, NULL,
                                         (void *)(uintptr_t)&sh_isas[i]};
    return _cmocka_run_group_tests("train rows", tests, n, NULL, NULL);
}
