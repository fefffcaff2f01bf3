/* What `moesaic chat` does with a reply: reasoning is shown, dimmed, and never becomes a part of the conversation. */
// links: api cli
#include <fcntl.h>
#include <stdio.h>

#include "coordinator/cli/ask.h"
#include "coordinator/text/reply_format.h"
#include "tests/unit/api_fixture.h"

/* Run ask_server with standard output in a file, whose text is given back; mem_free. */
static char *printed(const struct ask *a, struct ask_answer *answer)
{
    char path[] = "/tmp/moesaic-test-XXXXXX";
    struct err why;
    fflush(stdout);
    int file = mkstemp(path), old = dup(STDOUT_FILENO);
    dup2(file, STDOUT_FILENO);
    enum err_code rc = ask_server(a, answer, &why);
    fflush(stdout);
    dup2(old, STDOUT_FILENO);
    close(old);
    unlink(path);
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    off_t n = lseek(file, 0, SEEK_END);
    char *text = mem_zalloc((size_t)n + 1);
    cr_assert_eq(pread(file, text, (size_t)n, 0), n);
    close(file);
    return text;
}

Test(ask, reasoning_is_dimmed_and_not_kept)
{
    struct api_fixture f;
    struct reply_format format;
    struct err why;
    api_fixture_init(&f, "<think>\nHm, so.\n</think>\n\nYes.");
    cr_assert_eq(reply_format_detect("", 0, "none", "think", &format, &why), ERR_OK);
    f.cfg.model.reply_format = &format;
    api_fixture_start(&f);
    char server[32];
    snprintf(server, sizeof server, "127.0.0.1:%d", f.port);
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", "u");
    struct ask a = {.server = server,
                    .messages = messages,
                    .max_tokens = -1,
                    .temperature = -1,
                    .top_p = -1,
                    .seed = -1,
                    .print = true,
                    .dim_reasoning = true};
    struct ask_answer answer;
    char *text = printed(&a, &answer);
    cr_expect_str_eq(text, "\033[2mHm, so.\033[0m\n\nYes.");
    cr_expect_str_eq(answer.text.data, "Yes.");
    mem_free(text);
    buf_free(&answer.text);
    a.dim_reasoning = false; /* no terminal */
    text = printed(&a, &answer);
    cr_expect_str_eq(text, "Yes.");
    cr_expect_str_eq(answer.text.data, "Yes.");
    mem_free(text);
    buf_free(&answer.text);
    json_decref(messages);
    api_fixture_stop(&f);
}
