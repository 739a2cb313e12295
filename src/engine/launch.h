/* Local nodes of a ring: worker processes on this host. */
#ifndef SH_ENGINE_LAUNCH_H
#define SH_ENGINE_LAUNCH_H

#include <sys/types.h>

#include "comm/nodes.h"
#include "shoal.h"

enum { SH_MAX_LOCAL = 16 };

typedef struct sh_local {
    pid_t pid[SH_MAX_LOCAL];
    int n;
} sh_local;

/** Starts n_worker workers for opt->model on 127.0.0.1, each with n_thread threads and opt->n_rank
 *  ranks, and fills `nodes` with the ring of them. Node i is tied to the logical CPUs
 *  cpu[i * per_node ..] (the starter is node 0) if n_cpu is enough for all. */
sh_err sh_local_start(sh_local *l, sh_nodes *nodes, const shoal_options *opt, int n_worker,
                      int n_thread, const int *cpu, int n_cpu);
/** If a local worker has ended, the sentence says how; SH_OK otherwise. */
sh_err sh_local_check(sh_local *l, const sh_nodes *nodes);
void sh_local_stop(sh_local *l);

#endif
