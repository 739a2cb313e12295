/* What the cores can do at most now, measured by the rows `read` and `peak` of the kernels. */
#ifndef SH_ENGINE_MEASURE_H
#define SH_ENGINE_MEASURE_H

#include "kernels/kernels.h"

typedef struct sh_measured {
    double read_bytes_per_s;
    double ops_per_s[SH_N_FORM];
} sh_measured;

/** n_thread threads together, tied to cpu[0..n_thread) if cpu is not NULL: the sum of their rates
 * over five passes. Reads memory that no cache can hold. SH_ENOMEM. */
sh_err sh_measure(sh_measured *out, int n_thread, const int *cpu);

#endif
