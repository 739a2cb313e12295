#define _GNU_SOURCE
#include "engine/node.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "comm/group.h"
#include "model/forward.h"

/* What rank 0 asks the others to do. */
enum { DO_LAYERS = 1, DO_HEAD = 2 };

struct sh_node {
    sh_node_options opt;
    char *path;
    int rank;
    sh_model_file *file;
    sh_config config;
    sh_plan plan;
    sh_kernels kernels;
    sh_weights weights;
    sh_kv kv;
    sh_pool *pool;
    sh_group *group;
    sh_forward forward;
    sh_buf message; /* a broadcast being put together */
    bool serves;    /* the other ranks wait for what to do */
};

/* ---- what ranks need to know, as bytes ---- */

static void encode_options(const sh_node_options *o, sh_buf *b)
{
    const int v[] = {o->stage,      o->n_stage, o->layer.lo, o->layer.hi, o->n_rank,  o->n_thread,
                     o->arith_bf16, (int)o->kv, o->n_ctx,    o->n_slot,   o->n_batch, o->n_cpu};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) sh_put_u32(b, (uint32_t)v[i]);
    for (int i = 0; i < o->n_cpu; i++) sh_put_u32(b, (uint32_t)o->cpu[i]);
    sh_put_bytes(b, o->path, strlen(o->path) + 1);
}

static sh_err decode_options(sh_node_options *o, const void *p, size_t n)
{
    sh_cursor c = sh_cursor_of(p, n);
    *o = (sh_node_options){0};
    o->stage = (int)sh_get_u32(&c);
    o->n_stage = (int)sh_get_u32(&c);
    o->layer.lo = (int)sh_get_u32(&c);
    o->layer.hi = (int)sh_get_u32(&c);
    o->n_rank = (int)sh_get_u32(&c);
    o->n_thread = (int)sh_get_u32(&c);
    o->arith_bf16 = sh_get_u32(&c) != 0;
    o->kv = (sh_dtype)sh_get_u32(&c);
    o->n_ctx = (int)sh_get_u32(&c);
    o->n_slot = (int)sh_get_u32(&c);
    o->n_batch = (int)sh_get_u32(&c);
    o->n_cpu = (int)sh_get_u32(&c);
    for (int i = 0; i < o->n_cpu && i < 64; i++) o->cpu[i] = (int)sh_get_u32(&c);
    o->path = (const char *)sh_get_bytes(&c, sh_cursor_left(&c));
    if (c.bad || o->n_cpu > 64 || !o->path ||
        o->path[n - (size_t)((const uint8_t *)o->path - (const uint8_t *)p) - 1])
        return sh_fail(SH_EARG, "a rank's options are malformed");
    return SH_OK;
}

/* ---- opening ---- */

static size_t x_bytes(const sh_node *node, int n_tok)
{
    return (size_t)n_tok * (size_t)node->config.dim[SH_DIM_EMBD] * sizeof(float);
}

static size_t bcast_bytes(const sh_node *node)
{
    const sh_node_options *o = &node->opt;
    return 256 + 32 * (size_t)(o->n_batch + 8 * o->n_slot) + x_bytes(node, o->n_batch);
}

static bool enough_cpus(const sh_node_options *o)
{
    return o->n_cpu >= o->n_here * o->n_thread;
}

/* Model file, sizes and plan: what is needed before the group can be opened. */
static sh_err open_file(sh_node *node, const sh_node_options *o, int rank)
{
    node->opt = *o;
    node->rank = rank;
    if (!(node->path = strdup(o->path))) return sh_fail(SH_ENOMEM, "no memory for a file name");
    node->opt.path = node->path;
    SH_TRY(sh_model_file_open(&node->file, node->path));
    SH_TRY(sh_config_read(&node->config, node->file));
    if (o->layer.lo < 0 || o->layer.hi > node->config.n_layer || o->layer.lo >= o->layer.hi)
        return sh_fail(SH_EARG, "layers %d to %d of a model of %d", o->layer.lo, o->layer.hi,
                       node->config.n_layer);
    sh_plan_make(&node->plan, &node->config, node->file, o->stage, o->n_stage, o->layer, rank,
                 o->n_rank);
    return SH_OK;
}

