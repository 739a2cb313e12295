/* Work is counted in units: one span of positions (SH_SPAN, at multiples of it) that one block of
 * tokens looks at with the heads of one KV head. Of single tokens each thread takes a run of units,
 * as many as any other. So a token's spans may be several threads' work: each span is summed by
 * itself anyhow, and who sums it changes nothing. The thread that has the first span merges what it
 * has; the others leave their parts, which are merged in ascending order when all are done. From
 * the first block of several tokens on, blocks go to whichever thread is free. */
#include "model/attend.h"

#include <assert.h>
#include <math.h>
#include <string.h>

typedef struct attend_job {
    const sh_forward *f;
    int layer; /* of this stage */
    bool bf16; /* its prompts attend in bf16 */
} attend_job;

static int n_kv_head(const sh_forward *f)
{
    return sh_range_n(f->plan->local[SH_DIM_KV]) / f->config->head_dim;
}

/* The heads of this rank that share its KV head `kv`. */
static sh_range heads_of(const sh_forward *f, int kv)
{
    int group = f->config->n_head / f->config->n_kv_head, head_dim = f->config->head_dim;
    sh_range q = f->plan->local[SH_DIM_Q];
    int lo = (f->plan->local[SH_DIM_KV].lo / head_dim + kv) * group - q.lo / head_dim;
    int hi = lo + group, n_q = sh_range_n(q) / head_dim;
    return (sh_range){lo < 0 ? 0 : lo, hi > n_q ? n_q : hi};
}

/* ---- units ---- */

/* A block of tokens and a KV head: units [first, end), one for each span. */
typedef struct item {
    sh_range tok;
    int kv;
    bool prompt; /* in bf16 */
    bool whole;  /* one thread's work */
    long first, end;
} item;

static item item_of(const attend_job *j, int block, int kv)
{
    const sh_forward *f = j->f;
    long n = f->unit[block + 1] - f->unit[block];
    item i = {.tok = f->block[block], .kv = kv};
    i.first = f->unit[block] * n_kv_head(f) + kv * n;
    i.end = i.first + n;
    i.prompt = j->bf16 && i.tok.lo >= f->n_sampled;
    i.whole = i.prompt || sh_range_n(i.tok) > 1;
    return i;
}

static item item_at(const attend_job *j, long unit)
{
    const sh_forward *f = j->f;
    int n_kv = n_kv_head(f), lo = 0, hi = f->n_block; /* the block is in [lo, hi) */
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (f->unit[mid] * n_kv <= unit)
            lo = mid;
        else
            hi = mid;
    }
    return item_of(j, lo, (int)((unit - f->unit[lo] * n_kv) / (f->unit[lo + 1] - f->unit[lo])));
}

/* Where the units of a thread begin, of those before block n_single; those of the last one end
 * where thread n_thread's begin. */
static long first_unit(const sh_forward *f, int thread, int n_thread)
{
    return f->unit[f->n_single] * n_kv_head(f) * thread / n_thread;
}

/* ---- scratch of a thread ---- */

enum { AT_ONCE = 64 }; /* heads of a token that are taken together, at most */

/* Of some heads: o (n, head_dim), m (n), l (n). */
typedef struct part {
    float *o, *m, *l;
} part;

static size_t group_of(const sh_forward *f)
{
    return (size_t)(f->config->n_head / f->config->n_kv_head);
}

/* Scores of a span and the sums of one; then parts of all heads of a group: number 0 has m and l of
 * the item that the thread has begun, 1 and following the spans of one that another has. */
static size_t work_floats(const sh_forward *f)
{
    size_t group = group_of(f), dim = (size_t)f->config->head_dim;
    size_t one = (group < AT_ONCE ? group : AT_ONCE) * (SH_SPAN + dim), prompt = SH_ROWS * dim;
    return one > prompt ? one : prompt;
}

size_t sh_attend_floats(const sh_forward *f)
{
    size_t n_span = ((size_t)f->kv->n_ctx + SH_SPAN - 1) / SH_SPAN;
    size_t n = work_floats(f) + (n_span + 1) * group_of(f) * ((size_t)f->config->head_dim + 2);
    return (n + 15) / 16 * 16;
}

