/* Reading GGUF: what is damaged is refused with a sentence that names the file, and never costs
 * memory that the file does not justify. */
#define _GNU_SOURCE
#include <malloc.h>

#include "sample.h"

static volatile uint8_t sink; /* so that every byte is really read */

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
    static const uint64_t lie[] = {100,        65536,      65537,           1u << 31,  1ull << 32,
                                   1ull << 60, 1ull << 61, UINT64_MAX / 33, UINT64_MAX};
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
    uint8_t *bools = (uint8_t *)memmem(b.p, b.n, "t.array.7", 9) + 25;
    bools[1] = 2;
    refused(b, "'t.array.7' has a bool that is 2");
    bools[1] = 1;
    assert_int_equal(verdict(b.p, b.n), SH_OK);
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

/* Alignments, nesting and a scalar tensor that the writer never makes. */
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
    sh_buf wraps = {0}; /* 2^61 items of 8 bytes are 0 bytes, if one multiplies */
    sh_put_bytes(&wraps, "GGUF\3\0\0\0", 8);
    sh_put_u64(&wraps, 0);
    sh_put_u64(&wraps, 1);
    sh_put_u64(&wraps, 1);
    sh_put_bytes(&wraps, "k", 1);
    sh_put_u32(&wraps, SH_META_ARRAY);
    sh_put_u32(&wraps, SH_META_F64);
    sh_put_u64(&wraps, 1ull << 61);
    assert_int_equal(verdict(wraps.p, wraps.n), SH_EFILE);
    sh_buf_free(&wraps);
    sh_buf scalar_tensor = {0};
    sh_put_bytes(&scalar_tensor, "GGUF\3\0\0\0", 8);
    sh_put_u64(&scalar_tensor, 1);
    sh_put_u64(&scalar_tensor, 0);
    sh_put_u64(&scalar_tensor, 1);
    sh_put_bytes(&scalar_tensor, "w", 1);
    while (scalar_tensor.n < 128) sh_put_u8(&scalar_tensor, 0);
    assert_int_equal(verdict(scalar_tensor.p, scalar_tensor.n), SH_EFILE);
    assert_non_null(strstr(sh_err_message(), "0 dimensions"));
    sh_buf_free(&scalar_tensor);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncation),   cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_tensor_table), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_counts),       cmocka_unit_test(test_metadata_rules),
        cmocka_unit_test(test_by_hand),      cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
