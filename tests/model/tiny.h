/* Small model files of family llama for tests, whole or with something wrong. The weights are
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
    int n_layer, n_embd, n_head, n_kv_head, head_dim, n_ff, n_vocab;
    sh_dtype dtype; /* of matrices; f16 where a row is no multiple of its block */
    /* what is wrong */
    const char *arch;    /* instead of "llama" */
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

static inline void tiny_u32(tiny_writer *k, const char *key, int v)
{
    if (k->t->without && strcmp(k->t->without, key) == 0) return;
    sh_gguf_put_u32(k->w, key, k->t->set && strcmp(k->t->set, key) == 0 ? k->t->to : (uint32_t)v);
}

/* Writes the file to `path`. */
static inline void tiny_write(const tiny *t, const char *path)
{
    tiny_writer k = {.t = t};
    const char *arch = t->arch ? t->arch : "llama";
    int q = t->n_head * t->head_dim, kv = t->n_kv_head * t->head_dim;
    char name[64];
    OK(sh_gguf_create(&k.w, path));
    if (!t->without || strcmp(t->without, "general.architecture") != 0)
        sh_gguf_put_str(k.w, "general.architecture", arch, strlen(arch));
    tiny_u32(&k, "llama.block_count", t->n_layer);
    tiny_u32(&k, "llama.context_length", 256);
    tiny_u32(&k, "llama.embedding_length", t->n_embd);
    tiny_u32(&k, "llama.feed_forward_length", t->n_ff);
    tiny_u32(&k, "llama.attention.head_count", t->n_head);
    tiny_u32(&k, "llama.attention.head_count_kv", t->n_kv_head);
    tiny_u32(&k, "llama.attention.key_length", t->head_dim);
    tiny_u32(&k, "llama.attention.value_length", t->head_dim);
    tiny_u32(&k, "llama.rope.dimension_count", t->head_dim);
    if (t->set && strcmp(t->set, "llama.expert_count") == 0) sh_gguf_put_u32(k.w, t->set, t->to);
    if (t->setf) sh_gguf_put_f32(k.w, t->setf, t->tof);
    if (t->sets) sh_gguf_put_str(k.w, t->sets, t->tos, strlen(t->tos));
    tiny_tensor(&k, "token_embd.weight", t->n_vocab, t->n_embd);
    for (int l = 0; l < t->n_layer; l++) {
#define NAME(what) (snprintf(name, sizeof name, "blk.%d." what ".weight", l), name)
        tiny_tensor(&k, NAME("attn_norm"), t->n_embd, 1);
        tiny_tensor(&k, NAME("attn_q"), q, t->n_embd);
        tiny_tensor(&k, NAME("attn_k"), kv, t->n_embd);
        tiny_tensor(&k, NAME("attn_v"), kv, t->n_embd);
        tiny_tensor(&k, NAME("attn_output"), t->n_embd, q);
        tiny_tensor(&k, NAME("ffn_norm"), t->n_embd, 1);
        tiny_tensor(&k, NAME("ffn_gate"), t->n_ff, t->n_embd);
        tiny_tensor(&k, NAME("ffn_up"), t->n_ff, t->n_embd);
        tiny_tensor(&k, NAME("ffn_down"), t->n_embd, t->n_ff);
#undef NAME
    }
    tiny_tensor(&k, "output_norm.weight", t->n_embd, 1);
    tiny_tensor(&k, "output.weight", t->n_vocab, t->n_embd);
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
