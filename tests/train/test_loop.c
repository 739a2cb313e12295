/* What a run is told and begins with: the learning rate, options as bytes, sizes and vocabularies
 * that do not fit together, loss.csv. (Runs themselves: tests/e2e/train.py.) */
#define _GNU_SOURCE
#include "train_kit.h"

#include <math.h>
#include <sys/stat.h>

#include "base/file.h"
#include "train/loop.h"
#include "train/report.h"

static void test_learning_rate(void **state)
{
    (void)state;
    sh_settings s = sh_settings_default;
    s.lr = 1;
    s.min_lr = 0.25f;
    s.warmup = 10;
    s.max_iters = 110;
    double last = 0;
    for (int i = 0; i < 10; i++) { /* up in equal steps, to just below the highest */
        double lr = sh_settings_lr(&s, i);
        assert_true(fabs(lr - last - 1.0 / 11) < 1e-12);
        last = lr;
    }
    assert_true(sh_settings_lr(&s, 10) == 1);
    for (int i = 10; i < 110; i++) {
        double want = 0.25 + 0.75 * 0.5 * (1 + cos(3.141592653589793 * (i - 10) / 100));
        assert_true(fabs(sh_settings_lr(&s, i) - want) < 1e-12);
    }
    assert_true(sh_settings_lr(&s, 110) == 0.25 && sh_settings_lr(&s, 1 << 30) == 0.25);
    s.decay_iters = 60; /* whatever max_iters is */
    assert_true(sh_settings_lr(&s, 60) == 0.25 && sh_settings_lr(&s, 59) > 0.25);
    s.warmup = 0;
    assert_true(sh_settings_lr(&s, 0) == 1);
}

static sh_train_options options(void)
{
    return (sh_train_options){.ckpt = kit_path("ckpt"),
                              .dataset = kit_dir,
                              .settings = sh_settings_default,
                              .n_rank = 1,
                              .n_here = 1,
                              .n_thread = 1};
}

static void test_bytes(void **state)
{
    (void)state;
    sh_train_options o = options(), got;
    sh_buf b = {0};
    o.init = "some.gguf";
    o.resume = true;
    o.shape = (sh_train_shape){"llama", "tinyllama", 1, 2, 3, 4, 5, 6, true, false};
    o.settings.dropout = 0.25f;
    o.settings.seed = -5;
    o.n_rank = 4;
    o.n_thread = 3;
    o.n_cpu = 2;
    o.cpu[1] = 9;
    sh_train_encode(&o, &b);
    assert_false(b.bad);
    assert_true(sh_train_is(b.p, b.n));
    OK(sh_train_decode(&got, b.p, b.n));
    assert_string_equal(got.ckpt, o.ckpt);
    assert_string_equal(got.dataset, o.dataset);
    assert_string_equal(got.init, o.init);
    assert_string_equal(got.shape.family, "llama");
    assert_string_equal(got.shape.name, "tinyllama");
    assert_int_equal(got.shape.n_layer, 1);
    assert_int_equal(got.shape.n_ctx, 6);
    assert_true(got.shape.tied && !got.shape.untied && got.resume);
    assert_true(got.settings.dropout == 0.25f && got.settings.seed == -5);
    assert_int_equal(got.n_rank, 4);
    assert_int_equal(got.n_thread, 3);
    assert_int_equal(got.cpu[1], 9);
    for (size_t n = 0; n < b.n; n++) {
        uint8_t *cut = malloc(n + 1); /* its end is where a sanitizer sees it */
        assert_non_null(cut);
        memcpy(cut, b.p, n);
        assert_int_equal(sh_train_decode(&got, cut, n), SH_EARG);
        free(cut);
    }
    sh_buf_free(&b);
}

static void test_refusals(void **state)
{
    (void)state;
    sh_train_options o = options();
    OK(sh_train_check(&o));
    o.n_rank = 3;
    REFUSED(sh_train_check(&o), SH_EARG, "1, 2, 4 or 8");
    o = options();
    o.ckpt = NULL;
    REFUSED(sh_train_check(&o), SH_EARG, "--ckpt");
    o = options();
    o.dataset = NULL;
    REFUSED(sh_train_check(&o), SH_EARG, "--dataset");
    o = options();
    o.shape.family = "gptj";
    REFUSED(sh_train_check(&o), SH_EARG, "llama, gpt2");
    o = options();
    o.shape.tied = o.shape.untied = true;
    REFUSED(sh_train_check(&o), SH_EARG, "--untied");
    o = options();
    o.settings.min_lr = 2;
    REFUSED(sh_train_check(&o), SH_EARG, "--min-lr");
    o = options();
    o.settings.decay_iters = 50;
    REFUSED(sh_train_check(&o), SH_EARG, "--decay-iters");
    o = options();
    o.settings.eval_iters = 0; /* only a damaged checkpoint can say so */
    REFUSED(sh_train_check(&o), SH_EARG, "settings");
}

