/* The rows of training: the common source with this instruction set's vectors. */
#include "kernels/avx512/avx512.h"
#include "kernels/train_rows.h"

void sh_train_avx512(sh_kernels *k)
{
    train_overlay(k);
}
