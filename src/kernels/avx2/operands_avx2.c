/* Operands of training: the common source with this instruction set's vectors. */
#include "kernels/avx2/avx2.h"
#include "kernels/operands.h"

void sh_operands_avx2(sh_kernels *k)
{
    operands_overlay(k);
}
