/* The engine behind shoal.h: opens the starter's node and the ring, and turns scheduled steps into
 * events. A token's life: shoal_submit -> scheduler -> embed, layers (node) -> ring -> head (node)
 * -> sampler -> text -> shoal_next. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "comm/group.h"
#include "comm/ring.h"
#include "engine/launch.h"
#include "engine/node.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "kernels/measure.h"
#include "model/cost.h"
#include "model/kv.h"
#include "model/weights.h"
#include "shoal.h"
#include "tokenizer/tokenizer.h"

_Static_assert((int)SH_OK == SHOAL_OK && (int)SH_EARG == SHOAL_EARG &&
                   (int)SH_EFILE == SHOAL_EFILE && (int)SH_ENOMEM == SHOAL_ENOMEM &&
                   (int)SH_ESYS == SHOAL_ESYS && (int)SH_EPEER == SHOAL_EPEER,
               "the public codes are the internal ones");

/* An event with its text as an offset, since the buffer may move while events gather. */
typedef struct queued {
    shoal_event event;
    size_t text_at;
} queued;

struct shoal {
    shoal_options opt; /* with defaults filled in; its strings are not used after opening */
    sh_dtype kv;
    bool arith_bf16;
    int n_stage;
    sh_cost cost;
    int cpu[64], n_cpu; /* of all local ranks and nodes; n_cpu 0: they are not tied */
    sh_node *node;
    sh_tokenizer *tokenizer;
    sh_local local;
    sh_nodes nodes;
    sh_ring *ring;
    sh_scheduler scheduler;
    sh_sampler sampler;
    float *x;      /* (n_batch, n_embd) */
    float *logits; /* (n_slot, n_vocab) */
    uint32_t *ids; /* (n_batch) */
    queued *event; /* n_event of them, the first first_event taken */
    size_t n_event, first_event, cap_event;
    sh_buf text;  /* of the queued events */
    sh_buf shown; /* of the event taken last: its text stays while others are queued */
    uint64_t n_request;
    bool broken; /* a node was lost */
    shoal_stats stats;
    double clock_s, load_s; /* when time was last counted */
};

