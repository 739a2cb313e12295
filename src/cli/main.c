/* The program: the table of commands, and what happens before and after each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "comm/group.h"

const sh_command *const sh_commands[] = {
    &sh_command_run,      &sh_command_bench,
    &sh_command_worker,   &sh_command_inspect,
    &sh_command_tokenize, &sh_command_quantize,
    &sh_command_rank,     &sh_command_prepare,
    &sh_command_train,    NULL,
};

static void print_help(FILE *out)
{
    fputs("Shoal runs a language model on several devices, with one answer.\n\n"
          "usage: shoal COMMAND [flags]\n\n",
          out);
    for (int i = 0; sh_commands[i]; i++)
        if (!sh_commands[i]->hidden)
            fprintf(out, "  %-10s  %s\n", sh_commands[i]->name, sh_commands[i]->summary);
    fputs("\n'shoal COMMAND --help' shows the flags of a command; 'shoal --version' the version.\n",
          out);
}

static sh_err fail_unknown(const char *word)
{
    char list[256] = "";
    size_t at = 0;
    sh_near near = {0};
    for (int i = 0; sh_commands[i]; i++) {
        const sh_command *c = sh_commands[i];
        if (c->hidden) continue;
        if (at < sizeof list)
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", c->name);
        sh_near_try(&near, word, c->name, strlen(c->name));
    }
    if (near.word[0])
        return sh_fail(SH_EARG, "unknown command %.40s (did you mean %s?); the commands are %s",
                       word, near.word, list);
    return sh_fail(SH_EARG, "unknown command %.40s; the commands are %s", word, list);
}

static const sh_command *find(const char *name)
{
    for (int i = 0; sh_commands[i]; i++)
        if (strcmp(sh_commands[i]->name, name) == 0) return sh_commands[i];
    return NULL;
}

/* A file that is opened must never get the number of a standard stream that was closed: what is
 * printed would go into it. The stand-in refuses what a closed stream refuses. */
static void keep_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            return;
}

/* A text that did not reach its reader is a failure, also where nobody looked at each write. */
static int finish(const char *command, int status)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    if (status != 0) return status; /* a sentence was printed */
    if (errno == EPIPE)
        return sh_exit(command, sh_fail(SH_ESYS, "stdout was closed before all was written"));
    if (errno == 0) /* an earlier write failed, and its cause is forgotten */
        return sh_exit(command, sh_fail(SH_ESYS, "stdout did not take all of the output"));
    return sh_exit(command, sh_fail(SH_ESYS, "cannot write to stdout: %s", strerror(errno)));
}

static int command(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    const sh_command *c = find(name);
    if (c) return finish(name, c->main(argc - 1, argv + 1));
    if (strcmp(name, "--version") == 0) {
        puts("shoal " SHOAL_VERSION);
        return finish(NULL, 0);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return finish(NULL, 0);
    }
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    return sh_exit(NULL, fail_unknown(name));
}

/* A rank > 0 under mpirun: joins each group that rank 0 opens. What goes wrong is told by rank 0.
 */
static int follow(int rank)
{
    bool more;
    char number[16];
    sh_err err;
    snprintf(number, sizeof number, "%d", rank);
    signal(SIGINT, SIG_IGN); /* rank 0 decides what they mean */
    signal(SIGTERM, SIG_IGN);
    while ((err = sh_mpi_next(&more)) == SH_OK && more)
        sh_command_rank.main(3, (char *[]){"rank", number, "-1", NULL});
    return sh_exit(NULL, err);
}

int main(int argc, char **argv)
{
    int rank, status;
    keep_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a write then fails with EPIPE */
    sh_err err = sh_mpi_start(&rank);
    if (err != SH_OK)
        status = rank == 0 ? sh_exit(NULL, err) : 0; /* said once on each host */
    else
        status = rank == 0 ? command(argc, argv) : follow(rank);
    sh_mpi_stop();
    return status;
}
