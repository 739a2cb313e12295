/* As much of cmocka as the kernel tests need, for processors that Debian's library is not installed
 * for (script/test-neon). A failure ends the test; the report is TAP; the exit status is the
 * verdict. */
#ifndef TESTS_KERNELS_CROSS_CMOCKA_H
#define TESTS_KERNELS_CROSS_CMOCKA_H

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*test_func)(void **state);
    int (*setup_func)(void **state), (*teardown_func)(void **state);
    void *initial_state;
};

static jmp_buf cmocka_failed;

#define fail_msg(...) (printf("# " __VA_ARGS__), printf("\n"), longjmp(cmocka_failed, 1))
#define cmocka_check(ok, text)                                                                     \
    do {                                                                                           \
        if (!(ok)) fail_msg("%s:%d: %s", __FILE__, __LINE__, text);                                \
    } while (0)
#define assert_true(a)         cmocka_check(a, #a)
#define assert_null(a)         cmocka_check((a) == NULL, #a " is not NULL")
#define assert_non_null(a)     cmocka_check((a) != NULL, #a " is NULL")
#define assert_int_equal(a, b) cmocka_check((a) == (b), #a " is not " #b)
#define assert_memory_equal(a, b, n)                                                               \
    cmocka_check(memcmp(a, b, n) == 0, #a " is not the same as " #b)
#define assert_in_range(a, b, c) cmocka_check((a) >= (b) && (a) <= (c), #a " is not in range")
#define print_message            printf

#define cmocka_unit_test(f)                                                                        \
    {                                                                                              \
#f, f, NULL, NULL, NULL                                                                    \
    }

static inline int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests,
                                          size_t n, void *setup, void *teardown)
{
    volatile int n_failed = 0;
    (void)setup, (void)teardown;
    printf("# %s\n1..%zu\n", group, n);
    for (volatile size_t i = 0; i < n; i++) {
        void *state = tests[i].initial_state;
        if (setjmp(cmocka_failed) == 0) {
            tests[i].test_func(&state);
            printf("ok %zu - %s\n", i + 1, tests[i].name);
        } else {
            printf("not ok %zu - %s\n", i + 1, tests[i].name);
            n_failed++;
        }
        fflush(stdout);
    }
    return n_failed;
}

#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    _cmocka_run_group_tests(#tests, tests, sizeof(tests) / sizeof *(tests), setup, teardown)

#endif
