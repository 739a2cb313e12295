/* shoal train: makes a model from a text, or a model better at one. Trains through train/; the
 * samples of text between go through shoal.h as for any caller. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "shoal.h"
#include "tokenizer/tokenizer.h"
#include "train/loop.h"

enum { SAMPLE_TOKENS = 60 };

typedef struct options {
    sh_train_options train;
    const char *init, *dtype;
    int n_thread;
    bool resume, sample, quiet, always_update;
} options;

/* ---- interruption ---- */

static volatile sig_atomic_t interrupted;

/* The first ends the training in order, the second at once: ranks end with this process. */
static void on_signal(int sig)
{
    if (interrupted) _exit(128 + sig);
    interrupted = sig;
}

static bool stop(void *arg)
{
    (void)arg;
    return interrupted != 0;
}

/* ---- a sample of text ---- */

typedef struct text {
    char *p;
    size_t n, cap;
} text;

static sh_err append(text *t, const char *p, size_t n)
{
    SH_TRY(sh_grow(&t->p, &t->cap, t->n + n, 1, "a text"));
    if (n) memcpy(t->p + t->n, p, n);
    t->n += n;
    return SH_OK;
}

/* What the sample begins with; a model file's tokenizer knows. */
static sh_err spell(text *t, const char *path, const uint32_t *ids, size_t n_ids)
{
    sh_model_file *m = NULL;
    sh_tokenizer *k = NULL;
    sh_err err;
    SH_GOTO(sh_model_file_open(&m, path));
    SH_GOTO(sh_tokenizer_open(&k, m));
    for (size_t i = 0; i < n_ids; i++) {
        size_t n;
        const char *piece = sh_tokenizer_piece(k, ids[i], &n);
        SH_GOTO(append(t, piece, n));
    }
out:
    sh_tokenizer_close(k);
    sh_model_file_close(m);
    return err;
}

static sh_err go_on(text *t, shoal *engine, const uint32_t *ids, size_t n_ids, uint64_t seed)
{
    uint64_t id;
    shoal_info info;
    shoal_event e = {0};
    shoal_get_info(engine, &info);
    int room = info.n_ctx - (int)n_ids;
    shoal_request q = {.ids = ids,
                       .n_ids = n_ids,
                       .n_sample = 1,
                       .n_predict = room < SAMPLE_TOKENS ? room : SAMPLE_TOKENS,
                       .sampling = {.temp = 0.8f, .top_p = 1, .repeat_penalty = 1, .seed = seed}};
    SH_TRY((sh_err)shoal_submit(engine, &q, &id));
    do {
        SH_TRY((sh_err)shoal_next(engine, &e));
        if (e.kind != SHOAL_IDLE) SH_TRY(append(t, e.text, e.n_text));
    } while (e.kind != SHOAL_IDLE && !interrupted);
    return SH_OK;
}

/* Line by line and set in, on stderr. */
static void show(const text *t)
{
    fputs("    ", stderr);
    for (size_t i = 0; i < t->n; i++) {
        unsigned char c = (unsigned char)t->p[i];
        if (c == '\n')
            fputs("\n    ", stderr);
        else
            putc((c < ' ' && c != '\t') || c == 0x7f ? '?' : c, stderr);
    }
    putc('\n', stderr);
}

/* A sample that fails is no reason to end the training. */
static sh_err sample(void *arg, const char *path, const int32_t *ids, int n)
{
    const options *o = arg;
    uint32_t begin[64];
    text t = {0};
    shoal *engine = NULL;
    shoal_options open = {.model = path, .n_slot = 1, .n_rank = 1, .n_thread = o->train.n_thread};
    sh_err err;
    sh_log_set_level(SH_LOG_WARN); /* the engine says its own */
    if (n > 64) n = 64;
    for (int i = 0; i < n; i++) begin[i] = (uint32_t)ids[i];
    SH_GOTO(spell(&t, path, begin, (size_t)n));
    SH_GOTO((sh_err)shoal_open(&engine, &open));
    SH_GOTO(go_on(&t, engine, begin, (size_t)n, (uint64_t)o->train.settings.seed));
    show(&t);
out:
    sh_log_set_level(SH_LOG_INFO);
    if (err != SH_OK) sh_log(SH_LOG_WARN, "no sample of text: %s", sh_err_message());
    shoal_close(engine);
    free(t.p);
    return SH_OK;
}

