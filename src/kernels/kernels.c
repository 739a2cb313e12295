/* The list of instruction sets and the filling of the table. */
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

const sh_isa *const sh_isas[] = {
    &sh_isa_c,
#if defined(__x86_64__)
    &sh_isa_avx2,
    &sh_isa_avx512,
    &sh_isa_amx,
#elif defined(__aarch64__)
    &sh_isa_neon,
#endif
    NULL,
};

sh_err sh_kernels_init(sh_kernels *k, const char *upto)
{
    char names[128] = "";
    bool found = false;
    unsigned have = sh_cpu_features();
    memset(k, 0, sizeof *k);
    if (!upto) upto = getenv("SHOAL_CPU");
    for (int i = 0; sh_isas[i]; i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", sh_isas[i]->name);
        if (!found && (sh_isas[i]->needs & have) == sh_isas[i]->needs) sh_isas[i]->overlay(k);
        if (upto && strcmp(upto, sh_isas[i]->name) == 0) found = true;
    }
    if (upto && *upto && !found)
        return sh_fail(SH_EARG, "no instruction set is called '%s'; known: %s", upto, names);
    return SH_OK;
}

bool sh_kernels_have_amx(void)
{
    unsigned have = sh_cpu_features();
    for (int i = 0; sh_isas[i]; i++)
        if ((sh_isas[i]->needs & SH_CPU_AMX) && (sh_isas[i]->needs & have) == sh_isas[i]->needs) return true;
    return false;
}
