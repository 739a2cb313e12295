/* Weights are asked for before they are needed. */
#ifndef SH_KERNELS_AHEAD_H
#define SH_KERNELS_AHEAD_H

#include "base/cpu.h"
#include "kernels/kernels.h"

enum { SH_STREAMS = 4 }; /* that are read at once, where sh_cpu_streams says so */

/* Once for every 256 bytes that are read, in the order of their addresses. x86's processors read
 * ahead by themselves, but only within a page of 4 KiB, and start anew at each: so one line of the
 * first 1024 bytes of a page soon to come is asked for into the second-level cache, and the rest of
 * that page follows. See bench/README.md for what it gives; on ARM it was not measured. */
SH_INLINE void sh_ask_page(const void *p)
{
#ifdef __x86_64__
    enum { PAGE = 4096, FAR = 3 * PAGE };
    if (sh_cpu_streams) return;
    size_t in_page = (uintptr_t)p % PAGE;
    __builtin_prefetch((const char *)p - in_page + FAR + in_page / 4, 0, 2);
#else
    (void)p;
#endif
}

/* n bytes at p are read, in the order of their addresses, and later those at p + ahead; n is a
 * multiple of 64. */
SH_INLINE void sh_ask_for(const void *p, ptrdiff_t ahead, const int n)
{
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + ahead + i);
#pragma GCC unroll 4
    for (int i = 0; i < n; i += 256) sh_ask_page((const char *)p + i);
}

enum { SH_AHEAD = 4096 };

/* The same where memory is read as one stream. */
SH_INLINE void sh_ask_ahead(const void *p, const int n)
{
    sh_ask_for(p, SH_AHEAD, n);
}

/* The scales of block b are read. They follow the weights of their panel: those of the next panel
 * are asked for. */
SH_INLINE void sh_ask_scales(const void *p, size_t panel_bytes, int b)
{
    if (b % 2 == 0) __builtin_prefetch((const char *)p + panel_bytes);
    if (b % 8 == 0) sh_ask_page(p);
}

#endif
