/* The AMX matrix unit: the rows it improves. */
#include "kernels/amx/amx.h"

#include "base/cpu.h"

static void overlay(sh_kernels *k)
{
    sh_matmul_bf16_amx(k);
    sh_matmul_i8_amx(k);
    sh_attention_amx(k);
    sh_operands_amx(k);
    sh_peak_amx(k);
}

const sh_isa sh_isa_amx = {.name = "amx", .needs = SH_CPU_AMX, .overlay = overlay};
