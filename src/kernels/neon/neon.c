/* NEON with the dot product: the rows it improves. */
#include "kernels/neon/neon.h"

#include "base/cpu.h"

static void overlay(sh_kernels *k)
{
    sh_matmul_i8_neon(k);
    sh_matmul_float_neon(k);
    sh_vector_neon(k);
    sh_attention_neon(k);
    sh_peak_neon(k);
    sh_operands_neon(k);
    sh_train_neon(k);
    sh_adamw_neon(k);
}

const sh_isa sh_isa_neon = {.name = "neon", .needs = SH_CPU_NEON, .overlay = overlay};
