/* The layers come first, on one page: sh_forward_layers. What they call stands below them in the
 * order of use, except that C wants helpers before their users: so read from the bottom up. */
#include "model/forward.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/fmath.h"
#include "base/mem.h"
#include "model/attend.h"

static int n_of(const sh_forward *f, sh_dim d)
{
    return sh_range_n(f->plan->local[d]);
}

/* Tokens that a thread takes at once of n, where each is done by itself; `most` at most. */
static int tokens_at_once(const sh_forward *f, int n, int most)
{
    int some = n / (4 * sh_pool_n_thread(f->pool));
    return some < 1 ? 1 : some > most ? most : some;
}

/* ---- rows of activations, and products with them ---- */

/* Rows of floats, one for each token. They are made by the thread that needs them first, one at a
 * time, so that what follows finds the row in the cache. */
typedef struct rows {
    const float *x;                                            /* (n_tok, n) */
    void (*make)(const sh_forward *f, const void *arg, int t); /* row t; NULL: it is there */
    const void *arg;
} rows;

typedef struct norm_job {
    float *y, *x;
    const sh_weight *g; /* NULL: no norm */
    int n_sum;
    const sh_weight *sum[2]; /* x += the sums of products with these first, each with its bias */
} norm_job;

/* Where sum i of those that the ranks meet for at once begins; each is (n_tok, n_embd). */
static size_t sum_at(const sh_forward *f, int i)
{
    return (size_t)i * (size_t)f->n_tok * (size_t)f->config->dim[SH_DIM_EMBD];
}

/* y = norm of x, after what is still to be added to x */
static void norm_row(const sh_forward *f, const void *arg, int t)
{
    const norm_job *j = arg;
    const sh_config *c = f->config;
    int n = c->dim[SH_DIM_EMBD];
    size_t at = (size_t)t * (size_t)n;
    float *x = j->x + at;
    for (int i = 0; i < j->n_sum; i++) {
        sh_group_add_sum(f->group, x, sum_at(f, i) + at, (size_t)n);
        if (j->sum[i]->bias) f->k->add(x, j->sum[i]->bias, (size_t)n);
    }
    if (j->g && c->norm == SH_NORM_LAYER)
        f->k->layernorm(j->y + at, x, j->g->vec, j->g->bias, n, c->norm_eps);
    else if (j->g)
        f->k->rmsnorm(j->y + at, x, j->g->vec, n, c->norm_eps);
}

/* The ranks meet for the sums of products with a, and with b if it is there; j will add them. */
static sh_err meet(sh_forward *f, norm_job *j, const sh_weight *a, const sh_weight *b)
{
    j->n_sum = b ? 2 : 1;
    j->sum[0] = a;
    j->sum[1] = b;
    return sh_group_meet(f->group, sum_at(f, j->n_sum));
}

/* The same for what a layer leaves to be added. */
static sh_err meet_after(sh_forward *f, norm_job *j, const sh_layer *w)
{
    if (f->config->parallel) return meet(f, j, &w->wo, &w->down);
    return meet(f, j, &w->down, NULL);
}

typedef struct rows_job {
    const sh_forward *f;
    const rows *in;
    bool make;         /* they are not made yet */
    const sh_kdim *kd; /* prepared for a matrix of these k's in that form; NULL: only made */
    sh_form form;
    int lo, hi; /* tokens */
    int step;   /* of a block */
} rows_job;

static void rows_block(void *arg, int i, int thread)
{
    const rows_job *j = arg;
    const sh_forward *f = j->f;
    int lo = j->lo + i * j->step, hi = lo + j->step < j->hi ? lo + j->step : j->hi;
    (void)thread;
    size_t n = j->kd ? (size_t)j->kd->k[j->kd->n_slice] : 0;
    size_t stride = j->kd ? sh_form_bytes(j->form, j->kd) : 0;
    for (int t = lo; t < hi; t++) {
        if (j->make && j->in->make) j->in->make(f, j->in->arg, t);
        if (!j->kd) continue;
        f->k->prepare[j->form]((char *)f->act[j->form] + (size_t)t * stride,
                               j->in->x + (size_t)t * n, j->kd);
    }
}

static void make_rows(sh_forward *f, rows_job j)
{
    j.step = tokens_at_once(f, j.hi - j.lo, 8);
    sh_pool_each(f->pool, (j.hi - j.lo + j.step - 1) / j.step, rows_block, &j);
}