static void check_arch(sh_train_shape t, sh_arch want)
{
    sh_train_options o = options();
    sh_start s;
    o.shape = t;
    OK(sh_start_open(&s, &o));
    assert_string_equal(s.arch.family, want.family);
    assert_int_equal(s.arch.n_layer, want.n_layer);
    assert_int_equal(s.arch.n_embd, want.n_embd);
    assert_int_equal(s.arch.n_head, want.n_head);
    assert_int_equal(s.arch.n_kv_head, want.n_kv_head);
    assert_int_equal(s.arch.n_ff, want.n_ff);
    assert_int_equal(s.arch.n_ctx, want.n_ctx);
    assert_int_equal(s.arch.tied, want.tied);
    assert_int_equal(s.arch.n_vocab, 53);
    assert_int_equal(s.arch.learned_pos, strcmp(want.family, "gpt2") == 0);
    sh_start_close(&s);
}

static void refuse(sh_train_options o, sh_err code, const char *word)
{
    sh_start s;
    REFUSED(sh_start_open(&s, &o), code, word);
    sh_start_close(&s);
}

static void test_sizes(void **state)
{
    (void)state;
    sh_train_options o;
    const sh_arch plain = {.family = "gpt2",
                           .n_layer = 4,
                           .n_head = 4,
                           .n_kv_head = 4,
                           .n_embd = 128,
                           .n_ff = 512,
                           .n_ctx = 64,
                           .tied = true};
    const sh_arch nano = {.family = "llama",
                          .n_layer = 12,
                          .n_head = 16,
                          .n_kv_head = 4,
                          .n_embd = 1024,
                          .n_ff = 5632,
                          .n_ctx = 33};
    sh_arch want = plain;
    check_arch((sh_train_shape){0}, plain);
    want.family = "llama";
    want.n_embd = 100;
    want.n_head = 10;
    want.n_kv_head = 5;
    want.n_ff = 288;
    check_arch((sh_train_shape){.family = "llama", .n_embd = 100, .n_head = 10, .n_kv_head = 5},
               want);
    want = plain;
    want.family = "llama";
    want.n_ff = 7;
    want.n_ctx = 3;
    want.tied = false;
    check_arch((sh_train_shape){.family = "llama", .n_ff = 7, .n_ctx = 3, .untied = true}, want);
    check_arch((sh_train_shape){.name = "nanollama", .n_ctx = 33}, nano);
    o = options();
    o.shape.name = "nosuch";
    refuse(o, SH_EARG, "nanollama");
    o.shape.name = "nanollama";
    o.shape.n_layer = 3;
    refuse(o, SH_EARG, "--layers");
    o = options();
    o.shape.n_head = 3;
    refuse(o, SH_EARG, "--heads");
    o = options();
    o.shape.n_kv_head = 2;
    refuse(o, SH_EARG, "--kv-heads");
    o = options();
    o.dataset = kit_path("nowhere");
    refuse(o, SH_EFILE, "shoal prepare");
    o = options();
    o.shape = (sh_train_shape){.n_layer = 4096, .n_embd = 1 << 18};
    refuse(o, SH_ENOMEM, "GiB");
}

