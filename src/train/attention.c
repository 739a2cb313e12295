/* A task is one sequence and KV head; within it, queries are taken in blocks of some and see the
 * positions up to the block's end. With scores S = Q K^T c, weights P = softmax(S), O = P V:
 *   dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = c dS K, dK = c dS^T Q
 * Source: Dao et al. 2022, arXiv:2205.14135, appendix B. c goes into K at first, and into dK at the
 * end. dK and dV are made transposed, (head_dim, n_ctx), since P and dS then become operands as
 * they lie. */
#include "train/attention.h"

#include <math.h>
#include <string.h>

#include "train/blocks.h"

enum { QUERIES = 64 }; /* of a block: whole runs of k's */

/* A thread's scratch. */
typedef struct room {
    float *fetched;        /* (n_ctx, ld_fetched): Q, K c or V; dO; dK or dV */
    float *out;            /* (QUERIES, head_dim): O; dQ */
    float *dot;            /* (n_ctx): rowsum(dO O) */
    float *s, *d;          /* (QUERIES, ld): S, then P; dP, then dS */
    float *dk, *dv, *part; /* (head_dim, ld): sums over the heads of a group; one head's */
    sh_mat k_rows, k_cols, v_rows, v_cols;
    sh_mat p_cols, ds_cols;    /* keys by queries */
    sh_left q;                 /* queries by head_dim */
    sh_left dout, p;           /* queries by head_dim; of one block: by keys */
    sh_left q_cols, dout_cols; /* head_dim by queries */
    size_t ld, ld_fetched;     /* floats */
} room;

static void *carve(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;
    *at += (bytes + 63) / 64 * 64;
    return p;
}
static sh_mat carve_right(const sh_pass *s, uint8_t *base, size_t *at, int rows, int k)
{
    const sh_kdim kd = sh_kdim_whole(k);
    sh_mat m = sh_pass_right(s, NULL, rows, &kd);
    m.data = carve(base, at, (size_t)m.n_panel * m.panel_bytes);
    return m;
}
static sh_left carve_left(const sh_pass *s, uint8_t *base, size_t *at, int rows, int k)
{
    const sh_kdim kd = sh_kdim_whole(k);
    sh_left a = sh_pass_left(s, NULL, &kd);
    a.data = carve(base, at, (size_t)rows * a.ld);
    return a;
}

/* Returns how many bytes it takes. */
static size_t lay_out(const sh_pass *s, room *r, uint8_t *base)
{
    const sh_arch *a = sh_pass_arch(s);
    const int dim = a->head_dim, n = a->n_ctx;
    const size_t unit = sizeof(float);
    size_t at = 0;
    r->ld = ((size_t)n + 15) / 16 * 16 | 16; /* rows begin at cache lines, not all in one set */
    r->ld_fetched = ((size_t)dim + SH_RUN - 1) / SH_RUN * SH_RUN;
    r->fetched = carve(base, &at, (size_t)n * r->ld_fetched * unit);
    r->out = carve(base, &at, QUERIES * (size_t)dim * unit);
    r->k_rows = carve_right(s, base, &at, n, dim);
    r->v_cols = carve_right(s, base, &at, dim, n);
    r->q = carve_left(s, base, &at, n, dim);
    r->p = carve_left(s, base, &at, QUERIES, n);
    r->s = carve(base, &at, QUERIES * r->ld * unit);
    /* backward */
    r->dot = carve(base, &at, (size_t)n * unit);
    r->d = carve(base, &at, QUERIES * r->ld * unit);
    r->v_rows = carve_right(s, base, &at, n, dim);
    r->k_cols = carve_right(s, base, &at, dim, n);
    r->dout = carve_left(s, base, &at, n, dim);
    r->q_cols = carve_left(s, base, &at, dim, n);
    r->dout_cols = carve_left(s, base, &at, dim, n);
    r->p_cols = carve_right(s, base, &at, n, n);
    r->ds_cols = carve_right(s, base, &at, n, n);
    r->dk = carve(base, &at, (size_t)dim * r->ld * unit);
    r->dv = carve(base, &at, (size_t)dim * r->ld * unit);
    r->part = carve(base, &at, (size_t)dim * r->ld * unit);
    return at;
}

