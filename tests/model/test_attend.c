/* Attention shared out over threads: the same bits from any number of them, whatever the heads, the
 * depths and the mixture of a step; and near the attention of float64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/mem.h"
#include "model/attend.h"

enum { MAX_SEQ = 4, MAX_TOK = 80, N_CTX = 1600, MAX_THREAD = 8 };

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

static uint64_t random_state;
static sh_kernels k;
static sh_pool *pool[MAX_THREAD + 1];

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}
static int random_in(int lo, int hi) /* [lo, hi] */
{
    return lo + (int)(random_u32() % (uint32_t)(hi - lo + 1));
}
#define PICK(...)                                                                                  \
    ((const int[]){__VA_ARGS__}[random_u32() % (sizeof((int[]){__VA_ARGS__}) / sizeof(int))])

static void random_fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(int32_t)random_u32() * 0x1p-30f;
}

/* A rank's heads, its cache and the tokens of a step. */
typedef struct world {
    sh_config c;
    sh_plan p;
    sh_kv kv;
    sh_forward f;
    sh_step step;
    float *kf, *vf; /* (MAX_SEQ, N_CTX, n_kv_local): what was put into the cache */
    int n_q, n_kv;  /* of this rank, in floats */
    bool bf16;      /* this layer's prompts attend in bf16; if not, another layer's may */
} world;

/* A sequence of n positions in its slot, the last n_tok of which are in the step. */
static void add_sequence(world *w, int n, int n_tok, bool prompt)
{
    sh_step before = {0};
    uint32_t slot = w->step.n_seq;
    int dim = w->c.head_dim;
    OK(sh_step_add_seq(&before, (sh_step_seq){slot, 0, (uint32_t)n, true, false}));
    OK(sh_kv_apply(&w->kv, &before));
    OK(sh_step_add_seq(&w->step,
                       (sh_step_seq){slot, (uint32_t)(n - n_tok), (uint32_t)n_tok, prompt, false}));
    for (int pos = 0; pos < n; pos++) {
        size_t at = ((size_t)slot * N_CTX + (size_t)pos) * (size_t)w->n_kv;
        random_fill(w->kf + at, (size_t)w->n_kv);
        random_fill(w->vf + at, (size_t)w->n_kv);
        for (int h = 0; h < w->n_kv / dim; h++)
            k.kv_put[w->kv.dtype](sh_kv_k(&w->kv, (int)slot, pos / SH_PAGE, 1, h),
                                  sh_kv_v(&w->kv, (int)slot, pos / SH_PAGE, 1, h),
                                  w->kf + at + h * dim, w->vf + at + h * dim, pos % SH_PAGE, dim);
    }
    for (int i = n - n_tok; i < n; i++, w->f.n_tok++) {
        w->f.tok_slot[w->f.n_tok] = (int)slot;
        w->f.tok_pos[w->f.n_tok] = i;
    }
    if (!prompt) w->f.n_sampled = w->f.n_tok;
    sh_step_free(&before);
}

