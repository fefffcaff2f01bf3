/* InferenceService.Generate over real sockets and a fake engine: answers, logprobs, errors, clients that leave or read
 * slowly, the end. The loop has its thread; the test's own thread polls client and server. */
// links: api
#include <math.h>

#include "common/base/clock.h"
#include "common/rpc/inference_frame.h"
#include "coordinator/api/grpc_service.h"
#include "tests/unit/api_fixture.h"

#define GENERATE "/moesaic.v1.InferenceService/Generate"
#define MAX_IDS  40000u
#define WAIT_MS  5000u

/* ---- one call of a client ---------------------------------------------------------------------- */

struct client {
    struct rpc_link *link;
    struct buf request, text;
    unsigned n_requests;         /* how often the request is sent */
    bool opened, over, confused; /* confused: the client's own memory was short */
    int status;
    char why[512];
    unsigned n_replies, n_last;
    int32_t ids[MAX_IDS];
    size_t n_ids, n_prompt, n_logprobs, n_top;
    struct generate_logprob first_logprob, first_top[LIMIT_TOP_LOGPROBS];
    bool logprobs_beside_ids, prompt_first_only;
    char reason[16];
    uint32_t prompt_tokens, completion_tokens;
};

static void client_open(void *ctx, struct rpc_link *l)
{
    struct client *c = ctx;
    c->opened = true;
    for (unsigned i = 0; i < c->n_requests; i++)
        c->confused |= !rpc_link_send(
            l, &(struct rpc_out){.header = c->request.data, .header_bytes = c->request.len});
}

static void client_message(void *ctx, struct rpc_link *l, struct rpc_message *m)
{
    (void)l;
    struct client *c = ctx;
    size_t n;
    const uint8_t *bytes = rpc_message_header(m, &n);
    struct generate_reply *r = NULL;
    struct err why;
    enum err_code rc = frame_decode_generate_reply(bytes, n, &r, &why);
    rpc_message_free(m);
    if (rc != ERR_OK) {
        c->confused = true;
        return;
    }
    if (c->n_replies == 0)
        c->n_prompt = r->n_prompt_token_ids;
    else
        c->prompt_first_only &= r->n_prompt_token_ids == 0;
    c->n_replies++;
    buf_puts(&c->text, r->text);
    for (size_t i = 0; i < r->n_token_ids && c->n_ids < MAX_IDS; i++)
        c->ids[c->n_ids++] = r->token_ids[i];
    c->logprobs_beside_ids &= r->n_logprobs == r->n_token_ids;
    for (size_t i = 0; i < r->n_logprobs && i < r->n_token_ids; i++)
        c->logprobs_beside_ids &= r->logprobs[i].id == r->token_ids[i];
    if (c->n_logprobs == 0 && r->n_logprobs > 0) {
        c->first_logprob = r->logprobs[0];
        memcpy(c->first_top, r->top_logprobs, r->n_top_logprobs * sizeof *r->top_logprobs);
    }
    c->n_logprobs += r->n_logprobs;
    c->n_top += r->n_top_logprobs;
    if (r->finish_reason[0] != '\0' || r->has_usage) c->n_last++;
    if (r->finish_reason[0] != '\0') snprintf(c->reason, sizeof c->reason, "%s", r->finish_reason);
    if (r->has_usage) {
        c->prompt_tokens = r->prompt_tokens;
        c->completion_tokens = r->completion_tokens;
    }
    frame_generate_reply_free(r);
}

static void client_down(void *ctx, struct rpc_link *l, int status, const char *text)
{
    struct client *c = ctx;
    c->over = true;
    c->status = status;
    snprintf(c->why, sizeof c->why, "%s", text);
    c->link = NULL;
    rpc_link_close(l); /* else it would ask again */
}

/* ---- the server under test --------------------------------------------------------------------- */

struct rig {
    struct api_fixture f; /* loop, fake engine, model; its HTTP API stays closed */
    uv_async_t order;
    _Atomic int todo; /* 1: drain, 2: stop */
    _Atomic uint32_t drained, stopped;
    struct rpc *rpc, *client_rpc; /* the same, unless a test wants a client that does not read */
    struct rpc_health *health;
    struct rpc_server *server;
    struct grpc_service *service;
    char target[64];
};

static void rig_drained(void *ctx)
{
    ((struct rig *)ctx)->drained++;
}

