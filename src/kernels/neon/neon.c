/* NEON with the dot product: the rows it improves. */
#include "base/cpu.h"
#include "kernels/kernels.h"

static void overlay(sh_kernels *k)
{
    (void)k;
}

const sh_isa sh_isa_neon = {.name = "neon", .needs = SH_CPU_NEON, .overlay = overlay};
