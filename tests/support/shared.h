/* shared.h - others' files, which are not in this repository. Test code; header only. */
#ifndef TESTS_SUPPORT_SHARED_H
#define TESTS_SUPPORT_SHARED_H

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* $MOESAIC_SHARED/name (default ../shared) into out. Skips the test if it is not there, or fails it when
 * MOESAIC_REQUIRE_SHARED=1. */
static inline bool shared_path(const char *name, char *out, size_t cap)
{
    const char *root = getenv("MOESAIC_SHARED"), *required = getenv("MOESAIC_REQUIRE_SHARED");
    snprintf(out, cap, "%s/%s", root != NULL ? root : PROJECT_ROOT "/../shared", name);
    if (access(out, R_OK) == 0) return true;
    if (required != NULL && strcmp(required, "1") == 0) cr_assert_fail("%s is missing", out);
    cr_skip_test("%s is missing", out);
    return false;
}

#endif
