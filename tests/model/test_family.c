/* A file that is not what its family asks for is refused with a sentence that names it and the
 * fault. */
#define _GNU_SOURCE
#include "tiny.h"

#include <math.h>

static const tiny good = {.n_layer = 2,
                          .n_embd = 64,
                          .n_head = 4,
                          .n_kv_head = 2,
                          .head_dim = 16,
                          .n_ff = 96,
                          .n_vocab = 50,
                          .dtype = SH_F16};

/* The sentence has all of the n words. */
static void refused(tiny t, const char *const *word, int n)
{
    sh_config c;
    sh_model_file *m = tiny_open(&t);
    assert_int_equal(sh_config_read(&c, m), SH_EFILE);
    for (int i = 0; i < n; i++)
        if (!strstr(sh_err_message(), word[i]))
            fail_msg("%s: should have '%s'", sh_err_message(), word[i]);
    assert_non_null(strstr(sh_err_message(), "/tmp/shoal-tiny-"));
    sh_model_file_close(m);
}
#define REFUSED(t, ...)                                                                            \
    refused(t, (const char *[]){__VA_ARGS__},                                                      \
            sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *))

static tiny with(void (*change)(tiny *))
{
    tiny t = good;
    change(&t);
    return t;
}

static void test_good(void **state)
{
    (void)state;
    for (int d = 0; d < SH_N_DTYPE; d++) {
        tiny t = good;
        sh_config c;
        t.dtype = (sh_dtype)d;
        sh_model_file *m = tiny_open(&t);
        OK(sh_config_read(&c, m));
        assert_string_equal(c.family->name, "llama");
        assert_true(c.norm == SH_NORM_RMS && c.act == SH_ACT_SILU && !c.learned_pos);
        assert_true(c.n_layer == 2 && c.n_head == 4 && c.n_kv_head == 2 && c.head_dim == 16);
        assert_true(c.dim[SH_DIM_EMBD] == 64 && c.dim[SH_DIM_Q] == 64 && c.dim[SH_DIM_KV] == 32);
        assert_true(c.dim[SH_DIM_FF] == 96 && c.dim[SH_DIM_VOCAB] == 50 && c.n_rot == 16);
        assert_int_equal(sh_config_block(&c, m, SH_DIM_FF), sh_dtypes[d].block);
        for (size_t i = 0; i < m->n_tensor;
             i++) { /* every tensor has its row, and the row finds it */
            int layer;
            const sh_tensor_row *r = sh_family_row(&c, m->tensor[i].name, &layer);
            assert_non_null(r);
            assert_ptr_equal(sh_family_tensor(m, r, layer), &m->tensor[i]);
        }
        int layer;
        assert_null(sh_family_row(&c, "blk.2.attn_q.weight", &layer));
        assert_null(sh_family_row(&c, "blk.01.attn_q.weight", &layer));
        assert_null(sh_family_row(&c, "blk.-1.attn_q.weight", &layer));
        assert_null(sh_family_row(&c, "blk.0.attn_q.bias", &layer));
        assert_null(sh_family_row(&c, "blk.0.attn_q.weight.x", &layer));
        sh_model_file_close(m);
    }
}

/* A file without output.weight uses the embedding. */
static void test_tied(void **state)
{
    tiny t = good;
    sh_config c;
    (void)state;
    t.without = "output.weight";
    sh_model_file *m = tiny_open(&t);
    OK(sh_config_read(&c, m));
    for (const sh_tensor_row *r = c.family->ends; r->gguf; r++)
        if (strcmp(r->gguf, "output.weight") == 0)
            assert_string_equal(sh_family_tensor(m, r, -1)->name, "token_embd.weight");
    sh_model_file_close(m);
}

/* The rows of a table that are parts of one tensor lie in it one after the other, and make it up.
 */