static float *scratch_of(const sh_forward *f, int thread)
{
    return f->span + (size_t)thread * f->span_floats;
}

/* Part i of a thread, from head `first` of the group on. */
static part part_of(const sh_forward *f, int thread, long i, int first)
{
    size_t group = group_of(f), dim = (size_t)f->config->head_dim, head = (size_t)first;
    float *o = scratch_of(f, thread) + work_floats(f) + (size_t)i * group * (dim + 2);
    return (part){o + head * dim, o + group * dim + head, o + group * (dim + 1) + head};
}

/* ---- one token ---- */

typedef struct token {
    const sh_forward *f;
    const float *q; /* (n_q, head_dim): its heads that share a KV head */
    int n_q, layer, kv, slot, pos;
} token;

/* K, then V of its page number `page`; NULL past its last position. */
static const void *page_of(const token *t, int page, bool v)
{
    if (page * SH_PAGE > t->pos) return NULL;
    return v ? sh_kv_v(t->f->kv, t->slot, page, t->layer, t->kv)
             : sh_kv_k(t->f->kv, t->slot, page, t->layer, t->kv);
}

/* out = one span by itself; s (n_q, SH_SPAN) is scratch. */
static void attend_span(const token *t, part out, long span, float *s)
{
    const sh_kernels *k = t->f->k;
    sh_dtype type = t->f->kv->dtype;
    int dim = t->f->config->head_dim, at = (int)span * SH_SPAN, first = at / SH_PAGE;
    int n_pos = t->pos + 1 - at < SH_SPAN ? t->pos + 1 - at : SH_SPAN;
    int end = first + (n_pos + SH_PAGE - 1) / SH_PAGE;
    float scale = 1.0f / sqrtf((float)dim);
    memset(out.o, 0, (size_t)t->n_q * (size_t)dim * sizeof *out.o);
    for (int p = first; p < end; p++) {
        int from = (p - first) * SH_PAGE, n = n_pos - from < SH_PAGE ? n_pos - from : SH_PAGE;
        const void *next = p + 1 < end ? page_of(t, p + 1, false) : page_of(t, first, true);
        k->attn_scores[type](s + from, SH_SPAN, t->q, (size_t)dim, t->n_q, page_of(t, p, false), n,
                             dim, scale, next);
    }
    for (int h = 0; h < t->n_q; h++)
        out.m[h] = k->softmax_part(s + (size_t)h * SH_SPAN, n_pos, &out.l[h]);
    for (int p = first; p < end; p++) {
        int from = (p - first) * SH_PAGE, n = n_pos - from < SH_PAGE ? n_pos - from : SH_PAGE;
        const void *next = page_of(t, p + 1, p + 1 < end);
        k->attn_values[type](out.o, (size_t)dim, s + from, SH_SPAN, t->n_q, page_of(t, p, true), n,
                             dim, next);
    }
}

static void merge(const sh_forward *f, part to, part from, int n_head)
{
    int dim = f->config->head_dim;
    for (int h = 0; h < n_head; h++)
        f->k->softmax_merge(to.o + h * dim, &to.m[h], &to.l[h], from.o + h * dim, from.m[h],
                            from.l[h], dim);
}

static void divide(const sh_forward *f, part p, int n_head)
{
    int dim = f->config->head_dim;
    for (int h = 0; h < n_head; h++)
        for (int d = 0; d < dim; d++) p.o[h * dim + d] /= p.l[h];
}

