#define _GNU_SOURCE
#include "train/setup.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"

enum { PATH = 4096 };

/* ---- options ---- */

sh_err sh_train_check(const sh_train_options *o)
{
    const sh_settings *s = &o->settings;
    const sh_train_shape *t = &o->shape;
    if (!o->ckpt || !*o->ckpt)
        return sh_fail(SH_EARG, "give the folder of the checkpoints with --ckpt DIR");
    if (!o->dataset || !*o->dataset)
        return sh_fail(SH_EARG, "give the folder of the text with --dataset DIR, as 'shoal "
                                "prepare' makes it");
    if (o->n_rank != 1 && o->n_rank != 2 && o->n_rank != 4 && o->n_rank != 8)
        return sh_fail(SH_EARG, "%d ranks cannot share a batch: give 1, 2, 4 or 8 (--ranks)",
                       o->n_rank);
    if (t->family && strcmp(t->family, "llama") != 0 && strcmp(t->family, "gpt2") != 0)
        return sh_fail(SH_EARG, "family '%s' does not train; the families that do are: llama, gpt2",
                       t->family);
    if (t->tied && t->untied) return sh_fail(SH_EARG, "give --tied or --untied, not both");
    if (s->batch_size < 1 || s->n_acc < 1 || s->max_iters < 1 || s->ckpt_interval < 1 ||
        s->log_interval < 1 || s->eval_iters < 1 || s->warmup < 0 ||
        (s->dtype != SH_BF16 && s->dtype != SH_F32) || !(s->dropout >= 0 && s->dropout < 1))
        return sh_fail(SH_EARG, "%s: the checkpoint has settings that cannot be", o->ckpt);
    if ((int64_t)s->batch_size * s->n_acc > INT_MAX)
        return sh_fail(SH_EARG, "%d times %d sequences an iteration are too many", s->n_acc,
                       s->batch_size);
    if (s->decay_iters && s->decay_iters < s->warmup)
        return sh_fail(SH_EARG,
                       "a decay that ends at iteration %d, within the %d of the warm-up; "
                       "give a larger --decay-iters",
                       s->decay_iters, s->warmup);
    if (s->min_lr > s->lr)
        return sh_fail(SH_EARG, "--min-lr %g is more than --lr %g", (double)s->min_lr,
                       (double)s->lr);
    return SH_OK;
}

static const char blob_magic[8] = "SHTRAIN1";

static void put_text(sh_buf *b, const char *text)
{
    sh_put_u8(b, text != NULL);
    if (text) sh_put_bytes(b, text, strlen(text) + 1);
}

static const char *get_text(sh_cursor *c)
{
    if (!sh_get_u8(c)) return NULL;
    const void *end = sh_cursor_left(c) ? memchr(c->p, 0, sh_cursor_left(c)) : NULL;
    size_t n = end ? (size_t)((const uint8_t *)end - c->p) + 1 : SIZE_MAX;
    return (const char *)sh_get_bytes(c, n); /* without an end: bad */
}

void sh_train_encode(const sh_train_options *o, sh_buf *b)
{
    const sh_train_shape *t = &o->shape;
    const int v[] = {o->resume, t->n_layer, t->n_embd, t->n_head, t->n_kv_head, t->n_ff,
                     t->n_ctx,  t->tied,    t->untied, o->n_rank, o->n_thread,  o->n_cpu};
    sh_put_bytes(b, blob_magic, sizeof blob_magic);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) sh_put_u32(b, (uint32_t)v[i]);
    for (int i = 0; i < o->n_cpu; i++) sh_put_u32(b, (uint32_t)o->cpu[i]);
    sh_settings_put(&o->settings, b);
    put_text(b, o->ckpt);
    put_text(b, o->dataset);
    put_text(b, o->init);
    put_text(b, t->family);
    put_text(b, t->name);
}

bool sh_train_is(const void *blob, size_t n)
{
    return n >= sizeof blob_magic && memcmp(blob, blob_magic, sizeof blob_magic) == 0;
}

sh_err sh_train_decode(sh_train_options *o, const void *blob, size_t n)
{
    sh_cursor c = sh_cursor_of(blob, n);
    sh_train_shape *t = &o->shape;
    *o = (sh_train_options){0};
    sh_get_bytes(&c, sizeof blob_magic);
    o->resume = sh_get_u32(&c) != 0;
    int *const size[] = {&t->n_layer, &t->n_embd, &t->n_head, &t->n_kv_head, &t->n_ff, &t->n_ctx};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) *size[i] = (int)sh_get_u32(&c);
    t->tied = sh_get_u32(&c) != 0;
    t->untied = sh_get_u32(&c) != 0;
    o->n_rank = (int)sh_get_u32(&c);
    o->n_thread = (int)sh_get_u32(&c);
    o->n_cpu = (int)sh_get_u32(&c);
    for (int i = 0; i < o->n_cpu && i < SH_MAX_TRAIN_CPU; i++) o->cpu[i] = (int)sh_get_u32(&c);
    sh_settings_get(&o->settings, &c);
    o->ckpt = get_text(&c);
    o->dataset = get_text(&c);
    o->init = get_text(&c);
    t->family = get_text(&c);
    t->name = get_text(&c);
    if (c.bad || !sh_train_is(blob, n) || o->n_cpu < 0 || o->n_cpu > SH_MAX_TRAIN_CPU)
        return sh_fail(SH_EARG, "a rank's options are malformed");
    return SH_OK;
}

