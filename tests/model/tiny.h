/* Small model files of every family for tests, whole or with something wrong. The weights are
 * zeros. */
#ifndef TESTS_MODEL_TINY_H
#define TESTS_MODEL_TINY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "formats/formats.h"
#include "model/family.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

typedef struct tiny {
    const sh_family *family; /* NULL: llama */
    int n_layer, n_embd, n_head, n_kv_head, head_dim, n_ff, n_vocab;
    sh_dtype dtype; /* of matrices; f16 where a row is no multiple of its block */
    /* what is wrong */
    const char *arch;    /* instead of the family's name */
    const char *without; /* a tensor or key that is left out */
    const char *as;      /* what is written in its place */
    const char *shape;   /* a tensor that gets one more row */
    const char *type;    /* a tensor that is q8_0 */
    const char *set;     /* an integer key that gets another value... */
    uint32_t to;         /* ...this */
    const char *setf;    /* the same with float32 */
    float tof;
    const char *sets; /* the same with a text */
    const char *tos;
} tiny;

typedef struct tiny_writer {
    const tiny *t;
    sh_gguf_writer *w;
    size_t n_bytes[1024];
    int n_tensor;
} tiny_writer;

static inline void tiny_tensor(tiny_writer *k, const char *name, int rows, int cols)
{
    const tiny *t = k->t;
    bool vec = cols == 1;
    sh_dtype d = vec ? SH_F32 : cols % sh_dtypes[t->dtype].block ? SH_F16 : t->dtype;
    if (t->without && strcmp(t->without, name) == 0) {
        if (!t->as) return;
        name = t->as;
    }
    if (t->shape && strcmp(t->shape, name) == 0) rows++;
    if (t->type && strcmp(t->type, name) == 0) d = SH_Q8_0;
    sh_gguf_add_tensor(k->w, name, d, vec ? 1 : 2,
                       vec ? (int64_t[]){rows} : (int64_t[]){cols, rows});
    assert_true(k->n_tensor < 1024);
    k->n_bytes[k->n_tensor++] = sh_dtype_bytes(d, (size_t)rows * (size_t)cols);
}

static inline void tiny_u32(tiny_writer *k, const char *arch, const char *what, int v)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", arch, what);
    if (k->t->without && strcmp(k->t->without, key) == 0) return;
    sh_gguf_put_u32(k->w, key, k->t->set && strcmp(k->t->set, key) == 0 ? k->t->to : (uint32_t)v);
}

enum { TINY_CTX = 256 };

static inline void tiny_metadata(tiny_writer *k, const char *name)
{
    const tiny *t = k->t;
    const char *arch = t->arch ? t->arch : name;
    if (!t->without || strcmp(t->without, "general.architecture") != 0)
        sh_gguf_put_str(k->w, "general.architecture", arch, strlen(arch));
    tiny_u32(k, name, "block_count", t->n_layer);
    tiny_u32(k, name, "context_length", TINY_CTX);
    tiny_u32(k, name, "embedding_length", t->n_embd);
    tiny_u32(k, name, "feed_forward_length", t->n_ff);
    tiny_u32(k, name, "attention.head_count", t->n_head);
    tiny_u32(k, name, "attention.head_count_kv", t->n_kv_head);
    tiny_u32(k, name, "attention.key_length", t->head_dim);
    tiny_u32(k, name, "attention.value_length", t->head_dim);
    tiny_u32(k, name, "rope.dimension_count", t->head_dim);
    if (t->set && strcmp(t->set, "llama.expert_count") == 0) sh_gguf_put_u32(k->w, t->set, t->to);
    if (t->setf) sh_gguf_put_f32(k->w, t->setf, t->tof);
    if (t->sets) sh_gguf_put_str(k->w, t->sets, t->tos, strlen(t->tos));
}

/* The tensors of some rows of the table, the parts of a fused one as one. */
static inline void tiny_tensors(tiny_writer *k, const sh_tensor_row *row, int layer)
{
    const tiny *t = k->t;
    const int dim[SH_N_DIM] = {
        [SH_DIM_ONE] = 1,
        [SH_DIM_EMBD] = t->n_embd,
        [SH_DIM_Q] = t->n_head * t->head_dim,
        [SH_DIM_KV] = t->n_kv_head * t->head_dim,
        [SH_DIM_FF] = t->n_ff,
        [SH_DIM_VOCAB] = t->n_vocab,
        [SH_DIM_CTX] = TINY_CTX,
    };
    for (const sh_tensor_row *r = row; r->gguf; r++) {
        char name[64];
        const char *d = strstr(r->gguf, "%d");
        int rows = dim[r->rows];
        if (r->optional) continue;
        if (d)
            snprintf(name, sizeof name, "%.*s%d%s", (int)(d - r->gguf), r->gguf, layer, d + 2);
        else
            snprintf(name, sizeof name, "%s", r->gguf);
        while (r[1].gguf && strcmp(r[1].gguf, r->gguf) == 0) rows += dim[(++r)->rows];
        tiny_tensor(k, name, rows, dim[r->cols]);
    }
}

/* Writes the file to `path`. */
static inline void tiny_write(const tiny *t, const char *path)
{
    const sh_family *family = t->family ? t->family : &sh_family_llama;
    tiny_writer k = {.t = t};
    OK(sh_gguf_create(&k.w, path));
    tiny_metadata(&k, family->name);
    tiny_tensors(&k, family->ends, -1);
    for (int l = 0; l < t->n_layer; l++) tiny_tensors(&k, family->layer, l);
    for (int i = 0; i < k.n_tensor; i++) {
        void *zeros = calloc(k.n_bytes[i], 1);
        assert_non_null(zeros);
        OK(sh_gguf_write(k.w, zeros, k.n_bytes[i]));
        free(zeros);
    }
    OK(sh_gguf_close(k.w, true));
}

/* Opened; the file is gone when this returns. */
static inline sh_model_file *tiny_open(const tiny *t)
{
    char path[] = "/tmp/shoal-tiny-XXXXXX";
    sh_model_file *m;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    tiny_write(t, path);
    sh_err err = sh_model_file_open(&m, path);
    unlink(path);
    OK(err);
    return m;
}

#endif
