#include "train/adamw.h"

#include <math.h>
#include <stdlib.h>

#include "base/fmath.h"
#include "base/mem.h"

enum { PIECE = 1 << 16 }; /* floats whose squares are summed together; also what a thread takes */

/* Tensors one after the other that decay alike: the floats [lo, hi), padding included. */
typedef struct span {
    size_t lo, hi;
    bool decay;
} span;

struct sh_adamw {
    const sh_params *p;
    const sh_kernels *k;
    sh_pool *pool;
    span *span;
    int n_span, n_piece;
    double *sum; /* (n_piece) */
    const float *x;
    sh_adamw_step step[2]; /* without decay, with it */
};

static void find_spans(sh_adamw *a)
{
    const sh_params *p = a->p;
    for (int i = 0; i < p->n; i++) {
        size_t hi = i + 1 < p->n ? p->list[i + 1].at : p->n_float;
        if (a->n_span > 0 && a->span[a->n_span - 1].decay == p->list[i].decay)
            a->span[a->n_span - 1].hi = hi;
        else
            a->span[a->n_span++] = (span){p->list[i].at, hi, p->list[i].decay};
    }
}

sh_err sh_adamw_open(sh_adamw **out, const sh_params *p, const sh_kernels *k, sh_pool *pool)
{
    sh_err err;
    sh_adamw *a;
    *out = NULL;
    SH_TRY(sh_alloc(&a, 1, sizeof *a, "the optimiser"));
    *a = (sh_adamw){.p = p, .k = k, .pool = pool};
    a->n_piece = (int)((p->n_float + PIECE - 1) / PIECE);
    SH_GOTO(sh_alloc(&a->span, (size_t)p->n, sizeof *a->span, "the optimiser"));
    SH_GOTO(sh_alloc(&a->sum, (size_t)a->n_piece, sizeof *a->sum, "the optimiser"));
    find_spans(a);
    *out = a;
    return SH_OK;
out:
    sh_adamw_close(a);
    return err;
}

void sh_adamw_close(sh_adamw *a)
{
    if (!a) return;
    free(a->span);
    free(a->sum);
    free(a);
}

/* The floats of piece i. */
static size_t piece(const sh_adamw *a, int i, size_t *lo)
{
    *lo = (size_t)i * PIECE;
    return a->p->n_float - *lo < PIECE ? a->p->n_float - *lo : PIECE;
}

static void sum_pieces(void *arg, int thread, int n_thread)
{
    sh_adamw *a = arg;
    int i, end;
    size_t lo;
    sh_share(a->n_piece, thread, n_thread, &i, &end);
    for (; i < end; i++) {
        size_t n = piece(a, i, &lo);
        a->sum[i] = a->k->sum_squares(a->x + lo, n);
    }
}

double sh_adamw_norm(sh_adamw *a, const float *x)
{
    double sum = 0;
    a->x = x;
    sh_pool_run(a->pool, sum_pieces, a);
    for (int i = 0; i < a->n_piece; i++) sum += a->sum[i];
    return sqrt(sum);
}

static void update_pieces(void *arg, int thread, int n_thread)
{
    sh_adamw *a = arg;
    const sh_params *p = a->p;
    int first, last;
    sh_share(a->n_piece, thread, n_thread, &first, &last);
    size_t lo = (size_t)first * PIECE, hi = (size_t)last * PIECE;
    for (int i = 0; i < a->n_span; i++) {
        const span *s = &a->span[i];
        size_t from = s->lo > lo ? s->lo : lo, to = s->hi < hi ? s->hi : hi;
        if (from < to)
            a->k->adamw(p->w + from, a->x + from, p->m + from, p->v + from, to - from,
                        &a->step[s->decay]);
    }
}

/* beta^t; not by the C library, whose last bits differ between machines. */
static double power(double beta, int64_t t)
{
    return beta > 0 ? sh_exp((double)t * sh_ln(beta)) : 0;
}

void sh_adamw_update(sh_adamw *a, const float *g, int64_t t, const sh_adamw_numbers *n)
{
    double left1 = 1 - power(n->beta1, t), left2 = 1 - power(n->beta2, t);
    a->step[0] = (sh_adamw_step){.scale = (float)n->scale,
                                 .beta1 = (float)n->beta1,
                                 .rest1 = (float)(1 - n->beta1),
                                 .beta2 = (float)n->beta2,
                                 .rest2 = (float)(1 - n->beta2),
                                 .keep = 1,
                                 .rate = (float)(n->lr / left1),
                                 .root = (float)(1 / sqrt(left2)),
                                 .eps = 1e-8f};
    a->step[1] = a->step[0];
    a->step[1].keep = (float)(1 - n->lr * n->decay);
    a->x = g;
    sh_pool_run(a->pool, update_pieces, a);
}