/* ---- the architecture ---- */

/* The sizes of a known shape. */
static sh_err shape_arch(sh_arch *a, const char *name)
{
    char path[96];
    sh_model_file *m = NULL;
    sh_config c;
    sh_err err;
    snprintf(path, sizeof path, "shape:%.60s:q8_0", name);
    SH_GOTO(sh_model_file_open(&m, path));
    SH_GOTO(sh_config_read(&c, m));
    err = sh_arch_of(a, &c, m);
out:
    sh_model_file_close(m);
    return err;
}

static sh_err plain_arch(sh_arch *a, const sh_train_shape *t)
{
    bool gpt2 = !t->family || strcmp(t->family, "gpt2") == 0;
    *a = (sh_arch){.family = gpt2 ? "gpt2" : "llama",
                   .n_layer = t->n_layer ? t->n_layer : 4,
                   .n_head = t->n_head ? t->n_head : 4,
                   .n_embd = t->n_embd ? t->n_embd : 128,
                   .n_ctx = t->n_ctx ? t->n_ctx : 64,
                   .layer_norm = gpt2,
                   .gelu = gpt2,
                   .learned_pos = gpt2,
                   .bias = gpt2,
                   .tied = true,
                   .norm_eps = 1e-5f,
                   .rope_base = 10000,
                   .rope_linear = 1};
    if (a->n_embd % a->n_head)
        return sh_fail(SH_EARG, "a width of %d is no multiple of %d heads (--width, --heads)",
                       a->n_embd, a->n_head);
    if (gpt2 && t->n_kv_head && t->n_kv_head != a->n_head)
        return sh_fail(SH_EARG, "family gpt2 has as many KV heads as heads: leave out --kv-heads, "
                                "or give --family llama");
    a->head_dim = a->n_embd / a->n_head;
    a->n_rot = gpt2 ? 0 : a->head_dim;
    a->n_kv_head = t->n_kv_head ? t->n_kv_head : a->n_head;
    a->n_ff = t->n_ff ? t->n_ff : gpt2 ? 4 * a->n_embd : (8 * a->n_embd / 3 + 31) / 32 * 32;
    return SH_OK;
}

/* What was said about sizes must be what the file or known shape has; `what` names it. */
static sh_err check_said(const sh_arch *a, const sh_train_shape *t, const char *what, bool shorter)
{
    const struct {
        const char *flag;
        int said, is;
    } size[] = {{"--layers", t->n_layer, a->n_layer},       {"--width", t->n_embd, a->n_embd},
                {"--heads", t->n_head, a->n_head},          {"--ff", t->n_ff, a->n_ff},
                {"--kv-heads", t->n_kv_head, a->n_kv_head}, {"--context", t->n_ctx, a->n_ctx}};
    if (t->family && strcmp(t->family, a->family) != 0)
        return sh_fail(SH_EARG, "%s is of family %s, but --family says %s", what, a->family,
                       t->family);
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        if (!size[i].said || size[i].said == size[i].is) continue;
        if (size[i].said < size[i].is && shorter && i == 5) continue; /* a context may be less */
        return sh_fail(SH_EARG, "%s has another shape: %s is %d there, not %d", what, size[i].flag,
                       size[i].is, size[i].said);
    }
    return SH_OK;
}

static sh_err file_arch(sh_arch *a, const sh_model_file *m, const sh_train_options *o)
{
    const sh_train_shape *t = &o->shape;
    sh_arch named = {0};
    sh_train_shape said = *t;
    sh_config c;
    SH_TRY(sh_config_read(&c, m));
    SH_TRY(sh_arch_of(a, &c, m));
    if (t->name) { /* the shape's sizes were said */
        sh_err err = shape_arch(&named, t->name);
        sh_arch_free(&named);
        SH_TRY(err);
        said = (sh_train_shape){.family = named.family,
                                .n_layer = named.n_layer,
                                .n_embd = named.n_embd,
                                .n_head = named.n_head,
                                .n_kv_head = named.n_kv_head,
                                .n_ff = named.n_ff,
                                .n_ctx = t->n_ctx};
    }
    SH_TRY(check_said(a, &said, m->file.path, !o->resume));
    if (t->tied > a->tied || (o->resume && t->untied && a->tied))
        return sh_fail(SH_EARG, "%s has another shape: its head is %s the embedding", m->file.path,
                       a->tied ? "tied to" : "apart from");
    if (t->untied) a->tied = false;
    if (t->n_ctx) a->n_ctx = t->n_ctx;
    return SH_OK;
}

