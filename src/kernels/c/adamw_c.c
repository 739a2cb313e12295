/* The optimiser: the common source with this instruction set's vectors. */
#include "kernels/adamw_rows.h"
#include "kernels/c/c.h"

void sh_adamw_c(sh_kernels *k)
{
    adamw_overlay(k);
}