static void rig_stopped(void *ctx)
{
    struct rig *g = ctx;
    g->stopped++;
    uv_close((uv_handle_t *)&g->order, NULL);
    fake_generation_stop(&g->f.fake);
    uv_close((uv_handle_t *)&g->f.wake, NULL);
}

static void rig_order(uv_async_t *a)
{
    struct rig *g = a->data;
    int todo = atomic_exchange(&g->todo, 0);
    if (todo == 1) grpc_service_drain(g->service, rig_drained, g);
    if (todo == 2) grpc_service_stop(g->service, rig_stopped, g);
}

static void rig_wake(void *ctx)
{
    rpc_wake(ctx);
}

static void rig_init(struct rig *g, const char *text)
{
    struct err why;
    memset(g, 0, sizeof *g);
    cr_assert_eq(rpc_open(&g->rpc, &why), ERR_OK);
    g->client_rpc = g->rpc;
    api_fixture_init(&g->f, text);
}

static void rig_start(struct rig *g)
{
    struct err why;
    g->health = rpc_health_open();
    struct grpc_service_cfg cfg = {.model = g->f.cfg.model,
                                   .service = g->f.cfg.service,
                                   .metrics = g->f.cfg.metrics,
                                   .health = g->health,
                                   .wake = rig_wake,
                                   .wake_ctx = g->rpc};
    cr_assert_eq(grpc_service_open(&g->f.loop, &cfg, &g->service, &why), ERR_OK);
    struct rpc_method methods[3];
    rpc_health_methods(g->health, methods);
    methods[2] = grpc_service_method(g->service);
    cr_assert_eq(rpc_server_open(g->rpc, "127.0.0.1:0", methods, 3, &g->server, &why), ERR_OK, "%s",
                 why.text);
    snprintf(g->target, sizeof g->target, "127.0.0.1:%u", rpc_server_port(g->server));
    uv_async_init(&g->f.loop, &g->order, rig_order);
    g->order.data = g;
    pthread_create(&g->f.thread, NULL, api_fixture_run, &g->f);
}

static void rig_turn(struct rig *g)
{
    rpc_poll(g->rpc, 2000);
    grpc_service_pump(g->service);
    if (g->client_rpc != g->rpc) rpc_poll(g->client_rpc, 0);
}

static bool rig_until(struct rig *g, const bool *flag)
{
    uint64_t end = clock_now_us() + WAIT_MS * 1000u;
    while (!*flag && clock_now_us() < end)
        rig_turn(g);
    return *flag;
}

static bool rig_becomes(struct rig *g, _Atomic uint32_t *value, uint32_t wanted)
{
    uint64_t end = clock_now_us() + WAIT_MS * 1000u;
    while (*value != wanted && clock_now_us() < end)
        rig_turn(g);
    return *value == wanted;
}

static void rig_tell(struct rig *g, int todo)
{
    g->todo = todo;
    uv_async_send(&g->order);
}

/* The engine thread ends with calls under way: its place is taken by this thread, without the loop. */
static void rig_stop(struct rig *g)
{
    rig_tell(g, 2);
    pthread_join(g->f.thread, NULL);
    cr_expect_eq(g->stopped, 1);
    cr_expect_eq(uv_loop_close(&g->f.loop), 0);
    cr_expect_eq(g->f.fake.n_live, 0);
    grpc_service_pump(g->service);
    rpc_health_finish(g->health);
    rpc_server_close(g->server, 500);
    grpc_service_close(g->service);
    rpc_health_close(g->health);
    if (g->client_rpc != g->rpc) rpc_close(g->client_rpc);
    rpc_close(g->rpc);
    tokenizer_close((struct tokenizer *)(uintptr_t)g->f.cfg.model.tokenizer);
    chat_template_close((struct chat_template *)(uintptr_t)g->f.cfg.model.chat_template);
    metrics_close(g->f.cfg.metrics);
    ids_free(&g->f.script);
}

static void ask(struct rig *g, struct client *c, const struct generate_request *q)
{
    static const struct rpc_link_handlers handlers = {client_open, client_message, client_down};
    struct err why;
    struct generate_request copy = *q;
    if (copy.model == NULL) copy.model = "";
    *c = (struct client){.n_requests = 1, .logprobs_beside_ids = true, .prompt_first_only = true};
    cr_assert_eq(frame_encode_generate_request(&copy, &c->request, &why), ERR_OK);
    /* The lane with the smaller window: 4 MiB. */
    cr_assert_eq(rpc_link_open(g->client_rpc, g->target, RPC_LANE_BULK, GENERATE, &handlers, c,
                               &c->link, &why),
                 ERR_OK);
}

