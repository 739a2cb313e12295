/* The KV cache under random steps, against lists of numbers: what a slot holds is what was written
 * for its positions, however pages were shared, copied and given back; and no page is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "model/kv.h"

enum { N_LAYER = 2, N_HEAD = 3, HEAD_DIM = 4, MAX_SLOT = 6, MAX_CTX = 300 };

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

static uint64_t random_state;
static sh_kernels k;

static int random_in(int lo, int hi) /* [lo, hi] */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((random_state >> 33) % (uint64_t)(hi - lo + 1));
}

/* What the cache should hold: a number for each position. */
typedef struct model {
    int n_ctx, n_slot;
    int n[MAX_SLOT];
    float v[MAX_SLOT][MAX_CTX];
    float next; /* numbers are never used twice */
} model;

static float value(float v, int layer, int head, int d)
{
    return v * 32 + (float)(layer * N_HEAD * HEAD_DIM + head * HEAD_DIM + d);
}

static void write_one(sh_kv *kv, int slot, int pos, float v)
{
    float x[HEAD_DIM], y[HEAD_DIM];
    for (int l = 0; l < N_LAYER; l++)
        for (int h = 0; h < N_HEAD; h++) {
            for (int d = 0; d < HEAD_DIM; d++) x[d] = value(v, l, h, d), y[d] = -x[d];
            k.kv_put[SH_F32](sh_kv_k(kv, slot, pos / SH_PAGE, l, h),
                             sh_kv_v(kv, slot, pos / SH_PAGE, l, h), x, y, pos % SH_PAGE, HEAD_DIM);
        }
}

static void check_one(const sh_kv *kv, int slot, int pos, float v)
{
    int at = pos % SH_PAGE;
    for (int l = 0; l < N_LAYER; l++)
        for (int h = 0; h < N_HEAD; h++) {
            const float *kp = sh_kv_k(kv, slot, pos / SH_PAGE, l, h),
                        *vp = sh_kv_v(kv, slot, pos / SH_PAGE, l, h);
            for (int d = 0; d < HEAD_DIM; d++) {
                assert_true(kp[(at / 16 * HEAD_DIM + d) * 16 + at % 16] == value(v, l, h, d));
                assert_true(vp[at * HEAD_DIM + d] == -value(v, l, h, d));
            }
        }
}

/* All contents, and that every page is counted as often as it is named, or else free. */
static void check(const sh_kv *kv, const model *m)
{
    int named[MAX_SLOT * MAX_CTX] = {0}, n_used = 0;
    for (int s = 0; s < m->n_slot; s++) {
        assert_int_equal(kv->slot[s].n_pos, m->n[s]);
        for (int p = 0; p < m->n[s]; p++) check_one(kv, s, p, m->v[s][p]);
        for (int p = 0; p < (m->n[s] + SH_PAGE - 1) / SH_PAGE; p++) {
            assert_in_range(kv->slot[s].page[p], 0, kv->n_page - 1);
            named[kv->slot[s].page[p]]++;
        }
    }
    for (int p = 0; p < kv->n_page; p++) {
        assert_int_equal(kv->n_ref[p], named[p]);
        n_used += named[p] > 0;
    }
    assert_int_equal(kv->n_free, kv->n_page - n_used);
    assert_int_equal(sh_kv_used_bytes(kv), (size_t)n_used * kv->page_bytes);
    for (int i = 0; i < kv->n_free; i++) assert_int_equal(named[kv->free_page[i]]++, 0);
}

static void open_kv(sh_kv *kv, model *m, int n_ctx, int n_slot)
{
    sh_plan p = {.layer = {3, 3 + N_LAYER}};
    sh_config c = {.head_dim = HEAD_DIM};
    p.local[SH_DIM_KV] = (sh_range){0, N_HEAD * HEAD_DIM};
    *m = (model){.n_ctx = n_ctx, .n_slot = n_slot, .next = 1};
    OK(sh_kv_open(kv, &p, &c, SH_F32, n_ctx, n_slot));
}

/* Random operations, then tokens for some slots, each once: where it ended, or further back. */
static void random_step(sh_step *step, model *m)
{
    sh_step_clear(step);
    for (int i = random_in(0, 3); i > 0; i--) {
        int slot = random_in(0, m->n_slot - 1), src = random_in(0, m->n_slot - 1);
        if (src == slot || m->n[src] == 0 || random_in(0, 3) == 0) {
            OK(sh_step_add_op(step, (sh_step_op){SH_OP_FREE, (uint32_t)slot, 0, 0}));
            m->n[slot] = 0;
        } else {
            int n = random_in(0, 2) ? m->n[src] : random_in(0, m->n[src]);
            OK(sh_step_add_op(
                step, (sh_step_op){SH_OP_FORK, (uint32_t)slot, (uint32_t)src, (uint32_t)n}));
            m->n[slot] = n;
            memcpy(m->v[slot], m->v[src], sizeof m->v[slot]);
        }
    }
    for (int s = 0; s < m->n_slot; s++) {
        if (random_in(0, 1)) continue;
        int pos = random_in(0, 9) ? m->n[s] : random_in(0, m->n[s]);
        int n_tok = random_in(0, 2) ? random_in(1, 3) : random_in(1, 100);
        if (pos + n_tok > m->n_ctx) n_tok = m->n_ctx - pos;
        if (n_tok == 0) continue;
        OK(sh_step_add_seq(
            step, (sh_step_seq){(uint32_t)s, (uint32_t)pos, (uint32_t)n_tok, true, false}));
        for (int i = 0; i < n_tok; i++) m->v[s][pos + i] = m->next++;
        m->n[s] = pos + n_tok;
    }
}

