#define _GNU_SOURCE
#include "train/loop.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/measure.h"
#include "train/adamw.h"
#include "train/data.h"
#include "train/pass.h"
#include "train/ranks.h"
#include "train/report.h"

enum { SAMPLE = 16 }; /* tokens that a sample of text begins with */

typedef struct run {
    const sh_train_options *o;
    const sh_settings *s; /* o's */
    sh_group *group;
    sh_start start;
    sh_params p;
    sh_progress at;
    sh_kernels kernels;
    sh_products products;
    sh_pool *pool;
    sh_pass *pass;
    sh_adamw *adamw;
    sh_data train, val;
    int32_t *ids; /* (batch_size, n_ctx + 1) */
    float *dx;    /* (batch_size n_ctx, n_embd) */
    float *acc;   /* (n_float): the micro-batches' gradients together; NULL: there is one */
    double loss;  /* of this iteration's batch, its mean */
    double lr;
    bool stop; /* rank 0 was told to; then all know */

    /* rank 0 */
    const sh_train_hooks *hooks;
    sh_report report;
    double peak;           /* operations a second of all ranks' cores */
    double step_s, eval_s; /* since the last line; the last evaluation */
    uint64_t step_tok;     /* the same */
    int step_n;
} run;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The losses of all ranks, and whether to stop. */
static sh_err share_losses(run *r, double loss[8])
{
    if (r->group->rank == 0 && r->hooks->stop && r->hooks->stop(r->hooks->arg)) r->stop = true;
    return sh_ranks_losses(r->group, loss, &r->stop);
}

/* ---- batches ---- */

static sh_batch batch_of(const run *r)
{
    return (sh_batch){.n_seq = r->s->batch_size,
                      .slice = sh_rank_slices(r->group->rank, r->group->n_rank),
                      .ids = r->ids};
}

/* Windows number `first` and on of the text. */
static void draw_batch(run *r, const sh_data *d, uint64_t seed, uint64_t first)
{
    int n = r->p.arch.n_ctx;
    for (int i = 0; i < r->s->batch_size; i++)
        sh_data_window(d, sh_data_draw(d, seed, first + (uint64_t)i, n), n + 1,
                       r->ids + (size_t)i * ((size_t)n + 1));
}

static size_t batch_tokens(const run *r)
{
    return (size_t)r->s->batch_size * (size_t)r->p.arch.n_ctx;
}

static void add_to_acc(void *arg, int thread, int n_thread)
{
    run *r = arg;
    size_t lo, n = sh_share_floats(r->p.n_float, thread, n_thread, &lo);
    r->kernels.add(r->acc + lo, r->p.g + lo, n);
}

/* The gradient of one micro-batch, in p.g on every rank. */
static sh_err micro_batch(run *r, int micro)
{
    double loss[8];
    sh_batch b = batch_of(r);
    sh_dropout drop = {.rate = r->s->dropout,
                       .seed = (uint64_t)r->s->seed,
                       .step = (uint64_t)(r->at.iter * r->s->n_acc + micro)};
    draw_batch(r, &r->train, (uint64_t)r->s->seed, r->at.n_window);
    r->at.n_window += (uint64_t)r->s->batch_size;
    r->at.n_tok += batch_tokens(r);
    sh_pass_backward(r->pass, &b, &drop, loss, r->dx);
    SH_TRY(share_losses(r, loss));
    SH_TRY(sh_ranks_sum(r->group, r->pool, r->p.g, r->p.n_float));
    SH_TRY(sh_ranks_sum(r->group, r->pool, r->dx, batch_tokens(r) * (size_t)r->p.arch.n_embd));
    sh_pass_embed_grad(r->pass, &b, r->dx);
    r->loss += sh_tree8(loss) / (double)batch_tokens(r) / r->s->n_acc;
    return SH_OK;
}

/* ---- an iteration ---- */

static bool all_finite(const float *x, const sh_param *t)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[t->at + i])) return false;
    return true;
}

/* The sentence about numbers that are none: which tensor has them first, in the order of the file.
 */
static sh_err fail_not_finite(const run *r, const char *what, const float *g)
{
    const char *name = "no tensor", *kind = "";
    for (int i = 0; i < r->p.n; i++) {
        bool w = all_finite(r->p.w, &r->p.list[i]);
        if (w && (!g || all_finite(g, &r->p.list[i]))) continue;
        name = r->p.list[i].name;
        kind = w ? "the gradient of " : "the weights of ";
        break;
    }
    return sh_fail(SH_ESYS,
                   "iteration %" PRId64 ": %s is not a finite number; the first tensor that has "
                   "such numbers: %s%s; the last checkpoint in %s stays; try a smaller --lr",
                   r->at.iter + 1, what, kind, name, r->o->ckpt);
}

