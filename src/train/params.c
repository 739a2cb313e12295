#define _GNU_SOURCE
#include "train/params.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/fmath.h"
#include "base/mem.h"
#include "base/rng.h"

enum { GROUP = 16 }; /* what is one product or vector begins at a multiple of so many floats */

/* ---- what a file holds ---- */

static sh_err copy_freqs(sh_arch *a, const float *factor)
{
    SH_TRY(sh_alloc(&a->rope_freqs, (size_t)a->n_rot / 2, sizeof(float), "the rotary factors"));
    memcpy(a->rope_freqs, factor, (size_t)a->n_rot / 2 * sizeof(float));
    return SH_OK;
}

sh_err sh_arch_of(sh_arch *a, const sh_config *c, const sh_model_file *m)
{
    bool llama = c->family == &sh_family_llama, gpt2 = c->family == &sh_family_gpt2;
    *a = (sh_arch){0};
    if (!llama && !gpt2)
        return sh_fail(SH_EFILE, "%s: family %s runs but does not train; llama and gpt2 do",
                       m->file.path, c->family->name);
    *a = (sh_arch){.family = c->family->name,
                   .n_layer = c->n_layer,
                   .n_head = c->n_head,
                   .n_kv_head = c->n_kv_head,
                   .head_dim = c->head_dim,
                   .n_embd = c->dim[SH_DIM_EMBD],
                   .n_ff = c->dim[SH_DIM_FF],
                   .n_vocab = c->dim[SH_DIM_VOCAB],
                   .n_ctx = c->n_ctx_train,
                   .n_rot = gpt2 ? 0 : c->n_rot,
                   .layer_norm = gpt2,
                   .gelu = gpt2,
                   .learned_pos = gpt2,
                   .bias = gpt2,
                   .tied = !sh_model_file_tensor(m, "output.weight"),
                   .norm_eps = c->norm_eps,
                   .rope_base = c->rope_base,
                   .rope_linear = c->rope_linear};
    const sh_tensor *t = sh_model_file_tensor(m, "rope_freqs.weight");
    if (!t || !a->n_rot) return SH_OK;
    float factor[4096]; /* a head is that long at most, and the file was checked */
    sh_dtypes[t->dtype].to_f32(factor, t->data, (size_t)a->n_rot / 2);
    return copy_freqs(a, factor);
}

void sh_arch_free(sh_arch *a)
{
    free(a->rope_freqs);
    a->rope_freqs = NULL;
}

/* ---- the list ---- */

/* Appends a tensor; returns where it begins. */
__attribute__((format(printf, 5, 6))) static size_t add(sh_params *p, int rows, int cols,
                                                        bool begins, const char *name, ...)
{
    sh_param *t = &p->list[p->n++];
    va_list ap;
    va_start(ap, name);
    vsnprintf(t->name, sizeof t->name, name, ap);
    va_end(ap);
    if (begins) p->n_float = (p->n_float + GROUP - 1) / GROUP * GROUP;
    t->rows = rows;
    t->cols = cols;
    t->decay = cols > 1;
    t->at = p->n_float;
    p->n_float += (size_t)rows * (size_t)cols;
    return t->at;
}

static size_t add_bias(sh_params *p, int rows, const char *name, int layer)
{
    return p->arch.bias ? add(p, rows, 1, true, "blk.%d.%s.bias", layer, name) : 0;
}

static void add_layer(sh_params *p, int l)
{
    const sh_arch *a = &p->arch;
    const int n_q = a->n_head * a->head_dim, n_kv = a->n_kv_head * a->head_dim, n = a->n_embd;
    sh_layer_at *at = &p->layer[l];
    at->attn_norm = add(p, n, 1, true, "blk.%d.attn_norm.weight", l);
    at->attn_norm_b = add_bias(p, n, "attn_norm", l);
    if (a->gelu) { /* gpt2 has them as one tensor */
        at->qkv = add(p, n_q + 2 * n_kv, n, true, "blk.%d.attn_qkv.weight", l);
        at->qkv_b = add_bias(p, n_q + 2 * n_kv, "attn_qkv", l);
    } else {
        at->qkv = add(p, n_q, n, true, "blk.%d.attn_q.weight", l);
        add(p, n_kv, n, false, "blk.%d.attn_k.weight", l);
        add(p, n_kv, n, false, "blk.%d.attn_v.weight", l);
    }
    at->wo = add(p, n, n_q, true, "blk.%d.attn_output.weight", l);
    at->wo_b = add_bias(p, n, "attn_output", l);
    at->ffn_norm = add(p, n, 1, true, "blk.%d.ffn_norm.weight", l);
    at->ffn_norm_b = add_bias(p, n, "ffn_norm", l);
    if (!a->gelu) at->up = add(p, a->n_ff, n, true, "blk.%d.ffn_gate.weight", l);
    size_t up = add(p, a->n_ff, n, a->gelu, "blk.%d.ffn_up.weight", l);
    if (a->gelu) at->up = up;
    at->up_b = add_bias(p, a->n_ff, "ffn_up", l);
    at->down = add(p, n, a->n_ff, true, "blk.%d.ffn_down.weight", l);
    at->down_b = add_bias(p, n, "ffn_down", l);
}