static shoal_err out_err(sh_err err)
{
    return (shoal_err)err;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

const char *shoal_error(void)
{
    return sh_err_message();
}

const char *shoal_finish_name(shoal_finish f)
{
    static const char *const name[] = {"length", "stop", "eos", "cancel"};
    return name[f];
}

/* ---- opening ---- */

/* Defaults, and bounds of what the caller gave. */
static sh_err set_options(shoal *s, const shoal_options *opt, const sh_config *c)
{
    shoal_options *o = &s->opt;
    *o = *opt;
    if (!o->n_ctx) o->n_ctx = c->n_ctx_train < 4096 ? c->n_ctx_train : 4096;
    if (!o->n_slot) o->n_slot = 8;
    if (!o->n_batch) o->n_batch = 512;
    if (!o->n_ring) o->n_ring = 1;
    if (o->n_batch > o->n_ctx) o->n_batch = o->n_ctx;
    if (o->n_ctx < 1 || o->n_ctx > 1 << 28)
        return sh_fail(SH_EARG, "a context of %d positions: give 1 or more (-c)", o->n_ctx);
    if (o->n_ctx > c->n_ctx_max)
        return sh_fail(SH_EARG,
                       "a context of %d positions; the model has learned %d and no others: give at "
                       "most %d (-c)",
                       o->n_ctx, c->n_ctx_max, c->n_ctx_max);
    if (o->n_slot < 1 || o->n_slot > 256)
        return sh_fail(SH_EARG, "%d sequences at once: give 1 to 256 (-np)", o->n_slot);
    if (o->n_batch < 1 || o->n_batch > 65536)
        return sh_fail(SH_EARG, "a batch of %d tokens: give 1 to 65536 (-b)", o->n_batch);
    SH_TRY(sh_group_count(&o->n_rank, "--tp"));
    if (o->n_ring < 1 || o->n_ring > SH_MAX_LOCAL + 1)
        return sh_fail(SH_EARG, "a ring of %d nodes on one host: give 1 to %d (--ring)", o->n_ring,
                       SH_MAX_LOCAL + 1);
    if (o->n_ring > 1 && sh_mpi_started())
        return sh_fail(SH_EARG, "mpirun has started ranks of one stage: for more stages start "
                                "workers and give --nodes instead of --ring");
    if (o->n_ring > 1 && o->nodes) return sh_fail(SH_EARG, "give --ring or --nodes, not both");
    int kv = sh_dtype_by_name(o->kv ? o->kv : "f16");
    if (kv < 0 || !sh_kv_has((sh_dtype)kv))
        return sh_fail(SH_EARG, "a KV cache of type '%s': give f16, bf16, f32 or q8_0 (--kv)",
                       o->kv);
    s->kv = (sh_dtype)kv;
    return SH_OK;
}

/* --arith: auto is bf16 where every node has the matrix unit. */
static sh_err choose_arith(shoal *s)
{
    const char *a = s->opt.arith ? s->opt.arith : "auto";
    bool all = sh_kernels_have_amx();
    for (int i = 0; s->ring && i < s->nodes.n_secondary; i++)
        all &= sh_ring_welcome(s->ring, i)->has_amx;
    if (strcmp(a, "auto") == 0)
        s->arith_bf16 = all;
    else if (strcmp(a, "bf16") == 0)
        s->arith_bf16 = true;
    else if (strcmp(a, "int8") != 0)
        return sh_fail(SH_EARG, "an arithmetic '%s': give auto, int8 or bf16 (--arith)", a);
    sh_log(SH_LOG_INFO, "prompts of quantised weights are computed in %s",
           s->arith_bf16 ? "bf16" : "int8");
    return SH_OK;
}

/* Greets the nodes of the ring and has each load its layers. */
static sh_err join_ring(shoal *s, const sh_config *c, const sh_range *layer, const uint8_t *hash)
{
    sh_load load[SH_MAX_STAGE];
    for (int i = 0; i < s->nodes.n_secondary; i++) {
        load[i] = (sh_load){.stage = (uint32_t)i + 1,
                            .n_stage = (uint32_t)s->n_stage,
                            .layer_lo = (uint32_t)layer[i + 1].lo,
                            .layer_hi = (uint32_t)layer[i + 1].hi,
                            .n_embd = (uint32_t)c->dim[SH_DIM_EMBD],
                            .n_ctx = (uint32_t)s->opt.n_ctx,
                            .n_slot = (uint32_t)s->opt.n_slot,
                            .n_batch = (uint32_t)s->opt.n_batch,
                            .arith = s->arith_bf16,
                            .kv = s->kv};
        memcpy(load[i].model_hash, hash, 16);
        sh_log(SH_LOG_INFO, "node %s:%d has layers %d to %d", s->nodes.secondary[i].host,
               s->nodes.secondary[i].port, layer[i + 1].lo, layer[i + 1].hi - 1);
    }
    return sh_ring_load(s->ring, load);
}

/* Threads of each rank, and the logical CPUs they may be tied to. */
static int share_cores(const shoal_options *o, sh_node_options *no)
{
    no->n_cpu = sh_group_cores(o->n_rank, no->cpu, 64, &no->n_here);
    int n_process = no->n_here * o->n_ring;
    if (o->n_thread) return o->n_thread;
    return no->n_cpu / n_process > 0 ? no->n_cpu / n_process : 1;
}

/* All nodes are on this host: whether they fit, before any is started. */
static sh_err check_ring(const shoal *s, sh_node_options o, const sh_range *layer,
                         const sh_config *c, const sh_model_file *m)
{
    sh_need need = {0};
    o.n_stage = s->n_stage;
    o.n_ctx = s->opt.n_ctx;
    o.n_slot = s->opt.n_slot;
    o.n_batch = s->opt.n_batch;
    for (o.stage = 0; o.stage < s->n_stage; o.stage++) {
        o.layer = layer[o.stage];
        sh_node_need(&need, &o, c, m);
    }
    return sh_need_check(&need, s->opt.model);
}

static sh_err open_nodes(shoal *s, const sh_config *c, const sh_model_file *m)
{
    uint8_t hash[16];
    sh_range layer[SH_MAX_STAGE];
    sh_node_options no = {.path = s->opt.model, .n_rank = s->opt.n_rank, .kv = s->kv};
    no.n_thread = s->opt.n_thread = share_cores(&s->opt, &no);
    if (s->opt.nodes) SH_TRY(sh_nodes_read(&s->nodes, s->opt.nodes));
    s->n_stage = s->opt.nodes ? s->nodes.n_secondary + 1 : s->opt.n_ring;
    if (s->n_stage > SH_MAX_STAGE)
        return sh_fail(SH_EARG, "%d stages: at most %d", s->n_stage, SH_MAX_STAGE);
    SH_TRY(sh_plan_stages(layer, c, m, s->n_stage));
    if (s->opt.n_ring > 1) SH_TRY(check_ring(s, no, layer, c, m));
    if (s->opt.n_ring > 1)
        SH_TRY(sh_local_start(&s->local, &s->nodes, &s->opt, s->opt.n_ring - 1, no.n_thread, no.cpu,
                              no.n_cpu));
    if (no.n_cpu < no.n_thread * no.n_here * s->opt.n_ring) no.n_cpu = 0; /* not enough for all */
    memcpy(s->cpu, no.cpu, sizeof s->cpu);
    s->n_cpu = no.n_cpu;
    if (s->n_stage > 1) {
        sh_err err = sh_ring_open(&s->ring, &s->nodes, 8000);
        if (err != SH_OK) {
            SH_TRY(sh_local_check(&s->local, &s->nodes)); /* the better sentence */
            return err;
        }
        sh_model_file_hash(m, hash);
    }
    SH_TRY(choose_arith(s));
    if (s->ring) SH_TRY(join_ring(s, c, layer, hash));
    no.n_stage = s->n_stage;
    no.layer = layer[0];
    no.arith_bf16 = s->arith_bf16;
    no.n_ctx = s->opt.n_ctx;
    no.n_slot = s->opt.n_slot;
    no.n_batch = s->opt.n_batch;
    return sh_node_open(&s->node, &no);
}

shoal_err shoal_open(shoal **out, const shoal_options *opt)
{
    sh_err err;
    shoal *s = NULL;
    sh_model_file *m = NULL;
    sh_config c;
    double start = now_s();
    *out = NULL;
    if (!opt->model)
        return out_err(sh_fail(SH_EARG, "which model? give the path of a GGUF file (-m)"));
    (void)sh_cpu_features(); /* asks for the matrix unit before there are threads */
    SH_GOTO(sh_alloc(&s, 1, sizeof *s, "the engine"));
    SH_GOTO(sh_model_file_open(&m, opt->model));
    SH_GOTO(sh_config_read(&c, m));
    SH_GOTO(sh_tokenizer_open(&s->tokenizer, m));
    if (sh_tokenizer_n_vocab(s->tokenizer) != c.dim[SH_DIM_VOCAB]) {
        err = sh_fail(SH_EFILE, "%s: the tokenizer has %d tokens, the embedding %d", opt->model,
                      sh_tokenizer_n_vocab(s->tokenizer), c.dim[SH_DIM_VOCAB]);
        goto out;
    }
    SH_GOTO(set_options(s, opt, &c));
    s->cost = sh_cost_of(&c, m, s->kv);
    SH_GOTO(open_nodes(s, &c, m));
    SH_GOTO(
        sh_scheduler_open(&s->scheduler, s->n_stage, s->opt.n_slot, s->opt.n_batch, s->opt.n_ctx));
    SH_GOTO(sh_sampler_open(&s->sampler, c.dim[SH_DIM_VOCAB]));
    size_t n_batch = (size_t)s->opt.n_batch;
    SH_GOTO(
        sh_alloc(&s->x, n_batch * (size_t)c.dim[SH_DIM_EMBD], sizeof(float), "the activations"));
    SH_GOTO(sh_alloc(&s->logits, (size_t)s->opt.n_slot * (size_t)c.dim[SH_DIM_VOCAB], sizeof(float),
                     "the logits"));
    SH_GOTO(sh_alloc(&s->ids, n_batch, sizeof(uint32_t), "a step"));
    s->load_s = now_s() - start;
    *out = s;
    s = NULL;
out:
    sh_model_file_close(m);
    shoal_close(s);
    return out_err(err);
}

void shoal_close(shoal *s)
{
    if (!s) return;
    sh_ring_close(s->ring);
    sh_node_close(s->node);
    sh_local_stop(&s->local);
    sh_nodes_free(&s->nodes);
    sh_tokenizer_close(s->tokenizer);
    sh_scheduler_close(&s->scheduler);
    sh_sampler_close(&s->sampler);
    sh_buf_free(&s->text);
    sh_buf_free(&s->shown);
    free(s->x);
    free(s->logits);
    free(s->ids);
    free(s->event);
    free(s);
}

void shoal_get_info(const shoal *s, shoal_info *info)
{
    const sh_config *c = sh_node_config(s->node);
    *info = (shoal_info){.family = c->family->name,
                         .arith = s->arith_bf16 ? "bf16" : "int8",
                         .kv = sh_dtypes[s->kv].name,
                         .n_ctx = s->opt.n_ctx,
                         .n_ctx_train = c->n_ctx_train,
                         .n_vocab = c->dim[SH_DIM_VOCAB],
                         .n_layer = c->n_layer,
                         .n_embd = c->dim[SH_DIM_EMBD],
                         .n_thread = s->opt.n_thread,
                         .n_rank = s->opt.n_rank,
                         .n_stage = s->n_stage,
                         .n_slot = s->opt.n_slot,
                         .weight_bytes = sh_node_weight_bytes(s->node),
                         .memory_bytes = sh_memory_used_bytes(),
                         .load_s = s->load_s,
                         .type = sh_dtypes[s->cost.dtype].name,
                         .cpu = sh_kernels_best(),
                         .layer_bytes = s->cost.layer_bytes,
                         .head_bytes = s->cost.head_bytes,
                         .pos_bytes = s->cost.pos_bytes,
                         .layer_ops = s->cost.layer_ops,
                         .head_ops = s->cost.head_ops,
                         .pos_ops = s->cost.pos_ops};
}

shoal_err shoal_measure(const shoal *s, shoal_ceiling *out)
{
    int n_thread = s->opt.n_thread * s->opt.n_rank * s->opt.n_ring;
    sh_measured m;
    if (sh_mpi_started())
        return out_err(sh_fail(SH_EARG, "the ceilings of ranks under mpirun are not known: measure "
                                        "the ranks of one host, with --tp"));
    sh_err err = sh_measure(&m, n_thread, s->n_cpu >= n_thread ? s->cpu : NULL);
    if (err != SH_OK) return out_err(err);
    *out =
        (shoal_ceiling){.read_bytes_per_s = m.read_bytes_per_s,
                        .prompt_ops_per_s = m.ops_per_s[sh_form_of(s->cost.dtype, s->arith_bf16)],
                        .sampled_ops_per_s = m.ops_per_s[sh_form_of(s->cost.dtype, false)],
                        .n_thread = n_thread};
    return SHOAL_OK;
}

void shoal_get_stats(const shoal *s, shoal_stats *stats)
{
    *stats = s->stats;
}

shoal_err shoal_tokenize(const shoal *s, const char *text, size_t n, int flags, uint32_t **ids,
                         size_t *n_ids)
{
    _Static_assert((int)SHOAL_BOS == SH_TOK_BOS && (int)SHOAL_SPECIAL == SH_TOK_SPECIAL,
                   "same flags");
    return out_err(sh_tokenizer_encode(s->tokenizer, text, n, flags, ids, n_ids));
}

/* ---- requests ---- */

static sh_err check_request(const shoal *s, const shoal_request *r)
{
    uint32_t n_vocab = (uint32_t)sh_tokenizer_n_vocab(s->tokenizer);
    if (r->n_ids == 0)
        return sh_fail(SH_EARG, "the prompt is empty, and the model has no token to begin with");
    if (r->n_ids >= (size_t)s->opt.n_ctx)
        return sh_fail(
            SH_EARG,
            "the prompt has %zu tokens and the context %d positions, one of them for the "
            "answer: shorten it or give a larger context (-c)",
            r->n_ids, s->opt.n_ctx);
    for (size_t i = 0; i < r->n_ids; i++)
        if (r->ids[i] >= n_vocab)
            return sh_fail(SH_EARG, "token id %u: the model has ids below %u", r->ids[i], n_vocab);
    if (r->n_sample < 1 || r->n_sample > 1 << 20)
        return sh_fail(SH_EARG, "%d samples: give 1 or more", r->n_sample);
    if (r->n_predict < -1)
        return sh_fail(SH_EARG, "%d tokens: give 0 or more, or -1 for no limit", r->n_predict);
    for (int i = 0; i < r->n_stop; i++)
        if (!*r->stop[i]) return sh_fail(SH_EARG, "an empty stop text");
    return sh_sampling_check(&r->sampling);
}

static sh_err new_request(sh_request **out, const shoal *s, const shoal_request *r)
{
    sh_err err;
    sh_request *q;
    SH_TRY(sh_alloc(&q, 1, sizeof *q, "a request"));
    q->sampling = r->sampling;
    q->n_predict = r->n_predict;
    q->ignore_end = r->ignore_end;
    q->strip_space = r->n_ids == 1 && (int)r->ids[0] == sh_tokenizer_bos(s->tokenizer) &&
                     sh_tokenizer_strips_first_space(s->tokenizer);
    q->submit_s = now_s();
    SH_GOTO(sh_alloc(&q->stop, (size_t)r->n_stop, sizeof *q->stop, "a request"));
    for (; q->n_stop < r->n_stop; q->n_stop++)
        if (!(q->stop[q->n_stop] = strdup(r->stop[q->n_stop]))) {
            err = sh_fail(SH_ENOMEM, "no memory for a stop text");
            goto out;
        }
    *out = q;
    return SH_OK;
out:
    for (int i = 0; i < q->n_stop; i++) free(q->stop[i]);
    free(q->stop);
    free(q);
    return err;
}

static sh_err new_sequence(sh_sequence **out, sh_request *req, const shoal_request *r, int sample)
{
    sh_sequence *q;
    *out = NULL;
    SH_TRY(sh_alloc(&q, 1, sizeof *q, "a sample"));
    q->req = req;
    req->n_ref++;
    q->sample = sample;
    q->text.stop = req->stop;
    q->text.n_stop = req->n_stop;
    sh_err err = sh_grow(&q->tok, &q->cap, r->n_ids + 1, sizeof *q->tok, "a sample");
    if (err != SH_OK) {
        sh_sequence_free(q);
        return err;
    }
    memcpy(q->tok, r->ids, r->n_ids * sizeof *q->tok);
    q->n_tok = q->n_prompt = r->n_ids;
    *out = q;
    return SH_OK;
}

shoal_err shoal_submit(shoal *s, const shoal_request *r, uint64_t *id)
{
    sh_request *req = NULL;
    sh_sequence *all = NULL, **last = &all, *q;
    sh_err err;
    SH_GOTO(check_request(s, r));
    SH_GOTO(new_request(&req, s, r));
    req->n_ref++; /* this function's */
    for (int i = 0; i < r->n_sample; i++) {
        SH_GOTO(new_sequence(&q, req, r, r->first_sample + i));
        *last = q;
        last = &q->next;
    }
    *id = req->id = ++s->n_request;
    req->n_ref--;
    while ((q = all)) {
        all = q->next;
        sh_scheduler_add(&s->scheduler, q);
    }
    return SHOAL_OK;
out:
    while ((q = all)) {
        all = q->next;
        sh_sequence_free(q);
    }
    if (req) sh_request_release(req);
    return out_err(err);
}

/* ---- events ---- */

static sh_err push_event(shoal *s, const shoal_event *e)
{
    SH_TRY(sh_grow(&s->event, &s->cap_event, s->n_event + 1, sizeof *s->event, "an event"));
    s->event[s->n_event++] = (queued){*e, s->text.n};
    sh_put_bytes(&s->text, e->text, e->n_text);
    return s->text.bad ? sh_fail(SH_ENOMEM, "no memory for a text") : SH_OK;
}

/* FNV-1a over the bits of the logits: tells runs apart that differ anywhere. */
static uint64_t hash_logits(const float *logits, int n)
{
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < n; i++) h = (h ^ sh_f32_bits(logits[i])) * 1099511628211u;
    return h;
}

