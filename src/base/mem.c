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
    bool large = bytes >= (size_t)4 << 20; /* worth huge pages */
    if (posix_memalign(&p, large ? (size_t)2 << 20 : 64, bytes ? bytes : 64))
        return sh_fail(SH_ENOMEM, "%s needs %zu bytes, which the system does not have", what,
                       bytes);
    if (large) madvise(p, bytes, MADV_HUGEPAGE);
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
        return sh_fail(SH_ENOMEM, "%s needs %zu bytes, which the system does not have", what,
                       bytes);
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

/* The number after `key` in a file of lines "key value"; `none` if it is not there. An empty key:
 * the file begins with the number. */
static size_t number_in(const char *path, const char *key, size_t none)
{
    char line[256];
    size_t n = strlen(key), v = none;
    FILE *f = fopen(path, "r");
    if (!f) return none;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0 && sscanf(line + n, "%zu", &v) == 1) break;
    fclose(f);
    return v;
}

/* What one control group leaves; its cached file pages would make room. */
static size_t group_free(const char *dir)
{
    char path[640];
    snprintf(path, sizeof path, "%s/memory.max", dir);
    size_t max = number_in(path, "", SIZE_MAX); /* "max": no limit */
    snprintf(path, sizeof path, "%s/memory.current", dir);
    size_t used = number_in(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    size_t cached = number_in(path, "inactive_file ", 0) + number_in(path, "active_file ", 0);
    if (max == SIZE_MAX) return max;
    used = used > cached ? used - cached : 0;
    return max > used ? max - used : 0;
}

size_t sh_memory_free_bytes(void)
{
    static const char root[] = "/sys/fs/cgroup";
    char dir[512], line[400];
    size_t kib = number_in("/proc/meminfo", "MemAvailable:", 0);
    size_t least = kib ? kib * 1024 : SIZE_MAX, n;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::", 3) != 0) continue;
        snprintf(dir, sizeof dir, "%s%s", root, strcmp(line + 3, "/") ? line + 3 : "");
        while (strlen(dir) >= strlen(root)) { /* this group and its parents */
            if ((n = group_free(dir)) < least) least = n;
            *strrchr(dir, '/') = 0;
        }
    }
    if (f) fclose(f);
    return least == SIZE_MAX ? 0 : least;
}