static void make_list(sh_params *p)
{
    const sh_arch *a = &p->arch;
    p->embd = add(p, a->n_vocab, a->n_embd, true, "token_embd.weight");
    if (a->learned_pos) p->pos = add(p, a->n_ctx, a->n_embd, true, "position_embd.weight");
    for (int l = 0; l < a->n_layer; l++) add_layer(p, l);
    p->out_norm = add(p, a->n_embd, 1, true, "output_norm.weight");
    if (a->bias) p->out_norm_b = add(p, a->n_embd, 1, true, "output_norm.bias");
    p->head = a->tied ? p->embd : add(p, a->n_vocab, a->n_embd, true, "output.weight");
    p->n_float = (p->n_float + GROUP - 1) / GROUP * GROUP;
}

static sh_err check_sizes(const sh_arch *a)
{
    if (a->n_layer < 1 || a->n_head < 1 || a->n_kv_head < 1 || a->head_dim < 2 || a->n_embd < 2 ||
        a->n_ff < 2 || a->n_vocab < 1 || a->n_ctx < 1 || a->n_layer > 4096 || a->n_embd > 1 << 20 ||
        a->n_ff > 1 << 22 || a->n_vocab > 1 << 24 || a->n_ctx > 1 << 28)
        return sh_fail(SH_EARG,
                       "a model of %d layers, width %d, %d heads, feed-forward %d, context %d and "
                       "vocabulary %d cannot be: no size may be 0, a width 1, or beyond what "
                       "files hold",
                       a->n_layer, a->n_embd, a->n_head, a->n_ff, a->n_ctx, a->n_vocab);
    if (a->n_head % a->n_kv_head)
        return sh_fail(SH_EARG,
                       "%d heads cannot share %d KV heads: give a number that divides "
                       "them (--kv-heads)",
                       a->n_head, a->n_kv_head);
    if (!a->learned_pos && (a->n_rot % 2 || a->n_rot > a->head_dim))
        return sh_fail(SH_EARG,
                       "rotation of %d of a head's %d values: an even number of them can "
                       "be; give other --width or --heads",
                       a->n_rot, a->head_dim);
    return SH_OK;
}

sh_err sh_params_open(sh_params *p, const sh_arch *a)
{
    sh_err err;
    *p = (sh_params){.arch = *a};
    p->arch.rope_freqs = NULL;
    SH_TRY(check_sizes(a));
    if (a->rope_freqs) SH_TRY(copy_freqs(&p->arch, a->rope_freqs));
    SH_GOTO(sh_alloc(&p->list, 16 * (size_t)a->n_layer + 8, sizeof *p->list, "the parameters"));
    SH_GOTO(sh_alloc(&p->layer, (size_t)a->n_layer, sizeof *p->layer, "the parameters"));
    make_list(p);
    SH_GOTO(sh_map(&p->w, p->n_float * sizeof(float), "the weights"));
    SH_GOTO(sh_map(&p->g, p->n_float * sizeof(float), "the gradients"));
    SH_GOTO(sh_map(&p->m, p->n_float * sizeof(float), "the optimiser"));
    err = sh_map(&p->v, p->n_float * sizeof(float), "the optimiser");
out:
    if (err != SH_OK) sh_params_close(p);
    return err;
}

void sh_params_close(sh_params *p)
{
    sh_unmap(p->w, p->n_float * sizeof(float));
    sh_unmap(p->g, p->n_float * sizeof(float));
    sh_unmap(p->m, p->n_float * sizeof(float));
    sh_unmap(p->v, p->n_float * sizeof(float));
    free(p->list);
    free(p->layer);
    sh_arch_free(&p->arch);
    *p = (sh_params){0};
}