/* Ends a sample; logits: the last it sampled from, or NULL. */
static sh_err end_sample(shoal *s, sh_sequence *q, shoal_finish finish, const float *logits)
{
    shoal_event e = {
        .kind = SHOAL_END, .request = q->req->id, .sample = q->sample, .finish = finish};
    if (finish != SHOAL_FINISH_STOP) sh_text_end(&q->text, &e.text, &e.n_text);
    e.tokens = q->tok + q->n_prompt;
    e.n_token = q->n_tok - q->n_prompt;
    e.n_prompt = q->n_prompt;
    e.first_s = q->first_s ? q->first_s - q->req->submit_s : 0;
    e.decode_s = q->last_s - q->first_s;
    if (logits) e.logits_hash = hash_logits(logits, s->sampler.n_vocab);
    sh_scheduler_end(&s->scheduler, q);
    return push_event(s, &e);
}

void shoal_cancel(shoal *s, uint64_t id)
{
    sh_scheduler *sch = &s->scheduler;
    for (int i = 0; i < sch->n_slot; i++)
        if (sch->active[i] && sch->active[i]->req->id == id)
            (void)end_sample(s, sch->active[i], SHOAL_FINISH_CANCEL, NULL);
    for (sh_sequence *q = sch->waiting, *next; q; q = next) {
        next = q->next;
        if (q->req->id == id) (void)end_sample(s, q, SHOAL_FINISH_CANCEL, NULL);
    }
}

