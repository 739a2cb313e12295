/* A secondary of the ring, and the ranks that follow rank 0: the other ends of what engine.c
 * drives. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/mem.h"
#include "comm/group.h"
#include "comm/ring.h"
#include "engine/node.h"
#include "kernels/kernels.h"
#include "shoal.h"

typedef struct worker {
    const shoal_worker_options *opt;
    sh_welcome self;
    sh_node_options base; /* what does not depend on the starter */
    sh_worker_link *link;
    sh_node *node;
    float *x; /* (n_batch, n_embd) of the session */
    sh_step step;
} worker;

/* What this node can say before a starter has asked for anything. */
static sh_err introduce(worker *w)
{
    sh_model_file *m = NULL;
    sh_config c;
    sh_err err;
    SH_GOTO(sh_model_file_open(&m, w->opt->model));
    SH_GOTO(sh_config_read(&c, m));
    w->self = (sh_welcome){.n_layer = (uint32_t)c.n_layer,
                           .n_embd = (uint32_t)c.dim[SH_DIM_EMBD],
                           .has_amx = sh_kernels_have_amx(),
                           .n_rank = (uint32_t)w->base.n_rank};
    snprintf(w->self.version, sizeof w->self.version, "%s", SHOAL_VERSION);
    sh_model_file_hash(m, w->self.model_hash);
out:
    sh_model_file_close(m);
    return err;
}

static void end_session(worker *w)
{
    sh_node_close(w->node);
    w->node = NULL;
    free(w->x);
    w->x = NULL;
    sh_log(SH_LOG_INFO, "the session is over; waiting for a starter");
}

static sh_err load(worker *w, const sh_load *l)
{
    sh_node_options o = w->base;
    if (memcmp(l->model_hash, w->self.model_hash, sizeof l->model_hash) != 0)
        return sh_fail(SH_EARG, "%s is another model than the starter's: give both the same file",
                       w->opt->model);
    if (l->n_embd != w->self.n_embd || l->layer_lo >= l->layer_hi ||
        l->layer_hi > w->self.n_layer || l->n_slot < 1 || l->n_slot > 256 || l->n_ctx < 1 ||
        l->n_ctx > 1u << 28 || l->n_batch < 1 || l->n_batch > 65536 || l->stage < 1 ||
        l->stage >= l->n_stage || l->arith > 1 || !sh_kv_has((sh_dtype)l->kv))
        return sh_fail(SH_EARG, "the starter asks for what this model does not have");
    o.stage = (int)l->stage;
    o.n_stage = (int)l->n_stage;
    o.layer = (sh_range){(int)l->layer_lo, (int)l->layer_hi};
    o.arith_bf16 = l->arith != 0;
    o.kv = (sh_dtype)l->kv;
    o.n_ctx = (int)l->n_ctx;
    o.n_slot = (int)l->n_slot;
    o.n_batch = (int)l->n_batch;
    sh_log(SH_LOG_INFO, "stage %u of %u: layers %u to %u", l->stage, l->n_stage, l->layer_lo,
           l->layer_hi - 1);
    SH_TRY(sh_alloc(&w->x, (size_t)l->n_batch * l->n_embd, sizeof *w->x, "the activations"));
    return sh_node_open(&w->node, &o);
}

/* Serves until told to stop. A failure of this node ends the session, not the worker. */
static sh_err serve(worker *w)
{
    for (;;) {
        sh_worker_event event;
        sh_load l;
        SH_TRY(sh_worker_wait(w->link, w->opt->stop_fd, &event, &l, &w->step, w->x));
        switch (event) {
        case SH_WORKER_LOAD:
            if (load(w, &l) == SH_OK) {
                SH_TRY(sh_worker_ready(w->link));
            } else {
                sh_log(SH_LOG_WARN, "refused: %s", sh_err_message());
                SH_TRY(sh_worker_refuse(w->link, sh_err_message()));
                end_session(w);
            }
            break;
        case SH_WORKER_STEP: {
            sh_err err = sh_node_layers(w->node, &w->step, w->x, NULL);
            if (err == SH_OK) err = sh_worker_forward(w->link, &w->step, w->x);
            if (err != SH_OK) {
                sh_log(SH_LOG_ERROR, "%s", sh_err_message());
                sh_worker_fail(w->link, sh_err_message());
                end_session(w);
            }
            break;
        }
        case SH_WORKER_END:
            end_session(w);
            break;
        case SH_WORKER_STOP:
            return SH_OK;
        }
    }
}

shoal_err shoal_worker(const shoal_worker_options *opt)
{
    sh_err err;
    worker w = {.opt = opt};
    sh_node_addr a;
    char text[300], name[64];
    (void)sh_cpu_features(); /* asks for the matrix unit before there are threads */
    if (!opt->listen || !opt->model)
        return (shoal_err)sh_fail(
            SH_EARG, "a worker needs an address (--listen ADDR:PORT) and a model (-m FILE)");
    w.base = (sh_node_options){.path = opt->model, .n_rank = opt->n_rank};
    SH_GOTO(sh_group_count(&w.base.n_rank, "--tp"));
    w.base.n_cpu = sh_group_cores(w.base.n_rank, w.base.cpu, 64, &w.base.n_here);
    w.base.n_thread = opt->n_thread ? opt->n_thread : w.base.n_cpu / w.base.n_here;
    if (w.base.n_thread < 1) w.base.n_thread = 1;
    SH_GOTO(sh_node_addr_parse(&a, opt->listen));
    SH_GOTO(introduce(&w));
    SH_GOTO(sh_worker_listen(&w.link, &a, &w.self));
    a.port = sh_worker_port(w.link);
    sh_node_addr_text(&a, text);
    snprintf(name, sizeof name, "shoal worker %.48s", text);
    sh_log_set_name(name);
    sh_log(SH_LOG_INFO, "listening, %d ranks of %d threads", w.base.n_rank, w.base.n_thread);
    if (opt->report_fd >= 0) {
        dprintf(opt->report_fd, "%d\n", a.port);
        close(opt->report_fd);
    }
    err = serve(&w);
out:
    if (w.node) end_session(&w);
    sh_worker_close(w.link);
    sh_step_free(&w.step);
    free(w.x);
    return (shoal_err)err;
}
