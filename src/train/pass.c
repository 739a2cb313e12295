#define _GNU_SOURCE
#include "train/pass.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fmath.h"
#include "base/mem.h"
#include "train/attention.h"
#include "train/blocks.h"
#include "train/loss.h"

void sh_pass_each(sh_pass *s, int n, void (*item)(void *arg, int i, int thread), void *arg)
{
    sh_pool_each(s->products->pool, n, item, arg);
}

void sh_pass_tick(sh_pass *s, sh_part part)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
    if (part < SH_N_PART) s->us[part] += now - s->since_us;
    s->since_us = now;
}

void sh_pass_drop(const sh_pass *s, float *x, size_t n, uint32_t site, uint32_t row)
{
    const sh_dropout *d = s->drop;
    sh_drop drop = {
        .key = {(uint32_t)d->seed, (uint32_t)(d->seed >> 32) ^ (uint32_t)(d->step >> 32)},
        .at = {row, site, (uint32_t)d->step},
        .below = (uint32_t)((double)d->rate * 4294967296.0),
        .scale = 1.0f / (1.0f - d->rate),
    };
    s->products->k->train.dropout(x, n, &drop);
}

/* ---- products ---- */

void sh_pass_multiply(sh_pass *s, float *y, size_t at, int n_out, int n_in)
{
    const sh_kdim kd = sh_kdim_whole(n_in);
    const sh_left x = sh_pass_left(s, s->rows, &kd);
    const sh_mat w = sh_pass_right(s, s->weights, n_out, &kd);
    sh_right_rows_all(s->products, &w, s->p->w + at, (size_t)n_in);
    sh_pass_tick(s, SH_PART_PACK);
    sh_product_all(s->products, y, (size_t)n_out, &x, &w, s->n_tok);
    sh_pass_tick(s, SH_PART_FORWARD);
}

typedef struct pack_job {
    const sh_products *products;
    const sh_mat *m;
    const float *w;
    int n_out, n_in;
} pack_job;

enum { PACK_ROWS = 2 * SH_RUN };

/* Some rows of the matrix, which are k's: they are read as they lie in memory. */
static void pack_rows(void *arg, int i, int thread)
{
    const pack_job *j = arg;
    const int at = i * PACK_ROWS, n = j->n_out - at < PACK_ROWS ? j->n_out - at : PACK_ROWS;
    const sh_mat part = sh_pass_right_part(j->m, at, n);
    (void)thread;
    sh_right_cols(j->products, &part, j->w + (size_t)at * (size_t)j->n_in, (size_t)j->n_in, 0,
                  part.n_panel);
}

void sh_pass_pack_cols(sh_pass *s, const sh_mat *m, size_t at, int n_out, int n_in)
{
    pack_job j = {s->products, m, s->p->w + at, n_out, n_in};
    sh_pass_each(s, (n_out + PACK_ROWS - 1) / PACK_ROWS, pack_rows, &j);
    sh_pass_tick(s, SH_PART_PACK);
}

void sh_pass_multiply_back(sh_pass *s, float *dx, size_t at, int n_out, int n_in)
{
    const sh_kdim kd = sh_kdim_whole(n_out);
    const sh_left dy = sh_pass_left(s, s->rows, &kd);
    const sh_mat w = sh_pass_right(s, s->weights, n_in, &kd);
    sh_pass_pack_cols(s, &w, at, n_out, n_in);
    sh_product_all(s->products, dx, (size_t)n_in, &dy, &w, s->n_tok);
    sh_pass_tick(s, SH_PART_BACK);
}

void sh_pass_gradient(sh_pass *s, int i, size_t at, int n_out, int n_in, sh_part part)
{
    const sh_left dy = sh_pass_left(s, s->cols[i], &s->kd);
    const sh_mat x = sh_pass_right(s, s->right[i], n_in, &s->kd);
    sh_product_all(s->products, s->p->g + at, (size_t)n_in, &dy, &x, n_out);
    sh_pass_tick(s, part);
}

/* ---- the pass ---- */

