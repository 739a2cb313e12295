#define _GNU_SOURCE
#include "formats/shape.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cursor.h"
#include "base/dtype.h"
#include "base/mem.h"
#include "formats/formats.h"

/* Every tensor begins at a page; every matrix at a multiple of the window's block as well. A window
 * of WINDOW elements is a whole number of pages and of blocks for all types with blocks of up to
 * 256. */
enum { ALIGNMENT = 4096, WINDOW = 31 * 131072, CHUNK = 4096 };

typedef enum dim { ONE, EMBD, Q, KV, QKV, FF, VOCAB, CTX, N_DIM } dim;

typedef struct row {
    const char *name; /* %d is the layer */
    dim rows, cols;   /* a vector has cols ONE */
    float value;      /* of a vector's values */
} row;

typedef struct maker maker;

typedef struct family {
    const char *name;
    const row *layer, *ends;   /* end with a row without a name */
    void (*put_own)(maker *k); /* metadata that others do not have */
} family;

static const row llama_layer[] = {
    {"blk.%d.attn_norm.weight", EMBD, ONE, 1}, {"blk.%d.attn_q.weight", Q, EMBD, 0},
    {"blk.%d.attn_k.weight", KV, EMBD, 0},     {"blk.%d.attn_v.weight", KV, EMBD, 0},
    {"blk.%d.attn_output.weight", EMBD, Q, 0}, {"blk.%d.ffn_norm.weight", EMBD, ONE, 1},
    {"blk.%d.ffn_gate.weight", FF, EMBD, 0},   {"blk.%d.ffn_up.weight", FF, EMBD, 0},
    {"blk.%d.ffn_down.weight", EMBD, FF, 0},   {0},
};
static const row llama_ends[] = {
    {"token_embd.weight", VOCAB, EMBD, 0},
    {"output_norm.weight", EMBD, ONE, 1},
    {"output.weight", VOCAB, EMBD, 0},
    {0},
};
static const row gpt2_layer[] = {
    {"blk.%d.attn_norm.weight", EMBD, ONE, 1},
    {"blk.%d.attn_norm.bias", EMBD, ONE, 0},
    {"blk.%d.attn_qkv.weight", QKV, EMBD, 0},
    {"blk.%d.attn_qkv.bias", QKV, ONE, 0},
    {"blk.%d.attn_output.weight", EMBD, Q, 0},
    {"blk.%d.attn_output.bias", EMBD, ONE, 0},
    {"blk.%d.ffn_norm.weight", EMBD, ONE, 1},
    {"blk.%d.ffn_norm.bias", EMBD, ONE, 0},
    {"blk.%d.ffn_up.weight", FF, EMBD, 0},
    {"blk.%d.ffn_up.bias", FF, ONE, 0},
    {"blk.%d.ffn_down.weight", EMBD, FF, 0},
    {"blk.%d.ffn_down.bias", EMBD, ONE, 0},
    {0},
};
static const row gpt2_ends[] = {
    {"token_embd.weight", VOCAB, EMBD, 0},
    {"position_embd.weight", CTX, EMBD, 0},
    {"output_norm.weight", EMBD, ONE, 1},
    {"output_norm.bias", EMBD, ONE, 0},
    {0},
};
static const row gptj_layer[] = {
    {"blk.%d.attn_norm.weight", EMBD, ONE, 1},
    {"blk.%d.attn_norm.bias", EMBD, ONE, 0},
    {"blk.%d.attn_q.weight", Q, EMBD, 0},
    {"blk.%d.attn_k.weight", KV, EMBD, 0},
    {"blk.%d.attn_v.weight", KV, EMBD, 0},
    {"blk.%d.attn_output.weight", EMBD, Q, 0},
    {"blk.%d.ffn_up.weight", FF, EMBD, 0},
    {"blk.%d.ffn_up.bias", FF, ONE, 0},
    {"blk.%d.ffn_down.weight", EMBD, FF, 0},
    {"blk.%d.ffn_down.bias", EMBD, ONE, 0},
    {0},
};
static const row gptj_ends[] = {
    {"token_embd.weight", VOCAB, EMBD, 0}, {"output_norm.weight", EMBD, ONE, 1},
    {"output_norm.bias", EMBD, ONE, 0},    {"output.weight", VOCAB, EMBD, 0},
    {"output.bias", VOCAB, ONE, 0},        {0},
};
static void put_llama(maker *k), put_gpt2(maker *k), put_gptj(maker *k);
static const family llama = {"llama", llama_layer, llama_ends, put_llama};
static const family gpt2 = {"gpt2", gpt2_layer, gpt2_ends, put_gpt2};
static const family gptj = {"gptj", gptj_layer, gptj_ends, put_gptj};

