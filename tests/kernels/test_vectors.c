/* The C rows of norm, activation, rotation and attention, which are the specification, against
 * references written here from the contract of kernels.h: in the same order of float32 operations
 * where it fixes the bits, in float64 where the question is whether the formula is right. */
#define _GNU_SOURCE
#include "kit.h"

#include "base/fmath.h"

static sh_kernels k;

/* ---- vectors ---- */

static float lanes_in_halves(float *lane)
{
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) lane[i] = lane[i] + lane[n + i];
    return lane[0];
}

static void test_rmsnorm(void **state)
{
    (void)state;
    random_state = 9;
    for (int i = 0; i < 200; i++) {
        int n = i < 40 ? i + 1 : PICK(64, 100, 288, 300);
        look l = i % 2 ? LOOK_UNIT : LOOK_WIDE;
        buffer x = buffer_floats((size_t)n, l), g = buffer_floats((size_t)n, LOOK_UNIT);
        buffer y = buffer_of((size_t)n * 4);
        const float *xf = x.p, *gf = g.p, *yf = y.p;
        float lane[16] = {0}, eps = 1e-5f;
        double mean = 0;
        k.rmsnorm(y.p, x.p, g.p, n, eps);
        for (int j = 0; j < n; j++) {
            lane[j & 15] = fmaf(xf[j], xf[j], lane[j & 15]);
            mean += (double)xf[j] * (double)xf[j] / n;
        }
        float r = 1.0f / sqrtf(lanes_in_halves(lane) / (float)n + eps);
        for (int j = 0; j < n; j++) {
            double real = (double)gf[j] * (double)xf[j] / sqrt(mean + (double)eps);
            assert_true(fabs((double)yf[j] - real) <= 1e-6 * fabs(real) + 1e-35);
            float scaled = xf[j] * r;
            assert_true(same(yf[j], gf[j] * scaled));
        }
        buffer_free(&x);
        buffer_free(&g);
        buffer_free(&y);
    }
}

static void test_layernorm(void **state)
{
    (void)state;
    random_state = 15;
    for (int i = 0; i < 200; i++) {
        int n = i < 40 ? i + 1 : PICK(64, 100, 288, 300);
        buffer x = buffer_floats((size_t)n, LOOK_UNIT), g = buffer_floats((size_t)n, LOOK_UNIT);
        buffer b = buffer_floats((size_t)n, LOOK_UNIT), y = buffer_of((size_t)n * 4);
        float *xf = x.p, *gf = g.p, *bf = b.p, *yf = y.p;
        float sum[16] = {0}, square[16] = {0}, eps = 1e-5f;
        double real_mean = 0, var = 0;
        for (int j = 0; j < n; j++) xf[j] += (float)(i % 5); /* one pass would lose digits */
        k.layernorm(y.p, x.p, g.p, b.p, n, eps);
        for (int j = 0; j < n; j++) {
            sum[j & 15] = sum[j & 15] + xf[j];
            real_mean += (double)xf[j] / n;
        }
        float mean = lanes_in_halves(sum) / (float)n;
        for (int j = 0; j < n; j++) {
            float d = xf[j] - mean;
            square[j & 15] = fmaf(d, d, square[j & 15]);
            var += ((double)xf[j] - real_mean) * ((double)xf[j] - real_mean) / n;
        }
        float r = 1.0f / sqrtf(lanes_in_halves(square) / (float)n + eps);
        for (int j = 0; j < n; j++) {
            double real = (double)gf[j] * ((double)xf[j] - real_mean) / sqrt(var + (double)eps) +
                          (double)bf[j];
            float d = xf[j] - mean, scaled = d * r;
            assert_true(same(yf[j], fmaf(gf[j], scaled, bf[j])));
            if (n > 1) assert_true(fabs((double)yf[j] - real) <= 1e-4);
        }
        assert_true(buffer_guarded(&y));
        buffer *all[] = {&x, &g, &b, &y};
        for (int j = 0; j < 4; j++) buffer_free(all[j]);
    }
}

