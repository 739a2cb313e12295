#include "train/settings.h"

#include <stddef.h>

#include "base/fmath.h"

const sh_settings sh_settings_default = {.batch_size = 12,
                                         .n_acc = 1,
                                         .max_iters = 2000,
                                         .warmup = 100,
                                         .ckpt_interval = 250,
                                         .log_interval = 10,
                                         .eval_iters = 20,
                                         .dtype = SH_BF16,
                                         .seed = 10137,
                                         .lr = 1e-3f,
                                         .min_lr = 1e-4f,
                                         .weight_decay = 0.1f,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.99f,
                                         .grad_clip = 1.0f};

/* In the order in which they are written. */
static const size_t ints[] = {
    offsetof(sh_settings, batch_size),   offsetof(sh_settings, n_acc),
    offsetof(sh_settings, max_iters),    offsetof(sh_settings, warmup),
    offsetof(sh_settings, decay_iters),  offsetof(sh_settings, ckpt_interval),
    offsetof(sh_settings, log_interval), offsetof(sh_settings, eval_iters),
    offsetof(sh_settings, patience),     offsetof(sh_settings, always_update),
    offsetof(sh_settings, dtype),
};
static const size_t floats[] = {
    offsetof(sh_settings, lr),        offsetof(sh_settings, min_lr),
    offsetof(sh_settings, beta1),     offsetof(sh_settings, beta2),
    offsetof(sh_settings, grad_clip), offsetof(sh_settings, weight_decay),
    offsetof(sh_settings, dropout),
};
enum { N_INT = sizeof ints / sizeof *ints, N_FLOAT = sizeof floats / sizeof *floats };

void sh_settings_put(const sh_settings *s, sh_buf *b)
{
    for (int i = 0; i < N_INT; i++)
        sh_put_u32(b, (uint32_t) * (const int *)((const char *)s + ints[i]));
    for (int i = 0; i < N_FLOAT; i++) sh_put_f32(b, *(const float *)((const char *)s + floats[i]));
    sh_put_u64(b, (uint64_t)s->seed);
}

void sh_settings_get(sh_settings *s, sh_cursor *c)
{
    for (int i = 0; i < N_INT; i++) *(int *)((char *)s + ints[i]) = (int)sh_get_u32(c);
    for (int i = 0; i < N_FLOAT; i++) *(float *)((char *)s + floats[i]) = sh_get_f32(c);
    s->seed = (int64_t)sh_get_u64(c);
}

double sh_settings_lr(const sh_settings *s, int64_t iter)
{
    int64_t end = s->decay_iters ? s->decay_iters : s->max_iters;
    double sine, cosine;
    if (iter < s->warmup) return (double)s->lr * (double)(iter + 1) / (s->warmup + 1);
    if (iter >= end) return (double)s->min_lr;
    sh_sincos(3.141592653589793 * (double)(iter - s->warmup) / (double)(end - s->warmup), &sine,
              &cosine);
    return (double)s->min_lr + 0.5 * (1 + cosine) * ((double)s->lr - (double)s->min_lr);
}
