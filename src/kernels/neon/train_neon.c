/* The rows of training: the common source with this instruction set's vectors. */
#include "kernels/neon/neon.h"
#include "kernels/train_rows.h"

void sh_train_neon(sh_kernels *k)
{
    train_overlay(k);
}
