#include "train/ranks.h"

#include <math.h>
#include <string.h>

typedef struct piece {
    const sh_group *group;
    float *x, *part;
    size_t n;
} piece;

size_t sh_share_floats(size_t n, int i, int n_thread, size_t *lo)
{
    size_t line = n / 16;
    *lo = line * (size_t)i / (size_t)n_thread * 16;
    return (i + 1 == n_thread ? n : line * (size_t)(i + 1) / (size_t)n_thread * 16) - *lo;
}

static void give_part(void *arg, int thread, int n_thread)
{
    const piece *p = arg;
    size_t lo, n = sh_share_floats(p->n, thread, n_thread, &lo);
    memcpy(p->part + lo, p->x + lo, n * sizeof(float));
    memset(p->x + lo, 0, n * sizeof(float));
}

static void take_sum(void *arg, int thread, int n_thread)
{
    const piece *p = arg;
    size_t lo, n = sh_share_floats(p->n, thread, n_thread, &lo);
    sh_group_add_sum(p->group, p->x + lo, lo, n);
}

sh_err sh_ranks_sum(sh_group *g, sh_pool *pool, float *x, size_t n)
{
    if (g->n_rank == 1) return SH_OK;
    for (size_t at = 0; at < n; at += SH_SUM_PIECE) {
        piece p = {.group = g, .x = x + at, .part = sh_group_part(g, 0)};
        p.n = n - at < SH_SUM_PIECE ? n - at : SH_SUM_PIECE;
        sh_pool_run(pool, give_part, &p);
        SH_TRY(sh_group_meet(g, p.n));
        sh_pool_run(pool, take_sum, &p);
    }
    return SH_OK;
}

/* A float64 travels as the three floats whose sum it is; all ranks but one add 0 to them. */
sh_err sh_ranks_losses(sh_group *g, double loss[8], bool *stop)
{
    enum { N = 3 * 8 };
    float sum[N + 1];
    if (g->n_rank == 1) return SH_OK;
    float *part = sh_group_part(g, 0);
    for (int i = 0; i < 8; i++) {
        float hi = (float)loss[i], mid = 0, lo = 0;
        if (isfinite(hi)) {
            mid = (float)(loss[i] - (double)hi);
            lo = (float)(loss[i] - (double)hi - (double)mid);
        }
        part[3 * i] = hi;
        part[3 * i + 1] = mid;
        part[3 * i + 2] = lo;
    }
    part[N] = *stop;
    SH_TRY(sh_group_sum(g, sum, N + 1));
    for (int i = 0; i < 8; i++)
        loss[i] = (double)sum[3 * i] + (double)sum[3 * i + 1] + (double)sum[3 * i + 2];
    *stop = sum[N] != 0;
    return SH_OK;
}