/* Samples the next token of q from its logits (n_vocab), which are changed. */
static sh_err sample_token(shoal *s, sh_sequence *q, float *logits)
{
    uint32_t id;
    sh_request *r = q->req;
    size_t n = q->n_tok - q->n_prompt; /* sampled so far */
    if (r->n_predict == 0) return end_sample(s, q, SHOAL_FINISH_LENGTH, logits);
    SH_TRY(
        sh_sample(&s->sampler, &id, logits, &r->sampling, q->sample, q->n_tok, q->tok, q->n_tok));
    q->last_s = now_s();
    if (n == 0)
        q->first_s = q->last_s;
    else
        s->stats.n_sampled_token++;
    if (!r->ignore_end && sh_tokenizer_is_end(s->tokenizer, id))
        return end_sample(s, q, SHOAL_FINISH_EOS, logits);
    SH_TRY(sh_sequence_push(q, id));
    shoal_event e = {.kind = SHOAL_TOKEN, .request = r->id, .sample = q->sample, .token = id};
    size_t n_piece;
    const char *piece = sh_tokenizer_piece(s->tokenizer, id, &n_piece);
    if (n == 0 && r->strip_space && n_piece && *piece == ' ') piece++, n_piece--;
    bool stopped = sh_text_put(&q->text, piece, n_piece, &e.text, &e.n_text);
    SH_TRY(push_event(s, &e));
    if (stopped) return end_sample(s, q, SHOAL_FINISH_STOP, logits);
    if (n + 1 == (size_t)r->n_predict || q->n_tok == (size_t)s->opt.n_ctx)
        return end_sample(s, q, SHOAL_FINISH_LENGTH, logits);
    return SH_OK;
}

