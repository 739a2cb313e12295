/* The optimiser: the common source with this instruction set's vectors. */
#include "kernels/adamw_rows.h"
#include "kernels/avx2/avx2.h"

void sh_adamw_avx2(sh_kernels *k)
{
    adamw_overlay(k);
}
