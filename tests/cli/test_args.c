/* Flags: every kind and spelling, every refusal, the help, and the exit statuses. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cli/args.c" /* the commands' code is in the program, not in the library */
#include <unistd.h>

typedef struct values {
    bool verbose, bos, help;
    int n, layers;
    int64_t seed;
    float temp;
    const char *model, *out;
    sh_flag_strs stop;
    const char *arg[2];
    int n_arg;
} values;

static const values defaults = {
    .bos = true, .n = 256, .layers = 5, .seed = -1, .temp = 0.8f, .out = "text"};

/* Parses the words up to NULL into *v, which begins as the defaults. */
static sh_err parse(values *v, const char *const *word)
{
    const sh_flag flags[] = {
        {"-m, --model", "FILE", SH_FLAG_STR, &v->model, 0, 0, "the model"},
        {"-n", "N", SH_FLAG_INT, &v->n, 1, 1e9, "tokens to write"},
        {"--layers", "N", SH_FLAG_INT, &v->layers, 0, 0, "any number"},
        {"-s, --seed", "N", SH_FLAG_I64, &v->seed, 0, 0, "of the sampler (default: drawn)"},
        {"--temp", "T", SH_FLAG_FLOAT, &v->temp, 0, 2, "temperature"},
        {"-o", "FORM", SH_FLAG_STR, &v->out, 0, 0, "text or json"},
        {"--stop", "TEXT", SH_FLAG_STRS, &v->stop, 0, 0, "ends a sample; may be given again"},
        {"-v, --verbose", NULL, SH_FLAG_BOOL, &v->verbose, 0, 0, "say more"},
        {"--no-bos", NULL, SH_FLAG_NO, &v->bos, 0, 0, "no BOS"},
        {"--inner", "N", SH_FLAG_INT, &v->layers, 0, 0, NULL},
    };
    char *argv[40] = {(char *)"run"};
    int argc = 1;
    for (; word[argc - 1]; argc++) argv[argc] = (char *)word[argc - 1];
    *v = defaults;
    return sh_flags_parse("shoal run -m FILE [flags]", flags, sizeof flags / sizeof *flags, argc,
                          argv, v->arg, 2, &v->n_arg, &v->help);
}

#define PARSE(v, ...) parse(v, (const char *const[]){__VA_ARGS__, NULL})
/* Refused, with a sentence that has `part` in it and says where the help is. */
#define REFUSED(part, ...)                                                                         \
    do {                                                                                           \
        values refused_;                                                                           \
        assert_int_equal(PARSE(&refused_, __VA_ARGS__), SH_EARG);                                  \
        if (!strstr(sh_err_message(), part) ||                                                     \
            !strstr(sh_err_message(), "; see shoal run --help"))                                   \
            fail_msg("not in the sentence: %s: %s", part, sh_err_message());                       \
    } while (0)

static void every_kind(void **state)
{
    values v;
    (void)state;
    assert_int_equal(PARSE(&v, "-m", "a.gguf", "-n", "7", "--layers", "-3", "--seed", "-1",
                           "--temp", "1.5", "-v", "--no-bos", "--stop", "x", "--stop=", "in", "-"),
                     SH_OK);
    assert_string_equal(v.model, "a.gguf");
    assert_int_equal(v.n, 7);
    assert_int_equal(v.layers, -3);
    assert_int_equal(v.seed, -1);
    assert_true(v.temp == 1.5f && v.verbose && !v.bos && !v.help);
    assert_int_equal(v.stop.n, 2);
    assert_string_equal(v.stop.v[0], "x");
    assert_string_equal(v.stop.v[1], "");
    assert_int_equal(v.n_arg, 2);
    assert_string_equal(v.arg[0], "in");
    assert_string_equal(v.arg[1], "-");
}

static void defaults_stay(void **state)
{
    values v;
    (void)state;
    assert_int_equal(PARSE(&v, "file"), SH_OK);
    assert_true(v.n == 256 && v.layers == 5 && v.seed == -1 && v.temp == 0.8f && !v.verbose &&
                v.bos);
    assert_null(v.model);
    assert_string_equal(v.out, "text");
}

static void values_that_look_like_flags(void **state)
{
    values v;
    (void)state;
    assert_int_equal(PARSE(&v, "--seed=-9223372036854775808", "--model=-n", "-o=a=b"), SH_OK);
    assert_true(v.seed == INT64_MIN);
    assert_string_equal(v.model, "-n");
    assert_string_equal(v.out, "a=b");
    assert_int_equal(PARSE(&v, "-m", "- a list", "-s", "9223372036854775807"), SH_OK);
    assert_string_equal(v.model, "- a list");
    assert_true(v.seed == INT64_MAX);
    assert_int_equal(PARSE(&v, "-v", "--", "-n", "--help"), SH_OK);
    assert_true(v.n_arg == 2 && !v.help && v.n == 256);
    assert_string_equal(v.arg[1], "--help");
}

