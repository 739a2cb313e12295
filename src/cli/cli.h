/* What the commands share: the table of commands, flags, exit statuses. */
#ifndef SH_CLI_CLI_H
#define SH_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* One command = one const struct in one file and one row in sh_commands (main.c). */
typedef struct sh_command {
    const char *name;
    const char *summary;                /* one line for `shoal --help` */
    int (*main)(int argc, char **argv); /* argv[0] is the command's name; returns the exit status */
    bool hidden;                        /* not in the help: started by shoal itself */
} sh_command;

extern const sh_command *const sh_commands[]; /* ends with NULL */
extern const sh_command sh_command_run, sh_command_worker, sh_command_inspect, sh_command_tokenize,
    sh_command_quantize, sh_command_rank, sh_command_bench, sh_command_prepare, sh_command_train;

typedef enum sh_flag_kind {
    SH_FLAG_BOOL,  /* bool *: no value; sets true */
    SH_FLAG_NO,    /* bool *: no value; sets false */
    SH_FLAG_INT,   /* int * */
    SH_FLAG_I64,   /* int64_t * */
    SH_FLAG_FLOAT, /* float * */
    SH_FLAG_STR,   /* const char **: points into argv */
    SH_FLAG_STRS,  /* sh_flag_strs *: may be given several times */
} sh_flag_kind;

typedef struct sh_flag_strs {
    const char *v[16];
    int n;
} sh_flag_strs;

typedef struct sh_flag {
    const char *names; /* "-m, --model": every spelling, comma-separated, as the help shows them */
    const char *value; /* "FILE"; NULL for SH_FLAG_BOOL and SH_FLAG_NO */
    sh_flag_kind kind;
    void *dst;        /* holds the default before parsing */
    double min, max;  /* bounds of numbers; both 0: none */
    const char *help; /* one line; the default is added if it names none; NULL: not shown */
} sh_flag;

/** Parses argv[1..]. "--flag value" and "--flag=value" are the same; "--" ends the flags. At most
 *  max_arg other arguments go to arg[], *n_arg of them. With --help or -h among the flags prints
 *  "usage: ", `usage` and the help made from the table to stdout and sets *help; nothing else is
 *  looked at. A value may begin with '-', but one that spells a known flag is given with '='.
 *  SH_EARG: an unknown flag (with the nearest known one, if it is near), a missing or bad value,
 *  too many arguments; ends with "see shoal NAME --help". */
sh_err sh_flags_parse(const char *usage, const sh_flag *flags, int n_flag, int argc, char **argv,
                      const char **arg, int max_arg, int *n_arg, bool *help);

/* The nearest of the words that were tried, for "did you mean"; {0} at the start. */
typedef struct sh_near {
    char word[32]; /* "" if none is near */
    int distance;
} sh_near;

/** Takes the n bytes at `known` if they are near to `word`, and nearer than those tried before. */
void sh_near_try(sh_near *best, const char *word, const char *known, size_t n);

/** Where *model is NULL: $SHOAL_MODEL, or the project's own model where it stands beside the
 * program. SH_EARG: neither is there. */
sh_err sh_default_model(const char **model, const char *command);

/** Prints "shoal NAME: sentence" to stderr and gives the exit status of the code: 2 for SH_EARG and
 *  SH_EFILE, 1 for the others, 0 for SH_OK (printing nothing). `command` may be NULL. */
int sh_exit(const char *command, sh_err err);

#endif
