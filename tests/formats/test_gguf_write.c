/* Writing GGUF: what is written is read back, typed look-ups, the hash, and a writer that fails. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/resource.h>

#include "sample.h"

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
        cmocka_unit_test(test_writer_fails),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
