#include "train/blocks.h"

#include <string.h>

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t sh_blocks_floats(const sh_pass *s)
{
    const sh_arch *a = sh_pass_arch(s);
    /* a block's activations and gradients before them, and one token's u */
    size_t ffn = (size_t)a->n_ff + (size_t)s->n_up;
    return SH_BLOCK * max_size((size_t)a->n_embd, ffn) + (size_t)s->n_up;
}

size_t sh_blocks_sums(const sh_pass *s)
{
    size_t most = max_size((size_t)s->n_up, (size_t)s->n_qkv);
    return max_size(most, 3 * (size_t)sh_pass_arch(s)->n_embd);
}

/* One region; not every field is used by each. */
typedef struct job {
    sh_pass *s;
    float *y;
    const float *x;
    size_t bias;
    uint32_t site;
    sh_norm_at norm;
    int layer;
    enum { EMBEDDINGS, ATTENTION, FEED_FORWARD } half;
} job;

static uint32_t row_of(const sh_pass *s, int t) /* among all tokens of the batch */
{
    return (uint32_t)(s->seq_lo * sh_pass_arch(s)->n_ctx + t);
}

static void norm_row(const sh_pass *s, float *y, const float *x, sh_norm_at norm)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_kernels *k = s->products->k;
    if (a->layer_norm)
        k->layernorm(y, x, s->p->w + norm.g, s->p->w + norm.b, a->n_embd, a->norm_eps);
    else
        k->rmsnorm(y, x, s->p->w + norm.g, a->n_embd, a->norm_eps);
}

void sh_block_spread(const sh_pass *s, const sh_block *b, const float *x, size_t ldx, int at, int n,
                     sh_block_operands o)
{
    const size_t unit = s->products->dtype == SH_BF16 ? 2 : 4;
    const sh_kdim kd = sh_kdim_whole(o.width);
    const sh_left rows = sh_pass_left(s, o.rows, &kd), cols = sh_pass_left(s, o.cols, &s->kd);
    const sh_mat right = sh_pass_right(s, o.right, o.width, &s->kd);
    sh_spread to = {.ld_rows = rows.ld,
                    .ld_cols = cols.ld,
                    .panel_bytes = right.panel_bytes,
                    .far = rows.ld * (size_t)s->n_tok > SH_FAR_BYTES};
    if (o.rows) to.rows = (char *)o.rows + (size_t)b->t * rows.ld + (size_t)at * unit;
    if (o.cols) to.cols = (char *)o.cols + (size_t)at * cols.ld + (size_t)b->kp * unit;
    if (o.right)
        to.right = right.data + (size_t)(at / SH_LANES) * right.panel_bytes +
                   (size_t)b->kp * SH_LANES * unit;
    s->products->k->spread[s->products->dtype](&to, x, ldx, b->n, n);
}

static void spread(const sh_pass *s, const sh_block *b, const float *x, sh_block_operands o)
{
    sh_block_spread(s, b, x, (size_t)o.width, 0, o.width, o);
}

/* ---- forward ---- */

static void norm_block(const sh_pass *s, const sh_block *b, const float *x, sh_norm_at norm,
                       float *room)
{
    size_t n = (size_t)sh_pass_arch(s)->n_embd;
    for (int i = 0; i < b->n; i++)
        norm_row(s, room + (size_t)i * n, x + (size_t)(b->t + i) * n, norm);
}

static void embed_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_block *b = &s->block[i];
    const size_t n = (size_t)a->n_embd;
    for (int t = b->t; t < b->t + b->n; t++) {
        float *y = j->y + (size_t)t * n;
        size_t seq = (size_t)(s->seq_lo + t / a->n_ctx), pos = (size_t)(t % a->n_ctx);
        size_t id = (size_t)s->batch->ids[seq * (size_t)(a->n_ctx + 1) + pos];
        memcpy(y, s->p->w + s->p->embd + id * n, n * sizeof *y);
        if (a->learned_pos) s->products->k->add(y, s->p->w + s->p->pos + pos * n, n);
        if (s->drop) sh_pass_drop(s, y, n, SH_SITE_EMBD, row_of(s, t));
    }
    norm_block(s, b, j->y, j->norm, sh_pass_room(s, thread));
    spread(s, b, sh_pass_room(s, thread), (sh_block_operands){a->n_embd, .rows = s->rows});
}

