/* Weights are asked for before they are needed. */
#ifndef SH_KERNELS_AHEAD_H
#define SH_KERNELS_AHEAD_H

#include "kernels/kernels.h"

enum { SH_AHEAD = 4096 }; /* bytes of weights that are asked for ahead of their use */

/* n bytes at p are read, in the order of their addresses; n is a multiple of 64.
 *
 * The processor reads ahead by itself, but x86's only within a page of 4 KiB: it starts anew at
 * each. So for every 256 bytes one line of the first 1024 of a page soon to come is asked for into
 * the second-level cache, and the rest of that page follows. See bench/README.md for what it gives;
 * ARM's was not measured. */
SH_INLINE void sh_ask_ahead(const void *p, const int n)
{
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i + SH_AHEAD);
#ifdef __x86_64__
    enum { PAGE = 4096, FAR = 3 * PAGE };
#pragma GCC unroll 4
    for (int i = 0; i < n; i += 256) {
        const char *at = (const char *)p + i;
        size_t in_page = (uintptr_t)at % PAGE;
        __builtin_prefetch(at - in_page + FAR + in_page / 4, 0, 2);
    }
#endif
}

#endif
