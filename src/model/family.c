/* The list of families, and the checking of a file against its family's rows. */
#include "model/family.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const sh_family *const sh_families[] = {&sh_family_llama, &sh_family_gpt2, &sh_family_gptj, NULL};

static sh_err find_family(const sh_family **out, const sh_model_file *m)
{
    sh_str arch;
    char known[256] = "";
    SH_TRY(sh_meta_need_str(m, "general.architecture", &arch));
    for (int i = 0; sh_families[i]; i++) {
        const char *name = sh_families[i]->name;
        if (strlen(name) == arch.n && memcmp(name, arch.p, arch.n) == 0) {
            *out = sh_families[i];
            return SH_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", name);
    }
    int n = 0; /* only what can be shown */
    while (n < 64 && (size_t)n < arch.n && arch.p[n] > ' ' && arch.p[n] < 127) n++;
    return sh_fail(SH_EFILE, "%s: family '%.*s' is not known; the known ones are: %s", m->file.path,
                   n, arch.p, known);
}

static void row_name(char *out, size_t cap, const char *pattern, int layer)
{
    const char *d = strstr(pattern, "%d");
    if (!d)
        snprintf(out, cap, "%s", pattern);
    else
        snprintf(out, cap, "%.*s%d%s", (int)(d - pattern), pattern, layer, d + 2);
}

const sh_tensor *sh_family_tensor(const sh_model_file *m, const sh_tensor_row *row, int layer)
{
    char name[128];
    row_name(name, sizeof name, row->gguf, layer);
    const sh_tensor *t = sh_model_file_tensor(m, name);
    return t || !row->instead ? t : sh_model_file_tensor(m, row->instead);
}

const sh_tensor_row *sh_family_row(const sh_config *c, const char *name, int *layer)
{
    char want[128];
    *layer = -1;
    for (const sh_tensor_row *r = c->family->ends; r->gguf; r++)
        if (strcmp(r->gguf, name) == 0) return r;
    for (const sh_tensor_row *r = c->family->layer; r->gguf; r++) {
        size_t n = (size_t)(strstr(r->gguf, "%d") - r->gguf);
        if (strncmp(r->gguf, name, n) != 0) continue;
        long l = strtol(name + n, NULL, 10);
        if (l < 0 || l >= c->n_layer) continue;
        row_name(want, sizeof want, r->gguf, (int)l);
        if (strcmp(want, name) != 0) continue;
        *layer = (int)l;
        return r;
    }
    return NULL;
}

sh_range sh_family_part(const sh_config *c, const sh_tensor_row *row)
{
    int lo = 0;
    for (int i = row->part; i > 0; i--) lo += c->dim[(row - i)->rows];
    return (sh_range){lo, lo + c->dim[row->rows]};
}

size_t sh_family_bytes(const sh_config *c, const sh_tensor_row *row, const sh_tensor *t)
{
    size_t n = (size_t)c->dim[row->rows];
    return row->cols == SH_DIM_ONE ? sh_dtype_bytes(t->dtype, n)
                                   : n * sh_dtype_bytes(t->dtype, (size_t)t->dim[0]);
}

bool sh_family_is_fine(const char *name)
{
    for (int i = 0; sh_families[i]; i++)
        for (const sh_tensor_row *r = sh_families[i]->ends; r->gguf; r++)
            if (r->fine && strcmp(r->gguf, name) == 0) return true;
    return false;
}

static sh_err check_row(const sh_config *c, const sh_model_file *m, const sh_tensor_row *r,
                        int layer)
{
    char name[128];
    row_name(name, sizeof name, r->gguf, layer);
    const sh_tensor *t = sh_family_tensor(m, r, layer);
    if (!t && r->optional) return SH_OK;
    if (!t) return sh_fail(SH_EFILE, "%s: tensor %s is missing", m->file.path, name);
    const sh_tensor_row *last = r; /* of the parts of one tensor */
    while ((last + 1)->part > r->part) last++;
    bool vec = r->cols == SH_DIM_ONE;
    int64_t rows = sh_family_part(c, last).hi, cols = c->dim[r->cols];
    bool ok = vec ? t->n_dim == 1 && t->dim[0] == rows
                  : t->n_dim == 2 && t->dim[0] == cols && t->dim[1] == rows;
    if (!ok)
        return sh_fail(SH_EFILE,
                       "%s: tensor %s has shape (%" PRId64 ", %" PRId64 "); the model's sizes "
                       "ask for (%" PRId64 ", %" PRId64 ")",
                       m->file.path, name, t->dim[1], t->dim[0], vec ? 1 : rows, vec ? rows : cols);
    if (vec && sh_dtypes[t->dtype].block != 1)
        return sh_fail(SH_EFILE, "%s: tensor %s is a vector in %s; vectors are f32, f16 or bf16",
                       m->file.path, name, sh_dtypes[t->dtype].name);
    return SH_OK;
}

/* An integer under "<family>.<what>" that must lie in [1, max]. */
static sh_err need(const sh_config *c, const sh_model_file *m, const char *what, uint32_t max,
                   int *out)
{
    char key[96];
    uint32_t v = 0;
    snprintf(key, sizeof key, "%s.%s", c->family->name, what);
    SH_TRY(sh_meta_need_u32(m, key, &v));
    if (v < 1 || v > max)
        return sh_fail(SH_EFILE, "%s: %s is %u; 1 to %u can be", m->file.path, key, v, max);
    *out = (int)v;
    return SH_OK;
}

/* The same, where *out stands if the key is missing, and every value is taken. */
static sh_err may(const sh_config *c, const sh_model_file *m, const char *what, uint32_t *out)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->family->name, what);
    return sh_meta_u32(m, key, out);
}