size_t sh_attention_bytes(const sh_pass *s)
{
    room r;
    return lay_out(s, &r, NULL);
}

typedef struct job {
    sh_pass *s;
    int layer;
    const float *dao;
} job;

/* One head of one sequence. */
typedef struct task {
    const sh_pass *s;
    int layer, head;
    size_t t0;        /* the sequence's first token */
    uint32_t row;     /* of its first query, for dropout */
    const float *dao; /* (n_ctx, n_q) */
} task;

static int n_panel(int n)
{
    return (n + SH_LANES - 1) / SH_LANES;
}

static task task_of(const job *j, int seq, int head)
{
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const size_t t0 = (size_t)seq * (size_t)a->n_ctx, dim = (size_t)a->head_dim;
    const size_t at = t0 * (size_t)s->n_q + (size_t)head * dim;
    return (task){
        .s = s,
        .layer = j->layer,
        .head = head,
        .t0 = t0,
        .row = (uint32_t)(((s->seq_lo + seq) * a->n_head + head) * a->n_ctx),
        .dao = j->dao ? j->dao + at : NULL,
    };
}

/* Turns the rows of y (n, ld) by the angles of the positions from pos on, or back. */
static void rotate(const sh_pass *s, float *y, size_t ld, int pos, int n, const float *sin)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t half = (size_t)a->n_rot / 2, from = (size_t)pos * half;
    for (size_t i = 0; i < (size_t)n && !a->learned_pos; i++)
        s->products->k->rope(y + i * ld, s->cos + from + i * half, sin + from + i * half, 1,
                             a->head_dim, a->n_rot);
}

/* r->fetched, rows of head_dim = the columns of the sequence's qkv from `at` on, with their bias.
 */
static void fetch(const sh_pass *s, room *r, int layer, size_t t0, size_t at)
{
    const sh_arch *a = sh_pass_arch(s);
    const float *bias = a->bias ? s->p->w + s->p->layer[layer].qkv_b + at : NULL;
    s->products->k->train.gather(r->fetched, s->layer[layer].qkv + t0 * (size_t)s->n_qkv + at,
                                 (size_t)s->n_qkv, a->n_ctx, a->head_dim, bias);
}

/* A KV head, whose k stands at column `at`: the operands of its K c and V. */
static void fetch_kv(const sh_pass *s, room *r, int layer, size_t t0, size_t at, bool back)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t dim = (size_t)a->head_dim;
    const float c = 1.0f / sqrtf((float)a->head_dim);
    fetch(s, r, layer, t0, at);
    rotate(s, r->fetched, dim, 0, a->n_ctx, s->sin);
    s->products->k->train.scale(r->fetched, c, (size_t)a->n_ctx * dim);
    sh_right_rows(s->products, &r->k_rows, r->fetched, dim, 0, r->k_rows.n_panel);
    if (back) sh_right_cols(s->products, &r->k_cols, r->fetched, dim, 0, r->k_cols.n_panel);
    fetch(s, r, layer, t0, at + (size_t)s->n_kv);
    if (back)
        sh_right_rows(s->products, &r->v_rows, r->fetched, dim, 0, r->v_rows.n_panel);
    else
        sh_right_cols(s->products, &r->v_cols, r->fetched, dim, 0, r->v_cols.n_panel);
}

static void fetch_q(const task *h, room *r, bool back)
{
    const sh_arch *a = sh_pass_arch(h->s);
    const size_t dim = (size_t)a->head_dim;
    fetch(h->s, r, h->layer, h->t0, (size_t)h->head * dim);
    rotate(h->s, r->fetched, dim, 0, a->n_ctx, h->s->sin);
    sh_left_rows(h->s->products, &r->q, r->fetched, dim, 0, a->n_ctx);
    if (back) sh_left_cols(h->s->products, &r->q_cols, r->fetched, dim, 0, a->head_dim);
}

/* S of the queries [q0, q0 + n) with the keys [0, q0 + n). */
static void scores(const task *h, room *r, int q0, int n)
{
    const sh_left q = sh_pass_left_part(h->s, &r->q, q0, 0, sh_pass_arch(h->s)->head_dim);
    sh_product(h->s->products, r->s, r->ld, &q, &r->k_rows, 0, n, 0, n_panel(q0 + n));
}

