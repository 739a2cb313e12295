/* shoal rank: a rank of a group; started by shoal itself (comm/group_shm.c). */
#include <signal.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "shoal.h"

static int command(int argc, char **argv)
{
    if (argc != 3)
        return sh_exit(argv[0],
                       sh_fail(SH_EARG, "ranks are started by shoal run and shoal worker (--tp)"));
    /* What went wrong is told by rank 0, once. */
    return shoal_rank(atoi(argv[1]), atoi(argv[2])) == SHOAL_OK ? 0 : 1;
}

const sh_command sh_command_rank = {
    .name = "rank",
    .summary = "a rank of a group",
    .main = command,
    .hidden = true,
};