static void test_gelu(void **state)
{
    (void)state;
    random_state = 16;
    for (int i = 0; i < 4000; i++) {
        float x = random_unit() * (float)PICK(1, 3, 8, 1000), y = x;
        double v = (double)x, u = sqrt(2 / acos(-1.0)) * (v + 0.044715 * v * v * v);
        k.gelu(&y, 1);
        assert_true(fabs((double)y - v * 0.5 * (1 + tanh(u))) <= 1e-6 * fabs(v));
        float w = fmaf(x * x, 0.0713548163f, 1.59576912f);
        assert_true(same(y, x / (1.0f + sh_expf(-(x * w)))));
    }
    float x[4] = {INFINITY, NAN, -100, 0};
    k.gelu(x, 4);
    assert_true(x[0] == INFINITY && isnan(x[1]) && x[2] == 0 && x[3] == 0);
}

static void test_silu_add(void **state)
{
    (void)state;
    random_state = 10;
    for (int i = 0; i < 4000; i++) {
        float x = random_unit() * (float)PICK(1, 10, 80, 1000), u = random_unit(), g = x, sum = x;
        double real = (double)x / (1 + exp(-(double)x)) * (double)u;
        k.silu_mul(&g, &u, 1);
        assert_true(fabs((double)g - real) <= 5e-7 * fabs(real) + 1e-35);
        k.add(&sum, &u, 1);
        assert_true(same(sum, x + u));
    }
    float g[2] = {INFINITY, NAN}, u[2] = {2, 1};
    k.silu_mul(g, u, 2);
    assert_true(g[0] == INFINITY && isnan(g[1]));
}

static void test_rope(void **state)
{
    (void)state;
    random_state = 11;
    for (int i = 0; i < 200; i++) {
        int head_dim = 2 * random_in(1, 40), n_head = random_in(1, 3),
            n_rot = 2 * random_in(0, head_dim / 2);
        float x[240], y[240], c[40], s[40];
        random_fill(x, 240, LOOK_UNIT);
        memcpy(y, x, sizeof y);
        for (int j = 0; j < n_rot / 2; j++)
            c[j] = cosf((float)(i + j)), s[j] = sinf((float)(i + j));
        k.rope(y, c, s, n_head, head_dim, n_rot);
        for (int j = 0; j < 240; j++) {
            int d = j % head_dim, p = d / 2;
            if (j >= n_head * head_dim || d >= n_rot) { /* not rotated, or not ours */
                assert_true(same(y[j], x[j]));
                continue;
            }
            float other = d % 2 ? x[j - 1] : x[j + 1];
            float want = d % 2 ? fmaf(other, s[p], x[j] * c[p]) : fmaf(x[j], c[p], -(other * s[p]));
            double real =
                (double)x[j] * (double)c[p] + (d % 2 ? 1 : -1) * (double)other * (double)s[p];
            assert_true(same(y[j], want));
            assert_true(fabs((double)y[j] - real) <= 3e-7);
        }
    }
}

/* ---- attention ---- */

/* Element i of a page: d of position j. */
static float page_at(const void *page, sh_dtype t, size_t i, size_t dim, size_t j, size_t d)
{
    uint16_t h;
    float f;
    if (t == SH_Q8_0) {
        memcpy(&h, (const char *)page + SH_PAGE * dim + 2 * (d / 32 * SH_PAGE + j), 2);
        return (float)(half_value(h) * (double)((const int8_t *)page)[i]);
    }
    if (t == SH_F32) return memcpy(&f, (const char *)page + 4 * i, 4), f;
    memcpy(&h, (const char *)page + 2 * i, 2);
    return t == SH_F16 ? (float)half_value(h) : sh_f32_from_bits((uint32_t)h << 16);
}

/* What the cache makes of the n values of a head: in q8_0 by groups of 32, the last may be shorter.
 */
static void round_head(float *y, const float *x, sh_dtype t, size_t n)
{
    for (size_t d = 0; d < n; d++) {
        float amax = 0;
        y[d] = t == SH_F32 ? x[d] : t == SH_BF16 ? to_bf16(x[d]) : 0;
        if (t == SH_F16) y[d] = (float)half_value(sh_f16_from_f32(x[d])); /* tests/base has f16 */
        if (t != SH_Q8_0) continue;
        for (size_t i = d / 32 * 32; i < n && i < d / 32 * 32 + 32; i++)
            amax = fmaxf(amax, fabsf(x[i]));
        if (amax < 1e-30f) continue;
        double scale = half_value(sh_f16_from_f32(amax / 127.0f));
        y[d] = (float)(scale * (nearbyint((double)(x[d] * (127.0f / amax))) + 0.0)); /* no -0 */
    }
}

