#define _GNU_SOURCE
#include "train/report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/spawn.h"

static const char header[] = "iter,tokens,train_loss,val_loss,lr,tokens_per_s,seconds\n";

/* ---- loss.csv ---- */

static sh_err sys_fail(const sh_report *r, const char *what)
{
    return sh_fail(SH_ESYS, "%s: cannot %s the file: %s", r->csv, what, strerror(errno));
}

static sh_err put(sh_report *r, const char *text, size_t n)
{
    ssize_t m = write(r->fd, text, n);
    if (m >= 0 && (size_t)m < n) errno = ENOSPC; /* a part of a line: the next start removes it */
    return m == (ssize_t)n ? SH_OK : sys_fail(r, "write");
}

/* How many bytes the header and the whole rows up to an iteration are. */
static size_t rows_until(const char *text, size_t n, int64_t iter)
{
    size_t at = 0, n_header = sizeof header - 1;
    if (n < n_header || memcmp(text, header, n_header) != 0) return 0;
    for (at = n_header; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end || strtoll(text + at, NULL, 10) > iter) break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

static sh_err keep_rows(sh_report *r, int64_t iter)
{
    char *text = NULL;
    size_t n = 0;
    if (iter >= 0 && access(r->csv, F_OK) == 0) {
        SH_TRY(sh_file_read_text(&text, &n, r->csv, (size_t)1 << 30));
        n = rows_until(text, n, iter);
    }
    free(text);
    if (ftruncate(r->fd, (off_t)n) != 0) return sys_fail(r, "cut");
    return n == 0 ? put(r, header, sizeof header - 1) : SH_OK;
}

sh_err sh_report_add(sh_report *r, const sh_report_row *row)
{
    char line[256], val[40] = "";
    if (!isnan(row->val_loss)) snprintf(val, sizeof val, "%.9g", row->val_loss);
    int n = snprintf(line, sizeof line, "%" PRId64 ",%" PRIu64 ",%.9g,%s,%.6g,%.6g,%.3f\n",
                     row->iter, row->n_tok, row->train_loss, val, row->lr, row->tps, row->seconds);
    return put(r, line, (size_t)n);
}

/* ---- the picture ---- */

/* The program of that name on $PATH, or NULL. */
static char *find_program(const char *name)
{
    const char *path = getenv("PATH");
    for (const char *p = path ? path : "/usr/bin"; *p;) {
        size_t n = strcspn(p, ":");
        char *full = NULL;
        if (n && asprintf(&full, "%.*s/%s", (int)n, p, name) < 0) return NULL;
        if (full && access(full, X_OK) == 0) return full;
        free(full);
        p += n + (p[n] == ':');
    }
    return NULL;
}

/* In a string of gnuplot between ' and ', a ' is written twice. */
static void quote(char *out, size_t cap, const char *text)
{
    size_t k = 0;
    for (; *text && k + 2 < cap; text++) {
        out[k++] = *text;
        if (*text == '\'') out[k++] = '\'';
    }
    out[k] = 0;
}

void sh_report_draw(sh_report *r)
{
    char how[64], csv[4096], picture[4096], *script = NULL;
    if (!r->gnuplot) return;
    r->old = r->plot && !sh_child_ended(&r->plot, how, sizeof how);
    if (r->old) return;
    quote(csv, sizeof csv, r->csv);
    quote(picture, sizeof picture, r->picture);
    if (asprintf(&script,
                 "set terminal svg size 900,500 background 'white'; set output '%s'; "
                 "set datafile separator ','; set key top center; set grid; "
                 "set xlabel 'iteration'; set ylabel 'loss'; set y2label 'learning rate'; "
                 "set ytics nomirror; set y2tics; set y2range [0:*]; f = '%s'; "
                 "plot f skip 1 using 1:5 axes x1y2 with lines lc rgb '#cccccc' "
                 "title 'learning rate', f skip 1 using 1:3 with lines lc rgb '#1f77b4' "
                 "title 'training loss', f skip 1 using 1:(valid(4) ? column(4) : 1/0) "
                 "with points pt 7 ps 0.6 lc rgb '#d62728' title 'validation loss'",
                 picture, csv) < 0)
        return;
    char *argv[] = {"gnuplot", "-e", script, NULL};
    if (sh_spawn(&r->plot, r->gnuplot, argv, -1) != SH_OK)
        sh_log(SH_LOG_WARN, "no picture: %s", sh_err_message());
    free(script);
}

/* ---- opening ---- */

sh_err sh_report_open(sh_report *r, const char *dir, int64_t iter)
{
    sh_err err;
    *r = (sh_report){.fd = -1};
    if (asprintf(&r->csv, "%s/loss.csv", dir) < 0) r->csv = NULL;
    if (asprintf(&r->picture, "%s/loss.svg", dir) < 0) r->picture = NULL;
    if (!r->csv || !r->picture) {
        err = sh_fail(SH_ENOMEM, "no memory for a file name");
        goto out;
    }
    r->fd = open(r->csv, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (r->fd < 0) {
        err = sys_fail(r, "create");
        goto out;
    }
    SH_GOTO(keep_rows(r, iter));
    r->gnuplot = find_program("gnuplot");
    if (!r->gnuplot)
        sh_log(SH_LOG_INFO, "no picture of the losses: gnuplot is not installed; they are in %s",
               r->csv);
    return SH_OK;
out:
    sh_report_close(r);
    return err;
}

void sh_report_close(sh_report *r)
{
    if (!r->csv && !r->picture) return;
    sh_child_wait(&r->plot, 10000);
    if (r->old) sh_report_draw(r);
    sh_child_wait(&r->plot, 10000);
    if (r->fd >= 0) close(r->fd);
    free(r->csv);
    free(r->picture);
    free(r->gnuplot);
    *r = (sh_report){.fd = -1};
}

const char *sh_report_time(char *buf, size_t cap, double seconds)
{
    long s = seconds > 0 && seconds < 1e9 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(buf, cap, "%ld h %02ld min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(buf, cap, "%ld min %02ld s", s / 60, s % 60);
    else
        snprintf(buf, cap, "%ld s", s);
    return buf;
}
