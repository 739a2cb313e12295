/* Reading GGUF, versions 2 and 3: every count and offset is checked against the file before use.
 * Memory beyond the map stays under 64 MiB, whatever the file says: see the limits below.
 * Source: the GGUF specification, docs/gguf.md of the ggml project. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/formats.h"

/* Far above any model; with names of up to 16 MiB in all this is 40 MiB at the worst. */
enum { MAX_TENSOR = 65536, MAX_META = 16384, MAX_NAMES_BYTES = 16 << 20, MAX_DEPTH = 8 };
/* The least that one entry takes in the file. */
enum { MIN_META_BYTES = 8 + 1 + 4 + 1, MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };

typedef struct parser {
    sh_model_file *m;
    sh_cursor c;
    size_t names_bytes; /* of keys and tensor names so far */
} parser;

static const uint8_t item_bytes[SH_N_META_TYPE] = {
    [SH_META_U8] = 1,  [SH_META_I8] = 1,  [SH_META_U16] = 2, [SH_META_I16] = 2,
    [SH_META_U32] = 4, [SH_META_I32] = 4, [SH_META_F32] = 4, [SH_META_BOOL] = 1,
    [SH_META_U64] = 8, [SH_META_I64] = 8, [SH_META_F64] = 8, /* strings and arrays vary: 0 */
};

static sh_err cut_off(const char *what, size_t i)
{
    return sh_fail(SH_EFILE, "the file is damaged or cut off: %s %zu runs past the end", what, i);
}

/* Names are plain ASCII, so that they can stand in messages. */
static sh_err get_name(parser *p, const char *what, size_t i, char **out)
{
    sh_str s = sh_get_str(&p->c);
    if (p->c.bad) return cut_off(what, i);
    if (s.n == 0) return sh_fail(SH_EFILE, "%s %zu has no name", what, i);
    for (size_t j = 0; j < s.n; j++)
        if (s.p[j] < ' ' || s.p[j] > '~')
            return sh_fail(SH_EFILE, "the name of %s %zu is not printable ASCII", what, i);
    p->names_bytes += s.n;
    if (s.n > MAX_NAMES_BYTES || p->names_bytes > MAX_NAMES_BYTES)
        return sh_fail(SH_EFILE, "more than %d bytes of names", MAX_NAMES_BYTES);
    if (!(*out = strndup(s.p, s.n))) return sh_fail(SH_ENOMEM, "no memory for the names");
    return SH_OK;
}

/* Passes over n items; a `bad` cursor is left to the caller. */
static sh_err check_items(sh_cursor *c, uint32_t type, uint64_t n, int depth, const char *key)
{
    if (type >= SH_N_META_TYPE)
        return sh_fail(SH_EFILE, "the metadata '%s' has items of unknown type %u", key, type);
    if (item_bytes[type]) {
        if (n > sh_cursor_left(c) / item_bytes[type]) {
            c->bad = true;
            return SH_OK;
        }
        const uint8_t *b = sh_get_bytes(c, (size_t)n * item_bytes[type]);
        for (uint64_t i = 0; b && type == SH_META_BOOL && i < n; i++)
            if (b[i] > 1)
                return sh_fail(SH_EFILE, "the metadata '%s' has a bool that is %d", key, b[i]);
        return SH_OK;
    }
    for (uint64_t i = 0; i < n && !c->bad; i++) {
        if (type == SH_META_STR) {
            sh_get_str(c);
            continue;
        }
        if (depth == MAX_DEPTH)
            return sh_fail(SH_EFILE, "the metadata '%s' is nested more than %d deep", key,
                           MAX_DEPTH);
        uint32_t t = sh_get_u32(c);
        uint64_t k = sh_get_u64(c);
        if (!c->bad) SH_TRY(check_items(c, t, k, depth + 1, key));
    }
    return SH_OK;
}

static sh_err get_array(sh_cursor *c, sh_meta *v)
{
    uint32_t type = sh_get_u32(c);
    v->n = sh_get_u64(c);
    if (c->bad) return SH_OK;
    const uint8_t *begin = c->p;
    SH_TRY(check_items(c, type, v->n, 1, v->key));
    v->item_type = (sh_meta_type)type;
    v->bytes = (sh_str){(const char *)begin, (size_t)(c->p - begin)};
    return SH_OK;
}