static sh_err iterate(run *r)
{
    const sh_settings *s = r->s;
    const float *g = r->acc ? r->acc : r->p.g;
    r->loss = 0;
    if (r->acc) memset(r->acc, 0, r->p.n_float * sizeof(float));
    for (int i = 0; i < s->n_acc; i++) {
        SH_TRY(micro_batch(r, i));
        if (r->acc) sh_pool_run(r->pool, add_to_acc, r);
    }
    double norm = sh_adamw_norm(r->adamw, g) / s->n_acc;
    if (!isfinite(r->loss)) return fail_not_finite(r, "the loss", g);
    if (!isfinite(norm)) return fail_not_finite(r, "the gradient", g);
    r->lr = sh_settings_lr(s, r->at.iter);
    bool clip = s->grad_clip > 0 && norm > (double)s->grad_clip;
    sh_adamw_update(
        r->adamw, g, r->at.iter + 1,
        &(sh_adamw_numbers){.lr = r->lr,
                            .beta1 = (double)s->beta1,
                            .beta2 = (double)s->beta2,
                            .decay = (double)s->weight_decay,
                            .scale = (clip ? (double)s->grad_clip / norm : 1) / s->n_acc});
    r->at.iter++;
    return SH_OK;
}

/* ---- evaluation ---- */

/* The mean loss over windows that are the same at every evaluation. */
static sh_err mean_loss(run *r, double *out, const sh_data *d)
{
    const uint64_t seed = (uint64_t)r->s->seed ^ 0x6576616c00000000u; /* other windows */
    double sum[8] = {0}, loss[8];
    sh_batch b = batch_of(r);
    for (int i = 0; i < r->s->eval_iters; i++) {
        draw_batch(r, d, seed, (uint64_t)i * (uint64_t)r->s->batch_size);
        sh_pass_forward(r->pass, &b, loss);
        for (int j = 0; j < 8; j++) sum[j] += loss[j];
    }
    SH_TRY(share_losses(r, sum));
    *out = sh_tree8(sum) / ((double)batch_tokens(r) * r->s->eval_iters);
    return SH_OK;
}

static sh_err add_row(run *r, double val)
{
    if (r->group->rank) return SH_OK;
    sh_report_row row = {.iter = r->at.iter,
                         .n_tok = r->at.n_tok,
                         .train_loss = r->loss,
                         .val_loss = val,
                         .lr = r->lr,
                         .tps = r->step_s > 0 ? (double)r->step_tok / r->step_s : 0,
                         .seconds = r->at.seconds};
    return sh_report_add(&r->report, &row);
}

static sh_err save(run *r, bool best)
{
    if (r->group->rank) return SH_OK;
    sh_err err = sh_checkpoint_save(r->o->ckpt, &r->p, r->s, &r->at, r->start.tokenizer, best);
    if (err == SH_OK) return SH_OK;
    char why[900];
    snprintf(why, sizeof why, "%s", sh_err_message());
    return sh_fail(err, "%s; the checkpoint before iteration %" PRId64 " stays", why, r->at.iter);
}

/* The sample of text, on rank 0. */
static sh_err show_sample(run *r)
{
    int32_t ids[SAMPLE];
    char path[4096];
    int n = r->p.arch.n_ctx / 2 < SAMPLE ? r->p.arch.n_ctx / 2 : SAMPLE;
    if (r->group->rank || !r->hooks->saved || n < 1) return SH_OK;
    sh_data_window(&r->val, 0, n, ids);
    snprintf(path, sizeof path, "%s/last.gguf", r->o->ckpt);
    return r->hooks->saved(r->hooks->arg, path, ids, n);
}

/* The most that all ranks' cores do in this type now, measured by all at once: on a shared host
 * that changes. */
static sh_err measure_peak(run *r)
{
    float all;
    double mine;
    *sh_group_part(r->group, 0) = 0;
    SH_TRY(sh_group_sum(r->group, &all, 1)); /* all begin */
    SH_TRY(sh_measure_peak(&mine, &r->kernels, r->pool, sh_products_form(&r->products)));
    *sh_group_part(r->group, 0) = (float)mine;
    SH_TRY(sh_group_sum(r->group, &all, 1));
    r->peak = (double)all;
    return SH_OK;
}

