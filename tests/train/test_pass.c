/* The pass of training: its loss and gradients against a model written here in float64 from the
 * formulas (central differences), against torch (tests/golden/train/), and what must not depend on
 * ranks, threads and instruction sets, bit for bit. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>

#include "base/mem.h"
#include "base/rng.h"
#include "train/blocks.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

static uint64_t random_state;

static uint64_t random_u64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
static float random_unit(void) /* [-1, 1) */
{
    return (float)(int32_t)(random_u64() >> 32) * 0x1p-31f;
}

/* ---- the models ---- */

static float freqs[3] = {1.0f, 2.5f, 8.0f};

static const sh_arch archs[] = {
    {"llama", 2, 4, 2, 6, 20, 28, 23, 7, 6, .norm_eps = 1e-5f, .rope_base = 100, .rope_linear = 1},
    {"llama", 2, 6, 1, 10, 36, 56, 61, 7, 6, .norm_eps = 1e-5f, .rope_base = 10000,
     .rope_linear = 2.5, .rope_freqs = freqs, .tied = true},
    {"llama", 1, 3, 3, 16, 48, 33, 19, 70, 16, .norm_eps = 1e-5f, .rope_base = 10000,
     .rope_linear = 1},
    {"gpt2", 2, 4, 4, 5, 20, 80, 61, 7, 0, true, true, true, true, true, .norm_eps = 1e-5f},
    {"gpt2", 1, 2, 2, 16, 33, 48, 17, 130, 0, true, true, true, true, false, .norm_eps = 1e-5f},
    /* heads of whole runs, sequences of whole blocks; a vocabulary of more than one tile */
    {"llama", 1, 4, 2, 32, 40, 48, 17, 64, 32, .norm_eps = 1e-5f, .rope_base = 10000,
     .rope_linear = 1},
    {"gpt2", 1, 2, 2, 32, 48, 64, 1100, 32, 0, true, true, true, true, true, .norm_eps = 1e-5f},
};
enum { N_ARCH = sizeof archs / sizeof *archs };

/* Weights large enough that nothing is nearly linear. */
static void draw(sh_params *p)
{
    for (int i = 0; i < p->n; i++) {
        const sh_param *t = &p->list[i];
        float size = t->cols > 1 ? 1.7f / sqrtf((float)t->cols) : 0.3f;
        bool gain = t->cols == 1 && strstr(t->name, ".weight");
        for (size_t j = 0; j < (size_t)t->rows * (size_t)t->cols; j++)
            p->w[t->at + j] = size * random_unit() + (gain ? 1.0f : 0.0f);
    }
}

