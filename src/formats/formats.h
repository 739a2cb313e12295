/* Model files: bytes on disk to named tensors and metadata. A format is one const struct in one
 * file and one row in sh_formats; sh_model_file_open asks each whether the file is its own. */
#ifndef SH_FORMATS_FORMATS_H
#define SH_FORMATS_FORMATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cursor.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/file.h"

enum { SH_MAX_DIM = 4 };

typedef struct sh_tensor {
    char *name; /* NUL-terminated, owned by the model file */
    sh_dtype dtype;
    int n_dim;               /* 1 to SH_MAX_DIM */
    int64_t dim[SH_MAX_DIM]; /* as in GGUF: dim[0] is the contiguous one (columns), dim[1] rows; 1
                                beyond */
    const uint8_t *data;     /* inside the map, n_bytes of it; checked; not always aligned */
    size_t n_bytes;
} sh_tensor;

typedef struct sh_str {
    const char *p; /* not NUL-terminated */
    size_t n;
} sh_str;

/* Values are those of GGUF. */
typedef enum sh_meta_type {
    SH_META_U8,
    SH_META_I8,
    SH_META_U16,
    SH_META_I16,
    SH_META_U32,
    SH_META_I32,
    SH_META_F32,
    SH_META_BOOL,
    SH_META_STR,
    SH_META_ARRAY,
    SH_META_U64,
    SH_META_I64,
    SH_META_F64,
    SH_N_META_TYPE
} sh_meta_type;

typedef struct sh_meta {
    char *key; /* NUL-terminated, owned by the model file */
    sh_meta_type type;
    union {
        uint64_t u; /* U8..U64, BOOL */
        int64_t i;  /* I8..I64 */
        double f;   /* F32, F64 */
        sh_str str;
    };
    /* SH_META_ARRAY: n elements of item_type; their bytes were checked and lie in the file. */
    sh_meta_type item_type;
    uint64_t n;
    sh_str bytes;
} sh_meta;

typedef struct sh_model_file {
    const struct sh_format *format;
    sh_file file;
    uint32_t version;    /* GGUF: 2 or 3 */
    uint64_t alignment;  /* GGUF: of the tensor data */
    size_t header_bytes; /* where the tensor data begins */
    sh_tensor *tensor;
    size_t n_tensor;
    sh_meta *meta;
    size_t n_meta;
    void *index; /* private: names to tensors */
} sh_model_file;

typedef struct sh_format {
    const char *name; /* "gguf" */
    bool (*is_mine)(const sh_file *f);
    /* Fills all but `format` and `file`. On failure the caller closes. */
    sh_err (*parse)(sh_model_file *m);
} sh_format;

extern const sh_format *const sh_formats[]; /* ends with NULL */
extern const sh_format sh_format_gguf;

/** Opens and checks a model file, or a shape (formats/shape.h): every tensor's data lies inside the
 * file when this returns SH_OK. SH_EFILE: not a model, cut off, or damaged; the sentence names the
 * file and the fault. Close with sh_model_file_close, which accepts NULL. */
sh_err sh_model_file_open(sh_model_file **out, const char *path);
void sh_model_file_close(sh_model_file *m);
/** What open does once m->file is there (the rest of *m zeroed); for bytes that are in memory. On
 *  failure the caller closes. */
sh_err sh_model_file_parse(sh_model_file *m);

/** NULL if there is none. */
const sh_tensor *sh_model_file_tensor(const sh_model_file *m, const char *name);
const sh_meta *sh_model_file_meta(const sh_model_file *m, const char *key);

/** 16 bytes that tell this model from others: SHA-256 over the header (metadata, tensor table), the
 *  file's size, and samples of every tensor. Not a proof against an adversary. */
void sh_model_file_hash(const sh_model_file *m, uint8_t hash[16]);

/* Typed look-ups. `false`/SH_OK with *out untouched if the key is missing; the _need forms fail
 * with SH_EFILE and name the file and the key. A value of another integer type is converted if it
 * fits, and is SH_EFILE if not. */
sh_err sh_meta_u32(const sh_model_file *m, const char *key, uint32_t *out);
sh_err sh_meta_f32(const sh_model_file *m, const char *key, float *out);
sh_err sh_meta_bool(const sh_model_file *m, const char *key, bool *out);
sh_err sh_meta_str(const sh_model_file *m, const char *key, sh_str *out);
sh_err sh_meta_need_u32(const sh_model_file *m, const char *key, uint32_t *out);
sh_err sh_meta_need_str(const sh_model_file *m, const char *key, sh_str *out);
/** An array of item_type; *out NULL if the key is missing; SH_EFILE if it is something else. */
sh_err sh_meta_array(const sh_model_file *m, const char *key, sh_meta_type item_type,
                     const sh_meta **out);
/** Walks an array: for strings, the next one; for numbers use a cursor on a->bytes. */
static inline sh_cursor sh_meta_cursor(const sh_meta *a)
{
    return sh_cursor_of(a->bytes.p, a->bytes.n);
}
/** s as a C string for a message: cut to fit, every byte but printable ASCII shown as '?'. Returns
 * buf. */
const char *sh_str_show(char *buf, size_t cap, sh_str s);
/** The next GGUF string (u64 length, bytes) of a cursor; {NULL, 0} and `bad` past the end. */
sh_str sh_get_str(sh_cursor *c);

/* Writing GGUF version 3. The header is put together in memory; the tensors' data is then given in
 * the order they were added. The file is written beside `path` and renamed when finished. */
typedef struct sh_gguf_writer sh_gguf_writer;

sh_err sh_gguf_create(sh_gguf_writer **out, const char *path);
void sh_gguf_put_u32(sh_gguf_writer *w, const char *key, uint32_t v);
void sh_gguf_put_f32(sh_gguf_writer *w, const char *key, float v);
void sh_gguf_put_bool(sh_gguf_writer *w, const char *key, bool v);
void sh_gguf_put_str(sh_gguf_writer *w, const char *key, const char *p, size_t n);
void sh_gguf_put_strs(sh_gguf_writer *w, const char *key, const sh_str *s, size_t n);
void sh_gguf_put_f32s(sh_gguf_writer *w, const char *key, const float *v, size_t n);
void sh_gguf_put_i32s(sh_gguf_writer *w, const char *key, const int32_t *v, size_t n);
/** The value as it stands in another file; general.alignment is passed over, as the writer has its
 * own. */
void sh_gguf_put_meta(sh_gguf_writer *w, const sh_meta *meta);
void sh_gguf_add_tensor(sh_gguf_writer *w, const char *name, sh_dtype dtype, int n_dim,
                        const int64_t *dim);
/** The next n_bytes of tensor data; pads between tensors by itself. Data may come in parts.
 *  The first call writes the header, after which nothing may be added. SH_ESYS: disk full, ... */
sh_err sh_gguf_write(sh_gguf_writer *w, const void *data, size_t n_bytes);
/** Ends the file (SH_ESYS if data is missing or does not reach the disk) and frees the writer.
 *  With `keep` false the half-written file is removed. Accepts NULL. */
sh_err sh_gguf_close(sh_gguf_writer *w, bool keep);

#endif