/* Losses of both texts, the checkpoint, row, picture, sample. */
static sh_err evaluate(run *r)
{
    double start = now_s(), train, val;
    SH_TRY(mean_loss(r, &train, &r->train));
    SH_TRY(mean_loss(r, &val, &r->val));
    if (!isfinite(train) || !isfinite(val)) return fail_not_finite(r, "the loss", NULL);
    SH_TRY(measure_peak(r));
    if (r->at.iter == 0) r->loss = train;
    bool better = val < r->at.best_val;
    if (better) r->at.best_val = val;
    r->at.n_worse = better ? 0 : r->at.n_worse + 1;
    SH_TRY(add_row(r, val));
    SH_TRY(save(r, better || r->s->always_update));
    if (r->group->rank) return SH_OK;
    if (r->at.iter > 0) sh_report_draw(&r->report);
    sh_log(SH_LOG_INFO, "iter %" PRId64 ": evaluation: train loss %.4f, validation loss %.4f%s",
           r->at.iter, train, val, better ? ", the best so far" : "");
    if (r->at.iter > 0) SH_TRY(show_sample(r));
    r->eval_s = now_s() - start;
    return SH_OK;
}

/* ---- progress ---- */

static void say_progress(run *r)
{
    char left[40];
    int64_t n_left = r->s->max_iters - r->at.iter;
    double tps = r->step_s > 0 ? (double)r->step_tok / r->step_s : 0;
    double s = r->step_s / r->step_n * (double)n_left +
               r->eval_s * (double)((n_left + r->s->ckpt_interval - 1) / r->s->ckpt_interval);
    sh_log(SH_LOG_INFO,
           "iter %" PRId64 " of %d: loss %.4f, lr %.3g, %.0f tok/s, %.1f %% of peak, %s left",
           r->at.iter, r->s->max_iters, r->loss, r->lr, tps,
           100 * sh_pass_ops(&r->p.arch, tps) / r->peak, sh_report_time(left, sizeof left, s));
}

/* One iteration with all that follows it. */
static sh_err advance(run *r)
{
    const sh_settings *s = r->s;
    double start = now_s();
    uint64_t before = r->at.n_tok;
    SH_TRY(iterate(r));
    double took = now_s() - start;
    r->at.seconds += took;
    r->step_s += took;
    r->step_tok += r->at.n_tok - before;
    r->step_n++;
    bool last = r->at.iter >= s->max_iters;
    bool eval = last || r->at.iter % s->ckpt_interval == 0;
    bool line = last || r->at.iter % s->log_interval == 0;
    if (line && r->group->rank == 0) say_progress(r);
    if (line && !eval) SH_TRY(add_row(r, NAN));
    if (eval) SH_TRY(evaluate(r));
    if (r->stop && !eval) SH_TRY(save(r, false));
    if (line) r->step_s = 0, r->step_tok = 0, r->step_n = 0;
    return SH_OK;
}

static sh_err train(run *r)
{
    const sh_settings *s = r->s;
    if (r->at.iter >= s->max_iters && r->group->rank == 0)
        sh_log(SH_LOG_INFO,
               "%s has done %" PRId64 " iterations already; give more with --max-iters", r->o->ckpt,
               r->at.iter);
    if (!r->o->resume) SH_TRY(evaluate(r));
    while (r->at.iter < s->max_iters && !r->stop) {
        if (s->patience && r->at.n_worse >= s->patience) {
            if (r->group->rank == 0)
                sh_log(SH_LOG_INFO, "stopped: %d evaluations without a better validation loss",
                       r->at.n_worse);
            break;
        }
        SH_TRY(advance(r));
    }
    return SH_OK;
}

/* ---- opening ---- */

static sh_err open_texts(run *r)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/train.bin", r->o->dataset);
    SH_TRY(sh_data_open(&r->train, path, r->start.n_vocab));
    snprintf(path, sizeof path, "%s/val.bin", r->o->dataset);
    SH_TRY(sh_data_open(&r->val, path, r->start.n_vocab));
    SH_TRY(sh_data_check(&r->train, r->start.arch.n_ctx));
    return sh_data_check(&r->val, r->start.arch.n_ctx);
}

static bool enough_cpus(const sh_train_options *o)
{
    return o->n_cpu >= o->n_here * o->n_thread;
}

/* Threads, weights, scratch. */
static sh_err load(run *r)
{
    const sh_train_options *o = r->o;
    const sh_group *g = r->group;
    bool bound = enough_cpus(o);
    sh_range slice = sh_rank_slices(g->rank, g->n_rank);
    int n = r->s->batch_size, n_seq = n * slice.hi / 8 - n * slice.lo / 8;
    if (n_seq < 1) n_seq = 1; /* a rank may have nothing to do */
    SH_TRY(sh_start_open(&r->start, o));
    SH_TRY(open_texts(r));
    SH_TRY(sh_kernels_init(&r->kernels, NULL));
    SH_TRY(sh_pool_open(&r->pool, o->n_thread, bound ? o->cpu + g->here * o->n_thread : NULL,
                        bound ? 20000 : 0));
    SH_TRY(sh_start_params(&r->start, o, &r->p, &r->at));
    r->products = (sh_products){.k = &r->kernels, .pool = r->pool, .dtype = (sh_dtype)r->s->dtype};
    SH_TRY(sh_pass_open(&r->pass, &r->p, &r->products, n_seq));
    SH_TRY(sh_adamw_open(&r->adamw, &r->p, &r->kernels, r->pool));
    SH_TRY(sh_alloc(&r->ids, (size_t)n * ((size_t)r->p.arch.n_ctx + 1), sizeof *r->ids, "a batch"));
    SH_TRY(sh_alloc(&r->dx, batch_tokens(r), (size_t)r->p.arch.n_embd * sizeof *r->dx, "a batch"));
    if (r->s->n_acc > 1)
        SH_TRY(sh_map(&r->acc, r->p.n_float * sizeof *r->acc, "the sum of micro-batches"));
    return SH_OK;
}