static void test_finetune(void **state)
{
    (void)state;
    sh_model_file *same = kit_tokenizer("tokenizer.gguf", 0, 53);
    sh_model_file *other = kit_tokenizer("other.gguf", 1, 53);
    sh_progress at = {.iter = 1};
    sh_params p;
    sh_train_options o = options();
    OK(sh_params_open(&p, &kit_archs[2]));
    assert_int_equal(mkdir(kit_path("a"), 0777), 0);
    assert_int_equal(mkdir(kit_path("b"), 0777), 0);
    OK(sh_checkpoint_save(kit_path("a"), &p, &o.settings, &at, same, true));
    OK(sh_checkpoint_save(kit_path("b"), &p, &o.settings, &at, other, true));

    sh_start s;
    o.init = kit_path("a/best.gguf");
    OK(sh_start_open(&s, &o));
    assert_int_equal(s.arch.n_embd, 18);
    sh_start_close(&s);
    o.shape.n_ctx = 7; /* fewer positions may be */
    OK(sh_start_open(&s, &o));
    assert_int_equal(s.arch.n_ctx, 7);
    sh_start_close(&s);
    o.shape.n_ctx = 13;
    refuse(o, SH_EARG, "--context");
    o.shape = (sh_train_shape){.n_embd = 20};
    refuse(o, SH_EARG, "--width");
    o.shape = (sh_train_shape){.family = "llama"};
    refuse(o, SH_EARG, "gpt2");
    o.shape = (sh_train_shape){0};
    o.init = kit_path("b/best.gguf");
    refuse(o, SH_EFILE, "vocabulary");
    o.init = kit_path("none.gguf");
    refuse(o, SH_EFILE, "none.gguf");

    o = options();
    o.ckpt = kit_path("a");
    refuse(o, SH_EARG, "--resume");
    o.resume = true;
    OK(sh_start_open(&s, &o));
    assert_int_equal(s.checkpoint.at.iter, 1);
    sh_start_close(&s);
    o.shape.n_ctx = 7;
    refuse(o, SH_EARG, "--context");
    o.shape = (sh_train_shape){.n_layer = 3};
    refuse(o, SH_EARG, "--layers");
    o.shape = (sh_train_shape){.untied = true};
    refuse(o, SH_EARG, "head");
    o.shape = (sh_train_shape){0};
    o.ckpt = kit_path("b");
    refuse(o, SH_EFILE, "vocabulary");
    sh_params_close(&p);
    sh_model_file_close(same);
    sh_model_file_close(other);
}

static void check_csv(const char *want)
{
    char *text;
    size_t n;
    OK(sh_file_read_text(&text, &n, kit_path("loss.csv"), 1 << 20));
    assert_string_equal(text, want);
    free(text);
}

#define HEADER "iter,tokens,train_loss,val_loss,lr,tokens_per_s,seconds\n"
#define ROWS   HEADER "2,20,3.5,,0.001,100,0.250\n4,40,3.25,3,0.001,100,0.250\n"

static void test_csv(void **state)
{
    (void)state;
    sh_report r;
    sh_report_row a = {2, 20, 3.5, (double)NAN, 1e-3, 100, 0.25},
                  b = {4, 40, 3.25, 3, 1e-3, 100, 0.25};
    OK(sh_report_open(&r, kit_dir, -1));
    OK(sh_report_add(&r, &a));
    OK(sh_report_add(&r, &b));
    sh_report_close(&r);
    check_csv(ROWS);
    OK(sh_report_open(&r, kit_dir, 4)); /* nothing is lost */
    sh_report_close(&r);
    check_csv(ROWS);

    FILE *f = fopen(kit_path("loss.csv"), "a"); /* rows after the checkpoint, one of them cut */
    assert_non_null(f);
    fputs("6,60,3,,0.001,100,0.25\n8,80,", f);
    fclose(f);
    OK(sh_report_open(&r, kit_dir, 4));
    sh_report_close(&r);
    check_csv(ROWS);
    OK(sh_report_open(&r, kit_dir, 3));
    OK(sh_report_add(&r, &b));
    sh_report_close(&r);
    check_csv(ROWS);
    OK(sh_report_open(&r, kit_dir, -1)); /* a new run */
    sh_report_close(&r);
    check_csv(HEADER);
    sh_report_close(&r);
}

static void test_time(void **state)
{
    (void)state;
    char buf[40];
    assert_string_equal(sh_report_time(buf, sizeof buf, 7.2), "7 s");
    assert_string_equal(sh_report_time(buf, sizeof buf, 200), "3 min 20 s");
    assert_string_equal(sh_report_time(buf, sizeof buf, 7500), "2 h 05 min");
    assert_string_equal(sh_report_time(buf, sizeof buf, (double)NAN), "0 s");
}

static int setup(void **state)
{
    if (kit_make_dir(state) != 0) return -1;
    sh_model_file_close(kit_tokenizer("tokenizer.gguf", 0, 53));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learning_rate), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_finetune),      cmocka_unit_test(test_csv),
        cmocka_unit_test(test_time),
    };
    return cmocka_run_group_tests(tests, setup, kit_drop_dir);
}
