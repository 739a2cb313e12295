#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

sh_err sh_file_open(sh_file *f, const char *path)
{
    struct stat st;
    sh_err err = SH_OK;
    *f = (sh_file){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sh_fail(SH_EFILE, "%s: cannot open the file: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        err = sh_fail(SH_EFILE, "%s: cannot read the file: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        err = sh_fail(SH_EFILE, "%s: not a regular file", path);
    } else if (!(f->path = strdup(path))) {
        err = sh_fail(SH_ENOMEM, "%s: no memory for the name", path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            err = sh_fail(SH_EFILE, "%s: cannot map the file: %s", path, strerror(errno));
        } else {
            f->data = p;
            f->mapped = true;
            f->n_bytes = (size_t)st.st_size;
        }
    }
    close(fd);
    if (err != SH_OK) sh_file_close(f);
    return err;
}

void sh_file_close(sh_file *f)
{
    if (f->data) munmap((void *)f->data, f->n_bytes);
    free(f->path);
    *f = (sh_file){0};
}

sh_err sh_file_read_text(char **out, size_t *n, const char *path, size_t max_bytes)
{
    char *text = NULL;
    size_t cap = 0, len = 0;
    sh_err err = SH_OK;
    int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    *out = NULL;
    if (fd < 0) return sh_fail(SH_EFILE, "%s: cannot open the file: %s", path, strerror(errno));
    for (;;) {
        SH_GOTO(sh_grow(&text, &cap, len + 65537, 1, path));
        ssize_t got = read(fd, text + len, 65536);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            err = sh_fail(SH_EFILE, "%s: cannot read the file: %s", path, strerror(errno));
            goto out;
        }
        if (got == 0) break;
        len += (size_t)got;
        if (len > max_bytes) {
            err =
                sh_fail(SH_EFILE, "%s: more than %zu bytes, the most this reads", path, max_bytes);
            goto out;
        }
    }
    text[len] = 0;
    *out = text;
    *n = len;
    text = NULL;
out:
    free(text);
    if (fd != STDIN_FILENO) close(fd);
    return err;
}
