/* What this CPU and operating system can do, and the cores this process may use. */
#ifndef SH_BASE_CPU_H
#define SH_BASE_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Features that kernels ask for; a bit is set only if CPU and operating system both allow it. */
enum {
    SH_CPU_AVX2 = 1 << 0,   /* with FMA and F16C */
    SH_CPU_AVX512 = 1 << 1, /* F, BW, VL, DQ, VNNI */
    SH_CPU_AMX = 1 << 2,    /* tile, bf16, int8; permission was granted */
    SH_CPU_NEON = 1 << 3,   /* with the dot product */
    SH_CPU_I8MM = 1 << 4,   /* and the matrix product of bytes */
};

/** The bits of this machine. The first call asks Linux for the AMX tile state, so it must come
 * before threads start; later calls are cheap. */
unsigned sh_cpu_features(void);

/** Whether it reads memory fastest as several streams, and not asked for pages: AMD's, as measured
 * on Zen 3; those with AVX-512 were not measured. Set by the first call of sh_cpu_features; tests
 * change it. */
extern bool sh_cpu_streams;

/** Sets this thread's floating point to what the arithmetic contract demands: round to nearest,
 *  results and operands too small to be normal are zero. Returns the old state for sh_cpu_leave. */
uint64_t sh_cpu_enter(void);
void sh_cpu_leave(uint64_t state);

/** One logical CPU of each physical core this process may run on, in the order of the topology, at
 *  most `max`, in cpu[]; returns how many (at least 1). */
int sh_cpu_cores(int *cpu, int max);

/** The processor's name as the system gives it, "" if it does not. */
void sh_cpu_name(char *out, size_t cap);

/** Ties the calling thread to one logical CPU; cpu < 0 does nothing. */
void sh_cpu_bind(int cpu);

/** Tells the CPU that this thread is spinning. */
static inline void sh_cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