/* ---- the drive ---- */

/* Gives slots away; samples whose prompt is read already get their first token at once. */
static sh_err admit(shoal *s)
{
    size_t n_vocab = (size_t)s->sampler.n_vocab;
    for (sh_sequence *q; (q = sh_scheduler_admit(&s->scheduler));) {
        memcpy(s->logits, q->req->logits, n_vocab * sizeof *s->logits);
        SH_TRY(sample_token(s, q, s->logits));
        if (!q->done) sh_scheduler_start(&s->scheduler, q);
    }
    return SH_OK;
}

/* The logits of those sequences of a microbatch that have some are in s->logits, in order. */
static sh_err take_logits(shoal *s, const sh_flight *f)
{
    size_t n_vocab = (size_t)s->sampler.n_vocab;
    float *logits = s->logits;
    for (uint32_t i = 0; i < f->step.n_seq; i++) {
        const sh_step_seq *part = &f->step.seq[i];
        sh_sequence *q = f->seq[i];
        sh_request *r = q->req;
        if (!part->logits) {
            shoal_event e = {.kind = SHOAL_PROMPT,
                             .request = r->id,
                             .sample = q->sample,
                             .n_prompt = part->pos + part->n_tok};
            if (!q->done) SH_TRY(push_event(s, &e));
            continue;
        }
        if (!q->done) {
            if (q->n_tok == q->n_prompt && r->n_ref > 1 &&
                !r->logits) { /* others may start from them */
                SH_TRY(sh_alloc(&r->logits, n_vocab, sizeof *logits, "the logits of a prompt"));
                memcpy(r->logits, logits, n_vocab * sizeof *logits);
            }
            SH_TRY(sample_token(s, q, logits));
        }
        logits += n_vocab;
    }
    sh_scheduler_retire(&s->scheduler);
    return SH_OK;
}

