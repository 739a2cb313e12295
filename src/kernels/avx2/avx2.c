/* AVX2 with FMA and F16C: the rows it improves. */
#include "base/cpu.h"
#include "kernels/kernels.h"

static void overlay(sh_kernels *k)
{
    (void)k;
}

const sh_isa sh_isa_avx2 = {.name = "avx2", .needs = SH_CPU_AVX2, .overlay = overlay};
