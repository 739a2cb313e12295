/* Runs a fuzz target over files, or over all files of folders, without a fuzzer: for gcc and for
 * CI. One TAP line per file; a target that finds a fault aborts. */
#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int n_file;

static int run_file(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    size_t n = (size_t)st->st_size;
    if (kind != FTW_F) return 0;
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(n ? n : 1); /* exactly as large: a sanitizer sees a read past the end */
    if (!f || !data || fread(data, 1, n, f) != n) {
        printf("Bail out! %s: cannot be read: %s\n", path, strerror(errno));
        exit(1);
    }
    fclose(f);
    fprintf(stderr, "%s\n", path); /* so that an abort has a name */
    LLVMFuzzerTestOneInput(data, n);
    free(data);
    printf("ok %d - %s\n", ++n_file, path + ftw->base);
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (nftw(argv[i], run_file, 8, FTW_PHYS) != 0) {
            printf("Bail out! %s: cannot be read: %s\n", argv[i], strerror(errno));
            return 1;
        }
    if (!n_file) puts("not ok 1 - no files were given");
    printf("1..%d\n", n_file ? n_file : 1);
    return n_file ? 0 : 1;
}