static void forget(struct client *c)
{
    rpc_link_close(c->link);
    c->link = NULL;
    buf_free(&c->request);
    buf_free(&c->text);
}

static void answer(struct rig *g, struct client *c, const struct generate_request *q)
{
    ask(g, c, q);
    cr_assert(rig_until(g, &c->over), "no answer");
}

static const char *text_of(const struct client *c)
{
    return c->text.data == NULL ? "" : c->text.data;
}

/* ---- answers ----------------------------------------------------------------------------------- */

Test(grpc_service, an_answer_has_prompt_ids_text_ids_reason_and_usage)
{
    struct rig g;
    struct client c;
    rig_init(&g, "Once upon a time");
    rig_start(&g);
    answer(
        &g, &c,
        &(struct generate_request){.prompt = "The sea", .has_max_tokens = true, .max_tokens = 100});
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_str_eq(text_of(&c), "Once upon a time");
    cr_expect_str_eq(c.reason, "stop");
    cr_assert_eq(c.n_ids, g.f.script.len + 1, "the eos token is among them");
    cr_expect_eq(memcmp(c.ids, g.f.script.data, g.f.script.len * sizeof(int32_t)), 0);
    cr_expect_eq(c.ids[c.n_ids - 1], g.f.fake.eos);
    cr_expect_eq(c.completion_tokens, c.n_ids);
    cr_expect_eq(c.n_last, 1);
    cr_expect_eq(c.n_prompt, g.f.fake.n_last_prompt);
    cr_expect_eq(c.prompt_tokens, g.f.fake.n_last_prompt);
    cr_expect(c.prompt_first_only && c.n_logprobs == 0);
    cr_expect_eq(c.n_replies, c.n_ids + 1, "a message per token, and the last");
    /* The model's defaults. */
    cr_expect_float_eq(g.f.fake.last_spec.sampling.temperature, 0.75, 1e-9);
    cr_expect_float_eq(g.f.fake.last_spec.sampling.top_p, 0.5, 1e-9);
    cr_expect_eq(g.f.fake.last_spec.sampling.top_k, 40);
    cr_expect_eq(metrics_value(g.f.cfg.metrics, METRIC_REQUEST_STOP), 1);
    forget(&c);
    rig_stop(&g);
}

Test(grpc_service, parameters_reach_the_engine)
{
    struct rig g;
    struct client c;
    int32_t ids[] = {5, 6, 7};
    rig_init(&g, "A");
    const struct generate_bias bias[] = {{5, -100}, {2, 0.25}};
    g.f.fake.endless = true;
    rig_start(&g);
    answer(&g, &c,
           &(struct generate_request){.prompt_ids = ids,
                                      .n_prompt_ids = 3,
                                      .has_presence_penalty = true,
                                      .presence_penalty = 0.5,
                                      .has_frequency_penalty = true,
                                      .frequency_penalty = -0.5,
                                      .has_repetition_penalty = true,
                                      .repetition_penalty = 1.25,
                                      .logit_bias = bias,
                                      .n_logit_bias = 2,
                                      .has_temperature = true,
                                      .has_top_p = true,
                                      .top_p = 0.9,
                                      .has_min_p = true,
                                      .min_p = 0.05,
                                      .has_top_k = true,
                                      .top_k = 7,
                                      .has_seed = true,
                                      .seed = -5,
                                      .ignore_eos = true,
                                      .model = "demo/tales"});
    const struct generation_spec *s = &g.f.fake.last_spec;
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_eq(memcmp(g.f.fake.last_prompt, ids, sizeof ids), 0);
    cr_expect(s->sampling.temperature == 0.0 && s->sampling.top_p == 0.9 &&
              s->sampling.min_p == 0.05);
    cr_expect(s->sampling.top_k == 7 && s->sampling.seed == (uint64_t)-5 &&
              s->sampling.choice == 0 && s->ignore_eos);
    const struct logit_adjust *a = &s->sampling.adjust;
    cr_expect(a->presence == 0.5 && a->frequency == -0.5 && a->repetition == 1.25);
    cr_assert_eq(a->n_bias, 2);
    cr_expect(a->bias[0].id == 5 && a->bias[0].bias == -100);
    cr_expect(a->bias[1].id == 2 && a->bias[1].bias == 0.25);
    cr_expect(!s->logprobs && s->top_logprobs == 0 && !s->prompt_logprobs);
    cr_expect_eq(s->max_tokens, 16);
    cr_expect_eq(c.n_ids, 16);
    cr_expect_str_eq(c.reason, "length");
    forget(&c);
    rig_stop(&g);
}

