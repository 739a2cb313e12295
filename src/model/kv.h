/* The KV cache of one rank: pages of SH_PAGE positions, counted, shared between sequences that have
 * the same beginning, and copied when one of them writes. Every rank of every stage applies the
 * same steps, so all caches agree on which position lies in which page. */
#ifndef SH_MODEL_KV_H
#define SH_MODEL_KV_H

#include "comm/step.h"
#include "model/plan.h"

typedef struct sh_kv_slot {
    int *page;     /* page numbers, n_ctx / SH_PAGE of them rounded up */
    int n_pos;     /* positions held */
    unsigned step; /* the last step that wrote to it, as sh_kv counts them */
} sh_kv_slot;

typedef struct sh_kv {
    sh_dtype dtype;
    int n_layer, n_head, head_dim; /* of this rank */
    int n_ctx, n_slot, n_page, pages_per_slot;
    size_t head_bytes; /* K of one head and page; V has as many */
    size_t page_bytes;
    uint8_t *pool;
    int *n_ref; /* of each page */
    int *free_page, n_free;
    sh_kv_slot *slot;
    int *page_table; /* backs slot[].page */
    unsigned n_step; /* steps applied */
} sh_kv;

/** Room for n_slot sequences of n_ctx positions. Memory is taken from the system as it is used. */
sh_err sh_kv_open(sh_kv *kv, const sh_plan *p, const sh_config *c, sh_dtype dtype, int n_ctx,
                  int n_slot);
void sh_kv_close(sh_kv *kv);

/** Does the step's operations and makes room for its tokens. SH_EPEER: the step names what is not
 * there; the cache can then only be closed. */
sh_err sh_kv_apply(sh_kv *kv, const sh_step *step);

/** K and V of one head of this rank at page number `page` (position / SH_PAGE) of a slot. */
static inline void *sh_kv_k(const sh_kv *kv, int slot, int page, int layer, int head)
{
    return kv->pool + (size_t)kv->slot[slot].page[page] * kv->page_bytes +
           (size_t)(layer * kv->n_head + head) * 2 * kv->head_bytes;
}
static inline void *sh_kv_v(const sh_kv *kv, int slot, int page, int layer, int head)
{
    return (char *)sh_kv_k(kv, slot, page, layer, head) + kv->head_bytes;
}

/** Bytes of pages in use. */
size_t sh_kv_used_bytes(const sh_kv *kv);

#endif