static void check_attention(sh_dtype t, int head_dim, int n_q, int n_pos, look l)
{
    size_t n = (size_t)(SH_PAGE * head_dim), dim = (size_t)head_dim, ldq = dim + 3,
           lds = SH_PAGE + 5;
    buffer kp = buffer_of(sh_kv_page_bytes(t, head_dim)), vp = buffer_copy(&kp);
    buffer kr = buffer_of(n * 4), vr = buffer_of(n * 4); /* as the cache rounds them */
    buffer kk = buffer_floats(n, l), vv = buffer_floats(n, l),
           q = buffer_floats((size_t)n_q * ldq, l);
    buffer s = buffer_of((size_t)n_q * lds * 4), o = buffer_floats((size_t)n_q * ldq, LOOK_UNIT);
    buffer before = buffer_copy(&o);
    const float *kf = kk.p, *vf = vv.p, *qf = q.p;
    float *sf = s.p, *of = o.p, *krf = kr.p, *vrf = vr.p;
    for (int j = 0; j < SH_PAGE; j++) /* in an order in which a neighbour could be overwritten */
        k.kv_put[t](kp.p, vp.p, kf + (size_t)(j * 37 % SH_PAGE) * dim,
                    vf + (size_t)(j * 37 % SH_PAGE) * dim, j * 37 % SH_PAGE, head_dim);
    for (size_t j = 0; j < SH_PAGE; j++) {
        round_head(krf + j * dim, kf + j * dim, t, dim);
        round_head(vrf + j * dim, vf + j * dim, t, dim);
        for (size_t d = 0; d < dim; d++) {
            size_t k_at = (j / 16 * dim + d) * 16 + j % 16;
            assert_true(same(page_at(kp.p, t, k_at, dim, j, d), krf[j * dim + d]));
            assert_true(same(page_at(vp.p, t, j * dim + d, dim, j, d), vrf[j * dim + d]));
        }
    }
    k.attn_scores[t](s.p, lds, q.p, ldq, n_q, kp.p, n_pos, head_dim, 0.3f, vp.p);
    for (size_t h = 0; h < (size_t)n_q; h++)
        for (size_t j = 0; j < (size_t)n_pos; j++) {
            float acc = 0;
            for (size_t d = 0; d < dim; d++) acc = fmaf(qf[h * ldq + d], krf[j * dim + d], acc);
            assert_true(same(sf[h * lds + j], 0.3f * acc));
        }
    k.attn_values[t](o.p, ldq, s.p, lds, n_q, vp.p, n_pos, head_dim, NULL);
    for (size_t h = 0; h < (size_t)n_q; h++)
        for (size_t d = 0; d < ldq; d++) {
            float acc = ((float *)before.p)[h * ldq + d];
            for (size_t j = 0; j < (size_t)n_pos && d < dim; j++)
                acc = fmaf(sf[h * lds + j], vrf[j * dim + d], acc);
            assert_true(same(of[h * ldq + d], acc));
        }
    buffer *all[] = {&kp, &vp, &kr, &vr, &kk, &vv, &q, &s, &o, &before};
    for (int i = 0; i < 10; i++) {
        assert_true(buffer_guarded(all[i]));
        buffer_free(all[i]);
    }
}

static void test_attention(void **state)
{
    static const sh_dtype types[] = {SH_F32, SH_F16, SH_BF16, SH_Q8_0};
    (void)state;
    random_state = 12;
    for (int i = 0; i < 120; i++)
        check_attention(types[i % 4], i < 40 ? i + 1 : PICK(32, 48, 64, 80), random_in(1, 5),
                        i % 5 ? random_in(1, SH_PAGE) : SH_PAGE, i % 3 ? LOOK_UNIT : LOOK_WIDE);
}

/* The largest value of a group of q8_0 is kept to the precision of its scale, the others within
 * half a step of it; a group that holds what is no number reads as no numbers. */
