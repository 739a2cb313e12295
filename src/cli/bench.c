/* shoal bench: how fast, and how fast it could be at most. Written against shoal.h alone.
 *
 * A prompt is timed from its submission to its first token. Decoding is timed from the step in
 * which the last of its sequences got its first token, for as many steps as were asked for. Every
 * repetition has the ceiling that this machine's cores set it, measured before and after it: a
 * shared host is another machine every few seconds (bench/README.md). */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/bench_table.h"
#include "cli/cli.h"
#include "shoal.h"

enum { MAX_LIST = 16, MAX_ROW = 4096 };
static const double SEEN_S = 1; /* the ceilings are measured again when so long has passed */

typedef struct list {
    int v[MAX_LIST], n;
} list;

typedef struct options {
    shoal_options engine;
    const char *shape, *type, *cpu, *output;
    const char *prompt, *decode, *depth, *batch, *thread; /* comma lists */
    list n_prompt, n_decode, n_depth, n_batch, n_thread;
    int repeat;
    bool verbose;
} options;

typedef struct bench {
    const options *opt;
    shoal *engine;
    sh_bench_row *row;
    int n_row;
    shoal_ceiling *seen; /* (n_seen): the ceilings as they were measured, in order */
    int n_seen;
    double seen_s; /* when the last of them was */
    bool terminal;
    sh_bench_table table;
    uint64_t seed;
} bench;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- flags ---- */

static sh_err read_list(list *out, const char *flag, const char *text, int min, int max)
{
    for (const char *p = text; *p;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || (*end && *end != ','))
            return sh_fail(SH_EARG,
                           "%s is '%s', but must be whole numbers with commas between them", flag,
                           text);
        if (v < min || v > max)
            return sh_fail(SH_EARG, "%s has %ld, but must have numbers from %d to %d", flag, v, min,
                           max);
        if (out->n == MAX_LIST)
            return sh_fail(SH_EARG, "%s has more than %d numbers", flag, MAX_LIST);
        out->v[out->n++] = (int)v;
        p = *end ? end + 1 : end;
    }
    return SH_OK;
}

static sh_err read_lists(options *o)
{
    SH_TRY(read_list(&o->n_prompt, "-p", o->prompt, 0, 1 << 24));
    SH_TRY(read_list(&o->n_decode, "-n", o->decode, 0, 1 << 24));
    SH_TRY(read_list(&o->n_depth, "-d", o->depth, 0, 1 << 24));
    SH_TRY(read_list(&o->n_batch, "-b", o->batch, 1, 256));
    SH_TRY(read_list(&o->n_thread, "-t", o->thread, 0, 1024));
    if (o->n_depth.n == 0) o->n_depth.n = 1;   /* 0 */
    if (o->n_thread.n == 0) o->n_thread.n = 1; /* 0: the cores */
    return SH_OK;
}

/* ---- timing ---- */

/* Token ids that mean nothing, others each time. */
static sh_err new_prompt(bench *b, uint32_t **ids, size_t n, int n_vocab)
{
    SH_TRY(sh_alloc(ids, n, sizeof **ids, "a prompt"));
    for (size_t i = 0; i < n; i++) {
        b->seed = b->seed * 6364136223846793005u + 1442695040888963407u;
        (*ids)[i] = (uint32_t)((b->seed >> 33) % (uint64_t)n_vocab);
    }
    return SH_OK;
}

static sh_err submit(bench *b, uint64_t *id, size_t n_prompt, int n_predict)
{
    shoal_info info;
    uint32_t *ids;
    shoal_get_info(b->engine, &info);
    SH_TRY(new_prompt(b, &ids, n_prompt, info.n_vocab));
    shoal_request q = {.ids = ids,
                       .n_ids = n_prompt,
                       .n_sample = 1,
                       .n_predict = n_predict,
                       .ignore_end = true,
                       .sampling = {.top_p = 1, .repeat_penalty = 1}};
    sh_err err = (sh_err)shoal_submit(b->engine, &q, id);
    free(ids);
    return err;
}

static sh_err drain(bench *b)
{
    shoal_event e;
    do SH_TRY((sh_err)shoal_next(b->engine, &e));
    while (e.kind != SHOAL_IDLE);
    return SH_OK;
}

