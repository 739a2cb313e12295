#define _GNU_SOURCE
#include "base/mem.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

sh_err sh_alloc(void *out, size_t n, size_t size, const char *what)
{
    size_t bytes;
    void *p = NULL;
    *(void **)out = NULL;
    if (!sh_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 2)
        return sh_fail(SH_ENOMEM, "%s: the size overflows (%zu times %zu bytes)", what, n, size);
    if (posix_memalign(&p, 64, bytes ? bytes : 64))
        return sh_fail(SH_ENOMEM, "%s needs %zu bytes, which the system does not have", what, bytes);
    memset(p, 0, bytes ? bytes : 64);
    *(void **)out = p;
    return SH_OK;
}

sh_err sh_map(void *out, size_t bytes, const char *what)
{
    *(void **)out = NULL;
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return sh_fail(SH_ENOMEM, "%s needs %zu bytes, which the system does not have", what, bytes);
    madvise(p, bytes, MADV_HUGEPAGE);
    *(void **)out = p;
    return SH_OK;
}

void sh_unmap(void *p, size_t bytes)
{
    if (p) munmap(p, bytes ? bytes : 1);
}

sh_err sh_grow(void *p, size_t *cap, size_t want, size_t size, const char *what)
{
    size_t n = *cap ? *cap : 16, bytes;
    void *q;
    if (want <= *cap) return SH_OK;
    while (n < want)
        if (__builtin_mul_overflow(n, (size_t)2, &n)) n = want;
    if (!sh_mul_size(n, size, &bytes) || !(q = realloc(*(void **)p, bytes)))
        return sh_fail(SH_ENOMEM, "%s: no memory for %zu entries", what, n);
    memset((char *)q + *cap * size, 0, (n - *cap) * size);
    *(void **)p = q;
    *cap = n;
    return SH_OK;
}

size_t sh_memory_used_bytes(void)
{
    unsigned long total, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%lu %lu", &total, &resident) != 2) resident = 0;
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}