static int32_t *draw_ids(const sh_arch *a, int n_seq)
{
    size_t n = (size_t)n_seq * (size_t)(a->n_ctx + 1);
    int32_t *ids = malloc(n * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(random_u64() % (uint64_t)a->n_vocab);
    return ids;
}

/* ---- the same model in float64 ---- */

typedef struct model {
    const sh_params *p;
    const double *w;
    const int32_t *ids; /* (n_ctx + 1) of sequence number seq */
    int seq;
    const sh_dropout *drop;
} model;

static void drop(const model *m, double *x, int n, uint32_t site, uint32_t row)
{
    const sh_dropout *d = m->drop;
    if (!d) return;
    for (int i = 0; i < n; i++) {
        uint32_t out[4], key[2] = {(uint32_t)d->seed, (uint32_t)(d->seed >> 32)};
        uint32_t counter[4] = {(uint32_t)(i / 64 * 16 + i % 16), row, site, (uint32_t)d->step};
        sh_philox(out, counter, key);
        x[i] *= out[i / 16 % 4] * 0x1p-32 < (double)d->rate ? 0 : 1 / (1 - (double)d->rate);
    }
}

static void norm(const model *m, double *y, const double *x, size_t g, size_t b)
{
    const sh_arch *a = &m->p->arch;
    double mean = 0, square = 0;
    for (int i = 0; i < a->n_embd && a->layer_norm; i++) mean += x[i] / a->n_embd;
    for (int i = 0; i < a->n_embd; i++) square += (x[i] - mean) * (x[i] - mean) / a->n_embd;
    for (int i = 0; i < a->n_embd; i++)
        y[i] = m->w[g + (size_t)i] * (x[i] - mean) / sqrt(square + (double)a->norm_eps) +
               (a->layer_norm ? m->w[b + (size_t)i] : 0);
}

/* y (rows) = w (rows, cols) x + bias */
static void linear(const model *m, double *y, const double *x, size_t w, size_t b, int rows,
                   int cols)
{
    for (int r = 0; r < rows; r++) {
        const double *row = m->w + w + (size_t)r * (size_t)cols;
        double a = m->p->arch.bias && b != SIZE_MAX ? m->w[b + (size_t)r] : 0, e = 0, f = 0, g = 0;
        int c = 0;
        for (; c + 4 <= cols; c += 4) { /* side by side: most of this test's time is here */
            a += row[c] * x[c];
            e += row[c + 1] * x[c + 1];
            f += row[c + 2] * x[c + 2];
            g += row[c + 3] * x[c + 3];
        }
        for (; c < cols; c++) a += row[c] * x[c];
        y[r] = a + e + f + g;
    }
}

static void rotate(const model *m, double *x, int n_head, int pos)
{
    const sh_arch *a = &m->p->arch;
    for (int h = 0; h < n_head && !a->learned_pos; h++, x += a->head_dim)
        for (int i = 0; i < a->n_rot / 2; i++) {
            double angle = pos * pow(a->rope_base, -2.0 * i / a->n_rot) / a->rope_linear;
            if (a->rope_freqs) angle /= (double)a->rope_freqs[i];
            double u = x[2 * i], v = x[2 * i + 1];
            x[2 * i] = u * cos(angle) - v * sin(angle);
            x[2 * i + 1] = u * sin(angle) + v * cos(angle);
        }
}

enum { MOST = 256, MOST_WORDS = 1100 }; /* of any size here; of the vocabulary */

/* o (n_q) of position t from all positions' q, k, v. */
static void attend(const model *m, double *o, double qkv[][MOST], int t, int layer)
{
    const sh_arch *a = &m->p->arch;
    const int dim = a->head_dim, n_q = a->n_head * dim, n_kv = a->n_kv_head * dim;
    double p[MOST];
    for (int h = 0; h < a->n_head; h++) {
        const int kv = n_q + h / (a->n_head / a->n_kv_head) * dim;
        double sum = 0;
        for (int j = 0; j <= t; j++) {
            p[j] = 0;
            for (int d = 0; d < dim; d++) p[j] += qkv[t][h * dim + d] * qkv[j][kv + d];
            sum += p[j] = exp(p[j] / sqrt(dim));
        }
        for (int j = 0; j <= t; j++) p[j] /= sum;
        drop(m, p, t + 1, sh_site_attention(layer),
             (uint32_t)((m->seq * a->n_head + h) * a->n_ctx + t));
        for (int d = 0; d < dim; d++) {
            o[h * dim + d] = 0;
            for (int j = 0; j <= t; j++) o[h * dim + d] += p[j] * qkv[j][kv + n_kv + d];
        }
    }
}

static void feed_forward(const model *m, double *y, const double *xn, const sh_layer_at *at)
{
    const sh_arch *a = &m->p->arch;
    double u[MOST], act[MOST];
    linear(m, u, xn, at->up, at->up_b, a->gelu ? a->n_ff : 2 * a->n_ff, a->n_embd);
    for (int i = 0; i < a->n_ff; i++)
        act[i] = a->gelu ? u[i] / 2 * (1 + tanh(sqrt(2 / M_PI) * (u[i] + 0.044715 * pow(u[i], 3))))
                         : u[i] / (1 + exp(-u[i])) * u[a->n_ff + i];
    linear(m, y, act, at->down, at->down_b, a->n_embd, a->n_ff);
}

/* The sum of a sequence's losses. */
static double sequence_loss(const model *m)
{
    static double x[MOST][MOST], qkv[MOST][MOST];
    const sh_arch *a = &m->p->arch;
    const int n = a->n_embd, n_q = a->n_head * a->head_dim, n_kv = a->n_kv_head * a->head_dim;
    const uint32_t row = (uint32_t)(m->seq * a->n_ctx);
    double xn[MOST], y[MOST_WORDS], o[MOST], loss = 0;
    for (int t = 0; t < a->n_ctx; t++) {
        for (int i = 0; i < n; i++) {
            x[t][i] = m->w[m->p->embd + (size_t)(m->ids[t] * n + i)];
            if (a->learned_pos) x[t][i] += m->w[m->p->pos + (size_t)(t * n + i)];
        }
        drop(m, x[t], n, SH_SITE_EMBD, row + (uint32_t)t);
    }
    for (int l = 0; l < a->n_layer; l++) {
        const sh_layer_at *at = &m->p->layer[l];
        for (int t = 0; t < a->n_ctx; t++) {
            norm(m, xn, x[t], at->attn_norm, at->attn_norm_b);
            linear(m, qkv[t], xn, at->qkv, at->qkv_b, n_q + 2 * n_kv, n);
            rotate(m, qkv[t], a->n_head + a->n_kv_head, t);
        }
        for (int t = 0; t < a->n_ctx; t++) {
            attend(m, o, qkv, t, l);
            linear(m, y, o, at->wo, at->wo_b, n, n_q);
            drop(m, y, n, sh_site_half(l, 0), row + (uint32_t)t);
            for (int i = 0; i < n; i++) x[t][i] += y[i];
            norm(m, xn, x[t], at->ffn_norm, at->ffn_norm_b);
            feed_forward(m, y, xn, at);
            drop(m, y, n, sh_site_half(l, 1), row + (uint32_t)t);
            for (int i = 0; i < n; i++) x[t][i] += y[i];
        }
    }
    for (int t = 0; t < a->n_ctx; t++) {
        double sum = 0;
        norm(m, xn, x[t], m->p->out_norm, m->p->out_norm_b);
        linear(m, y, xn, m->p->head, SIZE_MAX, a->n_vocab, n);
        for (int i = 0; i < a->n_vocab; i++) sum += exp(y[i]);
        loss += log(sum) - y[m->ids[t + 1]];
    }
    return loss;
}

/* The sum of the losses of some sequences. */
static double losses(const sh_params *p, const double *w, const int32_t *ids, int lo, int hi,
                     const sh_dropout *d)
{
    double sum = 0;
    for (int s = lo; s < hi; s++) {
        model m = {p, w, ids + (size_t)s * (size_t)(p->arch.n_ctx + 1), s, d};
        sum += sequence_loss(&m);
    }
    return sum;
}

/* The mean over all tokens. */
static double reference(const sh_params *p, const double *w, const int32_t *ids, int n_seq,
                        const sh_dropout *d)
{
    return losses(p, w, ids, 0, n_seq, d) / (n_seq * p->arch.n_ctx);
}

/* ---- the pass ---- */

typedef struct run {
    float *g;  /* (n_float) */
    float *dx; /* (n_seq n_ctx, n_embd) */
    size_t n_dx;
    double loss[8];
} run;

/* Forward and backward of the slices; `embed`: also the embeddings' part. */
static run pass(sh_params *p, const int32_t *ids, int n_seq, sh_range slice, const sh_dropout *d,
                sh_dtype dtype, int n_thread, const char *isa, bool embed)
{
    sh_pool *pool;
    sh_kernels k;
    sh_pass *s;
    double again[8];
    run r = {.n_dx = (size_t)n_seq * (size_t)p->arch.n_ctx * (size_t)p->arch.n_embd};
    OK(sh_pool_open(&pool, n_thread, NULL, 0));
    OK(sh_kernels_init(&k, isa));
    OK(sh_alloc(&r.g, p->n_float, sizeof(float), "gradients"));
    OK(sh_alloc(&r.dx, r.n_dx, sizeof(float), "gradients"));
    const sh_products products = {&k, pool, dtype};
    const sh_batch b = {n_seq, slice, ids};
    OK(sh_pass_open(&s, p, &products, n_seq * sh_range_n(slice) / 8 + 1));
    for (int i = 0; i < p->n; i++) /* whatever was there is overwritten */
        for (int j = 0; j < p->list[i].rows * p->list[i].cols; j++)
            p->g[p->list[i].at + (size_t)j] = 1e9f;
    for (size_t i = 0; i < r.n_dx; i++) r.dx[i] = 1e9f;
    sh_pass_backward(s, &b, d, r.loss, r.dx);
    if (embed) sh_pass_embed_grad(s, &b, r.dx);
    memcpy(r.g, p->g, p->n_float * sizeof(float));
    if (!d) {
        sh_pass_forward(s, &b, again);
        assert_memory_equal(again, r.loss, sizeof again);
    }
    sh_pass_close(s);
    sh_pool_close(pool);
    return r;
}

static void run_free(run *r)
{
    free(r->g);
    free(r->dx);
}

static const sh_range whole = {0, 8};

static void open_model(sh_params *p, const sh_arch *a)
{
    OK(sh_params_open(p, a));
    draw(p);
}

/* ---- gradients against central differences ---- */

/* The derivative of the loss along a direction in one tensor; `one`: along a single value. */
static double difference(const sh_params *p, double *w, const sh_param *t, const float *dir,
                         size_t one, const int32_t *ids, int n_seq, const sh_dropout *d)
{
    const double h = 1e-4;
    double loss[2];
    for (int side = 0; side < 2; side++) {
        size_t n = (size_t)t->rows * (size_t)t->cols;
        for (size_t i = 0; i < n; i++)
            w[t->at + i] = (double)p->w[t->at + i] +
                           (side ? -h : h) * (one == SIZE_MAX ? (double)dir[i] : i == one);
        loss[side] = reference(p, w, ids, n_seq, d);
        for (size_t i = 0; i < n; i++) w[t->at + i] = (double)p->w[t->at + i];
    }
    return (loss[0] - loss[1]) / (2 * h);
}

static void check_tensor(const sh_params *p, double *w, const sh_param *t, const float *g,
                         const int32_t *ids, int n_seq, const sh_dropout *d, int n_single)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    double largest = 0, along = 0, length = 0;
    float *dir = malloc(n * sizeof *dir);
    assert_non_null(dir);
    for (size_t i = 0; i < n; i++) {
        double v = (double)g[t->at + i];
        dir[i] = random_unit() < 0 ? -1.0f : 1.0f;
        largest = fmax(largest, fabs(v));
        along += v * (double)dir[i];
        length += v * v;
    }
    if (!(largest > 1e-6)) fail_msg("%s: its gradient is nothing", t->name);
    double want = difference(p, w, t, dir, SIZE_MAX, ids, n_seq, d);
    if (!(fabs(along - want) < 1e-3 * sqrt(length)))
        fail_msg("%s: along a direction %g, not %g", t->name, along, want);
    for (int i = 0; i < n_single; i++) {
        size_t at = random_u64() % n;
        want = difference(p, w, t, NULL, at, ids, n_seq, d);
        if (!(fabs((double)g[t->at + at] - want) < 1e-3 * largest))
            fail_msg("%s: value %zu has gradient %g, not %g; the largest is %g", t->name, at,
                     (double)g[t->at + at], want, largest);
    }
    free(dir);
}