/* Spans [lo, hi) of token t, with the heads that share a KV head. */
static void attend_token(const attend_job *j, int t, int kv, long lo, long hi, int thread)
{
    const sh_forward *f = j->f;
    size_t dim = (size_t)f->config->head_dim;
    sh_range heads = heads_of(f, kv);
    float m2[AT_ONCE], l2[AT_ONCE], *s = scratch_of(f, thread), *o2;
    for (int h = heads.lo, n; h < heads.hi; h += n) {
        n = heads.hi - h < AT_ONCE ? heads.hi - h : AT_ONCE;
        size_t at = (size_t)t * (size_t)sh_range_n(f->plan->local[SH_DIM_Q]) + (size_t)h * dim;
        token one = {f, f->q + at, n, j->layer, kv, f->tok_slot[t], f->tok_pos[t]};
        part out = part_of(f, thread, 0, h - heads.lo);
        out.o = f->ao + at;
        o2 = s + (size_t)n * SH_SPAN;
        for (long span = lo; span < hi; span++) {
            if (lo > 0) {
                attend_span(&one, part_of(f, thread, 1 + span - lo, h - heads.lo), span, s);
            } else if (span == 0) {
                attend_span(&one, out, span, s);
            } else {
                attend_span(&one, (part){o2, m2, l2}, span, s);
                merge(f, out, (part){o2, m2, l2}, n);
            }
        }
        if (lo == 0 && hi == one.pos / SH_SPAN + 1) divide(f, out, n);
    }
}

/* ---- a block of a prompt ---- */

/* In bf16: tokens [t0, t1) of one prompt, heads [h0, h1) of this rank, which share KV head `kv`; at
 * most SH_ROWS rows. */
static void attend_prompt(const sh_forward *f, int t0, int t1, int h0, int h1, int layer, int kv,
                          float *o2)
{
    int head_dim = f->config->head_dim, n_head = h1 - h0, n_row = (t1 - t0) * n_head;
    size_t dim = (size_t)head_dim, n_q = (size_t)sh_range_n(f->plan->local[SH_DIM_Q]);
    float scale = 1.0f / sqrtf((float)head_dim);
    const float *q[SH_ROWS];
    float *out[SH_ROWS], m[SH_ROWS], l[SH_ROWS], m2[SH_ROWS], l2[SH_ROWS];
    int pos[SH_ROWS], n_pos[SH_ROWS], slot = f->tok_slot[t0];
    assert(n_row > 0 && n_row <= SH_ROWS);
    for (int r = 0; r < n_row; r++) {
        size_t at = (size_t)(t0 + r / n_head) * n_q + (size_t)(h0 + r % n_head) * dim;
        q[r] = f->q + at;
        out[r] = f->ao + at;
        pos[r] = f->tok_pos[t0 + r / n_head];
    }
    for (int at = 0, r0 = 0; at <= pos[n_row - 1]; at += SH_SPAN) {
        const void *k[SH_SPAN / SH_PAGE], *v[SH_SPAN / SH_PAGE];
        while (pos[r0] < at)
            r0++; /* rows ascend by position: the first ones may not reach this span */
        for (int r = r0; r < n_row; r++)
            n_pos[r] = pos[r] - at < SH_SPAN ? pos[r] - at + 1 : SH_SPAN;
        for (int p = 0; p < SH_SPAN / SH_PAGE; p++) {
            bool there = at + p * SH_PAGE <= pos[n_row - 1];
            k[p] = there ? sh_kv_k(f->kv, slot, at / SH_PAGE + p, layer, kv) : NULL;
            v[p] = there ? sh_kv_v(f->kv, slot, at / SH_PAGE + p, layer, kv) : NULL;
        }
        f->k->attend_bf16[f->kv->dtype](o2, m2, l2, q + r0, n_row - r0, n_pos + r0, k, v, head_dim,
                                        scale);
        for (int r = r0; r < n_row; r++) {
            const float *o = o2 + (size_t)(r - r0) * dim;
            if (at == 0) {
                memcpy(out[r], o, dim * sizeof *o);
                m[r] = m2[r], l[r] = l2[r];
            } else {
                f->k->softmax_merge(out[r], &m[r], &l[r], o, m2[r - r0], l2[r - r0], head_dim);
            }
        }
    }
    for (int r = 0; r < n_row; r++) divide(f, (part){out[r], &m[r], &l[r]}, 1);
}

/* ---- threads ---- */

/* An item by itself. */
static void attend_whole(const attend_job *j, const item *i, int thread)
{
    const sh_forward *f = j->f;
    sh_range heads = heads_of(f, i->kv);
    for (int h = heads.lo, n; i->prompt && h < heads.hi; h += n) {
        n = heads.hi - h < AT_ONCE ? heads.hi - h : AT_ONCE;
        attend_prompt(f, i->tok.lo, i->tok.hi, h, h + n, j->layer, i->kv, scratch_of(f, thread));
    }
    for (int t = i->tok.lo; !i->prompt && t < i->tok.hi; t++)
        attend_token(j, t, i->kv, 0, f->tok_pos[t] / SH_SPAN + 1, thread);
}