/* Times the tokens after the first `depth` ones of a prompt, and sampling one. A step that reads
 * tokens of both kinds counts in proportion. */
static sh_err run_prompt(bench *b, sh_bench_row *r, double *tps)
{
    double t = now_s(), start = t;
    int n_read = 0, all = r->depth + r->n;
    uint64_t id;
    shoal_event e;
    r->positions = r->depth + (r->n + 1) / 2.0;
    SH_TRY(submit(b, &id, (size_t)all, 1));
    for (;;) {
        SH_TRY((sh_err)shoal_next(b->engine, &e));
        if (e.kind == SHOAL_IDLE) return SH_OK;
        if (e.kind == SHOAL_END) continue;
        double last = t;
        int before = n_read;
        t = now_s();
        n_read = e.kind == SHOAL_PROMPT ? (int)e.n_prompt : all;
        if (before <= r->depth) start = last + (t - last) * (r->depth - before) / (n_read - before);
        if (e.kind == SHOAL_TOKEN) *tps = r->n / (t - start);
    }
}

/* Steps that other sequences' prompts take at most while one decodes already. */
static int slack_steps(const sh_bench_row *r)
{
    return (int)((int64_t)r->n_seq * (r->depth + 1) / 64) + r->n_seq + 8;
}

static sh_err run_decode(bench *b, sh_bench_row *r, double *tps)
{
    uint64_t id[256], last_step = 0, all = (uint64_t)r->n_seq * (uint64_t)r->n, n = 0, n_before = 0;
    int n_begun = 0, n_prompt = r->depth ? r->depth : 1;
    double start = 0, end = 0;
    shoal_event e;
    shoal_stats stats;
    for (int i = 0; i < r->n_seq; i++)
        SH_TRY(submit(b, &id[i], (size_t)n_prompt, r->n + slack_steps(r)));
    for (;;) {
        SH_TRY((sh_err)shoal_next(b->engine, &e));
        double t = now_s();
        shoal_get_stats(b->engine, &stats);
        if (stats.n_step != last_step) { /* the events so far were of earlier steps */
            if (start > 0 && n >= all) break;
            if (n_begun < r->n_seq) n_before = n;
            last_step = stats.n_step;
            end = t;
        }
        if (e.kind == SHOAL_IDLE) break;
        if (e.kind != SHOAL_TOKEN) continue;
        if (n_begun < r->n_seq) {
            bool first = false;
            for (int i = 0; i < r->n_seq && !first; i++)
                if (id[i] == e.request) id[i] |= (uint64_t)1 << 63, first = true;
            n_begun += first;
            if (n_begun == r->n_seq) start = end;
            n_before++;
        } else if (start == end) {
            n_before++; /* of the step in which the last one began */
        } else {
            n++;
        }
    }
    *tps = end > start ? (double)n / (end - start) : 0;
    r->positions = n_prompt + (double)n_before / r->n_seq + (double)n / r->n_seq / 2;
    for (int i = 0; i < r->n_seq; i++) shoal_cancel(b->engine, id[i] & ~((uint64_t)1 << 63));
    return drain(b);
}

static sh_err run_once(bench *b, sh_bench_row *r, double *tps)
{
    return r->kind == SH_BENCH_PROMPT ? run_prompt(b, r, tps) : run_decode(b, r, tps);
}

static sh_err measure(bench *b)
{
    if (b->terminal) fputs("\r\033[Kmeasuring the ceilings", stderr);
    SH_TRY((sh_err)shoal_measure(b->engine, &b->seen[b->n_seen]));
    if (b->terminal) fputs("\r\033[K", stderr);
    b->n_seen++;
    b->seen_s = now_s();
    return SH_OK;
}

static sh_err run_row(bench *b, sh_bench_row *r)
{
    char name[32];
    double tps = 0;
    sh_bench_name(name, r);
    for (int i = -1; i < b->opt->repeat; i++) { /* the first is a warm-up */
        if (b->terminal)
            fprintf(stderr, "\r\033[K%s @ %d: %d of %d", name, r->depth, i + 1, b->opt->repeat);
        SH_TRY(run_once(b, r, &tps));
        if (i >= 0) r->tps[i] = tps, r->before[i] = b->n_seen - 1;
        if (now_s() - b->seen_s > SEEN_S) SH_TRY(measure(b));
    }
    if (b->terminal) fputs("\r\033[K", stderr);
    return SH_OK;
}

