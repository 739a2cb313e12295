/* Writing GGUF version 3: the header is put together in memory, the data streams to a file beside
 * the final one, which takes its place only when all of it is on the disk. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "formats/formats.h"

enum { ALIGNMENT = 32 };

struct sh_gguf_writer {
    char *path, *tmp; /* the file, and what it is called until it is finished */
    FILE *f;
    sh_buf meta, table;
    uint64_t n_meta, n_tensor;
    size_t *size; /* n_tensor: bytes of each */
    size_t cap;
    uint64_t offset; /* of the next tensor to add */
    bool begun;      /* the header is written */
    size_t at;       /* the tensor that is being written */
    size_t written;  /* bytes of it */
    bool failed;     /* the sentence was given; nothing more is written */
};

static sh_err sys_fail(sh_gguf_writer *w, const char *what)
{
    int e = errno;
    w->failed = true;
    return sh_fail(SH_ESYS, "%s: cannot %s the file: %s", w->path, what, strerror(e));
}

static sh_err open_tmp(sh_gguf_writer *w)
{
    int fd = -1;
    for (int i = 0; i < 100 && fd < 0; i++) {
        free(w->tmp);
        w->tmp = NULL;
        if (asprintf(&w->tmp, "%s.%d-%d.tmp", w->path, (int)getpid(), i) < 0) {
            w->tmp = NULL;
            return sh_fail(SH_ENOMEM, "%s: no memory for the name", w->path);
        }
        fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd >= 0 && (w->f = fdopen(fd, "wb"))) return SH_OK;
    sys_fail(w, "create");
    if (fd >= 0) {
        close(fd);
        unlink(w->tmp);
    }
    return SH_ESYS;
}

