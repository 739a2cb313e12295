/* The scheduler under an engine that only pretends: its KV cache is the list of token ids in each
 * slot, and the token that follows is a hash of them. So a step that comes twice, out of order, or
 * from the wrong slot gives a sequence another text than it has alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/scheduler.h"

enum { N_CTX = 1024, MAX_SLOT = 8 };

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

static uint64_t random_state;

static int random_in(int lo, int hi) /* [lo, hi] */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((random_state >> 33) % (uint64_t)(hi - lo + 1));
}

typedef struct cache {
    uint32_t tok[N_CTX];
    uint32_t n;
} cache;

typedef struct fake {
    sh_scheduler s;
    sh_step_limits limits;
    cache slot[MAX_SLOT];
    uint32_t answer[5]
                   [MAX_SLOT]; /* of each microbatch under way: the next token of its sequences */
    uint64_t last_id;
    int n_live, n_ended; /* sequences */
    int n_fork;
} fake;

/* The token that a model gives after n tokens. */
static uint32_t next_token(const uint32_t *tok, size_t n, int sample)
{
    uint32_t h = 2166136261u + (uint32_t)sample;
    for (size_t i = 0; i < n; i++) h = (h ^ tok[i]) * 16777619u;
    return h >> 8;
}

/* ---- what a node does with a step ---- */

static void apply_op(fake *f, const sh_step_op *op)
{
    cache *dst = &f->slot[op->slot];
    dst->n = 0;
    if (op->kind == SH_OP_FREE) return;
    assert_in_range(op->n_pos, 1, f->slot[op->src].n); /* only what was already sent */
    *dst = f->slot[op->src];
    dst->n = op->n_pos;
    f->n_fork++;
}

static void check_seq(fake *f, const sh_step_seq *e, const sh_sequence *q)
{
    cache *c = &f->slot[e->slot];
    assert_int_equal(e->pos, c->n); /* every position once, in order */
    assert_true(e->pos + e->n_tok <= q->n_tok && e->n_tok > 0);
    assert_int_equal(e->prompt, e->pos < q->n_prompt);
    assert_true(!e->prompt || e->pos + e->n_tok <= q->n_prompt);
    assert_true(e->prompt || (e->n_tok == 1 && q->n_in_flight == 1));
    assert_int_equal(e->logits, e->pos + e->n_tok == q->n_tok);
    memcpy(c->tok + c->n, q->tok + e->pos, e->n_tok * sizeof *c->tok);
    c->n += e->n_tok;
}

/* Follows the step as every node does, from its encoding. */
static void follow(fake *f, const sh_flight *flight)
{
    sh_buf b = {0};
    sh_step got = {0};
    uint32_t n_tok = 0, seen = 0;
    bool prompts = false;
    uint32_t *answer = f->answer[(f->s.first_flight + f->s.n_flight - 1) % f->s.n_stage];
    sh_step_encode(&flight->step, &b);
    assert_true(!b.bad && b.n <= sh_step_max_bytes(&f->limits));
    sh_cursor c = sh_cursor_of(b.p, b.n);
    OK(sh_step_decode(&got, &c, &f->limits));
    assert_int_equal(sh_cursor_left(&c), 0);
    assert_int_equal(got.id, f->last_id + 1);
    f->last_id = got.id;
    assert_in_range(got.n_seq, 1, f->s.n_slot);
    assert_in_range(got.n_op, 0, 4 * f->s.n_slot);
    for (uint32_t i = 0; i < got.n_op; i++) apply_op(f, &got.op[i]);
    for (uint32_t i = 0; i < got.n_seq; i++) {
        const sh_step_seq *e = &got.seq[i];
        assert_true(!(seen >> e->slot & 1)); /* once in a step */
        seen |= 1u << e->slot;
        assert_true(e->prompt || !prompts); /* sampled sequences come first */
        prompts |= e->prompt;
        assert_int_equal(flight->seq[i]->slot, e->slot);
        check_seq(f, e, flight->seq[i]);
        answer[i] = next_token(f->slot[e->slot].tok, f->slot[e->slot].n, flight->seq[i]->sample);
        n_tok += e->n_tok;
    }
    assert_int_equal(n_tok, got.n_tok);
    assert_in_range(n_tok, 1, f->limits.n_batch);
    sh_buf_free(&b);
    sh_step_free(&got);
}

/* ---- what the engine does ---- */

static void submit(fake *f, int n_sample, int n_prompt, int n_predict)
{
    sh_request *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->id = (uint64_t)random_state;
    r->n_predict = n_predict;
    for (int i = 0; i < n_sample; i++) {
        sh_sequence *q = calloc(1, sizeof *q);
        assert_non_null(q);
        q->req = r;
        r->n_ref++;
        q->sample = i;
        q->cap = N_CTX + 1;
        assert_non_null(q->tok = calloc(q->cap, sizeof *q->tok));
        for (int t = 0; t < n_prompt; t++)
            q->tok[t] = next_token(q->tok, (size_t)t, (int)r->id & 0xff);
        q->n_tok = q->n_prompt = (size_t)n_prompt;
        sh_scheduler_add(&f->s, q);
        f->n_live++;
    }
}