/* ---- flags ---- */

static sh_err parse(options *o, int argc, char **argv, bool *help)
{
    sh_train_options *t = &o->train;
    sh_settings *s = &t->settings;
    sh_train_shape *k = &t->shape;
    const sh_flag flags[] = {
        {"--ckpt", "DIR", SH_FLAG_STR, &t->ckpt, 0, 0, "folder of the checkpoints"},
        {"--dataset", "DIR", SH_FLAG_STR, &t->dataset, 0, 0,
         "folder of the text, made by shoal prepare"},
        {"--init", "WHAT", SH_FLAG_STR, &o->init, 0, 0,
         "scratch, resume, or a model file (GGUF) to finetune"},
        {"--resume", NULL, SH_FLAG_BOOL, &o->resume, 0, 0,
         "go on from --ckpt, with its settings; same as --init resume"},
        {"--family", "NAME", SH_FLAG_STR, &k->family, 0, 0, "llama or gpt2 (default gpt2)"},
        {"--shape", "NAME", SH_FLAG_STR, &k->name, 0, 0,
         "a known shape; an unknown name lists them"},
        {"--layers", "N", SH_FLAG_INT, &k->n_layer, 1, 4096, "layers (default 4)"},
        {"--width", "N", SH_FLAG_INT, &k->n_embd, 2, 1 << 20, "values of a token (default 128)"},
        {"--heads", "N", SH_FLAG_INT, &k->n_head, 1, 4096, "heads of attention (default 4)"},
        {"--kv-heads", "N", SH_FLAG_INT, &k->n_kv_head, 1, 4096,
         "KV heads, family llama (default: as many as heads)"},
        {"--ff", "N", SH_FLAG_INT, &k->n_ff, 2, 1 << 22,
         "feed-forward values (default: 4 width; llama: 8/3 width, rounded up to 32)"},
        {"--context", "N", SH_FLAG_INT, &k->n_ctx, 1, 1 << 28, "positions (default 64)"},
        {"--tied", NULL, SH_FLAG_BOOL, &k->tied, 0, 0,
         "the head is the embedding (default, but for known shapes)"},
        {"--untied", NULL, SH_FLAG_BOOL, &k->untied, 0, 0, "the head is apart from it"},
        {"--batch-size", "N", SH_FLAG_INT, &s->batch_size, 1, 1 << 20,
         "sequences of a micro-batch, over all ranks"},
        {"--grad-acc-steps", "N", SH_FLAG_INT, &s->n_acc, 1, 1 << 20,
         "micro-batches of an iteration"},
        {"--max-iters", "N", SH_FLAG_INT, &s->max_iters, 1, 1 << 30, "iterations"},
        {"--lr", "F", SH_FLAG_FLOAT, &s->lr, 0, 3e38, "the highest learning rate"},
        {"--min-lr", "F", SH_FLAG_FLOAT, &s->min_lr, 0, 3e38, "the last one"},
        {"--warmup", "N", SH_FLAG_INT, &s->warmup, 0, 1 << 30,
         "iterations in which it rises to the highest"},
        {"--decay-iters", "N", SH_FLAG_INT, &s->decay_iters, 0, 1 << 30,
         "iterations after which it is the last one (default 0: --max-iters)"},
        {"--weight-decay", "F", SH_FLAG_FLOAT, &s->weight_decay, 0, 1e6, "of matrices"},
        {"--beta1", "F", SH_FLAG_FLOAT, &s->beta1, 0, 0.99999994, "of AdamW"},
        {"--beta2", "F", SH_FLAG_FLOAT, &s->beta2, 0, 0.99999994, "of AdamW"},
        {"--grad-clip", "F", SH_FLAG_FLOAT, &s->grad_clip, 0, 3e38,
         "the largest norm of the gradient; 0: any"},
        {"--dropout", "F", SH_FLAG_FLOAT, &s->dropout, 0, 0.99, "part of the values left out"},
        {"--dtype", "TYPE", SH_FLAG_STR, &o->dtype, 0, 0,
         "products in bf16 or f32; weights are f32"},
        {"--ckpt-interval", "N", SH_FLAG_INT, &s->ckpt_interval, 1, 1 << 30,
         "iterations between evaluations and checkpoints"},
        {"--eval-iters", "N", SH_FLAG_INT, &s->eval_iters, 1, 1 << 20,
         "batches of an evaluation, of each text"},
        {"--patience", "N", SH_FLAG_INT, &s->patience, 0, 1 << 30,
         "stop after N evaluations without improvement; 0: never"},
        {"-au, --always-update", NULL, SH_FLAG_BOOL, &o->always_update, 0, 0,
         "write best.gguf at every evaluation"},
        {"--log-interval", "N", SH_FLAG_INT, &s->log_interval, 1, 1 << 30,
         "iterations between lines of progress"},
        {"--no-sample", NULL, SH_FLAG_NO, &o->sample, 0, 0, "no sample of text at evaluations"},
        {"--seed", "N", SH_FLAG_I64, &s->seed, 0, 9e18, "of weights, batches and dropout"},
        {"-t, --threads", "N", SH_FLAG_INT, &o->n_thread, 0, 1024,
         "threads of each rank; 0: the cores, shared out"},
        {"--ranks", "N", SH_FLAG_INT, &t->n_rank, 0, 1024,
         "processes that share the batch: 1, 2, 4 or 8; 0: 1, or mpirun's"},
        {"-q, --quiet", NULL, SH_FLAG_BOOL, &o->quiet, 0, 0, "say only what goes wrong"},
    };
    int n_arg;
    return sh_flags_parse("shoal train --ckpt DIR --dataset DIR [flags]", flags,
                          sizeof flags / sizeof *flags, argc, argv, NULL, 0, &n_arg, help);
}

