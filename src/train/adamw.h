/* The optimiser: AdamW with decoupled weight decay and bias correction, after the gradient was cut
 * to a norm. The same bits whatever the number of threads. */
#ifndef SH_TRAIN_ADAMW_H
#define SH_TRAIN_ADAMW_H

#include "base/threads.h"
#include "kernels/kernels.h"
#include "train/params.h"

typedef struct sh_adamw sh_adamw;

sh_err sh_adamw_open(sh_adamw **out, const sh_params *p, const sh_kernels *k, sh_pool *pool);
void sh_adamw_close(sh_adamw *a); /* accepts NULL */

/** The square root of the sum of x[i]^2, x (n_float): summed in float64 in fixed pieces. */
double sh_adamw_norm(sh_adamw *a, const float *x);

typedef struct sh_adamw_numbers {
    double lr, beta1, beta2, decay;
    double scale; /* that the gradients are multiplied by */
} sh_adamw_numbers;

/** Step number t, from 1: p->w, m, v by the gradients g (n_float). */
void sh_adamw_update(sh_adamw *a, const float *g, int64_t t, const sh_adamw_numbers *n);

#endif
