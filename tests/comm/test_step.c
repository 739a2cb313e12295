/* Steps and frames as bytes: what is encoded comes back the same; what is cut, changed or beyond
 * the limits is refused, or is another step within the limits, and never more. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "comm/step.h"
#include "comm/wire.h"

static const sh_step_limits limits = {.n_slot = 9, .n_ctx = 300, .n_batch = 64};

static uint32_t rnd(uint64_t *s, uint32_t n)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33) % n;
}

static void random_step(sh_step *s, uint64_t *seed)
{
    sh_step_clear(s);
    s->id = (uint64_t)rnd(seed, 1u << 31) << 33 | rnd(seed, 1u << 31);
    for (uint32_t n = rnd(seed, 12); n > 0; n--) {
        uint32_t slot = rnd(seed, limits.n_slot);
        sh_step_op op = {rnd(seed, 2) ? SH_OP_FREE : SH_OP_FORK, slot, (slot + 4) % limits.n_slot,
                         rnd(seed, limits.n_ctx + 1)};
        assert_int_equal(sh_step_add_op(s, op), SH_OK);
    }
    while (s->n_tok < limits.n_batch && rnd(seed, 8)) {
        sh_step_seq q = {
            .slot = rnd(seed, limits.n_slot), .prompt = rnd(seed, 2), .logits = rnd(seed, 2)};
        q.n_tok = 1 + rnd(seed, limits.n_batch - s->n_tok);
        q.pos = rnd(seed, limits.n_ctx - q.n_tok + 1);
        assert_int_equal(sh_step_add_seq(s, q), SH_OK);
    }
}

static void assert_same(const sh_step *a, const sh_step *b)
{
    assert_int_equal(a->id, b->id);
    assert_int_equal(a->n_op, b->n_op);
    assert_int_equal(a->n_seq, b->n_seq);
    assert_int_equal(a->n_tok, b->n_tok);
    for (uint32_t i = 0; i < a->n_op; i++) {
        assert_int_equal(a->op[i].kind, b->op[i].kind);
        assert_int_equal(a->op[i].slot, b->op[i].slot);
        assert_int_equal(a->op[i].src, b->op[i].src);
        assert_int_equal(a->op[i].n_pos, b->op[i].n_pos);
    }
    for (uint32_t i = 0; i < a->n_seq; i++) {
        assert_int_equal(a->seq[i].slot, b->seq[i].slot);
        assert_int_equal(a->seq[i].pos, b->seq[i].pos);
        assert_int_equal(a->seq[i].n_tok, b->seq[i].n_tok);
        assert_int_equal(a->seq[i].prompt, b->seq[i].prompt);
        assert_int_equal(a->seq[i].logits, b->seq[i].logits);
    }
}

/* What a node may rely on for any step that was accepted. */
static void assert_within(const sh_step *s)
{
    uint64_t n_tok = 0;
    for (uint32_t i = 0; i < s->n_op; i++) {
        const sh_step_op *o = &s->op[i];
        assert_true(o->kind == SH_OP_FREE || (o->kind == SH_OP_FORK && o->src != o->slot));
        assert_true(o->slot < limits.n_slot && o->src < limits.n_slot && o->n_pos <= limits.n_ctx);
    }
    for (uint32_t i = 0; i < s->n_seq; i++) {
        const sh_step_seq *q = &s->seq[i];
        assert_true(q->slot < limits.n_slot && q->n_tok > 0);
        assert_true((uint64_t)q->pos + q->n_tok <= limits.n_ctx);
        n_tok += q->n_tok;
    }
    assert_int_equal(s->n_tok, n_tok);
    assert_true(n_tok <= limits.n_batch);
}

/* A block that ends where the bytes end, so that a sanitizer sees a read past them. */
static sh_err decode_exactly(sh_step *out, const uint8_t *p, size_t n, size_t *left)
{
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, p, n);
    sh_cursor c = sh_cursor_of(copy, n);
    sh_err err = sh_step_decode(out, &c, &limits);
    *left = sh_cursor_left(&c);
    free(copy);
    return err;
}

