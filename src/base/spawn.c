#define _GNU_SOURCE
#include "base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

sh_err sh_program_path(char *out, size_t cap)
{
    const char *env = getenv("SHOAL_PROGRAM");
    if (env && *env) {
        snprintf(out, cap, "%s", env);
        return SH_OK;
    }
    ssize_t n = readlink("/proc/self/exe", out, cap - 1);
    if (n <= 0)
        return sh_fail(SH_ESYS, "cannot find the shoal program: set SHOAL_PROGRAM to its path");
    out[n] = 0;
    return SH_OK;
}

/* Between fork and exec only async-signal-safe calls: the parent may have threads. */
static void child(const char *program, char *const argv[], bool other, int keep_fd, int report,
                  pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127); /* it ended before prctl */
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    signal(SIGINT, SIG_IGN);
    if (other) setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (keep_fd >= 0) fcntl(keep_fd, F_SETFD, 0);
    execv(program, argv);
    int e = errno;
    ssize_t unused = write(report, &e, sizeof e);
    (void)unused;
    _exit(127);
}

sh_err sh_spawn(pid_t *pid, const char *program, char *const argv[], int keep_fd)
{
    char own[4096];
    const bool other = program != NULL;
    int report[2], e = 0;
    *pid = 0;
    if (!program) {
        SH_TRY(sh_program_path(own, sizeof own));
        program = own;
    }
    if (pipe2(report, O_CLOEXEC) != 0)
        return sh_fail(SH_ESYS, "cannot start a process: %s", strerror(errno));
    pid_t parent = getpid(), p = fork();
    if (p == 0) child(program, argv, other, keep_fd, report[1], parent);
    close(report[1]);
    if (p < 0) {
        close(report[0]);
        return sh_fail(SH_ESYS, "cannot start a process: %s", strerror(errno));
    }
    ssize_t n = read(report[0], &e, sizeof e); /* end of file when exec succeeds */
    close(report[0]);
    if (n == (ssize_t)sizeof e) {
        waitpid(p, NULL, 0);
        return sh_fail(SH_ESYS, "cannot start %s: %s", program, strerror(e));
    }
    *pid = p;
    return SH_OK;
}

bool sh_child_ended(pid_t *pid, char *how, size_t cap)
{
    int status;
    if (*pid <= 0) return false;
    pid_t r = waitpid(*pid, &status, WNOHANG);
    if (r == 0 || (r < 0 && errno == EINTR)) return false;
    if (r < 0)
        snprintf(how, cap, "ended");
    else if (WIFSIGNALED(status))
        snprintf(how, cap, "was killed by signal %d", WTERMSIG(status));
    else
        snprintf(how, cap, "ended with status %d", WEXITSTATUS(status));
    *pid = 0;
    return true;
}

void sh_child_kill(pid_t *pid)
{
    if (*pid <= 0) return;
    kill(*pid, SIGKILL);
    while (waitpid(*pid, NULL, 0) < 0 && errno == EINTR) {
    }
    *pid = 0;
}

void sh_child_wait(pid_t *pid, int timeout_ms)
{
    char how[64];
    for (int t = 0; t<timeout_ms && * pid> 0; t += 2) {
        if (sh_child_ended(pid, how, sizeof how)) return;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    sh_child_kill(pid);
}