/* Where the batch's slices and blocks lie. */
static void begin(sh_pass *s, const sh_batch *b, const sh_dropout *drop, double loss[8])
{
    const int n_ctx = sh_pass_arch(s)->n_ctx;
    int bound[SH_N_SLICE + 1] = {0};
    memset(loss, 0, 8 * sizeof *loss);
    s->batch = b;
    s->drop = drop && drop->rate > 0 ? drop : NULL;
    s->n_slice = sh_range_n(b->slice);
    for (int i = 0; i <= s->n_slice; i++)
        bound[i] = (int)((long long)b->n_seq * (b->slice.lo + i) / SH_N_SLICE);
    s->seq_lo = bound[0];
    s->n_seq = bound[s->n_slice] - bound[0];
    s->n_tok = s->n_seq * n_ctx;
    assert(s->n_tok <= s->n_tok_max);
    for (int i = 0; i <= s->n_slice; i++) bound[i] *= n_ctx;
    s->kd = sh_kdim_slices(bound, s->n_slice);
    s->n_block = 0;
    for (int i = 0; i < s->n_slice; i++)
        for (int t = s->kd.k[i]; t < s->kd.k[i + 1]; t += SH_BLOCK) {
            int n = s->kd.k[i + 1] - t < SH_BLOCK ? s->kd.k[i + 1] - t : SH_BLOCK;
            s->block[s->n_block++] = (sh_block){t, n, s->kd.kp[i] + t - s->kd.k[i], i};
        }
    sh_pass_tick(s, SH_N_PART);
}

static sh_norm_at attn_norm(const sh_pass *s, int l)
{
    if (l == sh_pass_arch(s)->n_layer) return (sh_norm_at){s->p->out_norm, s->p->out_norm_b};
    return (sh_norm_at){s->p->layer[l].attn_norm, s->p->layer[l].attn_norm_b};
}
static sh_norm_at ffn_norm(const sh_pass *s, int l)
{
    return (sh_norm_at){s->p->layer[l].ffn_norm, s->p->layer[l].ffn_norm_b};
}

/* Up to the operand of the head. */
static void forward(sh_pass *s)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_kdim q = sh_kdim_whole(s->n_q);
    const sh_left ao = sh_pass_left(s, s->rows, &q);
    sh_blocks_embed(s, s->layer[0].x, attn_norm(s, 0));
    for (int l = 0; l < a->n_layer; l++) {
        const sh_layer_at *at = &s->p->layer[l];
        sh_stash *st = &s->layer[l];
        sh_pass_multiply(s, st->qkv, at->qkv, s->n_qkv, a->n_embd);
        sh_attention_forward(s, l);
        if (!sh_pass_heads_apart(s))
            sh_left_rows_all(s->products, &ao, st->ao, (size_t)s->n_q, s->n_tok);
        sh_pass_tick(s, SH_PART_BLOCKS);
        sh_pass_multiply(s, st->x2, at->wo, a->n_embd, s->n_q);
        sh_blocks_join(s, st->x2, st->x, at->wo_b, sh_site_half(l, 0), ffn_norm(s, l));
        sh_pass_multiply(s, st->u, at->up, s->n_up, a->n_embd);
        sh_blocks_activate(s, l);
        sh_pass_multiply(s, st[1].x, at->down, a->n_embd, a->n_ff);
        sh_blocks_join(s, st[1].x, st->x2, at->down_b, sh_site_half(l, 1), attn_norm(s, l + 1));
    }
}

/* One layer; dx (n_tok, n_embd) of its end becomes that of its beginning, but for the norm that it
 * begins with, whose output's gradient is left in s->dxn. */
static void layer_back(sh_pass *s, float *dx, int l)
{
    const sh_arch *a = sh_pass_arch(s);
    const sh_layer_at *at = &s->p->layer[l];
    sh_blocks_leave_ffn(s, dx, l, s->layer[l + 1].x, attn_norm(s, l + 1));
    sh_pass_multiply_back(s, s->d, at->down, a->n_embd, a->n_ff);
    sh_blocks_enter_ffn(s, l, ffn_norm(s, l));
    sh_pass_gradient(s, 0, at->down, a->n_embd, a->n_ff, SH_PART_WEIGHTS);
    sh_pass_multiply_back(s, s->dxn, at->up, s->n_up, a->n_embd);
    sh_pass_gradient(s, 1, at->up, s->n_up, a->n_embd, SH_PART_WEIGHTS);
    sh_blocks_leave_attention(s, dx, l, s->layer[l].x2, ffn_norm(s, l));
    sh_pass_multiply_back(s, s->dxn, at->wo, a->n_embd, s->n_q);
    sh_pass_gradient(s, 0, at->wo, a->n_embd, s->n_q, SH_PART_WEIGHTS);
    sh_attention_back(s, l, s->dxn);
    sh_blocks_enter_attention(s, l, attn_norm(s, l));
    sh_pass_multiply_back(s, s->dxn, at->qkv, s->n_qkv, a->n_embd);
    sh_pass_gradient(s, 0, at->qkv, s->n_qkv, a->n_embd, SH_PART_WEIGHTS);
}

