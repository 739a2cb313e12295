#define _GNU_SOURCE
/* Every row of every instruction set that this machine allows against the row of c/, bit for bit,
 * at awkward sizes, on memory that ends where the arguments do, with values of every kind. A new
 * row or a new instruction set is tested without a change here; a new field of sh_kernels needs a
 * line. */
#include "kit.h"

#include "base/cpu.h"

enum { N_TRY = SANITIZED ? 10 : 50 };

static sh_kernels c, k, before; /* before: the table one instruction set earlier */
static const char *isa;
static int n_compared;
static int n_matched; /* pointers of the table that were looked at */

/* Whether to compare the row `f` of the table: it is not the one of C, or of the set before. */
#define NEW(f) (n_matched++, k.f && k.f != c.f && k.f != before.f && (n_compared++, true))

#define SAME(what, at, fmt, ...)                                                                   \
    do {                                                                                           \
        long at_ = (at);                                                                           \
        if (at_ >= 0) fail_msg("%s: %s differs from c at %ld: " fmt, isa, what, at_, __VA_ARGS__); \
    } while (0)
#define GUARDED(what, b)                                                                           \
    do {                                                                                           \
        if (!buffer_guarded(b)) fail_msg("%s: %s writes before its output", isa, what);            \
    } while (0)

/* Panels [lo, hi) and slices [slice, slice + n_slice) of random weights by n_tok random tokens. */
static void compare_product(sh_dtype t, sh_form form, int rows, const sh_kdim *kd, int slice,
                            int n_slice, int n_tok, look l, bool all_panels)
{
    static const char *const form_name[] = {"f32", "bf16", "i8"};
    char what[64];
    snprintf(what, sizeof what, "matmul[%s][%s]", sh_dtypes[t].name, form_name[form]);
    matrix m = matrix_random(t, rows, kd, l);
    int lo = random_in(0, m.mat.n_panel), hi = random_in(lo, m.mat.n_panel);
    if (all_panels) lo = 0, hi = m.mat.n_panel;
    size_t ldx = sh_form_bytes(form, kd), ldy = (size_t)(rows + random_in(0, 20));
    buffer x = prepared(&c, form, kd, n_tok, l);
    buffer want = buffer_of(((size_t)(n_tok - 1) * ldy + (size_t)rows) * sizeof(float));
    buffer got = buffer_copy(&want);
    sh_cpu_streams = random_in(0, 1); /* on every machine both ways of reading */
    c.matmul[t][form](want.p, ldy, &m.mat, lo, hi, slice, slice + n_slice, x.p, ldx, n_tok);
    k.matmul[t][form](got.p, ldy, &m.mat, lo, hi, slice, slice + n_slice, x.p, ldx, n_tok);
    long at = differs(want.p, got.p, want.n / 4);
    SAME(what, at,
         "%a instead of %a; rows %d, k %d, panels %d to %d, slices %d to %d of %d, tokens %d, "
         "ldy %zu, look %d",
         (double)((float *)got.p)[at], (double)((float *)want.p)[at], rows, kd->k[kd->n_slice], lo,
         hi, slice, slice + n_slice, kd->n_slice, n_tok, ldy, (int)l);
    GUARDED(what, &got);
    buffer_free(&x);
    buffer_free(&want);
    buffer_free(&got);
    matrix_free(&m);
}

