/* The official OpenAI client (tests/integration/openai_client.py) against the API over the fake engine. Needs a Python
 * with the package `openai`, named by MOESAIC_PYTHON (default python3); without one it is skipped, unless
 * MOESAIC_REQUIRE_OPENAI=1. */
// links: api
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/unit/api_fixture.h"

Test(openai_client, is_served_as_it_expects, .timeout = 120)
{
    const char *python = getenv("MOESAIC_PYTHON"), *required = getenv("MOESAIC_REQUIRE_OPENAI");
    char command[1024];
    if (python == NULL) python = "python3";
    snprintf(command, sizeof command, "%s -c 'import openai' 2>/dev/null", python);
    if (system(command) != 0) {
        cr_assert(required == NULL || strcmp(required, "1") != 0,
                  "no Python package 'openai' for %s", python);
        cr_skip_test("no Python package 'openai' for %s", python);
    }
    struct api_fixture f;
    api_fixture_init(&f, "The fox went home, \xf0\x9f\xa6\x8a said good night and slept. ");
    f.fake.endless = true;
    api_fixture_start(&f);
    snprintf(command, sizeof command,
             "timeout 100 %s %s/tests/integration/openai_client.py http://127.0.0.1:%d/v1", python,
             PROJECT_ROOT, f.port);
    int status = system(command);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    api_fixture_stop(&f);
}
