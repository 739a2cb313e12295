/* AVX2 with FMA and F16C: the rows it improves. */
#include "kernels/avx2/avx2.h"

#include "base/cpu.h"

static void overlay(sh_kernels *k)
{
    sh_matmul_i8_avx2(k);
    sh_matmul_float_avx2(k);
    sh_vector_avx2(k);
    sh_attention_avx2(k);
    sh_peak_avx2(k);
    sh_operands_avx2(k);
    sh_train_avx2(k);
    sh_adamw_avx2(k);
}

const sh_isa sh_isa_avx2 = {.name = "avx2", .needs = SH_CPU_AVX2, .overlay = overlay};