/* One matrix of a group that is multiplied by the same x. */
typedef struct product {
    const sh_weight *w;
    const float *bias; /* added to y; NULL: none */
    float *y;
    size_t ldy;
} product;

typedef struct matmul_job {
    const sh_forward *f;
    const product *p;
    int n_product, n_panel; /* panels of all of them */
    sh_range slice;
    int n_sampled, n_tok;
} matmul_job;

/* The panels [lo, hi) of one matrix, for tokens [t0, t1), which all have the same arithmetic. */
static void matmul_tokens(const matmul_job *j, const product *p, int lo, int hi, int t0, int t1,
                          bool bf16)
{
    const sh_forward *f = j->f;
    const sh_mat *m = &p->w->mat;
    sh_form form = sh_form_of(m->dtype, bf16);
    size_t ldx = sh_form_bytes(form, &m->kd);
    if (t0 >= t1 || lo >= hi) return;
    f->k->matmul[m->dtype][form](p->y + (size_t)t0 * p->ldy, p->ldy, m, lo, hi, j->slice.lo,
                                 j->slice.hi, (const char *)f->act[form] + (size_t)t0 * ldx, ldx,
                                 t1 - t0);
    int first = lo * SH_LANES, end = hi * SH_LANES < m->rows ? hi * SH_LANES : m->rows;
    for (int t = t0; p->bias && t < t1; t++)
        f->k->add(p->y + (size_t)t * p->ldy + first, p->bias + first, (size_t)(end - first));
}

/* Panels [lo, hi), counted over all the matrices. */
static void matmul_panels(const matmul_job *j, int lo, int hi)
{
    int at = 0;
    for (int i = 0; i < j->n_product; i++) {
        int n = j->p[i].w->mat.n_panel, a = lo > at ? lo - at : 0, b = hi - at < n ? hi - at : n;
        sh_dtype t = j->p[i].w->mat.dtype;
        if (sh_form_of(t, true) == sh_form_of(t, false) || !j->f->arith_bf16) {
            matmul_tokens(j, &j->p[i], a, b, 0, j->n_tok, false);
        } else {
            matmul_tokens(j, &j->p[i], a, b, 0, j->n_sampled, false);
            matmul_tokens(j, &j->p[i], a, b, j->n_sampled, j->n_tok, true);
        }
        at += n;
    }
}

enum { FEW = 16 }; /* tokens: below it a product waits for its weights more than it computes */

/* The panels that a thread takes at once, of a share: few enough that others can take over where it
 * is kept from them, and for many tokens not more than fit a second-level cache twice, nor so few
 * that the tokens pass by all the time. */
static int piece_of(int share, int n_tok)
{
    if (n_tok < FEW) return 8;
    return share < 64 ? 8 : share < 256 ? 16 : 32;
}

/* Notes where a thread's share of the next matrices begins. */
static void note_next(const sh_forward *f, int thread, int n_thread)
{
    enum { MOST = 256 * 1024 }; /* bytes, of a second-level cache */
    sh_share_of *s = &f->share[thread];
    int n = 0, lo, hi;
    s->ask = s->end_of_ask = NULL;
    for (const sh_weight *const *w = f->next.w; *w; w++) n += (*w)->mat.n_panel;
    sh_share(n, thread, n_thread, &lo, &hi);
    for (const sh_weight *const *w = f->next.w; *w && lo < hi; w++) {
        const sh_mat *m = &(*w)->mat;
        if (lo < m->n_panel) {
            size_t bytes = (size_t)((hi < m->n_panel ? hi : m->n_panel) - lo) * m->panel_bytes;
            s->ask = m->data + (size_t)lo * m->panel_bytes;
            s->end_of_ask = s->ask + (bytes < MOST ? bytes : MOST);
            return;
        }
        lo -= m->n_panel;
        hi -= m->n_panel;
    }
}

/* While a thread waits, it asks for the weights that it will read next. */
static bool ask_next(void *arg, int thread)
{
    const sh_forward *f = arg;
    sh_share_of *s = &f->share[thread];
    for (int i = 0; i < 4 && s->ask < s->end_of_ask; i++, s->ask += 64)
        __builtin_prefetch(s->ask, 0, 2);
    return s->ask < s->end_of_ask;
}

/* A thread takes its own share of the panels piece by piece, and then pieces of those threads that
 * something else has kept from theirs. */