static void open_world(world *w, int group, int n_kv_head, int head_dim, sh_dtype type)
{
    int dim = head_dim, q_lo = random_in(0, group - 1), q_hi = random_in(0, group - 1);
    *w = (world){.c = {.n_head = group * n_kv_head, .n_kv_head = n_kv_head, .head_dim = dim}};
    /* a share that may begin and end within the heads of a KV head, as that of a rank may */
    q_hi = group * n_kv_head - q_hi > q_lo ? group * n_kv_head - q_hi : group * n_kv_head;
    w->p = (sh_plan){.layer = {3, 5}};
    w->p.local[SH_DIM_Q] = (sh_range){q_lo * dim, q_hi * dim};
    w->p.local[SH_DIM_KV] = (sh_range){0, (q_hi + group - 1) / group * dim};
    w->n_q = sh_range_n(w->p.local[SH_DIM_Q]);
    w->n_kv = sh_range_n(w->p.local[SH_DIM_KV]);
    OK(sh_kv_open(&w->kv, &w->p, &w->c, type, N_CTX, MAX_SEQ));
    sh_forward *f = &w->f;
    *f = (sh_forward){.config = &w->c, .plan = &w->p, .k = &k, .kv = &w->kv};
    f->attend_bf16 = type != SH_F32 && random_in(0, 3);
    w->bf16 = f->attend_bf16 && random_in(0, 2);
    f->span_floats = sh_attend_floats(f);
    size_t n_kv = (size_t)w->n_kv, n_q = (size_t)w->n_q;
    OK(sh_alloc(&w->kf, (size_t)MAX_SEQ * N_CTX, n_kv * sizeof(float), "k"));
    OK(sh_alloc(&w->vf, (size_t)MAX_SEQ * N_CTX, n_kv * sizeof(float), "v"));
    OK(sh_alloc(&f->q, MAX_TOK, n_q * sizeof(float), "q"));
    OK(sh_alloc(&f->ao, MAX_TOK, n_q * sizeof(float), "out"));
    OK(sh_alloc(&f->tok_slot, MAX_TOK, sizeof(int), "slots"));
    OK(sh_alloc(&f->tok_pos, MAX_TOK, sizeof(int), "positions"));
    OK(sh_alloc(&f->block, MAX_TOK, sizeof *f->block, "blocks"));
    OK(sh_alloc(&f->unit, MAX_TOK + 1, sizeof *f->unit, "units"));
}

static void close_world(world *w)
{
    void *all[] = {w->kf,         w->vf,        w->f.q,     w->f.ao,
                   w->f.tok_slot, w->f.tok_pos, w->f.block, w->f.unit};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    sh_step_free(&w->step);
    sh_kv_close(&w->kv);
}

/* out (MAX_TOK, n_q) = the attention by n threads. */
static void attend(world *w, int n_thread, float *out)
{
    sh_forward *f = &w->f;
    size_t bytes = MAX_TOK * (size_t)w->n_q * sizeof *out;
    memset(f->ao, 0, bytes);
    f->pool = pool[n_thread];
    OK(sh_alloc(&f->span, (size_t)n_thread * f->span_floats, sizeof *f->span, "scratch"));
    sh_attend_begin(f, &w->step);
    sh_attend(f, 1, w->bf16);
    memcpy(out, f->ao, bytes);
    free(f->span);
}

/* One head of one token in float64. */
static double far_off(const world *w, const float *got, int t, int head)
{
    int dim = w->c.head_dim, slot = w->f.tok_slot[t], n_pos = w->f.tok_pos[t] + 1;
    int group = w->c.n_head / w->c.n_kv_head;
    int kv = (w->p.local[SH_DIM_Q].lo / dim + head) / group;
    const float *q = w->f.q + (size_t)t * (size_t)w->n_q + head * dim;
    double sum = 0, o[128] = {0}, worst = 0;
    for (int j = 0; j < n_pos; j++) {
        size_t at = ((size_t)slot * N_CTX + (size_t)j) * (size_t)w->n_kv + (size_t)(kv * dim);
        double dot = 0;
        for (int d = 0; d < dim; d++) dot += (double)q[d] * (double)w->kf[at + (size_t)d];
        double e = exp(dot / sqrt(dim));
        sum += e;
        for (int d = 0; d < dim; d++) o[d] += e * (double)w->vf[at + (size_t)d];
    }
    for (int d = 0; d < dim; d++)
        worst =
            fmax(worst, fabs(o[d] / sum -
                             (double)got[(size_t)t * (size_t)w->n_q + (size_t)(head * dim + d)]));
    return worst;
}

