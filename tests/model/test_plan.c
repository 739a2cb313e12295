/* Who holds what: for random models and every number of ranks and stages the pieces make up the
 * whole. */
#define _GNU_SOURCE
#include "tiny.h"

#include "model/plan.h"

static uint64_t random_state;

static int random_in(int lo, int hi) /* [lo, hi] */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((random_state >> 33) % (uint64_t)(hi - lo + 1));
}
#define PICK(...)                                                                                  \
    ((const int[]){__VA_ARGS__}[random_in(0, sizeof((int[]){__VA_ARGS__}) / sizeof(int) - 1)])

static tiny random_tiny(void)
{
    int n_family = 0;
    while (sh_families[n_family]) n_family++;
    tiny t = {.family = sh_families[random_in(0, n_family - 1)],
              .n_layer = random_in(1, 12),
              .n_embd = 32 * random_in(1, 3),
              .n_kv_head = random_in(1, 5),
              .head_dim = PICK(2, 8, 16, 20, 32, 48, 64, 80),
              .n_vocab = random_in(1, 300),
              .dtype = (sh_dtype)random_in(0, SH_N_DTYPE - 1)};
    t.n_head = t.n_kv_head * random_in(1, 5);
    t.n_ff = random_in(0, 1) ? 32 * random_in(1, 30) : random_in(1, 500);
    return t;
}

/* Slices begin at multiples of `unit`, and differ by one of them at most, but for what is left
 * over. */
static void check_bounds(const int *bound, int n, int unit)
{
    int most = 0, least = n;
    assert_int_equal(bound[0], 0);
    assert_int_equal(bound[SH_N_SLICE], n);
    for (int s = 0; s < SH_N_SLICE; s++) {
        int size = bound[s + 1] - bound[s];
        assert_int_equal(bound[s] % unit, 0);
        assert_true(size >= 0);
        if (s == SH_N_SLICE - 1) size = size / unit * unit;
        if (size > most) most = size;
        if (size < least) least = size;
    }
    assert_true(most - least <= unit);
}

static void check_kv(const sh_plan *p, const sh_config *c)
{
    sh_range q = p->local[SH_DIM_Q], kv = p->local[SH_DIM_KV];
    int group = c->n_head / c->n_kv_head;
    assert_int_equal(kv.lo % c->head_dim, 0);
    assert_int_equal(kv.hi % c->head_dim, 0);
    if (q.lo == q.hi) {
        assert_int_equal(kv.lo, kv.hi);
        return;
    }
    /* from the one that the first head looks at to the one that the last does */
    assert_int_equal(kv.lo / c->head_dim, q.lo / c->head_dim / group);
    assert_int_equal(kv.hi / c->head_dim - 1, (q.hi / c->head_dim - 1) / group);
}

static void check_ranks(const sh_config *c, const sh_model_file *m, int n_rank)
{
    int at[SH_N_DIM] = {0}, slice = 0;
    sh_plan one, p;
    sh_plan_make(&one, c, m, 0, 1, (sh_range){0, c->n_layer}, 0, 1);
    for (int r = 0; r < n_rank; r++) {
        static const sh_dim shared[] = {SH_DIM_Q, SH_DIM_FF, SH_DIM_VOCAB};
        sh_plan_make(&p, c, m, 0, 1, (sh_range){0, c->n_layer}, r, n_rank);
        assert_memory_equal(p.q_bound, one.q_bound,
                            sizeof p.q_bound); /* the same for every count */
        assert_memory_equal(p.ff_bound, one.ff_bound, sizeof p.ff_bound);
        for (int i = 0; i < 3; i++) {
            sh_range l = p.local[shared[i]];
            assert_int_equal(l.lo, at[shared[i]]);
            assert_true(l.hi >= l.lo);
            at[shared[i]] = l.hi;
        }
        assert_int_equal(p.local[SH_DIM_EMBD].lo, 0);
        assert_int_equal(p.local[SH_DIM_EMBD].hi, c->dim[SH_DIM_EMBD]);
        assert_int_equal(p.local[SH_DIM_VOCAB].lo % SH_LANES && r > 0 &&
                             p.local[SH_DIM_VOCAB].lo < c->dim[SH_DIM_VOCAB],
                         0);
        assert_int_equal(p.local[SH_DIM_VOCAB].hi, sh_plan_vocab(c, r, n_rank).hi);
        assert_int_equal(p.local[SH_DIM_Q].lo, p.q_bound[p.slice.lo]);
        assert_int_equal(p.local[SH_DIM_FF].hi, p.ff_bound[p.slice.hi]);
        check_kv(&p, c);
        assert_int_equal(p.slice.lo, slice);
        slice = p.slice.hi;
        for (int i = 0, s = 0; i < p.n_root; s = p.root[i++].hi) assert_int_equal(p.root[i].lo, s);
        assert_int_equal(p.root[p.n_root - 1].hi, sh_range_n(p.slice));
    }
    assert_int_equal(slice, SH_N_SLICE);
    assert_int_equal(at[SH_DIM_Q], c->dim[SH_DIM_Q]);
    assert_int_equal(at[SH_DIM_FF], c->dim[SH_DIM_FF]);
    assert_int_equal(at[SH_DIM_VOCAB], c->dim[SH_DIM_VOCAB]);
}

