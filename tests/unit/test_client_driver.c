/* The hand-over between API and engine: both ends on one thread, so that every order of events can be had. */
// links: drivers
// threads: yes
#include <criterion/criterion.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/drivers/client_driver.h"

static uv_loop_t loop;
static struct client_driver *driver;
static struct generation_service service;
static unsigned wakes;

static void wake(void *ctx)
{
    (void)ctx;
    wakes++;
}

static void open_driver(void)
{
    struct err why = {0};
    wakes = 0;
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert_eq(client_driver_open(&loop, wake, NULL, &driver, &why), ERR_OK);
    client_driver_service(driver, &service);
    client_driver_set_ready(driver, true, true, "");
}

static void closed(void *ctx)
{
    ++*(unsigned *)ctx;
}

static void close_driver(void)
{
    unsigned n = 0;
    mem_fail_at(0);
    client_driver_close(driver, closed, &n);
    uv_run(&loop, UV_RUN_DEFAULT);
    cr_expect_eq(n, 1u);
    cr_expect_eq(uv_loop_close(&loop), 0);
}

TestSuite(client_driver, .init = open_driver, .fini = close_driver);

/* What a sink got. */
struct heard {
    unsigned tokens, ends;
    int32_t last_token;
    enum generation_event_kind end;
    char error[128];
};

static void sink(void *ctx, const struct generation_event *ev)
{
    struct heard *h = ctx;
    cr_expect_eq(h->ends, 0u, "an event after the last");
    if (ev->kind == GENERATION_TOKEN) {
        h->tokens++;
        h->last_token = ev->token;
        return;
    }
    h->ends++;
    h->end = ev->kind;
    if (ev->kind == GENERATION_FAILED)
        snprintf(h->error, sizeof h->error, "%.100s", ev->error->text);
}

static enum err_code begin(struct heard *h, uint64_t *handle)
{
    static const int32_t prompt[] = {1, 2, 3};
    struct generation_spec spec = {.prompt = prompt,
                                   .n_prompt = 3,
                                   .max_tokens = 5,
                                   .logprobs = true,
                                   .top_logprobs = 4,
                                   .deadline_ms = 9};
    struct err why;
    return service.start(service.self, &spec, sink, h, handle, &why);
}

/* What the engine was told, as letters. */
struct orders {
    char text[64];
    uint64_t last;
};

static void take(void *ctx, const struct client_order *o)
{
    struct orders *got = ctx;
    size_t n = strlen(got->text);
    if (n + 1 < sizeof got->text) got->text[n] = "SCPRV"[o->kind];
    got->last = o->sequence;
    if (o->kind == CLIENT_SUBMIT) {
        cr_expect_eq(o->spec->n_prompt, 3u);
        cr_expect_eq(o->spec->prompt[2], 3);
        cr_expect_not_null(client_driver_find(driver, o->sequence));
    }
}

static struct orders orders(void)
{
    struct orders got = {0};
    client_driver_orders(driver, take, &got);
    return got;
}

static void token(uint64_t sequence, int32_t id)
{
    client_driver_post(driver, sequence,
                       &(struct generation_event){.kind = GENERATION_TOKEN, .token = id}, NULL);
}

static void finished(uint64_t sequence)
{
    client_driver_post(driver, sequence, &(struct generation_event){.kind = GENERATION_FINISHED},
                       NULL);
}

Test(client_driver, tokens_reach_their_sink_in_order_and_the_last_ends_it)
{
    struct heard h = {0};
    uint64_t handle;
    cr_assert_eq(begin(&h, &handle), ERR_OK);
    cr_expect_eq(wakes, 1u);
    cr_expect_str_eq(orders().text, "S");
    const struct client_sequence *facts = client_driver_find(driver, handle);
    cr_assert_not_null(facts);
    cr_expect(facts->logprobs);
    cr_expect_eq(facts->top_logprobs, 4u);
    token(handle, 7);
    token(handle, 8);
    finished(handle);
    cr_expect_null(client_driver_find(driver, handle));
    cr_expect_eq(h.tokens, 0u, "sinks run on the loop only");
    uv_run(&loop, UV_RUN_NOWAIT);
    cr_expect_eq(h.tokens, 2u);
    cr_expect_eq(h.last_token, 8);
    cr_expect_eq(h.end, GENERATION_FINISHED);
    cr_expect_eq(client_driver_active(driver), 0u);
    service.cancel(service.self, handle); /* too late: nothing */
    cr_expect_str_eq(orders().text, "");
}

Test(client_driver, after_a_cancel_nothing_is_heard_and_the_place_is_free)
{
    struct heard h = {0}, other = {0};
    uint64_t first, second;
    cr_assert_eq(begin(&h, &first), ERR_OK);
    orders();
    token(first, 1);
    service.cancel(service.self, first);
    cr_assert_eq(begin(&other, &second), ERR_OK);
    cr_expect_eq((uint32_t)first, (uint32_t)second, "the same place");
    cr_expect_neq(first, second);
    token(first, 2); /* the engine does not know yet */
    struct orders got = orders();
    cr_expect_str_eq(got.text, "CS");
    token(first, 3);
    finished(first);
    cr_expect_not_null(client_driver_find(driver, second));
    token(second, 4);
    uv_run(&loop, UV_RUN_NOWAIT);
    cr_expect_eq(h.tokens + h.ends, 0u);
    cr_expect_eq(other.tokens, 1u);
    cr_expect_eq(other.last_token, 4);
    finished(second);
    uv_run(&loop, UV_RUN_NOWAIT);
}

