/* shoal run: prompts in, text out. Written against shoal.h alone. */
#define _GNU_SOURCE
#include <jansson.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "shoal.h"

enum { MAX_PROMPT_BYTES = 256 << 20, HASH_HEX = 17 };

typedef struct options {
    shoal_options engine;
    const char *prompt, *file, *output, *cpu;
    int n_predict, n_sample;
    bool echo, special, ignore_eos, verbose, json;
    int64_t seed;
    float temp, top_p, min_p, repeat_penalty;
    int top_k, repeat_last_n;
    sh_flag_strs stop;
} options;

typedef struct prompt {
    const char *text;
    size_t n;
    uint32_t *ids;
    size_t n_ids;
    uint64_t request;
} prompt;

/* One sample's output; samples are printed in order, the first unfinished one as it comes. */
typedef struct sample {
    const prompt *from;
    char *text; /* not yet printed */
    size_t n, cap;
    bool done;
    shoal_finish finish;
    char hash[HASH_HEX]; /* first half of SHA-256 over the ids */
    uint64_t logits_hash;
    uint32_t *tokens;
    size_t n_token;
    double first_s, decode_s;
} sample;

typedef struct run {
    const options *opt;
    shoal *engine;
    char *text; /* of the file, with the prompts in it */
    prompt *prompt;
    int n_prompt;
    sample *sample;
    int n_sample, printing; /* number of the sample that may print */
    bool begun;             /* it has printed its first bytes */
    bool terminal;          /* progress can be shown */
    size_t n_token;         /* of all samples, for the progress */
} run;

/* ---- interruption ---- */

static volatile sig_atomic_t generating, interrupted;

/* The first Ctrl-C ends the run in order; where there is nothing to end, or the second time, at
 * once: ranks and local nodes end with this process. */
static void on_signal(int sig)
{
    if (!generating || interrupted) _exit(128 + sig);
    interrupted = sig;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

/* ---- prompts ---- */

/* Cuts text at blank lines into paragraphs, in place. */
static sh_err split_paragraphs(run *r, char *text, size_t n)
{
    size_t cap = 0, at = 0;
    while (at < n) {
        while (at < n && (text[at] == '\n' || text[at] == '\r')) at++;
        size_t end = at;
        while (end < n &&
               !(text[end] == '\n' && (end + 1 == n || text[end + 1] == '\n' ||
                                       (text[end + 1] == '\r' && text[end + 2] == '\n'))))
            end++;
        size_t last = end;
        while (last > at && (text[last - 1] == '\r' || text[last - 1] == '\n')) last--;
        if (last > at) {
            SH_TRY(sh_grow(&r->prompt, &cap, (size_t)r->n_prompt + 1, sizeof *r->prompt,
                           "the prompts"));
            r->prompt[r->n_prompt++] = (prompt){.text = text + at, .n = last - at};
        }
        at = end;
    }
    return SH_OK;
}

static sh_err read_prompts(run *r)
{
    const options *o = r->opt;
    size_t n;
    if (o->prompt && o->file)
        return sh_fail(SH_EARG, "give -p or -f, not both; see shoal run --help");
    if (!o->prompt && !o->file)
        return sh_fail(SH_EARG, "give a prompt with -p TEXT, or a file of them with -f FILE");
    if (o->prompt) {
        SH_TRY(sh_alloc(&r->prompt, 1, sizeof *r->prompt, "the prompt"));
        r->prompt[r->n_prompt++] = (prompt){.text = o->prompt, .n = strlen(o->prompt)};
        return SH_OK;
    }
    SH_TRY(sh_file_read_text(&r->text, &n, o->file, MAX_PROMPT_BYTES));
    SH_TRY(split_paragraphs(r, r->text, n));
    if (r->n_prompt == 0)
        return sh_fail(SH_EARG, "%s: no prompt in the file; write one per paragraph", o->file);
    return SH_OK;
}

/* ---- output ---- */

static void print_json(const sample *q, int number)
{
    json_t *tokens = json_array();
    for (size_t i = 0; i < q->n_token; i++)
        json_array_append_new(tokens, json_integer((json_int_t)q->tokens[i]));
    json_t *line = json_pack("{s:i, s:o, s:o, s:s, s:s}", "sample", number, "text",
                             json_stringn(q->text ? q->text : "", q->n), "tokens", tokens, "finish",
                             shoal_finish_name(q->finish), "hash", q->hash);
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    if (text) puts(text);
    free(text);
    json_decref(line);
}

/* JSON holds UTF-8 only: other bytes become U+FFFD. */
static sh_err make_valid(sample *q)
{
    char *out;
    size_t k = 0;
    utf8proc_int32_t c;
    SH_TRY(sh_alloc(&out, q->n + 1, 3, "a text"));
    for (size_t i = 0; i < q->n;) {
        utf8proc_ssize_t len =
            utf8proc_iterate((utf8proc_uint8_t *)q->text + i, (utf8proc_ssize_t)(q->n - i), &c);
        if (len <= 0) c = 0xfffd, len = 1;
        k += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)out + k);
        i += (size_t)len;
    }
    free(q->text);
    q->text = out;
    q->n = k;
    return SH_OK;
}

