/* Operands of training: the common source with this instruction set's vectors. */
#include "kernels/avx512/avx512.h"

#define WORDS_TRANSPOSE SH_INLINE /* 16 of 32 registers */
#include "kernels/operands.h"

void sh_operands_avx512(sh_kernels *k)
{
    operands_overlay(k);
}