/* It has the text that it would have alone. */
static void end(fake *f, sh_sequence *q)
{
    for (size_t i = q->n_prompt; i < q->n_tok; i++)
        assert_int_equal(q->tok[i], next_token(q->tok, i, q->sample));
    sh_scheduler_end(&f->s, q);
    assert_true(q->done);
    f->n_live--;
    f->n_ended++;
}

static void sample(fake *f, sh_sequence *q, uint32_t token)
{
    if (q->req->n_predict == 0) {
        end(f, q);
        return;
    }
    OK(sh_sequence_push(q, token));
    if (q->n_tok - q->n_prompt == (size_t)q->req->n_predict || q->n_tok == N_CTX) end(f, q);
}

static void admit(fake *f)
{
    for (sh_sequence *q; (q = sh_scheduler_admit(&f->s));) {
        assert_non_null(q->req->logits);
        sample(f, q, next_token(q->tok, q->n_tok, q->sample));
        if (!q->done) sh_scheduler_start(&f->s, q);
    }
}

static bool launch(fake *f)
{
    sh_flight *flight = sh_scheduler_next(&f->s);
    if (!flight) return false;
    follow(f, flight);
    return true;
}

static bool land(fake *f)
{
    sh_flight *flight = sh_scheduler_oldest(&f->s);
    if (!flight) return false;
    for (uint32_t i = 0; i < flight->step.n_seq; i++) {
        sh_sequence *q = flight->seq[i];
        if (!flight->step.seq[i].logits || q->done) continue;
        if (q->n_tok == q->n_prompt && !q->req->logits)
            assert_non_null(q->req->logits = calloc(1, sizeof *q->req->logits));
        sample(f, q, f->answer[f->s.first_flight][i]);
    }
    sh_scheduler_retire(&f->s);
    return true;
}

/* Ends some sequence, wherever it is. */
static void cancel(fake *f)
{
    int i = random_in(0, f->s.n_slot - 1);
    if (f->s.active[i]) {
        end(f, f->s.active[i]);
    } else if (f->s.waiting) {
        sh_sequence *q = f->s.waiting;
        if (q->next && random_in(0, 1)) q = q->next;
        end(f, q);
    }
}

static int n_active(const fake *f)
{
    int n = 0;
    for (int i = 0; i < f->s.n_slot; i++) n += f->s.active[i] != NULL;
    return n;
}

static void open_fake(fake *f, int n_stage, int n_slot, int n_batch)
{
    *f = (fake){.limits = {(uint32_t)n_slot, N_CTX, (uint32_t)n_batch}};
    OK(sh_scheduler_open(&f->s, n_stage, n_slot, n_batch, N_CTX));
}

/* One piece of work. False: there is none, though there are sequences. */
static bool drive(fake *f)
{
    admit(f);
    for (int i = 0; i < f->s.n_slot;
         i++) /* a free slot is given away at once, unless siblings wait */
        if (!f->s.active[i] && f->s.waiting && f->s.n_op < 2 * (uint32_t)f->s.n_slot) {
            bool sibling = false;
            for (int j = 0; j < f->s.n_slot; j++)
                sibling |= f->s.active[j] && f->s.active[j]->req == f->s.waiting->req;
            assert_true(sibling);
        }
    if (random_in(0, 1)) return launch(f) || land(f);
    return land(f) || launch(f);
}

static void simulate(int round)
{
    fake f;
    int n_request = random_in(1, 12), n_work = 0;
    bool cancels = round % 3 == 0;
    open_fake(&f, random_in(1, 5), random_in(1, MAX_SLOT), random_in(1, 40));
    while (n_request > 0 || !sh_scheduler_is_idle(&f.s)) {
        while (n_request > 0 && (random_in(0, 9) == 0 || sh_scheduler_is_idle(&f.s))) {
            submit(&f, random_in(1, 4), random_in(1, 60), random_in(0, 3) ? random_in(0, 20) : 100);
            n_request--;
        }
        while (cancels && random_in(0, 9) == 0 && f.n_live > 0) cancel(&f);
        if (sh_scheduler_is_idle(&f.s)) continue;
        if (!drive(&f) && !sh_scheduler_is_idle(&f.s)) fail_msg("round %d: nothing goes on", round);
        if (random_in(0, 3) == 0) sh_scheduler_sweep(&f.s);
        assert_true(++n_work < 100000);
    }
    assert_int_equal(f.n_live, 0);
    sh_scheduler_sweep(&f.s);
    assert_null(f.s.ended);
    sh_scheduler_close(&f.s);
}

static void test_random(void **state)
{
    (void)state;
    random_state = 1;
    for (int round = 0; round < 600; round++) simulate(round);
}