/* ---- ceilings ---- */

/* Tokens a second if nothing took time but reading what must be read, or computing what must be
 * computed, whichever takes longer. */
static double ceiling_tps(const sh_bench_row *r, const shoal_ceiling *c)
{
    const shoal_info *i = &r->info;
    double n_tok = r->kind == SH_BENCH_PROMPT ? r->n : r->n_seq,
           n_head = r->kind == SH_BENCH_PROMPT ? 1 : r->n_seq;
    double rate = r->kind == SH_BENCH_PROMPT ? c->prompt_ops_per_s : c->sampled_ops_per_s;
    /* a prompt's tokens share what they read, KV too; sequences share the weights only */
    double n_kv = r->kind == SH_BENCH_PROMPT ? 1 : r->n_seq;
    double kv_pos = r->kind == SH_BENCH_PROMPT ? r->depth + r->n : r->positions;
    double bytes =
        (double)i->layer_bytes + (double)i->head_bytes + n_kv * kv_pos * (double)i->pos_bytes;
    double ops = n_tok * ((double)i->layer_ops + r->positions * (double)i->pos_ops) +
                 n_head * (double)i->head_ops;
    double read_s = bytes / c->read_bytes_per_s, ops_s = ops / rate;
    return n_tok / (read_s > ops_s ? read_s : ops_s);
}

static shoal_ceiling most_seen(const bench *b)
{
    shoal_ceiling most = b->seen[0];
    for (int i = 1; i < b->n_seen; i++) {
        most.read_bytes_per_s = fmax(most.read_bytes_per_s, b->seen[i].read_bytes_per_s);
        most.prompt_ops_per_s = fmax(most.prompt_ops_per_s, b->seen[i].prompt_ops_per_s);
        most.sampled_ops_per_s = fmax(most.sampled_ops_per_s, b->seen[i].sampled_ops_per_s);
    }
    return most;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return (v[(n - 1) / 2] + v[n / 2]) / 2;
}

/* Each repetition against the mean of the ceilings before and after it. */
static void sum_up(const bench *b, sh_bench_row *r)
{
    shoal_ceiling most = most_seen(b);
    double ceiling[SH_BENCH_MAX_REPEAT], ratio[SH_BENCH_MAX_REPEAT], sum = 0, square = 0;
    int n = b->opt->repeat;
    for (int i = 0; i < n; i++) {
        const shoal_ceiling *seen = &b->seen[r->before[i]];
        ceiling[i] = (ceiling_tps(r, &seen[0]) + ceiling_tps(r, &seen[1])) / 2;
        ratio[i] = r->tps[i] / ceiling[i];
        sum += r->tps[i];
    }
    r->mean = sum / n;
    for (int i = 0; i < n; i++) square += (r->tps[i] - r->mean) * (r->tps[i] - r->mean);
    r->stddev = n > 1 ? sqrt(square / (n - 1)) : 0;
    r->median = median(r->tps, n);
    r->min = r->tps[0];
    r->max = r->tps[n - 1];
    r->ceiling = median(ceiling, n);
    r->ratio = median(ratio, n);
    r->max_ceiling = ceiling_tps(r, &most);
}

/* The best ceilings, for people. */
static void print_ceiling(const bench *b)
{
    shoal_ceiling most = most_seen(b), *c = &most;
    char cpu[96];
    shoal_info i;
    shoal_get_info(b->engine, &i);
    sh_cpu_name(cpu, sizeof cpu);
    fprintf(stderr,
            "shoal bench: %s; %d threads read at best %.2f GB/s and compute %.1f GOP/s for prompts "
            "(%s), %.1f for sampled tokens; loaded in %.2f s; memory %.1f MiB\n",
            cpu, c->n_thread, c->read_bytes_per_s / 1e9, c->prompt_ops_per_s / 1e9, i.arith,
            c->sampled_ops_per_s / 1e9, i.load_s, (double)i.memory_bytes / 1048576.0);
}

