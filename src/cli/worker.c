/* shoal worker: a node of a ring, waiting for a starter. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "comm/nodes.h"
#include "shoal.h"

static int stop_pipe[2];

static void on_signal(int sig)
{
    char c = (char)sig;
    ssize_t unused = write(stop_pipe[1], &c, 1);
    (void)unused;
}

/* --nodes FILE --index I: the address that the file gives node I. */
static sh_err address_from_file(char out[300], const char *path, int index)
{
    sh_nodes nodes;
    SH_TRY(sh_nodes_read(&nodes, path));
    sh_err err = SH_OK;
    if (index < 0 || index >= nodes.n_secondary)
        err = sh_fail(SH_EARG, "%s: no secondary %d; it has %d", path, index, nodes.n_secondary);
    else
        sh_node_addr_text(&nodes.secondary[index], out);
    sh_nodes_free(&nodes);
    return err;
}

static int command(int argc, char **argv)
{
    shoal_worker_options o = {.report_fd = -1, .stop_fd = -1};
    const char *nodes = NULL;
    int index = 0;
    bool quiet = false;
    char address[300];
    const sh_flag flags[] = {
        {"--listen", "ADDR:PORT", SH_FLAG_STR, &o.listen, 0, 0, "where starters reach this node"},
        {"-m, --model", "FILE", SH_FLAG_STR, &o.model, 0, 0,
         "the model file, the same as the starter's; without it the project's own"},
        {"-t, --threads", "N", SH_FLAG_INT, &o.n_thread, 0, 1024,
         "threads of each rank; 0: the cores"},
        {"--tp", "N", SH_FLAG_INT, &o.n_rank, 0, 8, "ranks that share every layer, on this host"},
        {"--nodes", "FILE", SH_FLAG_STR, &nodes, 0, 0,
         "take the address from a nodes file instead"},
        {"--index", "I", SH_FLAG_INT, &index, 0, 63,
         "which of its secondary nodes this is, from 0"},
        {"-q, --quiet", NULL, SH_FLAG_BOOL, &quiet, 0, 0, "log only what goes wrong"},
        {"--report-fd", "FD", SH_FLAG_INT, &o.report_fd, -1, 1 << 20,
         "write the port to this descriptor once it is open"},
    };
    bool help;
    int n_arg;
    sh_err err = sh_flags_parse("shoal worker --listen ADDR:PORT [-m FILE] [flags]", flags,
                                sizeof flags / sizeof *flags, argc, argv, NULL, 0, &n_arg, &help);
    if (err == SH_OK && help) return 0;
    if (err == SH_OK && nodes && (err = address_from_file(address, nodes, index)) == SH_OK)
        o.listen = address;
    if (err == SH_OK) err = sh_default_model(&o.model, argv[0]);
    if (err == SH_OK && pipe(stop_pipe) != 0) err = sh_fail(SH_ESYS, "cannot make a pipe");
    o.stop_fd = stop_pipe[0];
    sh_log_set_level(quiet || o.report_fd >= 0 ? SH_LOG_WARN : SH_LOG_INFO);
    struct sigaction stop = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &stop, NULL);
    if (o.report_fd < 0) sigaction(SIGINT, &stop, NULL); /* a local node leaves with its starter */
    if (err == SH_OK) err = (sh_err)shoal_worker(&o);
    return sh_exit(argv[0], err);
}

const sh_command sh_command_worker = {
    .name = "worker",
    .summary = "be a node of a ring",
    .main = command,
};
