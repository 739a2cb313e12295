/* shoal prepare: text files to a tokenizer and the tokens that `shoal train` learns from. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "formats/formats.h"
#include "train/corpus.h"
#include "train/encode.h"
#include "train/learn_vocab.h"

enum { MAX_TEXTS = 4096, MAX_CORES = 64, MAX_VOCAB = 1 << 20, DEFAULT_VOCAB = 4096 };

static const char end_of_text[] = "<|endoftext|>";

typedef struct options {
    const char *text[MAX_TEXTS];
    int n_text;
    const char *dir, *tokenizer, *separator;
    int n_vocab, n_thread;
    float val;
} options;

/* The files of the folder, each under a name of its own until all are whole. */
enum { TOKENIZER, TRAIN, VAL, N_FILE };
static const char *const file_name[N_FILE] = {"tokenizer.gguf", "train.bin", "val.bin"};

typedef struct job {
    const options *o;
    sh_pool *pool;
    char *path[N_FILE], *tmp[N_FILE];
    bool made_dir;
    sh_corpus corpus;
    sh_model_file *given; /* --tokenizer FILE; else: */
    bool chars;
    sh_new_vocab vocab;
} job;

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Time that passes, and time of all cores together. */
typedef struct stopwatch {
    double wall, cpu;
} stopwatch;

static stopwatch start(void)
{
    return (stopwatch){seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

static void print_speed(stopwatch began, size_t n_bytes)
{
    stopwatch now = start();
    double cpu = now.cpu - began.cpu;
    fprintf(stderr, " in %.2f s, %.1f MB/s for each core", now.wall - began.wall,
            (double)n_bytes / 1e6 / (cpu > 1e-6 ? cpu : 1e-6));
}

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static sh_err open_dir(job *j)
{
    const char *dir = j->o->dir;
    struct stat st;
    j->made_dir = mkdir(dir, 0777) == 0;
    if (!j->made_dir && errno != EEXIST)
        return sh_fail(SH_EARG, "%s: cannot make the folder: %s", dir, strerror(errno));
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode))
        return sh_fail(SH_EARG, "%s is not a folder; give another with -o", dir);
    if (access(dir, W_OK | X_OK) != 0)
        return sh_fail(SH_EARG, "%s: cannot write into the folder: %s", dir, strerror(errno));
    for (int i = 0; i < N_FILE; i++)
        if (asprintf(&j->path[i], "%s/%s", dir, file_name[i]) < 0 ||
            asprintf(&j->tmp[i], "%s.%d.tmp", j->path[i], (int)getpid()) < 0)
            return sh_fail(SH_ENOMEM, "no memory for the names of the files");
    return SH_OK;
}

/* --- the tokenizer --- */

static sh_err copy_tokenizer(const job *j)
{
    static const char prefix[] = "tokenizer.";
    sh_gguf_writer *w;
    const sh_meta *family = sh_model_file_meta(j->given, "general.architecture");
    SH_TRY(sh_gguf_create(&w, j->tmp[TOKENIZER]));
    if (family) sh_gguf_put_meta(w, family);
    for (size_t i = 0; i < j->given->n_meta; i++)
        if (strncmp(j->given->meta[i].key, prefix, sizeof prefix - 1) == 0)
            sh_gguf_put_meta(w, &j->given->meta[i]);
    return sh_gguf_close(w, true);
}

static sh_err learn(job *j)
{
    stopwatch began = start();
    if (j->chars)
        SH_TRY(sh_learn_chars(&j->vocab, &j->corpus.docs));
    else
        SH_TRY(sh_learn_bpe(&j->vocab, &j->corpus.docs, j->o->n_vocab, j->pool));
    fprintf(stderr, "prepare: %zu tokens learned from %zu bytes of text", j->vocab.n + !j->chars,
            j->corpus.n_bytes);
    print_speed(began, j->corpus.n_bytes);
    fputc('\n', stderr);
    return SH_OK;
}

/* --- the tokens --- */

static sh_err encode(const job *j, const sh_docs *train, const sh_docs *val)
{
    sh_model_file *m = NULL;
    sh_encoder e = {0};
    size_t n_train, n_val = 0, n_bytes = 0;
    stopwatch began = start();
    sh_err err;
    SH_GOTO(sh_model_file_open(&m, j->tmp[TOKENIZER]));
    SH_GOTO(sh_encoder_open(&e, m, j->pool));
    SH_GOTO(sh_encoder_write(&e, train, j->tmp[TRAIN], &n_train));
    if (val->n) SH_GOTO(sh_encoder_write(&e, val, j->tmp[VAL], &n_val));
    for (size_t i = 0; i < j->corpus.docs.n; i++) n_bytes += j->corpus.docs.v[i].n;
    fprintf(stderr, "prepare: %zu documents encoded", j->corpus.n_doc);
    print_speed(began, n_bytes);
    fprintf(stderr,
            ": %zu tokens for training, %zu for validation, of %d bytes each; %.2f bytes of text "
            "per token\n",
            n_train, n_val, e.id_bytes, (double)n_bytes / (double)(n_train + n_val));
out:
    sh_encoder_close(&e);
    sh_model_file_close(m);
    return err;
}

/* The names that others look for, all at the end. What an earlier run left and this one does not
 * have would not fit to the rest. */
static sh_err rename_all(const job *j, bool has_val)
{
    for (int i = 0; i < N_FILE; i++) {
        bool keep = i != VAL || has_val;
        if (keep ? rename(j->tmp[i], j->path[i]) : unlink(j->path[i]) && errno != ENOENT)
            return sh_fail(SH_ESYS, "%s: cannot %s the file: %s", j->path[i],
                           keep ? "rename" : "remove", strerror(errno));
    }
    return SH_OK;
}

