/* Child processes: they end with the one that started them, they inherit what they should and
 * nothing else, and how they ended is told. The children are this program again, or the shell. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/spawn.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SH_OK) fail_msg("%s", sh_err_message());                                     \
    } while (0)

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static pid_t shell(const char *script, int keep_fd)
{
    pid_t pid;
    char *argv[] = {"sh", "-c", (char *)(uintptr_t)script, NULL};
    OK(sh_spawn(&pid, "/bin/sh", argv, keep_fd));
    assert_true(pid > 0);
    return pid;
}

/* Waits for it to end by itself. */
static void ended(pid_t pid, const char *how)
{
    char text[64] = "";
    double until = now_s() + 5;
    while (!sh_child_ended(&pid, text, sizeof text))
        assert_true(now_s() < until && usleep(1000) == 0);
    assert_string_equal(text, how);
    assert_int_equal(pid, 0);
    assert_false(sh_child_ended(&pid, text, sizeof text)); /* there is none any more */
}

static void test_how_it_ended(void **state)
{
    char text[64];
    (void)state;
    ended(shell("exit 0", -1), "ended with status 0");
    ended(shell("exit 7", -1), "ended with status 7");
    ended(shell("kill -9 $$", -1), "was killed by signal 9");
    pid_t pid = shell("exec sleep 100", -1);
    assert_false(sh_child_ended(&pid, text, sizeof text));
    double start = now_s();
    sh_child_kill(&pid);
    assert_int_equal(pid, 0);
    sh_child_kill(&pid); /* nothing to do */
    pid = shell("exec sleep 100", -1);
    sh_child_wait(&pid, 30);
    assert_int_equal(pid, 0);
    pid = shell("exec sleep 0.05", -1);
    sh_child_wait(&pid, 5000);
    assert_int_equal(pid, 0);
    assert_true(now_s() - start < 3);
    assert_true(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* The sentence names the program; nothing is left of the try. */
static void test_no_program(void **state)
{
    pid_t pid = 77;
    char *argv[] = {"x", NULL};
    int fd = dup(0);
    (void)state;
    assert_int_equal(sh_spawn(&pid, "/no/such/program", argv, -1), SH_ESYS);
    assert_non_null(strstr(sh_err_message(), "/no/such/program"));
    assert_int_equal(pid, 0);
    assert_int_equal(sh_spawn(&pid, "/tmp", argv, -1), SH_ESYS);
    assert_true(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    int fd2 = dup(0);
    assert_int_equal(fd2, fd + 1); /* no descriptor was left open */
    close(fd);
    close(fd2);
}

/* stdin is empty, one descriptor is kept, those marked close-on-exec are gone, Ctrl-C does nothing.
 */
static void test_inherits(void **state)
{
    int keep[2], other[2];
    char script[300], got[64] = "";
    (void)state;
    assert_int_equal(pipe2(keep, O_CLOEXEC), 0);
    assert_int_equal(pipe2(other, O_CLOEXEC), 0);
    snprintf(script, sizeof script,
             "f=/proc/$$/fd; read x && echo input >$f/%d; [ -e $f/%d ] && echo other >$f/%d; "
             "kill -INT $$; echo end >$f/%d",
             keep[1], other[1], keep[1], keep[1]);
    sigset_t all, was; /* signals that are blocked here are not blocked there */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &was);
    int in[2], was_in = dup(0); /* there is something to read here, but not there */
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(write(in[1], "input\n", 6), 6);
    assert_int_equal(dup2(in[0], 0), 0);
    pid_t pid = shell(script, keep[1]);
    dup2(was_in, 0);
    close(was_in);
    close(in[0]);
    close(in[1]);
    ended(pid, "ended with status 0");
    ended(shell("kill $$; exit 3", -1), "was killed by signal 15");
    sigprocmask(SIG_SETMASK, &was, NULL);
    close(keep[1]);
    assert_true(read(keep[0], got, sizeof got - 1) > 0);
    assert_string_equal(got, "end\n");
    assert_true(fcntl(keep[0], F_GETFD) & FD_CLOEXEC);
    close(keep[0]);
    close(other[0]);
    close(other[1]);
}

/* Killed with no time to clean up: its child and grandchild hold a pipe until they end. */
static void test_end_with_parent(void **state)
{
    int fd[2];
    char byte, text[16];
    pid_t pid;
    (void)state;
    assert_int_equal(pipe(fd), 0);
    snprintf(text, sizeof text, "%d", fd[1]);
    char *argv[] = {"test_spawn", "3", text, NULL};
    OK(sh_spawn(&pid, NULL, argv, fd[1]));
    close(fd[1]);
    for (int i = 0; i < 3; i++)
        assert_int_equal(read(fd[0], &byte, 1), 1); /* all three are there */
    struct pollfd p = {.fd = fd[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 100), 0); /* and stay */
    kill(pid, SIGKILL);
    assert_int_equal(poll(&p, 1, 2000), 1);
    assert_int_equal(read(fd[0], &byte, 1), 0);
    sh_child_kill(&pid);
    close(fd[0]);
}

/* The program as one of a chain of processes: it starts the next, says so, and stays. */
static int link_of_chain(int n, const char *fd)
{
    pid_t pid;
    char count[16];
    snprintf(count, sizeof count, "%d", n - 1);
    char *argv[] = {"test_spawn", count, (char *)(uintptr_t)fd, NULL};
    if (n > 1 && sh_spawn(&pid, NULL, argv, atoi(fd)) != SH_OK) return 1;
    if (write(atoi(fd), "+", 1) != 1) return 1;
    for (;;) pause();
}

static void test_program_path(void **state)
{
    char path[4096], self[4096] = "";
    (void)state;
    char *was = strdup(getenv("SHOAL_PROGRAM"));
    assert_true(was && readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    setenv("SHOAL_PROGRAM", "/some/where", 1);
    OK(sh_program_path(path, sizeof path));
    assert_string_equal(path, "/some/where");
    setenv("SHOAL_PROGRAM", "", 1);
    OK(sh_program_path(path, sizeof path));
    assert_string_equal(path, self);
    setenv("SHOAL_PROGRAM", was, 1);
    free(was);
}

int main(int argc, char **argv)
{
    static char self[4096];
    if (argc == 3) return link_of_chain(atoi(argv[1]), argv[2]);
    if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0) return 1;
    setenv("SHOAL_PROGRAM", self, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_how_it_ended), cmocka_unit_test(test_no_program),
        cmocka_unit_test(test_inherits),     cmocka_unit_test(test_end_with_parent),
        cmocka_unit_test(test_program_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