static void check_gradients(const sh_arch *a, const sh_dropout *d)
{
    sh_params p;
    const int n_seq = a->n_ctx > 60 ? 1 : 3;
    open_model(&p, a);
    int32_t *ids = draw_ids(a, n_seq);
    double *w;
    OK(sh_alloc(&w, p.n_float, sizeof *w, "weights"));
    for (size_t i = 0; i < p.n_float; i++) w[i] = (double)p.w[i];
    run r = pass(&p, ids, n_seq, whole, d, SH_F32, 2, NULL, true);
    for (int i = 0; i < 8; i++) { /* slice i has the sequences from n i / 8 on */
        double want = losses(&p, w, ids, n_seq * i / 8, n_seq * (i + 1) / 8, d);
        if (!(fabs(r.loss[i] - want) <= 1e-5 * want))
            fail_msg("the loss of slice %d is %g, not %g", i, r.loss[i], want);
    }
    for (int i = 0; i < p.n; i += SANITIZED ? 5 : 1)
        check_tensor(&p, w, &p.list[i], r.g, ids, n_seq, d, SANITIZED ? 0 : n_seq == 1 ? 2 : 8);
    run_free(&r);
    free(w);
    free(ids);
    sh_params_close(&p);
}

static void test_gradients(void **state)
{
    (void)state;
    random_state = 1;
    for (int i = 0; i < N_ARCH; i++) check_gradients(&archs[i], NULL);
}