typedef struct shape {
    const char *name;
    const family *family;
    int n_layer, n_embd, n_head, n_kv_head, n_ff, n_vocab, n_ctx;
    float rope_base; /* of family llama */
} shape;

static const shape shapes[] = {
    {"tinyllama", &llama, 22, 2048, 32, 4, 5632, 32000, 2048, 10000},
    {"llama2-7b", &llama, 32, 4096, 32, 32, 11008, 32000, 4096, 10000},
    {"llama2-13b", &llama, 40, 5120, 40, 40, 13824, 32000, 4096, 10000},
    {"llama3-8b", &llama, 32, 4096, 32, 8, 14336, 128256, 8192, 500000},
    {"nanollama", &llama, 12, 1024, 16, 4, 5632, 32000, 2048, 10000}, /* 304.6 M parameters */
    {"gpt2", &gpt2, 12, 768, 12, 12, 3072, 50257, 1024, 0},
    {"gpt2-medium", &gpt2, 24, 1024, 16, 16, 4096, 50257, 1024, 0},
    {"gpt2-large", &gpt2, 36, 1280, 20, 20, 5120, 50257, 1024, 0},
    {"gpt2-xl", &gpt2, 48, 1600, 25, 25, 6400, 50257, 1024, 0},
    {"gptj-6b", &gptj, 28, 4096, 16, 16, 16384, 50400, 2048, 0},
    {0},
};

/* A model being made. */
struct maker {
    const shape *shape;
    sh_dtype dtype;
    uint64_t seed;
    sh_buf head; /* the file up to its matrices */
    int n_meta, n_tensor;
    sh_buf table, vectors; /* of the tensors; their values */
    size_t vector_bytes, matrix_bytes;
};

bool sh_shape_is(const char *path)
{
    return strncmp(path, "shape:", 6) == 0;
}

/* ---- the header ---- */

static void put_str(sh_buf *b, const char *s)
{
    sh_put_u64(b, strlen(s));
    sh_put_bytes(b, s, strlen(s));
}

static void put_key(maker *k, const char *key, sh_meta_type type)
{
    char name[96];
    snprintf(name, sizeof name, "%s%s", *key == '.' ? k->shape->family->name : "", key);
    put_str(&k->head, name);
    sh_put_u32(&k->head, type);
    k->n_meta++;
}

static void put_u32(maker *k, const char *key, uint32_t v)
{
    put_key(k, key, SH_META_U32);
    sh_put_u32(&k->head, v);
}

static void put_text(maker *k, const char *key, const char *v)
{
    put_key(k, key, SH_META_STR);
    put_str(&k->head, v);
}

static void put_f32(maker *k, const char *key, float v)
{
    put_key(k, key, SH_META_F32);
    sh_put_f32(&k->head, v);
}

static void put_array(maker *k, const char *key, sh_meta_type item, int n)
{
    put_key(k, key, SH_META_ARRAY);
    sh_put_u32(&k->head, item);
    sh_put_u64(&k->head, (uint64_t)n);
}