static void test_q8_cache(void **state)
{
    (void)state;
    random_state = 15;
    for (int i = 0; i < 200; i++) {
        int head_dim = i < 100 ? i + 1 : PICK(64, 80, 128), at = random_in(0, SH_PAGE - 1);
        size_t dim = (size_t)head_dim;
        buffer x = buffer_floats(dim, i % 3 == 2 ? LOOK_SPECIAL : i % 3 ? LOOK_WIDE : LOOK_UNIT);
        buffer kp = buffer_of(sh_kv_page_bytes(SH_Q8_0, head_dim)), vp = buffer_copy(&kp);
        const float *xf = x.p;
        k.kv_put[SH_Q8_0](kp.p, vp.p, x.p, x.p, at, head_dim);
        for (size_t d = 0; d < dim; d++) {
            double amax = 0,
                   got = (double)page_at(vp.p, SH_Q8_0, (size_t)at * dim + d, dim, (size_t)at, d);
            bool number = true;
            for (size_t e = d / 32 * 32; e < dim && e < d / 32 * 32 + 32; e++) {
                amax = fmax(amax, fabs((double)xf[e]));
                number &= isfinite(xf[e]);
            }
            if (!number)
                assert_true(isnan(got));
            else if (amax < 8e6 && amax > 0.01) /* what f16 can scale */
                assert_true(fabs(got - (double)xf[d]) <= amax * (0.5 / 127 + 0x1p-11));
        }
        buffer_free(&x);
        buffer_free(&kp);
        buffer_free(&vp);
    }
}

/* The bf16 sum of n products: runs of 32, even and odd by themselves, from zero. */
static float sum_bf16(const float *a, const float *b, size_t stride_b, size_t n)
{
    float acc = 0;
    for (size_t run = 0; run < n; run += 32) {
        float chain[2] = {0, 0};
        for (size_t i = run; i < run + 32 && i < n; i++)
            chain[i % 2] = fmaf(to_bf16(a[i]), to_bf16(b[i * stride_b]), chain[i % 2]);
        acc += chain[0] + chain[1];
    }
    return acc;
}

/* Queries of a prompt over one span of positions: bit for bit in the order of the contract, and
 * near the attention of float64. */
static void check_attend(sh_dtype t, int head_dim, int n_row, int low)
{
    size_t dim = (size_t)head_dim, n = (size_t)SH_SPAN * dim;
    float *kf = malloc(n * sizeof *kf), *vf = malloc(n * sizeof *vf), scale = 0.3f;
    buffer kp[SH_SPAN / SH_PAGE], vp[SH_SPAN / SH_PAGE], q[8],
        o = buffer_of((size_t)n_row * dim * 4);
    const void *kpage[SH_SPAN / SH_PAGE], *vpage[SH_SPAN / SH_PAGE];
    const float *qp[8];
    float m[8], l[8], s[SH_SPAN];
    int n_pos[8];
    assert_true(kf && vf);
    for (int p = 0; p < SH_SPAN / SH_PAGE; p++) {
        kpage[p] = (kp[p] = buffer_of(sh_kv_page_bytes(t, head_dim))).p;
        vpage[p] = (vp[p] = buffer_of(sh_kv_page_bytes(t, head_dim))).p;
    }
    for (size_t j = 0; j < SH_SPAN; j++) {
        float x[2][256];
        random_fill(x[0], dim, LOOK_UNIT);
        random_fill(x[1], dim, LOOK_UNIT);
        k.kv_put[t](kp[j / SH_PAGE].p, vp[j / SH_PAGE].p, x[0], x[1], (int)j % SH_PAGE, head_dim);
        round_head(kf + j * dim, x[0], t, dim);
        round_head(vf + j * dim, x[1], t, dim);
    }
    for (int r = 0; r < n_row; r++) {
        qp[r] = (q[r] = buffer_floats(dim, LOOK_UNIT)).p;
        n_pos[r] = low + r < SH_SPAN ? low + r : SH_SPAN;
    }
    k.attend_bf16[t](o.p, m, l, qp, n_row, n_pos, kpage, vpage, head_dim, scale);
    for (int r = 0; r < n_row; r++) {
        double top = -INFINITY, sum = 0, real[256] = {0};
        float want_l, want_m;
        for (int j = 0; j < n_pos[r]; j++) {
            double dot = 0;
            s[j] = sum_bf16(qp[r], kf + (size_t)j * dim, 1, dim) * scale;
            for (size_t d = 0; d < dim; d++)
                dot += (double)qp[r][d] * (double)kf[(size_t)j * dim + d];
            double e = exp(dot * (double)scale);
            top = fmax(top, dot * (double)scale);
            sum += e;
            for (size_t d = 0; d < dim; d++) real[d] += e * (double)vf[(size_t)j * dim + d];
        }
        want_m = k.softmax_part(s, n_pos[r], &want_l);
        assert_true(same(m[r], want_m) && same(l[r], want_l));
        for (size_t d = 0; d < dim; d++) {
            float got = ((float *)o.p)[(size_t)r * dim + d];
            assert_true(same(got, sum_bf16(s, vf + d, dim, (size_t)n_pos[r])));
            assert_true(fabs((double)(got / l[r]) - real[d] / sum) < 0.03);
        }
        assert_true(fabs((double)m[r] - top) < 0.05);
    }
    for (int r = 0; r < n_row; r++) buffer_free(&q[r]);
    for (int p = 0; p < SH_SPAN / SH_PAGE; p++) buffer_free(&kp[p]), buffer_free(&vp[p]);
    assert_true(buffer_guarded(&o));
    buffer_free(&o);
    free(kf);
    free(vf);
}

