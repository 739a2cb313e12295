/* Memory: checked sizes, zeroed and aligned blocks. */
#ifndef SH_BASE_MEM_H
#define SH_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/** *out = a * b; false if that overflows. */
static inline bool sh_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/** n * size zeroed bytes, aligned to 64, in *out (a pointer to a pointer). Free with free().
 *  n * size of 0 gives a valid pointer. SH_ENOMEM names `what` and the size. */
sh_err sh_alloc(void *out, size_t n, size_t size, const char *what);

/** Large zeroed memory straight from the OS, touched only when used, on huge pages where the
 *  system gives them. Free with sh_unmap. */
sh_err sh_map(void *out, size_t bytes, const char *what);
void sh_unmap(void *p, size_t bytes);

/** Grows *p (elements of `size` bytes, *cap of them) to hold at least `want`; doubles. */
sh_err sh_grow(void *p, size_t *cap, size_t want, size_t size, const char *what);

/** Physical memory this process has in use, bytes; 0 if unknown. */
size_t sh_memory_used_bytes(void);

/** Physical memory this process could still get: what the system has available, or the control
 * group (version 2) or its parents leave, whichever is less; 0 if unknown. */
size_t sh_memory_free_bytes(void);

#endif
