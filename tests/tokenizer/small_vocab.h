/* A vocabulary that a test puts together, goes through a GGUF file and comes back as a tokenizer.
 */
#ifndef SH_TEST_SMALL_VOCAB_H
#define SH_TEST_SMALL_VOCAB_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tokenizer/byte_chars.h"
#include "tokenizer/tokenizer.h"

enum { SMALL_MAX = 1024, NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

typedef struct small_vocab {
    const char *kind;
    sh_str token[SMALL_MAX];
    float score[SMALL_MAX];
    int32_t type[SMALL_MAX];
    size_t n, n_score, n_type;      /* n_score and n_type follow n until a test changes them */
    int64_t bos, eos, eot, unknown; /* -1: the key is left out */
    int space_prefix, add_bos;      /* the same */
    sh_str merge[SMALL_MAX];        /* where the kind is gpt2 */
    size_t n_merge;                 /* SIZE_MAX: the key is left out */
    const char *pre;                /* NULL: the same */
} small_vocab;

static inline void small_add(small_vocab *v, const char *spelling, size_t n, float score, int type)
{
    char *copy = malloc(n + 1);
    if (!copy || v->n == SMALL_MAX) abort();
    memcpy(copy, spelling, n);
    v->token[v->n] = (sh_str){copy, n};
    v->score[v->n] = score;
    v->type[v->n] = type;
    v->n_score = v->n_type = ++v->n;
}

static inline void small_add_text(small_vocab *v, const char *spelling, float score)
{
    small_add(v, spelling, strlen(spelling), score, NORMAL);
}

/* <unk>, <s>, </s> and, if wanted, the 256 bytes as 3 to 258. */
static inline void small_init(small_vocab *v, bool bytes)
{
    char name[8];
    *v = (small_vocab){.kind = "llama",
                       .bos = 1,
                       .eos = 2,
                       .eot = -1,
                       .unknown = 0,
                       .space_prefix = -1,
                       .add_bos = -1};
    small_add(v, "<unk>", 5, 0, UNKNOWN);
    small_add(v, "<s>", 3, 0, CONTROL);
    small_add(v, "</s>", 4, 0, CONTROL);
    for (int b = 0; bytes && b < 256; b++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        small_add(v, name, 6, 0, BYTE);
    }
}

/* The 256 bytes in the alphabet of byte-level BPE as 0 to 255; no control tokens. */
static inline void small_init_bpe(small_vocab *v, bool bytes)
{
    char name[SH_BYTE_CHAR_MAX];
    *v = (small_vocab){.kind = "gpt2",
                       .bos = -1,
                       .eos = -1,
                       .eot = -1,
                       .unknown = -1,
                       .space_prefix = -1,
                       .add_bos = -1};
    for (int b = 0; bytes && b < 256; b++)
        small_add(v, name, sh_byte_char(name, (uint8_t)b), 0, NORMAL);
}

static inline void small_merge(small_vocab *v, const char *merge, size_t n)
{
    char *copy = malloc(n + 1);
    if (!copy || v->n_merge == SMALL_MAX) abort();
    memcpy(copy, merge, n);
    copy[n] = 0;
    v->merge[v->n_merge++] = (sh_str){copy, n};
}

static inline void small_free(small_vocab *v)
{
    for (size_t i = 0; i < v->n; i++) free((char *)v->token[i].p);
    for (size_t i = 0; i < v->n_merge; i++) free((char *)v->merge[i].p);
    v->n = v->n_merge = 0;
}

static inline sh_err small_write(const small_vocab *v, const char *path)
{
    sh_gguf_writer *w;
    SH_TRY(sh_gguf_create(&w, path));
    sh_gguf_put_str(w, "general.architecture", "llama", 5);
    if (v->kind) sh_gguf_put_str(w, "tokenizer.ggml.model", v->kind, strlen(v->kind));
    if (v->n) sh_gguf_put_strs(w, "tokenizer.ggml.tokens", v->token, v->n);
    if (v->n_score) sh_gguf_put_f32s(w, "tokenizer.ggml.scores", v->score, v->n_score);
    if (v->n_type) sh_gguf_put_i32s(w, "tokenizer.ggml.token_type", v->type, v->n_type);
    if (strcmp(v->kind ? v->kind : "", "gpt2") == 0 && v->n_merge != SIZE_MAX)
        sh_gguf_put_strs(w, "tokenizer.ggml.merges", v->merge, v->n_merge);
    if (v->pre) sh_gguf_put_str(w, "tokenizer.ggml.pre", v->pre, strlen(v->pre));
    if (v->bos >= 0) sh_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (v->eos >= 0) sh_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (v->eot >= 0) sh_gguf_put_u32(w, "tokenizer.ggml.eot_token_id", (uint32_t)v->eot);
    if (v->unknown >= 0)
        sh_gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unknown);
    if (v->space_prefix >= 0)
        sh_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix);
    if (v->add_bos >= 0) sh_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    return sh_gguf_close(w, true);
}

static inline sh_err small_open(sh_tokenizer **t, const small_vocab *v)
{
    char path[] = "/tmp/shoal-vocab-XXXXXX";
    sh_model_file *m = NULL;
    int fd = mkstemp(path);
    *t = NULL;
    if (fd < 0) return sh_fail(SH_ESYS, "%s: cannot be made", path);
    close(fd);
    sh_err err = small_write(v, path);
    if (err == SH_OK) err = sh_model_file_open(&m, path);
    if (err == SH_OK) err = sh_tokenizer_open(t, m);
    sh_model_file_close(m);
    unlink(path);
    return err;
}

/* The pieces of n tokens one after the other; free(). */
static inline char *small_decode(const sh_tokenizer *t, const uint32_t *id, size_t n, size_t *n_out)
{
    size_t len, at = 0;
    for (size_t i = 0; i < n; at += len, i++) sh_tokenizer_piece(t, id[i], &len);
    char *out = malloc(at + 1);
    if (!out) abort();
    *n_out = at;
    at = 0;
    for (size_t i = 0; i < n; at += len, i++) {
        const char *p = sh_tokenizer_piece(t, id[i], &len);
        memcpy(out + at, p, len);
    }
    return out;
}

#endif
