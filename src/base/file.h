/* A whole file, read-only and memory-mapped. */
#ifndef SH_BASE_FILE_H
#define SH_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct sh_file {
    char *path;
    const uint8_t *data; /* NULL if the file is empty */
    size_t n_bytes;
    bool mapped; /* data is a clean map: its pages can be let go and come back */
} sh_file;

/** SH_EFILE: the file is missing, is a folder, or cannot be read; the sentence names it. */
sh_err sh_file_open(sh_file *f, const char *path);
/** Accepts a zeroed or closed file. */
void sh_file_close(sh_file *f);

/** Reads a whole small text file ("-" is stdin) into *out, NUL-terminated, *n bytes without the
 * NUL; free(*out). SH_EFILE: missing, unreadable, or larger than max_bytes. */
sh_err sh_file_read_text(char **out, size_t *n, const char *path, size_t max_bytes);

#endif