static void refusals(void **state)
{
    (void)state;
    REFUSED("unknown flag --sede (did you mean --seed?)", "--sede", "1");
    REFUSED("did you mean --temp?", "--temperature=1");
    REFUSED("did you mean -n?", "-n5");
    REFUSED("unknown flag --wholly-different;", "--wholly-different");
    REFUSED("unknown flag --inne;", "--inne"); /* a flag that is not shown is not told either */
    REFUSED("-n needs a value, N", "-n");
    REFUSED("-m needs a value, FILE, but a flag follows", "-m", "--no-bos");
    REFUSED("--no-bos takes no value", "--no-bos=1");
    REFUSED("'third' is one argument too many", "first", "second", "third");
    REFUSED("must be a whole number", "-n", "7x");
    REFUSED("must be a whole number", "-n", "");
    REFUSED("must be a whole number", "-n", " 7");
    REFUSED("must be a whole number", "-n", "-");
    REFUSED("must be a whole number", "-n", "0x10");
    REFUSED("must be a whole number", "--seed", "1.0");
    REFUSED("from 1 to 1000000000", "-n", "0");
    REFUSED("from 1 to 1000000000", "-n", "1000000001");
    REFUSED("too large", "--layers", "2147483648");
    REFUSED("too large", "--layers", "-2147483649");
    REFUSED("too large", "--seed", "9223372036854775808");
    REFUSED("from 0 to 2", "--temp", "-0.1");
    REFUSED("from 0 to 2", "--temp", "2.1");
    REFUSED("must be a number", "--temp", "nan");
    REFUSED("must be a number", "--temp", "inf");
    REFUSED("must be a number", "--temp", "1e39");
    REFUSED("must be a number", "--temp", "1,5");
    REFUSED("must be a number", "--temp", "0x1p0");
    REFUSED("--stop is given more than 16 times", "--stop=", "--stop=", "--stop=", "--stop=",
            "--stop=", "--stop=", "--stop=", "--stop=", "--stop=", "--stop=", "--stop=", "--stop=",
            "--stop=", "--stop=", "--stop=", "--stop=", "--stop=");
}

/* What fn(data) writes to a stream; at most 4095 bytes. */
static const char *captured(FILE *stream, void (*fn)(void *), void *data)
{
    static char text[4096];
    FILE *to = tmpfile();
    assert_non_null(to);
    fflush(stream);
    int old = dup(fileno(stream));
    assert_true(old >= 0 && dup2(fileno(to), fileno(stream)) >= 0);
    fn(data);
    fflush(stream);
    dup2(old, fileno(stream));
    close(old);
    rewind(to);
    text[fread(text, 1, sizeof text - 1, to)] = 0;
    fclose(to);
    return text;
}

static void ask_help(void *v)
{
    assert_int_equal(PARSE((values *)v, "-n", "3", "--nonsense", "-h"), SH_OK);
}

static void help(void **state)
{
    values v;
    (void)state;
    const char *text = captured(stdout, ask_help, &v);
    assert_true(v.help && v.n == 256);
    assert_string_equal(text, "usage: shoal run -m FILE [flags]\n\n"
                              "  -m, --model FILE  the model\n"
                              "  -n N              tokens to write (default 256)\n"
                              "  --layers N        any number (default 5)\n"
                              "  -s, --seed N      of the sampler (default: drawn)\n"
                              "  --temp T          temperature (default 0.8)\n"
                              "  -o FORM           text or json (default text)\n"
                              "  --stop TEXT       ends a sample; may be given again\n"
                              "  -v, --verbose     say more\n"
                              "  --no-bos          no BOS\n"
                              "  -h, --help        show this help\n");
}

static void ask_exit(void *code)
{
    sh_err err = sh_fail(*(sh_err *)code, "bad \x1b[31m name\n");
    *(int *)code = sh_exit("run", err);
}

static void exit_statuses(void **state)
{
    static const struct {
        sh_err err;
        int status;
    } cases[] = {{SH_EARG, 2}, {SH_EFILE, 2}, {SH_ENOMEM, 1},
                 {SH_ESYS, 1}, {SH_EPEER, 1}, {SH_EEND, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = (int)cases[i].err;
        assert_string_equal(captured(stderr, ask_exit, &code), "shoal run: bad ?[31m name?\n");
        assert_int_equal(code, cases[i].status);
    }
    assert_int_equal(sh_exit("run", SH_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind),
        cmocka_unit_test(defaults_stay),
        cmocka_unit_test(values_that_look_like_flags),
        cmocka_unit_test(refusals),
        cmocka_unit_test(help),
        cmocka_unit_test(exit_statuses),
    };
    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
