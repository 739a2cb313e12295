/* GGUF: what is written is read back; what is damaged is refused with a sentence that names the
 * file, and never costs memory that the file does not justify. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <malloc.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "formats/formats.h"

static char folder[] = "/tmp/shoal-gguf-XXXXXX", path[64];

static volatile uint8_t sink; /* so that every byte is really read */

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    return 0;
}
static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder); /* fails if anything was left behind */
}

static int files_in_folder(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

/* A file in memory, in a block of exactly its size. */
typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

static bytes read_bytes(void)
{
    FILE *f = fopen(path, "rb");
    bytes b = {0};
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    b.n = (size_t)ftell(f);
    rewind(f);
    b.p = malloc(b.n);
    assert_int_equal(fread(b.p, 1, b.n, f), b.n);
    fclose(f);
    return b;
}
static void write_bytes(const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* The verdict over n bytes, copied to a block of exactly that size so that a sanitizer sees a read
 * past the end. A good file is walked through as a user would. */
static sh_err verdict(const uint8_t *p, size_t n)
{
    sh_model_file *m = calloc(1, sizeof *m);
    uint8_t *copy = malloc(n ? n : 1), hash[16];
    uint8_t sum = 0;
    assert_true(m && copy);
    if (n) memcpy(copy, p, n);
    m->file = (sh_file){.path = strdup("bad.gguf"), .data = copy, .n_bytes = n};
    sh_err err = sh_model_file_parse(m);
    if (err == SH_OK) {
        for (size_t i = 0; i < m->n_tensor; i++) {
            assert_ptr_equal(sh_model_file_tensor(m, m->tensor[i].name), &m->tensor[i]);
            for (size_t j = 0; j < m->tensor[i].n_bytes; j++) sum ^= m->tensor[i].data[j];
        }
        for (size_t i = 0; i < m->n_meta; i++)
            assert_ptr_equal(sh_model_file_meta(m, m->meta[i].key), &m->meta[i]);
        sh_model_file_hash(m, hash);
        sink = sum;
    } else {
        assert_int_equal(err, SH_EFILE);
        assert_memory_equal(sh_err_message(), "bad.gguf: ", 10);
        assert_true(strlen(sh_err_message()) > 20);
    }
    m->file.data = NULL; /* not a map */
    sh_model_file_close(m);
    free(copy);
    return err;
}

static void refused(bytes b, const char *why)
{
    assert_int_equal(verdict(b.p, b.n), SH_EFILE);
    if (!strstr(sh_err_message(), why)) fail_msg("'%s' in '%s'", why, sh_err_message());
}

static const sh_meta scalar[] = {
    {.key = "t.u8", .type = SH_META_U8, .u = 200},
    {.key = "t.i8", .type = SH_META_I8, .i = -100},
    {.key = "t.u16", .type = SH_META_U16, .u = 60000},
    {.key = "t.i16", .type = SH_META_I16, .i = -30000},
    {.key = "t.u32", .type = SH_META_U32, .u = 4000000000u},
    {.key = "t.i32", .type = SH_META_I32, .i = -2000000000},
    {.key = "t.f32", .type = SH_META_F32, .f = 0.1f},
    {.key = "t.bool", .type = SH_META_BOOL, .u = 1},
    {.key = "t.str", .type = SH_META_STR, .str = {"a\0b\xff", 4}},
    {.key = "t.u64", .type = SH_META_U64, .u = UINT64_MAX},
    {.key = "t.i64", .type = SH_META_I64, .i = INT64_MIN},
    {.key = "t.f64", .type = SH_META_F64, .f = 0.1},
};
enum { N_SCALAR = sizeof scalar / sizeof *scalar, N_WEIGHT = 6 };

/* An array of two arrays: of u16 {1, 2} and of one string. */
static const uint8_t nested[] = {2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0,   0,
                                 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 'h', 'i'};

/* Every metadata type, and a tensor "w.<type>" (2, 32) of each element type after a vector. */
static void put_all(sh_gguf_writer *w)
{
    const sh_str strs[] = {{"", 0}, {"two", 3}};
    sh_gguf_put_str(w, "general.architecture", "llama", 5);
    for (int i = 0; i < N_SCALAR; i++) sh_gguf_put_meta(w, &scalar[i]);
    for (int t = 0; t < SH_N_META_TYPE; t++) { /* two items of 0, and none */
        static const uint8_t zero[16], size[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
        char key[32];
        snprintf(key, sizeof key, "t.array.%d", t);
        sh_gguf_put_meta(
            w, &(sh_meta){.key = key,
                          .type = SH_META_ARRAY,
                          .item_type = (sh_meta_type)t,
                          .n = t == SH_META_ARRAY ? 0 : 2,
                          .bytes = {(const char *)zero, t == SH_META_ARRAY ? 0u : 2u * size[t]}});
    }
    sh_gguf_put_meta(w, &(sh_meta){.key = "t.nested",
                                   .type = SH_META_ARRAY,
                                   .item_type = SH_META_ARRAY,
                                   .n = 2,
                                   .bytes = {(const char *)nested, sizeof nested}});
    sh_gguf_put_strs(w, "strs", strs, 2);
    sh_gguf_put_f32s(w, "f32s", (float[]){1.5f, -2}, 2);
    sh_gguf_put_i32s(w, "i32s", (int32_t[]){-1, 7, 8}, 3);
    sh_gguf_put_bool(w, "no", false);
    sh_gguf_put_u32(w, "one", 1);
    sh_gguf_put_f32(w, "half", 0.5f);
    sh_gguf_add_tensor(w, "vector", SH_F32, 1, (int64_t[]){3});
    for (int t = 0; t < SH_N_DTYPE; t++) {
        char name[16];
        snprintf(name, sizeof name, "w.%s", sh_dtypes[t].name);
        sh_gguf_add_tensor(w, name, (sh_dtype)t, 2, (int64_t[]){32, 2});
    }
}

/* The bytes of tensor i, in pieces of 7. */
static void put_data(sh_gguf_writer *w, int i, size_t n)
{
    uint8_t b[256];
    for (size_t j = 0; j < n; j++) b[j] = (uint8_t)(17 * i + (int)j);
    for (size_t j = 0; j < n; j += 7)
        assert_int_equal(sh_gguf_write(w, b + j, n - j < 7 ? n - j : 7), SH_OK);
}

static bytes make_all(void)
{
    sh_gguf_writer *w;
    assert_int_equal(sh_gguf_create(&w, path), SH_OK);
    put_all(w);
    put_data(w, 0, 12);
    for (int t = 0; t < SH_N_DTYPE; t++) put_data(w, 1 + t, sh_dtype_bytes((sh_dtype)t, 64));
    assert_int_equal(sh_gguf_close(w, true), SH_OK);
    return read_bytes();
}

static void check_meta(const sh_model_file *m, const sh_meta *want)
{
    const sh_meta *v = sh_model_file_meta(m, want->key);
    assert_non_null(v);
    assert_int_equal(v->type, want->type);
    if (v->type == SH_META_STR) {
        assert_int_equal(v->str.n, want->str.n);
        assert_memory_equal(v->str.p, want->str.p, v->str.n);
    } else if (v->type == SH_META_F32 || v->type == SH_META_F64) {
        assert_true(v->f == want->f);
    } else {
        assert_true(v->u == want->u);
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    sh_model_file *m;
    const sh_meta *a;
    bytes b = make_all();
    assert_int_equal(files_in_folder(), 1);
    assert_int_equal(sh_model_file_open(&m, path), SH_OK);
    assert_int_equal(m->version, 3);
    for (int i = 0; i < N_SCALAR; i++) check_meta(m, &scalar[i]);
    assert_int_equal(sh_meta_array(m, "t.nested", SH_META_ARRAY, &a), SH_OK);
    assert_int_equal(a->n, 2);
    assert_int_equal(a->bytes.n, sizeof nested);
    assert_memory_equal(a->bytes.p, nested, sizeof nested);
    assert_int_equal(sh_meta_array(m, "strs", SH_META_STR, &a), SH_OK);
    sh_cursor c = sh_meta_cursor(a);
    assert_int_equal(sh_get_str(&c).n, 0);
    assert_memory_equal(sh_get_str(&c).p, "two", 3);
    assert_false(c.bad);
    assert_null(sh_get_str(&c).p);
    assert_true(c.bad);
    assert_int_equal(sh_meta_array(m, "i32s", SH_META_I32, &a), SH_OK);
    c = sh_meta_cursor(a);
    assert_int_equal((int32_t)sh_get_u32(&c), -1);

    assert_int_equal(m->n_tensor, N_WEIGHT);
    for (int i = 0; i < N_WEIGHT; i++) {
        const sh_tensor *t = &m->tensor[i];
        assert_int_equal(t->n_dim, i ? 2 : 1);
        assert_int_equal(t->dim[0], i ? 32 : 3);
        assert_int_equal(t->dim[1], i ? 2 : 1);
        assert_int_equal((size_t)(t->data - m->file.data) % 32, 0);
        assert_int_equal(t->n_bytes, i ? sh_dtype_bytes((sh_dtype)(i - 1), 64) : 12);
        for (size_t j = 0; j < t->n_bytes; j++)
            assert_int_equal(t->data[j], (uint8_t)(17 * i + (int)j));
    }
    sh_model_file_close(m);
    free(b.p);
}

/* Every value of another file, written again: the same file. */
static void test_copy_is_equal(void **state)
{
    (void)state;
    sh_model_file *m;
    sh_gguf_writer *w;
    bytes a = make_all(), b;
    assert_int_equal(sh_model_file_open(&m, path), SH_OK);
    assert_int_equal(sh_gguf_create(&w, path), SH_OK); /* over the open one */
    for (size_t i = 0; i < m->n_meta; i++) sh_gguf_put_meta(w, &m->meta[i]);
    for (size_t i = 0; i < m->n_tensor; i++)
        sh_gguf_add_tensor(w, m->tensor[i].name, m->tensor[i].dtype, m->tensor[i].n_dim,
                           m->tensor[i].dim);
    for (size_t i = 0; i < m->n_tensor; i++)
        assert_int_equal(sh_gguf_write(w, m->tensor[i].data, m->tensor[i].n_bytes), SH_OK);
    assert_int_equal(sh_gguf_close(w, true), SH_OK);
    sh_model_file_close(m);
    b = read_bytes();
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.p, b.p, a.n);
    free(a.p);
    free(b.p);
}

static void test_look_ups(void **state)
{
    (void)state;
    sh_model_file *m;
    uint32_t u = 77;
    float f = 77;
    bool yes = false;
    sh_str s = {0};
    const sh_meta *a;
    bytes b = make_all();
    assert_int_equal(sh_model_file_open(&m, path), SH_OK);
    assert_int_equal(sh_meta_u32(m, "no.such", &u), SH_OK);
    assert_int_equal(u, 77);
    assert_int_equal(sh_meta_need_u32(m, "no.such", &u), SH_EFILE);
    assert_non_null(strstr(sh_err_message(), "no.such"));
    assert_non_null(strstr(sh_err_message(), path));
    assert_int_equal(sh_meta_need_str(m, "no.such", &s), SH_EFILE);
    assert_int_equal(sh_meta_u32(m, "t.u16", &u), SH_OK);
    assert_int_equal(u, 60000);
    assert_int_equal(sh_meta_u32(m, "t.u64", &u), SH_EFILE);
    assert_int_equal(sh_meta_u32(m, "t.i8", &u), SH_EFILE);
    assert_int_equal(sh_meta_u32(m, "t.f32", &u), SH_EFILE);
    assert_int_equal(u, 60000);
    assert_int_equal(sh_meta_f32(m, "t.f64", &f), SH_OK);
    assert_true(f == 0.1f);
    assert_int_equal(sh_meta_f32(m, "one", &f), SH_EFILE);
    assert_int_equal(sh_meta_bool(m, "t.bool", &yes), SH_OK);
    assert_true(yes);
    assert_int_equal(sh_meta_bool(m, "one", &yes), SH_EFILE);
    assert_int_equal(sh_meta_need_str(m, "general.architecture", &s), SH_OK);
    assert_int_equal(s.n, 5);
    assert_int_equal(sh_meta_str(m, "one", &s), SH_EFILE);
    assert_int_equal(sh_meta_array(m, "no.such", SH_META_STR, &a), SH_OK);
    assert_null(a);
    assert_int_equal(sh_meta_array(m, "strs", SH_META_I32, &a), SH_EFILE);
    assert_int_equal(sh_meta_array(m, "one", SH_META_I32, &a), SH_EFILE);
    assert_null(sh_model_file_tensor(m, "w.f3"));
    assert_null(sh_model_file_tensor(m, "w.f322"));
    sh_model_file_close(m);
    free(b.p);
}

static void test_hash(void **state)
{
    (void)state;
    sh_model_file *m;
    uint8_t first[16], hash[16];
    bytes b = make_all();
    for (int i = 0; i < 5; i++) {
        /* 0, 1: as it was. 2: metadata. 3: a weight. 4: the length. */
        if (i == 2) *((uint8_t *)memmem(b.p, b.n, "llama", 5)) = 'L';
        if (i == 3) b.p[b.n - 36] ^= 1;
        if (i == 4) b.p = realloc(b.p, b.n + 32);
        if (i == 4) memset(b.p + b.n, 0, 32);
        write_bytes(b.p, b.n + (i == 4 ? 32 : 0));
        assert_int_equal(sh_model_file_open(&m, path), SH_OK);
        sh_model_file_hash(m, hash);
        sh_model_file_close(m);
        if (i > 0) assert_true((memcmp(hash, first, 16) == 0) == (i == 1));
        memcpy(first, hash, 16);
    }
    free(b.p);
}

static void test_truncation(void **state)
{
    (void)state;
    bytes b = make_all();
    const size_t end = b.n - 28; /* of the last tensor: 36 of its 64 bytes are data, 28 padding */
    for (size_t n = 0; n <= b.n; n++) assert_int_equal(verdict(b.p, n), n < end ? SH_EFILE : SH_OK);
    write_bytes(b.p, b.n / 2); /* once through a real file */
    sh_model_file *m;
    assert_int_equal(sh_model_file_open(&m, path), SH_EFILE);
    assert_null(m);
    assert_non_null(strstr(sh_err_message(), path));
    free(b.p);
}

static void test_every_byte(void **state)
{
    (void)state;
    bytes b = make_all();
    for (size_t i = 0; i < b.n; i++) {
        const uint8_t was = b.p[i];
        const uint8_t put[] = {0,    1,       8,          9,          0x7f,   0x80,
                               0xff, was ^ 1, was ^ 0x20, was ^ 0x80, was + 1};
        for (size_t k = 0; k < sizeof put; k++) {
            b.p[i] = put[k];
            verdict(b.p, b.n);
        }
        b.p[i] = was;
    }
    free(b.p);
}

/* Where a tensor's entry has its number of dimensions; then 8 per dimension, type, offset. */
static uint8_t *entry(bytes b, const char *name)
{
    uint8_t *p = memmem(b.p, b.n, name, strlen(name));
    assert_non_null(p);
    return p + strlen(name);
}
static void put_u64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static void test_tensor_table(void **state)
{
    (void)state;
    bytes b = make_all();
    uint8_t *f32 = entry(b, "w.f32"), *q8_0 = entry(b, "w.q8_0"), save[32];
    memcpy(save, f32, sizeof save);
#define BAD(at, value, why)                                                                        \
    put_u64(f32 + (at), (value));                                                                  \
    refused(b, why);                                                                               \
    memcpy(f32, save, sizeof save)
    BAD(4, 0, "dimension of 0");
    BAD(4, UINT64_MAX, "too many");
    BAD(4, (uint64_t)INT64_MAX, "too many");
    BAD(4, (uint64_t)1 << 62, "too many");
    BAD(4, (uint64_t)1 << 40, "cut off");
    BAD(24, 1, "multiple of 32");
    BAD(24, 0, "overlap");
    BAD(24, 32 * 1000, "cut off");
    BAD(24, UINT64_MAX - 31, "cut off");
#undef BAD
    for (int n = 0; n < 8; n++) { /* dimensions */
        f32[0] = (uint8_t)n;
        assert_true(n == 2 || verdict(b.p, b.n) == SH_EFILE);
    }
    memcpy(f32, save, sizeof save);
    f32[20] = 12;
    refused(b, "w.f32");
    refused(b, "q4_k");
    refused(b, sh_dtype_list());
    f32[20] = 200;
    refused(b, "200");
    memcpy(f32, save, sizeof save);
    put_u64(q8_0 + 4, 16);
    refused(b, "not a multiple of 32");
    put_u64(q8_0 + 4, 32);
    memcpy(entry(b, "w.f16") - 5, "w.f32", 5);
    refused(b, "two tensors are named 'w.f32'");
    memcpy(memmem(b.p, b.n, "half", 4), "strs", 4);
    memcpy(f32 - 5, "w.f16", 5);
    refused(b, "'strs' is there twice");
    free(b.p);
}

static void test_versions(void **state)
{
    (void)state;
    sh_model_file *m;
    bytes b = make_all();
    for (uint8_t v = 0; v < 6; v++) {
        b.p[4] = v;
        if (v == 2 || v == 3)
            assert_int_equal(verdict(b.p, b.n), SH_OK);
        else
            refused(b, "known: 2, 3");
    }
    b.p[4] = 2;
    write_bytes(b.p, b.n);
    assert_int_equal(sh_model_file_open(&m, path), SH_OK);
    assert_int_equal(m->version, 2);
    sh_model_file_close(m);
    memcpy(b.p + 4, "\0\0\0\3", 4);
    refused(b, "big-endian");
    memcpy(b.p, "GGML", 4);
    refused(b, "not a model file");
    free(b.p);
}

/* Counts that lie: refused before memory is asked for, or it would be SH_ENOMEM. */
static void test_counts(void **state)
{
    (void)state;
    static const uint64_t lie[] = {100,        65536,      65537,           1u << 31,
                                   1ull << 32, 1ull << 60, UINT64_MAX / 33, UINT64_MAX};
    bytes b = make_all();
    uint8_t *str = (uint8_t *)memmem(b.p, b.n, "t.str", 5) + 9;
    uint8_t *u64s = (uint8_t *)memmem(b.p, b.n, "t.array.10", 10) + 18;
    uint8_t *strs = (uint8_t *)memmem(b.p, b.n, "strs", 4) + 12;
    uint8_t *arrays = (uint8_t *)memmem(b.p, b.n, "t.nested", 8) + 16;
    uint8_t *at[] = {b.p + 8, b.p + 16, b.p + 24, str, u64s, strs, arrays, arrays + 12};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        for (size_t k = 0; k < sizeof lie / sizeof *lie; k++) {
            uint8_t save[8];
            memcpy(save, at[i], 8);
            put_u64(at[i], lie[k]);
            assert_int_equal(verdict(b.p, b.n), SH_EFILE);
            memcpy(at[i], save, 8);
        }
    assert_int_equal(verdict(b.p, b.n), SH_OK);
    free(b.p);
}

static void test_metadata_rules(void **state)
{
    (void)state;
    bytes b = make_all();
    uint8_t *boolean = (uint8_t *)memmem(b.p, b.n, "t.bool", 6) + 10;
    boolean[0] = 2;
    refused(b, "'t.bool' is a bool that is 2");
    boolean[0] = 1;
    uint8_t *key = (uint8_t *)memmem(b.p, b.n, "t.u64", 5);
    key[2] = 27; /* an escape sequence would follow */
    refused(b, "not printable");
    assert_null(strchr(sh_err_message(), 27));
    key[2] = 'u';
    uint8_t *type = (uint8_t *)memmem(b.p, b.n, "one", 3) + 3;
    type[0] = 13;
    refused(b, "unknown type 13");
    type[0] = SH_META_U32;
    assert_int_equal(verdict(b.p, b.n), SH_OK);
    free(b.p);
}

/* Alignments and nesting that the writer never makes. */
static void test_by_hand(void **state)
{
    (void)state;
    for (int depth = 1; depth < 12; depth++) {
        sh_buf f = {0};
        sh_put_bytes(&f, "GGUF\3\0\0\0", 8);
        sh_put_u64(&f, 0);
        sh_put_u64(&f, 1);
        sh_put_u64(&f, 1);
        sh_put_bytes(&f, "k", 1);
        sh_put_u32(&f, SH_META_ARRAY);
        for (int i = 0; i < depth; i++) {
            sh_put_u32(&f, SH_META_ARRAY);
            sh_put_u64(&f, 1);
        }
        sh_put_u32(&f, SH_META_U8);
        sh_put_u64(&f, 0);
        assert_int_equal(verdict(f.p, f.n), depth < 8 ? SH_OK : SH_EFILE);
        sh_buf_free(&f);
    }
    for (uint32_t a = 0; a < 130; a++) {
        sh_buf f = {0};
        sh_put_bytes(&f, "GGUF\3\0\0\0", 8);
        sh_put_u64(&f, 1);
        sh_put_u64(&f, 1);
        sh_put_u64(&f, 17);
        sh_put_bytes(&f, "general.alignment", 17);
        sh_put_u32(&f, SH_META_U32);
        sh_put_u32(&f, a);
        sh_put_u64(&f, 1);
        sh_put_bytes(&f, "w", 1);
        sh_put_u32(&f, 1);
        sh_put_u64(&f, 1);
        sh_put_u32(&f, 0);
        sh_put_u64(&f, 0);
        while (f.n < 256) sh_put_u8(&f, 0);
        assert_int_equal(verdict(f.p, f.n), a && !(a & (a - 1)) ? SH_OK : SH_EFILE);
        sh_buf_free(&f);
    }
}

/* The largest tables that are read: under 64 MiB beside the map. */
static void test_memory(void **state)
{
    (void)state;
    sh_gguf_writer *w;
    sh_model_file *m;
    char name[160];
    for (int extra = 0; extra < 2; extra++) {
        int n_tensor = 65536 + extra;
        assert_int_equal(sh_gguf_create(&w, path), SH_OK);
        for (int i = 0; i < 16384; i++) {
            snprintf(name, sizeof name, "%0100d", i);
            sh_gguf_put_bool(w, name, true);
        }
        for (int i = 0; i < n_tensor; i++) {
            snprintf(name, sizeof name, "%0150d", i);
            sh_gguf_add_tensor(w, name, SH_F32, 1, (int64_t[]){1});
        }
        for (int i = 0; i < n_tensor; i++) assert_int_equal(sh_gguf_write(w, "data", 4), SH_OK);
        assert_int_equal(sh_gguf_close(w, true), SH_OK);
        struct mallinfo2 before = mallinfo2();
        assert_int_equal(sh_model_file_open(&m, path), extra ? SH_EFILE : SH_OK);
        struct mallinfo2 after = mallinfo2(); /* all 0 under a sanitizer */
        assert_true(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd < 64u << 20);
        sh_model_file_close(m);
    }
}

static void test_writer_fails(void **state)
{
    (void)state;
    sh_gguf_writer *w;
    struct rlimit limit, small;
    uint8_t block[4096] = {0};
    bytes before = make_all(), after;

    assert_int_equal(sh_gguf_create(&w, path), SH_OK); /* given up */
    put_all(w);
    put_data(w, 0, 12);
    assert_int_equal(files_in_folder(), 2);
    assert_int_equal(sh_gguf_close(w, false), SH_OK);
    assert_int_equal(files_in_folder(), 1);

    assert_int_equal(sh_gguf_create(&w, path), SH_OK); /* data is missing */
    put_all(w);
    put_data(w, 0, 12);
    assert_int_equal(sh_gguf_close(w, true), SH_ESYS);
    assert_non_null(strstr(sh_err_message(), path));
    assert_int_equal(files_in_folder(), 1);

    /* No room: the limit on file sizes stands for a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 8192;
    setrlimit(RLIMIT_FSIZE, &small);
    sh_err err = SH_OK;
    assert_int_equal(sh_gguf_create(&w, path), SH_OK);
    sh_gguf_add_tensor(w, "big", SH_F32, 1, (int64_t[]){1 << 16});
    for (int i = 0; i < 64 && err == SH_OK; i++) err = sh_gguf_write(w, block, sizeof block);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_int_equal(err, SH_ESYS);
    assert_non_null(strstr(sh_err_message(), path));
    assert_int_equal(sh_gguf_close(w, true), SH_ESYS);
    assert_int_equal(files_in_folder(), 1);

    after = read_bytes(); /* what was there is as it was */
    assert_int_equal(before.n, after.n);
    assert_memory_equal(before.p, after.p, before.n);
    free(before.p);
    free(after.p);

    assert_int_equal(sh_gguf_create(&w, "/dev/null"), SH_EARG);
    assert_int_equal(sh_gguf_create(&w, "/no/such/folder/x"), SH_ESYS);
    assert_int_equal(sh_gguf_close(NULL, true), SH_OK);
    sh_model_file_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_copy_is_equal),
        cmocka_unit_test(test_look_ups),     cmocka_unit_test(test_hash),
        cmocka_unit_test(test_truncation),   cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_tensor_table), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_counts),       cmocka_unit_test(test_metadata_rules),
        cmocka_unit_test(test_by_hand),      cmocka_unit_test(test_memory),
        cmocka_unit_test(test_writer_fails),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