Test(grpc_service, messages_go_through_the_chat_template)
{
    struct rig g;
    struct client c;
    struct generate_message messages[] = {{"system", "Be brief."}, {"user", "Hi"}};
    rig_init(&g, "Hello");
    rig_start(&g);
    answer(&g, &c, &(struct generate_request){.messages = messages, .n_messages = 2});
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_str_eq(text_of(&c), "Hello");
    const char *prompt =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    struct ids expected = {0};
    tokenizer_encode(g.f.cfg.model.tokenizer, prompt, strlen(prompt), TOKENIZER_ADD_NONE,
                     TOKENIZER_PARSE_SPECIAL, &expected, NULL);
    cr_assert_eq(expected.len, g.f.fake.n_last_prompt);
    cr_expect_eq(memcmp(expected.data, g.f.fake.last_prompt, expected.len * sizeof(int32_t)), 0);
    cr_expect_eq(g.f.fake.last_spec.max_tokens, 512 - expected.len, "the rest of the context");
    ids_free(&expected);
    forget(&c);
    rig_stop(&g);
}

Test(grpc_service, logprobs_stand_beside_their_ids)
{
    struct rig g;
    struct client c;
    rig_init(&g, "Once upon a time");
    rig_start(&g);
    answer(&g, &c,
           &(struct generate_request){.prompt = "x", .has_top_logprobs = true, .top_logprobs = 3});
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect(c.logprobs_beside_ids);
    cr_expect_eq(c.n_logprobs, c.n_ids);
    cr_expect_eq(c.n_top, 3 * c.n_ids);
    cr_expect(c.first_logprob.id == c.ids[0] && c.first_logprob.logprob == -0.5f);
    cr_expect(c.first_top[1].id == c.ids[0] + 1 && c.first_top[1].logprob == -1.5f);
    forget(&c);
    rig_stop(&g);
}

Test(grpc_service, a_stop_string_ends_the_text_and_the_engine)
{
    struct rig g;
    struct client c;
    const char *stop[] = {"on a"};
    rig_init(&g, "Once upon a time. ");
    g.f.fake.endless = true;
    rig_start(&g);
    answer(
        &g, &c,
        &(struct generate_request){
            .prompt = "x", .has_max_tokens = true, .max_tokens = 400, .stop = stop, .n_stop = 1});
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_str_eq(text_of(&c), "Once up");
    cr_expect_str_eq(c.reason, "stop");
    cr_expect_eq(c.completion_tokens, c.n_ids);
    cr_expect_lt(c.n_ids, g.f.script.len);
    cr_expect_eq(g.f.fake.n_cancelled, 1);
    forget(&c);
    rig_stop(&g);
}

/* ---- errors ------------------------------------------------------------------------------------ */

