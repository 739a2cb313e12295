/* Models without a file, for the bench: "shape:NAME:TYPE" or "shape:NAME:TYPE:SEED". */
#ifndef SH_FORMATS_SHAPE_H
#define SH_FORMATS_SHAPE_H

#include <stdbool.h>

#include "base/file.h"

bool sh_shape_is(const char *path);

/** Makes what looks like a mapped GGUF file: real header, norms of ones, and matrices of seeded
 * random values. All matrices lie over one window of memory that is mapped again and again, so that
 * the largest model costs some megabytes. Close with sh_file_close. SH_EARG: no such shape or type;
 * lists them. */
sh_err sh_shape_open(sh_file *f, const char *path);

#endif