static void test_dropout(void **state)
{
    const sh_dropout d = {0.25f, 0x123456789abcdefu, 5};
    (void)state;
    random_state = 2;
    for (int i = 0; i < N_ARCH; i++) check_gradients(&archs[i], &d);
}

/* ---- what must not matter ---- */

/* The same, but for the signs of zeros. */
static bool same(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(a[i] == b[i])) return false;
    return true;
}

/* Ranks' roots become the tree's. */
static void tree_sum(run *r, int n_rank, size_t n_float)
{
    for (int step = 1; step < n_rank; step *= 2)
        for (int i = 0; i < n_rank; i += 2 * step) {
            for (size_t j = 0; j < n_float; j++) r[i].g[j] += r[i + step].g[j];
            for (size_t j = 0; j < r[i].n_dx; j++) r[i].dx[j] += r[i + step].dx[j];
            for (int j = 0; j < 8; j++) r[i].loss[j] += r[i + step].loss[j];
        }
}

static void check_ranks(const sh_arch *a, int n_seq, sh_dtype dtype)
{
    const sh_dropout d = {0.1f, 7, 3};
    sh_params p;
    open_model(&p, a);
    int32_t *ids = draw_ids(a, n_seq);
    run one = pass(&p, ids, n_seq, whole, &d, dtype, 1, NULL, false);
    for (int n_rank = 2; n_rank <= 8; n_rank *= 2) {
        run r[8];
        for (int i = 0; i < n_rank; i++)
            r[i] = pass(&p, ids, n_seq, sh_rank_slices(i, n_rank), &d, dtype, 1, NULL, false);
        tree_sum(r, n_rank, p.n_float);
        if (!same(one.g, r[0].g, p.n_float) || !same(one.dx, r[0].dx, one.n_dx))
            fail_msg("%d ranks, %d sequences: other gradients", n_rank, n_seq);
        assert_memory_equal(one.loss, r[0].loss, sizeof one.loss);
        for (int i = 0; i < n_rank; i++) run_free(&r[i]);
    }
    run_free(&one);
    free(ids);
    sh_params_close(&p);
}