/* A SentencePiece vocabulary: <unk>, <s>, </s>, the bytes, and words that mean nothing. */
static void put_llama(maker *k)
{
    static const char *const control[] = {"<unk>", "<s>", "</s>"};
    int n = k->shape->n_vocab;
    char text[16];
    put_f32(k, ".attention.layer_norm_rms_epsilon", 1e-5f);
    put_f32(k, ".rope.freq_base", k->shape->rope_base);
    put_text(k, "tokenizer.ggml.model", "llama");
    put_u32(k, "tokenizer.ggml.bos_token_id", 1);
    put_u32(k, "tokenizer.ggml.eos_token_id", 2);
    put_u32(k, "tokenizer.ggml.unknown_token_id", 0);
    put_array(k, "tokenizer.ggml.tokens", SH_META_STR, n);
    for (int i = 0; i < n; i++) {
        if (i < 3)
            snprintf(text, sizeof text, "%s", control[i]);
        else if (i < 259)
            snprintf(text, sizeof text, "<0x%02X>", (unsigned)(i - 3) & 0xff);
        else
            snprintf(text, sizeof text, "\xe2\x96\x81t%d", i);
        put_str(&k->head, text);
    }
    put_array(k, "tokenizer.ggml.scores", SH_META_F32, n);
    for (int i = 0; i < n; i++) sh_put_f32(&k->head, (float)-i);
    put_array(k, "tokenizer.ggml.token_type", SH_META_I32, n);
    for (int i = 0; i < n; i++) /* unknown, control, byte, normal: the values of GGUF */
        sh_put_u32(&k->head, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
}

/* A byte-level BPE vocabulary, as gpt-2's: the bytes, each as a printable character; words that
 * mean nothing; the end of a text. One merge: " t". */
static void put_gpt2(maker *k)
{
    int n = k->shape->n_vocab, n_odd = 0;
    char text[16];
    put_f32(k, ".attention.layer_norm_epsilon", 1e-5f);
    put_text(k, "tokenizer.ggml.model", "gpt2");
    put_text(k, "tokenizer.ggml.pre", "gpt-2");
    put_u32(k, "tokenizer.ggml.bos_token_id", (uint32_t)n - 1);
    put_u32(k, "tokenizer.ggml.eos_token_id", (uint32_t)n - 1);
    put_array(k, "tokenizer.ggml.tokens", SH_META_STR, n);
    for (int b = 0; b < 256; b++) { /* what cannot be printed: the characters from U+0100 on */
        bool plain = (b > ' ' && b < 0x7f) || (b > 0xa0 && b != 0xad);
        int c = plain ? b : 0x100 + n_odd++;
        char utf8[] = {(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f)), 0};
        if (c < 0x80) utf8[0] = (char)c, utf8[1] = 0;
        put_str(&k->head, utf8);
    }
    put_str(&k->head, "\xc4\xa0t"); /* U+0120 is the space */
    for (int i = 257; i < n - 1; i++) {
        snprintf(text, sizeof text, "\xc4\xa0t%d", i);
        put_str(&k->head, text);
    }
    put_str(&k->head, "<|endoftext|>");
    put_array(k, "tokenizer.ggml.token_type", SH_META_I32, n);
    for (int i = 0; i < n; i++) sh_put_u32(&k->head, i == n - 1 ? 3 : 1); /* control, normal */
    put_array(k, "tokenizer.ggml.merges", SH_META_STR, 1);
    put_str(&k->head, "\xc4\xa0 t");
}

static void put_gptj(maker *k)
{
    put_u32(k, ".rope.dimension_count", 64);
    put_gpt2(k);
}

