/* The flags of a command: parsing by a table, the help made from it, and exit statuses. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct parser {
    const sh_flag *flag;
    int n_flag;
    const char *command; /* argv[0] */
} parser;

/* Walks the spellings of "-m, --model": the next one, *n bytes of it; NULL at the end. */
static const char *next_name(const char **names, size_t *n)
{
    const char *p = *names + strspn(*names, ", ");
    *n = strcspn(p, ", ");
    *names = p + *n;
    return *n ? p : NULL;
}

static bool has_name(const sh_flag *f, const char *word, size_t n_word)
{
    const char *names = f->names, *p;
    size_t n;
    while ((p = next_name(&names, &n)))
        if (n == n_word && memcmp(p, word, n) == 0) return true;
    return false;
}

static const sh_flag *find(const parser *ps, const char *word, size_t n_word)
{
    for (int i = 0; i < ps->n_flag; i++)
        if (has_name(&ps->flag[i], word, n_word)) return &ps->flag[i];
    return NULL;
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

/* Letters to insert, remove or replace to make one word of the other, at most 31 letters each. */
static int edits(const char *a, size_t na, const char *b, size_t nb)
{
    int row[32], diagonal, above;
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            above = row[j];
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[nb];
}

void sh_near_try(sh_near *best, const char *word, const char *known, size_t n)
{
    size_t n_word = strlen(word), dashes = strspn(word, "-");
    size_t shorter = n_word < n ? n_word : n;
    if (n_word >= sizeof best->word || n >= sizeof best->word) return;
    int limit = n_word - dashes < 3 ? 1 : 2, distance = edits(word, n_word, known, n);
    if (distance > limit && shorter >= dashes + 3 && memcmp(word, known, shorter) == 0)
        distance = limit; /* one begins with the other: --temperature, --temp */
    if (distance > limit || (best->word[0] && distance >= best->distance)) return;
    memcpy(best->word, known, n);
    best->word[n] = 0;
    best->distance = distance;
}

static sh_err fail_unknown(const parser *ps, const char *word)
{
    sh_near near = {0};
    for (int i = 0; i < ps->n_flag; i++) {
        const char *names = ps->flag[i].help ? ps->flag[i].names : "", *p;
        size_t n;
        while ((p = next_name(&names, &n))) sh_near_try(&near, word, p, n);
    }
    if (near.word[0])
        return sh_fail(SH_EARG, "unknown flag %s (did you mean %s?); see shoal %s --help", word,
                       near.word, ps->command);
    return sh_fail(SH_EARG, "unknown flag %s; see shoal %s --help", word, ps->command);
}

static sh_err check_bounds(const parser *ps, const sh_flag *f, const char *name, const char *value,
                           double v)
{
    if ((f->min == 0 && f->max == 0) || (v >= f->min && v <= f->max)) return SH_OK;
    if (f->max >= INT_MAX && v < f->min)
        return sh_fail(SH_EARG, "%s is %s, but must be at least %.15g; see shoal %s --help", name,
                       value, f->min, ps->command);
    return sh_fail(SH_EARG, "%s is %s, but must be from %.15g to %.15g; see shoal %s --help", name,
                   value, f->min, f->max, ps->command);
}

static sh_err set_integer(const parser *ps, const sh_flag *f, const char *name, const char *value)
{
    char *end;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    if (!strchr("+-0123456789", value[0]) || end == value || *end)
        return sh_fail(SH_EARG, "%s is '%s', but must be a whole number; see shoal %s --help", name,
                       value, ps->command);
    if (errno == ERANGE || (f->kind == SH_FLAG_INT && (v < INT_MIN || v > INT_MAX)))
        return sh_fail(SH_EARG, "%s is %s, which is too large; see shoal %s --help", name, value,
                       ps->command);
    SH_TRY(check_bounds(ps, f, name, value, (double)v));
    if (f->kind == SH_FLAG_INT)
        *(int *)f->dst = (int)v;
    else
        *(int64_t *)f->dst = v;
    return SH_OK;
}

static sh_err set_float(const parser *ps, const sh_flag *f, const char *name, const char *value)
{
    char *end;
    float v = strtof(value, &end);
    /* Decimal only: no "nan", "inf" or "0x1p3". */
    if (value[strspn(value, "+-.0123456789eE")] || end == value || *end || !isfinite(v))
        return sh_fail(SH_EARG, "%s is '%s', but must be a number; see shoal %s --help", name,
                       value, ps->command);
    SH_TRY(check_bounds(ps, f, name, value, v));
    *(float *)f->dst = v;
    return SH_OK;
}

static sh_err set(const parser *ps, const sh_flag *f, const char *name, const char *value)
{
    sh_flag_strs *strs;
    switch (f->kind) {
    case SH_FLAG_BOOL:
    case SH_FLAG_NO:
        *(bool *)f->dst = f->kind == SH_FLAG_BOOL;
        break;
    case SH_FLAG_INT:
    case SH_FLAG_I64:
        return set_integer(ps, f, name, value);
    case SH_FLAG_FLOAT:
        return set_float(ps, f, name, value);
    case SH_FLAG_STR:
        *(const char **)f->dst = value;
        break;
    case SH_FLAG_STRS:
        strs = f->dst;
        if (strs->n == (int)(sizeof strs->v / sizeof *strs->v))
            return sh_fail(SH_EARG, "%s is given more than %d times; see shoal %s --help", name,
                           strs->n, ps->command);
        strs->v[strs->n++] = value;
    }
    return SH_OK;
}

/* One flag at argv[*i]; leaves *i at the last argument it used. */
static sh_err parse_flag(const parser *ps, int argc, char **argv, int *i)
{
    char name[64];
    const char *word = argv[*i], *value = strchr(word, '=');
    size_t n = value ? (size_t)(value - word) : strlen(word);
    const sh_flag *f = find(ps, word, n);
    snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), word);
    if (!f) return fail_unknown(ps, name);
    if (!f->value) {
        if (value)
            return sh_fail(SH_EARG, "%s takes no value; see shoal %s --help", name, ps->command);
        return set(ps, f, name, NULL);
    }
    if (value) return set(ps, f, name, value + 1);
    if (*i + 1 >= argc)
        return sh_fail(SH_EARG, "%s needs a value, %s; see shoal %s --help", name, f->value,
                       ps->command);
    value = argv[++*i];
    if (find(ps, value, strlen(value)))
        return sh_fail(SH_EARG,
                       "%s needs a value, %s, but a flag follows (if you mean the text %s, write "
                       "%s=%s); see shoal %s --help",
                       name, f->value, value, name, value, ps->command);
    return set(ps, f, name, value);
}