/* Starts a microbatch on its way: the starter's layers, then the ring; alone, its logits too. */
static sh_err launch(shoal *s, sh_flight *f)
{
    sh_step *step = &f->step;
    uint32_t t = 0;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        memcpy(s->ids + t, f->seq[i]->tok + step->seq[i].pos, step->seq[i].n_tok * sizeof *s->ids);
        if (step->seq[i].prompt) s->stats.n_prompt_token += step->seq[i].n_tok;
        t += step->seq[i].n_tok;
    }
    s->stats.n_step++;
    if ((uint32_t)s->scheduler.n_flight > s->stats.max_in_flight)
        s->stats.max_in_flight = (uint32_t)s->scheduler.n_flight;
    sh_node_embed(s->node, step, s->ids, s->x);
    SH_TRY(sh_node_layers(s->node, step, s->x, s->ring ? NULL : s->logits));
    return s->ring ? sh_ring_send(s->ring, step, s->x) : take_logits(s, f);
}

/* Takes a microbatch that has gone round the ring, if there is one within timeout_ms. */
static sh_err land(shoal *s, int timeout_ms, bool *got)
{
    uint64_t id;
    uint32_t n_tok;
    sh_flight *f = sh_scheduler_oldest(&s->scheduler);
    *got = false;
    if (!f) return SH_OK;
    SH_TRY(sh_ring_recv(s->ring, timeout_ms, got, &id, &n_tok, s->x));
    if (!*got) return SH_OK;
    if (id != f->step.id || n_tok != f->step.n_tok)
        return sh_fail(SH_EPEER, "the ring brought step %llu back where step %llu was due",
                       (unsigned long long)id, (unsigned long long)f->step.id);
    SH_TRY(sh_node_head(s->node, &f->step, s->x, s->logits));
    return take_logits(s, f);
}