static void matmul_share(void *arg, int thread, int n_thread)
{
    const matmul_job *j = arg;
    int piece = piece_of(j->n_panel / n_thread, j->n_tok);
    for (int i = 0; i < n_thread; i++) {
        int whose = (thread + i) % n_thread, lo, hi;
        sh_share(j->n_panel, whose, n_thread, &lo, &hi);
        for (int at; (at = lo + atomic_fetch_add(&j->f->share[whose].taken, piece)) < hi;)
            matmul_panels(j, at, at + piece < hi ? at + piece : hi);
    }
    if (j->n_tok < FEW) note_next(j->f, thread, n_thread);
}

/* p[i].y (n_tok, ldy) = the rows x (n_tok, k) times each matrix, all of which have the same k's, +
 * bias; the tree sum of the slices [slice.lo, slice.hi). The first n_sampled tokens are sampled
 * ones. x NULL: the rows that were prepared last. */
static void matmul(sh_forward *f, const product *p, int n_product, const rows *x, sh_range slice,
                   int n_sampled, int n_tok)
{
    matmul_job j = {f, p, n_product, 0, slice, n_sampled, n_tok};
    unsigned done = x ? 0 : ~0u;
    bool made[2] = {false, false};
    for (int i = 0; i < n_product; i++) {
        const sh_mat *m = &p[i].w->mat;
        sh_form form[2] = {sh_form_of(m->dtype, false), sh_form_of(m->dtype, f->arith_bf16)};
        int bound[3] = {0, n_sampled, n_tok};
        for (int part = 0; part < 2; part++) {
            unsigned bit = 1u << (form[part] * 2 + part);
            if ((done & bit) || bound[part] == bound[part + 1]) continue;
            done |= bit;
            make_rows(f, (rows_job){f, x, !made[part], &m->kd, form[part], bound[part],
                                    bound[part + 1], 0});
            made[part] = true;
        }
        j.n_panel += m->n_panel;
    }
    for (int i = 0; i < sh_pool_n_thread(f->pool); i++) atomic_store(&f->share[i].taken, 0);
    if (j.n_panel > 0) sh_pool_run(f->pool, matmul_share, &j);
}

/* x (n_tok, k local) times a matrix cut by columns: this rank's part of sum `sum`, for meet. */
static void matmul_part(sh_forward *f, const sh_weight *w, const rows *x, int sum)
{
    size_t n_embd = (size_t)f->config->dim[SH_DIM_EMBD];
    for (int i = 0; i < f->plan->n_root; i++) {
        product p = {w, NULL, sh_group_part(f->group, i) + sum_at(f, sum), n_embd};
        matmul(f, &p, 1, i == 0 ? x : NULL, f->plan->root[i], f->n_sampled, f->n_tok);
    }
}

/* ---- attention ---- */

typedef struct store_job {
    const sh_forward *f;
    int layer; /* of this stage */
    int step;  /* tokens of a block */
} store_job;

/* Rotates q and k of some tokens and puts k and v into the cache. */
static void store_block(void *arg, int i, int thread)
{
    const store_job *j = arg;
    const sh_forward *f = j->f;
    int lo = i * j->step, hi = lo + j->step < f->n_tok ? lo + j->step : f->n_tok;
    (void)thread;
    int head_dim = f->config->head_dim, n_rot = f->config->n_rot;
    int n_q = n_of(f, SH_DIM_Q), n_kv = n_of(f, SH_DIM_KV);
    for (int t = lo; t < hi; t++) {
        const float *c = f->cos + (size_t)t * (n_rot / 2), *s = f->sin + (size_t)t * (n_rot / 2);
        float *k = f->kk + (size_t)t * n_kv, *v = f->v + (size_t)t * n_kv;
        f->k->rope(f->q + (size_t)t * n_q, c, s, n_q / head_dim, head_dim, n_rot);
        f->k->rope(k, c, s, n_kv / head_dim, head_dim, n_rot);
        int slot = f->tok_slot[t], pos = f->tok_pos[t];
        for (int h = 0; h < n_kv / head_dim; h++)
            f->k->kv_put[f->kv->dtype](sh_kv_k(f->kv, slot, pos / SH_PAGE, j->layer, h),
                                       sh_kv_v(f->kv, slot, pos / SH_PAGE, j->layer, h),
                                       k + h * head_dim, v + h * head_dim, pos % SH_PAGE, head_dim);
    }
}

static void store(sh_forward *f, int l)
{
    /* positions that stand together in K share cache lines: many at once */
    store_job j = {f, l, tokens_at_once(f, f->n_tok, SH_PAGE)};
    sh_pool_each(f->pool, (f->n_tok + j.step - 1) / j.step, store_block, &j);
}