static void check_parts(const sh_config *c, const sh_model_file *m, const sh_tensor_row *rows)
{
    for (const sh_tensor_row *r = rows; r->gguf; r++) {
        const sh_tensor *t = sh_family_tensor(m, r, rows == c->family->layer ? 1 : -1);
        if (!t && r->optional) continue;
        int64_t n = r->cols == SH_DIM_ONE ? t->dim[0] : t->dim[1];
        bool last = !r[1].gguf || strcmp(r[1].gguf, r->gguf) != 0;
        sh_range part = sh_family_part(c, r);
        assert_int_equal(part.lo, r->part ? sh_family_part(c, r - 1).hi : 0);
        assert_int_equal(sh_range_n(part), c->dim[r->rows]);
        assert_int_equal(sh_family_bytes(c, r, t) * (size_t)n,
                         t->n_bytes * (size_t)sh_range_n(part));
        if (r->part) assert_string_equal(r[-1].gguf, r->gguf);
        if (last) assert_int_equal(part.hi, n);
    }
}

/* Whatever the family: the whole file is taken; each tensor, left out or of another shape, is
 * missed; its own epsilon and context count. */
static void test_every_family(void **state)
{
    (void)state;
    for (int f = 0; sh_families[f]; f++) {
        tiny t = good;
        sh_config c;
        t.family = sh_families[f];
        sh_model_file *m = tiny_open(&t);
        OK(sh_config_read(&c, m));
        assert_ptr_equal(c.family, sh_families[f]);
        check_parts(&c, m, c.family->ends);
        check_parts(&c, m, c.family->layer);
        assert_true(c.norm_eps == 1e-5f);
        assert_int_equal(c.n_ctx_max, c.learned_pos ? TINY_CTX : 1 << 28);
        for (size_t i = 0; i < m->n_tensor; i++) {
            const char *name = m->tensor[i].name;
            if (strncmp(name, "blk.0.", 6) == 0) continue; /* blk.1. is as good */
            tiny bad = t;
            bad.shape = name;
            if (strcmp(name, "token_embd.weight") == 0) /* it says how large the vocabulary is */
                REFUSED(bad, "output.weight", "shape");
            else
                REFUSED(bad, name, "shape");
            if (strcmp(name, "output.weight") == 0) continue; /* another serves instead */
            bad.shape = NULL;
            bad.without = name;
            REFUSED(bad, name, "missing");
        }
        sh_model_file_close(m);
    }
}

static void test_gpt2(void **state)
{
    tiny t = good;
    sh_config c;
    int layer;
    (void)state;
    t.family = &sh_family_gpt2;
    t.n_kv_head = 4;
    t.setf = "gpt2.attention.layer_norm_epsilon";
    t.tof = 1e-3f;
    sh_model_file *m = tiny_open(&t);
    OK(sh_config_read(&c, m));
    assert_true(c.norm == SH_NORM_LAYER && c.act == SH_ACT_GELU && c.learned_pos);
    assert_true(c.norm_eps == 1e-3f && c.n_rot == 0 && c.n_ctx_max == TINY_CTX);
    const sh_tensor_row *q = sh_family_row(&c, "blk.1.attn_qkv.weight", &layer);
    assert_true(layer == 1 && q->part == 0 && q[1].part == 1 && q[2].part == 2 && q[3].part == 0);
    assert_true(sh_family_part(&c, q + 2).lo == 128 && sh_family_part(&c, q + 2).hi == 192);
    assert_true(sh_family_is_fine("position_embd.weight"));
    assert_false(sh_family_is_fine("token_embd.weight"));
    sh_model_file_close(m);
    t.tof = NAN;
    REFUSED(t, "epsilon");
    t.setf = NULL;
    t.set = "gpt2.context_length"; /* as many as there are learned positions */
    t.to = 512;
    REFUSED(t, "position_embd.weight", "512");
}

static void test_gptj(void **state)
{
    static const char *const needed[] = {"gptj.rope.dimension_count", "output.weight"};
    tiny t = good;
    sh_config c;
    (void)state;
    t.family = &sh_family_gptj;
    t.n_kv_head = 4;
    t.set = "gptj.rope.dimension_count";
    t.to = 6;
    sh_model_file *m = tiny_open(&t);
    OK(sh_config_read(&c, m));
    assert_true(c.norm == SH_NORM_LAYER && c.act == SH_ACT_GELU && c.parallel && !c.learned_pos);
    assert_true(c.n_rot == 6 && c.rope_base == 10000 && c.rope_linear == 1);
    sh_model_file_close(m);
    t.to = 18;
    REFUSED(t, "rotation");
    t.set = NULL;
    for (int i = 0; i < 2; i++) { /* nothing serves instead */
        t.without = needed[i];
        REFUSED(t, needed[i]);
    }
    t.without = NULL;
    t.sets = "gptj.rope.scaling.type";
    t.tos = "yarn";
    REFUSED(t, "yarn", "linear");
    t.sets = NULL;
    t.setf = "gptj.rope.freq_base";
    t.tof = -1;
    REFUSED(t, "base");
}

