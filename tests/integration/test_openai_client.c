/* The official OpenAI client (tests/integration/openai_client.py) against the API over the fake engine. Needs a Python
 * with the package `openai`, named by MOESAIC_PYTHON (default python3); without one it is skipped, unless
 * MOESAIC_REQUIRE_OPENAI=1. */
// links: api
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "coordinator/text/reply_format.h"
#include "tests/unit/api_fixture.h"

/* A Python that has the client, or the test is skipped. */
static const char *python_with_openai(void)
{
    const char *python = getenv("MOESAIC_PYTHON"), *required = getenv("MOESAIC_REQUIRE_OPENAI");
    static char command[1024];
    if (python == NULL) python = "python3";
    snprintf(command, sizeof command, "%s -c 'import openai' 2>/dev/null", python);
    if (system(command) != 0) {
        cr_assert(required == NULL || strcmp(required, "1") != 0,
                  "no Python package 'openai' for %s", python);
        cr_skip_test("no Python package 'openai' for %s", python);
    }
    return python;
}

static void run_script(const char *interpreter, const char *script, int port)
{
    char command[1024];
    snprintf(command, sizeof command,
             "timeout 100 %s %s/tests/integration/%s http://127.0.0.1:%d/v1", interpreter,
             PROJECT_ROOT, script, port);
    int status = system(command);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d", script, status);
}

Test(openai_client, is_served_as_it_expects, .timeout = 120)
{
    const char *python = python_with_openai();
    struct api_fixture f;
    api_fixture_init(&f, "The fox went home, \xf0\x9f\xa6\x8a said good night and slept. ");
    f.fake.endless = true;
    api_fixture_start(&f);
    run_script(python, "openai_client.py", f.port);
    api_fixture_stop(&f);
}

/* Qwen's way of writing, short. */
static const char tool_template[] =
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", "
    "\"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n{# </think> #}";

Test(openai_client, calls_tools_as_it_expects, .timeout = 120)
{
    const char *python = python_with_openai();
    struct api_fixture f;
    struct reply_format format;
    struct err why;
    api_fixture_init(&f, "<think>\nThe weather; I cannot know it.\n</think>\n\nLet me look.\n"
                         "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": "
                         "{\"city\": \"Paris\", \"days\": 2}}\n</tool_call>");
    chat_template_close(f.chat_template);
    cr_assert_eq(
        chat_template_parse(tool_template, sizeof tool_template - 1, &f.chat_template, &why),
        ERR_OK, "%s", why.text);
    cr_assert_eq(reply_format_find(f.chat_template, f.tokenizer, NULL, NULL, &format, &why),
                 ERR_OK);
    f.cfg.model.chat_template = f.chat_template;
    f.cfg.model.reply_format = &format;
    f.cfg.model.ctx = 4096;
    api_fixture_start(&f);
    run_script(python, "openai_tools.py", f.port);
    if (access(PROJECT_ROOT "/tests/integration/node/node_modules/openai", F_OK) == 0)
        run_script("node", "node/openai_tools.mjs", f.port);
    api_fixture_stop(&f);
}