static void compare_matmul(sh_dtype t, sh_form form)
{
    for (int i = 0; i < 2 * N_TRY; i++) {
        look l = i % 2 ? LOOK_UNIT : (look)(i / 2 % N_LOOK);
        int rows = PICK(1, 7, 15, 16, 17, 31, 33, 64, 100, 130),
            n_tok = PICK(1, 1, 2, 3, 4, 5, 7, 8, 9);
        if (i % 7 == 0 && i % 25 != 1) n_tok = PICK(15, 16, 17, 31, 32, 33, 40, 49, 65, 67);
        sh_kdim kd =
            random_kdim(i % 25 == 1 ? 4200 : PICK(1, 31, 32, 33, 64, 65, 96, 128, 172, 256, 300),
                        sh_dtypes[t].block);
        int n_slice = PICK(1, 2, 4, 8);
        while (n_slice > kd.n_slice) n_slice /= 2;
        compare_product(t, form, rows, &kd, random_in(0, kd.n_slice - n_slice), n_slice, n_tok, l,
                        i % 2);
    }
    /* So many k's, panels or tokens that they are taken in parts: of `in` equal slices n_slice,
     * from `slice` on. */
    static const struct {
        int rows, k, in, slice, n_slice, n_tok;
    } big[] = {{33, 2080, 1, 0, 1, 17}, {2, 6176, 1, 0, 1, 33},  {17, 17664, 8, 0, 8, 8},
               {20, 9216, 8, 4, 4, 9},  {20, 20480, 8, 2, 2, 9}, {3, 4096, 2, 0, 2, 16},
               {530, 2080, 1, 0, 1, 8}, {1, 2112, 1, 0, 1, 520}, {1, 2560, 8, 0, 8, 520}};
    for (size_t i = 0; form == SH_FORM_BF16 && i < sizeof big / sizeof *big; i++) {
        int bound[SH_N_SLICE + 1];
        for (int s = 0; s <= big[i].in; s++) bound[s] = big[i].k / big[i].in * s;
        sh_kdim kd = sh_kdim_slices(bound, big[i].in);
        compare_product(t, form, big[i].rows, &kd, big[i].slice, big[i].n_slice, big[i].n_tok,
                        LOOK_UNIT, true);
    }
}

static void compare_prepare(sh_form form)
{
    char what[32];
    snprintf(what, sizeof what, "prepare[%d]", (int)form);
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        sh_kdim kd = random_kdim(PICK(1, 15, 16, 31, 32, 33, 64, 100, 172, 300),
                                 form == SH_FORM_I8 ? 32 : 1);
        if (i % 3 == 0) kd = random_kdim(random_in(1, 400), 1);
        size_t kp = (size_t)kd.kp[kd.n_slice];
        buffer x = buffer_floats((size_t)kd.k[kd.n_slice], l);
        if (i % 4 == 3) /* about the least block that is not zero */
            for (int j = 0; j < kd.k[kd.n_slice]; j++) ((float *)x.p)[j] *= 1e-30f;
        buffer want = buffer_of(sh_form_bytes(form, &kd)), got = buffer_copy(&want);
        c.prepare[form](want.p, x.p, &kd);
        k.prepare[form](got.p, x.p, &kd);
        if (form == SH_FORM_BF16) {
            SAME(what, differs_half(want.p, got.p, kp, SH_BF16), "k %d, look %d", kd.k[kd.n_slice],
                 (int)l);
        } else if (form == SH_FORM_F32) {
            SAME(what, differs(want.p, got.p, kp), "k %d, look %d", kd.k[kd.n_slice], (int)l);
        } else {
            const uint8_t *a = want.p, *b = got.p;
            for (size_t j = 0; j < kp; j++)
                SAME(what, a[j] == b[j] ? -1 : (long)j, "quantised %d instead of %d, look %d",
                     (int8_t)b[j], (int8_t)a[j], (int)l);
            SAME(what, differs(a + kp, b + kp, kp / SH_RUN), "a scale, look %d", (int)l);
            const int32_t *s = (const int32_t *)(a + kp + kp / 8),
                          *z = (const int32_t *)(b + kp + kp / 8);
            for (size_t j = 0; j < kp / SH_RUN; j++)
                SAME(what, s[j] == z[j] ? -1 : (long)j, "a sum, look %d", (int)l);
        }
        GUARDED(what, &got);
        buffer_free(&x);
        buffer_free(&want);
        buffer_free(&got);
    }
}

