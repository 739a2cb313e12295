/* Child processes of this program: ranks and local nodes. They never outlive the process that
 * started them, however it ends. */
#ifndef SH_BASE_SPAWN_H
#define SH_BASE_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

/** Starts `program` with argv (NULL-ended). keep_fd stays open in it (-1: none); stdin is
 * /dev/null; SIGINT is ignored there, since the starting process decides what Ctrl-C means, and
 * another program, which may think otherwise, has a process group of its own, so that it gets none
 * from the terminal. The child is killed when the thread that called this ends. program NULL: the
 * shoal binary, found by sh_program_path. */
sh_err sh_spawn(pid_t *pid, const char *program, char *const argv[], int keep_fd);

/** Whether the child has ended; then *pid is set to 0 and `how` says how ("was killed by signal
 * 9"). */
bool sh_child_ended(pid_t *pid, char *how, size_t cap);

/** Kills and reaps; does nothing if *pid is 0. */
void sh_child_kill(pid_t *pid);

/** Waits at most timeout_ms for it to end by itself, then kills it. */
void sh_child_wait(pid_t *pid, int timeout_ms);

/** $SHOAL_PROGRAM, or this process's own binary. SH_ESYS if neither can be had. */
sh_err sh_program_path(char *out, size_t cap);

#endif
