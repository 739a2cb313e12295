#include "train/loss.h"

#include "base/fmath.h"

enum { WORDS = 2048 }; /* of the vocabulary, that are summed together */

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

/* The loss of one token; its logits become their gradient. */
static void token(const chunk *c, int t)
{
    const sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const sh_kernels *k = s->products->k;
    const float share = 1.0f / ((float)s->batch->n_seq * (float)a->n_ctx);
    float *x = s->logits + (size_t)(t - c->t) * s->ld_logits, sum;
    const int id = target(s, t);
    const float wanted = x[id], max = k->softmax_part(x, a->n_vocab, &sum);
    s->token_loss[t] =
        sum == sum ? sh_ln((double)sum) + ((double)max - (double)wanted) : (double)sum;
    if (!c->back) return;
    k->train.scale(x, share / sum, (size_t)a->n_vocab);
    x[id] -= share;
}

static void loss_block(void *arg, int i, int thread)
{
    const chunk *c = arg;
    const sh_pass *s = c->s;
    const sh_arch *a = sh_pass_arch(s);
    const int first = i * SH_BLOCK, n = c->n - first < SH_BLOCK ? c->n - first : SH_BLOCK;
    const float *x = s->logits + (size_t)first * s->ld_logits;
    const sh_kdim kd = sh_kdim_whole(a->n_vocab);
    const sh_left rows = sh_pass_left(s, s->dlogits, &kd);
    (void)thread;
    for (int r = first; r < first + n; r++) { /* while the row is in the second-level cache */
        token(c, c->t + r);
        if (c->back) sh_left_rows(s->products, &rows, s->logits, s->ld_logits, r, r + 1);
    }
    if (!c->back) return;
    const sh_left cols = sh_pass_left(s, s->cols[0], &s->kd);
    const sh_left part = sh_pass_left_part(s, &cols, 0, c->kp + first, n);
    sh_left_cols(s->products, &part, x, s->ld_logits, 0, a->n_vocab);
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