Test(grpc_service, what_is_wrong_with_a_request_is_said)
{
    struct generate_message king[] = {{"king", ""}};
    static int32_t long_prompt[600];
    int32_t no_id[] = {1, 1 << 30};
    const struct generate_bias negative = {-1, 1}, infinite = {1, (double)INFINITY},
                               twice[] = {{1, 1}, {1, 2}};
    struct {
        struct generate_request q;
        int status;
        const char *part;
    } cases[] = {
        {{.prompt = "a", .has_temperature = true, .temperature = 2.5},
         3,
         "temperature is 2.5; it must be from 0 to 2"},
        {{.prompt = "a", .has_temperature = true, .temperature = -0.5}, 3, "temperature"},
        {{.prompt = "a", .has_temperature = true, .temperature = (double)NAN}, 3, "temperature is"},
        {{.prompt = "a", .has_min_p = true, .min_p = (double)INFINITY}, 3, "min_p is inf"},
        {{.prompt = "a", .has_top_p = true, .top_p = 0}, 3, "top_p is 0"},
        {{.prompt = "a", .has_min_p = true, .min_p = 1.5}, 3, "min_p is 1.5"},
        {{.prompt = "a", .has_top_k = true, .top_k = 5000}, 3, "top_k is 5000"},
        {{.prompt = "a", .has_presence_penalty = true, .presence_penalty = 3},
         3,
         "presence_penalty is 3"},
        {{.prompt = "a", .has_repetition_penalty = true}, 3, "repetition_penalty is 0"},
        {{.prompt = "a", .logit_bias = &negative, .n_logit_bias = 1}, 3, "key '-1'"},
        {{.prompt = "a", .logit_bias = &infinite, .n_logit_bias = 1}, 3, "1 is inf"},
        {{.prompt = "a", .logit_bias = twice, .n_logit_bias = 2}, 3, "id 1 twice"},
        {{.prompt = "a", .has_max_tokens = true, .max_tokens = 0}, 3, "max_tokens is 0"},
        {{.prompt = "a", .has_max_tokens = true, .max_tokens = 513}, 3, "max_tokens is 513"},
        {{.prompt = "Once upon", .has_max_tokens = true, .max_tokens = 512},
         3,
         "length is 512 tokens; the prompt has 2 and 512"},
        {{.prompt_ids = long_prompt, .n_prompt_ids = 600}, 3, "512 tokens; the prompt has 600"},
        {{.prompt_ids = no_id, .n_prompt_ids = 2}, 3, "element 1 is not a token id"},
        {{.messages = king, .n_messages = 1}, 3, "messages[0].role"},
        {{.prompt = ""}, 3, "the prompt has no tokens"},
        {{.prompt = "a", .prompt_ids = long_prompt, .n_prompt_ids = 1}, 3, "exactly one"},
        {{.prompt = "a", .model = "other"}, 5, "'other' is not served here; 'demo/tales' is"},
    };
    struct rig g;
    rig_init(&g, "A");
    rig_start(&g);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct client c;
        answer(&g, &c, &cases[i].q);
        cr_expect_eq(c.status, cases[i].status, "%s: %d %s", cases[i].part, c.status, c.why);
        cr_expect(strstr(c.why, cases[i].part) != NULL, "'%s' lacks '%s'", c.why, cases[i].part);
        cr_expect_eq(c.n_replies, 0);
        forget(&c);
    }
    cr_expect_eq(g.f.fake.n_started, 0);
    rig_stop(&g);
}

Test(grpc_service, the_engines_errors_keep_their_code)
{
    struct rig g;
    struct client c;
    struct generate_request q = {.prompt = "a", .has_max_tokens = true, .max_tokens = 50};
    rig_init(&g, "Once upon a time");
    g.f.fake.fail_at = 2;
    g.f.fake.fail_code = ERR_TIMEOUT;
    rig_start(&g);
    answer(&g, &c, &q);
    cr_expect(c.status == 4 && strstr(c.why, "node 3") != NULL, "%d %s", c.status, c.why);
    cr_expect(c.n_ids == 2 && c.reason[0] == '\0', "what was said before stays");
    forget(&c);
    g.f.fake.refuse_code = ERR_EXHAUSTED;
    answer(&g, &c, &q);
    cr_expect(c.status == 8 && strstr(c.why, "refused by the test") != NULL, "%d %s", c.status,
              c.why);
    forget(&c);
    g.f.fake.refuse_code = ERR_OK;
    g.f.fake.ready = false;
    answer(&g, &c, &q);
    cr_expect(c.status == 14 && strstr(c.why, "not ready: loading") != NULL, "%d %s", c.status,
              c.why);
    forget(&c);
    cr_expect_eq(metrics_value(g.f.cfg.metrics, METRIC_REQUEST_ERROR_5XX), 3);
    rig_stop(&g);
}

Test(grpc_service, a_second_message_and_garbage_are_refused)
{
    struct rig g;
    struct client c;
    rig_init(&g, "A");
    g.f.fake.hold = true;
    rig_start(&g);
    ask(&g, &c, &(struct generate_request){.prompt = "a"});
    c.n_requests = 2;
    cr_assert(rig_until(&g, &c.over));
    cr_expect(c.status == 3 && strstr(c.why, "one message") != NULL, "%d %s", c.status, c.why);
    forget(&c);
    cr_expect(rig_becomes(&g, &g.f.fake.n_live, 0));
    ask(&g, &c, &(struct generate_request){.prompt = "a"});
    buf_clear(&c.request);
    buf_puts(&c.request, "\xff\xff\xff");
    cr_assert(rig_until(&g, &c.over));
    cr_expect(c.status == 3 && strstr(c.why, "malformed") != NULL, "%d %s", c.status, c.why);
    forget(&c);
    rig_stop(&g);
}