size_t sh_arch_bytes(const sh_arch *a)
{
    size_t n = (size_t)a->n_embd, n_q = (size_t)a->n_head * (size_t)a->head_dim;
    size_t n_kv = (size_t)a->n_kv_head * (size_t)a->head_dim, n_ff = (size_t)a->n_ff;
    size_t layer = n * (2 * n_q + 2 * n_kv + (a->gelu ? 2 : 3) * n_ff + 2);
    size_t ends = n * ((size_t)a->n_vocab * (a->tied ? 1 : 2) + 1);
    if (a->bias) layer += 4 * n + n_q + 2 * n_kv + n_ff;
    if (a->bias) ends += n;
    if (a->learned_pos) ends += n * (size_t)a->n_ctx;
    return (ends + (size_t)a->n_layer * layer) * 4 * sizeof(float);
}

/* ---- values ---- */

/* FNV-1a: which stream of the seed a tensor draws from. */
static uint64_t hash_name(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return h;
}

/* Two standard normal numbers from 64 bits: Box & Muller 1958. */
static void normal2(float out[2], uint32_t a, uint32_t b)
{
    double s, c, r = sqrt(-2 * sh_ln((a + 0.5) * 0x1p-32));
    sh_sincos(6.283185307179586 * (b * 0x1p-32), &s, &c);
    out[0] = (float)(r * c);
    out[1] = (float)(r * s);
}

/* x (n) = normal(0, std). */
static void draw_normal(float *x, size_t n, float std, uint64_t seed, uint64_t stream)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (size_t i = 0; i < n; i += 4) {
        const uint32_t counter[4] = {(uint32_t)(i / 4), (uint32_t)(i / 4 >> 32), (uint32_t)stream,
                                     (uint32_t)(stream >> 32)};
        uint32_t r[4];
        float v[4];
        sh_philox(r, counter, key);
        normal2(v, r[0], r[1]);
        normal2(v + 2, r[2], r[3]);
        for (size_t j = 0; j < 4 && i + j < n; j++) x[i + j] = std * v[j];
    }
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

void sh_params_draw(sh_params *p, uint64_t seed)
{
    const float embd = 0.02f; /* of embeddings, and so of the first logits */
    uint64_t state = sh_cpu_enter();
    float std = 0.02f * sqrtf(768.0f / (float)p->arch.n_embd);
    float back = std / sqrtf(2.0f * (float)p->arch.n_layer);
    for (int i = 0; i < p->n; i++) {
        const sh_param *t = &p->list[i];
        size_t n = (size_t)t->rows * (size_t)t->cols;
        float *w = p->w + t->at;
        bool goes_back =
            ends_with(t->name, "attn_output.weight") || ends_with(t->name, "ffn_down.weight");
        if (t->cols > 1)
            draw_normal(w, n,
                        strncmp(t->name, "blk.", 4) != 0 ? embd
                        : goes_back                      ? back
                                                         : std,
                        seed, hash_name(t->name));
        else
            for (size_t j = 0; j < n; j++) w[j] = ends_with(t->name, "weight") ? 1.0f : 0.0f;
    }
    sh_cpu_leave(state);
}

sh_err sh_params_load(sh_params *p, const sh_model_file *m)
{
    for (int i = 0; i < p->n; i++) {
        const sh_param *t = &p->list[i];
        const sh_tensor *src = sh_model_file_tensor(m, t->name);
        if (!src && strcmp(t->name, "output.weight") == 0) /* untied from now on */
            src = sh_model_file_tensor(m, "token_embd.weight");
        if (!src) return sh_fail(SH_EFILE, "%s: tensor %s is missing", m->file.path, t->name);
        int64_t rows = t->cols > 1 ? src->dim[1] : src->dim[0];
        int64_t cols = t->cols > 1 ? src->dim[0] : 1;
        bool first = strcmp(t->name, "position_embd.weight") == 0; /* its first rows will do */
        if (cols != t->cols || (first ? rows < t->rows : rows != t->rows))
            return sh_fail(SH_EFILE,
                           "%s: tensor %s has shape (%" PRId64 ", %" PRId64 "); (%d, %d) is wanted",
                           m->file.path, t->name, rows, cols, t->rows, t->cols);
        sh_dtypes[src->dtype].to_f32(p->w + t->at, src->data, (size_t)t->rows * (size_t)t->cols);
    }
    return SH_OK;
}