static void compare_rmsnorm(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int n = i % 2 ? random_in(1, 100) : PICK(1, 15, 16, 17, 32, 64, 288, 300);
        buffer x = buffer_floats((size_t)n, l), g = buffer_floats((size_t)n, LOOK_UNIT);
        buffer want = buffer_of((size_t)n * 4), got = buffer_of((size_t)n * 4);
        c.rmsnorm(want.p, x.p, g.p, n, 1e-5f);
        k.rmsnorm(got.p, x.p, g.p, n, 1e-5f);
        SAME("rmsnorm", differs(want.p, got.p, (size_t)n), "n %d, look %d", n, (int)l);
        GUARDED("rmsnorm", &got);
        k.rmsnorm(x.p, x.p, g.p, n, 1e-5f);
        SAME("rmsnorm in place", differs(want.p, x.p, (size_t)n), "n %d, look %d", n, (int)l);
        GUARDED("rmsnorm in place", &x);
        buffer_free(&x);
        buffer_free(&g);
        buffer_free(&want);
        buffer_free(&got);
    }
}

static void compare_layernorm(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int n = i % 2 ? random_in(1, 100) : PICK(1, 15, 16, 17, 32, 64, 288, 300);
        buffer x = buffer_floats((size_t)n, l), g = buffer_floats((size_t)n, LOOK_UNIT);
        buffer b = buffer_floats((size_t)n, LOOK_UNIT);
        buffer want = buffer_of((size_t)n * 4), got = buffer_of((size_t)n * 4);
        c.layernorm(want.p, x.p, g.p, b.p, n, 1e-5f);
        k.layernorm(got.p, x.p, g.p, b.p, n, 1e-5f);
        SAME("layernorm", differs(want.p, got.p, (size_t)n), "n %d, look %d", n, (int)l);
        GUARDED("layernorm", &got);
        k.layernorm(x.p, x.p, g.p, b.p, n, 1e-5f);
        SAME("layernorm in place", differs(want.p, x.p, (size_t)n), "n %d, look %d", n, (int)l);
        GUARDED("layernorm in place", &x);
        buffer *all[] = {&x, &g, &b, &want, &got};
        for (int j = 0; j < 5; j++) buffer_free(all[j]);
    }
}

static void compare_gelu(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        size_t n = (size_t)(i % 2 ? random_in(0, 100) : PICK(1, 15, 16, 17, 64, 300));
        buffer want = buffer_floats(n, l);
        for (size_t j = 0; j < n && i % 4; j++) ((float *)want.p)[j] *= 12;
        buffer got = buffer_copy(&want);
        c.gelu(want.p, n);
        k.gelu(got.p, n);
        SAME("gelu", differs(want.p, got.p, n), "n %zu, look %d", n, (int)l);
        GUARDED("gelu", &got);
        buffer_free(&want);
        buffer_free(&got);
    }
}

/* Rows that change n floats by n others. */
static void compare_pair(const char *what, void (*cf)(float *, const float *, size_t),
                         void (*kf)(float *, const float *, size_t), float spread)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        size_t n = (size_t)(i % 2 ? random_in(0, 100) : PICK(1, 15, 16, 17, 64, 300));
        buffer want = buffer_floats(n, l), x = buffer_floats(n, l);
        for (size_t j = 0; j < n && spread > 0 && i % 4; j++) ((float *)want.p)[j] *= spread;
        buffer got = buffer_copy(&want);
        cf(want.p, x.p, n);
        kf(got.p, x.p, n);
        SAME(what, differs(want.p, got.p, n), "n %zu, look %d", n, (int)l);
        GUARDED(what, &got);
        buffer_free(&x);
        buffer_free(&want);
        buffer_free(&got);
    }
}

static void compare_rope(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int head_dim = 2 * random_in(1, 70), n_head = random_in(1, 5);
        if (i % 2) head_dim = PICK(8, 16, 32, 64, 80, 128);
        int n_rot = i % 3 ? head_dim : 2 * random_in(0, head_dim / 2);
        size_t n = (size_t)(n_head * head_dim);
        buffer want = buffer_floats(n, l), got = buffer_copy(&want);
        buffer cs = buffer_floats((size_t)n_rot / 2, LOOK_UNIT),
               sn = buffer_floats((size_t)n_rot / 2, LOOK_UNIT);
        c.rope(want.p, cs.p, sn.p, n_head, head_dim, n_rot);
        k.rope(got.p, cs.p, sn.p, n_head, head_dim, n_rot);
        SAME("rope", differs(want.p, got.p, n), "%d heads of %d, n_rot %d, look %d", n_head,
             head_dim, n_rot, (int)l);
        GUARDED("rope", &got);
        buffer_free(&want);
        buffer_free(&got);
        buffer_free(&cs);
        buffer_free(&sn);
    }
}

