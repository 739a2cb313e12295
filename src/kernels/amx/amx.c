/* The AMX matrix unit: the rows it improves. */
#include "base/cpu.h"
#include "kernels/kernels.h"

static void overlay(sh_kernels *k)
{
    (void)k;
}

const sh_isa sh_isa_amx = {.name = "amx", .needs = SH_CPU_AMX, .overlay = overlay};