static void test_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 1;
    sh_step a = {0}, b = {0};
    sh_buf buf = {0};
    size_t left;
    for (int i = 0; i < 3000; i++) {
        random_step(&a, &seed);
        buf.n = 0;
        sh_step_encode(&a, &buf);
        assert_true(buf.n <= sh_step_max_bytes(&limits));
        assert_int_equal(decode_exactly(&b, buf.p, buf.n, &left), SH_OK);
        assert_int_equal(left, 0);
        assert_same(&a, &b);
        assert_within(&b);
        sh_put_u32(&buf, 0x12345678); /* what follows is left for the caller */
        assert_int_equal(decode_exactly(&b, buf.p, buf.n, &left), SH_OK);
        assert_int_equal(left, 4);
    }
    sh_step_free(&a);
    sh_step_free(&b);
    sh_buf_free(&buf);
}

static void test_cut_and_changed(void **state)
{
    (void)state;
    uint64_t seed = 2;
    sh_step a = {0}, b = {0};
    sh_buf buf = {0};
    size_t left;
    int n_refused = 0;
    for (int i = 0; i < 300; i++) {
        random_step(&a, &seed);
        buf.n = 0;
        sh_step_encode(&a, &buf);
        for (size_t n = 0; n < buf.n; n++) {
            assert_int_equal(decode_exactly(&b, buf.p, n, &left), SH_EPEER);
            assert_int_equal(b.n_op + b.n_seq + b.n_tok, 0);
        }
        for (int k = 0; k < 100; k++) {
            size_t at = rnd(&seed, (uint32_t)buf.n);
            uint8_t was = buf.p[at];
            buf.p[at] = (uint8_t)(rnd(&seed, 3) ? rnd(&seed, 256) : 0xff);
            if (decode_exactly(&b, buf.p, buf.n, &left) == SH_OK)
                assert_within(&b);
            else
                assert_true(b.n_op + b.n_seq + b.n_tok == 0 && ++n_refused);
            buf.p[at] = was;
        }
    }
    assert_true(n_refused > 10000);
    sh_step_free(&a);
    sh_step_free(&b);
    sh_buf_free(&buf);
}

static sh_err try_step(const sh_step_op *op, const sh_step_seq *seq)
{
    sh_step a = {.id = 7}, b = {0};
    sh_buf buf = {0};
    size_t left;
    if (op) assert_int_equal(sh_step_add_op(&a, *op), SH_OK);
    if (seq) assert_int_equal(sh_step_add_seq(&a, *seq), SH_OK);
    sh_step_encode(&a, &buf);
    sh_err err = decode_exactly(&b, buf.p, buf.n, &left);
    sh_step_free(&a);
    sh_step_free(&b);
    sh_buf_free(&buf);
    return err;
}

static void test_limits(void **state)
{
    (void)state;
    const struct {
        sh_step_op op;
        sh_err err;
    } op[] = {{{SH_OP_FREE, 8, 0, 0}, SH_OK},       {{SH_OP_FREE, 9, 0, 0}, SH_EPEER},
              {{SH_OP_FORK, 8, 7, 300}, SH_OK},     {{SH_OP_FORK, 8, 9, 0}, SH_EPEER},
              {{SH_OP_FORK, 8, 7, 301}, SH_EPEER},  {{SH_OP_FORK, 8, 8, 1}, SH_EPEER},
              {{(sh_op_kind)3, 1, 2, 1}, SH_EPEER}, {{(sh_op_kind)0, 1, 2, 1}, SH_EPEER}};
    const struct {
        sh_step_seq seq;
        sh_err err;
    } seq[] = {
        {{8, 0, 64, true, true}, SH_OK},           {{9, 0, 1, true, true}, SH_EPEER},
        {{0, 0, 65, true, true}, SH_EPEER},        {{0, 236, 64, true, true}, SH_OK},
        {{0, 237, 64, true, true}, SH_EPEER},      {{0, 299, 1, true, true}, SH_OK},
        {{0, 300, 1, true, true}, SH_EPEER},       {{0, UINT32_MAX, 2, true, true}, SH_EPEER},
        {{0, 0, UINT32_MAX, true, true}, SH_EPEER}};
    sh_step s = {0};
    for (size_t i = 0; i < sizeof op / sizeof op[0]; i++)
        assert_int_equal(try_step(&op[i].op, NULL), op[i].err);
    for (size_t i = 0; i < sizeof seq / sizeof seq[0]; i++)
        assert_int_equal(try_step(NULL, &seq[i].seq), seq[i].err);
    assert_int_equal(sh_step_add_seq(&s, (sh_step_seq){.n_tok = 0}), SH_EARG);
    assert_int_equal(sh_step_add_seq(&s, (sh_step_seq){.n_tok = UINT32_MAX}), SH_OK);
    assert_int_equal(sh_step_add_seq(&s, (sh_step_seq){.n_tok = 1}), SH_EARG);
    sh_step_free(&s);

    sh_step a = {0}, b = {0}; /* counts that promise more than there are bytes, or slots */
    sh_buf buf = {0};
    size_t left;
    for (int i = 0; i < 4 * 9 + 1; i++)
        assert_int_equal(sh_step_add_op(&a, (sh_step_op){SH_OP_FREE, 1, 0, 0}), SH_OK);
    sh_step_encode(&a, &buf);
    assert_int_equal(decode_exactly(&b, buf.p, buf.n, &left), SH_EPEER);
    memset(buf.p + 8, 0xff, 8);
    assert_int_equal(decode_exactly(&b, buf.p, buf.n, &left), SH_EPEER);
    assert_true(b.cap_op <= 64 && b.cap_seq <= 64);
    sh_step_free(&a);
    sh_step_free(&b);
    sh_buf_free(&buf);
}