static int left_width(const sh_flag *f)
{
    return (int)(strlen(f->names) + (f->value ? 1 + strlen(f->value) : 0));
}

static void print_default(const sh_flag *f)
{
    const char *s;
    if (strstr(f->help, "default")) return;
    switch (f->kind) {
    case SH_FLAG_INT:
        printf(" (default %d)", *(int *)f->dst);
        break;
    case SH_FLAG_I64:
        printf(" (default %lld)", (long long)*(int64_t *)f->dst);
        break;
    case SH_FLAG_FLOAT:
        printf(" (default %g)", (double)*(float *)f->dst);
        break;
    case SH_FLAG_STR:
        s = *(const char **)f->dst;
        if (s && *s) printf(" (default %s)", s);
        break;
    case SH_FLAG_BOOL:
    case SH_FLAG_NO:
    case SH_FLAG_STRS:
        break;
    }
}

static void print_help(const parser *ps, const char *usage)
{
    static const sh_flag help = {.names = "-h, --help", .help = "show this help"};
    int width = left_width(&help);
    for (int i = 0; i < ps->n_flag; i++)
        if (ps->flag[i].help && left_width(&ps->flag[i]) > width) width = left_width(&ps->flag[i]);
    printf("usage: %s\n\n", usage);
    for (int i = 0; i <= ps->n_flag; i++) {
        const sh_flag *f = i < ps->n_flag ? &ps->flag[i] : &help;
        if (!f->help) continue;
        printf("  %s%s%s%*s  %s", f->names, f->value ? " " : "", f->value ? f->value : "",
               width - left_width(f), "", f->help);
        print_default(f);
        putchar('\n');
    }
}

sh_err sh_flags_parse(const char *usage, const sh_flag *flags, int n_flag, int argc, char **argv,
                      const char **arg, int max_arg, int *n_arg, bool *help)
{
    const parser ps = {.flag = flags, .n_flag = n_flag, .command = argv[0]};
    bool flags_end = false;
    *n_arg = 0;
    *help = false;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0 && !*help; i++) *help = is_help(argv[i]);
    if (*help) {
        print_help(&ps, usage);
        return SH_OK;
    }
    for (int i = 1; i < argc; i++) {
        if (!flags_end && strcmp(argv[i], "--") == 0) {
            flags_end = true;
        } else if (!flags_end && argv[i][0] == '-' && argv[i][1]) {
            SH_TRY(parse_flag(&ps, argc, argv, &i));
        } else {
            if (*n_arg == max_arg)
                return sh_fail(SH_EARG, "'%s' is one argument too many; see shoal %s --help",
                               argv[i], ps.command);
            arg[(*n_arg)++] = argv[i];
        }
    }
    return SH_OK;
}

int sh_exit(const char *command, sh_err err)
{
    if (err == SH_OK) return 0;
    fprintf(stderr, "shoal%s%s: ", command ? " " : "", command ? command : "");
    for (const char *p = sh_err_message(); *p;
         p++) /* a file's bytes never reach the terminal raw */
        putc((unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p, stderr);
    putc('\n', stderr);
    return err == SH_EARG || err == SH_EFILE ? 2 : 1;
}