static void put_metadata(maker *k, const char *path)
{
    const shape *s = k->shape;
    put_text(k, "general.architecture", s->family->name);
    put_text(k, "general.name", path);
    put_u32(k, "general.alignment", ALIGNMENT);
    put_u32(k, ".block_count", (uint32_t)s->n_layer);
    put_u32(k, ".context_length", (uint32_t)s->n_ctx);
    put_u32(k, ".embedding_length", (uint32_t)s->n_embd);
    put_u32(k, ".feed_forward_length", (uint32_t)s->n_ff);
    put_u32(k, ".attention.head_count", (uint32_t)s->n_head);
    put_u32(k, ".attention.head_count_kv", (uint32_t)s->n_kv_head);
    s->family->put_own(k);
}

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Counts vectors with `table` false; then, once their bytes are known, puts all tensors down. */
static void put_tensor(maker *k, const row *r, int layer, bool table, size_t *vector_at)
{
    const shape *s = k->shape;
    const int head_dim = s->n_embd / s->n_head, q = s->n_head * head_dim,
              kv = s->n_kv_head * head_dim;
    const int size[N_DIM] = {1, s->n_embd, q, kv, q + 2 * kv, s->n_ff, s->n_vocab, s->n_ctx};
    bool vector = r->cols == ONE;
    char name[96];
    const char *d = strstr(r->name, "%d");
    if (d)
        snprintf(name, sizeof name, "%.*s%d%s", (int)(d - r->name), r->name, layer, d + 2);
    else
        snprintf(name, sizeof name, "%s", r->name);
    sh_dtype t = vector ? SH_F32 : k->dtype;
    size_t n_bytes = sh_dtype_bytes(t, (size_t)size[r->rows] * (size_t)size[r->cols]);
    if (!table) {
        if (vector) k->vector_bytes += round_up(n_bytes, ALIGNMENT);
        return;
    }
    put_str(&k->table, name);
    sh_put_u32(&k->table, vector ? 1 : 2);
    if (!vector) sh_put_u64(&k->table, (uint64_t)size[r->cols]);
    sh_put_u64(&k->table, (uint64_t)size[r->rows]);
    sh_put_u32(&k->table, sh_dtypes[t].gguf_id);
    sh_put_u64(&k->table, vector ? *vector_at : k->vector_bytes + k->matrix_bytes);
    if (vector) {
        *vector_at += round_up(n_bytes, ALIGNMENT);
        for (size_t i = 0; i < n_bytes; i += sizeof(float)) sh_put_f32(&k->vectors, r->value);
        while (k->vectors.n % ALIGNMENT) sh_put_u8(&k->vectors, 0);
    } else {
        k->matrix_bytes += round_up(n_bytes, ALIGNMENT * (size_t)sh_dtypes[t].block_bytes);
    }
    k->n_tensor++;
}

static void put_tensors(maker *k, bool table)
{
    size_t vector_at = 0;
    for (const row *r = k->shape->family->ends; r->name; r++)
        put_tensor(k, r, -1, table, &vector_at);
    for (int l = 0; l < k->shape->n_layer; l++)
        for (const row *r = k->shape->family->layer; r->name; r++)
            put_tensor(k, r, l, table, &vector_at);
}

static sh_err make_head(maker *k, const char *path)
{
    put_tensors(k, false);
    put_tensors(k, true);
    sh_put_bytes(&k->head, "GGUF", 4);
    sh_put_u32(&k->head, 3);
    sh_put_u64(&k->head, (uint64_t)k->n_tensor);
    size_t at = k->head.n; /* the number of entries is known when they are there */
    sh_put_u64(&k->head, 0);
    put_metadata(k, path);
    sh_put_bytes(&k->head, k->table.p, k->table.n);
    while (k->head.n % ALIGNMENT) sh_put_u8(&k->head, 0);
    sh_put_bytes(&k->head, k->vectors.p, k->vectors.n);
    if (k->head.bad || k->table.bad || k->vectors.bad)
        return sh_fail(SH_ENOMEM, "no memory for a header");
    k->head.p[at] = (uint8_t)k->n_meta;
    return SH_OK;
}

/* ---- the window ---- */

/* Splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform, of variance 1 / n_embd: activations keep about their size from layer to layer. */
static void fill_window(const maker *k, uint8_t *p)
{
    uint64_t state = k->seed;
    float x[CHUNK], scale = 2.0f * sqrtf(3.0f / (float)k->shape->n_embd) / (float)(1u << 24);
    for (int at = 0; at < WINDOW; at += CHUNK) {
        for (int i = 0; i < CHUNK; i += 2) {
            uint64_t r = next_random(&state);
            x[i] = scale * (float)((int32_t)(r & 0xffffff) - (1 << 23));
            x[i + 1] = scale * (float)((int32_t)(r >> 40) - (1 << 23));
        }
        sh_dtypes[k->dtype].from_f32(p + sh_dtype_bytes(k->dtype, (size_t)at), x, CHUNK);
    }
}

