/* What all model formats share: finding the format, names to tensors and metadata, the hash. */
#define _GNU_SOURCE
#include "formats/formats.h"

#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/shape.h"

const sh_format *const sh_formats[] = {&sh_format_gguf, NULL};

/* Pointers sorted by name: a look-up is a binary search, and no choice of names makes it slow. */
typedef struct name_index {
    const sh_tensor **tensor; /* n_tensor */
    const sh_meta **meta;     /* n_meta */
} name_index;

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(const sh_tensor *const *)a)->name, (*(const sh_tensor *const *)b)->name);
}
static int by_key(const void *a, const void *b)
{
    return strcmp((*(const sh_meta *const *)a)->key, (*(const sh_meta *const *)b)->key);
}

static sh_err make_index(sh_model_file *m)
{
    name_index *x;
    SH_TRY(sh_alloc(&m->index, 1, sizeof *x, "the index of names"));
    x = m->index;
    SH_TRY(sh_alloc(&x->tensor, m->n_tensor, sizeof *x->tensor, "the index of tensors"));
    SH_TRY(sh_alloc(&x->meta, m->n_meta, sizeof *x->meta, "the index of metadata"));
    for (size_t i = 0; i < m->n_tensor; i++) x->tensor[i] = &m->tensor[i];
    for (size_t i = 0; i < m->n_meta; i++) x->meta[i] = &m->meta[i];
    qsort(x->tensor, m->n_tensor, sizeof *x->tensor, by_tensor_name);
    qsort(x->meta, m->n_meta, sizeof *x->meta, by_key);
    for (size_t i = 1; i < m->n_tensor; i++)
        if (by_tensor_name(&x->tensor[i - 1], &x->tensor[i]) == 0)
            return sh_fail(SH_EFILE, "two tensors are named '%s'", x->tensor[i]->name);
    for (size_t i = 1; i < m->n_meta; i++)
        if (by_key(&x->meta[i - 1], &x->meta[i]) == 0)
            return sh_fail(SH_EFILE, "the metadata key '%s' is there twice", x->meta[i]->key);
    return SH_OK;
}

sh_err sh_model_file_parse(sh_model_file *m)
{
    sh_err err = SH_OK;
    for (int i = 0; sh_formats[i] && !m->format; i++)
        if (sh_formats[i]->is_mine(&m->file)) m->format = sh_formats[i];
    if (!m->file.n_bytes) {
        err = sh_fail(SH_EFILE, "the file is empty");
    } else if (!m->format) {
        err = sh_fail(SH_EFILE, "not a model file of a known format (known: GGUF)");
    } else if ((err = m->format->parse(m)) == SH_OK) {
        err = make_index(m);
    }
    return err == SH_OK ? SH_OK : sh_fail_in(err, "%s", m->file.path);
}

sh_err sh_model_file_open(sh_model_file **out, const char *path)
{
    sh_model_file *m = NULL;
    sh_err err;
    *out = NULL;
    SH_TRY(sh_alloc(&m, 1, sizeof *m, "a model file"));
    SH_GOTO(sh_shape_is(path) ? sh_shape_open(&m->file, path) : sh_file_open(&m->file, path));
    SH_GOTO(sh_model_file_parse(m));
    *out = m;
    m = NULL;
out:
    sh_model_file_close(m);
    return err;
}

void sh_model_file_close(sh_model_file *m)
{
    if (!m) return;
    name_index *x = m->index;
    for (size_t i = 0; m->tensor && i < m->n_tensor; i++) free(m->tensor[i].name);
    for (size_t i = 0; m->meta && i < m->n_meta; i++) free(m->meta[i].key);
    if (x) {
        free(x->tensor);
        free(x->meta);
        free(x);
    }
    free(m->tensor);
    free(m->meta);
    sh_file_close(&m->file);
    free(m);
}

const sh_tensor *sh_model_file_tensor(const sh_model_file *m, const char *name)
{
    const name_index *x = m->index;
    sh_tensor key = {.name = (char *)name};
    const sh_tensor *k = &key;
    const sh_tensor **hit = bsearch(&k, x->tensor, m->n_tensor, sizeof k, by_tensor_name);
    return hit ? *hit : NULL;
}

const sh_meta *sh_model_file_meta(const sh_model_file *m, const char *key)
{
    const name_index *x = m->index;
    sh_meta meta = {.key = (char *)key};
    const sh_meta *k = &meta;
    const sh_meta **hit = bsearch(&k, x->meta, m->n_meta, sizeof k, by_key);
    return hit ? *hit : NULL;
}

static void hash_u64(crypto_hash_sha256_state *s, uint64_t v)
{
    uint8_t b[8];
    for (int i = 0; i < 8; i++) b[i] = (uint8_t)(v >> (8 * i));
    crypto_hash_sha256_update(s, b, sizeof b);
}

