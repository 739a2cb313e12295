#define _GNU_SOURCE
#include "base/cpu.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

bool sh_cpu_streams;

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* Linux gives the 8 KiB of tile state only to processes that ask (arch/x86, "xstate" document). */
static bool amx_permission(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static bool is_amd(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx;
}

static unsigned detect(void)
{
    unsigned a, b, c, d, f = 0, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    unsigned xcr0, hi;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(hi) : "c"(0));
    bool ymm = (xcr0 & 6) == 6, zmm = (xcr0 & 0xe6) == 0xe6, tile = (xcr0 & 0x60000) == 0x60000;
    bool fma = (c & bit_FMA) && (c & bit_F16C);
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
    if (ymm && fma && (b7 & bit_AVX2)) f |= SH_CPU_AVX2;
    const unsigned f512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    if ((f & SH_CPU_AVX2) && zmm && (b7 & f512) == f512 && (c7 & bit_AVX512VNNI))
        f |= SH_CPU_AVX512;
    const unsigned famx = 1u << 22 | 1u << 24 | 1u << 25; /* amx-bf16, amx-tile, amx-int8 */
    if ((f & SH_CPU_AVX512) && tile && (d7 & famx) == famx && amx_permission()) f |= SH_CPU_AMX;
    sh_cpu_streams = is_amd() && !(f & SH_CPU_AVX512);
    return f;
}

uint64_t sh_cpu_enter(void)
{
    unsigned old = _mm_getcsr();
    /* all exceptions masked, round to nearest, flush-to-zero (bit 15), denormals-are-zero (bit 6)
     */
    _mm_setcsr(0x1f80u | 1u << 15 | 1u << 6);
    return old;
}

void sh_cpu_leave(uint64_t state)
{
    _mm_setcsr((unsigned)state);
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

static unsigned detect(void)
{
    enum { HWCAP_ASIMDDP_BIT = 1 << 20, HWCAP2_I8MM_BIT = 1 << 13 };
    if (!(getauxval(AT_HWCAP) & HWCAP_ASIMDDP_BIT)) return 0;
    return SH_CPU_NEON | (getauxval(AT_HWCAP2) & HWCAP2_I8MM_BIT ? SH_CPU_I8MM : 0);
}

uint64_t sh_cpu_enter(void)
{
    uint64_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)1 << 24)); /* FZ; round to nearest */
    return old;
}

void sh_cpu_leave(uint64_t state)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(state));
}

#else
#error "this processor's floating-point control is not known: see docs/numerics.md"
#endif

static unsigned features;
static void set_features(void)
{
    features = detect();
}

unsigned sh_cpu_features(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_features);
    return features;
}

void sh_cpu_name(char *out, size_t cap)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    *out = 0;
    while (f && !*out && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, cap, "%s", colon + 1 + strspn(colon + 1, " "));
    }
    if (f) fclose(f);
}