static int lcm(int a, int b)
{
    int n = a;
    while (n % b) n += a;
    return n;
}

static void test_ranks(void **state)
{
    (void)state;
    random_state = 1;
    for (int round = 0; round < 70; round++) {
        tiny t = random_tiny();
        sh_config c;
        sh_plan p;
        t.n_layer = 1;
        sh_model_file *m = tiny_open(&t);
        OK(sh_config_read(&c, m));
        for (int n_rank = 1; n_rank <= 8; n_rank++) check_ranks(&c, m, n_rank);
        sh_plan_make(&p, &c, m, 0, 1, (sh_range){0, 1}, 0, 1);
        int q_block = sh_dtypes[sh_model_file_tensor(m, "blk.0.attn_output.weight")->dtype].block;
        int ff_block = sh_dtypes[sh_model_file_tensor(m, "blk.0.ffn_down.weight")->dtype].block;
        check_bounds(p.q_bound, c.dim[SH_DIM_Q], lcm(c.head_dim, q_block));
        check_bounds(p.ff_bound, c.dim[SH_DIM_FF], lcm(32, ff_block));
        sh_model_file_close(m);
    }
}

/* Bytes that a stage reads for a token. */
static size_t stage_bytes(const sh_model_file *m, sh_range layer, bool head)
{
    size_t n = head ? sh_model_file_tensor(m, "output.weight")->n_bytes : 0;
    for (size_t i = 0; i < m->n_tensor; i++) {
        int l;
        if (sscanf(m->tensor[i].name, "blk.%d.", &l) == 1 && l >= layer.lo && l < layer.hi)
            n += m->tensor[i].n_bytes;
    }
    return n;
}

/* Stages are runs of layers that make up the model; none is empty; none but the first, which has
 * the head, is more than a layer above what is fair among those after it. */
static void test_stages(void **state)
{
    (void)state;
    random_state = 2;
    for (int round = 0; round < 30; round++) {
        tiny t = random_tiny();
        sh_config c;
        if (round % 3 == 0) t.n_vocab *= 30; /* a head larger than a fair share */
        sh_model_file *m = tiny_open(&t);
        OK(sh_config_read(&c, m));
        for (int n = 1; n <= c.n_layer; n++) {
            sh_range layer[16] = {{0}};
            OK(sh_plan_stages(layer, &c, m, n));
            size_t left = stage_bytes(m, (sh_range){0, c.n_layer}, true);
            size_t one = stage_bytes(m, (sh_range){0, 1}, false);
            for (int s = 0, at = 0; s < n; s++) {
                size_t mine = stage_bytes(m, layer[s], s == 0);
                assert_int_equal(layer[s].lo, at);
                assert_true(layer[s].hi > layer[s].lo);
                at = layer[s].hi;
                if (sh_range_n(layer[s]) > 1) assert_true(mine <= left / (size_t)(n - s) + one);
                left -= mine;
            }
            assert_int_equal(layer[n - 1].hi, c.n_layer);
            assert_int_equal(left, 0);
            for (int s = 2; s < n; s++) /* of equal layers, equal numbers */
                assert_in_range(sh_range_n(layer[s]) - sh_range_n(layer[1]) + 1, 0, 2);
        }
        sh_range none[1];
        assert_int_equal(sh_plan_stages(none, &c, m, c.n_layer + 1), SH_EARG);
        assert_int_equal(sh_plan_stages(none, &c, m, 0), SH_EARG);
        assert_int_equal(sh_plan_stages(none, &c, m, -1), SH_EARG);
        sh_model_file_close(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ranks), cmocka_unit_test(test_stages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