void sh_pass_forward(sh_pass *s, const sh_batch *b, double loss[8])
{
    begin(s, b, NULL, loss);
    if (s->n_tok == 0) return;
    forward(s);
    sh_loss(s, loss, false);
}

void sh_pass_backward(sh_pass *s, const sh_batch *b, const sh_dropout *drop, double loss[8],
                      float *dx)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t n_embd = (size_t)a->n_embd;
    const size_t n_all = (size_t)b->n_seq * (size_t)a->n_ctx * n_embd;
    begin(s, b, drop, loss);
    memset(dx, 0, n_all * sizeof *dx);
    if (s->n_tok == 0) {
        memset(s->p->g, 0, s->p->n_float * sizeof *s->p->g);
        return;
    }
    if (!a->tied) memset(s->p->g + s->p->embd, 0, (size_t)a->n_vocab * n_embd * sizeof(float));
    if (a->learned_pos) memset(s->p->g + s->p->pos, 0, (size_t)a->n_ctx * n_embd * sizeof(float));
    float *mine = dx + (size_t)s->seq_lo * (size_t)a->n_ctx * n_embd;
    forward(s);
    sh_loss(s, loss, true);
    sh_blocks_norm(s, s->layer[a->n_layer].x, attn_norm(s, a->n_layer));
    sh_pass_gradient(s, 0, s->p->head, a->n_vocab, a->n_embd, SH_PART_HEAD);
    for (int l = a->n_layer - 1; l >= 0; l--) layer_back(s, mine, l);
    sh_blocks_leave(s, mine, s->layer[0].x, attn_norm(s, 0));
}

enum { EMBED_COLS = 64 };

typedef struct embed_job {
    sh_pass *s;
    const sh_batch *b;
    const float *dx;
} embed_job;

/* Some columns of all tokens, in the order of the batch. */
static void embed_cols(void *arg, int i, int thread)
{
    const embed_job *j = arg;
    const sh_pass *s = j->s;
    const sh_arch *a = sh_pass_arch(s);
    const size_t n = (size_t)a->n_embd, at = (size_t)i * EMBED_COLS, n_ctx = (size_t)a->n_ctx;
    const size_t width = n - at < EMBED_COLS ? n - at : EMBED_COLS;
    (void)thread;
    for (size_t t = 0; t < (size_t)j->b->n_seq * n_ctx; t++) {
        const float *dx = j->dx + t * n + at;
        size_t id = (size_t)j->b->ids[t / n_ctx * (n_ctx + 1) + t % n_ctx];
        s->products->k->add(s->p->g + s->p->embd + id * n + at, dx, width);
        if (a->learned_pos)
            s->products->k->add(s->p->g + s->p->pos + t % n_ctx * n + at, dx, width);
    }
}

void sh_pass_embed_grad(sh_pass *s, const sh_batch *b, const float *dx)
{
    sh_pass_each(s, (sh_pass_arch(s)->n_embd + EMBED_COLS - 1) / EMBED_COLS, embed_cols,
                 &(embed_job){s, b, dx});
}

double sh_pass_ops(const sh_arch *a, double n_tok)
{
    double q = (double)a->n_head * a->head_dim, kv = (double)a->n_kv_head * a->head_dim;
    double up = (double)a->n_ff * (a->gelu ? 1 : 2);
    double layer = (2 * q + 2 * kv + up + a->n_ff) * a->n_embd;
    double weights = a->n_layer * layer + (double)a->n_vocab * a->n_embd;
    return n_tok * (6 * weights + 6.0 * a->n_layer * q * a->n_ctx);
}

/* ---- opening ---- */