Test(client_driver, pause_and_resume_are_told_once_each)
{
    struct heard h = {0};
    uint64_t handle;
    cr_assert_eq(begin(&h, &handle), ERR_OK);
    service.pause(service.self, handle, false);
    service.pause(service.self, handle, true);
    service.pause(service.self, handle, true);
    service.pause(service.self, handle, false);
    service.pause(service.self, handle, true);
    cr_expect_str_eq(orders().text, "SPRP");
    service.cancel(service.self, handle);
    cr_expect_str_eq(orders().text, "C");
}

Test(client_driver, what_is_not_accepted_is_told_why)
{
    struct heard h = {0};
    uint64_t handle;
    const char *reason;
    client_driver_set_ready(driver, false, false, "no node holds expert 3");
    cr_expect_eq(begin(&h, &handle), ERR_UNAVAILABLE);
    cr_expect_not(service.ready(service.self, &reason));
    cr_expect_str_eq(reason, "no node holds expert 3");
    client_driver_set_ready(driver, false, true, "waits"); /* was ready once: requests may wait */
    cr_expect_eq(begin(&h, &handle), ERR_OK);
    orders();
    service.cancel(service.self, handle);
}

Test(client_driver, the_table_has_an_end)
{
    static struct heard h[CLIENT_MAX_SEQUENCES];
    static uint64_t handles[CLIENT_MAX_SEQUENCES];
    uint64_t one_more;
    for (unsigned i = 0; i < CLIENT_MAX_SEQUENCES; i++)
        cr_assert_eq(begin(&h[i], &handles[i]), ERR_OK);
    cr_expect_eq(begin(&h[0], &one_more), ERR_EXHAUSTED);
    service.cancel(service.self, handles[500]);
    cr_expect_eq(begin(&h[500], &one_more), ERR_OK);
    cr_expect_eq(client_driver_active(driver), CLIENT_MAX_SEQUENCES);
    orders(); /* the rest is freed by close */
}

static void noted(void *ctx, const char *json)
{
    snprintf(ctx, 64, "%.60s", json);
}

Test(client_driver, one_question_answers_all_who_ask)
{
    char a[64] = "", b[64] = "", c[64] = "";
    service.cluster(service.self, noted, a);
    service.cluster(service.self, noted, b);
    cr_expect_str_eq(orders().text, "V");
    client_driver_answer_cluster(driver, mem_strdup("{\"x\":1}"));
    uv_run(&loop, UV_RUN_NOWAIT);
    cr_expect_str_eq(a, "{\"x\":1}");
    cr_expect_str_eq(b, a);
    service.cluster(service.self, noted, c);
    cr_expect_str_eq(orders().text, "V");
    client_driver_answer_cluster(driver, NULL); /* memory was short */
    uv_run(&loop, UV_RUN_NOWAIT);
    cr_expect_str_eq(c, "{}");
    service.cluster(service.self, noted, a); /* never answered: close does */
}

Test(client_driver, a_question_without_memory_is_answered_and_the_next_works)
{
    for (uint64_t n = 1; n <= 2; n++) {
        char a[64] = "", b[64] = "";
        mem_fail_at(n);
        service.cluster(service.self, noted, a);
        mem_fail_at(0);
        cr_expect_str_eq(a, "{}", "allocation %llu", (unsigned long long)n);
        service.cluster(service.self, noted, b);
        cr_expect_str_eq(orders().text, "V");
        client_driver_answer_cluster(driver, mem_strdup("[]"));
        uv_run(&loop, UV_RUN_NOWAIT);
        cr_expect_str_eq(b, "[]");
    }
}

Test(client_driver, without_memory_a_start_is_refused_and_leaves_nothing)
{
    for (uint64_t n = 1;; n++) {
        struct heard h = {0};
        uint64_t handle;
        mem_fail_at(n);
        enum err_code rc = begin(&h, &handle);
        mem_fail_at(0);
        if (rc == ERR_OK) {
            cr_expect_gt(n, 4u);
            orders();
            service.cancel(service.self, handle);
            return;
        }
        cr_expect_eq(rc, ERR_EXHAUSTED);
        cr_expect_eq(client_driver_active(driver), 0u);
        cr_expect_str_eq(orders().text, "");
    }
}

Test(client_driver, without_memory_for_a_token_the_answer_fails_once)
{
    struct heard h = {0};
    uint64_t handle;
    cr_assert_eq(begin(&h, &handle), ERR_OK);
    orders();
    token(handle, 1);
    mem_fail_at(1);
    token(handle, 2);
    token(handle, 3);
    finished(handle);
    uv_run(&loop, UV_RUN_NOWAIT);
    mem_fail_at(0);
    cr_expect_eq(h.tokens, 1u);
    cr_expect_eq(h.end, GENERATION_FAILED);
    cr_expect_not_null(strstr(h.error, "no memory"), "%s", h.error);
    cr_expect_eq(client_driver_active(driver), 0u);
}

Test(client_driver, ends_cancels_and_resumes_need_no_memory)
{
    struct heard h = {0}, other = {0};
    uint64_t handle, second;
    cr_assert_eq(begin(&h, &handle), ERR_OK);
    cr_assert_eq(begin(&other, &second), ERR_OK);
    service.pause(service.self, handle, true);
    mem_fail_at(1);
    service.pause(service.self, handle, false);
    service.pause(service.self, handle, true); /* no memory: goes on unpaused */
    service.cancel(service.self, second);
    struct orders got = orders();
    finished(handle);
    uv_run(&loop, UV_RUN_NOWAIT);
    mem_fail_at(0);
    cr_expect_str_eq(got.text, "SSPRC");
    cr_expect_eq(h.end, GENERATION_FINISHED);
    cr_expect_eq(other.ends, 0u);
}