/* Prints what may be printed: the sample whose turn it is, and those that ended before their turn.
 */
static sh_err flush_samples(run *r)
{
    const options *o = r->opt;
    for (; r->printing < r->n_sample; r->printing++, r->begun = false) {
        sample *q = &r->sample[r->printing];
        if (o->json) {
            if (!q->done) break;
            SH_TRY(make_valid(q));
            print_json(q, r->printing);
        } else {
            if (!r->begun && r->printing > 0) fputs("\n\n", stdout);
            if (!r->begun && o->echo) fwrite(q->from->text, 1, q->from->n, stdout);
            r->begun = true;
            fwrite(q->text, 1, q->n, stdout);
            q->n = 0;
            if (!q->done) break;
        }
    }
    if (fflush(stdout) != 0) return sh_fail(SH_ESYS, "stdout does not take the text any more");
    return SH_OK;
}

static void hash_tokens(char out[HASH_HEX], const uint32_t *id, size_t n)
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_state state;
    crypto_hash_sha256_init(&state);
    for (size_t i = 0; i < n; i++) {
        unsigned char le[4];
        for (int b = 0; b < 4; b++) le[b] = (unsigned char)(id[i] >> (8 * b));
        crypto_hash_sha256_update(&state, le, sizeof le);
    }
    crypto_hash_sha256_final(&state, digest);
    sodium_bin2hex(out, HASH_HEX, digest, 8);
}

static sh_err take_event(run *r, const shoal_event *e)
{
    sample *q = NULL;
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i].request == e->request) q = &r->sample[i * r->opt->n_sample + e->sample];
    SH_TRY(sh_grow(&q->text, &q->cap, q->n + e->n_text + 1, 1, "a text"));
    if (e->n_text) memcpy(q->text + q->n, e->text, e->n_text);
    q->n += e->n_text;
    r->n_token += e->kind == SHOAL_TOKEN;
    if (e->kind == SHOAL_END) {
        q->done = true;
        q->finish = e->finish;
        q->first_s = e->first_s;
        q->decode_s = e->decode_s;
        q->logits_hash = e->logits_hash;
        SH_TRY(sh_alloc(&q->tokens, e->n_token, sizeof *q->tokens, "a sample"));
        if (e->n_token) memcpy(q->tokens, e->tokens, e->n_token * sizeof *q->tokens);
        q->n_token = e->n_token;
        hash_tokens(q->hash, q->tokens, q->n_token);
    }
    return flush_samples(r);
}

