/* What the tests of training share: small architectures of both families, a folder that goes away,
 * and a vocabulary. */
#ifndef TESTS_TRAIN_TRAIN_KIT_H
#define TESTS_TRAIN_TRAIN_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "train/checkpoint.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)
#define REFUSED(call, code, word)                                                                  \
    do {                                                                                           \
        assert_int_equal((call), (code));                                                          \
        if (!strstr(sh_err_message(), (word)))                                                     \
            fail_msg("'%s' is not in: %s", (word), sh_err_message());                              \
    } while (0)

static float kit_freqs[4] = {1, 1, 2, 8};

/* Sizes that are no multiples of 16; heads that are wider than the model; every flag both ways. */
static const sh_arch kit_archs[] = {
    {.family = "llama",
     .n_layer = 2,
     .n_head = 4,
     .n_kv_head = 2,
     .head_dim = 10,
     .n_embd = 36,
     .n_ff = 56,
     .n_vocab = 53,
     .n_ctx = 12,
     .n_rot = 10,
     .norm_eps = 1e-5f,
     .rope_base = 10000,
     .rope_linear = 1},
    {.family = "llama",
     .n_layer = 1,
     .n_head = 3,
     .n_kv_head = 3,
     .head_dim = 8,
     .n_embd = 24,
     .n_ff = 41,
     .n_vocab = 53,
     .n_ctx = 9,
     .n_rot = 8,
     .tied = true,
     .norm_eps = 1e-6f,
     .rope_base = 500,
     .rope_linear = 4,
     .rope_freqs = kit_freqs},
    {.family = "gpt2",
     .n_layer = 2,
     .n_head = 2,
     .n_kv_head = 2,
     .head_dim = 9,
     .n_embd = 18,
     .n_ff = 70,
     .n_vocab = 53,
     .n_ctx = 12,
     .layer_norm = true,
     .gelu = true,
     .learned_pos = true,
     .bias = true,
     .tied = true,
     .norm_eps = 1e-5f,
     .rope_base = 10000,
     .rope_linear = 1},
};
enum { N_KIT_ARCH = sizeof kit_archs / sizeof *kit_archs };

static char kit_dir[64]; /* of this test program */

static inline int kit_make_dir(void **state)
{
    (void)state;
    snprintf(kit_dir, sizeof kit_dir, "%s", "/tmp/shoal-train-XXXXXX");
    return mkdtemp(kit_dir) ? 0 : -1;
}
static inline int kit_drop_dir(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", kit_dir);
    return system(command);
}
static inline const char *kit_path(const char *name)
{
    static char path[32][160]; /* as many as a test uses at once */
    static int at;
    at = (at + 1) % 32;
    snprintf(path[at], sizeof path[at], "%s/%s", kit_dir, name);
    return path[at];
}

/* A file with a vocabulary of n tokens, from `first` on, and no tensors, as a dataset has. */
static inline sh_model_file *kit_tokenizer(const char *name, int first, int n)
{
    sh_gguf_writer *w;
    sh_model_file *m;
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    sh_str s[64];
    assert_true(first + n <= 64);
    OK(sh_gguf_create(&w, kit_path(name)));
    for (int i = 0; i < n; i++) s[i] = (sh_str){letters + first + i, 1};
    sh_gguf_put_str(w, "general.architecture", "none", 4);
    sh_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4);
    sh_gguf_put_strs(w, "tokenizer.ggml.tokens", s, (size_t)n);
    OK(sh_gguf_close(w, true));
    OK(sh_model_file_open(&m, kit_path(name)));
    return m;
}

/* Reads a model's architecture. */
static inline void kit_arch_of(sh_arch *a, const sh_model_file *m)
{
    sh_config c;
    OK(sh_config_read(&c, m));
    OK(sh_arch_of(a, &c, m));
}

#endif
