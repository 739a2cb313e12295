/* The rows of shoal bench, and how they are printed: a table, CSV or JSON. */
#ifndef SH_CLI_BENCH_TABLE_H
#define SH_CLI_BENCH_TABLE_H

#include <stdbool.h>

#include "shoal.h"

enum { SH_BENCH_MAX_REPEAT = 1000 };

typedef enum sh_bench_kind { SH_BENCH_PROMPT, SH_BENCH_DECODE, SH_BENCH_BATCH } sh_bench_kind;

/* One test. */
typedef struct sh_bench_row {
    sh_bench_kind kind;
    int n;     /* tokens of the prompt, steps of decoding */
    int n_seq; /* sequences at once */
    int depth; /* positions already in the cache */
    double tps[SH_BENCH_MAX_REPEAT];
    int before[SH_BENCH_MAX_REPEAT]; /* the last measuring of the ceilings before that repetition */
    double positions;                /* that a decoded token looked at, the mean */
    double mean, stddev, median, min, max;
    double ceiling, ratio; /* medians of the repetitions' */
    double max_ceiling;    /* by the best of all measurings */
    shoal_info info;
} sh_bench_row;

typedef struct sh_bench_table {
    const char *output; /* "md", "csv" or "json" */
    const char *model;  /* its name */
    bool begun;         /* a row was printed */
} sh_bench_table;

/** "pp512", "tg128", "b32" */
void sh_bench_name(char out[32], const sh_bench_row *r);
/** To stdout, after the heading if it is the first. */
void sh_bench_print(sh_bench_table *t, const sh_bench_row *r);
/** What closes the table. */
void sh_bench_end(const sh_bench_table *t);

#endif
