/* Tokens in files, and the documents that they come from. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "train/corpus.h"
#include "train/data.h"

static char path[] = "/tmp/shoal-data-XXXXXX";

static void put_file(const char *name, const void *p, size_t n)
{
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    assert_true(fwrite(p, 1, n, f) == n && fclose(f) == 0);
}

static void check_says(const char *part)
{
    if (!strstr(sh_err_message(), part)) fail_msg("'%s' is not in: %s", part, sh_err_message());
}

static void ids_of_two_and_four_bytes(void **state)
{
    static const uint8_t bytes[] = {1, 0, 0xff, 0xff, 2, 0, 0, 0, 3, 1, 0, 0};
    sh_data d;
    int32_t id[6];
    (void)state;
    put_file(path, bytes, sizeof bytes);
    assert_int_equal(sh_data_open(&d, path, 65536), SH_OK);
    assert_int_equal(d.n_tok, 6);
    sh_data_window(&d, 1, 4, id);
    assert_true(id[0] == 65535 && id[1] == 2 && id[2] == 0 && id[3] == 259);
    sh_data_window(&d, 6, 0, id);
    sh_data_close(&d);
    sh_data_close(&d);

    assert_int_equal(sh_data_open(&d, path, 65535), SH_EFILE);
    check_says("token 1 has the id 65535, but the vocabulary has 65535 tokens");
    assert_int_equal(sh_data_open(&d, path, 70000), SH_EFILE);
    check_says("token 0 has the id 4294901761");
    sh_data_close(&d);
    put_file(path, bytes + 4, 8);
    assert_int_equal(sh_data_open(&d, path, 70000), SH_OK);
    sh_data_window(&d, 0, 2, id);
    assert_true(d.n_tok == 2 && id[0] == 2 && id[1] == 259);
    sh_data_close(&d);

    put_file(path, bytes, 5);
    assert_int_equal(sh_data_open(&d, path, 65536), SH_EFILE);
    check_says("5 bytes are no whole number of ids of 2 bytes");
    put_file(path, bytes, 0);
    assert_int_equal(sh_data_open(&d, path, 65536), SH_EFILE);
    check_says("empty");
    assert_int_equal(sh_data_open(&d, "/nowhere/train.bin", 65536), SH_EFILE);
    check_says("/nowhere/train.bin");
}

/* Every start comes about as often as every other, from seed and counter alone, and none beyond. */
static void windows(void **state)
{
    enum { N_TOK = 40, N_CTX = 31, N_START = N_TOK - N_CTX, N_DRAW = 9000 };
    static const uint8_t bytes[2 * N_TOK];
    sh_data d;
    int seen[N_START] = {0}, other = 0;
    (void)state;
    put_file(path, bytes, sizeof bytes);
    assert_int_equal(sh_data_open(&d, path, 1), SH_OK);
    for (uint64_t i = 0; i < N_DRAW; i++) {
        size_t at = sh_data_draw(&d, 7, i, N_CTX);
        assert_true(at < N_START); /* so at + N_CTX + 1 <= N_TOK */
        assert_int_equal(at, sh_data_draw(&d, 7, i, N_CTX));
        other += at != sh_data_draw(&d, 8, i, N_CTX);
        seen[at]++;
    }
    for (int i = 0; i < N_START; i++) /* 1000 each, give or take 5 standard deviations */
        assert_in_range(seen[i], 850, 1150);
    assert_true(other > N_DRAW / 2);
    assert_int_equal(sh_data_check(&d, N_TOK - 1), SH_OK);
    assert_int_equal(sh_data_draw(&d, 1, 2, N_TOK - 1), 0);
    assert_int_equal(sh_data_check(&d, N_TOK), SH_EFILE);
    check_says("the text has 40 tokens, but a context of 40 needs at least 41");
    sh_data_close(&d);
}

/* --- documents --- */

static void check_docs(const sh_docs *d, const char *want)
{
    char got[512] = "";
    size_t at = 0;
    for (size_t i = 0; i < d->n; i++)
        at += (size_t)snprintf(got + at, sizeof got - at, "%s%.*s%s", d->v[i].first ? "[" : "+",
                               (int)d->v[i].n, d->v[i].p, d->v[i].ends ? "]" : "");
    assert_string_equal(got, want);
}

