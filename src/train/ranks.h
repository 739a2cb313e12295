/* What the ranks of a training tell each other: gradients and losses, summed. */
#ifndef SH_TRAIN_RANKS_H
#define SH_TRAIN_RANKS_H

#include <stdbool.h>

#include "base/threads.h"
#include "comm/group.h"

enum { SH_SUM_PIECE = 1 << 20 }; /* floats that are summed at once: the group's part_floats */

/** x (n) = the sum of all ranks' x, alike on every rank. */
sh_err sh_ranks_sum(sh_group *g, sh_pool *pool, float *x, size_t n);

/** loss (8): each rank has the sums of its slices and 0 for the others; then all have all, exactly.
 *  *stop: whether any rank said so. */
sh_err sh_ranks_losses(sh_group *g, double loss[8], bool *stop);

/** The canonical tree's sum. */
static inline double sh_tree8(const double v[8])
{
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/** Thread i of n_thread does the floats [*lo, *lo + the result) of n: whole cache lines. */
size_t sh_share_floats(size_t n, int i, int n_thread, size_t *lo);

#endif
