/* Attention: the common sources with this instruction set's vectors and runs. */
#include "kernels/neon/neon.h"

#include "kernels/attend_rows.h"

void sh_attention_neon(sh_kernels *k)
{
    attention_overlay(k);
    attend_overlay(k);
}