/* What one head computed of n tokens from t on, x (n, ldx), becomes the columns [at, at + head_dim)
 * of operands; n is a multiple of SH_BLOCK. */
static void give(const sh_pass *s, const float *x, size_t ldx, size_t t, int n, int at,
                 sh_block_operands o)
{
    const sh_block *b = &s->block[t / SH_BLOCK];
    for (int i = 0; i < n; i += SH_BLOCK, b++)
        sh_block_spread(s, b, x + (size_t)i * ldx, ldx, at, sh_pass_arch(s)->head_dim, o);
}

/* O of the queries [q0, q0 + n), in r->out. */
static void give_out(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_kernels *k = s->products->k;
    const int dim = sh_pass_arch(s)->head_dim, at = h->head * dim;
    const size_t ld = (size_t)s->n_q * sizeof(float), t = h->t0 + (size_t)q0;
    float *ao = s->layer[h->layer].ao + t * (size_t)s->n_q + at;
    if (!sh_pass_heads_apart(s)) {
        for (int i = 0; i < n; i++)
            memcpy((char *)ao + (size_t)i * ld, r->out + i * dim, (size_t)dim * sizeof *ao);
        return;
    }
    for (int i = 0; i < n; i += SH_RUN)
        k->spread[SH_F32](&(sh_spread){.rows = (char *)ao + (size_t)i * ld,
                                       .ld_rows = ld,
                                       .far = ld * (size_t)s->n_tok > SH_FAR_BYTES},
                          r->out + i * dim, (size_t)dim, SH_RUN, dim);
    give(s, r->out, (size_t)dim, t, n, at, (sh_block_operands){s->n_q, .rows = s->rows});
}

static void attend_block(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_kernels *k = s->products->k;
    const sh_stash *stash = &s->layer[h->layer];
    const size_t dim = (size_t)a->head_dim;
    float sum[QUERIES];
    scores(h, r, q0, n);
    for (int i = 0; i < n; i++) {
        float *row = r->s + (size_t)i * r->ld;
        const int n_pos = q0 + i + 1;
        const size_t at = (h->t0 + (size_t)(q0 + i)) * (size_t)a->n_head + (size_t)h->head;
        stash->max[at] = k->softmax_part(row, n_pos, &sum[i]);
        stash->sum[at] = sum[i];
        memset(row + n_pos, 0, (size_t)(q0 + n - n_pos) * sizeof *row);
        if (s->drop)
            sh_pass_drop(s, row, (size_t)n_pos, sh_site_attention(h->layer),
                         h->row + (uint32_t)(q0 + i));
    }
    const sh_left p = sh_pass_left_part(s, &r->p, 0, 0, q0 + n);
    sh_left_rows(s->products, &p, r->s, r->ld, 0, n);
    sh_product(s->products, r->out, dim, &p, &r->v_cols, 0, n, 0, r->v_cols.n_panel);
    for (int i = 0; i < n; i++) k->train.scale(r->out + (size_t)i * dim, 1.0f / sum[i], dim);
    give_out(h, r, q0, n);
}

static void forward_task(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const int seq = i / a->n_kv_head, kv = i % a->n_kv_head, group = a->n_head / a->n_kv_head;
    const size_t dim = (size_t)a->head_dim;
    room r;
    lay_out(s, &r, sh_pass_room(s, thread));
    fetch_kv(s, &r, j->layer, (size_t)seq * (size_t)a->n_ctx, (size_t)s->n_q + (size_t)kv * dim,
             false);
    for (int h = 0; h < group; h++) {
        const task t = task_of(j, seq, kv * group + h);
        fetch_q(&t, &r, false);
        for (int q0 = 0; q0 < a->n_ctx; q0 += QUERIES)
            attend_block(&t, &r, q0, a->n_ctx - q0 < QUERIES ? a->n_ctx - q0 : QUERIES);
    }
}

void sh_attention_forward(sh_pass *s, int layer)
{
    sh_pass_each(s, s->n_seq * sh_pass_arch(s)->n_kv_head, forward_task, &(job){s, layer, NULL});
    sh_pass_tick(s, SH_PART_ATTEND);
}

