/* Parameters: where they stand, what is drawn, and what comes back from a file. */
#define _GNU_SOURCE
#include "train_kit.h"

#include <math.h>

static size_t size_of(const sh_param *t)
{
    return (size_t)t->rows * (size_t)t->cols;
}

static const sh_param *find(const sh_params *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (strcmp(p->list[i].name, name) == 0) return &p->list[i];
    return NULL;
}

static void test_list(void **state)
{
    (void)state;
    for (int k = 0; k < N_KIT_ARCH; k++) {
        sh_params p;
        size_t at = 0, sum = 0;
        OK(sh_params_open(&p, &kit_archs[k]));
        for (int i = 0; i < p.n; i++) { /* tensors follow each other, less than 16 floats apart */
            const sh_param *t = &p.list[i];
            assert_true(t->at >= at && t->at < at + 16);
            assert_true(t->decay == (t->cols > 1));
            for (int j = 0; j < i; j++) assert_string_not_equal(t->name, p.list[j].name);
            at = t->at + size_of(t);
            sum += size_of(t);
        }
        assert_true(p.n_float >= at && p.n_float % 16 == 0);
        assert_int_equal(sh_arch_bytes(&p.arch), sum * 16);
        assert_int_equal(p.head == p.embd, p.arch.tied);
        if (p.arch.gelu) {
            assert_int_equal(p.layer[0].qkv, find(&p, "blk.0.attn_qkv.weight")->at);
            assert_int_equal(p.layer[1].up_b, find(&p, "blk.1.ffn_up.bias")->at);
        } else { /* products of the same input have nothing between them */
            const sh_param *q = find(&p, "blk.0.attn_q.weight"), *v;
            v = find(&p, "blk.0.attn_v.weight");
            assert_int_equal(p.layer[0].qkv, q->at);
            assert_int_equal(v->at, q->at + size_of(q) + size_of(find(&p, "blk.0.attn_k.weight")));
            assert_int_equal(p.layer[0].up, find(&p, "blk.0.ffn_gate.weight")->at);
            assert_int_equal(find(&p, "blk.0.ffn_up.weight")->at,
                             p.layer[0].up + size_of(find(&p, "blk.0.ffn_gate.weight")));
        }
        sh_params_close(&p);
    }
}

static void check_spread(const sh_params *p, const sh_param *t, double std)
{
    double sum = 0, square = 0, n = (double)size_of(t);
    for (size_t i = 0; i < size_of(t); i++) {
        double x = (double)p->w[t->at + i];
        sum += x;
        square += x * x;
    }
    assert_true(fabs(sum / n) < 4 * std / sqrt(n));
    assert_true(fabs(sqrt(square / n) - std) < 4 * std / sqrt(2 * n));
}

static void test_draw(void **state)
{
    (void)state;
    for (int k = 0; k < N_KIT_ARCH; k++) {
        sh_params p, q;
        sh_arch wide = kit_archs[k];
        wide.n_layer++;
        OK(sh_params_open(&p, &kit_archs[k]));
        OK(sh_params_open(&q, &wide));
        sh_params_draw(&p, 7);
        double std = 0.02 * sqrt(768.0 / p.arch.n_embd), back = std / sqrt(2.0 * p.arch.n_layer);
        for (int i = 0; i < p.n; i++) {
            const sh_param *t = &p.list[i];
            bool down = strstr(t->name, "ffn_down.weight") || strstr(t->name, "output.weight");
            if (t->cols > 1)
                check_spread(&p, t, strncmp(t->name, "blk.", 4) != 0 ? 0.02 : down ? back : std);
            else
                for (size_t j = 0; j < size_of(t); j++)
                    assert_true(p.w[t->at + j] == (strstr(t->name, "bias") ? 0.0f : 1.0f));
        }
        /* the same tensor of the same seed in another model; another seed */
        sh_params_draw(&q, 7);
        const sh_param *a = find(&p, "blk.0.ffn_up.weight"), *b = find(&q, "blk.0.ffn_up.weight");
        assert_memory_equal(p.w + a->at, q.w + b->at, size_of(a) * sizeof(float));
        assert_memory_not_equal(p.w + a->at, p.w + find(&p, "token_embd.weight")->at, 64);
        sh_params_draw(&q, 8);
        assert_memory_not_equal(p.w + a->at, q.w + b->at, 64);
        sh_params_close(&p);
        sh_params_close(&q);
    }
}

