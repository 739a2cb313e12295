/* The optimiser: the common source with this instruction set's vectors. */
#include "kernels/adamw_rows.h"
#include "kernels/avx512/avx512.h"

void sh_adamw_avx512(sh_kernels *k)
{
    adamw_overlay(k);
}
