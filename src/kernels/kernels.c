/* The list of instruction sets and the filling of the table. */
#include "kernels/kernels.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

const sh_isa *const sh_isas[] = {
    &sh_isa_c,
#if defined(__x86_64__)
    &sh_isa_avx2, &sh_isa_avx512, &sh_isa_amx,
#elif defined(__aarch64__)
    &sh_isa_neon,
    &sh_isa_i8mm,
#endif
    NULL,
};

/* What a row's pointers are counted by. */
typedef enum by { BY_NOTHING, BY_FORM, BY_TYPE, BY_TYPE_FORM } by;

#define ROW(field, by)                                                                             \
    {                                                                                              \
#field, offsetof(sh_kernels, field), by                                                    \
    }
static const struct {
    const char *name;
    size_t offset;
    by by;
} rows[] = {
    ROW(matmul, BY_TYPE_FORM),
    ROW(prepare, BY_FORM),
    ROW(rmsnorm, BY_NOTHING),
    ROW(layernorm, BY_NOTHING),
    ROW(add, BY_NOTHING),
    ROW(silu_mul, BY_NOTHING),
    ROW(gelu, BY_NOTHING),
    ROW(rope, BY_NOTHING),
    ROW(kv_put, BY_TYPE),
    ROW(attn_scores, BY_TYPE),
    ROW(attn_values, BY_TYPE),
    ROW(softmax_part, BY_NOTHING),
    ROW(softmax_merge, BY_NOTHING),
    ROW(attend_bf16, BY_TYPE),
    ROW(left_cols, BY_TYPE),
    ROW(right_rows, BY_TYPE),
    ROW(right_cols, BY_TYPE),
    ROW(spread, BY_TYPE),
    ROW(peak, BY_FORM),
    ROW(adamw, BY_NOTHING),
    ROW(sum_squares, BY_NOTHING),
    ROW(read, BY_NOTHING),
    ROW(train.rmsnorm_back, BY_NOTHING),
    ROW(train.layernorm_back, BY_NOTHING),
    ROW(train.gelu_back, BY_NOTHING),
    ROW(train.silu_mul_back, BY_NOTHING),
    ROW(train.attend_back, BY_NOTHING),
    ROW(train.softmax_sum, BY_NOTHING),
    ROW(train.softmax, BY_NOTHING),
    ROW(train.dots, BY_NOTHING),
    ROW(train.gather, BY_NOTHING),
    ROW(train.sum_rows, BY_NOTHING),
    ROW(train.scale, BY_NOTHING),
    ROW(train.dropout, BY_NOTHING),
};
#undef ROW
enum { N_POINTER = sizeof(sh_kernels) / sizeof(void (*)(void)) };

/* Whether the set may be used: the machine has it, and `upto`, if any, has not come before it. */
static bool usable(int i, const char *upto)
{
    for (int j = 0; upto && j < i; j++)
        if (strcmp(upto, sh_isas[j]->name) == 0) return false;
    return (sh_isas[i]->needs & sh_cpu_features()) == sh_isas[i]->needs;
}

static sh_err check_name(const char *upto)
{
    char names[128] = "";
    if (!upto || !*upto) return SH_OK;
    for (int i = 0; sh_isas[i]; i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", sh_isas[i]->name);
        if (strcmp(upto, sh_isas[i]->name) == 0) return SH_OK;
    }
    return sh_fail(SH_EARG, "no instruction set is called '%s'; known: %s", upto, names);
}

sh_err sh_kernels_init(sh_kernels *k, const char *upto)
{
    memset(k, 0, sizeof *k);
    if (!upto) upto = getenv("SHOAL_CPU");
    for (int i = 0; sh_isas[i]; i++)
        if (usable(i, upto)) sh_isas[i]->overlay(k);
    return check_name(upto);
}

bool sh_kernels_have_amx(void)
{
    for (int i = 0; sh_isas[i]; i++)
        if ((sh_isas[i]->needs & SH_CPU_AMX) && usable(i, getenv("SHOAL_CPU"))) return true;
    return false;
}

const char *sh_kernels_best(void)
{
    const char *name = sh_isas[0]->name;
    for (int i = 0; sh_isas[i]; i++)
        if (usable(i, getenv("SHOAL_CPU"))) name = sh_isas[i]->name;
    return name;
}

/* Pointer number `at` of the table of row `r`. */
static void row_name(char *out, size_t cap, int r, int at)
{
    static const char *const form[SH_N_FORM] = {"f32", "bf16", "i8"};
    const char *type = "", *f = "";
    if (rows[r].by == BY_FORM) f = form[at];
    if (rows[r].by == BY_TYPE) type = sh_dtypes[at].name;
    if (rows[r].by == BY_TYPE_FORM) type = sh_dtypes[at / SH_N_FORM].name, f = form[at % SH_N_FORM];
    snprintf(out, cap, "%s%s%s%s%s", rows[r].name, *type ? " " : "", type, *f ? " " : "", f);
}

sh_err sh_kernels_list(const char *upto, void (*fn)(void *arg, const char *row, const char *isa),
                       void *arg)
{
    static const int n_of[] = {1, SH_N_FORM, SH_N_DTYPE, SH_N_DTYPE * SH_N_FORM};
    union {
        sh_kernels k;
        void (*p[N_POINTER])(void);
    } now = {0}, before;
    const char *server[N_POINTER] = {0};
    char name[64];
    int n_seen = 0;
    if (!upto) upto = getenv("SHOAL_CPU");
    SH_TRY(check_name(upto));
    for (int i = 0; sh_isas[i]; i++) {
        if (!usable(i, upto)) continue;
        before = now;
        sh_isas[i]->overlay(&now.k);
        for (int j = 0; j < N_POINTER; j++)
            if (now.p[j] != before.p[j]) server[j] = sh_isas[i]->name;
    }
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (int i = 0; i < n_of[rows[r].by]; i++, n_seen++) {
            size_t j = rows[r].offset / sizeof *now.p + (size_t)i;
            row_name(name, sizeof name, (int)r, i);
            if (server[j]) fn(arg, name, server[j]);
        }
    assert(n_seen == N_POINTER); /* every field of the table has its row above */
    return SH_OK;
}