static void check_corpus(const char *a, const char *b, const char *separator, const char *want)
{
    char second[] = "/tmp/shoal-text-XXXXXX";
    const char *const name[] = {path, second};
    sh_corpus c;
    int fd = mkstemp(second);
    assert_true(fd >= 0);
    close(fd);
    put_file(path, a, strlen(a));
    put_file(second, b, strlen(b));
    sh_err err = sh_corpus_open(&c, name, 2, separator);
    assert_int_equal(err, want ? SH_OK : SH_EFILE);
    if (want) {
        assert_int_equal(c.n_bytes, strlen(a) + strlen(b));
        check_docs(&c.docs, want);
    }
    sh_corpus_close(&c);
    unlink(second);
}

static void documents(void **state)
{
    (void)state;
    check_corpus("one", "two", NULL, "[one][two");
    check_corpus("one|two", "three", NULL, "[one|two][three");
    check_corpus("one|two", "three", "|", "[one][two][three");
    check_corpus("|one||two|", "|", "|", "[one][two]");
    check_corpus("one", "", "|", "[one");
    check_corpus("", "one<>two<", "<>", "[one][two<");
    check_corpus("", "", NULL, NULL);
    check_says("there is no text");
    check_corpus("||", "|", "|", NULL);
}

static void check_split(const char *text, double share, const char *train, const char *val)
{
    const char *const name[] = {path};
    sh_corpus c;
    sh_docs a = {0}, b = {0};
    put_file(path, text, strlen(text));
    assert_int_equal(sh_corpus_open(&c, name, 1, "|"), SH_OK);
    sh_err err = sh_corpus_split(&c, share, &a, &b);
    assert_int_equal(err, train ? SH_OK : SH_EFILE);
    if (train) {
        check_docs(&a, train);
        check_docs(&b, val);
    }
    sh_docs_close(&a);
    sh_docs_close(&b);
    sh_corpus_close(&c);
}

static void splits(void **state)
{
    (void)state;
    check_split("0123456789", 0.1, "[012345678", "+9");
    check_split("0123456789abc", 0.1, "[0123456789a", "+bc"); /* floor(0.9 * 13) = 11 */
    check_split("0123456789", 0.0, "[0123456789", "");
    check_split("0123\xc3\xa9\xc3\xa9\xc3\xa9", 0.5, "[012", "+3\xc3\xa9\xc3\xa9\xc3\xa9");
    check_split("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", 0.25, "[\xc3\xa9\xc3\xa9\xc3\xa9", "+\xc3\xa9");
    check_split("aaaa|bbbb|cc", 0.2, "[aaaa][bbbb]", "[cc");
    check_split("aaaa|bbbbb|c", 0.2, "[aaaa][bbbbb]", "[c");       /* half of it will do */
    check_split("aaaa|bbb|ccc", 0.2, "[aaaa][bbb]", "[ccc");       /* so will one and a half */
    check_split("aaaa|bb|cccc", 0.2, "[aaaa][bb][cc", "+cc");      /* twice will not */
    check_split("aaaaa|bbbbb|", 0.2, "[aaaaa][bbb", "+bb]");       /* half of the text neither */
    check_split("aaaaaa|b|c|d|e", 0.3, "[aaaaaa][b]", "[c][d][e"); /* the nearest */
    check_split("a", 0.5, NULL, NULL);
    check_says("1 characters, too few");
}

/* Pieces are the document again, and cuts stand between a letter and a space. */
static void pieces(void **state)
{
    static const char text[] = "one two  three. 4 five\nsix 7seven eight' nine";
    (void)state;
    for (size_t most = 1; most < sizeof text + 3; most++) {
        sh_docs d = {0};
        const char *p = text;
        assert_int_equal(
            sh_docs_add_cut(&d, (sh_doc){text, sizeof text - 1, .first = true, .ends = true}, most),
            SH_OK);
        for (size_t i = 0; i < d.n; i++) {
            assert_ptr_equal(d.v[i].p, p);
            p += d.v[i].n;
            assert_int_equal(d.v[i].first, i == 0);
            assert_int_equal(d.v[i].ends, i + 1 == d.n);
            if (i > 0) assert_true(p[-(long)d.v[i].n] == ' ' && p[-(long)d.v[i].n - 1] >= 'a');
        }
        assert_ptr_equal(p, text + sizeof text - 1);
        if (most == 1) assert_int_equal(d.n, 5);
        if (most >= sizeof text - 1) assert_int_equal(d.n, 1);
        sh_docs_close(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_of_two_and_four_bytes),
        cmocka_unit_test(windows),
        cmocka_unit_test(documents),
        cmocka_unit_test(splits),
        cmocka_unit_test(pieces),
    };
    int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