/* What all families have. */
static sh_err read_sizes(sh_config *c, const sh_model_file *m)
{
    SH_TRY(need(c, m, "block_count", 4096, &c->n_layer));
    SH_TRY(need(c, m, "context_length", 1u << 28, &c->n_ctx_train));
    SH_TRY(need(c, m, "embedding_length", 1u << 20, &c->dim[SH_DIM_EMBD]));
    SH_TRY(need(c, m, "feed_forward_length", 1u << 22, &c->dim[SH_DIM_FF]));
    SH_TRY(need(c, m, "attention.head_count", 1u << 12, &c->n_head));
    uint32_t n_head = (uint32_t)c->n_head, kv = n_head;
    SH_TRY(may(c, m, "attention.head_count_kv", &kv));
    if (kv < 1 || kv > n_head || n_head % kv)
        return sh_fail(SH_EFILE, "%s: %d heads cannot share %u KV heads", m->file.path, c->n_head,
                       kv);
    c->n_kv_head = (int)kv;
    uint32_t key = (uint32_t)c->dim[SH_DIM_EMBD] / n_head;
    SH_TRY(may(c, m, "attention.key_length", &key));
    uint32_t value = key;
    SH_TRY(may(c, m, "attention.value_length", &value));
    if (key < 1 || key > 4096 || key != value)
        return sh_fail(SH_EFILE, "%s: heads of %u keys and %u values; 1 to 4096, alike, can be",
                       m->file.path, key, value);
    c->head_dim = (int)key;
    c->n_ctx_max = 1 << 28;
    return SH_OK;
}

sh_err sh_config_eps(sh_config *c, const sh_model_file *m, const char *what)
{
    char key[96];
    c->norm_eps = 1e-5f;
    snprintf(key, sizeof key, "%s.%s", c->family->name, what);
    SH_TRY(sh_meta_f32(m, key, &c->norm_eps));
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return sh_fail(SH_EFILE, "%s: a norm epsilon of %g", m->file.path, (double)c->norm_eps);
    return SH_OK;
}

