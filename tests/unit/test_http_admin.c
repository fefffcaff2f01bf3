/* Health, models, version, metrics, cluster views, tokens; 404, 405, 411, 415, 501. */
// links: api
// threads: yes
#include "tests/unit/api_fixture.h"

static void expect(struct api_fixture *f, const char *request, int status, const char *contains)
{
    struct buf full = {0};
    buf_printf(&full, "%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", request);
    char *reply = client_talk(f->port, full.data);
    cr_expect_eq(client_status(reply), status, "%s: %s", request, reply);
    cr_expect(strstr(reply, contains) != NULL, "%s: %s", request, reply);
    mem_free(reply);
    buf_free(&full);
}

static void expect_post(struct api_fixture *f, const char *path, const char *body, int status,
                        const char *contains)
{
    char *reply = client_post(f->port, path, body);
    cr_expect_eq(client_status(reply), status, "%s: %s", body, reply);
    cr_expect(strstr(reply, contains) != NULL, "%s: %s", body, reply);
    mem_free(reply);
}

Test(admin, pages_say_what_probes_and_people_need)
{
    struct api_fixture f;
    api_fixture_init(&f, "x");
    api_fixture_start(&f);
    expect(&f, "GET /", 200, "curl http://localhost/v1/chat/completions");
    expect(&f, "GET /health", 200, "{\"status\":\"ok\"}");
    expect(&f, "HEAD /v1/health", 200, "Content-Length: 15\r\n");
    expect(&f, "GET /livez", 200, "ok");
    expect(&f, "GET /readyz", 200, "ok");
    expect(&f, "GET /readyz?verbose", 503, "not ready\n- layer 1 expert 3 has no replica\n");
    expect(
        &f, "GET /version", 200,
        "{\"protocol\":0,\"version\":\"1.2.3\",\"git\":\"g\",\"build\":\"b\",\"model\":\"demo/tales\",\"model_digest\":\"abc123\"}");
    expect(
        &f, "GET /v1/models", 200,
        "{\"object\":\"list\",\"data\":[{\"id\":\"demo/tales\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"moesaic\"");
    expect(&f, "GET /v1/models/demo/tales", 200, "\"n_experts\":8");
    expect(&f, "GET /v1/models/demo%2Ftales", 200, "\"n_experts\":8");
    expect(&f, "GET /v1/models/other", 404, "\"code\":\"model_not_found\"");
    expect(&f, "GET /v1/cluster", 200, "\"engine\":{}");
    expect(&f, "GET /v1/cluster/nodes", 200, "{\"epoch\":7,\"nodes\":[{\"id\":\"a\"}]}");
    expect(&f, "GET /v1/cluster/placement", 200, "{\"epoch\":7,\"placement\":{\"layers\":2}}");
    expect(&f, "GET /nowhere", 404, "\"type\":\"not_found_error\"");
    expect(&f, "DELETE /v1/models", 405, "Allow: GET, HEAD\r\n");
    expect(&f, "GET /v1/chat/completions", 405, "Allow: POST\r\n");
    expect(&f, "POST /v1/chat/completions", 411, "no body");
    expect(&f, "POST /v1/completions", 411, "no body");
    expect_post(&f, "/v1/embeddings", "{}", 501, "x-should-retry: false\r\n");
    char *reply = client_talk(
        f.port,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
    cr_expect_eq(client_status(reply), 415);
    mem_free(reply);
    api_fixture_stop(&f);

    api_fixture_init(&f, "x");
    f.fake.ready = false;
    f.cfg.model.chat_template = NULL;
    api_fixture_start(&f);
    expect(&f, "GET /health", 503, "not ready: loading");
    expect(&f, "GET /readyz", 503, "Retry-After");
    expect(&f, "GET /livez", 200, "ok");
    expect(&f, "GET /", 200, "not ready, loading");
    expect_post(&f, "/v1/chat/completions",
                "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", 400, "no chat template");
    /* Not ready is for probes and balancers: a request may wait for a lost expert, so the engine decides. */
    expect_post(&f, "/v1/completions", "{\"prompt\":\"a\"}", 200, "\"text\":\"x\"");
    api_fixture_stop(&f);

    api_fixture_init(&f, "x");
    f.fake.refuse_code = ERR_UNAVAILABLE;
    api_fixture_start(&f);
    expect_post(&f, "/v1/completions", "{\"prompt\":\"a\"}", 503, "Retry-After: 1\r\n");
    api_fixture_stop(&f);
}

Test(admin, text_to_tokens_and_back)
{
    struct api_fixture f;
    api_fixture_init(&f, "x");
    api_fixture_start(&f);
    expect_post(&f, "/tokenize", "{\"content\":\"<|im_start|>\"}", 200,
                "{\"tokens\":[1],\"count\":1,\"max_model_len\":512}");
    expect_post(&f, "/tokenize", "{\"prompt\":\"<|im_end|>\",\"with_pieces\":true}", 200,
                "{\"tokens\":[{\"id\":2,\"piece\":\"<|im_end|>\"}]");
    expect_post(&f, "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", 200,
                "{\"tokens\":[1,");
    expect_post(&f, "/tokenize", "{}", 400, "\"param\":\"prompt\"");
    expect_post(&f, "/tokenize", "{\"content\":5}", 400, "\"param\":\"content\"");
    expect_post(&f, "/detokenize", "{\"tokens\":[1,2]}", 200,
                "{\"content\":\"<|im_start|><|im_end|>\",\"prompt\":\"<|im_start|><|im_end|>\"}");
    expect_post(&f, "/detokenize", "{\"tokens\":[99999999]}", 400, "\"param\":\"tokens\"");
    expect_post(&f, "/detokenize", "{}", 400, "\"param\":\"tokens\"");
    api_fixture_stop(&f);
}

Test(admin, metrics_count_what_happened)
{
    struct api_fixture f;
    api_fixture_init(&f, "Once upon a time");
    api_fixture_start(&f);
    expect_post(&f, "/v1/completions", "{\"prompt\":[5,6,7]}", 200, "Once");
    expect_post(&f, "/v1/completions", "{\"prompt\":[5],\"max_tokens\":1}", 200, "length");
    expect_post(&f, "/v1/completions", "{", 400, "JSON");
    expect(&f, "GET /metrics", 200, "Content-Type: text/plain; version=0.0.4");
    expect(&f, "GET /metrics", 200, "\nmoesaic_prompt_tokens_total 4\n");
    expect(&f, "GET /metrics", 200,
           "\nmoesaic_request_total{finish_reason=\"stop\",status=\"200\"} 1\n");
    expect(&f, "GET /metrics", 200,
           "\nmoesaic_request_total{finish_reason=\"length\",status=\"200\"} 1\n");
    expect(&f, "GET /metrics", 200,
           "\nmoesaic_request_total{finish_reason=\"error\",status=\"4xx\"} 1\n");
    expect(&f, "GET /metrics", 200, "moesaic_time_to_first_token_seconds_bucket{le=\"+Inf\"} 2\n");
    expect(&f, "GET /metrics", 200,
           "# TYPE moesaic_nodes gauge\nmoesaic_nodes{state=\"joining\"} 0\n");
    expect(&f, "GET /metrics", 200, "moesaic_build_info{version=\"1.2.3\",git=\"g\"} 1\n");
    char wanted[64];
    snprintf(wanted, sizeof wanted, "\nmoesaic_generation_tokens_total %zu\n", f.script.len + 2);
    expect(&f, "GET /metrics", 200, wanted);
    api_fixture_stop(&f);
}
