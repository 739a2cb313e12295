/* AVX-512 with VNNI: the rows it improves. */
#include "base/cpu.h"
#include "kernels/kernels.h"

static void overlay(sh_kernels *k)
{
    (void)k;
}

const sh_isa sh_isa_avx512 = {.name = "avx512", .needs = SH_CPU_AVX512, .overlay = overlay};
