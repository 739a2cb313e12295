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
    float *fetched;        /* (n_ctx, ld_fetched): Q, K c or V; dK or dV */
    float *s, *d;          /* (QUERIES, ld): S, then P; dP, then dS */
    float *dk, *dv, *part; /* (head_dim, ld): sums over the heads of a group; one head's */
    sh_mat k_rows, k_cols, v_rows, v_cols;
    sh_mat p_cols, ds_cols;    /* keys by queries */
    sh_left q;                 /* queries by head_dim */
    sh_left dout, p;           /* of one block: by head_dim, keys */
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
    r->k_rows = carve_right(s, base, &at, n, dim);
    r->v_cols = carve_right(s, base, &at, dim, n);
    r->q = carve_left(s, base, &at, n, dim);
    r->p = carve_left(s, base, &at, QUERIES, n);
    r->s = carve(base, &at, QUERIES * r->ld * unit);
    /* backward */
    r->d = carve(base, &at, QUERIES * r->ld * unit);
    r->v_rows = carve_right(s, base, &at, n, dim);
    r->k_cols = carve_right(s, base, &at, dim, n);
    r->dout = carve_left(s, base, &at, QUERIES, dim);
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

/* Turns the rows of y (n_ctx, ld) by their position's angle, or back. */
static void rotate(const sh_pass *s, float *y, size_t ld, const float *sin)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t half = (size_t)a->n_rot / 2;
    for (size_t i = 0; i < (size_t)a->n_ctx && !a->learned_pos; i++)
        s->products->k->rope(y + i * ld, s->cos + i * half, sin + i * half, 1, a->head_dim,
                             a->n_rot);
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
    rotate(s, r->fetched, dim, s->sin);
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
    rotate(h->s, r->fetched, dim, h->s->sin);
    sh_left_rows(h->s->products, &r->q, r->fetched, dim, 0, a->n_ctx);
    if (back) sh_left_cols(h->s->products, &r->q_cols, r->fetched, dim, 0, a->head_dim);
}

/* S of the queries [q0, q0 + n) with the keys [0, q0 + n). */
static void scores(const task *h, room *r, int q0, int n)
{
    const sh_left q = sh_pass_left_part(h->s, &r->q, q0, 0, sh_pass_arch(h->s)->head_dim);
    sh_product(h->s->products, r->s, r->ld, &q, &r->k_rows, 0, n, 0, n_panel(q0 + n));
}

static void attend_block(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_kernels *k = s->products->k;
    const sh_stash *stash = &s->layer[h->layer];
    const size_t n_q = (size_t)s->n_q, dim = (size_t)a->head_dim;
    float *out = stash->ao + (h->t0 + (size_t)q0) * n_q + (size_t)h->head * dim;
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
    sh_product(s->products, out, n_q, &p, &r->v_cols, 0, n, 0, r->v_cols.n_panel);
    for (int i = 0; i < n; i++) k->train.scale(out + (size_t)i * n_q, 1.0f / sum[i], dim);
}

static void forward_task(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const int seq = i / a->n_kv_head, kv = i % a->n_kv_head, group = a->n_head / a->n_kv_head;
    const size_t dim = (size_t)a->head_dim;
    room r;
    lay_out(s, &r, s->scratch + (size_t)thread * s->scratch_bytes);
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
    const size_t n_q = (size_t)s->n_q;
    for (int i = 0; i < n; i++) {
        float *row = r->s + (size_t)i * r->ld, *d = r->d + (size_t)i * r->ld;
        const int n_pos = q0 + i + 1;
        const size_t n_in = (size_t)n_pos, past = (size_t)(q0 + n - n_pos) * sizeof *row;
        const size_t t = h->t0 + (size_t)(q0 + i), at = t * (size_t)a->n_head + (size_t)h->head;
        const uint32_t site = sh_site_attention(h->layer), drop_row = h->row + (uint32_t)(q0 + i);
        float dot =
            k->dot(h->dao + (size_t)(q0 + i) * n_q,
                   stash->ao + t * n_q + (size_t)h->head * (size_t)a->head_dim, a->head_dim);
        if (s->drop) sh_pass_drop(s, d, n_in, site, drop_row);
        k->attend_back(row, d, n_pos, stash->max[at], 1.0f / stash->sum[at], dot);
        if (s->drop) sh_pass_drop(s, row, n_in, site, drop_row);
        memset(row + n_in, 0, past);
        memset(d + n_in, 0, past);
    }
}

