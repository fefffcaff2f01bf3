/* api_fixture.h - the API on a loop in a thread, over the fake generation service and the demonstration model's
 * tokenizer and chat template. The test's own thread is the client. */
#ifndef MOESAIC_TESTS_API_FIXTURE_H
#define MOESAIC_TESTS_API_FIXTURE_H

#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "coordinator/api/api.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/tokenizer.h"
#include "tests/support/fake_generation.h"
#include "tests/support/http_client.h"

struct api_fixture {
    uv_loop_t loop;
    uv_async_t wake;
    pthread_t thread;
    struct api *api;
    struct api_cfg cfg;
    struct fake_generation fake;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template;
    struct ids script;
    int port;
    _Atomic int command; /* 1: drain, 2: close */
};

static inline void api_fixture_wake(uv_async_t *h)
{
    struct api_fixture *f = h->data;
    int command = f->command;
    f->command = 0;
    if (command == 1) {
        api_drain(f->api, NULL, NULL);
    } else if (command == 2) {
        api_close(f->api, NULL, NULL);
        fake_generation_stop(&f->fake);
        uv_close((uv_handle_t *)h, NULL);
    }
}

static inline void *api_fixture_run(void *ctx)
{
    uv_run(&((struct api_fixture *)ctx)->loop, UV_RUN_DEFAULT);
    return NULL;
}

static inline void api_fixture_say(struct api_fixture *f, const char *text)
{
    struct err why;
    cr_assert_eq(tokenizer_encode(f->cfg.model.tokenizer, text, strlen(text), TOKENIZER_ADD_NONE,
                                  TOKENIZER_PARSE_SPECIAL, &f->script, &why),
                 ERR_OK, "%s", why.text);
    f->fake.script = f->script.data;
    f->fake.n_script = (uint32_t)f->script.len;
}

/* Set up; the caller may then change f->cfg and f->fake before api_fixture_start. Answers say `text`. */
static inline void api_fixture_init(struct api_fixture *f, const char *text)
{
    struct err why;
    struct tokenizer *t = NULL;
    struct chat_template *c = NULL;
    memset(f, 0, sizeof *f);
    cr_assert_eq(tokenizer_open(PROJECT_ROOT "/deploy/demo", &t, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(chat_template_open(PROJECT_ROOT "/deploy/demo", &c, &why), ERR_OK, "%s", why.text);
    f->tokenizer = t;
    f->chat_template = c;
    uv_loop_init(&f->loop);
    uv_async_init(&f->loop, &f->wake, api_fixture_wake);
    f->wake.data = f;
    fake_generation_init(&f->fake, &f->loop);
    f->fake.eos = tokenizer_eos(t);
    f->cfg = (struct api_cfg){.addresses = "127.0.0.1:0",
                              .model = {.id = "demo/tales",
                                        .created = 1700000000,
                                        .ctx = 512,
                                        .vocab = tokenizer_vocab_size(t),
                                        .n_layers = 4,
                                        .n_experts = 8,
                                        .top_k = 2,
                                        .n_params = 1000,
                                        .bytes = 4000,
                                        .tokenizer = t,
                                        .chat_template = c,
                                        .default_temperature = 0.75f,
                                        .default_top_p = 0.5f,
                                        .default_top_k = 40,
                                        .eos = &f->fake.eos,
                                        .n_eos = 1,
                                        .digest = "abc123"},
                              .version = "1.2.3",
                              .git = "g",
                              .build = "b",
                              .http = {.tick_ms = 20, .linger_ms = 100}};
    f->cfg.metrics = metrics_open();
    f->cfg.service = fake_generation_service(&f->fake);
    api_fixture_say(f, text);
}

static inline void api_fixture_start(struct api_fixture *f)
{
    struct err why;
    cr_assert_eq(api_open(&f->loop, &f->cfg, &f->api, &why), ERR_OK, "%s", why.text);
    f->port = api_port(f->api);
    pthread_create(&f->thread, NULL, api_fixture_run, f);
}

static inline void api_fixture_tell(struct api_fixture *f, int command)
{
    f->command = command;
    uv_async_send(&f->wake);
}

/* The loop must run out of things to do, and every sequence must be gone. */
static inline void api_fixture_stop(struct api_fixture *f)
{
    api_fixture_tell(f, 2);
    pthread_join(f->thread, NULL);
    cr_expect_eq(uv_loop_close(&f->loop), 0);
    cr_expect_eq(f->fake.n_live, 0);
    tokenizer_close(f->tokenizer);
    chat_template_close(f->chat_template);
    metrics_close(f->cfg.metrics);
    ids_free(&f->script);
}

static inline bool api_fixture_becomes(_Atomic uint32_t *value, uint32_t wanted)
{
    for (int i = 0; i < 300 && *value != wanted; i++)
        usleep(10000);
    return *value == wanted;
}

#endif