static sh_err new_arch(sh_arch *a, const sh_train_shape *t, int n_vocab)
{
    if (t->name) {
        SH_TRY(shape_arch(a, t->name));
        SH_TRY(check_said(a, t, t->name, true));
        if (t->n_ctx) a->n_ctx = t->n_ctx;
    } else {
        SH_TRY(plain_arch(a, t));
    }
    if (t->tied) a->tied = true;
    if (t->untied) a->tied = false;
    a->n_vocab = n_vocab;
    return SH_OK;
}

/* ---- files ---- */

static sh_err tokens_of(const sh_model_file *m, const sh_meta **out)
{
    SH_TRY(sh_meta_array(m, "tokenizer.ggml.tokens", SH_META_STR, out));
    if (!*out || (*out)->n < 1 || (*out)->n > 1 << 24)
        return sh_fail(SH_EFILE, "%s: there is no vocabulary in the file", m->file.path);
    return SH_OK;
}

static sh_err open_dataset(sh_start *s, const char *dir)
{
    char path[PATH];
    struct stat st;
    const sh_meta *tokens;
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode))
        return sh_fail(SH_EFILE, "%s: no folder of that name; 'shoal prepare TEXT -o %s' makes one",
                       dir, dir);
    snprintf(path, sizeof path, "%s/tokenizer.gguf", dir);
    SH_TRY(sh_model_file_open(&s->tokenizer, path));
    SH_TRY(tokens_of(s->tokenizer, &tokens));
    s->n_vocab = (int)tokens->n;
    return SH_OK;
}

static sh_err check_vocabulary(const sh_start *s, const sh_model_file *m)
{
    const sh_meta *a, *b;
    SH_TRY(tokens_of(s->tokenizer, &a));
    SH_TRY(tokens_of(m, &b));
    if (a->n == b->n && a->bytes.n == b->bytes.n && memcmp(a->bytes.p, b->bytes.p, a->bytes.n) == 0)
        return SH_OK;
    return sh_fail(SH_EFILE,
                   "%s has another vocabulary (%llu tokens) than the text's %s (%llu); prepare the "
                   "text with --tokenizer %s",
                   m->file.path, (unsigned long long)b->n, s->tokenizer->file.path,
                   (unsigned long long)a->n, m->file.path);
}

/* Weights, gradients, moments, and the sum of micro-batches, of all ranks; activations come on top.
 */
static sh_err check_memory(const sh_arch *a, const sh_train_options *o)
{
    const double gib = 1 << 30;
    size_t need = sh_arch_bytes(a), have = sh_memory_free_bytes();
    if (o->settings.n_acc > 1) need += need / 4;
    if (have == 0 || need <= have / (size_t)o->n_here) return SH_OK;
    return sh_fail(
        SH_ENOMEM,
        "training this model needs %.2f GiB of memory (16 bytes for each of %.1f million "
        "weights%s, %d ranks) and %.2f GiB are free; give a smaller shape or fewer ranks",
        (double)need * o->n_here / gib, (double)sh_arch_bytes(a) / 16e6,
        o->settings.n_acc > 1 ? ", 4 for accumulation" : "", o->n_here, (double)have / gib);
}

sh_err sh_start_open(sh_start *s, const sh_train_options *o)
{
    sh_err err;
    *s = (sh_start){0};
    SH_GOTO(open_dataset(s, o->dataset));
    if (o->resume) {
        SH_GOTO(sh_checkpoint_find(&s->checkpoint, o->ckpt));
        SH_GOTO(check_vocabulary(s, s->checkpoint.model));
        SH_GOTO(file_arch(&s->arch, s->checkpoint.model, o));
    } else if (sh_checkpoint_is_there(o->ckpt)) {
        err = sh_fail(SH_EARG,
                      "%s holds a checkpoint: go on from it with --resume, or give another --ckpt "
                      "folder",
                      o->ckpt);
        goto out;
    } else if (o->init) {
        SH_GOTO(sh_model_file_open(&s->init, o->init));
        SH_GOTO(check_vocabulary(s, s->init));
        SH_GOTO(file_arch(&s->arch, s->init, o));
    } else {
        SH_GOTO(new_arch(&s->arch, &o->shape, s->n_vocab));
    }
    err = check_memory(&s->arch, o);
out:
    if (err != SH_OK) sh_start_close(s);
    return err;
}

sh_err sh_start_params(const sh_start *s, const sh_train_options *o, sh_params *p, sh_progress *at)
{
    *at = (sh_progress){.best_val = INFINITY};
    SH_TRY(sh_params_open(p, &s->arch));
    if (s->checkpoint.model) {
        *at = s->checkpoint.at;
        return sh_checkpoint_load(&s->checkpoint, p);
    }
    if (s->init) return sh_params_load(p, s->init);
    sh_params_draw(p, (uint64_t)o->settings.seed);
    return SH_OK;
}

void sh_start_close(sh_start *s)
{
    sh_model_file_close(s->tokenizer);
    sh_model_file_close(s->init);
    sh_checkpoint_close(&s->checkpoint);
    sh_arch_free(&s->arch);
    *s = (sh_start){0};
}