/* ---- the tests ---- */

static void add_row(bench *b, sh_bench_kind kind, int n, int n_seq, int depth)
{
    if (n > 0 && b->n_row < MAX_ROW)
        b->row[b->n_row++] = (sh_bench_row){.kind = kind, .n = n, .n_seq = n_seq, .depth = depth};
}

static sh_err list_tests(bench *b)
{
    const options *o = b->opt;
    size_t most =
        (size_t)o->n_depth.n * (size_t)(o->n_prompt.n + o->n_decode.n * (1 + o->n_batch.n));
    SH_TRY(sh_alloc(&b->row, most, sizeof *b->row, "the tests"));
    for (int d = 0; d < o->n_depth.n; d++) {
        int depth = o->n_depth.v[d];
        for (int i = 0; i < o->n_prompt.n; i++)
            add_row(b, SH_BENCH_PROMPT, o->n_prompt.v[i], 1, depth);
        for (int i = 0; i < o->n_decode.n; i++)
            add_row(b, SH_BENCH_DECODE, o->n_decode.v[i], 1, depth);
        for (int j = 0; j < o->n_batch.n; j++)
            for (int i = 0; i < o->n_decode.n; i++)
                add_row(b, SH_BENCH_BATCH, o->n_decode.v[i], o->n_batch.v[j], depth);
    }
    if (!b->n_row) return sh_fail(SH_EARG, "no test: give -p, -n or -b more than 0");
    /* before all tests, after each repetition and its warm-up, after all tests */
    size_t seen = (size_t)b->n_row * ((size_t)o->repeat + 1) + 2;
    return sh_alloc(&b->seen, seen, sizeof *b->seen, "the ceilings");
}

/* All tests with one number of threads. */
static sh_err run_tests(bench *b, int n_thread)
{
    shoal_options o = b->opt->engine;
    sh_err err;
    b->n_seen = 0;
    o.n_thread = n_thread;
    o.n_slot = 1;
    for (int i = 0; i < b->n_row; i++) {
        const sh_bench_row *r = &b->row[i];
        int n = r->depth + 1 + r->n + (r->kind == SH_BENCH_PROMPT ? 1 : slack_steps(r));
        if (n > o.n_ctx) o.n_ctx = n;
        if (r->n_seq > o.n_slot) o.n_slot = r->n_seq;
    }
    if (b->terminal) fprintf(stderr, "\r\033[Kloading %.200s", o.model);
    SH_GOTO((sh_err)shoal_open(&b->engine, &o));
    SH_GOTO(measure(b));
    for (int i = 0; i < b->n_row; i++) SH_GOTO(run_row(b, &b->row[i]));
    if (b->row[b->n_row - 1].before[b->opt->repeat - 1] == b->n_seen - 1) SH_GOTO(measure(b));
    print_ceiling(b);
    for (int i = 0; i < b->n_row; i++) {
        shoal_get_info(b->engine, &b->row[i].info);
        sum_up(b, &b->row[i]);
        sh_bench_print(&b->table, &b->row[i]);
    }
out:
    shoal_close(b->engine);
    b->engine = NULL;
    return err;
}

static sh_err run_bench(const options *o)
{
    const char *name = o->shape ? o->shape : strrchr(o->engine.model, '/');
    bench b = {.opt = o, .terminal = isatty(STDERR_FILENO), .seed = 1};
    sh_err err;
    b.table.output = o->output;
    b.table.model = name ? name + (*name == '/') : o->engine.model;
    SH_GOTO(list_tests(&b));
    for (int t = 0; t < o->n_thread.n; t++) SH_GOTO(run_tests(&b, o->n_thread.v[t]));
out:
    sh_bench_end(&b.table);
    free(b.row);
    free(b.seen);
    return err;
}