static sh_err write_files(const job *j)
{
    sh_docs train = {0}, val = {0};
    sh_err err;
    SH_GOTO(sh_corpus_split(&j->corpus, (double)j->o->val, &train, &val));
    if (j->given)
        SH_GOTO(copy_tokenizer(j));
    else
        SH_GOTO(sh_new_vocab_write(&j->vocab, j->chars ? NULL : end_of_text, j->tmp[TOKENIZER]));
    SH_GOTO(encode(j, &train, &val));
    err = rename_all(j, val.n > 0);
out:
    sh_docs_close(&train);
    sh_docs_close(&val);
    return err;
}

/* --- the command --- */

/* What ends a document, NULL if only a text does. */
static sh_err find_separator(const job *j, const char **separator)
{
    const char *given = j->o->separator;
    bool ends = !j->chars;
    if (j->given) ends = sh_model_file_meta(j->given, "tokenizer.ggml.eos_token_id") != NULL;
    if (given && !ends)
        return sh_fail(SH_EARG, "--separator: %s has no token that ends a text",
                       j->chars ? "a table of characters" : j->o->tokenizer);
    if (given && !*given) return sh_fail(SH_EARG, "--separator is empty");
    *separator = !ends ? NULL : given ? given : end_of_text;
    return SH_OK;
}

static sh_err open_job(job *j)
{
    int cpu[MAX_CORES], n_thread = j->o->n_thread;
    const char *tokenizer = j->o->tokenizer, *separator = NULL;
    j->chars = is(tokenizer, "char");
    if (!j->chars && !is(tokenizer, "bpe")) {
        if (access(tokenizer, F_OK) != 0)
            return sh_fail(SH_EARG,
                           "--tokenizer is '%s', but must be char, bpe, or a model file, and there "
                           "is no such file",
                           tokenizer);
        SH_TRY(sh_model_file_open(&j->given, tokenizer));
    }
    if (!n_thread) n_thread = sh_cpu_cores(cpu, MAX_CORES);
    SH_TRY(find_separator(j, &separator));
    SH_TRY(sh_pool_open(&j->pool, n_thread, NULL, 0));
    SH_TRY(sh_corpus_open(&j->corpus, j->o->text, j->o->n_text, separator));
    return open_dir(j);
}

/* Nothing is left of what is not finished. */
static void close_job(job *j, bool done)
{
    for (int i = 0; i < N_FILE; i++) {
        if (j->tmp[i] && !done) unlink(j->tmp[i]);
        free(j->tmp[i]);
        free(j->path[i]);
    }
    if (j->made_dir && !done) rmdir(j->o->dir);
    sh_new_vocab_close(&j->vocab);
    sh_corpus_close(&j->corpus);
    sh_model_file_close(j->given);
    sh_pool_close(j->pool);
}

static int prepare(const options *o)
{
    job j = {.o = o};
    sigset_t stop, before; /* so that Ctrl-C leaves no half-written file */
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    sh_err err = open_job(&j);
    if (err == SH_OK && !j.given) err = learn(&j);
    sigprocmask(SIG_BLOCK, &stop, &before);
    if (err == SH_OK) err = write_files(&j);
    close_job(&j, err == SH_OK);
    int status = sh_exit("prepare", err);
    sigprocmask(SIG_SETMASK, &before, NULL); /* ends here if one has come */
    return status;
}

static sh_err check(options *o)
{
    static const char see[] = "see shoal prepare --help";
    if (o->n_text == 0) return sh_fail(SH_EARG, "which text? %s", see);
    if (!o->dir) return sh_fail(SH_EARG, "give the folder to write to with -o DIR; %s", see);
    if (o->n_vocab && !is(o->tokenizer, "bpe"))
        return sh_fail(SH_EARG, "--vocab-size is for --tokenizer bpe; others have their own; %s",
                       see);
    if (!o->n_vocab) o->n_vocab = DEFAULT_VOCAB;
    return SH_OK;
}

static int prepare_main(int argc, char **argv)
{
    static options o = {.tokenizer = "bpe", .val = 0.1f};
    bool help = false;
    const sh_flag flags[] = {
        {"-o, --output", "DIR", SH_FLAG_STR, &o.dir, 0, 0,
         "the folder for tokenizer.gguf, train.bin and val.bin"},
        {"--tokenizer", "KIND", SH_FLAG_STR, &o.tokenizer, 0, 0,
         "char: a table of characters; bpe: byte-level BPE; or a model file's own"},
        {"--vocab-size", "N", SH_FLAG_INT, &o.n_vocab, 257, MAX_VOCAB,
         "tokens of bpe: 256 bytes, what is learned, <|endoftext|> (default 4096)"},
        {"--val", "SHARE", SH_FLAG_FLOAT, &o.val, 0, 0.9,
         "the share of the text, at its end, that is for validation"},
        {"--separator", "TEXT", SH_FLAG_STR, &o.separator, 0, 0,
         "what ends a document in the text, as the end of a file does (default <|endoftext|>)"},
        {"-t, --threads", "N", SH_FLAG_INT, &o.n_thread, 0, 1024,
         "threads (default one for each core); they change nothing in the files"},
    };
    sh_err err = sh_flags_parse("shoal prepare TEXT... -o DIR [flags]; TEXT may be - for stdin",
                                flags, sizeof flags / sizeof *flags, argc, argv, o.text, MAX_TEXTS,
                                &o.n_text, &help);
    if (help || err != SH_OK) return sh_exit("prepare", err);
    if ((err = check(&o)) != SH_OK) return sh_exit("prepare", err);
    return prepare(&o);
}

const sh_command sh_command_prepare = {
    .name = "prepare", .summary = "turn text files into tokens to train on", .main = prepare_main};