static void attend_share(void *arg, int thread, int n_thread)
{
    const attend_job *j = arg;
    long lo = first_unit(j->f, thread, n_thread), hi = first_unit(j->f, thread + 1, n_thread);
    item i;
    for (long at = lo; at < hi; at = i.end) {
        i = item_at(j, at);
        if (!i.whole)
            attend_token(j, i.tok.lo, i.kv, at - i.first, (i.end < hi ? i.end : hi) - i.first,
                         thread);
        else if (i.first >= lo) /* else the thread before has its first unit */
            attend_whole(j, &i, thread);
    }
}

/* Item n of those from block n_single on, from the last, which looks at most. */
static void attend_block(void *arg, int n, int thread)
{
    const attend_job *j = arg;
    int n_kv = n_kv_head(j->f);
    item i = item_of(j, j->f->n_block - 1 - n / n_kv, n % n_kv);
    attend_whole(j, &i, thread);
}

/* Whether a thread has begun an item that others go on with: its last one. */
static bool left_over(const attend_job *j, int thread, int n_thread, item *i)
{
    long lo = first_unit(j->f, thread, n_thread), hi = first_unit(j->f, thread + 1, n_thread);
    if (lo == hi) return false;
    *i = item_at(j, hi - 1);
    return !i->whole && i->first >= lo && i->end > hi;
}

static void merge_share(void *arg, int thread, int n_thread)
{
    const attend_job *j = arg;
    const sh_forward *f = j->f;
    int dim = f->config->head_dim;
    item i;
    for (int t = 0; t < n_thread; t++) {
        if (!left_over(j, t, n_thread, &i)) continue;
        sh_range heads = heads_of(f, i.kv);
        int lo, hi;
        sh_share(sh_range_n(heads), thread, n_thread, &lo, &hi);
        part out = part_of(f, t, 0, lo);
        out.o = f->ao + (size_t)i.tok.lo * (size_t)sh_range_n(f->plan->local[SH_DIM_Q]) +
                (size_t)((heads.lo + lo) * dim);
        for (int u = t + 1; u < n_thread; u++)
            for (long at = first_unit(f, u, n_thread);
                 at < i.end && at < first_unit(f, u + 1, n_thread); at++)
                merge(f, out, part_of(f, u, 1 + at - first_unit(f, u, n_thread), lo), hi - lo);
        divide(f, out, hi - lo);
    }
}

void sh_attend(sh_forward *f, int layer, bool bf16)
{
    attend_job j = {f, layer, bf16};
    item i;
    bool left = false;
    int n_thread = sh_pool_n_thread(f->pool);
    sh_pool_each(f->pool, (f->n_block - f->n_single) * n_kv_head(f), attend_block, &j);
    /* after them, as what is left to be merged stays in a thread's scratch */
    if (f->n_single > 0) sh_pool_run(f->pool, attend_share, &j);
    for (int t = 0; t < n_thread; t++) left = left || left_over(&j, t, n_thread, &i);
    if (left) sh_pool_run(f->pool, merge_share, &j);
}

/* Blocks of tokens: single ones, or if some layer attends in bf16 as many of one prompt as make up
 * SH_ROWS rows with the heads of a group. */
void sh_attend_begin(sh_forward *f, const sh_step *step)
{
    int group = (int)group_of(f), t = 0;
    f->n_block = f->n_single = 0;
    f->unit[0] = 0;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        int n = step->seq[i].prompt && f->attend_bf16 && group < SH_ROWS ? SH_ROWS / group : 1;
        for (int end = t + (int)step->seq[i].n_tok; t < end; t += n) {
            if (n > end - t) n = end - t;
            f->block[f->n_block] = (sh_range){t, t + n};
            f->unit[f->n_block + 1] = f->unit[f->n_block] + f->tok_pos[t + n - 1] / SH_SPAN + 1;
            f->n_block++;
            if (n == 1 && f->n_single == f->n_block - 1) f->n_single++;
        }
    }
}