/* ---- feed forward and residual ---- */

/* f->gate or f->up (n_tok, n_ff_local), as the family has it: what goes into the last product. */
static void act_row(const sh_forward *f, const void *arg, int t)
{
    size_t n = (size_t)n_of(f, SH_DIM_FF), at = (size_t)t * n;
    (void)arg;
    if (f->config->act == SH_ACT_GELU)
        f->k->gelu(f->up + at, n);
    else
        f->k->silu_mul(f->gate + at, f->up + at, n);
}

/* Prompts attend as their products are computed: in bf16 where those are, unless the cache is f32.
 */
static bool attends_in_bf16(const sh_forward *f, const sh_layer *w)
{
    return f->kv->dtype != SH_F32 && sh_form_of(w->wq.src->dtype, f->arith_bf16) == SH_FORM_BF16;
}

/* What layer l's first product multiplies; the head after the last one, where it is. */
static sh_next first_of(const sh_forward *f, int l)
{
    const sh_weight *head = &f->w->ends.head;
    if (l == sh_range_n(f->plan->layer)) return (sh_next){{head->mat.data ? head : NULL}};
    const sh_layer *w = &f->w->layer[l];
    bool parallel = f->config->parallel, gated = f->config->act == SH_ACT_SILU;
    return (sh_next){
        {&w->wq, &w->wk, &w->wv, parallel ? &w->up : NULL, parallel && gated ? &w->gate : NULL}};
}

/* x (n_tok, n_embd) is complete once what the layer before left has been added, and this layer
 * leaves its own to the next: norms add it, so that a row is read once. */
static sh_err layer(sh_forward *f, int l, float *x)
{
    const sh_layer *w = &f->w->layer[l];
    size_t n_q = (size_t)n_of(f, SH_DIM_Q), n_kv = (size_t)n_of(f, SH_DIM_KV);
    size_t n_ff = (size_t)n_of(f, SH_DIM_FF);
    bool gated = f->config->act == SH_ACT_SILU, parallel = f->config->parallel;
    int n_qkv = 3, n_ffn = gated ? 2 : 1;
    product in[] = {{&w->wq, w->wq.bias, f->q, n_q},
                    {&w->wk, w->wk.bias, f->kk, n_kv},
                    {&w->wv, w->wv.bias, f->v, n_kv},
                    {&w->up, w->up.bias, f->up, n_ff},
                    {&w->gate, w->gate.bias, f->gate, n_ff}};
    const sh_range whole = {0, 1};
    norm_job j = {.x = x, .y = f->xn, .g = &w->attn_norm};
    const rows normed = {f->xn, norm_row, &j};

    if (l > 0) SH_TRY(meet_after(f, &j, w - 1));
    f->next = (sh_next){{&w->wo}};
    matmul(f, in, parallel ? n_qkv + n_ffn : n_qkv, &normed, whole, f->n_sampled, f->n_tok);
    store(f, l);
    sh_attend(f, l, attends_in_bf16(f, w));
    f->next = (sh_next){{parallel ? &w->down : &w->up, !parallel && gated ? &w->gate : NULL}};
    matmul_part(f, &w->wo, &(rows){f->ao, NULL, NULL}, 0);
    if (!parallel) {
        j.g = &w->ffn_norm;
        SH_TRY(meet(f, &j, &w->wo, NULL));
        f->next = (sh_next){{&w->down}};
        matmul(f, in + n_qkv, n_ffn, &normed, whole, f->n_sampled, f->n_tok);
    }
    f->next = first_of(f, l + 1);
    matmul_part(f, &w->down, &(rows){gated ? f->gate : f->up, act_row, NULL}, parallel ? 1 : 0);
    return SH_OK;
}

/* Notes each token's slot and position, and the rotations that go with the position. */
static sh_err begin_step(sh_forward *f, const sh_step *step)
{
    int t = 0, half = f->config->n_rot / 2;
    if (step->n_tok > (uint32_t)f->n_batch)
        return sh_fail(SH_EPEER, "a step of %u tokens; at most %d were agreed", step->n_tok,
                       f->n_batch);
    f->n_sampled = 0;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const sh_step_seq *q = &step->seq[i];
        if (!q->prompt && f->n_sampled != t)
            return sh_fail(SH_EPEER, "a step has a sampled sequence after a prompt");
        for (uint32_t n = 0; n < q->n_tok; n++, t++) {
            f->tok_slot[t] = (int)q->slot;
            f->tok_pos[t] = (int)(q->pos + n);
            for (int r = 0; r < half; r++) {
                double s, c;
                sh_sincos(f->tok_pos[t] * f->freq[r], &s, &c);
                f->sin[(size_t)t * half + r] = (float)s;
                f->cos[(size_t)t * half + r] = (float)c;
            }
        }
        if (!q->prompt) f->n_sampled = t;
    }
    f->n_tok = t;
    sh_attend_begin(f, step);
    return SH_OK;
}