/* ---- backward ---- */

/* From S and dP to P and dS, zero where a query does not see. */
static void softmax_back(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_train_rows *k = &s->products->k->train;
    const sh_stash *stash = &s->layer[h->layer];
    for (int i = 0; i < n; i++) {
        float *row = r->s + (size_t)i * r->ld, *d = r->d + (size_t)i * r->ld;
        const int n_pos = q0 + i + 1;
        const size_t n_in = (size_t)n_pos, past = (size_t)(q0 + n - n_pos) * sizeof *row;
        const size_t t = h->t0 + (size_t)(q0 + i), at = t * (size_t)a->n_head + (size_t)h->head;
        const uint32_t site = sh_site_attention(h->layer), drop_row = h->row + (uint32_t)(q0 + i);
        if (s->drop) sh_pass_drop(s, d, n_in, site, drop_row);
        k->attend_back(row, d, n_pos, stash->max[at], 1.0f / stash->sum[at], r->dot[q0 + i]);
        if (s->drop) sh_pass_drop(s, row, n_in, site, drop_row);
        memset(row + n_in, 0, past);
        memset(d + n_in, 0, past);
    }
}

/* The gradient of n tokens' columns [at, at + head_dim) of qkv, from token t on: x (n, ldx). */
static void give_gradient(const sh_pass *s, const float *x, size_t ldx, size_t t, int n, int at)
{
    const int dim = sh_pass_arch(s)->head_dim;
    float *y = s->d + t * (size_t)s->n_qkv + at;
    if (!sh_pass_heads_apart(s)) {
        for (int i = 0; i < n; i++)
            memcpy(y + (size_t)i * (size_t)s->n_qkv, x + (size_t)i * ldx, (size_t)dim * sizeof *y);
        return;
    }
    give(s, x, ldx, t, n, at, (sh_block_operands){s->n_qkv, .rows = s->rows, .cols = s->cols[0]});
    for (int i = 0; i < n && sh_pass_arch(s)->bias; i += SH_BLOCK)
        s->products->k->train.sum_rows(s->sums + (t + (size_t)i) / SH_BLOCK * s->n_sum + at,
                                       x + (size_t)i * ldx, ldx, SH_BLOCK, dim);
}

/* Queries [q0, q0 + n): their dQ, and P and dS as operands. */
static void back_block(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_products *p = s->products;
    const int keys = q0 + n, dim = sh_pass_arch(s)->head_dim;
    const sh_left dout = sh_pass_left_part(s, &r->dout, q0, 0, dim);
    const sh_left ds = sh_pass_left_part(s, &r->p, 0, 0, keys);
    scores(h, r, q0, n);
    sh_product(p, r->d, r->ld, &dout, &r->v_rows, 0, n, 0, n_panel(keys));
    softmax_back(h, r, q0, n);
    for (int i = 0; i < n; i += SH_RUN) {
        const int some = n - i < SH_RUN ? n - i : SH_RUN;
        const sh_mat p_cols = sh_pass_right_part(&r->p_cols, q0 + i, some);
        const sh_mat ds_cols = sh_pass_right_part(&r->ds_cols, q0 + i, some);
        p->k->spread[p->dtype](
            &(sh_spread){.right = p_cols.data, .panel_bytes = p_cols.panel_bytes},
            r->s + (size_t)i * r->ld, r->ld, some, keys);
        p->k->spread[p->dtype](&(sh_spread){.rows = (char *)ds.data + (size_t)i * ds.ld,
                                            .ld_rows = ds.ld,
                                            .right = ds_cols.data,
                                            .panel_bytes = ds_cols.panel_bytes},
                               r->d + (size_t)i * r->ld, r->ld, some, keys);
    }
    sh_product(p, r->out, (size_t)dim, &ds, &r->k_cols, 0, n, 0, r->k_cols.n_panel);
    rotate(s, r->out, (size_t)dim, q0, n, s->minus_sin);
    give_gradient(s, r->out, (size_t)dim, h->t0 + (size_t)q0, n, h->head * dim);
}

/* y (head_dim, ld) = x^T z for each block of keys, over the queries from the block on: x_cols
 * (head_dim by queries), z_cols (keys by queries). */
