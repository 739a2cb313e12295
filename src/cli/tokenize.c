/* shoal tokenize: shows the tokens of a text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "formats/formats.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

enum { MAX_TEXT = 256 << 20 };

typedef struct options {
    const char *model, *text, *file;
    bool ids, bos, special;
} options;

/* What could act on a terminal or is half a character is shown as \n or \xNN. */
static void print_escaped(const char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)p[i];
        int len = sh_utf8_char(p + i, n - i);
        bool c1 = len == 2 && c == 0xc2 && (unsigned char)p[i + 1] < 0xa0; /* U+0080 to U+009F */
        if (c == '\n')
            fputs("\\n", stdout);
        else if (c == '\t')
            fputs("\\t", stdout);
        else if (c == '\\' || c == '\'')
            printf("\\%c", c);
        else if (len < 1 || c < ' ' || c == 0x7f || c1)
            for (int k = 0; k < (c1 ? 2 : 1); k++)
                printf("\\x%02X", (unsigned char)p[i + (size_t)k]);
        else
            fwrite(p + i, 1, (size_t)len, stdout);
        i += len < 1 ? 1 : (size_t)len;
    }
}

static void print_tokens(const sh_tokenizer *t, const uint32_t *id, size_t n_id)
{
    for (size_t i = 0; i < n_id && !ferror(stdout); i++) {
        size_t n;
        const char *p = sh_tokenizer_piece(t, id[i], &n);
        if (n == 0) { /* a control token has no bytes, but it has a name */
            p = sh_tokenizer_spelling(t, id[i]);
            n = strlen(p);
        }
        printf("%6u -> '", id[i]);
        print_escaped(p, n);
        puts("'");
    }
}

static void print_ids(const uint32_t *id, size_t n_id)
{
    for (size_t i = 0; i < n_id && !ferror(stdout); i++) printf("%s%u", i ? " " : "", id[i]);
    putchar('\n');
}

static sh_err tokenize(const options *o)
{
    int flags = (o->bos ? SH_TOK_BOS : 0) | (o->special ? SH_TOK_SPECIAL : 0);
    sh_model_file *m = NULL;
    sh_tokenizer *t = NULL;
    char *text = NULL;
    const char *p = o->text;
    size_t n = p ? strlen(p) : 0, n_id;
    uint32_t *id = NULL;
    sh_err err;
    SH_GOTO(sh_model_file_open(&m, o->model));
    SH_GOTO(sh_tokenizer_open(&t, m));
    if (!p) {
        SH_GOTO(sh_file_read_text(&text, &n, o->file ? o->file : "-", MAX_TEXT));
        p = text;
    }
    SH_GOTO(sh_tokenizer_encode(t, p, n, flags, &id, &n_id));
    if (o->ids)
        print_ids(id, n_id);
    else
        print_tokens(t, id, n_id);
out:
    free(id);
    free(text);
    sh_tokenizer_close(t);
    sh_model_file_close(m);
    return err;
}

static int command(int argc, char **argv)
{
    options o = {.bos = true, .special = true};
    const sh_flag flags[] = {
        {"-m, --model", "FILE", SH_FLAG_STR, &o.model, 0, 0,
         "the model file (GGUF); without it the project's own"},
        {"-p, --prompt", "TEXT", SH_FLAG_STR, &o.text, 0, 0,
         "the text; without -p and -f it is read from stdin"},
        {"-f, --file", "FILE", SH_FLAG_STR, &o.file, 0, 0, "read the text from a file"},
        {"--ids", NULL, SH_FLAG_BOOL, &o.ids, 0, 0, "print only the ids, on one line"},
        {"--no-bos", NULL, SH_FLAG_NO, &o.bos, 0, 0, "do not put the BOS token before the text"},
        {"--no-parse-special", NULL, SH_FLAG_NO, &o.special, 0, 0,
         "read the names of control tokens as plain text"},
    };
    bool help;
    int n_arg;
    sh_err err = sh_flags_parse("shoal tokenize [-m FILE] [-p TEXT | -f FILE] [flags]", flags,
                                sizeof flags / sizeof *flags, argc, argv, NULL, 0, &n_arg, &help);
    if (err == SH_OK && help) return 0;
    if (err == SH_OK) err = sh_default_model(&o.model, argv[0]);
    if (err == SH_OK && o.text && o.file)
        err = sh_fail(SH_EARG, "-p and -f are two texts; give one; see shoal tokenize --help");
    if (err == SH_OK) err = tokenize(&o);
    return sh_exit(argv[0], err);
}

const sh_command sh_command_tokenize = {
    .name = "tokenize",
    .summary = "show the tokens of a text",
    .main = command,
};
