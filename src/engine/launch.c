#define _GNU_SOURCE
#include "engine/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/spawn.h"

/* The port that a worker writes when it listens. */
static sh_err read_port(int fd, int *port, pid_t *pid)
{
    char text[16] = "", how[64];
    size_t n = 0;
    while (n < sizeof text - 1 && !strchr(text, '\n')) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = poll(&p, 1, 20000);
        if (ready < 0 && errno == EINTR) continue;
        ssize_t got = ready > 0 ? read(fd, text + n, sizeof text - 1 - n) : 0;
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (sscanf(text, "%d", port) == 1 && *port > 0) return SH_OK;
    sh_child_wait(pid, 100);
    if (sh_child_ended(pid, how, sizeof how)) return sh_fail(SH_EPEER, "a local node %s", how);
    return sh_fail(SH_EPEER, "a local node did not start; what it said stands above");
}

static sh_err start_one(sh_local *l, const shoal_options *opt, int n_thread, int *port_fd)
{
    char report[16], threads[16], ranks[16];
    int fd[2];
    if (pipe2(fd, O_CLOEXEC) != 0)
        return sh_fail(SH_ESYS, "cannot start a node: %s", strerror(errno));
    snprintf(report, sizeof report, "%d", fd[1]);
    snprintf(threads, sizeof threads, "%d", n_thread);
    snprintf(ranks, sizeof ranks, "%d", opt->n_rank);
    char *argv[] = {"shoal", "worker", "--listen", "127.0.0.1:0", "-m",          (char *)opt->model,
                    "-t",    threads,  "--tp",     ranks,         "--report-fd", report,
                    NULL};
    sh_err err = sh_spawn(&l->pid[l->n++], NULL, argv, fd[1]);
    close(fd[1]);
    *port_fd = fd[0];
    return err;
}

sh_err sh_local_start(sh_local *l, sh_nodes *nodes, const shoal_options *opt, int n_worker,
                      int n_thread, const int *cpu, int n_cpu)
{
    sh_err err = SH_OK;
    cpu_set_t before, mine;
    int port_fd[SH_MAX_LOCAL], per_node = n_thread * opt->n_rank;
    bool bind =
        n_cpu >= per_node * (n_worker + 1) && sched_getaffinity(0, sizeof before, &before) == 0;
    if (n_worker > SH_MAX_LOCAL)
        return sh_fail(SH_EARG, "a ring of %d nodes on one host: give at most %d", n_worker + 1,
                       SH_MAX_LOCAL + 1);
    snprintf(nodes->starter.host, sizeof nodes->starter.host, "127.0.0.1");
    SH_TRY(sh_alloc(&nodes->secondary, (size_t)n_worker, sizeof *nodes->secondary, "the nodes"));
    for (int i = 0; i < n_worker && err == SH_OK; i++) {
        sh_node_addr *a = &nodes->secondary[i];
        snprintf(a->host, sizeof a->host, "127.0.0.1");
        if (bind) { /* a child keeps what this thread is tied to when it starts */
            CPU_ZERO(&mine);
            for (int c = 0; c < per_node; c++) CPU_SET(cpu[(i + 1) * per_node + c], &mine);
            (void)sched_setaffinity(0, sizeof mine, &mine);
        }
        err = start_one(l, opt, n_thread, &port_fd[i]);
        nodes->n_secondary = i + 1;
    }
    for (int i = 0; i < l->n; i++) {
        if (err == SH_OK) err = read_port(port_fd[i], &nodes->secondary[i].port, &l->pid[i]);
        close(port_fd[i]);
    }
    if (bind) (void)sched_setaffinity(0, sizeof before, &before);
    return err;
}

sh_err sh_local_check(sh_local *l, const sh_nodes *nodes)
{
    char how[64];
    for (int i = 0; i < l->n; i++)
        if (sh_child_ended(&l->pid[i], how, sizeof how))
            return sh_fail(SH_EPEER, "node %s:%d (stage %d) %s; start again",
                           nodes->secondary[i].host, nodes->secondary[i].port, i + 1, how);
    return SH_OK;
}

void sh_local_stop(sh_local *l)
{
    for (int i = 0; i < l->n; i++) sh_child_kill(&l->pid[i]);
    l->n = 0;
}
