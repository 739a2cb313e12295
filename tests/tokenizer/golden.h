/* Another engine's ids of 46 texts, where there is a ../shared. Included after cmocka.h. */
#ifndef SH_TEST_GOLDEN_H
#define SH_TEST_GOLDEN_H

#include "small_vocab.h"

static inline char *golden_path(const char *name, const char *ending)
{
    const char *shared = getenv("SHOAL_SHARED"), *root = getenv("SHOAL_SOURCE_ROOT");
    char *path;
    int n =
        asprintf(&path, "%s%s/tokenizers/ggml-vocab-%s.gguf%s",
                 shared ? shared : (root ? root : "."), shared ? "" : "/../shared", name, ending);
    assert_true(n > 0);
    return path;
}

/* NULL and a note if the file is not there: cmocka writes skip() as "not ok" in TAP. */
static inline sh_tokenizer *open_golden(const char *name)
{
    char *path = golden_path(name, "");
    sh_model_file *m;
    sh_tokenizer *t = NULL;
    if (access(path, R_OK) != 0) {
        print_message("# golden ids are not checked: %s is not there\n", path);
    } else {
        assert_int_equal(sh_model_file_open(&m, path), SH_OK);
        if (sh_tokenizer_open(&t, m) != SH_OK) fail_msg("%s", sh_err_message());
        sh_model_file_close(m); /* nothing is borrowed from it */
    }
    free(path);
    return t;
}

/* Texts stand between lines of __ggml_vocab_test__; the newline before such a line is not theirs.
 * Each has one line of ids in the other file. */
static inline void check_golden(const sh_tokenizer *t, const char *name)
{
    static const char end[] = "\n__ggml_vocab_test__\n";
    char *path[2] = {golden_path(name, ".inp"), golden_path(name, ".out")}, *in, *out, *line;
    size_t n_in, n_out, n_text = 0, n_back, strip = sh_tokenizer_strips_first_space(t);
    assert_int_equal(sh_file_read_text(&in, &n_in, path[0], 1 << 20), SH_OK);
    assert_int_equal(sh_file_read_text(&out, &n_out, path[1], 1 << 20), SH_OK);
    line = out;
    for (char *p = in, *q; (q = strstr(p, end)); p = q + strlen(end), n_text++) {
        size_t n = (size_t)(q - p), n_id;
        uint32_t *id;
        assert_int_equal(sh_tokenizer_encode(t, p, n, 0, &id, &n_id), SH_OK);
        for (size_t i = 0; i < n_id; i++) {
            char *rest;
            unsigned long want = strtoul(line, &rest, 10);
            if (rest == line || want != id[i])
                fail_msg("text %zu, token %zu: %u, not %lu", n_text, i, id[i], want);
            line = rest;
        }
        line += strspn(line, " ");
        if (*line != '\n') fail_msg("text %zu: tokens are missing before '%.20s'", n_text, line);
        line++;
        char *back = small_decode(t, id, n_id, &n_back);
        assert_int_equal(n_back, n > 0 ? n + strip : 0);
        if (n > 0) assert_memory_equal(back + strip, p, n);
        free(back);
        free(id);
    }
    assert_int_equal(*line, 0);
    assert_int_equal(n_text, 46);
    free(in);
    free(out);
    for (int i = 0; i < 2; i++) free(path[i]);
}

#endif