/* Cancelling again and again before anything is sent must not block the way. */
static void test_cancel_storm(void **state)
{
    (void)state;
    random_state = 2;
    for (int n_slot = 1; n_slot <= 4; n_slot++) {
        fake f;
        open_fake(&f, 2, n_slot, 8);
        for (int i = 0; i < 20; i++) {
            for (int j = 0; j < n_slot; j++) submit(&f, 1, 5, 3);
            admit(&f);
            if (i == 0) (void)launch(&f);
            for (int j = 0; j < n_slot; j++)
                if (f.s.active[j]) end(&f, f.s.active[j]);
            while (f.s.waiting) end(&f, f.s.waiting);
        }
        submit(&f, 2, 5, 3);
        for (int i = 0; i < 100 && !sh_scheduler_is_idle(&f.s); i++)
            if (!drive(&f)) fail_msg("%d slots: nothing goes on", n_slot);
        assert_true(sh_scheduler_is_idle(&f.s));
        sh_scheduler_close(&f.s);
    }
}

/* With at least as many sequences as stages, every stage has a microbatch, and they are of about
 * equal size; with fewer, each sequence is one. */
static void check_stages(int n_stage, int n, int n_late)
{
    fake f;
    int busy = n < n_stage ? n : n_stage, most = (n + n_stage - 1) / n_stage;
    open_fake(&f, n_stage, MAX_SLOT, 40);
    for (int i = 0; i < n; i++) {
        if (i == n - n_late) { /* the others are on the ring already */
            admit(&f);
            while (launch(&f)) {
            }
        }
        submit(&f, 1, 3, N_CTX);
    }
    for (int i = 0; i < 60 * busy; i++) {
        admit(&f);
        while (launch(&f)) {
        }
        assert_int_equal(n_active(&f), n);
        for (int j = 0; j < f.s.n_flight && i >= (n_late ? 3 * n_stage : 0); j++) {
            assert_int_equal(f.s.n_flight, busy);
            assert_in_range(f.s.flight[(f.s.first_flight + j) % n_stage].step.n_seq, 1, most);
        }
        (void)land(&f);
    }
    sh_scheduler_close(&f.s);
}

static void test_stages_busy(void **state)
{
    (void)state;
    random_state = 3;
    for (int n_stage = 1; n_stage <= 5; n_stage++)
        for (int n = 1; n <= MAX_SLOT; n++)
            for (int n_late = 0; n_late < n; n_late++) check_stages(n_stage, n, n_late);
}

/* The same after sequences have come and gone. */
static void test_stages_busy_again(void **state)
{
    (void)state;
    random_state = 4;
    for (int round = 0; round < 100; round++) {
        fake f;
        int n_stage = random_in(2, 5), n = 0;
        open_fake(&f, n_stage, MAX_SLOT, 40);
        for (int i = 0; i < 30; i++) { /* short and long ones, one after the other */
            submit(&f, 1, random_in(1, 20), i < 22 ? random_in(1, 20) : N_CTX);
            for (int j = random_in(0, 10); j > 0; j--)
                if (!drive(&f)) break;
        }
        for (int i = 0; i < 2000 && (f.s.waiting || f.n_ended < 22); i++) (void)drive(&f);
        for (int i = 0; i < 40; i++) { /* in some turns they are even again */
            admit(&f);
            while (launch(&f)) {
            }
            n = n_active(&f);
            if (i >= 4 * n_stage && f.n_ended == 22) {
                assert_int_equal(f.s.n_flight, n < n_stage ? n : n_stage);
                for (int j = 0; j < f.s.n_flight; j++)
                    assert_in_range(f.s.flight[(f.s.first_flight + j) % n_stage].step.n_seq, 1,
                                    (n + n_stage - 1) / n_stage);
            }
            (void)land(&f);
        }
        sh_scheduler_close(&f.s);
    }
}

/* The samples of a request share its prompt: it is read once, and forked. */
static void test_prompt_once(void **state)
{
    (void)state;
    random_state = 5;
    for (int n_stage = 1; n_stage <= 3; n_stage++) {
        fake f;
        uint32_t n_prompt = 0;
        open_fake(&f, n_stage, MAX_SLOT, 16);
        submit(&f, 6, 50, 10);
        for (int i = 0; i < 1000 && !sh_scheduler_is_idle(&f.s); i++) {
            admit(&f);
            if (launch(&f)) {
                const sh_step *step =
                    &f.s.flight[(f.s.first_flight + f.s.n_flight - 1) % n_stage].step;
                for (uint32_t j = 0; j < step->n_seq; j++)
                    if (step->seq[j].prompt) n_prompt += step->seq[j].n_tok;
            } else {
                (void)land(&f);
            }
        }
        assert_true(sh_scheduler_is_idle(&f.s));
        assert_int_equal(n_prompt, 50);
        assert_int_equal(f.n_fork, 5);
        assert_int_equal(f.n_ended, 6);
        sh_scheduler_close(&f.s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),      cmocka_unit_test(test_cancel_storm),
        cmocka_unit_test(test_stages_busy), cmocka_unit_test(test_stages_busy_again),
        cmocka_unit_test(test_prompt_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
