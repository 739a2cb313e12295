/* Checkpoints: what is saved comes back, bit for bit; whatever moment a save is broken off at, one
 * complete pair can be told; damaged files are refused. */
#define _GNU_SOURCE
#include "train_kit.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static sh_model_file *tokenizer;
static sh_params model;

/* Numbers that depend on the iteration. */
static void fill(int64_t iter)
{
    for (size_t i = 0; i < model.n_float; i++) {
        model.w[i] = (float)((double)iter + (double)i / 1000);
        model.m[i] = -model.w[i];
        model.v[i] = 2 * model.w[i];
    }
}

static sh_err save(int64_t iter, bool best)
{
    sh_settings s = sh_settings_default;
    sh_progress at = {.iter = iter,
                      .n_tok = (uint64_t)iter * 100,
                      .n_window = (uint64_t)iter * 7,
                      .best_val = 1.25 / 3,
                      .n_worse = 2,
                      .seconds = 0.1 * (double)iter};
    s.lr = 0.125f;
    s.seed = (int64_t)1 << 40;
    s.patience = 77;
    fill(iter);
    return sh_checkpoint_save(kit_dir, &model, &s, &at, tokenizer, best);
}

/* The folder's checkpoint is that of the iteration, whole. */
static void check_is(int64_t iter)
{
    sh_checkpoint c;
    sh_params p;
    sh_arch a;
    OK(sh_checkpoint_find(&c, kit_dir));
    assert_int_equal(c.at.iter, iter);
    kit_arch_of(&a, c.model);
    OK(sh_params_open(&p, &a));
    OK(sh_checkpoint_load(&c, &p));
    fill(iter);
    for (int i = 0; i < p.n; i++) {
        size_t at = p.list[i].at, n = (size_t)p.list[i].rows * (size_t)p.list[i].cols;
        assert_memory_equal(p.w + at, model.w + at, n * sizeof(float));
    }
    assert_memory_equal(p.m, model.m, p.n_float * sizeof(float));
    assert_memory_equal(p.v, model.v, p.n_float * sizeof(float));
    assert_true(c.at.n_tok == (uint64_t)iter * 100 && c.at.n_window == (uint64_t)iter * 7);
    assert_true(c.at.best_val == 1.25 / 3 && c.at.n_worse == 2);
    assert_true(c.at.seconds == 0.1 * (double)iter);
    assert_true(c.settings.lr == 0.125f && c.settings.seed == (int64_t)1 << 40);
    assert_int_equal(c.settings.patience, 77);
    assert_int_equal(c.settings.batch_size, sh_settings_default.batch_size);
    sh_params_close(&p);
    sh_arch_free(&a);
    sh_checkpoint_close(&c);
}

static void shell(const char *command)
{
    char line[400];
    snprintf(line, sizeof line, "cd %s && %s", kit_dir, command);
    assert_int_equal(system(line), 0);
}

static bool there(const char *name)
{
    return access(kit_path(name), F_OK) == 0;
}

static int setup(void **state)
{
    if (kit_make_dir(state) != 0) return -1;
    tokenizer = kit_tokenizer("tokenizer.gguf", 0, 53);
    return sh_params_open(&model, &kit_archs[2]) == SH_OK ? 0 : -1;
}

static int teardown(void **state)
{
    sh_model_file_close(tokenizer);
    sh_params_close(&model);
    return kit_drop_dir(state);
}

static void test_save(void **state)
{
    (void)state;
    sh_checkpoint c;
    assert_false(sh_checkpoint_is_there(kit_dir));
    REFUSED(sh_checkpoint_find(&c, kit_dir), SH_EFILE, kit_dir);
    OK(save(1, true));
    assert_true(sh_checkpoint_is_there(kit_dir));
    check_is(1);
    shell("cmp best.gguf last.gguf");
    OK(save(2, false));
    check_is(2);
    shell("! cmp -s best.gguf last.gguf");
    shell("test $(ls | wc -l) = 4"); /* last.gguf, last.opt, best.gguf, tokenizer.gguf */
    OK(sh_checkpoint_settle(kit_dir));
    check_is(2);
}

