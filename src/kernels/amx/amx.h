/* The parts of the AMX table. */
#ifndef SH_KERNELS_AMX_AMX_H
#define SH_KERNELS_AMX_AMX_H

#include "kernels/kernels.h"

void sh_peak_amx(sh_kernels *k);

#endif