/* ---- clients that leave, or read slowly -------------------------------------------------------- */

Test(grpc_service, a_client_that_leaves_stops_its_sequence)
{
    struct rig g;
    struct client c;
    rig_init(&g, "la ");
    g.f.fake.endless = true;
    g.f.cfg.model.ctx = 1u << 20;
    rig_start(&g);
    struct generate_request q = {.prompt = "a", .has_max_tokens = true, .max_tokens = 1u << 19};
    ask(&g, &c, &q);
    while (c.n_ids < 3 && !c.over)
        rig_turn(&g);
    cr_expect_eq(g.f.fake.n_live, 1);
    forget(&c);
    cr_expect(rig_becomes(&g, &g.f.fake.n_cancelled, 1));
    cr_expect_eq(g.f.fake.n_live, 0);
    cr_expect_eq(metrics_value(g.f.cfg.metrics, METRIC_REQUEST_CANCELLED), 1);
    /* While it waits in the queue, too. */
    g.f.fake.hold = true;
    ask(&g, &c, &q);
    cr_expect(rig_becomes(&g, &g.f.fake.n_live, 1));
    forget(&c);
    cr_expect(rig_becomes(&g, &g.f.fake.n_cancelled, 2));
    rig_stop(&g);
}

/* Long prompts are prepared on libuv's pool; a client may leave in the middle, the server may stop in the middle. */
Test(grpc_service, long_prompts_are_prepared_beside_the_loop)
{
    struct rig g;
    struct client c;
    struct buf text = {0};
    for (int i = 0; i < 40000; i++)
        buf_puts(&text, "the sea and ");
    rig_init(&g, "Once");
    g.f.cfg.model.ctx = 1u << 20;
    rig_start(&g);
    struct generate_request q = {.prompt = text.data};
    answer(&g, &c, &q);
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_str_eq(text_of(&c), "Once");
    cr_expect_geq(c.n_prompt, 100000);
    forget(&c);
    ask(&g, &c, &q);
    while (metrics_value(g.f.cfg.metrics, METRIC_PROMPTS_PREPARING) < 1 && !c.over)
        rig_turn(&g);
    forget(&c);
    ask(&g, &c, &q);
    rig_turn(&g);
    while (metrics_value(g.f.cfg.metrics, METRIC_PROMPTS_PREPARING) < 1 && !c.over)
        rig_turn(&g);
    rig_stop(&g);
    forget(&c);
    buf_free(&text);
}

Test(grpc_service, a_slow_reader_pauses_its_sequence_and_gets_every_token)
{
    struct rig g;
    struct client c;
    struct err why;
    rig_init(&g, "one two three four ");
    g.f.fake.endless = true;
    g.f.fake.per_step = 200;
    g.f.cfg.model.ctx = 1u << 20;
    cr_assert_eq(rpc_open(&g.client_rpc, &why), ERR_OK);
    rig_start(&g);
    ask(&g, &c,
        &(struct generate_request){.prompt = "a",
                                   .has_max_tokens = true,
                                   .max_tokens = MAX_IDS,
                                   .has_top_logprobs = true,
                                   .top_logprobs = 20});
    while (c.n_ids == 0 && !c.over)
        rig_turn(&g);
    /* The client does not poll. A burst may pause the sequence for a moment; in the end it rests. */
    uint64_t now = clock_now_us(), end = now + WAIT_MS * 1000u, changed = now;
    uint32_t before = 0;
    while (now < end && now < changed + 50000) {
        rpc_poll(g.rpc, 2000);
        grpc_service_pump(g.service);
        now = clock_now_us();
        if (before != g.f.fake.n_tokens) changed = now;
        before = g.f.fake.n_tokens;
    }
    cr_expect_geq(g.f.fake.n_paused, 1);
    cr_expect_lt(before, MAX_IDS);
    cr_assert(rig_until(&g, &c.over));
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_geq(g.f.fake.n_resumed, 1);
    cr_assert_eq(c.n_ids, MAX_IDS);
    for (size_t i = 0; i < c.n_ids; i++)
        cr_assert_eq(c.ids[i], g.f.script.data[i % g.f.script.len]);
    cr_expect_eq(c.n_top, 20 * c.n_ids);
    forget(&c);
    rig_stop(&g);
}