void sh_blocks_embed(sh_pass *s, float *x, sh_norm_at norm)
{
    sh_pass_each(s, s->n_block, embed_block, &(job){.s = s, .y = x, .norm = norm});
    sh_pass_tick(s, SH_PART_BLOCKS);
}

static void join_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_block *b = &s->block[i];
    const size_t n = (size_t)a->n_embd;
    for (int t = b->t; t < b->t + b->n; t++) {
        float *y = j->y + (size_t)t * n;
        if (a->bias) s->products->k->add(y, s->p->w + j->bias, n);
        if (s->drop) sh_pass_drop(s, y, n, j->site, row_of(s, t));
        s->products->k->add(y, j->x + (size_t)t * n, n);
    }
    norm_block(s, b, j->y, j->norm, sh_pass_room(s, thread));
    spread(s, b, sh_pass_room(s, thread), (sh_block_operands){a->n_embd, .rows = s->rows});
}

void sh_blocks_join(sh_pass *s, float *y, const float *x, size_t bias, uint32_t site,
                    sh_norm_at norm)
{
    job j = {.s = s, .y = y, .x = x, .bias = bias, .site = site, .norm = norm};
    sh_pass_each(s, s->n_block, join_block, &j);
    sh_pass_tick(s, SH_PART_BLOCKS);
}

/* u (n_up) = what the layer's activation of token t is of: the product and its bias. */
static void fetch_u(const sh_pass *s, float *u, int layer, int t)
{
    const float *bias = sh_pass_arch(s)->bias ? s->p->w + s->p->layer[layer].up_b : NULL;
    const float *from = s->layer[layer].u + (size_t)t * (size_t)s->n_up;
    s->products->k->train.gather(u, from, 0, 1, s->n_up, bias);
}

static void activate_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_kernels *k = s->products->k;
    const sh_block *b = &s->block[i];
    const size_t n = (size_t)sh_pass_arch(s)->n_ff;
    float *room = sh_pass_room(s, thread), *u = room + SH_BLOCK * n;
    for (int r = 0; r < b->n; r++) {
        float *y = room + (size_t)r * n;
        if (sh_pass_arch(s)->gelu) {
            fetch_u(s, y, j->layer, b->t + r);
            k->gelu(y, n);
        } else {
            fetch_u(s, u, j->layer, b->t + r);
            memcpy(y, u, n * sizeof *y);
            k->silu_mul(y, u + n, n);
        }
    }
    spread(s, b, room, (sh_block_operands){(int)n, .rows = s->rows});
}

void sh_blocks_activate(sh_pass *s, int layer)
{
    sh_pass_each(s, s->n_block, activate_block, &(job){.s = s, .layer = layer});
    sh_pass_tick(s, SH_PART_BLOCKS);
}

/* ---- sums over tokens ---- */

/* A vector of n gradients: from column `from` of the blocks' sums to p->g at `to`. */
typedef struct vector {
    size_t from, to, n;
} vector;

typedef struct sum_job {
    sh_pass *s;
    const vector *v;
} sum_job;

enum { SUM_COLS = 256 };

/* Columns of one vector: blocks ascending in a slice, slices by the tree. */
static void sum_cols(void *arg, int i, int thread)
{
    const sum_job *j = arg;
    const sh_pass *s = j->s;
    size_t at = (size_t)i * SUM_COLS, n = j->v->n - at < SUM_COLS ? j->v->n - at : SUM_COLS;
    float slice[SH_N_SLICE][SUM_COLS];
    (void)thread;
    memset(slice, 0, sizeof slice);
    for (int b = 0; b < s->n_block; b++)
        s->products->k->add(slice[s->block[b].slice],
                            s->sums + (size_t)b * s->n_sum + j->v->from + at, n);
    for (int step = 1; step < s->n_slice; step *= 2)
        for (int a = 0; a + step < s->n_slice; a += 2 * step)
            s->products->k->add(slice[a], slice[a + step], n);
    memcpy(s->p->g + j->v->to + at, slice[0], n * sizeof(float));
}

