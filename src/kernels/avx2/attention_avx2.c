/* Attention: the common sources with this instruction set's vectors and runs. */
#include "kernels/avx2/avx2.h"

#include "kernels/attend_rows.h"

void sh_attention_avx2(sh_kernels *k)
{
    attention_overlay(k);
    attend_overlay(k);
}
