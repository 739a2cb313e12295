/* Operands of training: the common source with this instruction set's vectors. */
#include "kernels/neon/neon.h"
#include "kernels/operands.h"

void sh_operands_neon(sh_kernels *k)
{
    operands_overlay(k);
}