static sh_err rope_scaling(sh_config *c, const sh_model_file *m)
{
    sh_str type = {"none", 4};
    float factor = 1;
    char key[3][96];
    static const char *const what[] = {"scaling.type", "scaling.factor", "scale_linear"};
    for (int i = 0; i < 3; i++)
        snprintf(key[i], sizeof key[i], "%s.rope.%s", c->family->name, what[i]);
    SH_TRY(sh_meta_str(m, key[0], &type));
    if (type.n == 6 && memcmp(type.p, "linear", 6) == 0) {
        SH_TRY(sh_meta_f32(m, key[1], &factor));
    } else if (!(type.n == 4 && memcmp(type.p, "none", 4) == 0)) {
        return sh_fail(
            SH_EFILE,
            "%s: rotary scaling '%.*s' is not known; the known ones are: none, linear, and "
            "llama3 by the tensor rope_freqs.weight",
            m->file.path, (int)(type.n > 32 ? 32 : type.n), type.p);
    } else {
        SH_TRY(sh_meta_f32(m, key[2], &factor)); /* the key of older files */
    }
    if (!(factor > 0 && factor < 1e6f))
        return sh_fail(SH_EFILE, "%s: a rotary scaling factor of %g", m->file.path, (double)factor);
    c->rope_linear = factor;
    return SH_OK;
}

sh_err sh_config_rope(sh_config *c, const sh_model_file *m)
{
    char key[96];
    uint32_t rot = (uint32_t)c->head_dim;
    float base = 10000;
    SH_TRY(may(c, m, "rope.dimension_count", &rot));
    if (rot > (uint32_t)c->head_dim || rot % 2)
        return sh_fail(SH_EFILE,
                       "%s: rotation of %u of a head's %d values; an even number of them can be",
                       m->file.path, rot, c->head_dim);
    c->n_rot = (int)rot;
    snprintf(key, sizeof key, "%s.rope.freq_base", c->family->name);
    SH_TRY(sh_meta_f32(m, key, &base));
    if (!(base > 0 && base < 1e30f))
        return sh_fail(SH_EFILE, "%s: a rotary frequency base of %g", m->file.path, (double)base);
    c->rope_base = base;
    return rope_scaling(c, m);
}

sh_err sh_config_read(sh_config *c, const sh_model_file *m)
{
    *c = (sh_config){.rope_base = 10000, .rope_linear = 1};
    SH_TRY(find_family(&c->family, m));
    const sh_tensor *embd = sh_model_file_tensor(m, "token_embd.weight");
    if (!embd) {
        return sh_fail(SH_EFILE, "%s: tensor token_embd.weight is missing: %s", m->file.path,
                       m->n_tensor ? "not a whole model"
                                   : "the file holds a vocabulary, not a model");
    }
    if (embd->dim[1] > 1 << 24)
        return sh_fail(SH_EFILE, "%s: a vocabulary of %" PRId64 " tokens; at most %d", m->file.path,
                       embd->dim[1], 1 << 24);
    SH_TRY(read_sizes(c, m));
    SH_TRY(c->family->configure(c, m));
    c->dim[SH_DIM_ONE] = 1;
    c->dim[SH_DIM_VOCAB] = (int)embd->dim[1];
    c->dim[SH_DIM_Q] = c->n_head * c->head_dim;
    c->dim[SH_DIM_KV] = c->n_kv_head * c->head_dim;
    c->dim[SH_DIM_ROT] = c->n_rot / 2;
    c->dim[SH_DIM_CTX] = c->n_ctx_train;
    for (const sh_tensor_row *r = c->family->ends; r->gguf; r++) SH_TRY(check_row(c, m, r, -1));
    for (int l = 0; l < c->n_layer; l++)
        for (const sh_tensor_row *r = c->family->layer; r->gguf; r++) SH_TRY(check_row(c, m, r, l));
    for (size_t i = 0; i < m->n_tensor; i++) {
        int layer;
        if (!sh_family_row(c, m->tensor[i].name, &layer))
            return sh_fail(SH_EFILE, "%s: tensor %.100s has no place in family %s", m->file.path,
                           m->tensor[i].name, c->family->name);
    }
    return SH_OK;
}

const char *sh_split_name(sh_split s)
{
    static const char *const name[] = {"whole", "by row", "by column", "lookup"};
    return name[s];
}

int sh_config_block(const sh_config *c, const sh_model_file *m, sh_dim cols)
{
    int block = 1;
    for (int l = 0; l < c->n_layer; l++)
        for (const sh_tensor_row *r = c->family->layer; r->gguf; r++) {
            if (r->split != SH_BY_COL || r->cols != cols) continue;
            const sh_tensor *t = sh_family_tensor(m, r, l);
            if (t && sh_dtypes[t->dtype].block > block) block = sh_dtypes[t->dtype].block;
        }
    return block;
}