/* A model is written, read and has the same architecture and weights, bit for bit. */
static void test_round_trip(void **state)
{
    (void)state;
    sh_model_file *tokenizer = kit_tokenizer("tokenizer.gguf", 0, 53), *m;
    for (int k = 0; k < N_KIT_ARCH; k++) {
        sh_params p, q;
        sh_arch a;
        sh_progress at = {.iter = 3};
        OK(sh_params_open(&p, &kit_archs[k]));
        sh_params_draw(&p, 1);
        OK(sh_checkpoint_save(kit_dir, &p, &sh_settings_default, &at, tokenizer, true));
        OK(sh_model_file_open(&m, kit_path("best.gguf")));
        kit_arch_of(&a, m);
        OK(sh_params_open(&q, &a));
        OK(sh_params_load(&q, m));
        assert_int_equal(p.n_float, q.n_float);
        assert_memory_equal(p.w, q.w, p.n_float * sizeof(float));
        assert_int_equal(a.rope_freqs != NULL, kit_archs[k].rope_freqs != NULL);
        if (a.rope_freqs) assert_memory_equal(a.rope_freqs, kit_freqs, sizeof kit_freqs);
        sh_arch plain = a, want = kit_archs[k];
        plain.rope_freqs = want.rope_freqs = NULL;
        if (want.gelu) plain.rope_base = want.rope_base; /* it has none */
        assert_string_equal(plain.family, want.family);
        plain.family = want.family;
        assert_int_equal(plain.n_rot, want.n_rot);
        assert_true(plain.rope_linear == want.rope_linear && plain.norm_eps == want.norm_eps);
        assert_int_equal(plain.n_kv_head, want.n_kv_head);
        assert_int_equal(plain.head_dim, want.head_dim);
        assert_int_equal(plain.n_ctx, want.n_ctx);
        assert_int_equal(plain.tied, want.tied);

        sh_params_close(&q); /* fewer positions; a head of its own */
        a.n_ctx = 5;
        a.tied = false;
        OK(sh_params_open(&q, &a));
        OK(sh_params_load(&q, m));
        if (a.learned_pos) assert_memory_equal(q.w + q.pos, p.w + p.pos, 5 * 18 * sizeof(float));
        size_t n = (size_t)a.n_vocab * (size_t)a.n_embd;
        assert_memory_equal(q.w + q.head, p.w + p.head, n * sizeof(float));
        sh_params_close(&q);

        a.n_embd += 2;
        OK(sh_params_open(&q, &a));
        REFUSED(sh_params_load(&q, m), SH_EFILE, "token_embd.weight");
        sh_params_close(&q);
        sh_params_close(&p);
        sh_arch_free(&a);
        sh_model_file_close(m);
    }
    sh_model_file_close(tokenizer);
}

static void test_bad_sizes(void **state)
{
    (void)state;
    sh_params p;
    sh_arch a = kit_archs[0];
    a.n_kv_head = 3;
    REFUSED(sh_params_open(&p, &a), SH_EARG, "--kv-heads");
    a = kit_archs[0];
    a.n_rot = 9;
    REFUSED(sh_params_open(&p, &a), SH_EARG, "rotation");
    a = kit_archs[2];
    a.n_layer = 0;
    REFUSED(sh_params_open(&p, &a), SH_EARG, "layers");
    sh_params_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_draw),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bad_sizes),
    };
    return cmocka_run_group_tests(tests, kit_make_dir, kit_drop_dir);
}