void sh_node_need(sh_need *need, const sh_node_options *o, const sh_config *c,
                  const sh_model_file *m)
{
    size_t n_tok = (size_t)o->n_batch, n_embd = (size_t)c->dim[SH_DIM_EMBD];
    size_t n_pos = ((size_t)o->n_ctx + SH_PAGE - 1) / SH_PAGE * SH_PAGE * (size_t)o->n_slot;
    for (int r = 0; r < o->n_here; r++) { /* ranks are alike, whichever are on this host */
        sh_plan p;
        sh_plan_make(&p, c, m, o->stage, o->n_stage, o->layer, r, o->n_rank);
        size_t n_q = (size_t)sh_range_n(p.local[SH_DIM_Q]),
               n_kv = (size_t)sh_range_n(p.local[SH_DIM_KV]);
        size_t n_ff = (size_t)sh_range_n(p.local[SH_DIM_FF]);
        need->weight_bytes += sh_weights_bytes(c, m, &p);
        need->kv_bytes += 2 * (size_t)sh_range_n(p.layer) * n_pos * sh_dtype_bytes(o->kv, n_kv);
        /* activations as floats, and prepared in the forms of products; about */
        need->scratch_bytes += n_tok * (5 * n_embd + 3 * n_q + 2 * n_kv + 3 * n_ff) * sizeof(float);
    }
    need->scratch_bytes += (size_t)o->n_here * 2 * sizeof(float) *
                           sh_forward_part_floats(c, o->n_rank, o->n_batch, o->n_slot);
    if (o->stage == 0)
        need->scratch_bytes += (size_t)o->n_slot * (size_t)c->dim[SH_DIM_VOCAB] * sizeof(float);
}

sh_err sh_need_check(const sh_need *n, const char *model)
{
    const double gib = 1 << 30;
    size_t all = n->weight_bytes + n->kv_bytes + n->scratch_bytes, have = sh_memory_free_bytes();
    if (have == 0 || all <= have) return SH_OK;
    return sh_fail(
        SH_ENOMEM,
        "%s needs %.2f GiB of memory (weights %.2f, KV cache %.2f, scratch %.2f) and %.2f GiB are "
        "free: give fewer positions (-c) or sequences (-np), a smaller type, or more hosts "
        "(--nodes)",
        model, (double)all / gib, (double)n->weight_bytes / gib, (double)n->kv_bytes / gib,
        (double)n->scratch_bytes / gib, (double)have / gib);
}

/* By the first rank on a host, for all there. */
static sh_err check_need(const sh_node *node)
{
    sh_need need = {0};
    sh_node_need(&need, &node->opt, &node->config, node->file);
    return sh_need_check(&need, node->path);
}

/* Threads, weights, cache, scratch. */
static sh_err load(sh_node *node)
{
    const sh_node_options *o = &node->opt;
    bool bound = enough_cpus(o);
    SH_TRY(sh_kernels_init(&node->kernels, NULL));
    SH_TRY(sh_pool_open(&node->pool, o->n_thread,
                        bound ? o->cpu + node->group->here * o->n_thread : NULL,
                        bound ? 20000 : 0));
    SH_TRY(sh_weights_load(&node->weights, &node->config, node->file, &node->plan, node->pool));
    SH_TRY(sh_kv_open(&node->kv, &node->plan, &node->config, o->kv, o->n_ctx, o->n_slot));
    node->forward = (sh_forward){.config = &node->config,
                                 .plan = &node->plan,
                                 .w = &node->weights,
                                 .k = &node->kernels,
                                 .kv = &node->kv,
                                 .group = node->group,
                                 .pool = node->pool,
                                 .n_batch = o->n_batch,
                                 .n_slot = o->n_slot,
                                 .arith_bf16 = o->arith_bf16};
    return sh_forward_open(&node->forward);
}

sh_err sh_node_open(sh_node **out, const sh_node_options *opt)
{
    sh_err err;
    sh_node *node;
    sh_buf blob = {0};
    *out = NULL;
    SH_TRY(sh_alloc(&node, 1, sizeof *node, "the node"));
    SH_GOTO(open_file(node, opt, 0));
    SH_GOTO(check_need(node));
    encode_options(opt, &blob);
    sh_group_options go = {.n_rank = opt->n_rank,
                           .part_floats = sh_forward_part_floats(&node->config, opt->n_rank,
                                                                 opt->n_batch, opt->n_slot),
                           .bcast_bytes = bcast_bytes(node),
                           .blob = blob.p,
                           .n_blob = blob.n,
                           .spin = enough_cpus(opt) ? 20000 : 0};
    SH_GOTO(blob.bad ? sh_fail(SH_ENOMEM, "no memory to start ranks")
                     : sh_group_open(&node->group, &go));
    SH_GOTO(sh_group_ready(node->group, load(node)));
    node->serves = true;
    *out = node;
    node = NULL;
out:
    sh_buf_free(&blob);
    sh_node_close(node);
    return err;
}

