/* Fuzz target: any bytes as the file of an optimiser's state, and as the options of a rank. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "train/setup.h"

/* What was read is written as the same bytes. */
static void check_settings(const sh_settings *s)
{
    sh_buf a = {0}, b = {0};
    sh_settings got;
    sh_settings_put(s, &a);
    sh_cursor c = sh_cursor_of(a.p, a.n);
    sh_settings_get(&got, &c);
    if (c.bad || sh_cursor_left(&c)) abort();
    sh_settings_put(&got, &b);
    if (a.n != b.n || memcmp(a.p, b.p, a.n) != 0) abort();
    sh_buf_free(&a);
    sh_buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    sh_checkpoint c = {0};
    sh_train_options o;
    uint8_t hash[16];
    if (sh_checkpoint_parse(&c, hash, data, n)) {
        if (c.moments_at > n || c.n_float * 8 != n - c.moments_at) abort();
        check_settings(&c.settings);
    }
    if (sh_train_decode(&o, data, n) == SH_OK) {
        const char *text[] = {o.ckpt, o.dataset, o.init, o.shape.family, o.shape.name};
        size_t sum = 0;
        for (int i = 0; i < 5; i++) sum += text[i] ? strlen(text[i]) + 1 : 0;
        if (sum > n) abort();
        check_settings(&o.settings);
    }
    return 0;
}