static int random_head_dim(void)
{
    return random_in(0, 1) ? 2 * random_in(1, 70) : PICK(8, 16, 24, 32, 48, 64, 80, 96, 128);
}

/* A page of one head, filled with random values by the C row. What lies beyond n_pos is left over
 * from another sequence and must not matter, whatever it is. */
static buffer random_page(sh_dtype t, int head_dim, bool v, look l, int n_pos)
{
    buffer b = buffer_of(sh_kv_page_bytes(t, head_dim)), other = buffer_of(b.n);
    float *x = malloc((size_t)head_dim * sizeof *x);
    assert_non_null(x);
    for (int at = 0; at < SH_PAGE; at++) {
        random_fill(x, (size_t)head_dim, l);
        for (int d = 0; at >= n_pos && d < head_dim; d++) x[d] = d % 2 ? NAN : INFINITY;
        c.kv_put[t](v ? other.p : b.p, v ? b.p : other.p, x, x, at, head_dim);
    }
    free(x);
    buffer_free(&other);
    return b;
}

static long differs_page(const buffer *a, const buffer *b, sh_dtype t)
{
    if (t == SH_F32) return differs(a->p, b->p, a->n / 4);
    if (t == SH_Q8_0) return memcmp(a->p, b->p, a->n) ? 0 : -1;
    return differs_half(a->p, b->p, a->n / 2, t);
}

static void compare_kv_put(sh_dtype t)
{
    for (int i = 0; i < 2 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int head_dim = random_head_dim();
        size_t bytes = sh_kv_page_bytes(t, head_dim);
        buffer kw = buffer_of(bytes), vw = buffer_of(bytes), kg = buffer_of(bytes),
               vg = buffer_of(bytes);
        buffer x = buffer_floats((size_t)head_dim, l), y = buffer_floats((size_t)head_dim, l);
        for (int j = 0; j < 3; j++) {
            int at = random_in(0, SH_PAGE - 1);
            c.kv_put[t](kw.p, vw.p, x.p, y.p, at, head_dim);
            k.kv_put[t](kg.p, vg.p, x.p, y.p, at, head_dim);
        }
        SAME("kv_put", differs_page(&kw, &kg, t), "K in %s, head_dim %d, look %d",
             sh_dtypes[t].name, head_dim, (int)l);
        SAME("kv_put", differs_page(&vw, &vg, t), "V in %s, head_dim %d, look %d",
             sh_dtypes[t].name, head_dim, (int)l);
        GUARDED("kv_put", &kg);
        GUARDED("kv_put", &vg);
        buffer *all[] = {&kw, &vw, &kg, &vg, &x, &y};
        for (int j = 0; j < 6; j++) buffer_free(all[j]);
    }
}