static void test_random(void **state)
{
    (void)state;
    random_state = 1;
    for (int round = 0; round < 40; round++) {
        sh_kv kv;
        model m;
        sh_step step = {0};
        open_kv(&kv, &m, random_in(0, 1) ? random_in(1, MAX_CTX) : SH_PAGE * random_in(1, 4),
                random_in(1, MAX_SLOT));
        for (int i = 0; i < 60; i++) {
            random_step(&step, &m);
            OK(sh_kv_apply(&kv, &step));
            for (uint32_t j = 0; j < step.n_seq; j++)
                for (uint32_t n = 0; n < step.seq[j].n_tok; n++) {
                    int slot = (int)step.seq[j].slot, pos = (int)(step.seq[j].pos + n);
                    write_one(&kv, slot, pos, m.v[slot][pos]);
                }
            check(&kv, &m);
        }
        sh_step_clear(&step);
        for (int s = 0; s < m.n_slot; s++) {
            OK(sh_step_add_op(&step, (sh_step_op){SH_OP_FREE, (uint32_t)s, 0, 0}));
            m.n[s] = 0;
        }
        OK(sh_kv_apply(&kv, &step));
        assert_int_equal(kv.n_free, kv.n_page);
        check(&kv, &m);
        sh_step_free(&step);
        sh_kv_close(&kv);
    }
}

/* Every slot a copy of a full one, then all write their last page at once: the pages suffice. */
static void test_all_copies(void **state)
{
    (void)state;
    for (int n_ctx = 1; n_ctx <= 2 * SH_PAGE + 1; n_ctx += 8) {
        sh_kv kv;
        model m;
        sh_step step = {0};
        open_kv(&kv, &m, n_ctx, MAX_SLOT);
        OK(sh_step_add_seq(&step, (sh_step_seq){0, 0, (uint32_t)n_ctx, true, true}));
        OK(sh_kv_apply(&kv, &step));
        for (int p = 0; p < n_ctx; p++) write_one(&kv, 0, p, (float)p);
        sh_step_clear(&step);
        for (uint32_t s = 1; s < MAX_SLOT; s++)
            OK(sh_step_add_op(&step, (sh_step_op){SH_OP_FORK, s, 0, (uint32_t)n_ctx}));
        for (uint32_t s = 0; s < MAX_SLOT; s++)
            OK(sh_step_add_seq(&step, (sh_step_seq){s, (uint32_t)n_ctx - 1, 1, false, true}));
        OK(sh_kv_apply(&kv, &step));
        for (int s = 0; s < MAX_SLOT; s++) write_one(&kv, s, n_ctx - 1, (float)(1000 + s));
        for (int s = 0; s < MAX_SLOT; s++) {
            m.n[s] = n_ctx;
            for (int p = 0; p < n_ctx; p++) m.v[s][p] = (float)(p < n_ctx - 1 ? p : 1000 + s);
        }
        check(&kv, &m);
        sh_step_free(&step);
        sh_kv_close(&kv);
    }
}

/* Steps that name what is not there are refused. */
static void test_bad_steps(void **state)
{
    const struct {
        sh_step_op op;
        sh_step_seq seq;
    } bad[] = {
        {{SH_OP_FREE, 2, 0, 0}, {0, 10, 1, true, false}},
        {{SH_OP_FORK, 2, 0, 5}, {0, 10, 1, true, false}},
        {{SH_OP_FORK, 1, 2, 5}, {0, 10, 1, true, false}},
        {{SH_OP_FORK, 1, 0, 11}, {0, 10, 1, true, false}},
        {{SH_OP_FORK, 0, 0, 5}, {1, 0, 1, true, false}},
        {{SH_OP_FREE, 1, 0, 0}, {2, 0, 1, true, false}},
        {{SH_OP_FREE, 1, 0, 0}, {0, 11, 1, true, false}},
        {{SH_OP_FREE, 1, 0, 0}, {0, 10, 91, true, false}},
        {{SH_OP_FREE, 0, 0, 0}, {0, 10, 1, true, false}},
        {{SH_OP_FREE, 1, 0, 0}, {0, 5, UINT32_MAX, true, false}},
        {{SH_OP_FREE, 1, 0, 0}, {0, UINT32_MAX, 2, true, false}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sh_kv kv;
        model m;
        sh_step step = {0};
        open_kv(&kv, &m, 100, 2);
        OK(sh_step_add_seq(&step, (sh_step_seq){0, 0, 10, true, true}));
        OK(sh_kv_apply(&kv, &step));
        sh_step_clear(&step);
        OK(sh_step_add_op(&step, bad[i].op));
        OK(sh_step_add_seq(&step, bad[i].seq));
        assert_int_equal(sh_kv_apply(&kv, &step), SH_EPEER);
        sh_step_free(&step);
        sh_kv_close(&kv);
    }
}

static void test_too_large(void **state)
{
    sh_plan p = {.layer = {0, 1000}};
    sh_config c = {.head_dim = 4096};
    sh_kv kv;
    (void)state;
    p.local[SH_DIM_KV] = (sh_range){0, 4096 * 4096};
    assert_int_equal(sh_kv_open(&kv, &p, &c, SH_F32, 1 << 28, 256), SH_EARG);
    sh_kv_close(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_all_copies),
        cmocka_unit_test(test_bad_steps),
        cmocka_unit_test(test_too_large),
    };
    if (sh_kernels_init(&k, "c") != SH_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