static sh_err get_value(sh_cursor *c, sh_meta *v)
{
    uint32_t type = sh_get_u32(c);
    if (c->bad) return SH_OK;
    if (type >= SH_N_META_TYPE)
        return sh_fail(SH_EFILE, "the metadata '%s' has the unknown type %u", v->key, type);
    v->type = (sh_meta_type)type;
    switch (v->type) {
    case SH_META_U8:
        v->u = sh_get_u8(c);
        break;
    case SH_META_I8:
        v->i = (int8_t)sh_get_u8(c);
        break;
    case SH_META_U16:
        v->u = sh_get_u16(c);
        break;
    case SH_META_I16:
        v->i = (int16_t)sh_get_u16(c);
        break;
    case SH_META_U32:
        v->u = sh_get_u32(c);
        break;
    case SH_META_I32:
        v->i = (int32_t)sh_get_u32(c);
        break;
    case SH_META_U64:
        v->u = sh_get_u64(c);
        break;
    case SH_META_I64:
        v->i = (int64_t)sh_get_u64(c);
        break;
    case SH_META_F32:
        v->f = (double)sh_get_f32(c);
        break;
    case SH_META_F64:
        v->f = sh_get_f64(c);
        break;
    case SH_META_STR:
        v->str = sh_get_str(c);
        break;
    case SH_META_ARRAY:
        return get_array(c, v);
    default: /* SH_META_BOOL */
        v->u = sh_get_u8(c);
        if (v->u > 1)
            return sh_fail(SH_EFILE, "the metadata '%s' is a bool that is %d", v->key, (int)v->u);
    }
    return SH_OK;
}

static sh_err get_metadata(parser *p, uint64_t n)
{
    sh_model_file *m = p->m;
    SH_TRY(sh_alloc(&m->meta, (size_t)n, sizeof *m->meta, "the table of metadata"));
    m->n_meta = (size_t)n;
    for (size_t i = 0; i < n; i++) {
        SH_TRY(get_name(p, "metadata entry", i, &m->meta[i].key));
        SH_TRY(get_value(&p->c, &m->meta[i]));
        if (p->c.bad) return cut_off("metadata entry", i);
        if (strcmp(m->meta[i].key, "general.alignment") == 0) {
            uint64_t a = m->meta[i].type == SH_META_U32 ? m->meta[i].u : 0;
            if (a == 0 || (a & (a - 1)))
                return sh_fail(SH_EFILE, "general.alignment is not a u32 that is a power of two");
            m->alignment = a;
        }
    }
    return SH_OK;
}

/* Name, shape and type of tensor i; *offset from the begin of the data. */
static sh_err get_tensor(parser *p, size_t i, uint64_t *offset)
{
    sh_tensor *t = &p->m->tensor[i];
    size_t n = 1;
    SH_TRY(get_name(p, "tensor", i, &t->name));
    uint32_t n_dim = sh_get_u32(&p->c);
    if (!p->c.bad && (n_dim < 1 || n_dim > SH_MAX_DIM))
        return sh_fail(SH_EFILE, "tensor '%s' has %u dimensions; 1 to %d are possible", t->name,
                       n_dim, SH_MAX_DIM);
    t->n_dim = (int)n_dim;
    for (uint32_t d = 0; d < SH_MAX_DIM; d++) {
        uint64_t v = d < n_dim ? sh_get_u64(&p->c) : 1;
        if (p->c.bad) return cut_off("tensor", i);
        if (v == 0 || v > INT64_MAX || !sh_mul_size(n, (size_t)v, &n))
            return sh_fail(SH_EFILE, "tensor '%s' has a dimension of 0 or too many elements",
                           t->name);
        t->dim[d] = (int64_t)v;
    }
    uint32_t id = sh_get_u32(&p->c);
    *offset = sh_get_u64(&p->c);
    if (p->c.bad) return cut_off("tensor", i);
    int type = sh_dtype_by_gguf_id(id);
    if (type < 0) {
        const char *name = sh_gguf_type_name(id);
        return sh_fail(SH_EFILE,
                       "tensor '%s' is of type %s (%u), which is not supported (known: %s)",
                       t->name, name ? name : "unknown", id, sh_dtype_list());
    }
    const sh_dtype_info *info = &sh_dtypes[type];
    if (t->dim[0] % info->block)
        return sh_fail(SH_EFILE, "tensor '%s' has rows of %lld elements, not a multiple of %d (%s)",
                       t->name, (long long)t->dim[0], info->block, info->name);
    t->dtype = (sh_dtype)type;
    if (!sh_mul_size(n / (size_t)info->block, (size_t)info->block_bytes, &t->n_bytes))
        return sh_fail(SH_EFILE, "tensor '%s' has too many elements", t->name);
    return SH_OK;
}