static void compare_scores(sh_dtype t)
{
    for (int i = 0; i < 2 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int head_dim = random_head_dim(), n_q = random_in(1, 9), n_pos = random_in(1, SH_PAGE);
        int room = (n_pos + 15) / 16 * 16;
        size_t ldq = (size_t)(head_dim + random_in(0, 9)), lds = (size_t)(room + random_in(0, 40));
        buffer q = buffer_floats((size_t)(n_q - 1) * ldq + (size_t)head_dim, l);
        buffer page = random_page(t, head_dim, false, l, n_pos);
        const void *next = i % 2 ? page.p : NULL;
        buffer want = buffer_of(((size_t)(n_q - 1) * lds + (size_t)room) * 4),
               got = buffer_copy(&want);
        c.attn_scores[t](want.p, lds, q.p, ldq, n_q, page.p, n_pos, head_dim, 0.17f, next);
        k.attn_scores[t](got.p, lds, q.p, ldq, n_q, page.p, n_pos, head_dim, 0.17f, next);
        for (int h = 0; h < n_q; h++) /* what may be written, but means nothing */
            for (int j = n_pos; j < room; j++)
                ((float *)want.p)[(size_t)h * lds + (size_t)j] =
                    ((float *)got.p)[(size_t)h * lds + (size_t)j] = 0;
        SAME("attn_scores", differs(want.p, got.p, want.n / 4),
             "%s, %d heads of %d, %d positions, lds %zu, look %d", sh_dtypes[t].name, n_q, head_dim,
             n_pos, lds, (int)l);
        GUARDED("attn_scores", &got);
        buffer *all[] = {&q, &page, &want, &got};
        for (int j = 0; j < 4; j++) buffer_free(all[j]);
    }
}

static void compare_attend(sh_dtype t)
{
    for (int i = 0; i < N_TRY; i++) {
        look l = i % 2 ? LOOK_UNIT : LOOK_TINY;
        int head_dim = random_head_dim(), n_row = PICK(1, 2, 15, 16, 17, 40), most = 0;
        buffer q[40], k_page[SH_SPAN / SH_PAGE], v_page[SH_SPAN / SH_PAGE];
        const float *qp[40];
        const void *kp[SH_SPAN / SH_PAGE] = {0}, *vp[SH_SPAN / SH_PAGE] = {0};
        int n_pos[40], low = random_in(1, SH_SPAN);
        for (int r = 0; r < n_row; r++) {
            q[r] = buffer_floats((size_t)head_dim, l);
            qp[r] = q[r].p;
            n_pos[r] = low + r / 3 < SH_SPAN ? low + r / 3 : SH_SPAN; /* as tokens of a prompt */
            most = n_pos[r];
        }
        int n_page = (most + SH_PAGE - 1) / SH_PAGE;
        for (int p = 0; p < n_page; p++) {
            kp[p] = (k_page[p] = random_page(t, head_dim, false, l, most - p * SH_PAGE)).p;
            vp[p] = (v_page[p] = random_page(t, head_dim, true, l, most - p * SH_PAGE)).p;
        }
        buffer want = buffer_of((size_t)(n_row * (head_dim + 2)) * 4), got = buffer_copy(&want);
        float *w = want.p, *g = got.p;
        size_t n = (size_t)(n_row * head_dim);
        c.attend_bf16[t](w, w + n, w + n + n_row, qp, n_row, n_pos, kp, vp, head_dim, 0.17f);
        k.attend_bf16[t](g, g + n, g + n + n_row, qp, n_row, n_pos, kp, vp, head_dim, 0.17f);
        SAME("attend_bf16", differs(want.p, got.p, want.n / 4),
             "%s, %d queries of %d, %d positions", sh_dtypes[t].name, n_row, head_dim, most);
        GUARDED("attend_bf16", &got);
        for (int r = 0; r < n_row; r++) buffer_free(&q[r]);
        for (int p = 0; p < n_page; p++) buffer_free(&k_page[p]), buffer_free(&v_page[p]);
        buffer_free(&want);
        buffer_free(&got);
    }
}