static void keys_product(const sh_pass *s, float *y, size_t ld, const sh_left *x_cols,
                         const sh_mat *z_cols)
{
    const int n = sh_pass_arch(s)->n_ctx, step = QUERIES / SH_LANES;
    for (int k0 = 0, panel = 0; k0 < n; k0 += QUERIES, panel += step) {
        const sh_left x = sh_pass_left_part(s, x_cols, 0, k0, n - k0);
        const sh_mat z = sh_pass_right_part(z_cols, k0, n - k0);
        sh_product(s->products, y, ld, &x, &z, 0, sh_pass_arch(s)->head_dim, panel,
                   panel + step < z.n_panel ? panel + step : z.n_panel);
    }
}

/* dO's operands, and rowsum(dO O). */
static void fetch_dout(const task *h, room *r)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_train_rows *k = &s->products->k->train;
    const size_t n_q = (size_t)s->n_q, dim = (size_t)a->head_dim;
    const float *ao = s->layer[h->layer].ao + h->t0 * n_q + (size_t)h->head * dim;
    k->gather(r->fetched, h->dao, n_q, a->n_ctx, a->head_dim, NULL);
    k->dots(r->dot, r->fetched, dim, ao, n_q, a->n_ctx, a->head_dim);
    sh_left_rows(s->products, &r->dout, r->fetched, dim, 0, a->n_ctx);
    sh_left_cols(s->products, &r->dout_cols, r->fetched, dim, 0, a->head_dim);
}

static void back_head(const task *h, room *r, bool first)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const size_t n = (size_t)a->head_dim * r->ld;
    fetch_q(h, r, true);
    fetch_dout(h, r);
    for (int q0 = 0; q0 < a->n_ctx; q0 += QUERIES)
        back_block(h, r, q0, a->n_ctx - q0 < QUERIES ? a->n_ctx - q0 : QUERIES);
    keys_product(s, first ? r->dv : r->part, r->ld, &r->dout_cols, &r->p_cols);
    if (!first) s->products->k->add(r->dv, r->part, n);
    keys_product(s, first ? r->dk : r->part, r->ld, &r->q_cols, &r->ds_cols);
    if (!first) s->products->k->add(r->dk, r->part, n);
}

/* dK or dV = x^T (head_dim, ld), of the columns of qkv from `at` on; dK is rotated back. As float32
 * operands, columns become rows. */
static void turn(const sh_pass *s, room *r, size_t t0, int at, const float *x, bool is_k)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_products f32 = {s->products->k, s->products->pool, SH_F32};
    const sh_left t = {r->fetched, r->ld_fetched * sizeof(float), sh_kdim_whole(a->head_dim)};
    sh_left_cols(&f32, &t, x, r->ld, 0, a->n_ctx);
    if (is_k) rotate(s, r->fetched, r->ld_fetched, 0, a->n_ctx, s->minus_sin);
    give_gradient(s, r->fetched, r->ld_fetched, t0, a->n_ctx, at);
}

static void back_task(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const int seq = i / a->n_kv_head, kv = i % a->n_kv_head, group = a->n_head / a->n_kv_head;
    const size_t t0 = (size_t)seq * (size_t)a->n_ctx;
    const int k_at = s->n_q + kv * a->head_dim;
    room r;
    lay_out(s, &r, sh_pass_room(s, thread));
    fetch_kv(s, &r, j->layer, t0, (size_t)k_at, true);
    for (int h = 0; h < group; h++) {
        const task t = task_of(j, seq, kv * group + h);
        back_head(&t, &r, h == 0);
    }
    s->products->k->train.scale(r.dk, 1.0f / sqrtf((float)a->head_dim), (size_t)a->head_dim * r.ld);
    turn(s, &r, t0, k_at, r.dk, true);
    turn(s, &r, t0, k_at + s->n_kv, r.dv, false);
}

void sh_attention_back(sh_pass *s, int layer, const float *dao)
{
    sh_pass_each(s, s->n_seq * sh_pass_arch(s)->n_kv_head, back_task, &(job){s, layer, dao});
    sh_pass_tick(s, SH_PART_ATTEND_BACK);
}