static void test_ranks(void **state)
{
    static const int n_seqs[] = {1, 3, 8, 12};
    (void)state;
    random_state = 3;
    for (int i = 0; i < N_ARCH; i += SANITIZED ? 2 : 1)
        for (int j = 0; j < 4; j += SANITIZED ? 3 : 1)
            check_ranks(&archs[i], n_seqs[j], (i + j) % 2 ? SH_F32 : SH_BF16);
}

static void test_threads_and_isa(void **state)
{
    const sh_dropout d = {0.1f, 7, 3};
    (void)state;
    random_state = 4;
    for (int i = 0; i < 2 * N_ARCH; i += SANITIZED ? 3 : 1) {
        sh_params p;
        sh_dtype dtype = i % 2 ? SH_F32 : SH_BF16;
        open_model(&p, &archs[i / 2]);
        int32_t *ids = draw_ids(&p.arch, 5);
        run one = pass(&p, ids, 5, whole, &d, dtype, 1, NULL, true);
        run two = pass(&p, ids, 5, whole, &d, dtype, 2, NULL, true);
        run c = pass(&p, ids, 5, whole, &d, dtype, 3, "c", true);
        if (!same(one.g, two.g, p.n_float)) fail_msg("two threads: other gradients");
        if (!same(one.g, c.g, p.n_float)) fail_msg("plain C: other gradients");
        assert_memory_equal(one.loss, two.loss, sizeof one.loss);
        assert_memory_equal(one.loss, c.loss, sizeof one.loss);
        run_free(&one);
        run_free(&two);
        run_free(&c);
        free(ids);
        sh_params_close(&p);
    }
}

/* Rounding to bf16 leaves the direction of every gradient about as it was. */
static void test_bf16(void **state)
{
    (void)state;
    random_state = 5;
    for (int i = 0; i < N_ARCH; i++) {
        sh_params p;
        open_model(&p, &archs[i]);
        int32_t *ids = draw_ids(&p.arch, 8);
        run f = pass(&p, ids, 8, whole, NULL, SH_F32, 2, NULL, true);
        run b = pass(&p, ids, 8, whole, NULL, SH_BF16, 2, NULL, true);
        double ff = 0, bb = 0, fb = 0;
        for (size_t j = 0; j < p.n_float; j++) {
            ff += (double)f.g[j] * (double)f.g[j];
            bb += (double)b.g[j] * (double)b.g[j];
            fb += (double)f.g[j] * (double)b.g[j];
        }
        if (!(fb > 0.999 * sqrt(ff * bb))) fail_msg("cosine %g", fb / sqrt(ff * bb));
        for (int j = 0; j < 8; j++)
            assert_true(fabs(f.loss[j] - b.loss[j]) <= 0.02 * fabs(f.loss[j]));
        run_free(&f);
        run_free(&b);
        free(ids);
        sh_params_close(&p);
    }
}

