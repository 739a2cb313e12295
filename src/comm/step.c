/* Steps: built by the scheduler, and taken apart again with every number checked against the
 * limits, so that a node can follow a step it received without asking further. */
#include "comm/step.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/mem.h"

enum {
    HEAD_BYTES = 16,
    OP_BYTES = 13,
    SEQ_BYTES = 13,
    FLAG_PROMPT = 1,
    FLAG_LOGITS = 2,
    OPS_PER_SLOT = 4
};

void sh_step_encode(const sh_step *s, sh_buf *b)
{
    sh_put_u64(b, s->id);
    sh_put_u32(b, s->n_op);
    sh_put_u32(b, s->n_seq);
    for (uint32_t i = 0; i < s->n_op; i++) {
        sh_put_u8(b, (uint8_t)s->op[i].kind);
        sh_put_u32(b, s->op[i].slot);
        sh_put_u32(b, s->op[i].src);
        sh_put_u32(b, s->op[i].n_pos);
    }
    for (uint32_t i = 0; i < s->n_seq; i++) {
        const sh_step_seq *q = &s->seq[i];
        sh_put_u32(b, q->slot);
        sh_put_u32(b, q->pos);
        sh_put_u32(b, q->n_tok);
        sh_put_u8(b, (uint8_t)((q->prompt ? FLAG_PROMPT : 0) | (q->logits ? FLAG_LOGITS : 0)));
    }
}

size_t sh_step_max_bytes(const sh_step_limits *limits)
{
    return HEAD_BYTES + (size_t)limits->n_slot * OPS_PER_SLOT * OP_BYTES +
           (size_t)limits->n_batch * SEQ_BYTES; /* a sequence has at least one token */
}

static sh_err get_op(sh_step *s, sh_cursor *c, const sh_step_limits *limits)
{
    uint8_t kind = sh_get_u8(c);
    sh_step_op op = {.kind = (sh_op_kind)kind};
    op.slot = sh_get_u32(c);
    op.src = sh_get_u32(c);
    op.n_pos = sh_get_u32(c);
    if (kind != SH_OP_FREE && kind != SH_OP_FORK)
        return sh_fail(SH_EPEER, "step %" PRIu64 " has an operation of unknown kind %u", s->id,
                       kind);
    if (op.slot >= limits->n_slot || op.src >= limits->n_slot || op.n_pos > limits->n_ctx)
        return sh_fail(SH_EPEER, "step %" PRIu64 " has an operation out of range", s->id);
    if (op.kind == SH_OP_FORK && op.slot == op.src)
        return sh_fail(SH_EPEER, "step %" PRIu64 " forks slot %" PRIu32 " from itself", s->id,
                       op.slot);
    return sh_step_add_op(s, op);
}

static sh_err get_seq(sh_step *s, sh_cursor *c, const sh_step_limits *limits)
{
    sh_step_seq q = {.slot = sh_get_u32(c)};
    q.pos = sh_get_u32(c);
    q.n_tok = sh_get_u32(c);
    uint8_t flags = sh_get_u8(c);
    if (flags & ~(FLAG_PROMPT | FLAG_LOGITS))
        return sh_fail(SH_EPEER, "step %" PRIu64 " has a sequence with unknown flags", s->id);
    q.prompt = flags & FLAG_PROMPT;
    q.logits = flags & FLAG_LOGITS;
    if (q.slot >= limits->n_slot || q.pos > limits->n_ctx || q.n_tok > limits->n_ctx - q.pos)
        return sh_fail(SH_EPEER, "step %" PRIu64 " has a sequence out of range", s->id);
    if (q.n_tok == 0 || q.n_tok > limits->n_batch - s->n_tok)
        return sh_fail(SH_EPEER,
                       "step %" PRIu64 " has an empty sequence or more than %" PRIu32 " tokens",
                       s->id, limits->n_batch);
    return sh_step_add_seq(s, q);
}

static sh_err decode(sh_step *s, sh_cursor *c, const sh_step_limits *limits)
{
    s->id = sh_get_u64(c);
    uint32_t n_op = sh_get_u32(c), n_seq = sh_get_u32(c);
    uint64_t need = (uint64_t)n_op * OP_BYTES + (uint64_t)n_seq * SEQ_BYTES;
    if (c->bad || need > sh_cursor_left(c)) /* so memory is bounded by the bytes that came */
        return sh_fail(SH_EPEER, "the description of a step is cut off");
    if (n_op > (uint64_t)limits->n_slot * OPS_PER_SLOT)
        return sh_fail(SH_EPEER, "step %" PRIu64 " has too many operations, %" PRIu32, s->id, n_op);
    for (uint32_t i = 0; i < n_op; i++) SH_TRY(get_op(s, c, limits));
    for (uint32_t i = 0; i < n_seq; i++) SH_TRY(get_seq(s, c, limits));
    return SH_OK;
}

sh_err sh_step_decode(sh_step *s, sh_cursor *c, const sh_step_limits *limits)
{
    sh_step_clear(s);
    sh_err err = decode(s, c, limits);
    if (err) sh_step_clear(s);
    return err;
}

sh_err sh_step_add_op(sh_step *s, sh_step_op op)
{
    SH_TRY(sh_grow(&s->op, &s->cap_op, (size_t)s->n_op + 1, sizeof *s->op, "a step's operations"));
    s->op[s->n_op++] = op;
    return SH_OK;
}

sh_err sh_step_add_seq(sh_step *s, sh_step_seq seq)
{
    if (seq.n_tok == 0 || seq.n_tok > UINT32_MAX - s->n_tok)
        return sh_fail(SH_EARG, "step %" PRIu64 ": a run of %" PRIu32 " tokens does not fit", s->id,
                       seq.n_tok);
    SH_TRY(
        sh_grow(&s->seq, &s->cap_seq, (size_t)s->n_seq + 1, sizeof *s->seq, "a step's sequences"));
    s->seq[s->n_seq++] = seq;
    s->n_tok += seq.n_tok;
    return SH_OK;
}

void sh_step_clear(sh_step *s)
{
    s->id = 0;
    s->n_op = s->n_seq = s->n_tok = 0;
}

void sh_step_free(sh_step *s)
{
    free(s->op);
    free(s->seq);
    *s = (sh_step){0};
}