static void test_attend_bf16(void **state)
{
    static const sh_dtype types[] = {SH_F16, SH_BF16, SH_Q8_0};
    (void)state;
    random_state = 14;
    assert_null((void *)(uintptr_t)k.attend_bf16[SH_F32]);
    for (int i = 0; i < 60; i++)
        check_attend(types[i % 3], i < 30 ? 2 * i + 2 : PICK(32, 48, 64, 80, 128), random_in(1, 8),
                     i % 4 ? random_in(1, SH_SPAN) : SH_SPAN);
}

/* Parts that are merged in order are the softmax of the whole. */
static void test_softmax(void **state)
{
    (void)state;
    random_state = 13;
    for (int i = 0; i < 300; i++) {
        int n = random_in(1, 600), at = 0;
        float s[600], p[600], o = 0, m = 0, l = 0, spread = (float)PICK(1, 10, 100, 2000);
        double top = -INFINITY, sum = 0, mean = 0, size = 0;
        for (int j = 0; j < n; j++) {
            p[j] = s[j] = random_unit() * spread;
            top = fmax(top, (double)s[j]);
        }
        for (int part; at < n; at += part) {
            float l2, o2 = 0, lane[16] = {0}, most = s[at];
            part = random_in(1, n - at < SH_SPAN ? n - at : SH_SPAN);
            float m2 = k.softmax_part(p + at, part, &l2);
            for (int j = 0; j < part; j++) most = fmaxf(most, s[at + j]);
            for (int j = 0; j < part; j++) {
                double e = exp((double)(s[at + j] - most));
                assert_true(fabs((double)p[at + j] - e) <= 3e-7 * e + 2e-38);
                lane[j & 15] += p[at + j];
                o2 = fmaf(p[at + j], (float)(at + j), o2); /* values 0, 1, 2, ... */
            }
            assert_true(same(m2, most) && same(l2, lanes_in_halves(lane)));
            if (at == 0)
                m = m2, l = l2, o = o2;
            else
                k.softmax_merge(&o, &m, &l, &o2, m2, l2, 1);
        }
        for (int j = 0; j < n; j++) {
            sum += exp((double)s[j] - top);
            mean += exp((double)s[j] - top) * j;
            size += exp((double)s[j] - top) * (j + 1);
        }
        assert_true((double)m == top);
        assert_true(fabs((double)l - sum) <= 1e-5 * sum);
        assert_true(fabs((double)o - mean) <= 1e-5 * size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),  cmocka_unit_test(test_layernorm),
        cmocka_unit_test(test_gelu),     cmocka_unit_test(test_silu_add),
        cmocka_unit_test(test_rope),     cmocka_unit_test(test_attention),
        cmocka_unit_test(test_q8_cache), cmocka_unit_test(test_attend_bf16),
        cmocka_unit_test(test_softmax),
    };
    sh_cpu_enter();
    if (sh_kernels_init(&k, "c") != SH_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
