#include "engine/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

sh_err sh_scheduler_open(sh_scheduler *s, int n_stage, int n_slot, int n_batch, int n_ctx)
{
    *s = (sh_scheduler){.n_stage = n_stage, .n_slot = n_slot, .n_batch = n_batch, .n_ctx = n_ctx};
    s->last_waiting = &s->waiting;
    SH_TRY(sh_alloc(&s->active, (size_t)n_slot, sizeof *s->active, "the scheduler"));
    SH_TRY(sh_alloc(&s->op, (size_t)n_slot * 4, sizeof *s->op, "the scheduler"));
    SH_TRY(sh_alloc(&s->flight, (size_t)n_stage, sizeof *s->flight, "the scheduler"));
    for (int i = 0; i < n_stage; i++)
        SH_TRY(sh_alloc(&s->flight[i].seq, (size_t)n_slot, sizeof(sh_sequence *), "the scheduler"));
    return SH_OK;
}

void sh_request_release(sh_request *r)
{
    if (--r->n_ref > 0) return;
    for (int i = 0; i < r->n_stop; i++) free(r->stop[i]);
    free(r->stop);
    free(r->logits);
    free(r);
}

void sh_sequence_free(sh_sequence *q)
{
    sh_request_release(q->req);
    sh_text_free(&q->text);
    free(q->tok);
    free(q);
}

static void free_list(sh_sequence *q)
{
    for (sh_sequence *next; q; q = next) {
        next = q->next;
        sh_sequence_free(q);
    }
}

void sh_scheduler_close(sh_scheduler *s)
{
    for (int i = 0; s->active && i < s->n_slot; i++)
        if (s->active[i]) sh_sequence_free(s->active[i]);
    for (int i = 0; s->flight && i < s->n_stage; i++) {
        sh_step_free(&s->flight[i].step);
        free(s->flight[i].seq);
    }
    free_list(s->waiting);
    free_list(s->ended);
    free(s->active);
    free(s->op);
    free(s->flight);
    *s = (sh_scheduler){0};
}

void sh_scheduler_add(sh_scheduler *s, sh_sequence *q)
{
    q->slot = -1;
    q->next = NULL;
    *s->last_waiting = q;
    s->last_waiting = &q->next;
}

static void push_op(sh_scheduler *s, sh_op_kind kind, int slot, int src, size_t n_pos)
{
    s->op[s->n_op++] = (sh_step_op){kind, (uint32_t)slot, (uint32_t)src, (uint32_t)n_pos};
}

static int free_slot(const sh_scheduler *s)
{
    for (int i = 0; i < s->n_slot; i++)
        if (!s->active[i]) return i;
    return -1;
}

/* A sample of the same request that holds a slot; *read: it has read the whole prompt. */
static sh_sequence *sibling(const sh_scheduler *s, const sh_sequence *q, bool *read)
{
    sh_sequence *found = NULL;
    *read = false;
    for (int i = 0; i < s->n_slot; i++) {
        sh_sequence *a = s->active[i];
        if (!a || a->req != q->req) continue;
        if (!found || a->n_sent >= a->n_prompt) found = a;
        *read |= a->n_sent >= a->n_prompt;
    }
    return found;
}

/* Operations gather until a step takes them along. There is room while they are few; once no slot
 * is held, all that they say is that the slots are empty. */
static bool has_room_for_ops(sh_scheduler *s)
{
    if (s->n_op < 2 * (uint32_t)s->n_slot) return true;
    for (int i = 0; i < s->n_slot; i++)
        if (s->active[i]) return false;
    s->n_op = 0;
    for (int i = 0; i < s->n_slot; i++) push_op(s, SH_OP_FREE, i, 0, 0);
    return true;
}

sh_sequence *sh_scheduler_admit(sh_scheduler *s)
{
    for (sh_sequence **p = &s->waiting; *p;) {
        sh_sequence *q = *p;
        bool read;
        int slot = free_slot(s);
        if (slot < 0 || !has_room_for_ops(s)) return NULL;
        sh_sequence *a = sibling(s, q, &read);
        if (a &&
            !(read && q->req->logits)) { /* another sample is reading the prompt: wait for it */
            p = &q->next;
            continue;
        }
        *p = q->next;
        if (!*p) s->last_waiting = p;
        q->next = NULL;
        if (a) return q;
        q->slot = slot;
        s->active[slot] = q;
    }
    return NULL;
}

void sh_scheduler_start(sh_scheduler *s, sh_sequence *q)
{
    bool read;
    sh_sequence *a = sibling(s, q, &read);
    q->slot = free_slot(s);
    s->active[q->slot] = q;
    q->n_sent = q->n_prompt;
    push_op(s, SH_OP_FORK, q->slot, a->slot, q->n_prompt);
}

/* The tokens that a sequence could send now. */
static size_t n_ready(const sh_sequence *q)
{
    return q->n_tok - q->n_sent;
}