/* A weight that is no number shows in the loss. */
static void test_nan(void **state)
{
    (void)state;
    random_state = 6;
    for (int i = 0; i < N_ARCH; i++) {
        sh_params p;
        double sum = 0;
        open_model(&p, &archs[i]);
        int32_t *ids = draw_ids(&p.arch, 2);
        p.w[p.layer[0].up + 3] = NAN;
        run r = pass(&p, ids, 2, whole, &(sh_dropout){0.1f, 1, 1}, SH_BF16, 2, NULL, true);
        for (int j = 0; j < 8; j++) sum += r.loss[j];
        assert_true(isnan(sum));
        run_free(&r);
        free(ids);
        sh_params_close(&p);
    }
}

/* ---- against torch ---- */

static void check_golden(const char *root, const char *name)
{
    char path[4096];
    json_error_t error;
    sh_model_file *m, *grad;
    sh_config c, grad_config;
    sh_arch a;
    sh_params p, want;
    double sum = 0;
    snprintf(path, sizeof path, "%s/tests/golden/train/%s.json", root, name);
    json_t *golden = json_load_file(path, 0, &error);
    if (!golden) fail_msg("%s: %s", path, error.text);
    snprintf(path, sizeof path, "%s/tests/golden/train/%s.gguf", root, name);
    OK(sh_model_file_open(&m, path));
    OK(sh_config_read(&c, m));
    OK(sh_arch_of(&a, &c, m));
    OK(sh_params_open(&p, &a));
    OK(sh_params_load(&p, m));
    snprintf(path, sizeof path, "%s/tests/golden/train/%s.grad.gguf", root, name);
    OK(sh_model_file_open(&grad, path));
    OK(sh_config_read(&grad_config, grad));
    OK(sh_params_open(&want, &a));
    OK(sh_params_load(&want, grad));

    json_t *batch = json_array_get(json_object_get(golden, "batches"), 0);
    const int n_seq = (int)json_array_size(batch), n_id = a.n_ctx + 1;
    int32_t *ids = malloc((size_t)(n_seq * n_id) * sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < n_seq * n_id; i++) {
        json_t *row = json_array_get(batch, (size_t)(i / n_id));
        assert_int_equal(json_array_size(row), n_id);
        ids[i] = (int32_t)json_integer_value(json_array_get(row, (size_t)(i % n_id)));
    }
    run r = pass(&p, ids, n_seq, whole, NULL, SH_F32, 2, NULL, true);
    for (int i = 0; i < 8; i++) sum += r.loss[i];
    double loss = json_number_value(json_array_get(json_object_get(golden, "losses"), 0));
    assert_true(fabs(sum / (n_seq * a.n_ctx) - loss) < 1e-5 * loss);
    for (int i = 0; i < p.n; i++) {
        const sh_param *t = &p.list[i];
        double largest = 0, worst = 0;
        for (size_t j = t->at; j < t->at + (size_t)t->rows * (size_t)t->cols; j++) {
            largest = fmax(largest, fabs((double)want.w[j]));
            worst = fmax(worst, fabs((double)r.g[j] - (double)want.w[j]));
        }
        if (!(worst < 1e-4 * largest))
            fail_msg("%s: %s is off by %g; the largest is %g", name, t->name, worst, largest);
    }
    free(ids);
    run_free(&r);
    sh_params_close(&p);
    sh_params_close(&want);
    sh_arch_free(&a);
    sh_model_file_close(m);
    sh_model_file_close(grad);
    json_decref(golden);
}

static void test_golden(void **state)
{
    const char *root = getenv("SHOAL_SOURCE_ROOT");
    (void)state;
    assert_non_null(root);
    check_golden(root, "llama");
    check_golden(root, "llama-tied");
    check_golden(root, "gpt2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_ranks),     cmocka_unit_test(test_threads_and_isa),
        cmocka_unit_test(test_bf16),      cmocka_unit_test(test_nan),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
