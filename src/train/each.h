/* Pieces of work shared among the threads of a pool, where each may fail. */
#ifndef SH_TRAIN_EACH_H
#define SH_TRAIN_EACH_H

#include <stddef.h>

#include "base/err.h"
#include "base/threads.h"

/** Calls fn(arg, thread, i) once for every i in [0, n), on any thread and in any order; stops
 * taking new i's when one fails. Returns the failure of the lowest i that failed, with its
 * sentence. */
sh_err sh_each(sh_pool *pool, size_t n, sh_err (*fn)(void *arg, int thread, size_t i), void *arg);

#endif