/* ---- the end ----------------------------------------------------------------------------------- */

static int health(struct rig *g)
{
    struct err why;
    uint8_t *reply = NULL;
    size_t n = 0;
    grpc_service_pump(g->service);
    cr_assert_eq(rpc_unary(g->rpc, g->target, "/grpc.health.v1.Health/Check", "", 0, WAIT_MS,
                           &reply, &n, &why),
                 ERR_OK);
    int status = n == 2 ? reply[1] : -1;
    mem_free(reply);
    return status;
}

Test(grpc_service, health_follows_readiness_and_a_drain_finishes_what_runs)
{
    struct rig g;
    struct client c, late;
    struct generate_request q = {.prompt = "a", .has_max_tokens = true, .max_tokens = 50};
    rig_init(&g, "Once upon a time");
    g.f.fake.hold = true;
    rig_start(&g);
    cr_expect_eq(health(&g), 2, "not serving");
    grpc_service_set_ready(g.service, true);
    cr_expect_eq(health(&g), 1);
    ask(&g, &c, &q);
    cr_assert(rig_becomes(&g, &g.f.fake.n_live, 1));
    rig_tell(&g, 1);
    uint64_t end = clock_now_us() + WAIT_MS * 1000u;
    while (health(&g) != 2 && clock_now_us() < end) {
    }
    cr_expect_eq(health(&g), 2);
    answer(&g, &late, &q);
    cr_expect(late.status == 14 && strstr(late.why, "shutting down") != NULL, "%d %s", late.status,
              late.why);
    forget(&late);
    cr_expect_eq(g.drained, 0);
    g.f.fake.hold = false;
    cr_assert(rig_until(&g, &c.over));
    cr_expect_eq(c.status, 0, "%s", c.why);
    cr_expect_str_eq(text_of(&c), "Once upon a time");
    forget(&c);
    cr_expect(rig_becomes(&g, &g.drained, 1));
    rig_stop(&g);
}

Test(grpc_service, a_stop_ends_open_calls_with_one_clear_error)
{
    struct rig g;
    struct client running, queued;
    rig_init(&g, "la ");
    g.f.fake.endless = true;
    g.f.cfg.model.ctx = 1u << 20;
    rig_start(&g);
    struct generate_request q = {.prompt = "a", .has_max_tokens = true, .max_tokens = 1u << 19};
    ask(&g, &running, &q);
    while (running.n_ids < 3 && !running.over)
        rig_turn(&g);
    g.f.fake.hold = true;
    ask(&g, &queued, &q);
    cr_expect(rig_becomes(&g, &g.f.fake.n_live, 2));
    rig_stop(&g); /* polls until the calls are over */
    cr_expect(running.status == 14 && strstr(running.why, "shutting down") != NULL, "%d %s",
              running.status, running.why);
    cr_expect(queued.status == 14 && queued.n_replies == 0, "%d %s", queued.status, queued.why);
    forget(&running);
    forget(&queued);
}

/* Whichever allocation fails: never an answer that looks complete and is not, and the next call is served. */
Test(grpc_service, short_memory_is_an_error_of_one_call)
{
    struct rig g;
    rig_init(&g, "Once upon a time");
    rig_start(&g);
    unsigned refused = 0;
    for (uint64_t n = 1; n <= 120; n++) {
        struct client c;
        ask(&g, &c,
            &(struct generate_request){
                .prompt = "a", .has_max_tokens = true, .max_tokens = 50, .has_top_logprobs = true});
        while (!c.opened)
            rig_turn(&g);
        mem_fail_at(n);
        uint64_t end = clock_now_us() + 40000;
        while (!c.over && clock_now_us() < end)
            rig_turn(&g);
        mem_fail_at(0);
        if (c.over && c.status == 0 && !c.confused)
            cr_expect_str_eq(text_of(&c), "Once upon a time", "allocation %u", (unsigned)n);
        if (c.over && c.status == 8) refused++;
        forget(&c);
        cr_assert(rig_becomes(&g, &g.f.fake.n_live, 0), "allocation %u", (unsigned)n);
    }
    cr_expect_gt(refused, 0);
    struct client c;
    answer(&g, &c,
           &(struct generate_request){.prompt = "a", .has_max_tokens = true, .max_tokens = 50});
    cr_expect_str_eq(text_of(&c), "Once upon a time");
    forget(&c);
    rig_stop(&g);
}
