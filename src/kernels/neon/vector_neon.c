/* What happens to one token's vector: the common source with this instruction set's vectors. */
#include "kernels/neon/neon.h"

#include "kernels/vector_rows.h"

void sh_vector_neon(sh_kernels *k)
{
    vector_overlay(k);
}
