/* The parts of the C table. */
#ifndef SH_KERNELS_C_C_H
#define SH_KERNELS_C_C_H

#include "kernels/kernels.h"

#define VEC 4 /* floats of a vector that every x86-64 and ARM64 has */

void sh_matmul_c(sh_kernels *k);
void sh_vector_c(sh_kernels *k);
void sh_attention_c(sh_kernels *k);
void sh_peak_c(sh_kernels *k);
void sh_operands_c(sh_kernels *k);
void sh_train_c(sh_kernels *k);
void sh_adamw_c(sh_kernels *k);

#endif