static int by_place(const void *a, const void *b)
{
    const sh_tensor *s = *(const sh_tensor *const *)a, *t = *(const sh_tensor *const *)b;
    return s->data < t->data ? -1 : s->data > t->data;
}

static sh_err check_overlap(const sh_model_file *m, const sh_tensor **order)
{
    for (size_t i = 0; i < m->n_tensor; i++) order[i] = &m->tensor[i];
    qsort(order, m->n_tensor, sizeof *order, by_place);
    for (size_t i = 1; i < m->n_tensor; i++)
        if (order[i - 1]->n_bytes > (size_t)(order[i]->data - order[i - 1]->data))
            return sh_fail(SH_EFILE, "the tensors '%s' and '%s' overlap", order[i - 1]->name,
                           order[i]->name);
    return SH_OK;
}

static sh_err place_tensors(sh_model_file *m, const uint64_t *offset)
{
    size_t room = m->file.n_bytes - m->header_bytes;
    for (size_t i = 0; i < m->n_tensor; i++) {
        sh_tensor *t = &m->tensor[i];
        if (offset[i] % m->alignment)
            return sh_fail(SH_EFILE, "tensor '%s' begins at %llu, not a multiple of %llu", t->name,
                           (unsigned long long)offset[i], (unsigned long long)m->alignment);
        if (offset[i] > room || t->n_bytes > room - offset[i])
            return sh_fail(
                SH_EFILE,
                "the file is damaged or cut off: tensor '%s' needs %zu bytes at %llu, but "
                "only %zu bytes of data are there",
                t->name, t->n_bytes, (unsigned long long)offset[i], room);
        t->data = m->file.data + m->header_bytes + offset[i];
    }
    return SH_OK;
}

static sh_err get_tensors(parser *p, uint64_t n)
{
    sh_model_file *m = p->m;
    uint64_t *offset = NULL;
    const sh_tensor **order = NULL;
    sh_err err;
    SH_TRY(sh_alloc(&m->tensor, (size_t)n, sizeof *m->tensor, "the table of tensors"));
    m->n_tensor = (size_t)n;
    SH_GOTO(sh_alloc(&offset, (size_t)n, sizeof *offset, "the offsets of the tensors"));
    SH_GOTO(sh_alloc(&order, (size_t)n, sizeof *order, "the order of the tensors"));
    for (size_t i = 0; i < n; i++) SH_GOTO(get_tensor(p, i, &offset[i]));
    size_t used = m->file.n_bytes - sh_cursor_left(&p->c);
    size_t pad = (size_t)(-used & (m->alignment - 1));
    if (pad > sh_cursor_left(&p->c)) pad = sh_cursor_left(&p->c);
    m->header_bytes = used + pad;
    SH_GOTO(place_tensors(m, offset));
    err = check_overlap(m, order);
out:
    free(offset);
    free(order);
    return err;
}

static sh_err parse(sh_model_file *m)
{
    parser p = {.m = m, .c = sh_cursor_of(m->file.data, m->file.n_bytes)};
    sh_get_bytes(&p.c, 4); /* "GGUF" */
    m->version = sh_get_u32(&p.c);
    uint64_t n_tensor = sh_get_u64(&p.c), n_meta = sh_get_u64(&p.c);
    if (m->version != 0 && (m->version & 0xffff) == 0)
        return sh_fail(SH_EFILE, "a big-endian GGUF file; only little-endian ones are supported");
    if (p.c.bad) return sh_fail(SH_EFILE, "the file is cut off inside the first 24 bytes");
    if (m->version != 2 && m->version != 3)
        return sh_fail(SH_EFILE, "GGUF version %u is not supported (known: 2, 3)", m->version);
    if (n_meta > MAX_META || n_tensor > MAX_TENSOR ||
        n_meta * MIN_META_BYTES + n_tensor * MIN_TENSOR_BYTES > sh_cursor_left(&p.c))
        return sh_fail(SH_EFILE,
                       "the file is damaged or cut off: %llu tensors and %llu metadata entries do "
                       "not fit into it",
                       (unsigned long long)n_tensor, (unsigned long long)n_meta);
    m->alignment = 32;
    SH_TRY(get_metadata(&p, n_meta));
    return get_tensors(&p, n_tensor);
}

static bool is_mine(const sh_file *f)
{
    return f->n_bytes >= 4 && memcmp(f->data, "GGUF", 4) == 0;
}

const sh_format sh_format_gguf = {.name = "gguf", .is_mine = is_mine, .parse = parse};
