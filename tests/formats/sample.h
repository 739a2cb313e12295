/* What the tests of GGUF share: a folder to write to, and a file with everything in it. */
#ifndef TESTS_FORMATS_SAMPLE_H
#define TESTS_FORMATS_SAMPLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/formats.h"

static char folder[] = "/tmp/shoal-gguf-XXXXXX", path[64];

static inline int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    return 0;
}
static inline int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder); /* fails if anything was left behind */
}

static inline int files_in_folder(void)
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

static inline bytes read_bytes(void)
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
static inline void write_bytes(const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
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
static inline void put_all(sh_gguf_writer *w)
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
static inline void put_data(sh_gguf_writer *w, int i, size_t n)
{
    uint8_t b[256];
    for (size_t j = 0; j < n; j++) b[j] = (uint8_t)(17 * i + (int)j);
    for (size_t j = 0; j < n; j += 7)
        assert_int_equal(sh_gguf_write(w, b + j, n - j < 7 ? n - j : 7), SH_OK);
}

static inline bytes make_all(void)
{
    sh_gguf_writer *w;
    assert_int_equal(sh_gguf_create(&w, path), SH_OK);
    put_all(w);
    put_data(w, 0, 12);
    for (int t = 0; t < SH_N_DTYPE; t++) put_data(w, 1 + t, sh_dtype_bytes((sh_dtype)t, 64));
    assert_int_equal(sh_gguf_close(w, true), SH_OK);
    return read_bytes();
}

#endif
