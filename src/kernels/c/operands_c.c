/* Operands of training: the common source with this instruction set's vectors. */
#include "kernels/c/c.h"
#include "kernels/operands.h"

void sh_operands_c(sh_kernels *k)
{
    operands_overlay(k);
}
