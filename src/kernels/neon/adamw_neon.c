/* The optimiser: the common source with this instruction set's vectors. */
#include "kernels/adamw_rows.h"
#include "kernels/neon/neon.h"

void sh_adamw_neon(sh_kernels *k)
{
    adamw_overlay(k);
}
