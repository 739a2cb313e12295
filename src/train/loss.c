#include "train/loss.h"

#include "base/fmath.h"

enum { WORDS = 2048 }; /* of the vocabulary, that are summed together */
/* Columns of logits whose gradients become operands together; a row of them is an odd number of
 * cache lines. */
enum { TILE = 1024, LD_TILE = TILE + SH_LANES };

size_t sh_loss_floats(void)
{
    return SH_BLOCK * LD_TILE;
}

/* The tokens [t, t + n) of a slice; kp: where they stand among k's. */
typedef struct chunk {
    sh_pass *s;
    int t, n, kp;
    bool back;
} chunk;

static int target(const sh_pass *s, int t)
{
    const int n_ctx = sh_pass_arch(s)->n_ctx;
    return s->batch
        ->ids[(size_t)(s->seq_lo + t / n_ctx) * (size_t)(n_ctx + 1) + (size_t)(t % n_ctx) + 1];
}

/* The gradients of a block's logits, from column c on: softmax less the target, as operands. */
static void gradient_tile(const chunk *c, float *room, const float *max, const float *sum,
                          int first, int n, int col)
{
    const sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_dtype type = s->products->dtype;
    const int n_col = a->n_vocab - col < TILE ? a->n_vocab - col : TILE;
    const float share = 1.0f / ((float)s->batch->n_seq * (float)a->n_ctx);
    const sh_kdim vocab = sh_kdim_whole(a->n_vocab);
    const sh_left rows = sh_pass_left(s, s->dlogits, &vocab);
    const sh_left cols = sh_pass_left(s, s->cols[0], &s->kd);
    const sh_left to_rows = sh_pass_left_part(s, &rows, first, col, n_col);
    const sh_left to_cols = sh_pass_left_part(s, &cols, col, c->kp + first, n);
    for (int r = 0; r < n; r++) {
        const float *x = s->logits + (size_t)(first + r) * s->ld_logits + col;
        float *y = room + (size_t)r * LD_TILE;
        const int id = target(s, c->t + first + r) - col;
        s->products->k->train.softmax(y, x, (size_t)n_col, max[r], share / sum[r]);
        if (id >= 0 && id < n_col) y[id] -= share;
    }
    s->products->k->spread[type](&(sh_spread){.rows = to_rows.data,
                                              .cols = to_cols.data,
                                              .ld_rows = to_rows.ld,
                                              .ld_cols = to_cols.ld,
                                              .far = rows.ld * (size_t)c->n > SH_FAR_BYTES},
                                 room, LD_TILE, n, n_col);
}

static void loss_block(void *arg, int i, int thread)
{
    const chunk *c = arg;
    const sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const int first = i * SH_BLOCK, n = c->n - first < SH_BLOCK ? c->n - first : SH_BLOCK;
    float max[SH_BLOCK], sum[SH_BLOCK];
    for (int r = 0; r < n; r++) {
        const float *x = s->logits + (size_t)(first + r) * s->ld_logits;
        const int t = c->t + first + r;
        max[r] = s->products->k->train.softmax_sum(x, (size_t)a->n_vocab, &sum[r]);
        s->token_loss[t] = sum[r] == sum[r]
                               ? sh_ln((double)sum[r]) + ((double)max[r] - (double)x[target(s, t)])
                               : (double)sum[r];
    }
    for (int col = 0; c->back && col < a->n_vocab; col += TILE)
        gradient_tile(c, sh_pass_room(s, thread), max, sum, first, n, col);
}

static void add_block(void *arg, int i, int thread)
{
    const chunk *c = arg;
    const size_t n = (size_t)sh_pass_arch(c->s)->n_embd, at = (size_t)i * SH_BLOCK * n;
    const int n_tok = c->n - i * SH_BLOCK < SH_BLOCK ? c->n - i * SH_BLOCK : SH_BLOCK;
    (void)thread;
    c->s->products->k->add(c->s->dxn + (size_t)c->t * n + at, c->s->part + at, (size_t)n_tok * n);
}

/* The chunk's dxn = dlogits times the head's columns. The sums over the vocabulary are made in runs
 * of some words, whose columns stay in the second-level cache, and added in ascending order. */
static void multiply_back(const chunk *c, const sh_mat *head_back)
{
    sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_kdim vocab = sh_kdim_whole(a->n_vocab);
    const sh_left d = sh_pass_left(s, s->dlogits, &vocab);
    float *dxn = s->dxn + (size_t)c->t * (size_t)a->n_embd;
    for (int at = 0; at < a->n_vocab; at += WORDS) {
        const int n = a->n_vocab - at < WORDS ? a->n_vocab - at : WORDS;
        const sh_left left = sh_pass_left_part(s, &d, 0, at, n);
        const sh_mat right = sh_pass_right_part(head_back, at, n);
        sh_product_all(s->products, at ? s->part : dxn, (size_t)a->n_embd, &left, &right, c->n);
        if (at) sh_pass_each(s, (c->n + SH_BLOCK - 1) / SH_BLOCK, add_block, (void *)c);
    }
}

static void one_chunk(const chunk *c, const sh_mat *head, const sh_mat *head_back)
{
    sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_kdim embd = sh_kdim_whole(a->n_embd);
    const sh_left all = sh_pass_left(s, s->rows, &embd);
    const sh_left x = sh_pass_left_part(s, &all, c->t, 0, a->n_embd);
    sh_product_all(s->products, s->logits, s->ld_logits, &x, head, c->n);
    sh_pass_tick(s, SH_PART_HEAD);
    sh_pass_each(s, (c->n + SH_BLOCK - 1) / SH_BLOCK, loss_block, (void *)c);
    sh_pass_tick(s, SH_PART_LOSS);
    if (!c->back) return;
    multiply_back(c, head_back);
    sh_pass_tick(s, SH_PART_HEAD);
}

void sh_loss(sh_pass *s, double loss[8], bool back)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_kdim embd = sh_kdim_whole(a->n_embd), vocab = sh_kdim_whole(a->n_vocab);
    const sh_mat head = sh_pass_right(s, s->weights, a->n_vocab, &embd);
    const sh_mat head_back = sh_pass_right(s, s->head_back, a->n_embd, &vocab);
    const float *w = s->p->w + s->p->head;
    sh_right_rows_all(s->products, &head, w, (size_t)a->n_embd);
    sh_pass_tick(s, SH_PART_PACK);
    if (back) sh_pass_pack_cols(s, &head_back, s->p->head, a->n_vocab, a->n_embd);
    for (int i = 0; i < s->n_slice; i++) {
        for (int t = s->kd.k[i], n; t < s->kd.k[i + 1]; t += n) {
            n = s->kd.k[i + 1] - t < SH_CHUNK ? s->kd.k[i + 1] - t : SH_CHUNK;
            chunk c = {s, t, n, s->kd.kp[i] + t - s->kd.k[i], back};
            one_chunk(&c, &head, &head_back);
        }
        double *sum = &loss[s->batch->slice.lo + i];
        for (int t = s->kd.k[i]; t < s->kd.k[i + 1]; t++) *sum += s->token_loss[t];
    }
}