/* Every moment of a save of iteration 4 after one of iteration 3. */
static void test_broken_off(void **state)
{
    (void)state;
    OK(save(3, false));
    shell("mkdir old && cp last.* old");
    OK(save(4, false));
    shell("mkdir new && cp last.* new");

    shell("cp old/* . && head -c 3000 new/last.gguf >next.gguf.1-0.tmp");
    check_is(3);
    shell("cp new/last.gguf next.gguf");
    check_is(3);
    shell("head -c 2000 new/last.opt >next.opt.tmp");
    check_is(3);
    shell("cp new/last.opt next.opt");
    check_is(4);
    shell("mv next.gguf last.gguf");
    check_is(4);
    shell("mv next.opt last.opt");
    check_is(4);

    shell("cp old/* . && cp new/last.gguf next.gguf && cp new/last.opt next.opt");
    OK(sh_checkpoint_settle(kit_dir));
    assert_false(there("next.gguf") || there("next.opt") || there("next.opt.tmp") ||
                 there("next.gguf.1-0.tmp"));
    check_is(4);
    shell("cp new/last.gguf . && mv last.opt next.opt && cp old/last.opt .");
    check_is(4);
    OK(sh_checkpoint_settle(kit_dir));
    assert_false(there("next.opt"));
    check_is(4);
    shell("cp old/* . && cp new/last.gguf next.gguf"); /* half of it: it is dropped */
    OK(sh_checkpoint_settle(kit_dir));
    check_is(3);
    shell("cp new/last.gguf last.gguf"); /* of two checkpoints */
    sh_checkpoint c;
    REFUSED(sh_checkpoint_find(&c, kit_dir), SH_EFILE, "not of one checkpoint");
    shell("rm -r old new");
}

static void test_damaged(void **state)
{
    (void)state;
    sh_checkpoint c;
    struct stat st;
    OK(save(5, false));
    assert_int_equal(stat(kit_path("last.opt"), &st), 0);
    shell("cp last.opt good");
    for (int n = 0; n < 300; n += 3) { /* cut in the header */
        assert_int_equal(truncate(kit_path("last.opt"), n), 0);
        assert_int_equal(sh_checkpoint_find(&c, kit_dir), SH_EFILE);
        shell("cp good last.opt");
    }
    assert_int_equal(truncate(kit_path("last.opt"), st.st_size - 1), 0);
    assert_int_equal(sh_checkpoint_find(&c, kit_dir), SH_EFILE);
    assert_int_equal(truncate(kit_path("last.opt"), st.st_size + 1), 0);
    assert_int_equal(sh_checkpoint_find(&c, kit_dir), SH_EFILE);
    shell("cp good last.opt && rm good");
    check_is(5);
}

/* A limit on the size of files stands for a full disk. */
static void test_full_disk(void **state)
{
    (void)state;
    struct rlimit limit, small;
    struct stat st;
    OK(save(6, true));
    assert_int_equal(stat(kit_path("last.opt"), &st), 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    for (rlim_t room = 0; room < (rlim_t)st.st_size; room += (rlim_t)st.st_size / 7) {
        small = limit;
        small.rlim_cur = room; /* in the model, and, as it is the smaller file, in the moments */
        setrlimit(RLIMIT_FSIZE, &small);
        sh_err err = save(7, true);
        setrlimit(RLIMIT_FSIZE, &limit);
        REFUSED(err, SH_ESYS, kit_dir);
        check_is(6);
        assert_false(there("next.gguf") || there("next.opt") || there("next.opt.tmp"));
    }
    OK(save(7, true));
    check_is(7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save),
        cmocka_unit_test(test_broken_off),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