static void sum_vector(sh_pass *s, size_t from, size_t to, int n)
{
    vector v = {from, to, (size_t)n};
    sh_pass_each(s, (n + SUM_COLS - 1) / SUM_COLS, sum_cols, &(sum_job){s, &v});
}

/* ---- backward ---- */

static void norm_right_block(void *arg, int i, int thread)
{
    const job *j = arg;
    norm_block(j->s, &j->s->block[i], j->x, j->norm, sh_pass_room(j->s, thread));
    spread(j->s, &j->s->block[i], sh_pass_room(j->s, thread),
           (sh_block_operands){sh_pass_arch(j->s)->n_embd, .right = j->s->right[0]});
}

void sh_blocks_norm(sh_pass *s, const float *x, sh_norm_at norm)
{
    sh_pass_each(s, s->n_block, norm_right_block, &(job){.s = s, .x = x, .norm = norm});
    sh_pass_tick(s, SH_PART_BLOCKS_BACK);
}

/* dx += the way back through the norm; its gradients are the block's first 2 n_embd sums. */
static void norm_back(const job *j, int i)
{
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_train_rows *k = &s->products->k->train;
    const sh_block *b = &s->block[i];
    const size_t n = (size_t)a->n_embd;
    float *dg = s->sums + (size_t)i * s->n_sum;
    memset(dg, 0, 2 * n * sizeof *dg);
    for (int t = b->t; t < b->t + b->n; t++) {
        size_t at = (size_t)t * n;
        if (a->layer_norm)
            k->layernorm_back(j->y + at, dg, dg + n, s->dxn + at, j->x + at, s->p->w + j->norm.g,
                              a->n_embd, a->norm_eps);
        else
            k->rmsnorm_back(j->y + at, dg, s->dxn + at, j->x + at, s->p->w + j->norm.g, a->n_embd,
                            a->norm_eps);
    }
}

/* The gradient of a product's output, dy (n, width): as operands, and its bias's sums from column
 * `from` on. */
static void gradient_block(const sh_pass *s, int to, int i, const float *dy, int width, size_t from)
{
    const sh_block *b = &s->block[i];
    if (sh_pass_arch(s)->bias) {
        float *sum = s->sums + (size_t)i * s->n_sum + from;
        s->products->k->train.sum_rows(sum, dy, (size_t)width, b->n, width);
    }
    spread(s, b, dy, (sh_block_operands){width, .rows = s->rows, .cols = s->cols[to]});
}

static void leave_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_block *b = &s->block[i];
    const size_t n = (size_t)a->n_embd;
    float *dy = j->y + (size_t)b->t * n;
    norm_back(j, i);
    if (s->drop) {
        if (j->half != EMBEDDINGS)
            dy = memcpy(sh_pass_room(s, thread), dy, (size_t)b->n * n * sizeof *dy);
        for (int r = 0; r < b->n; r++)
            sh_pass_drop(s, dy + (size_t)r * n, n, j->site, row_of(s, b->t + r));
    }
    if (j->half != EMBEDDINGS) gradient_block(s, 0, i, dy, a->n_embd, 2 * n);
    if (j->half == ATTENTION)
        spread(s, b, s->layer[j->layer].ao + (size_t)b->t * (size_t)s->n_q,
               (sh_block_operands){s->n_q, .right = s->right[0]});
}