static int max_int(int a, int b)
{
    return a > b ? a : b;
}
static void *carve(const sh_pass *s, size_t *at, size_t n, size_t size)
{
    void *p = s->arena ? s->arena + *at : NULL;
    *at += (n * size + 63) / 64 * 64;
    return p;
}
static size_t left_bytes(const sh_pass *s, int rows, int k)
{
    const sh_kdim kd = sh_kdim_whole(k);
    return (size_t)rows * sh_pass_left(s, NULL, &kd).ld;
}
static size_t right_bytes(const sh_pass *s, int rows, int k)
{
    const sh_kdim kd = sh_kdim_whole(k);
    const sh_mat m = sh_pass_right(s, NULL, rows, &kd);
    return (size_t)m.n_panel * m.panel_bytes;
}
/* Either way round. */
static size_t weight_bytes(const sh_pass *s, int rows, int cols)
{
    size_t a = right_bytes(s, rows, cols), b = right_bytes(s, cols, rows);
    return a > b ? a : b;
}
static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void lay_out_layers(sh_pass *s, size_t *at)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t n = (size_t)s->n_tok_max, f = sizeof(float);
    for (int l = 0; l <= a->n_layer; l++) {
        sh_stash st = {.x = carve(s, at, n * (size_t)a->n_embd, f)};
        if (l < a->n_layer) {
            st.qkv = carve(s, at, n * (size_t)s->n_qkv, f);
            st.ao = carve(s, at, n * (size_t)s->n_q, f);
            st.max = carve(s, at, n * (size_t)a->n_head, f);
            st.sum = carve(s, at, n * (size_t)a->n_head, f);
            st.x2 = carve(s, at, n * (size_t)a->n_embd, f);
            st.u = carve(s, at, n * (size_t)s->n_up, f);
        }
        s->layer[l] = st;
    }
}

/* Returns the bytes of the arena; sets the pointers if it is there. */
static size_t lay_out(sh_pass *s)
{
    const sh_arch *a = sh_pass_arch(s);
    const int n_tok = s->n_tok_max, in = max_int(a->n_ff, max_int(a->n_embd, s->n_q));
    const int out = max_int(s->n_up, max_int(s->n_qkv, a->n_embd));
    const int slots = n_tok + SH_N_SLICE * SH_RUN; /* tokens as k's, with their padding */
    const int chunk = n_tok < SH_CHUNK ? n_tok : SH_CHUNK;
    const size_t f = sizeof(float), n = (size_t)n_tok, n_thread = (size_t)s->n_thread;
    const size_t n_block = (size_t)(n_tok / SH_BLOCK + SH_N_SLICE);
    const size_t half = (size_t)a->n_ctx * (size_t)(a->n_rot / 2);
    size_t at = 0, weights = weight_bytes(s, a->n_vocab, a->n_embd);
    weights = max_size(weights, weight_bytes(s, s->n_qkv, a->n_embd));
    weights = max_size(weights, weight_bytes(s, s->n_q, a->n_embd));
    weights = max_size(weights, weight_bytes(s, s->n_up, a->n_embd));
    weights = max_size(weights, weight_bytes(s, a->n_ff, a->n_embd));
    lay_out_layers(s, &at);
    s->cos = carve(s, &at, half, f);
    s->sin = carve(s, &at, half, f);
    s->minus_sin = carve(s, &at, half, f);
    s->dxn = carve(s, &at, n * (size_t)max_int(a->n_embd, s->n_q), f);
    s->d = carve(s, &at, n * (size_t)max_int(s->n_qkv, a->n_ff), f);
    s->rows = carve(s, &at, left_bytes(s, n_tok, max_int(in, out)), 1);
    s->cols[0] = carve(s, &at, left_bytes(s, max_int(out, a->n_vocab), slots), 1);
    s->cols[1] = carve(s, &at, left_bytes(s, s->n_up, slots), 1);
    s->right[0] = carve(s, &at, right_bytes(s, in, slots), 1);
    s->right[1] = carve(s, &at, right_bytes(s, a->n_embd, slots), 1);
    s->weights = carve(s, &at, weights, 1);
    s->head_back = carve(s, &at, right_bytes(s, a->n_embd, a->n_vocab), 1);
    s->ld_logits = ((size_t)a->n_vocab + 15) / 16 * 16 | 16;
    s->logits = carve(s, &at, (size_t)chunk * s->ld_logits, f);
    s->part = carve(s, &at, (size_t)chunk * (size_t)a->n_embd, f);
    s->dlogits = carve(s, &at, left_bytes(s, chunk, a->n_vocab), 1);
    s->token_loss = carve(s, &at, n, sizeof(double));
    s->n_sum = sh_blocks_sums(s);
    s->sums = carve(s, &at, n_block * s->n_sum, f);
    s->scratch_bytes = max_size(sh_blocks_floats(s) * f, sh_attention_bytes(s));
    s->scratch_bytes = max_size(s->scratch_bytes, sh_loss_floats() * f);
    s->scratch_bytes = (s->scratch_bytes + 4095) / 4096 * 4096;
    s->scratch = carve(s, &at, n_thread, s->scratch_bytes);
    s->block = carve(s, &at, n_block, sizeof *s->block);
    return at;
}

