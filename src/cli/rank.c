/* shoal rank: a rank of a group; started by shoal itself (comm/group_shm.c), or by mpirun. */
#include <stdlib.h>

#include "base/cpu.h"
#include "cli/cli.h"
#include "comm/group.h"
#include "engine/node.h"
#include "train/loop.h"

static int command(int argc, char **argv)
{
    sh_group *g;
    if (argc != 3)
        return sh_exit(argv[0], sh_fail(SH_EARG, "ranks are started by shoal run, shoal worker "
                                                 "(--tp) and shoal train (--ranks)"));
    (void)sh_cpu_features(); /* asks for the matrix unit before there are threads */
    sh_err err = sh_group_join(&g, atoi(argv[1]), atoi(argv[2]));
    if (err == SH_OK)
        err = sh_train_is(g->blob, g->n_blob) ? sh_train_follow(g) : sh_node_follow(g);
    return err == SH_OK ? 0 : 1; /* what went wrong is told by rank 0, once */
}

const sh_command sh_command_rank = {
    .name = "rank",
    .summary = "a rank of a group",
    .main = command,
    .hidden = true,
};
