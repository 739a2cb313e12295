/* What happens to one token's vector: the common source with this instruction set's vectors. */
#include "kernels/avx2/avx2.h"

#include "kernels/vector_rows.h"

void sh_vector_avx2(sh_kernels *k)
{
    vector_overlay(k);
}