/* Whether stdout and stderr go to one place, as in a log. */
static bool same_place(void)
{
    struct stat a, b;
    return fstat(STDOUT_FILENO, &a) == 0 && fstat(STDERR_FILENO, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* A line that is overwritten, on a terminal, while stdout shows nothing. */
static void progress(const run *r, const char *what)
{
    if (r->terminal) fprintf(stderr, "\r\033[K%s", what);
}

static void figures(const run *r)
{
    const options *o = r->opt;
    shoal_info info;
    shoal_stats stats;
    double first_s = 0;
    shoal_get_info(r->engine, &info);
    shoal_get_stats(r->engine, &stats);
    if (!o->json && isatty(STDOUT_FILENO))
        putchar('\n'), fflush(stdout);
    else if (!o->json && same_place()) /* the figures begin a line of their own */
        fputc('\n', stderr);
    for (int i = 0; i < r->n_sample; i++) {
        const sample *q = &r->sample[i];
        if (i == 0 || (q->first_s > 0 && q->first_s < first_s)) first_s = q->first_s;
        if (o->verbose && q->done)
            fprintf(stderr,
                    "shoal: sample %d: %zu tokens, %s, first token %.1f ms, %.1f tok/s, hash %s, "
                    "logits "
                    "%016llx\n",
                    i, q->n_token, shoal_finish_name(q->finish), q->first_s * 1e3,
                    q->decode_s > 0 && q->n_token > 1 ? (double)(q->n_token - 1) / q->decode_s
                                                      : 0.0,
                    q->hash, (unsigned long long)q->logits_hash);
    }
    fprintf(stderr,
            "shoal: prompt %llu tokens, %.1f tok/s; decode %llu tokens, %.1f tok/s; first token "
            "%.1f ms; "
            "memory %.1f MiB; seed %lld; hash",
            (unsigned long long)stats.n_prompt_token,
            stats.prompt_s > 0 ? (double)stats.n_prompt_token / stats.prompt_s : 0.0,
            (unsigned long long)stats.n_sampled_token,
            stats.decode_s > 0 ? (double)stats.n_sampled_token / stats.decode_s : 0.0,
            first_s * 1e3, (double)info.memory_bytes / 1048576.0, (long long)o->seed);
    for (int i = 0; i < r->n_sample; i++)
        if (r->sample[i].done) fprintf(stderr, " %s", r->sample[i].hash);
    fputc('\n', stderr);
    if (o->verbose)
        fprintf(
            stderr,
            "shoal: %s, %d layers, %d stages of %d ranks of %d threads, prompts %s, KV %s, context "
            "%d, "
            "weights here %.1f MiB, loaded in %.2f s, %llu steps, at most %u under way at once\n",
            info.family, info.n_layer, info.n_stage, info.n_rank, info.n_thread, info.arith,
            info.kv, info.n_ctx, (double)info.weight_bytes / 1048576.0, info.load_s,
            (unsigned long long)stats.n_step, stats.max_in_flight);
}

/* ---- the run ---- */

static sh_err submit_all(run *r)
{
    const options *o = r->opt;
    shoal_request q = {.n_sample = o->n_sample,
                       .n_predict = o->n_predict,
                       .ignore_end = o->ignore_eos,
                       .sampling = {.temp = o->temp,
                                    .top_k = o->top_k,
                                    .top_p = o->top_p,
                                    .min_p = o->min_p,
                                    .repeat_penalty = o->repeat_penalty,
                                    .repeat_last_n = o->repeat_last_n,
                                    .seed = (uint64_t)o->seed},
                       .stop = o->stop.v,
                       .n_stop = o->stop.n};
    for (int i = 0; i < r->n_prompt; i++) {
        prompt *p = &r->prompt[i];
        int flags = SHOAL_BOS | (o->special ? SHOAL_SPECIAL : 0);
        SH_TRY((sh_err)shoal_tokenize(r->engine, p->text, p->n, flags, &p->ids, &p->n_ids));
        q.ids = p->ids;
        q.n_ids = p->n_ids;
        sh_err err = (sh_err)shoal_submit(r->engine, &q, &p->request);
        if (err != SH_OK) return r->n_prompt > 1 ? sh_fail_in(err, "prompt %d", i + 1) : err;
    }
    return SH_OK;
}

static sh_err drive(run *r)
{
    char line[80];
    shoal_event e;
    sh_err err = SH_OK;
    for (generating = true; !interrupted;) {
        SH_GOTO((sh_err)shoal_next(r->engine, &e));
        if (e.kind == SHOAL_IDLE) break;
        SH_GOTO(take_event(r, &e));
        if (r->opt->json || r->printing > 0) {
            snprintf(line, sizeof line, "%zu tokens, %d of %d samples done", r->n_token,
                     r->printing, r->n_sample);
            if (r->opt->json) progress(r, line);
        }
    }
out:
    generating = false;
    if (r->opt->json) progress(r, "");
    return err;
}

static sh_err run_model(const options *o)
{
    run r = {.opt = o, .terminal = isatty(STDERR_FILENO)};
    char line[300];
    sh_err err;
    SH_GOTO(read_prompts(&r));
    r.n_sample = r.n_prompt * o->n_sample;
    SH_GOTO(sh_alloc(&r.sample, (size_t)r.n_sample, sizeof *r.sample, "the samples"));
    for (int i = 0; i < r.n_sample; i++) r.sample[i].from = &r.prompt[i / o->n_sample];
    shoal_options engine = o->engine;
    if (!engine.n_slot) engine.n_slot = r.n_sample < 32 ? r.n_sample : 32;
    snprintf(line, sizeof line, "loading %.200s ...", engine.model ? engine.model : "");
    progress(&r, line);
    err = (sh_err)shoal_open(&r.engine, &engine);
    progress(&r, "");
    SH_GOTO(err);
    SH_GOTO(submit_all(&r));
    SH_GOTO(drive(&r));
    figures(&r);
out:
    shoal_close(r.engine);
    for (int i = 0; i < r.n_prompt; i++) free(r.prompt[i].ids);
    for (int i = 0; r.sample && i < r.n_sample; i++) {
        free(r.sample[i].text);
        free(r.sample[i].tokens);
    }
    free(r.prompt);
    free(r.sample);
    free(r.text);
    return err;
}

static int command(int argc, char **argv)
{
    options o = {.output = "text",
                 .n_predict = -1,
                 .n_sample = 1,
                 .special = true,
                 .seed = -1,
                 .temp = 0.8f,
                 .top_k = 40,
                 .top_p = 0.95f,
                 .min_p = 0.05f,
                 .repeat_penalty = 1.0f,
                 .repeat_last_n = 64};
    shoal_options *e = &o.engine;
    const sh_flag flags[] = {
        {"-m, --model", "FILE", SH_FLAG_STR, &e->model, 0, 0,
         "the model file (GGUF); without it the project's own"},
        {"-p, --prompt", "TEXT", SH_FLAG_STR, &o.prompt, 0, 0, "the prompt"},
        {"-f, --file", "FILE", SH_FLAG_STR, &o.file, 0, 0,
         "a file with a prompt per paragraph; - is stdin"},
        {"-n, --n-predict", "N", SH_FLAG_INT, &o.n_predict, -1, 1 << 28,
         "tokens of a sample at most; -1: until the context is full"},
        {"-c, --ctx-size", "N", SH_FLAG_INT, &e->n_ctx, 0, 1 << 28,
         "positions of a sequence; 0: the model's, at most 4096"},
        {"-t, --threads", "N", SH_FLAG_INT, &e->n_thread, 0, 1024,
         "threads of each rank; 0: the cores, shared out"},
        {"-b, --batch-size", "N", SH_FLAG_INT, &e->n_batch, 0, 65536,
         "prompt tokens in one step; 0: 512"},
        {"-np, --parallel", "N", SH_FLAG_INT, &e->n_slot, 0, 256,
         "sequences at once; 0: all samples, at most 32"},
        {"--n-samples", "N", SH_FLAG_INT, &o.n_sample, 1, 1 << 16, "samples of each prompt"},
        {"-s, --seed", "N", SH_FLAG_I64, &o.seed, -1, 9e18,
         "seed of the sampling; -1: a random one"},
        {"--temp", "F", SH_FLAG_FLOAT, &o.temp, 0, 1e6, "temperature; 0: greedy"},
        {"--top-k", "N", SH_FLAG_INT, &o.top_k, 0, 1 << 28,
         "sample from the N best tokens; 0: all"},
        {"--top-p", "F", SH_FLAG_FLOAT, &o.top_p, 0, 1,
         "sample from the best that make up F; 1: all"},
        {"--min-p", "F", SH_FLAG_FLOAT, &o.min_p, 0, 1,
         "sample from those F times as likely as the best"},
        {"--repeat-penalty", "F", SH_FLAG_FLOAT, &o.repeat_penalty, 0, 1e6,
         "of repeated tokens; 1: none"},
        {"--repeat-last-n", "N", SH_FLAG_INT, &o.repeat_last_n, -1, 1 << 28,
         "tokens the penalty looks back on; -1: all"},
        {"-r, --stop, --reverse-prompt", "TEXT", SH_FLAG_STRS, &o.stop, 0, 0,
         "a text that ends a sample; may be given several times"},
        {"--ignore-eos", NULL, SH_FLAG_BOOL, &o.ignore_eos, 0, 0,
         "go on where the model ends the text"},
        {"--no-parse-special", NULL, SH_FLAG_NO, &o.special, 0, 0,
         "read the names of control tokens in prompts as plain text"},
        {"--tp", "N", SH_FLAG_INT, &e->n_rank, 0, 8, "ranks that share every layer, on this host"},
        {"--ring", "N", SH_FLAG_INT, &e->n_ring, 0, 17,
         "nodes that share the layers, on this host"},
        {"--nodes", "FILE", SH_FLAG_STR, &e->nodes, 0, 0, "the nodes of a ring over hosts (JSON)"},
        {"--arith", "NAME", SH_FLAG_STR, &e->arith, 0, 0,
         "arithmetic of prompts with quantised weights: auto, int8, bf16"},
        {"--cpu", "NAME", SH_FLAG_STR, &o.cpu, 0, 0,
         "the best instruction set to use; see shoal inspect --kernels"},
        {"--kv", "TYPE", SH_FLAG_STR, &e->kv, 0, 0, "type of the KV cache: f16, bf16, f32, q8_0"},
        {"--echo", NULL, SH_FLAG_BOOL, &o.echo, 0, 0, "print the prompt before the text"},
        {"-o, --output", "KIND", SH_FLAG_STR, &o.output, 0, 0,
         "text, or json: one line per sample"},
        {"-v, --verbose", NULL, SH_FLAG_BOOL, &o.verbose, 0, 0, "say more on stderr"},
    };
    bool help;
    int n_arg;
    sh_err err = sh_flags_parse("shoal run [-m FILE] (-p TEXT | -f FILE) [flags]", flags,
                                sizeof flags / sizeof *flags, argc, argv, NULL, 0, &n_arg, &help);
    if (err == SH_OK && help) return 0;
    o.json = strcmp(o.output, "json") == 0;
    if (err == SH_OK) err = sh_default_model(&e->model, argv[0]);
    if (err == SH_OK && !o.json && strcmp(o.output, "text") != 0)
        err = sh_fail(SH_EARG, "an output of kind '%s': give text or json (-o)", o.output);
    if (err == SH_OK && sodium_init() < 0) err = sh_fail(SH_ESYS, "libsodium does not start");
    if (err == SH_OK && o.cpu && setenv("SHOAL_CPU", o.cpu, 1) != 0)
        err = sh_fail(SH_ENOMEM, "no memory");
    if (o.seed < 0) o.seed = (int64_t)randombytes_random();
    sh_log_set_level(o.verbose ? SH_LOG_INFO : SH_LOG_WARN);
    catch_signals();
    if (err == SH_OK) err = run_model(&o);
    int status = sh_exit(argv[0], err);
    return interrupted ? 128 + interrupted : status;
}

const sh_command sh_command_run = {
    .name = "run",
    .summary = "continue prompts",
    .main = command,
};