/* The ready sequence that has waited longest. */
static sh_sequence *longest_waiting(const sh_scheduler *s)
{
    sh_sequence *best = NULL;
    for (int i = 0; i < s->n_slot; i++) {
        sh_sequence *q = s->active[i];
        if (q && n_ready(q) > 0 && q->turn <= s->turn && (!best || q->turn < best->turn)) best = q;
    }
    return best;
}

static bool is_prompt(const sh_sequence *q)
{
    return q->n_sent < q->n_prompt;
}

/* Puts chosen sequences in the step: sampled ones first, then prompts. */
static void fill_step(sh_scheduler *s, sh_flight *f, sh_sequence **chosen, const uint32_t *n,
                      int n_chosen)
{
    for (int prompt = 0; prompt < 2; prompt++)
        for (int i = 0; i < n_chosen; i++) {
            sh_sequence *q = chosen[i];
            if (!q || is_prompt(q) != (prompt == 1)) continue;
            f->seq[f->step.n_seq] = q;
            (void)sh_step_add_seq(&f->step, (sh_step_seq){.slot = (uint32_t)q->slot,
                                                          .pos = (uint32_t)q->n_sent,
                                                          .n_tok = n[i],
                                                          .prompt = prompt == 1,
                                                          .logits = q->n_sent + n[i] == q->n_tok});
            q->n_sent += n[i];
            q->n_in_flight++;
            chosen[i] = NULL;
        }
    for (uint32_t i = 0; i < s->n_op; i++) (void)sh_step_add_op(&f->step, s->op[i]);
    s->n_op = 0;
}

sh_flight *sh_scheduler_next(sh_scheduler *s)
{
    if (s->n_flight == s->n_stage) return NULL;
    sh_flight *f = &s->flight[(s->first_flight + s->n_flight) % s->n_stage];
    sh_sequence *chosen[256];
    uint32_t n[256];
    int n_active = 0, n_wait = 0, n_chosen = 0, room = s->n_batch,
        n_free = s->n_stage - s->n_flight;
    for (int i = 0; i < s->n_slot; i++) {
        n_active += s->active[i] != NULL;
        n_wait += s->active[i] && n_ready(s->active[i]) > 0;
    }
    /* so that every stage has a microbatch, now and when all of them have gone round */
    int now = (n_wait + n_free - 1) / n_free, later = (n_active + s->n_stage - 1) / s->n_stage;
    int limit = now < later ? now : later;
    for (sh_sequence *q; n_chosen < limit && room > 0 && (q = longest_waiting(s)); n_chosen++) {
        size_t want = n_ready(q);
        n[n_chosen] = want < (size_t)room ? (uint32_t)want : (uint32_t)room;
        room -= (int)n[n_chosen];
        chosen[n_chosen] = q;
        q->turn = s->turn + 1 + (uint64_t)n_chosen;
    }
    if (n_chosen == 0) return NULL;
    s->turn += (uint64_t)n_chosen;
    sh_step_clear(&f->step);
    f->step.id = ++s->n_step;
    fill_step(s, f, chosen, n, n_chosen);
    s->n_flight++;
    return f;
}

sh_flight *sh_scheduler_oldest(sh_scheduler *s)
{
    return s->n_flight ? &s->flight[s->first_flight] : NULL;
}

void sh_scheduler_retire(sh_scheduler *s)
{
    sh_flight *f = &s->flight[s->first_flight];
    for (uint32_t i = 0; i < f->step.n_seq; i++) f->seq[i]->n_in_flight--;
    s->first_flight = (s->first_flight + 1) % s->n_stage;
    s->n_flight--;
}

sh_err sh_sequence_push(sh_sequence *q, uint32_t token)
{
    SH_TRY(sh_grow(&q->tok, &q->cap, q->n_tok + 1, sizeof *q->tok, "a sequence"));
    q->tok[q->n_tok++] = token;
    return SH_OK;
}

void sh_scheduler_end(sh_scheduler *s, sh_sequence *q)
{
    if (q->slot >= 0) {
        s->active[q->slot] = NULL;
        push_op(s, SH_OP_FREE, q->slot, 0, 0);
        q->slot = -1;
    } else { /* it may still wait */
        for (sh_sequence **p = &s->waiting; *p; p = &(*p)->next) {
            if (*p != q) continue;
            *p = q->next;
            if (!*p) s->last_waiting = p;
            break;
        }
    }
    q->done = true;
    q->next = s->ended;
    s->ended = q;
}

void sh_scheduler_sweep(sh_scheduler *s)
{
    for (sh_sequence **p = &s->ended; *p;) {
        sh_sequence *q = *p;
        if (q->n_in_flight) {
            p = &q->next;
            continue;
        }
        *p = q->next;
        sh_sequence_free(q);
    }
}

bool sh_scheduler_is_idle(const sh_scheduler *s)
{
    if (s->waiting || s->n_flight) return false;
    for (int i = 0; i < s->n_slot; i++)
        if (s->active[i]) return false;
    return true;
}

bool sh_scheduler_reads_prompt(const sh_scheduler *s)
{
    for (int i = 0; i < s->n_slot; i++)
        if (s->active[i] && s->active[i]->n_tok == s->active[i]->n_prompt) return true;
    return s->waiting != NULL && s->n_flight == 0;
}
