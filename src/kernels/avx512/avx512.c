/* AVX-512 with VNNI: the rows it improves. */
#include "kernels/avx512/avx512.h"

#include "base/cpu.h"

static void overlay(sh_kernels *k)
{
    sh_matmul_avx512(k);
    sh_vector_avx512(k);
    sh_attention_avx512(k);
    sh_peak_avx512(k);
    sh_operands_avx512(k);
    sh_train_avx512(k);
    sh_adamw_avx512(k);
}

const sh_isa sh_isa_avx512 = {.name = "avx512", .needs = SH_CPU_AVX512, .overlay = overlay};