/* ---- frames ---- */

static sh_frame sample(sh_frame_type type)
{
    sh_frame f = {.type = type, .protocol = SH_PROTOCOL};
    static const sh_load l = {.stage = 2,
                              .n_stage = 3,
                              .layer_lo = 4,
                              .layer_hi = 9,
                              .n_embd = 64,
                              .n_ctx = 128,
                              .n_slot = 5,
                              .n_batch = 32,
                              .arith = 1,
                              .kv = 2};
    static const sh_welcome w = {
        .n_layer = 22, .n_embd = 64, .has_amx = true, .version = "0.1.0", .n_rank = 2};
    if (type == SH_FRAME_HELLO) memset(f.session, 0xa5, sizeof f.session);
    if (type == SH_FRAME_WELCOME) {
        f.welcome = w;
        memset(f.welcome.model_hash, 0x5a, sizeof f.welcome.model_hash);
    }
    if (type == SH_FRAME_LOAD) {
        f.load = l;
        memset(f.load.model_hash, 0x77, sizeof f.load.model_hash);
    }
    if (type == SH_FRAME_LOAD || type == SH_FRAME_READY || type == SH_FRAME_START) f.port = 50123;
    if (type == SH_FRAME_START) strcpy(f.host, "pi3.local");
    if (type == SH_FRAME_START || type == SH_FRAME_REFUSE || type == SH_FRAME_FAIL)
        strcpy(f.text, "a sentence");
    f.hearsay = type == SH_FRAME_FAIL;
    return f;
}

static void test_frames(void **state)
{
    (void)state;
    static const size_t n_bytes[] = {
        [SH_FRAME_HELLO] = 24,  [SH_FRAME_WELCOME] = 44, [SH_FRAME_REFUSE] = 20,
        [SH_FRAME_LOAD] = 66,   [SH_FRAME_READY] = 10,   [SH_FRAME_START] = 33,
        [SH_FRAME_STARTED] = 8, [SH_FRAME_END] = 8,      [SH_FRAME_FAIL] = 21};
    for (sh_frame_type t = SH_FRAME_HELLO; t <= SH_FRAME_FAIL; t++) {
        sh_frame f = sample(t), g;
        sh_buf b = {0};
        sh_wire_encode(&f, &b);
        assert_int_equal(b.n, n_bytes[t]); /* as docs/protocol.md says */
        assert_int_equal(sh_wire_decode(&g, b.p, b.n), SH_OK);
        assert_memory_equal(&f, &g, sizeof f); /* both were zeroed */
        for (size_t n = 0; n < b.n; n++) {
            uint8_t *cut = malloc(n ? n : 1);
            memcpy(cut, b.p, n);
            assert_int_equal(sh_wire_decode(&g, cut, n), SH_EPEER);
            free(cut);
        }
        sh_put_u8(&b, 0); /* a byte too many */
        assert_int_equal(sh_wire_decode(&g, b.p, b.n), SH_EPEER);
        b.p[4]++; /* another version: only what must be understood is */
        bool any = t == SH_FRAME_HELLO || t == SH_FRAME_REFUSE;
        assert_int_equal(sh_wire_decode(&g, b.p, b.n), any ? SH_OK : SH_EPEER);
        b.p[4]--;
        b.p[0]++; /* another magic */
        assert_int_equal(sh_wire_decode(&g, b.p, b.n - 1), SH_EPEER);
        sh_buf_free(&b);
    }
}