void sh_model_file_hash(const sh_model_file *m, uint8_t hash[16])
{
    enum { N_SAMPLE = 3, SAMPLE_BYTES = 1024 };
    crypto_hash_sha256_state s;
    uint8_t full[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_init(&s);
    hash_u64(&s, m->file.n_bytes);
    hash_u64(&s, m->header_bytes);
    crypto_hash_sha256_update(&s, m->file.data, m->header_bytes);
    for (size_t i = 0; i < m->n_tensor; i++) { /* begin, middle and end of each */
        const sh_tensor *t = &m->tensor[i];
        size_t n = t->n_bytes < SAMPLE_BYTES ? t->n_bytes : SAMPLE_BYTES;
        for (size_t j = 0; j < N_SAMPLE; j++)
            crypto_hash_sha256_update(&s, t->data + (t->n_bytes - n) / (N_SAMPLE - 1) * j, n);
    }
    crypto_hash_sha256_final(&s, full);
    memcpy(hash, full, 16);
}

const char *sh_str_show(char *buf, size_t cap, sh_str s)
{
    size_t n = s.n < cap - 1 ? s.n : cap - 1;
    for (size_t i = 0; i < n; i++) buf[i] = s.p[i] >= ' ' && s.p[i] <= '~' ? s.p[i] : '?';
    buf[n] = 0;
    return buf;
}

sh_str sh_get_str(sh_cursor *c)
{
    uint64_t n = sh_get_u64(c);
    const uint8_t *p = n <= SIZE_MAX ? sh_get_bytes(c, (size_t)n) : NULL;
    if (!p) c->bad = true;
    return c->bad ? (sh_str){0} : (sh_str){(const char *)p, (size_t)n};
}

static const char *type_name(sh_meta_type t)
{
    static const char *const name[SH_N_META_TYPE] = {
        "u8",   "i8",       "u16",      "i16", "u32", "i32", "f32",
        "bool", "a string", "an array", "u64", "i64", "f64",
    };
    return name[t];
}

static sh_err wrong_type(const sh_model_file *m, const sh_meta *v, const char *want)
{
    return sh_fail(SH_EFILE, "%s: the metadata '%s' is %s; it must be %s", m->file.path, v->key,
                   type_name(v->type), want);
}
static sh_err missing(const sh_model_file *m, const char *key)
{
    return sh_fail(SH_EFILE, "%s: the metadata '%s' is missing", m->file.path, key);
}

sh_err sh_meta_u32(const sh_model_file *m, const char *key, uint32_t *out)
{
    const sh_meta *v = sh_model_file_meta(m, key);
    if (!v) return SH_OK;
    switch (v->type) {
    case SH_META_U8:
    case SH_META_U16:
    case SH_META_U32:
    case SH_META_U64:
        if (v->u > UINT32_MAX)
            return sh_fail(SH_EFILE, "%s: the metadata '%s' is %llu, too large", m->file.path, key,
                           (unsigned long long)v->u);
        *out = (uint32_t)v->u;
        return SH_OK;
    case SH_META_I8:
    case SH_META_I16:
    case SH_META_I32:
    case SH_META_I64:
        if (v->i < 0 || v->i > UINT32_MAX)
            return sh_fail(SH_EFILE, "%s: the metadata '%s' is %lld, out of range", m->file.path,
                           key, (long long)v->i);
        *out = (uint32_t)v->i;
        return SH_OK;
    default:
        return wrong_type(m, v, "an integer");
    }
}

sh_err sh_meta_f32(const sh_model_file *m, const char *key, float *out)
{
    const sh_meta *v = sh_model_file_meta(m, key);
    if (!v) return SH_OK;
    if (v->type != SH_META_F32 && v->type != SH_META_F64) return wrong_type(m, v, "f32");
    if (!(fabs(v->f) <= 3.4028234663852886e38)) /* NaN fails too */
        return sh_fail(SH_EFILE, "%s: the metadata '%s' is not a finite f32 number", m->file.path,
                       key);
    *out = (float)v->f;
    return SH_OK;
}

sh_err sh_meta_bool(const sh_model_file *m, const char *key, bool *out)
{
    const sh_meta *v = sh_model_file_meta(m, key);
    if (!v) return SH_OK;
    if (v->type != SH_META_BOOL) return wrong_type(m, v, "bool");
    *out = v->u != 0;
    return SH_OK;
}

sh_err sh_meta_str(const sh_model_file *m, const char *key, sh_str *out)
{
    const sh_meta *v = sh_model_file_meta(m, key);
    if (!v) return SH_OK;
    if (v->type != SH_META_STR) return wrong_type(m, v, "a string");
    *out = v->str;
    return SH_OK;
}

sh_err sh_meta_need_u32(const sh_model_file *m, const char *key, uint32_t *out)
{
    return sh_model_file_meta(m, key) ? sh_meta_u32(m, key, out) : missing(m, key);
}

sh_err sh_meta_need_str(const sh_model_file *m, const char *key, sh_str *out)
{
    return sh_model_file_meta(m, key) ? sh_meta_str(m, key, out) : missing(m, key);
}

sh_err sh_meta_array(const sh_model_file *m, const char *key, sh_meta_type item_type,
                     const sh_meta **out)
{
    const sh_meta *v = sh_model_file_meta(m, key);
    *out = NULL;
    if (!v) return SH_OK;
    if (v->type != SH_META_ARRAY) return wrong_type(m, v, "an array");
    if (v->item_type != item_type)
        return sh_fail(SH_EFILE, "%s: the metadata '%s' is an array of %s; its items must be %s",
                       m->file.path, key, type_name(v->item_type), type_name(item_type));
    *out = v;
    return SH_OK;
}