/* One piece of work: a microbatch that came back, or one that sets out, or waiting for the ring. */
static sh_err drive(shoal *s)
{
    bool got = false;
    SH_TRY(admit(s));
    if (s->ring) SH_TRY(land(s, 0, &got));
    if (got) return SH_OK;
    sh_flight *f = sh_scheduler_next(&s->scheduler);
    if (f) return launch(s, f);
    while (s->ring && !got && s->n_event == 0) {
        SH_TRY(land(s, 200, &got));
        if (!got) SH_TRY(sh_local_check(&s->local, &s->nodes));
    }
    return SH_OK;
}

static void count_time(shoal *s, bool prompt)
{
    double t = now_s();
    *(prompt ? &s->stats.prompt_s : &s->stats.decode_s) += t - s->clock_s;
    s->clock_s = t;
}

shoal_err shoal_next(shoal *s, shoal_event *event)
{
    if (s->first_event == s->n_event) {
        s->first_event = s->n_event = s->text.n = 0;
        sh_scheduler_sweep(&s->scheduler);
        s->clock_s = now_s();
    }
    while (s->n_event == 0 && !sh_scheduler_is_idle(&s->scheduler)) {
        if (s->broken)
            return out_err(sh_fail(SH_EPEER, "a node or rank was lost; close the engine"));
        bool prompt = sh_scheduler_reads_prompt(&s->scheduler);
        sh_err err = drive(s);
        count_time(s, prompt);
        if (err != SH_OK) {
            s->broken = true;
            char sentence[1024]; /* a local node's end says more than a closed connection */
            memccpy(sentence, sh_err_message(), 0, sizeof sentence - 1);
            sentence[sizeof sentence - 1] = 0;
            if (sh_local_check(&s->local, &s->nodes) == SH_OK) sh_fail(err, "%s", sentence);
            return out_err(err);
        }
    }
    if (s->n_event == 0) {
        *event = (shoal_event){.kind = SHOAL_IDLE};
        return SHOAL_OK;
    }
    queued *q = &s->event[s->first_event++];
    *event = q->event;
    event->text = "";
    if (event->n_text == 0) return SHOAL_OK;
    s->shown.n = 0;
    sh_put_bytes(&s->shown, s->text.p + q->text_at, event->n_text);
    if (s->shown.bad) return out_err(sh_fail(SH_ENOMEM, "no memory for a text"));
    event->text = (const char *)s->shown.p;
    return SHOAL_OK;
}