static void test_sentences(void **state)
{
    (void)state;
    sh_frame f = {.type = SH_FRAME_FAIL, .protocol = SH_PROTOCOL}, g;
    sh_buf b = {0};
    memset(f.text, 'x', sizeof f.text - 1);
    f.text[3] = '\n';
    f.text[4] = '\033';
    sh_wire_encode(&f, &b);
    assert_int_equal(sh_wire_decode(&g, b.p, b.n), SH_OK);
    assert_int_equal(strlen(g.text), 1023);
    assert_memory_equal(g.text, "xxx  xxx", 8);
    b.p[15] = '\033'; /* what we would not send, we do not take */
    assert_int_equal(sh_wire_decode(&g, b.p, b.n), SH_EPEER);
    sh_buf_free(&b);
}

static void test_loads(void **state)
{
    (void)state;
    sh_load good = sample(SH_FRAME_LOAD).load, l = good;
    assert_int_equal(sh_wire_check_load(&l), SH_OK);
#define BAD(change)                                                                                \
    l = good;                                                                                      \
    l.change;                                                                                      \
    assert_int_equal(sh_wire_check_load(&l), SH_EARG)
    BAD(stage = 3);
    BAD(n_stage = SH_MAX_STAGE + 1);
    BAD(layer_lo = 10);
    BAD(n_embd = 0);
    BAD(n_ctx = 0);
    BAD(n_slot = 0);
    BAD(n_batch = 0);
    BAD(n_batch = UINT32_MAX); /* more than a message can hold */
    BAD(n_slot = UINT32_MAX);
#undef BAD
}

static void test_data_frames(void **state)
{
    (void)state;
    uint64_t seed = 3;
    sh_step a = {0}, b = {0};
    uint8_t session[16] = "0123456789abcde", other[16] = "0123456789abcdX";
    for (int i = 0; i < 200; i++) {
        sh_buf buf = {0};
        random_step(&a, &seed);
        sh_wire_put_step(&buf, session, &a);
        assert_true(sh_wire_is_step_of(buf.p, buf.n, session));
        assert_false(sh_wire_is_step_of(buf.p, buf.n, other));
        assert_false(sh_wire_is_step_of(buf.p, SH_STEP_HEAD_BYTES - 1, session));
        assert_int_equal(sh_wire_get_step(&b, buf.p, buf.n, &limits), SH_OK);
        assert_same(&a, &b);
        assert_int_equal(sh_wire_get_step(&b, buf.p, buf.n - 1, &limits), SH_EPEER);
        sh_put_u8(&buf, 1);
        assert_int_equal(sh_wire_get_step(&b, buf.p, buf.n, &limits), SH_EPEER);
        assert_int_equal(b.n_tok + b.n_seq + b.n_op, 0);
        sh_buf_free(&buf);
    }
    const float x[3] = {1.0f, -2.5f, 0.0f};
    const uint8_t bytes[12] = {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0, 0, 0, 0};
    uint8_t out[12];
    float y[3];
    sh_wire_put_floats(out, x, 3);
    assert_memory_equal(out, bytes, sizeof bytes);
    sh_wire_get_floats(y, bytes, 3);
    assert_memory_equal(x, y, sizeof x);
    sh_step_free(&a);
    sh_step_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_cut_and_changed),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_frames),
        cmocka_unit_test(test_sentences),   cmocka_unit_test(test_loads),
        cmocka_unit_test(test_data_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
