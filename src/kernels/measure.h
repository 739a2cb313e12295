/* What the cores can do at most now, measured by the rows `read` and `peak` of the kernels. */
#ifndef SH_KERNELS_MEASURE_H
#define SH_KERNELS_MEASURE_H

#include "base/threads.h"
#include "kernels/kernels.h"

typedef struct sh_measured {
    double read_bytes_per_s;
    double ops_per_s[SH_N_FORM];
} sh_measured;

/** The operations a second that all threads of the pool do together in that form. SH_ENOMEM. */
sh_err sh_measure_peak(double *ops_per_s, const sh_kernels *k, sh_pool *pool, sh_form form);

/** n_thread threads together, tied to cpu[0..n_thread) if cpu is not NULL: the sum of their rates
 * over five passes, in all forms. Reads memory that no cache can hold. SH_ENOMEM. */
sh_err sh_measure(sh_measured *out, int n_thread, const int *cpu);

#endif
