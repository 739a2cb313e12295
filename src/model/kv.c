#include "model/kv.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

sh_err sh_kv_open(sh_kv *kv, const sh_plan *p, const sh_config *c, sh_dtype dtype, int n_ctx,
                  int n_slot)
{
    sh_err err;
    size_t pool_bytes;
    *kv = (sh_kv){.dtype = dtype,
                  .n_layer = sh_range_n(p->layer),
                  .n_head = sh_range_n(p->local[SH_DIM_KV]) / c->head_dim,
                  .head_dim = c->head_dim,
                  .n_ctx = n_ctx,
                  .n_slot = n_slot,
                  .pages_per_slot = (n_ctx + SH_PAGE - 1) / SH_PAGE};
    kv->head_bytes = sh_kv_page_bytes(dtype, c->head_dim);
    kv->page_bytes = (size_t)kv->n_layer * (size_t)kv->n_head * 2 * kv->head_bytes;
    if (__builtin_mul_overflow(kv->pages_per_slot, n_slot, &kv->n_page) ||
        !sh_mul_size((size_t)kv->n_page, kv->page_bytes, &pool_bytes))
        return sh_fail(SH_EARG, "%d sequences of %d positions: too many; give less (-c, -np)",
                       n_slot, n_ctx);
    size_t n_page = (size_t)kv->n_page;
    SH_GOTO(sh_alloc(&kv->n_ref, n_page, sizeof(int), "the KV cache"));
    SH_GOTO(sh_alloc(&kv->free_page, n_page, sizeof(int), "the KV cache"));
    SH_GOTO(sh_alloc(&kv->page_table, n_page, sizeof(int), "the KV cache"));
    SH_GOTO(sh_alloc(&kv->slot, (size_t)n_slot, sizeof *kv->slot, "the KV cache"));
    SH_GOTO(sh_map(&kv->pool, pool_bytes, "the KV cache"));
    for (int s = 0; s < n_slot; s++)
        kv->slot[s].page = kv->page_table + (size_t)s * kv->pages_per_slot;
    for (int i = kv->n_page; i > 0; i--) kv->free_page[kv->n_free++] = i - 1;
    return SH_OK;
out:
    sh_kv_close(kv);
    return err;
}

void sh_kv_close(sh_kv *kv)
{
    sh_unmap(kv->pool, (size_t)kv->n_page * kv->page_bytes);
    free(kv->n_ref);
    free(kv->free_page);
    free(kv->page_table);
    free(kv->slot);
    *kv = (sh_kv){0};
}

static int n_page_of(int n_pos)
{
    return (n_pos + SH_PAGE - 1) / SH_PAGE;
}

/* There are as many pages as slots can name, and a shared page is named twice: one is always free.
 */
static int take_page(sh_kv *kv)
{
    int page = kv->free_page[--kv->n_free];
    kv->n_ref[page] = 1;
    return page;
}

static void drop_page(sh_kv *kv, int page)
{
    if (--kv->n_ref[page] == 0) kv->free_page[kv->n_free++] = page;
}

/* Keeps the first n_pos positions. */
static void truncate(sh_kv *kv, sh_kv_slot *s, int n_pos)
{
    for (int i = n_page_of(n_pos); i < n_page_of(s->n_pos); i++) drop_page(kv, s->page[i]);
    s->n_pos = n_pos;
}

static sh_err apply_op(sh_kv *kv, const sh_step_op *op)
{
    if (op->slot >= (uint32_t)kv->n_slot)
        return sh_fail(SH_EPEER, "a step names slot %u of %d", op->slot, kv->n_slot);
    sh_kv_slot *dst = &kv->slot[op->slot];
    truncate(kv, dst, 0);
    if (op->kind == SH_OP_FREE) return SH_OK;
    if (op->src >= (uint32_t)kv->n_slot || op->src == op->slot ||
        op->n_pos > (uint32_t)kv->slot[op->src].n_pos)
        return sh_fail(SH_EPEER, "a step copies %u positions of slot %u, which are not there",
                       op->n_pos, op->src);
    for (int i = 0; i < n_page_of((int)op->n_pos); i++) {
        dst->page[i] = kv->slot[op->src].page[i];
        kv->n_ref[dst->page[i]]++;
    }
    dst->n_pos = (int)op->n_pos;
    return SH_OK;
}

static sh_err make_room(sh_kv *kv, const sh_step_seq *q)
{
    if (q->slot >= (uint32_t)kv->n_slot || q->pos > (uint32_t)kv->slot[q->slot].n_pos ||
        q->n_tok > (uint32_t)kv->n_ctx - q->pos)
        return sh_fail(SH_EPEER, "a step writes positions %u to %u of slot %u, which do not fit",
                       q->pos, q->pos + q->n_tok, q->slot);
    sh_kv_slot *s = &kv->slot[q->slot];
    if (s->step == kv->n_step) return sh_fail(SH_EPEER, "a step names slot %u twice", q->slot);
    s->step = kv->n_step;
    truncate(kv, s, (int)q->pos);
    int end = (int)(q->pos + q->n_tok), last = n_page_of(s->n_pos);
    if (s->n_pos % SH_PAGE && kv->n_ref[s->page[last - 1]] > 1) { /* shared, and to be written */
        int old = s->page[last - 1], copy = take_page(kv);
        memcpy(kv->pool + (size_t)copy * kv->page_bytes, kv->pool + (size_t)old * kv->page_bytes,
               kv->page_bytes);
        drop_page(kv, old);
        s->page[last - 1] = copy;
    }
    for (int i = last; i < n_page_of(end); i++) s->page[i] = take_page(kv);
    s->n_pos = end;
    return SH_OK;
}

sh_err sh_kv_apply(sh_kv *kv, const sh_step *step)
{
    kv->n_step++;
    for (uint32_t i = 0; i < step->n_op; i++) SH_TRY(apply_op(kv, &step->op[i]));
    for (uint32_t i = 0; i < step->n_seq; i++) SH_TRY(make_room(kv, &step->seq[i]));
    return SH_OK;
}

size_t sh_kv_used_bytes(const sh_kv *kv)
{
    return (size_t)(kv->n_page - kv->n_free) * kv->page_bytes;
}