sh_err sh_forward_layers(sh_forward *f, const sh_step *step, float *x)
{
    SH_TRY(begin_step(f, step));
    SH_TRY(sh_kv_apply(f->kv, step));
    int n_layer = sh_range_n(f->plan->layer);
    if (f->n_tok == 0 || n_layer == 0) return SH_OK;
    for (int l = 0; l < n_layer; l++) SH_TRY(layer(f, l, x));
    norm_job j = {.x = x};
    SH_TRY(meet_after(f, &j, &f->w->layer[n_layer - 1]));
    const rows last = {x, norm_row, &j};
    make_rows(f, (rows_job){f, &last, true, NULL, 0, 0, f->n_tok, 0});
    return SH_OK;
}

sh_err sh_forward_head(sh_forward *f, const sh_step *step, const float *x, float *logits)
{
    size_t n_embd = (size_t)f->config->dim[SH_DIM_EMBD], t = 0;
    int n = 0, n_sampled = 0;
    for (uint32_t i = 0; i < step->n_seq; t += step->seq[i++].n_tok) {
        if (!step->seq[i].logits) continue;
        memcpy(f->xn + (size_t)n * n_embd, x + (t + step->seq[i].n_tok - 1) * n_embd,
               n_embd * sizeof *x);
        n_sampled += !step->seq[i].prompt;
        n++;
    }
    if (n == 0) return SH_OK;
    norm_job j = {.x = f->xn, .y = f->y, .g = &f->w->ends.out_norm};
    const sh_weight *head = &f->w->ends.head;
    product p = {head, head->bias, sh_group_part(f->group, 0), (size_t)n_of(f, SH_DIM_VOCAB)};
    f->next = first_of(f, 0);
    matmul(f, &p, 1, &(rows){f->y, norm_row, &j}, (sh_range){0, 1}, n_sampled, n);
    return sh_group_gather(f->group, logits, (size_t)f->config->dim[SH_DIM_VOCAB], f->vocab, n);
}

/* y (n_embd) = row i of a tensor in the file. */
static void look_up(const sh_forward *f, float *y, const sh_tensor *t, size_t i)
{
    size_t n_embd = (size_t)f->config->dim[SH_DIM_EMBD];
    sh_dtypes[t->dtype].to_f32(y, t->data + i * sh_dtype_bytes(t->dtype, n_embd), n_embd);
}

void sh_forward_embed(const sh_forward *f, const sh_step *step, const uint32_t *ids, float *x)
{
    size_t n_embd = (size_t)f->config->dim[SH_DIM_EMBD];
    uint64_t fp = sh_cpu_enter();
    for (uint32_t i = 0; i < step->n_seq; i++)
        for (uint32_t n = 0; n < step->seq[i].n_tok; n++, x += n_embd) {
            look_up(f, x, f->w->ends.embd.src, *ids++);
            if (!f->config->learned_pos) continue;
            look_up(f, f->y, f->w->ends.pos.src, step->seq[i].pos + n);
            f->k->add(x, f->y, n_embd);
        }
    sh_cpu_leave(fp);
}

/* ---- opening ---- */

size_t sh_forward_part_floats(const sh_config *c, int n_rank, int n_batch, int n_slot)
{
    size_t sum = (size_t)n_batch * (size_t)c->dim[SH_DIM_EMBD] * (c->parallel ? 2 : 1), most = 0;
    for (int r = 0; r < n_rank; r++) {
        size_t width = (size_t)sh_range_n(sh_plan_vocab(c, r, n_rank));
        if (width > most) most = width;
    }
    most *= (size_t)n_slot;
    return most > sum ? most : sum;
}

/* The longest a token's activations can be in each form, over this rank's matrices. */
static void measure_forms(sh_forward *f)
{
    const sh_plan *p = f->plan;
    int n_slice = sh_range_n(p->slice);
    sh_kdim kd[3] = {sh_kdim_whole(f->config->dim[SH_DIM_EMBD]),
                     sh_kdim_slices(p->q_bound + p->slice.lo, n_slice),
                     sh_kdim_slices(p->ff_bound + p->slice.lo, n_slice)};
    for (int form = 0; form < SH_N_FORM; form++)
        for (int i = 0; i < 3; i++) {
            size_t n = sh_form_bytes((sh_form)form, &kd[i]);
            if (n > f->act_bytes[form]) f->act_bytes[form] = n;
        }
}

