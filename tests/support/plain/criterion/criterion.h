/* criterion.h - the part of Criterion that the tests with threads use, for builds with ThreadSanitizer: Criterion's own
 * sandbox wants memory where the sanitizer keeps its shadow. Each test runs in a process of its own; a test fails when
 * an assertion does, when it crashes, and when the sanitizer has found something. */
#ifndef MOESAIC_TESTS_PLAIN_CRITERION_H
#define MOESAIC_TESTS_PLAIN_CRITERION_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct plain_options {
    void (*init)(void);
    void (*fini)(void);
    double timeout; /* seconds; 0: --timeout's */
};

/* A suite's options (`fn` NULL) or one test; registered before main. */
struct plain_test {
    const char *suite, *name;
    void (*fn)(void);
    struct plain_options options;
    struct plain_test *next;
};
void plain_register(struct plain_test *t);

/* Say what failed; `fatal`: end the test. Any thread. */
void plain_fail(bool fatal, const char *file, int line, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* End the test as one that could not be made, and say why. */
_Noreturn void cr_skip_test(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void cr_log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define PLAIN_REGISTER(id, suite, name, fn, ...)                                                   \
    __attribute__((constructor)) static void id##_register(void)                                   \
    {                                                                                              \
        static struct plain_test t = {suite, name, fn, {__VA_ARGS__}, NULL};                       \
        plain_register(&t);                                                                        \
    }
#define TestSuite(suite, ...) PLAIN_REGISTER(suite, #suite, "", NULL, __VA_ARGS__)
#define Test(suite, name, ...)                                                                     \
    static void suite##_##name(void);                                                              \
    PLAIN_REGISTER(suite##_##name, #suite, #name, suite##_##name, __VA_ARGS__)                     \
    static void suite##_##name(void)

/* The message is " " followed by the caller's: none is a message too. */
#define PLAIN_CHECK(fatal, holds, what, ...)                                                       \
    do {                                                                                           \
        if (!(holds)) plain_fail(fatal, __FILE__, __LINE__, what, " " __VA_ARGS__);                \
    } while (0)
#define PLAIN_SAME_TEXT(a, b)     (strcmp((a), (b)) == 0)
#define PLAIN_SAME_BYTES(a, b, n) (memcmp((a), (b), (n)) == 0)
#define PLAIN_NEAR(a, b, by)      (fabs((double)(a) - (double)(b)) <= (double)(by))

#define cr_assert_fail(...)        PLAIN_CHECK(true, false, "assertion", __VA_ARGS__)
#define cr_assert(x, ...)          PLAIN_CHECK(true, (x), #x, __VA_ARGS__)
#define cr_assert_eq(a, b, ...)    PLAIN_CHECK(true, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)    PLAIN_CHECK(true, (a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)   PLAIN_CHECK(true, (a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)    PLAIN_CHECK(true, (a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_not_null(a, ...) PLAIN_CHECK(true, (a) != NULL, #a, __VA_ARGS__)
#define cr_expect(x, ...)          PLAIN_CHECK(false, (x), #x, __VA_ARGS__)
#define cr_expect_not(x, ...)      PLAIN_CHECK(false, !(x), "not " #x, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)    PLAIN_CHECK(false, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)   PLAIN_CHECK(false, (a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)    PLAIN_CHECK(false, (a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)   PLAIN_CHECK(false, (a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)    PLAIN_CHECK(false, (a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)   PLAIN_CHECK(false, (a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_expect_null(a, ...)     PLAIN_CHECK(false, (a) == NULL, #a " is NULL", __VA_ARGS__)
#define cr_expect_not_null(a, ...) PLAIN_CHECK(false, (a) != NULL, #a, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)                                                                \
    PLAIN_CHECK(false, PLAIN_SAME_TEXT(a, b), #a " == " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...)                                                             \
    PLAIN_CHECK(false, PLAIN_SAME_BYTES(a, b, n), #a " == " #b, __VA_ARGS__)
#define cr_expect_float_eq(a, b, by, ...)                                                          \
    PLAIN_CHECK(false, PLAIN_NEAR(a, b, by), #a " ~ " #b, __VA_ARGS__)

#endif