sh_err sh_gguf_create(sh_gguf_writer **out, const char *path)
{
    sh_gguf_writer *w;
    struct stat st;
    sh_err err;
    *out = NULL;
    bool exists = stat(path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        return sh_fail(SH_EARG, "%s: not a regular file; give another name to write to", path);
    SH_TRY(sh_alloc(&w, 1, sizeof *w, "a writer"));
    /* Through a link, so that the file it leads to is replaced and not the link. */
    w->path = exists ? realpath(path, NULL) : strdup(path);
    if (!w->path) {
        err = sh_fail(SH_ESYS, "%s: cannot create the file: %s", path, strerror(errno));
    } else if ((err = open_tmp(w)) == SH_OK) {
        *out = w;
        return SH_OK;
    }
    sh_gguf_close(w, false);
    return err;
}

static void put_str(sh_buf *b, const char *p, size_t n)
{
    sh_put_u64(b, n);
    sh_put_bytes(b, p, n);
}

static void put_key(sh_gguf_writer *w, const char *key, sh_meta_type type)
{
    assert(!w->begun);
    put_str(&w->meta, key, strlen(key));
    sh_put_u32(&w->meta, type);
    w->n_meta++;
}

static void put_array(sh_gguf_writer *w, const char *key, sh_meta_type item_type, uint64_t n)
{
    put_key(w, key, SH_META_ARRAY);
    sh_put_u32(&w->meta, item_type);
    sh_put_u64(&w->meta, n);
}

void sh_gguf_put_u32(sh_gguf_writer *w, const char *key, uint32_t v)
{
    put_key(w, key, SH_META_U32);
    sh_put_u32(&w->meta, v);
}
void sh_gguf_put_f32(sh_gguf_writer *w, const char *key, float v)
{
    put_key(w, key, SH_META_F32);
    sh_put_f32(&w->meta, v);
}
void sh_gguf_put_bool(sh_gguf_writer *w, const char *key, bool v)
{
    put_key(w, key, SH_META_BOOL);
    sh_put_u8(&w->meta, v);
}
void sh_gguf_put_str(sh_gguf_writer *w, const char *key, const char *p, size_t n)
{
    put_key(w, key, SH_META_STR);
    put_str(&w->meta, p, n);
}
void sh_gguf_put_strs(sh_gguf_writer *w, const char *key, const sh_str *s, size_t n)
{
    put_array(w, key, SH_META_STR, n);
    for (size_t i = 0; i < n; i++) put_str(&w->meta, s[i].p, s[i].n);
}
void sh_gguf_put_f32s(sh_gguf_writer *w, const char *key, const float *v, size_t n)
{
    put_array(w, key, SH_META_F32, n);
    for (size_t i = 0; i < n; i++) sh_put_f32(&w->meta, v[i]);
}
void sh_gguf_put_i32s(sh_gguf_writer *w, const char *key, const int32_t *v, size_t n)
{
    put_array(w, key, SH_META_I32, n);
    for (size_t i = 0; i < n; i++) sh_put_u32(&w->meta, (uint32_t)v[i]);
}

void sh_gguf_put_meta(sh_gguf_writer *w, const sh_meta *v)
{
    if (strcmp(v->key, "general.alignment") == 0) return;
    if (v->type == SH_META_ARRAY) {
        put_array(w, v->key, v->item_type, v->n);
        sh_put_bytes(&w->meta, v->bytes.p, v->bytes.n);
        return;
    }
    put_key(w, v->key, v->type);
    switch (v->type) {
    case SH_META_U8:
    case SH_META_BOOL:
        sh_put_u8(&w->meta, (uint8_t)v->u);
        break;
    case SH_META_I8:
        sh_put_u8(&w->meta, (uint8_t)v->i);
        break;
    case SH_META_U16:
        sh_put_u16(&w->meta, (uint16_t)v->u);
        break;
    case SH_META_I16:
        sh_put_u16(&w->meta, (uint16_t)v->i);
        break;
    case SH_META_U32:
        sh_put_u32(&w->meta, (uint32_t)v->u);
        break;
    case SH_META_I32:
        sh_put_u32(&w->meta, (uint32_t)v->i);
        break;
    case SH_META_U64:
        sh_put_u64(&w->meta, v->u);
        break;
    case SH_META_I64:
        sh_put_u64(&w->meta, (uint64_t)v->i);
        break;
    case SH_META_F32:
        sh_put_f32(&w->meta, (float)v->f);
        break;
    case SH_META_F64:
        sh_put_f64(&w->meta, v->f);
        break;
    default:
        put_str(&w->meta, v->str.p, v->str.n); /* SH_META_STR */
    }
}

void sh_gguf_add_tensor(sh_gguf_writer *w, const char *name, sh_dtype dtype, int n_dim,
                        const int64_t *dim)
{
    size_t n = 1;
    assert(!w->begun && n_dim >= 1 && n_dim <= SH_MAX_DIM && dim[0] % sh_dtypes[dtype].block == 0);
    put_str(&w->table, name, strlen(name));
    sh_put_u32(&w->table, (uint32_t)n_dim);
    for (int d = 0; d < n_dim; d++) {
        assert(dim[d] > 0);
        sh_put_u64(&w->table, (uint64_t)dim[d]);
        n *= (size_t)dim[d];
    }
    sh_put_u32(&w->table, sh_dtypes[dtype].gguf_id);
    sh_put_u64(&w->table, w->offset);
    if (sh_grow(&w->size, &w->cap, w->n_tensor + 1, sizeof *w->size, "the tensors") != SH_OK) {
        w->table.bad = true; /* told when the header is written */
        return;
    }
    w->size[w->n_tensor++] = sh_dtype_bytes(dtype, n);
    w->offset += (sh_dtype_bytes(dtype, n) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static sh_err put_raw(sh_gguf_writer *w, const void *p, size_t n_bytes)
{
    return n_bytes == 0 || fwrite(p, 1, n_bytes, w->f) == n_bytes ? SH_OK : sys_fail(w, "write");
}

static sh_err put_padding(sh_gguf_writer *w, size_t n_bytes)
{
    static const uint8_t zero[ALIGNMENT];
    return put_raw(w, zero, (size_t)(-n_bytes % ALIGNMENT));
}

static sh_err put_header(sh_gguf_writer *w)
{
    sh_buf h = {0};
    sh_err err;
    w->begun = true;
    sh_put_bytes(&h, "GGUF", 4);
    sh_put_u32(&h, 3);
    sh_put_u64(&h, w->n_tensor);
    sh_put_u64(&h, w->n_meta);
    if (h.bad || w->meta.bad || w->table.bad) {
        w->failed = true;
        err = sh_fail(SH_ENOMEM, "%s: no memory for the header", w->path);
        goto out;
    }
    SH_GOTO(put_raw(w, h.p, h.n));
    SH_GOTO(put_raw(w, w->meta.p, w->meta.n));
    SH_GOTO(put_raw(w, w->table.p, w->table.n));
    err = put_padding(w, h.n + w->meta.n + w->table.n);
out:
    sh_buf_free(&h);
    return err;
}

sh_err sh_gguf_write(sh_gguf_writer *w, const void *data, size_t n_bytes)
{
    const uint8_t *p = data;
    if (w->failed) return sh_fail(SH_ESYS, "%s: writing it failed before", w->path);
    if (!w->begun) SH_TRY(put_header(w));
    while (n_bytes) {
        assert(w->at < w->n_tensor); /* more data than tensors */
        size_t left = w->size[w->at] - w->written, n = n_bytes < left ? n_bytes : left;
        SH_TRY(put_raw(w, p, n));
        p += n;
        n_bytes -= n;
        w->written += n;
        if (w->written == w->size[w->at]) {
            SH_TRY(put_padding(w, w->written));
            w->at++;
            w->written = 0;
        }
    }
    return SH_OK;
}

/* Makes the new name itself durable. Some file systems cannot; the data is safe without. */
static void sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

static sh_err finish(sh_gguf_writer *w)
{
    if (w->failed) return SH_ESYS; /* with the sentence of then */
    if (!w->begun) SH_TRY(put_header(w));
    if (w->at < w->n_tensor)
        return sh_fail(SH_ESYS, "%s: the data of %llu tensors is missing", w->path,
                       (unsigned long long)(w->n_tensor - w->at));
    if (fflush(w->f) != 0 || fsync(fileno(w->f)) != 0) return sys_fail(w, "write");
    int closed = fclose(w->f);
    w->f = NULL;
    if (closed != 0) return sys_fail(w, "write");
    if (rename(w->tmp, w->path) != 0) return sys_fail(w, "rename");
    sync_folder(w->path);
    free(w->tmp);
    w->tmp = NULL;
    return SH_OK;
}

sh_err sh_gguf_close(sh_gguf_writer *w, bool keep)
{
    if (!w) return SH_OK;
    sh_err err = keep ? finish(w) : SH_OK;
    bool created = w->f || err != SH_OK;
    if (w->f) fclose(w->f);
    if (w->tmp && created) unlink(w->tmp);
    sh_buf_free(&w->meta);
    sh_buf_free(&w->table);
    free(w->size);
    free(w->tmp);
    free(w->path);
    free(w);
    return err;
}
