/* The rows of training: the common source with this instruction set's vectors. */
#include "kernels/avx2/avx2.h"
#include "kernels/train_rows.h"

void sh_train_avx2(sh_kernels *k)
{
    train_overlay(k);
}