static void check_world(world *w)
{
    size_t n = MAX_TOK * (size_t)w->n_q;
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    assert_true(want && got);
    random_fill(w->f.q, n);
    attend(w, 1, want);
    for (int t = 0; t < w->f.n_tok; t++)
        for (int h = 0; h < w->n_q / w->c.head_dim; h += random_in(1, 5)) {
            double off = far_off(w, want, t, h);
            if (!(off < (w->kv.dtype == SH_F32 ? 2e-5 : 0.1)))
                fail_msg("%g off at token %d, head %d, cache in %s", off, t, h,
                         sh_dtypes[w->kv.dtype].name);
        }
    for (int n_thread = 2; n_thread <= MAX_THREAD; n_thread++) {
        attend(w, n_thread, got);
        if (memcmp(want, got, n * sizeof *got))
            fail_msg("%d threads, %d heads of %d over %d, %d tokens, the first at %d: other bits",
                     n_thread, w->c.n_head, w->c.head_dim, w->c.n_kv_head, w->f.n_tok,
                     w->f.tok_pos[0]);
    }
    free(want);
    free(got);
}

/* One token, at depths around the spans' ends. */
static void test_one_token(void **state)
{
    (void)state;
    random_state = 1;
    for (int i = 0; i < 60; i++) {
        static const sh_dtype types[] = {SH_F32, SH_F16, SH_BF16, SH_Q8_0};
        int span = SH_SPAN * random_in(0, 5);
        world w;
        open_world(&w, PICK(1, 2, 3, 8), PICK(1, 1, 2, 3), PICK(8, 20, 64), types[i % 4]);
        add_sequence(&w, span + (random_in(0, 1) ? random_in(1, 3) : random_in(1, SH_SPAN)), 1,
                     false);
        check_world(&w);
        close_world(&w);
    }
}

/* More heads than are taken at once. */
static void test_many_heads(void **state)
{
    world w;
    (void)state;
    random_state = 2;
    open_world(&w, 150, 2, 8, SH_F16);
    add_sequence(&w, 900, 1, false);
    check_world(&w);
    close_world(&w);
}

/* Sampled tokens of several sequences, and prompts after them, in either arithmetic. */
static void test_mixtures(void **state)
{
    (void)state;
    random_state = 3;
    for (int i = 0; i < 80; i++) {
        world w;
        int n_seq = random_in(1, MAX_SEQ), n_sampled = random_in(0, n_seq);
        open_world(&w, PICK(1, 3, 4), PICK(1, 2, 3), PICK(8, 16, 32),
                   (sh_dtype)PICK(SH_F32, SH_F16, SH_Q8_0));
        for (int s = 0; s < n_seq; s++) {
            int n_tok = s < n_sampled ? 1 : random_in(1, 20), end = random_in(n_tok, N_CTX);
            if (random_in(0, 1)) end = SH_SPAN * random_in(0, 4) + n_tok; /* a span, or across it */
            if (random_in(0, 1) && end > SH_SPAN) end -= random_in(0, n_tok);
            add_sequence(&w, end, n_tok, s >= n_sampled);
        }
        check_world(&w);
        close_world(&w);
    }
}

/* A rank may have no heads, and a step no tokens. */
static void test_nothing(void **state)
{
    world w;
    float out[MAX_TOK];
    (void)state;
    open_world(&w, 1, 1, 8, SH_F16);
    w.p.local[SH_DIM_Q] = w.p.local[SH_DIM_KV] = (sh_range){0, 0};
    w.n_q = 0;
    attend(&w, 3, out);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_token),
        cmocka_unit_test(test_many_heads),
        cmocka_unit_test(test_mixtures),
        cmocka_unit_test(test_nothing),
    };
    if (sh_kernels_init(&k, NULL) != SH_OK) return 1;
    for (int i = 1; i <= MAX_THREAD; i++)
        if (sh_pool_open(&pool[i], i, NULL, 0) != SH_OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 1; i <= MAX_THREAD; i++) sh_pool_close(pool[i]);
    return failed;
}