static sh_err check(options *o, char path[256])
{
    SH_TRY(read_lists(o));
    if (strcmp(o->output, "md") != 0 && strcmp(o->output, "csv") != 0 &&
        strcmp(o->output, "json") != 0)
        return sh_fail(SH_EARG, "an output of kind '%s': give md, csv or json (-o)", o->output);
    if (o->shape && o->engine.model) return sh_fail(SH_EARG, "give -m or --shape, not both");
    if (!o->shape && !o->engine.model)
        return sh_fail(SH_EARG,
                       "give the model with -m FILE, or --shape NAME; see shoal bench --help");
    if (o->shape) {
        snprintf(path, 256, "shape:%s:%s", o->shape, o->type);
        o->engine.model = path;
    }
    if (o->cpu && setenv("SHOAL_CPU", o->cpu, 1) != 0) return sh_fail(SH_ENOMEM, "no memory");
    return SH_OK;
}

static int command(int argc, char **argv)
{
    options o = {.type = "q8_0",
                 .output = "md",
                 .prompt = "512",
                 .decode = "128",
                 .depth = "0",
                 .batch = "",
                 .thread = "0",
                 .repeat = 5};
    shoal_options *e = &o.engine;
    char path[256];
    const sh_flag flags[] = {
        {"-m, --model", "FILE", SH_FLAG_STR, &e->model, 0, 0, "the model file (GGUF)"},
        {"--shape", "NAME", SH_FLAG_STR, &o.shape, 0, 0,
         "random weights in the shape of a known model; an unknown name lists them"},
        {"--type", "TYPE", SH_FLAG_STR, &o.type, 0, 0, "type of the weights of a shape"},
        {"-p, --n-prompt", "N,...", SH_FLAG_STR, &o.prompt, 0, 0,
         "tokens of a prompt; 0: no such test"},
        {"-n, --n-gen", "N,...", SH_FLAG_STR, &o.decode, 0, 0, "tokens to decode; 0: no such test"},
        {"-d, --n-depth", "N,...", SH_FLAG_STR, &o.depth, 0, 0,
         "positions that are in the cache before"},
        {"-b, --batch", "N,...", SH_FLAG_STR, &o.batch, 0, 0, "also decode N sequences at once"},
        {"-ub, --batch-size", "N", SH_FLAG_INT, &e->n_batch, 0, 65536,
         "prompt tokens in one step; 0: 512"},
        {"-t, --threads", "N,...", SH_FLAG_STR, &o.thread, 0, 0,
         "threads of each rank; 0: the cores, shared out"},
        {"-r, --repetitions", "N", SH_FLAG_INT, &o.repeat, 1, SH_BENCH_MAX_REPEAT,
         "measurements of each test"},
        {"--tp", "N", SH_FLAG_INT, &e->n_rank, 0, 8, "ranks that share every layer, on this host"},
        {"--ring", "N", SH_FLAG_INT, &e->n_ring, 0, 17,
         "nodes that share the layers, on this host"},
        {"--arith", "NAME", SH_FLAG_STR, &e->arith, 0, 0,
         "arithmetic of prompts with quantised weights: auto, int8, bf16"},
        {"--cpu", "NAME", SH_FLAG_STR, &o.cpu, 0, 0,
         "the best instruction set to use; see shoal inspect --kernels"},
        {"--kv", "TYPE", SH_FLAG_STR, &e->kv, 0, 0, "type of the KV cache: f16, bf16, f32, q8_0"},
        {"-o, --output", "KIND", SH_FLAG_STR, &o.output, 0, 0, "md, csv or json"},
        {"-v, --verbose", NULL, SH_FLAG_BOOL, &o.verbose, 0, 0, "say more on stderr"},
    };
    bool help;
    int n_arg;
    sh_err err = sh_flags_parse("shoal bench (-m FILE | --shape NAME) [flags]", flags,
                                sizeof flags / sizeof *flags, argc, argv, NULL, 0, &n_arg, &help);
    if (err == SH_OK && help) return 0;
    sh_log_set_level(o.verbose ? SH_LOG_INFO : SH_LOG_WARN);
    if (err == SH_OK) err = check(&o, path);
    if (err == SH_OK) err = run_bench(&o);
    return sh_exit(argv[0], err);
}

const sh_command sh_command_bench = {
    .name = "bench",
    .summary = "measure speed against what the machine can do",
    .main = command,
};