static void compare_values(sh_dtype t)
{
    for (int i = 0; i < 2 * N_TRY; i++) {
        look l = (look)(i % N_LOOK);
        int head_dim = random_head_dim(), n_q = random_in(1, 9), n_pos = random_in(1, SH_PAGE);
        size_t ldo = (size_t)(head_dim + random_in(0, 9)), ldp = (size_t)(n_pos + random_in(0, 40));
        buffer p = buffer_floats((size_t)(n_q - 1) * ldp + (size_t)n_pos, l);
        buffer page = random_page(t, head_dim, true, l, n_pos);
        const void *next = i % 2 ? page.p : NULL;
        buffer want = buffer_floats((size_t)(n_q - 1) * ldo + (size_t)head_dim, LOOK_UNIT);
        buffer got = buffer_copy(&want);
        c.attn_values[t](want.p, ldo, p.p, ldp, n_q, page.p, n_pos, head_dim, next);
        k.attn_values[t](got.p, ldo, p.p, ldp, n_q, page.p, n_pos, head_dim, next);
        SAME("attn_values", differs(want.p, got.p, want.n / 4),
             "%s, %d heads of %d, %d positions, ldo %zu, look %d", sh_dtypes[t].name, n_q, head_dim,
             n_pos, ldo, (int)l);
        GUARDED("attn_values", &got);
        buffer *all[] = {&p, &page, &want, &got};
        for (int j = 0; j < 4; j++) buffer_free(all[j]);
    }
}

/* Numbers, and minus infinity, but not the first: the forward pass makes no others unless the model
 * is damaged. */
static void compare_softmax_part(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        int n = i % 2 ? random_in(1, SH_SPAN) : PICK(1, 15, 16, 17, 64, SH_SPAN);
        buffer want = buffer_of((size_t)n * 4);
        float *s = want.p, sum[2], spread = (float)PICK(1, 1, 10, 100, 1000);
        for (int j = 0; j < n; j++)
            s[j] = j && random_in(0, 50) == 0 ? -INFINITY : random_unit() * spread;
        buffer got = buffer_copy(&want);
        float m0 = c.softmax_part(want.p, n, &sum[0]), m1 = k.softmax_part(got.p, n, &sum[1]);
        SAME("softmax_part", m0 == m1 ? -1 : 0, "the maximum, n %d", n);
        SAME("softmax_part", differs(&sum[0], &sum[1], 1), "the sum, n %d", n);
        SAME("softmax_part", differs(want.p, got.p, (size_t)n), "n %d", n);
        GUARDED("softmax_part", &got);
        buffer_free(&want);
        buffer_free(&got);
    }
}

static void compare_softmax_merge(void)
{
    for (int i = 0; i < 4 * N_TRY; i++) {
        int n = random_head_dim();
        look l = (look)(i % LOOK_SPECIAL);
        float m[2], sum[2], spread = (float)PICK(1, 5, 100), m2 = random_unit() * spread;
        float l2 = 1 + random_unit();
        m[0] = m[1] = i % 5 ? random_unit() * spread : m2;
        sum[0] = sum[1] = 2 + random_unit();
        buffer want = buffer_floats((size_t)n, l), got = buffer_copy(&want),
               o2 = buffer_floats((size_t)n, l);
        c.softmax_merge(want.p, &m[0], &sum[0], o2.p, m2, l2, n);
        k.softmax_merge(got.p, &m[1], &sum[1], o2.p, m2, l2, n);
        SAME("softmax_merge", differs(&m[0], &m[1], 1), "the maximum, n %d", n);
        SAME("softmax_merge", differs(&sum[0], &sum[1], 1), "the sum, n %d", n);
        SAME("softmax_merge", differs(want.p, got.p, (size_t)n), "n %d", n);
        GUARDED("softmax_merge", &got);
        buffer_free(&want);
        buffer_free(&got);
        buffer_free(&o2);
    }
}

/* The rows of the bench give no values to compare: they run, and stay within their memory. */
static void run_bench_rows(void)
{
    buffer b = buffer_of(3 * 4096);
    for (int form = 0; form < SH_N_FORM; form++)
        if (n_matched++, k.peak[form]) assert_true(k.peak[form](3) > 0);
    if (n_matched++, k.read) (void)k.read(b.p, b.n);
    buffer_free(&b);
}