/* Queries [q0, q0 + n): their dQ, and P and dS as operands. */
static void back_block(const task *h, room *r, int q0, int n)
{
    const sh_pass *s = h->s;
    const sh_products *p = s->products;
    const size_t n_q = (size_t)s->n_q, ld = (size_t)s->n_qkv;
    const int keys = q0 + n;
    float *dq = s->d + (h->t0 + (size_t)q0) * ld + (size_t)(h->head * sh_pass_arch(s)->head_dim);
    scores(h, r, q0, n);
    sh_left_rows(p, &r->dout, h->dao + (size_t)q0 * n_q, n_q, 0, n);
    sh_product(p, r->d, r->ld, &r->dout, &r->v_rows, 0, n, 0, n_panel(keys));
    softmax_back(h, r, q0, n);
    const sh_left ds = sh_pass_left_part(s, &r->p, 0, 0, keys);
    sh_left_rows(p, &ds, r->d, r->ld, 0, n);
    sh_product(p, dq, ld, &ds, &r->k_cols, 0, n, 0, r->k_cols.n_panel);
    const sh_mat p_cols = sh_pass_right_part(&r->p_cols, q0, n);
    sh_right_cols(p, &p_cols, r->s, r->ld, 0, n_panel(keys));
    const sh_mat ds_cols = sh_pass_right_part(&r->ds_cols, q0, n);
    sh_right_cols(p, &ds_cols, r->d, r->ld, 0, n_panel(keys));
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

static void back_head(const task *h, room *r, bool first)
{
    const sh_pass *s = h->s;
    const sh_arch *a = sh_pass_arch(s);
    const size_t n = (size_t)a->head_dim * r->ld;
    fetch_q(h, r, true);
    sh_left_cols(s->products, &r->dout_cols, h->dao, (size_t)s->n_q, 0, a->head_dim);
    for (int q0 = 0; q0 < a->n_ctx; q0 += QUERIES)
        back_block(h, r, q0, a->n_ctx - q0 < QUERIES ? a->n_ctx - q0 : QUERIES);
    keys_product(s, first ? r->dv : r->part, r->ld, &r->dout_cols, &r->p_cols);
    if (!first) s->products->k->add(r->dv, r->part, n);
    rotate(s, s->d + h->t0 * (size_t)s->n_qkv + (size_t)(h->head * a->head_dim), (size_t)s->n_qkv,
           s->minus_sin);
    keys_product(s, first ? r->dk : r->part, r->ld, &r->q_cols, &r->ds_cols);
    if (!first) s->products->k->add(r->dk, r->part, n);
}

/* y (n_ctx, n_qkv) = x^T, rotated back if it is dK; x (head_dim, ld). As float32 operands, columns
 * become rows. */
static void turn(const sh_pass *s, room *r, float *y, const float *x, bool is_k)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_products f32 = {s->products->k, s->products->pool, SH_F32};
    const sh_left t = {r->fetched, r->ld_fetched * sizeof(float), sh_kdim_whole(a->head_dim)};
    sh_left_cols(&f32, &t, x, r->ld, 0, a->n_ctx);
    if (is_k) rotate(s, r->fetched, r->ld_fetched, s->minus_sin);
    for (size_t i = 0; i < (size_t)a->n_ctx; i++)
        memcpy(y + i * (size_t)s->n_qkv, r->fetched + i * r->ld_fetched,
               (size_t)a->head_dim * sizeof *y);
}

static void back_task(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const int seq = i / a->n_kv_head, kv = i % a->n_kv_head, group = a->n_head / a->n_kv_head;
    const size_t dim = (size_t)a->head_dim, t0 = (size_t)seq * (size_t)a->n_ctx;
    const size_t k_at = (size_t)s->n_q + (size_t)kv * dim, v_at = k_at + (size_t)s->n_kv;
    room r;
    lay_out(s, &r, s->scratch + (size_t)thread * s->scratch_bytes);
    fetch_kv(s, &r, j->layer, t0, k_at, true);
    for (int h = 0; h < group; h++) {
        const task t = task_of(j, seq, kv * group + h);
        back_head(&t, &r, h == 0);
    }
    s->products->k->train.scale(r.dk, 1.0f / sqrtf((float)a->head_dim), (size_t)a->head_dim * r.ld);
    turn(s, &r, s->d + t0 * (size_t)s->n_qkv + k_at, r.dk, true);
    turn(s, &r, s->d + t0 * (size_t)s->n_qkv + v_at, r.dv, false);
}

void sh_attention_back(sh_pass *s, int layer, const float *dao)
{
    sh_pass_each(s, s->n_seq * sh_pass_arch(s)->n_kv_head, back_task, &(job){s, layer, dao});
    sh_pass_tick(s, SH_PART_ATTEND_BACK);
}
