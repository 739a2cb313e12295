/* What a run leaves to see: loss.csv with a row for each line of progress, and loss.svg, a picture
 * of it by gnuplot, if that is installed. */
#ifndef SH_TRAIN_REPORT_H
#define SH_TRAIN_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

typedef struct sh_report {
    char *csv, *picture; /* paths */
    char *gnuplot;       /* path; NULL: not installed */
    int fd;              /* of csv */
    pid_t plot;          /* gnuplot at work; 0: none */
    bool old;            /* the picture is older than loss.csv */
} sh_report;

typedef struct sh_report_row {
    int64_t iter;
    uint64_t n_tok;
    double train_loss, val_loss; /* NaN: not evaluated */
    double lr, tps, seconds;
} sh_report_row;

/** Begins loss.csv in the folder, or, with `iter` of 0 or more, goes on after the rows up to that
 *  iteration. SH_ESYS. Close with sh_report_close, which accepts a zeroed one. */
sh_err sh_report_open(sh_report *r, const char *dir, int64_t iter);
/** Waits a moment for a picture that is being drawn. */
void sh_report_close(sh_report *r);

/** One row, by one write: a run that is killed leaves whole lines. SH_ESYS. */
sh_err sh_report_add(sh_report *r, const sh_report_row *row);

/** Draws the picture anew, beside what goes on, unless the last one is still being drawn. */
void sh_report_draw(sh_report *r);

/** "2 h 05 min", "3 min 20 s", "7 s" */
const char *sh_report_time(char *buf, size_t cap, double seconds);

#endif