void sh_node_close(sh_node *node)
{
    if (!node) return;
    if (node->serves && node->opt.n_rank > 1) {
        uint8_t stop[4] = {0}; /* nothing to do: the others leave */
        size_t n = sizeof stop;
        (void)sh_group_bcast(node->group, stop, n, &n);
    }
    sh_group_close(node->group);
    sh_pool_close(node->pool);
    sh_forward_close(&node->forward);
    sh_kv_close(&node->kv);
    sh_weights_free(&node->weights);
    sh_model_file_close(node->file);
    sh_buf_free(&node->message);
    free(node->path);
    free(node);
}

/* ---- steps ---- */

/* Tells the other ranks what to do, with the activations if they do not have them yet. */
static sh_err tell(sh_node *node, unsigned what, const sh_step *step, const float *x)
{
    if (node->opt.n_rank == 1) return SH_OK;
    sh_buf *b = &node->message;
    b->n = 0;
    sh_put_u32(b, what);
    sh_step_encode(step, b);
    sh_put_bytes(b, x, x_bytes(node, (int)step->n_tok));
    if (b->bad) return sh_fail(SH_ENOMEM, "no memory for a step");
    size_t n = b->n;
    return sh_group_bcast(node->group, b->p, n, &n);
}

/* The same on every rank. */
static sh_err work(sh_node *node, unsigned what, const sh_step *step, float *x, float *logits)
{
    sh_err err = SH_OK;
    uint64_t state = sh_cpu_enter();
    if (what & DO_LAYERS) err = sh_forward_layers(&node->forward, step, x);
    if (err == SH_OK && (what & DO_HEAD)) err = sh_forward_head(&node->forward, step, x, logits);
    sh_cpu_leave(state);
    return err;
}

static sh_err run(sh_node *node, unsigned what, const sh_step *step, float *x, float *logits)
{
    SH_TRY(tell(node, what, step, x));
    return work(node, what, step, x, logits);
}

sh_err sh_node_layers(sh_node *node, const sh_step *step, float *x, float *logits)
{
    return run(node, logits ? DO_LAYERS | DO_HEAD : DO_LAYERS, step, x, logits);
}

sh_err sh_node_head(sh_node *node, const sh_step *step, float *x, float *logits)
{
    return run(node, DO_HEAD, step, x, logits);
}

void sh_node_embed(const sh_node *node, const sh_step *step, const uint32_t *ids, float *x)
{
    sh_forward_embed(&node->forward, step, ids, x);
}

const sh_config *sh_node_config(const sh_node *node)
{
    return &node->config;
}

size_t sh_node_weight_bytes(const sh_node *node)
{
    return node->weights.n_bytes;
}

/* Steps until rank 0 says stop. */
static sh_err follow(sh_node *node)
{
    const sh_node_options *o = &node->opt;
    sh_step_limits limits = {(uint32_t)o->n_slot, (uint32_t)o->n_ctx, (uint32_t)o->n_batch};
    sh_step step = {0};
    size_t cap = bcast_bytes(node), n;
    uint8_t *message = NULL;
    float *x = NULL;
    sh_err err;
    SH_GOTO(sh_alloc(&message, cap, 1, "a step"));
    SH_GOTO(sh_alloc(&x, x_bytes(node, o->n_batch), 1, "the activations"));
    for (;;) {
        SH_GOTO(sh_group_bcast(node->group, message, cap, &n));
        sh_cursor c = sh_cursor_of(message, n);
        unsigned what = sh_get_u32(&c);
        if (!what) break;
        SH_GOTO(sh_step_decode(&step, &c, &limits));
        const uint8_t *p = sh_get_bytes(&c, x_bytes(node, (int)step.n_tok));
        SH_GOTO(p ? SH_OK : sh_fail(SH_EPEER, "a step without its activations"));
        memcpy(x, p, x_bytes(node, (int)step.n_tok));
        SH_GOTO(work(node, what, &step, x, NULL));
    }
out:
    sh_step_free(&step);
    free(message);
    free(x);
    return err;
}

sh_err sh_node_follow(sh_group *g)
{
    sh_node_options o;
    sh_node *node;
    sh_err err = sh_alloc(&node, 1, sizeof *node, "the node");
    if (err != SH_OK) {
        sh_group_close(g);
        return err;
    }
    node->group = g;
    SH_GOTO(decode_options(&o, node->group->blob, node->group->n_blob));
    sh_group_place(g, o.cpu, 64, &o.n_cpu, &o.n_here, &o.n_thread);
    err = open_file(node, &o, g->rank);
    if (err == SH_OK && g->here == 0) err = check_need(node);
    if (err == SH_OK) err = load(node);
    SH_GOTO(sh_group_ready(node->group, err));
    SH_GOTO(follow(node));
out:
    sh_node_close(node);
    return err;
}