/* One file in memory: the head, then the window. */
static sh_err make_memory(const maker *k, int *out)
{
    size_t window = sh_dtype_bytes(k->dtype, WINDOW), n = k->head.n + window;
    int fd = memfd_create("shoal shape", MFD_CLOEXEC);
    uint8_t *p = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)n) == 0)
        p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        int e = errno;
        if (fd >= 0) close(fd);
        return sh_fail(SH_ENOMEM, "a shape needs %zu bytes: %s", n, strerror(e));
    }
    memcpy(p, k->head.p, k->head.n);
    fill_window(k, p + k->head.n);
    munmap(p, n);
    *out = fd;
    return SH_OK;
}

/* The head once, the window as often as the matrices need it. */
static sh_err map_file(sh_file *f, const maker *k, int fd)
{
    size_t window = sh_dtype_bytes(k->dtype, WINDOW), head = k->head.n, n = head + k->matrix_bytes;
    uint8_t *p = mmap(NULL, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return sh_fail(SH_ENOMEM, "no room for %zu bytes of addresses", n);
    f->data = p;
    f->n_bytes = n;
    f->mapped = true;
    if (mmap(p, head, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return sh_fail(SH_ENOMEM, "cannot map a shape: %s", strerror(errno));
    for (size_t at = 0; at < k->matrix_bytes; at += window) {
        size_t part = k->matrix_bytes - at < window ? k->matrix_bytes - at : window;
        if (mmap(p + head + at, part, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)head) ==
            MAP_FAILED)
            return sh_fail(SH_ENOMEM, "cannot map a shape: %s", strerror(errno));
    }
    return SH_OK;
}

/* ---- the name ---- */

static sh_err find_shape(maker *k, const char *name, size_t n)
{
    char list[256] = "";
    for (const shape *s = shapes; s->name; s++) {
        if (strlen(s->name) == n && memcmp(s->name, name, n) == 0) k->shape = s;
        size_t at = strlen(list);
        snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", s->name);
    }
    if (k->shape) return SH_OK;
    return sh_fail(SH_EARG, "no shape is called '%.*s'; the shapes are: %s", (int)(n < 40 ? n : 40),
                   name, list);
}

static sh_err find_type(maker *k, const char *name, size_t n)
{
    char list[256] = "";
    bool found = false;
    for (int t = 0; t < SH_N_DTYPE; t++) {
        const sh_dtype_info *d = &sh_dtypes[t];
        if (!d->from_f32 || WINDOW % d->block) continue;
        if (strlen(d->name) == n && memcmp(d->name, name, n) == 0) {
            k->dtype = (sh_dtype)t;
            found = true;
        }
        size_t at = strlen(list);
        snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", d->name);
    }
    if (found) return SH_OK;
    return sh_fail(SH_EARG, "no type of weights is called '%.*s'; the types are: %s",
                   (int)(n < 40 ? n : 40), name, list);
}

static sh_err parse_path(maker *k, const char *path)
{
    const char *name = path + strlen("shape:");
    size_t n = strcspn(name, ":");
    SH_TRY(find_shape(k, name, n));
    const char *type = name[n] ? name + n + 1 : "";
    size_t n_type = strcspn(type, ":");
    SH_TRY(find_type(k, type, n_type));
    if (!type[n_type]) return SH_OK;
    char *end;
    errno = 0;
    k->seed = strtoull(type + n_type + 1, &end, 10);
    if (!strchr("0123456789", type[n_type + 1]) || end == type + n_type + 1 || *end || errno)
        return sh_fail(SH_EARG, "%s: a seed must be a whole number", path);
    return SH_OK;
}

sh_err sh_shape_open(sh_file *f, const char *path)
{
    maker k = {.seed = 1};
    sh_err err;
    int fd = -1;
    *f = (sh_file){0};
    SH_GOTO(parse_path(&k, path));
    if (!(f->path = strdup(path))) {
        err = sh_fail(SH_ENOMEM, "no memory for a name");
        goto out;
    }
    SH_GOTO(make_head(&k, path));
    SH_GOTO(make_memory(&k, &fd));
    err = map_file(f, &k, fd);
out:
    if (fd >= 0) close(fd);
    if (err != SH_OK) sh_file_close(f);
    sh_buf_free(&k.head);
    sh_buf_free(&k.table);
    sh_buf_free(&k.vectors);
    return err;
}