/* On rank 0, when all have loaded and before any writes. */
static sh_err begin(run *r)
{
    const sh_arch *a = &r->p.arch;
    if (mkdir(r->o->ckpt, 0777) != 0 && errno != EEXIST)
        return sh_fail(SH_ESYS, "%s: cannot make the folder: %s", r->o->ckpt, strerror(errno));
    SH_TRY(sh_checkpoint_settle(r->o->ckpt));
    SH_TRY(sh_report_open(&r->report, r->o->ckpt, r->o->resume ? r->at.iter : -1));
    sh_log(SH_LOG_INFO,
           "%s, %d layers, width %d, %d heads, feed-forward %d, context %d, vocabulary %d: %.2f "
           "million weights; %d x %d sequences an iteration; %s; %d x %d threads",
           a->family, a->n_layer, a->n_embd, a->n_head, a->n_ff, a->n_ctx, a->n_vocab,
           (double)sh_arch_bytes(a) / 16e6, r->s->n_acc, r->s->batch_size,
           sh_dtypes[r->s->dtype].name, r->o->n_rank, r->o->n_thread);
    if (r->o->resume) sh_log(SH_LOG_INFO, "going on after iteration %" PRId64, r->at.iter);
    return SH_OK;
}

static void close_run(run *r)
{
    sh_report_close(&r->report);
    sh_pass_close(r->pass);
    sh_adamw_close(r->adamw);
    sh_unmap(r->acc, r->p.n_float * sizeof *r->acc);
    sh_params_close(&r->p);
    sh_pool_close(r->pool);
    sh_data_close(&r->train);
    sh_data_close(&r->val);
    sh_start_close(&r->start);
    sh_group_close(r->group);
    free(r->ids);
    free(r->dx);
}

/* The same on every rank; closes the group. */
static sh_err train_rank(sh_group *g, const sh_train_options *o, const sh_train_hooks *hooks,
                         bool *stopped)
{
    run r = {.o = o, .s = &o->settings, .group = g, .hooks = hooks};
    sh_err err;
    SH_GOTO(sh_group_ready(g, load(&r)));
    if (g->rank == 0) SH_GOTO(begin(&r));
    SH_GOTO(measure_peak(&r));
    SH_GOTO(train(&r));
    *stopped = r.stop && r.at.iter < o->settings.max_iters;
    if (*stopped && g->rank == 0)
        sh_log(SH_LOG_WARN,
               "interrupted after iteration %" PRId64 "; the checkpoint is in %s: go on with "
               "--resume",
               r.at.iter, o->ckpt);
out:
    close_run(&r);
    return err;
}

static sh_err open_group(sh_group **out, const sh_train_options *o)
{
    sh_buf blob = {0};
    sh_train_encode(o, &blob);
    sh_group_options g = {.n_rank = o->n_rank,
                          .part_floats = SH_SUM_PIECE,
                          .bcast_bytes = 64,
                          .blob = blob.p,
                          .n_blob = blob.n,
                          .spin = enough_cpus(o) ? 20000 : 0};
    sh_err err = blob.bad ? sh_fail(SH_ENOMEM, "no memory to start ranks") : sh_group_open(out, &g);
    sh_buf_free(&blob);
    return err;
}

sh_err sh_train(const sh_train_options *o, const sh_train_hooks *hooks, bool *stopped)
{
    sh_group *g;
    *stopped = false;
    SH_TRY(sh_train_check(o));
    SH_TRY(open_group(&g, o));
    return train_rank(g, o, hooks, stopped);
}

sh_err sh_train_follow(sh_group *g)
{
    static const sh_train_hooks none = {0};
    sh_train_options o;
    bool stopped;
    sh_err err = sh_train_decode(&o, g->blob, g->n_blob);
    if (err != SH_OK) {
        (void)sh_group_ready(g, err);
        sh_group_close(g);
        return err;
    }
    sh_group_place(g, o.cpu, SH_MAX_TRAIN_CPU, &o.n_cpu, &o.n_here, &o.n_thread);
    return train_rank(g, &o, &none, &stopped);
}
