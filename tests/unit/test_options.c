/* Addresses, the environment, and numbers of the command line. */
// links: base
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"

static char *split(const char *text)
{
    static char out[400];
    char host[256];
    unsigned port;
    struct err why = {0};
    if (options_address(text, "127.0.0.1", 7070, host, &port, &why) != ERR_OK) {
        cr_expect_eq(why.code, ERR_INVALID);
        snprintf(out, sizeof out, "refused: %.300s", why.text);
        return out;
    }
    return options_address_text(host, port, out, sizeof out);
}

Test(options, addresses_get_the_default_host_and_port)
{
    cr_expect_str_eq(split("10.0.0.1:80"), "10.0.0.1:80");
    cr_expect_str_eq(split("node-3"), "node-3:7070");
    cr_expect_str_eq(split(":81"), "127.0.0.1:81");
    cr_expect_str_eq(split("[::1]:82"), "[::1]:82");
    cr_expect_str_eq(split("[fe80::2]"), "[fe80::2]:7070");
    cr_expect_str_eq(split("localhost:0"), "localhost:0");
    cr_expect_str_eq(split("localhost:65535"), "localhost:65535");
}

Test(options, a_bad_address_is_named)
{
    static const char *const bad[] = {"::1",   "::1:8080", "fe80::1", "[::1",
                                      "[]:80", "[::1]x",   "h:",      "h:65536",
                                      "h:-1",  "h: 1",     "h:80x",   "h:99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *said = split(bad[i]);
        cr_expect_eq(strncmp(said, "refused: address ", 17), 0, "%s: %s", bad[i], said);
        cr_expect_not_null(strstr(said, bad[i]), "%s: %s", bad[i], said);
    }
    char name[400];
    memset(name, 'a', sizeof name);
    name[399] = '\0';
    cr_expect_not_null(strstr(split(name), "longer than 255"));
}

Test(options, only_this_machine_is_loopback)
{
    static const char *const here[] = {"127.0.0.1", "127.9.9.9", "::1",
                                       "localhost", "LocalHost", "0:0:0:0:0:0:0:1"};
    static const char *const elsewhere[] = {"0.0.0.0",
                                            "::",
                                            "10.0.0.1",
                                            "128.0.0.1",
                                            "127.0.0.1.example.org",
                                            "127.999.0.1",
                                            "127.0.0",
                                            " 127.0.0.1",
                                            "+127.0.0.1",
                                            "::ffff:127.0.0.1",
                                            "localhost.example.org",
                                            ""};
    for (size_t i = 0; i < sizeof here / sizeof *here; i++)
        cr_expect(options_is_loopback(here[i]), "%s", here[i]);
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        cr_expect_not(options_is_loopback(elsewhere[i]), "%s", elsewhere[i]);
}

struct parsed {
    unsigned count;
    int flag, n_args;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct parsed *p = state->input;
    switch (key) {
    case 300:
        p->count = (unsigned)options_number(state, "the-count", arg, 2, 40);
        break;
    case 301:
        p->flag++;
        break;
    case ARGP_KEY_ARG:
        p->n_args++;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_option table[] = {{NULL, 0, NULL, 0, "A group", 1},
                                           {"the-count", 300, "N", 0, "", 1},
                                           {"flag", 301, NULL, 0, "", 1},
                                           {0}};
static const struct argp argp = {table, parse, "", "", NULL, NULL, NULL};

static struct parsed run(int argc, const char **given)
{
    char **argv = (char **)(uintptr_t)given; /* argp only reorders it */
    struct parsed p = {0};
    argv = options_with_environment(&argp, argc, argv, &argc);
    cr_assert_not_null(argv);
    cr_assert_eq(argp_parse(&argp, argc, argv, 0, NULL, &p), 0);
    return p;
}

Test(options, a_flag_wins_over_the_environment)
{
    setenv("MOESAIC_THE_COUNT", "7", 1);
    setenv("MOESAIC_FLAG", "1", 1);
    struct parsed p = run(2, (const char *[]){"test", "x", NULL});
    cr_expect_eq(p.count, 7u);
    cr_expect_eq(p.flag, 1);
    cr_expect_eq(p.n_args, 1);
    setenv("MOESAIC_FLAG", "0", 1);
    p = run(2, (const char *[]){"test", "--the-count=9", NULL});
    cr_expect_eq(p.count, 9u);
    cr_expect_eq(p.flag, 0);
    setenv("MOESAIC_THE_COUNT", "", 1);
    cr_expect_eq(run(1, (const char *[]){"test", NULL}).count, 0u);
}

Test(options, a_number_out_of_range_ends_with_the_code_of_wrong_usage, .exit_code = EXIT_USAGE)
{
    run(2, (const char *[]){"test", "--the-count=41", NULL});
}

Test(options, a_wrong_number_in_the_environment_does_too, .exit_code = EXIT_USAGE)
{
    setenv("MOESAIC_THE_COUNT", "3x", 1);
    run(1, (const char *[]){"test", NULL});
}

Test(options, an_unknown_option_does_too, .exit_code = EXIT_USAGE)
{
    run(2, (const char *[]){"test", "--nothing", NULL});
}

Test(options, codes_of_a_failed_start)
{
    cr_expect_eq(options_exit_code(ERR_OK), 0);
    cr_expect_eq(options_exit_code(ERR_INVALID), 2);
    cr_expect_eq(options_exit_code(ERR_CORRUPT), 4);
    cr_expect_eq(options_exit_code(ERR_NOT_FOUND), 4);
    cr_expect_eq(options_exit_code(ERR_UNSUPPORTED), 4);
    cr_expect_eq(options_exit_code(ERR_UNAVAILABLE), 5);
    cr_expect_eq(options_exit_code(ERR_MISMATCH), 6);
    cr_expect_eq(options_exit_code(ERR_INTERNAL), 70);
    cr_expect_eq(options_exit_code(ERR_EXHAUSTED), 1);
}