sh_err sh_forward_open(sh_forward *f)
{
    const sh_config *c = f->config;
    sh_err err;
    size_t n = (size_t)f->n_batch, n_embd = (size_t)c->dim[SH_DIM_EMBD], n_row = n;
    size_t half = (size_t)c->n_rot / 2;
    f->span_floats = sh_attend_floats(f);
    for (int l = 0; l < sh_range_n(f->plan->layer); l++)
        f->attend_bf16 |= attends_in_bf16(f, &f->w->layer[l]);
    if ((size_t)f->n_slot > n_row) n_row = (size_t)f->n_slot;
    struct {
        float **p;
        size_t n;
    } want[] = {
        {&f->xn, n_row * n_embd},
        {&f->q, n * (size_t)n_of(f, SH_DIM_Q)},
        {&f->kk, n * (size_t)n_of(f, SH_DIM_KV)},
        {&f->v, n * (size_t)n_of(f, SH_DIM_KV)},
        {&f->ao, n * (size_t)n_of(f, SH_DIM_Q)},
        {&f->gate, c->act == SH_ACT_SILU ? n * (size_t)n_of(f, SH_DIM_FF) : 0},
        {&f->up, n * (size_t)n_of(f, SH_DIM_FF)},
        {&f->y, n_row * n_embd},
        {&f->cos, n * half},
        {&f->sin, n * half},
        {&f->span, (size_t)sh_pool_n_thread(f->pool) * f->span_floats},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        SH_GOTO(sh_alloc(want[i].p, want[i].n, sizeof(float), "the activations"));
    measure_forms(f);
    for (int form = 0; form < SH_N_FORM; form++)
        SH_GOTO(sh_alloc(&f->act[form], n_row, f->act_bytes[form], "the activations"));
    SH_GOTO(sh_alloc(&f->tok_slot, n, sizeof(int), "the step"));
    SH_GOTO(sh_alloc(&f->tok_pos, n, sizeof(int), "the step"));
    SH_GOTO(
        sh_alloc(&f->share, (size_t)sh_pool_n_thread(f->pool), sizeof *f->share, "the threads"));
    SH_GOTO(sh_alloc(&f->block, n, sizeof *f->block, "the step"));
    SH_GOTO(sh_alloc(&f->unit, n + 1, sizeof *f->unit, "the step"));
    SH_GOTO(sh_alloc(&f->freq, half, sizeof *f->freq, "the rotations"));
    SH_GOTO(sh_alloc(&f->vocab, (size_t)f->plan->n_rank, sizeof *f->vocab, "the plan"));
    for (int r = 0; r < f->plan->n_rank; r++) f->vocab[r] = sh_plan_vocab(c, r, f->plan->n_rank);
    const float *factor = f->w->ends.rope_freqs.vec;
    for (size_t i = 0; i < half; i++) {
        f->freq[i] = sh_exp(-2.0 * (double)i / c->n_rot * sh_ln(c->rope_base)) / c->rope_linear;
        if (factor) f->freq[i] /= (double)factor[i];
        if (!(f->freq[i] > 0 && f->freq[i] < 1e6)) {
            err = sh_fail(SH_EFILE, "the rotary frequency of pair %zu is %g: the file is damaged",
                          i, f->freq[i]);
            goto out;
        }
    }
    sh_pool_idle(f->pool, ask_next, f);
    return SH_OK;
out:
    sh_forward_close(f);
    return err;
}

void sh_forward_close(sh_forward *f)
{
    void **all[] = {(void **)&f->xn,      (void **)&f->q,    (void **)&f->kk,
                    (void **)&f->v,       (void **)&f->ao,   (void **)&f->gate,
                    (void **)&f->up,      (void **)&f->y,    (void **)&f->cos,
                    (void **)&f->sin,     (void **)&f->span, (void **)&f->tok_slot,
                    (void **)&f->tok_pos, (void **)&f->freq, (void **)&f->vocab,
                    (void **)&f->block,   (void **)&f->unit, (void **)&f->share};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(*all[i]);
        *all[i] = NULL;
    }
    for (int i = 0; i < SH_N_FORM; i++) {
        free(f->act[i]);
        f->act[i] = NULL;
    }
}