static void test_tensors(void **state)
{
    (void)state;
    tiny t = good;
    t.without = "blk.1.ffn_up.weight";
    t.as = "blk.1.ffn_gate_up.weight";
    REFUSED(t, "blk.1.ffn_up.weight");
    t = good;
    t.without = "output.weight"; /* tied, so that only the unknown one is left */
    t.as = "blk.0.attn_q.bias";
    REFUSED(t, "blk.0.attn_q.bias", "no place", "llama");
    t.as = "blk.7.attn_q.weight";
    REFUSED(t, "blk.7.attn_q.weight", "no place");
    t = good;
    t.type = "output_norm.weight";
    REFUSED(t, "output_norm.weight", "q8_0", "vector");
}

static void no_arch(tiny *t)
{
    t->without = "general.architecture";
}
static void other_arch(tiny *t)
{
    t->arch = "mamba";
}
static void rude_arch(tiny *t)
{
    t->arch = "\x1b[31m";
}
static void no_scaling(tiny *t)
{
    t->sets = "llama.rope.scaling.type";
    t->tos = "yarn";
}

static void test_metadata(void **state)
{
    static const char *const sizes[] = {"llama.block_count", "llama.context_length",
                                        "llama.embedding_length", "llama.feed_forward_length",
                                        "llama.attention.head_count"};
    (void)state;
    REFUSED(with(no_arch), "general.architecture");
    REFUSED(with(other_arch), "mamba", "llama", "not known");
    REFUSED(with(rude_arch), "not known");
    assert_null(strchr(sh_err_message(), '\x1b'));
    REFUSED(with(no_scaling), "yarn", "linear");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        tiny t = good;
        t.without = sizes[i];
        REFUSED(t, sizes[i]);
        t.without = NULL;
        t.set = sizes[i];
        t.to = 0;
        REFUSED(t, sizes[i], "is 0");
        t.to = 0xffffffffu;
        REFUSED(t, sizes[i], "4294967295");
    }
    const struct {
        const char *key;
        uint32_t v;
        const char *word;
    } ints[] = {{"llama.attention.head_count_kv", 3, "KV heads"},
                {"llama.attention.head_count_kv", 0, "KV heads"},
                {"llama.attention.head_count_kv", 8, "KV heads"},
                {"llama.attention.key_length", 32, "32 keys and 16 values"},
                {"llama.attention.key_length", 0, "heads"},
                {"llama.rope.dimension_count", 15, "even"},
                {"llama.rope.dimension_count", 18, "rotation"},
                {"llama.block_count", 3, "blk.2."},
                {"llama.embedding_length", 32, "shape"},
                {"llama.attention.head_count", 8, "attn_q.weight"},
                {"llama.expert_count", 8, "8 experts"}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        tiny t = good;
        t.set = ints[i].key;
        t.to = ints[i].v;
        REFUSED(t, ints[i].word);
    }
    const struct {
        const char *key;
        float v;
    } floats[] = {{"llama.rope.freq_base", 0},
                  {"llama.rope.freq_base", -1},
                  {"llama.rope.freq_base", NAN},
                  {"llama.rope.freq_base", INFINITY},
                  {"llama.rope.scale_linear", 0},
                  {"llama.rope.scale_linear", NAN},
                  {"llama.attention.layer_norm_rms_epsilon", -1},
                  {"llama.attention.layer_norm_rms_epsilon", NAN}};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        tiny t = good;
        t.setf = floats[i].key;
        t.tof = floats[i].v;
        REFUSED(t, ": ");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),         cmocka_unit_test(test_tied),
        cmocka_unit_test(test_every_family), cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_gptj),         cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_metadata),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
