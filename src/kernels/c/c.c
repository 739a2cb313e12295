/* Portable C: every row of the table, and the specification that other instruction sets are tested
 * against. */
#include "kernels/c/c.h"

static void overlay(sh_kernels *k)
{
    sh_matmul_c(k);
    sh_vector_c(k);
    sh_attention_c(k);
    sh_peak_c(k);
    sh_operands_c(k);
    sh_train_c(k);
    sh_adamw_c(k);
}

const sh_isa sh_isa_c = {.name = "c", .needs = 0, .overlay = overlay};