/* The angles of model/forward.c. */
static sh_err make_rotations(sh_pass *s)
{
    const sh_arch *a = sh_pass_arch(s);
    const size_t half = (size_t)a->n_rot / 2;
    for (size_t i = 0; !a->learned_pos && i < half; i++) {
        double freq = sh_exp(-2.0 * (double)i / a->n_rot * sh_ln(a->rope_base)) / a->rope_linear;
        if (a->rope_freqs) freq /= (double)a->rope_freqs[i];
        if (!(freq > 0 && freq < 1e6))
            return sh_fail(SH_EFILE, "the rotary frequency of pair %zu is %g: the file is damaged",
                           i, freq);
        for (size_t pos = 0; pos < (size_t)a->n_ctx; pos++) {
            double sin, cos;
            sh_sincos((double)pos * freq, &sin, &cos);
            s->cos[pos * half + i] = (float)cos;
            s->sin[pos * half + i] = (float)sin;
            s->minus_sin[pos * half + i] = -(float)sin;
        }
    }
    return SH_OK;
}

static sh_err open_arena(sh_pass *s, int n_seq)
{
    const sh_arch *a = sh_pass_arch(s);
    s->arena_bytes = lay_out(s);
    size_t free_bytes = sh_memory_free_bytes();
    if (free_bytes && s->arena_bytes > free_bytes)
        return sh_fail(SH_ENOMEM,
                       "the activations of %d sequences of %d tokens need %.1f GB, and %.1f are "
                       "free; give a smaller batch",
                       n_seq, a->n_ctx, (double)s->arena_bytes * 1e-9, (double)free_bytes * 1e-9);
    SH_TRY(sh_map(&s->arena, s->arena_bytes, "the activations"));
    lay_out(s);
    return make_rotations(s);
}

sh_err sh_pass_open(sh_pass **out, const sh_params *p, const sh_products *products, int n_seq)
{
    const sh_arch *a = &p->arch;
    sh_pass *s;
    sh_err err;
    *out = NULL;
    if (n_seq < 1 || n_seq > (1 << 30) / a->n_ctx)
        return sh_fail(SH_EARG,
                       "%d sequences of %d tokens at once: at least one, and at most 2^30 "
                       "tokens",
                       n_seq, a->n_ctx);
    SH_TRY(sh_alloc(&s, 1, sizeof *s, "the pass"));
    s->p = p;
    s->products = products;
    s->n_tok_max = n_seq * a->n_ctx;
    s->n_thread = sh_pool_n_thread(products->pool);
    s->n_q = a->n_head * a->head_dim;
    s->n_kv = a->n_kv_head * a->head_dim;
    s->n_qkv = s->n_q + 2 * s->n_kv;
    s->n_up = a->gelu ? a->n_ff : 2 * a->n_ff;
    SH_GOTO(sh_alloc(&s->layer, (size_t)a->n_layer + 1, sizeof *s->layer, "the pass"));
    SH_GOTO(open_arena(s, n_seq));
    *out = s;
    return SH_OK;
out:
    sh_pass_close(s);
    return err;
}

void sh_pass_close(sh_pass *s)
{
    if (!s) return;
    sh_unmap(s->arena, s->arena_bytes);
    free(s->layer);
    free(s);
}