static void leave(job j, size_t bias)
{
    sh_pass *s = j.s;
    const int n = sh_pass_arch(s)->n_embd;
    sh_pass_each(s, s->n_block, leave_block, &j);
    sum_vector(s, 0, j.norm.g, n);
    if (sh_pass_arch(s)->layer_norm) sum_vector(s, (size_t)n, j.norm.b, n);
    if (sh_pass_arch(s)->bias && j.half != EMBEDDINGS) sum_vector(s, 2 * (size_t)n, bias, n);
    sh_pass_tick(s, SH_PART_BLOCKS_BACK);
}

void sh_blocks_leave(sh_pass *s, float *dx, const float *x, sh_norm_at norm)
{
    leave((job){.s = s, .y = dx, .x = x, .norm = norm, .site = SH_SITE_EMBD, .half = EMBEDDINGS},
          0);
}

void sh_blocks_leave_ffn(sh_pass *s, float *dx, int layer, const float *x, sh_norm_at norm)
{
    job j = {.s = s, .y = dx, .x = x, .norm = norm, .layer = layer, .half = FEED_FORWARD};
    j.site = sh_site_half(layer, 1);
    leave(j, s->p->layer[layer].down_b);
}

void sh_blocks_leave_attention(sh_pass *s, float *dx, int layer, const float *x, sh_norm_at norm)
{
    job j = {.s = s, .y = dx, .x = x, .norm = norm, .layer = layer, .half = ATTENTION};
    j.site = sh_site_half(layer, 0);
    leave(j, s->p->layer[layer].wo_b);
}

/* The gradient of the activation becomes that of u. */
static void enter_ffn_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_train_rows *k = &s->products->k->train;
    const sh_block *b = &s->block[i];
    const size_t n_up = (size_t)s->n_up, n_ff = (size_t)a->n_ff;
    float *act = sh_pass_room(s, thread), *du = act + SH_BLOCK * n_ff, *u = du + SH_BLOCK * n_up;
    for (int r = 0; r < b->n; r++) {
        const float *d = s->d + (size_t)(b->t + r) * n_ff;
        float *to = du + (size_t)r * n_up, *y = act + (size_t)r * n_ff;
        fetch_u(s, u, j->layer, b->t + r);
        if (a->gelu)
            k->gelu_back(y, to, d, u, n_ff);
        else
            k->silu_mul_back(y, to, to + n_ff, d, u, u + n_ff, n_ff);
    }
    spread(s, b, act, (sh_block_operands){a->n_ff, .right = s->right[0]});
    gradient_block(s, 1, i, du, s->n_up, 0);
    norm_block(s, b, j->x, j->norm, act);
    spread(s, b, act, (sh_block_operands){a->n_embd, .right = s->right[1]});
}

void sh_blocks_enter_ffn(sh_pass *s, int layer, sh_norm_at norm)
{
    job j = {.s = s, .x = s->layer[layer].x2, .norm = norm, .layer = layer};
    sh_pass_each(s, s->n_block, enter_ffn_block, &j);
    if (sh_pass_arch(s)->bias) sum_vector(s, 0, s->p->layer[layer].up_b, s->n_up);
    sh_pass_tick(s, SH_PART_BLOCKS_BACK);
}

static void enter_attention_block(void *arg, int i, int thread)
{
    const job *j = arg;
    const sh_pass *s = j->s;
    const sh_block *b = &s->block[i];
    float *room = sh_pass_room(s, thread);
    if (!sh_pass_heads_apart(s))
        gradient_block(s, 0, i, s->d + (size_t)b->t * (size_t)s->n_qkv, s->n_qkv, 0);
    norm_block(s, b, j->x, j->norm, room);
    spread(s, b, room, (sh_block_operands){sh_pass_arch(s)->n_embd, .right = s->right[0]});
}

void sh_blocks_enter_attention(sh_pass *s, int layer, sh_norm_at norm)
{
    job j = {.s = s, .x = s->layer[layer].x, .norm = norm, .layer = layer};
    sh_pass_each(s, s->n_block, enter_attention_block, &j);
    if (sh_pass_arch(s)->bias) sum_vector(s, 0, s->p->layer[layer].qkv_b, s->n_qkv);
    sh_pass_tick(s, SH_PART_BLOCKS_BACK);
}