/* The settings of the checkpoint are those of the run, but for what the flags say. */
static sh_err settings_of_checkpoint(options *o, int argc, char **argv)
{
    sh_checkpoint c;
    bool help;
    if (!o->train.ckpt) return SH_OK; /* told later */
    SH_TRY(sh_checkpoint_find(&c, o->train.ckpt));
    o->train.settings = c.settings;
    o->always_update = c.settings.always_update;
    if (c.settings.dtype == SH_F32) o->dtype = "f32";
    sh_checkpoint_close(&c);
    return parse(o, argc, argv, &help);
}

static sh_err finish_options(options *o)
{
    sh_train_options *t = &o->train;
    if (o->init && strcmp(o->init, "scratch") != 0 && strcmp(o->init, "resume") != 0)
        t->init = o->init;
    if (o->resume && o->init && strcmp(o->init, "resume") != 0)
        return sh_fail(SH_EARG, "give --resume or --init %.200s, not both", o->init);
    if (strcmp(o->dtype, "bf16") != 0 && strcmp(o->dtype, "f32") != 0)
        return sh_fail(SH_EARG, "products in '%.40s': give bf16 or f32 (--dtype)", o->dtype);
    t->settings.dtype = strcmp(o->dtype, "f32") == 0 ? SH_F32 : SH_BF16;
    t->settings.always_update = o->always_update;
    SH_TRY(sh_group_count(&t->n_rank, "--ranks"));
    t->n_cpu = sh_group_cores(t->n_rank, t->cpu, SH_MAX_TRAIN_CPU, &t->n_here);
    t->n_thread = o->n_thread ? o->n_thread : t->n_cpu / t->n_here;
    if (t->n_thread < 1) t->n_thread = 1;
    return SH_OK;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is a failed write */
}

static int command(int argc, char **argv)
{
    options o = {.train = {.settings = sh_settings_default}, .dtype = "bf16", .sample = true};
    bool help = false, stopped = false;
    (void)sh_cpu_features(); /* asks for the matrix unit before there are threads */
    sh_err err = parse(&o, argc, argv, &help);
    if (err == SH_OK && help) return 0;
    o.train.resume = o.resume || (o.init && strcmp(o.init, "resume") == 0);
    if (err == SH_OK && o.train.resume) err = settings_of_checkpoint(&o, argc, argv);
    if (err == SH_OK) err = finish_options(&o);
    sh_log_set_name("shoal train");
    sh_log_set_level(o.quiet ? SH_LOG_WARN : SH_LOG_INFO);
    catch_signals();
    sh_train_hooks hooks = {.arg = &o, .stop = stop, .saved = o.sample && !o.quiet ? sample : NULL};
    if (err == SH_OK) err = sh_train(&o.train, &hooks, &stopped);
    int status = sh_exit(argv[0], err);
    return stopped ? 128 + interrupted : status;
}

const sh_command sh_command_train = {
    .name = "train",
    .summary = "train or finetune a model on a text",
    .main = command,
};