static void compare_table(void)
{
    for (int t = 0; t < SH_N_DTYPE; t++) {
        for (int form = 0; form < SH_N_FORM; form++)
            if (NEW(matmul[t][form])) compare_matmul((sh_dtype)t, (sh_form)form);
        if (NEW(kv_put[t])) compare_kv_put((sh_dtype)t);
        if (NEW(attn_scores[t])) compare_scores((sh_dtype)t);
        if (NEW(attn_values[t])) compare_values((sh_dtype)t);
        if (NEW(attend_bf16[t])) compare_attend((sh_dtype)t);
    }
    for (int form = 0; form < SH_N_FORM; form++)
        if (NEW(prepare[form])) compare_prepare((sh_form)form);
    if (NEW(rmsnorm)) compare_rmsnorm();
    if (NEW(add)) compare_pair("add", c.add, k.add, 0);
    if (NEW(silu_mul)) compare_pair("silu_mul", c.silu_mul, k.silu_mul, 120);
    if (NEW(layernorm)) compare_layernorm();
    if (NEW(gelu)) compare_gelu();
    if (NEW(rope)) compare_rope();
    if (NEW(softmax_part)) compare_softmax_part();
    if (NEW(softmax_merge)) compare_softmax_merge();
    run_bench_rows();
    /* compared elsewhere: in test_train_rows.c; train/test_products.c; train/test_adamw.c */
    n_matched += (int)(sizeof c.train / sizeof(void (*)(void)));
    n_matched +=
        (int)((sizeof c.left_cols + sizeof c.right_rows + sizeof c.right_cols + sizeof c.spread) /
              sizeof(void (*)(void)));
    n_matched += (int)((sizeof c.adamw + sizeof c.sum_squares) / sizeof(void (*)(void)));
    assert_int_equal(n_matched,
                     sizeof(sh_kernels) / sizeof(void (*)(void))); /* no field was forgotten */
}

/* The set sh_isas[*state]. */
static void test_isa(void **state)
{
    const sh_isa *const *list = *state;
    uint64_t fp = sh_cpu_enter();
    isa = list[0]->name;
    random_state = 1;
    n_compared = n_matched = 0;
    if ((list[0]->needs & sh_cpu_features()) != list[0]->needs) {
        print_message("# %s: this machine does not have it: nothing was compared\n", isa);
        return;
    }
    assert_int_equal(sh_kernels_init(&c, sh_isas[0]->name), SH_OK);
    assert_int_equal(sh_kernels_init(&before, list == sh_isas ? isa : list[-1]->name), SH_OK);
    assert_int_equal(sh_kernels_init(&k, isa), SH_OK);
    compare_table();
    print_message("# %s: %d rows compared with c\n", isa, n_compared);
    assert_true(n_compared > 0 ||
                list == sh_isas); /* a set without a row of its own is a mistake */
    sh_cpu_leave(fp);
}

/* Where a type is computed with some form on one machine, it is on all: the rows are those of C. */
static void test_same_rows(void **state)
{
    (void)state;
    sh_kernels plain, best;
    assert_int_equal(sh_kernels_init(&plain, "c"), SH_OK);
    assert_int_equal(sh_kernels_init(&best, NULL), SH_OK);
    for (int t = 0; t < SH_N_DTYPE; t++)
        for (int form = 0; form < SH_N_FORM; form++)
            assert_int_equal(!plain.matmul[t][form], !best.matmul[t][form]);
    for (int t = 0; t < SH_N_DTYPE; t++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            assert_non_null((void *)(uintptr_t)plain.matmul[t][sh_form_of((sh_dtype)t, bf16)]);
}

static void test_unknown_isa(void **state)
{
    (void)state;
    assert_int_equal(sh_kernels_init(&k, "mmx"), SH_EARG);
    for (int i = 0; sh_isas[i]; i++) assert_non_null(strstr(sh_err_message(), sh_isas[i]->name));
}

int main(void)
{
    struct CMUnitTest tests[16] = {cmocka_unit_test(test_same_rows),
                                   cmocka_unit_test(test_unknown_isa)};
    size_t n = 2;
    for (int i = 0; sh_isas[i] && n < 16; i++)
        tests[n++] = (struct CMUnitTest){sh_isas[i]->name, test_isa, NULL, NULL,
                                         (void *)(uintptr_t)&sh_isas[i]};
    return _cmocka_run_group_tests("kernels", tests, n, NULL, NULL);
}
