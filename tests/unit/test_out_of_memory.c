/* Memory that runs out anywhere: while a coordinator starts, in the middle of a request that goes through all of it,
 * and in a node's core with its store. Allocation number n and all after it fail; what was asked for then fails with an
 * error or succeeds, nothing is lost or leaked (the builds with sanitizers look), and with memory back the next try
 * succeeds. By rule not every n: MOESAIC_EVERY_ALLOCATION=1 tries them all (minutes). */
// links: coordinator node
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/rpc/rpc.h"
#include "coordinator/coordinator.h"
#include "expert_node/batcher.h"
#include "expert_node/node.h"
#include "tests/support/http_client.h"

#define SHORT_MS   40    /* without memory: as long as something ends meanwhile */
#define PATIENT_MS 20000 /* with memory: a test that waits so long has failed */

/* The numbers that are tried of 1..last: all of the first, then ever fewer, and the last. */
static uint64_t next_after(uint64_t n, uint64_t last, uint64_t one_in)
{
    uint64_t next = getenv("MOESAIC_EVERY_ALLOCATION") != NULL ? n + 1 : n + 1 + n / one_in;
    return n < last && next > last ? last : next;
}

/* Before any other thread: the coordinator's watch takes the signal from a descriptor. */
static void set_up(void)
{
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    log_setup(LOG_ERROR, "test");
}

TestSuite(out_of_memory, .init = set_up, .timeout = 110);

/* ---- a coordinator in a thread ---------------------------------------------------------------- */

struct running {
    struct coordinator_options options;
    pthread_t thread;
    int events; /* our end of what a supervisor has: lines of JSON, its end when the thread has ended */
    enum err_code rc;
    struct err why;
    int port; /* 0: not ready yet */
};

static void *run(void *ctx)
{
    struct running *r = ctx;
    r->rc = coordinator_run(&r->options, &r->why);
    shutdown(r->options.parent_fd, SHUT_WR);
    return NULL;
}

static void begin(struct running *r)
{
    int pair[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    *r = (struct running){.options = {.model = TEST_DATA "/models/tiny-mixtral",
                                      .http = "127.0.0.1:0",
                                      .grpc = "127.0.0.1:0",
                                      .quantize = "none",
                                      .replicas = 1,
                                      .threads = 1,
                                      .ctx = 256,
                                      .chunk = 32,
                                      .kv_bytes = 1 << 20,
                                      .queue = 8,
                                      .drain_ms = 1000,
                                      .request_ms = 10000,
                                      .parent_fd = pair[1]},
                          .events = pair[0]};
    cr_assert_eq(pthread_create(&r->thread, NULL, run, r), 0);
}

/* Wait for it to be ready or to end; false: neither within that time. */
static bool settles(struct running *r, int wait_ms)
{
    char text[4096];
    struct pollfd fd = {r->events, POLLIN, 0};
    while (r->port == 0) {
        if (poll(&fd, 1, wait_ms) <= 0) return false;
        ssize_t n = read(r->events, text, sizeof text - 1);
        if (n <= 0) break;
        text[n] = '\0';
        const char *http = strstr(text, "\"http\": \"127.0.0.1:");
        if (http != NULL) sscanf(http, "\"http\": \"127.0.0.1:%d", &r->port);
    }
    return true;
}

static void stop(struct running *r)
{
    if (r->port != 0) kill(getpid(), SIGTERM);
    pthread_join(r->thread, NULL);
    close(r->events);
    close(r->options.parent_fd);
}

/* ---- requests --------------------------------------------------------------------------------- */

#define HEAD                                                                                       \
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
static const char *const bodies[] = {
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Once upon\"}],\"max_tokens\":6,\"temperature\":0,"
    "\"logprobs\":true,\"top_logprobs\":2}",
    "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a \\u00e9 time\"}]}],"
    "\"max_tokens\":6,\"seed\":5,\"stream\":true,\"n\":2,\"stop\":[\"zzzz\"]}"};
#define N_BODIES (sizeof bodies / sizeof *bodies)

struct reply {
    char text[64 << 10]; /* 0-terminated */
    size_t n;
    bool ended;
};

/* Read until the connection ends, or nothing has come for so long. No memory of its own: that is short. */
static void hear(int fd, struct reply *r, int wait_ms)
{
    struct pollfd p = {fd, POLLIN, 0};
    while (!r->ended && poll(&p, 1, wait_ms) > 0) {
        ssize_t n = read(fd, r->text + r->n, sizeof r->text - 1 - r->n);
        r->ended = n <= 0;
        if (n > 0) r->n += (size_t)n;
        r->text[r->n] = '\0';
    }
}

static void ask(int port, size_t body, uint64_t fail_at, struct reply *r)
{
    char request[1024];
    int n =
        snprintf(request, sizeof request, HEAD "%zu\r\n\r\n%s", strlen(bodies[body]), bodies[body]);
    *r = (struct reply){0};
    if (fail_at > 0) mem_fail_at(fail_at);
    int fd = client_connect(port);
    client_send_bytes(fd, request, (size_t)n);
    if (fail_at > 0) {
        hear(fd, r, SHORT_MS);
        mem_fail_at(0);
    }
    hear(fd, r, PATIENT_MS);
    close(fd);
}

/* The JSON value behind the last `key`, up to the quote that ends it; "" if there is none. */
static void last_value(const char *text, const char *key, char *out, size_t cap)
{
    const char *at = NULL;
    for (const char *next = text; (next = strstr(next, key)) != NULL; next++)
        at = next + strlen(key);
    snprintf(out, cap, "%.*s", at == NULL ? 0 : (int)strcspn(at, "\""), at == NULL ? "" : at);
}

static bool is_complete(size_t body, const struct reply *r)
{
    char reason[32];
    last_value(r->text, "\"finish_reason\":\"", reason, sizeof reason);
    return strcmp(reason, "length") == 0 && (body == 0 || strstr(r->text, "[DONE]") != NULL);
}

Test(out_of_memory, a_request_ends_once_and_the_next_one_is_answered)
{
    struct running r;
    static struct reply good[N_BODIES], bad, again;
    begin(&r);
    cr_assert(settles(&r, PATIENT_MS) && r.port != 0, "%s", r.why.text);
    uint64_t most = 0;
    unsigned tried = 0, failed = 0;
    for (size_t b = 0; b < N_BODIES; b++) {
        ask(r.port, b, 0, &good[b]);
        mem_fail_at(UINT64_MAX); /* counts */
        ask(r.port, b, 0, &good[b]);
        uint64_t had = mem_fail_at(0);
        most = had > most ? had : most;
        cr_assert(is_complete(b, &good[b]), "%s", good[b].text);
        for (uint64_t n = 1; n <= had; n = next_after(n, had, 24)) {
            ask(r.port, b, n, &bad);
            cr_assert(bad.ended, "allocation %llu of body %zu: no end", (unsigned long long)n, b);
            /* An answer, an error, or a connection that was cut: never two of them, never half an answer that looks
             * like a whole one. */
            bool complete = is_complete(b, &bad), error = strstr(bad.text, "\"error\"") != NULL;
            bool closed = strstr(bad.text, "[DONE]") != NULL || strstr(bad.text, "\r\n0\r\n\r\n");
            cr_assert(complete ? !error : error || !closed, "allocation %llu of body %zu: %s",
                      (unsigned long long)n, b, bad.text);
            failed += !complete;
            tried++;
        }
        ask(r.port, b, 0, &again);
        cr_assert(is_complete(b, &again), "%s", again.text);
    }
    cr_expect_gt(most, 50);
    cr_expect_gt(failed, tried / 4, "%u of %u failed", failed, tried);
    printf("%u of %u tries over at most %llu allocations ended in an error\n", failed, tried,
           (unsigned long long)most);
    stop(&r);
    cr_expect_eq(r.rc, ERR_OK, "%s", r.why.text);
}

Test(out_of_memory, a_coordinator_starts_or_says_that_memory_is_short)
{
    struct running r;
    struct rpc *held; /* gRPC stays up between the tries */
    struct err why;
    cr_assert_eq(rpc_open(&held, &why), ERR_OK);
    mem_fail_at(UINT64_MAX); /* counts */
    begin(&r);
    cr_assert(settles(&r, PATIENT_MS) && r.port != 0, "%s", r.why.text);
    uint64_t had = mem_fail_at(0);
    stop(&r);
    cr_assert_eq(r.rc, ERR_OK, "%s", r.why.text);
    unsigned tried = 0, refused = 0;
    for (uint64_t n = 1; n <= had; n = next_after(n, had, 12)) {
        mem_fail_at(n);
        begin(&r);
        bool settled = settles(&r, SHORT_MS);
        mem_fail_at(0);
        if (!settled)
            settled = settles(&r, PATIENT_MS); /* it got over the start, and is ready now */
        cr_assert(settled, "allocation %llu of %llu: no end", (unsigned long long)n,
                  (unsigned long long)had);
        int port = r.port;
        stop(&r);
        if (port == 0)
            cr_assert(r.rc == ERR_EXHAUSTED && r.why.text[0] != '\0', "allocation %llu: %s: %s",
                      (unsigned long long)n, err_name(r.rc), r.why.text);
        else
            cr_assert_eq(r.rc, ERR_OK, "%s", r.why.text);
        refused += port == 0;
        tried++;
    }
    cr_expect_gt(refused, tried / 2, "%u of %u", refused, tried);
    printf("%u of %u tries over %llu allocations were refused\n", refused, tried,
           (unsigned long long)had);
    begin(&r);
    cr_assert(settles(&r, PATIENT_MS) && r.port != 0, "%s", r.why.text);
    stop(&r);
    rpc_close(held);
}

/* ---- a node ----------------------------------------------------------------------------------- */

struct node_rig {
    struct model_file *file;
    const struct kernels *kernels;
    struct workers *workers;
    struct buf header; /* of a step: two rows for experts 1 and 3 of layer 0 */
    float rows[2 * 64];
};

/* What the node needs for one try. */
struct node_parts {
    struct expert_store *store;
    struct batcher *batcher;
    struct node *node;
    struct item item;
};

static void close_parts(struct node_parts *p)
{
    node_close(p->node);
    batcher_close(p->batcher);
    expert_store_close(p->store);
    frame_request_free(p->item.frame);
    rpc_message_free(p->item.message);
    mem_free(p->item.results);
}

/* Hold all experts; a load that fails is told to the core, which says so in the end. */
static enum err_code assign(const struct node_rig *rig, struct node_parts *p, struct err *why)
{
    static const uint8_t all[] = {0xff, 0xff};
    struct node_actions todo;
    struct node_event ev = {.kind = NODE_ASSIGN, .assign = {1, all}};
    enum err_code rc = node_step(p->node, &ev, &todo, why);
    while (rc == ERR_OK && todo.n > 0 && todo.items[todo.n - 1].kind == NODE_ACT_LOAD) {
        const struct node_action *load = &todo.items[todo.n - 1];
        struct err load_why = {0};
        bool ok = expert_store_load(p->store, load->layer, load->expert, rig->workers, &load_why) ==
                  ERR_OK;
        ev = (struct node_event){.kind = NODE_LOADED, .done = {ok, &load_why}};
        rc = node_step(p->node, &ev, &todo, why);
        cr_assert_eq(rc, ERR_OK, "what was loaded is always taken: %s", why->text);
    }
    if (rc != ERR_OK) return rc;
    cr_assert_eq(todo.items[todo.n - 1].kind, NODE_ACT_HOLDINGS);
    return todo.items[todo.n - 1].code;
}

static enum err_code answer(const struct node_rig *rig, struct node_parts *p, struct err *why)
{
    uint8_t tag[] = {0x7a, 0x80, 0x04}; /* field 15, 512 bytes */
    struct rpc_part parts[] = {
        {rig->header.data, rig->header.len}, {tag, sizeof tag}, {rig->rows, sizeof rig->rows}};
    p->item.message = rpc_message_from_parts(parts, 3);
    if (p->item.message == NULL) return ERR_EXHAUSTED;
    enum err_code rc = frame_decode_request(p->item.message, &p->item.frame, why);
    if (rc != ERR_OK) return rc;
    const struct expert_request *q = p->item.frame;
    p->item.request = (struct node_request){.stream = 1,
                                            .step = q->step,
                                            .layer = q->layer,
                                            .n_rows = q->rows,
                                            .n_experts = q->n_experts,
                                            .experts = q->experts,
                                            .expert_rows = q->expert_rows,
                                            .row_index = q->row_index,
                                            .n_results = q->n_index};
    struct node_actions todo;
    struct node_event ev = {.kind = NODE_STEP, .request = &p->item.request};
    rc = node_step(p->node, &ev, &todo, why);
    if (rc != ERR_OK) return rc;
    struct err batch_why = {0};
    if (todo.items[0].kind == NODE_ACT_COMPUTE) {
        bool ok = batcher_run(p->batcher, todo.items[0].batch, rig->workers, &batch_why) == ERR_OK;
        ev = (struct node_event){.kind = NODE_COMPUTED, .done = {ok, &batch_why}};
        cr_assert_eq(node_step(p->node, &ev, &todo, why), ERR_OK, "%s", why->text);
    }
    cr_assert_eq(todo.n, 1, "%zu, the first %d", todo.n, todo.n ? (int)todo.items[0].kind : -1);
    cr_assert_eq(todo.items[0].request, &p->item.request);
    if (todo.items[0].kind == NODE_ACT_REFUSE) return todo.items[0].code;
    cr_assert_eq(todo.items[0].kind, NODE_ACT_REPLY);
    struct buf out = {0};
    struct expert_reply reply = {.kind = EXPERT_REPLY_RESULT, .step = q->step, .rows = q->n_index};
    rc = frame_encode_reply(&reply, &out, why);
    buf_free(&out);
    return rc;
}

static enum err_code node_try(const struct node_rig *rig, struct node_parts *p, struct err *why)
{
    static const bool moe[] = {true, true};
    const struct node_cfg cfg = {2, 6, moe, 64, 8};
    *p = (struct node_parts){0};
    enum err_code rc = expert_store_open(rig->file, "none", rig->kernels, &p->store, why);
    if (rc == ERR_OK) rc = batcher_open(p->store, 64, 6, &p->batcher, why);
    if (rc == ERR_OK) rc = node_open(&cfg, &p->node, why);
    if (rc == ERR_OK) rc = assign(rig, p, why);
    return rc == ERR_OK ? answer(rig, p, why) : rc;
}

Test(out_of_memory, a_node_answers_or_refuses)
{
    struct node_rig rig = {0};
    struct node_parts p;
    struct rpc *rpc;
    struct err why = {0};
    cr_assert_eq(rpc_open(&rpc, &why), ERR_OK);
    cr_assert_eq(model_file_open(TEST_DATA "/models/tiny-mixtral", &rig.file, &why), ERR_OK, "%s",
                 why.text);
    cr_assert_eq(kernels_pick(NULL, &rig.kernels, &why), ERR_OK);
    cr_assert_eq(workers_open(1, 0, &rig.workers, &why), ERR_OK);
    const struct hparams *hp = model_file_hparams(rig.file);
    cr_assert(hp->n_layers == 2 && hp->n_experts == 6 && hp->hidden == 64,
              "%u layers, %u experts of %u", hp->n_layers, hp->n_experts, hp->hidden);
    static const uint32_t experts[] = {1, 3}, each[] = {1, 2}, index[] = {0, 0, 1};
    struct expert_request q = {.kind = EXPERT_REQUEST_STEP,
                               .step = 7,
                               .format = FRAME_F32,
                               .rows = 2,
                               .experts = experts,
                               .expert_rows = each,
                               .n_experts = 2,
                               .row_index = index,
                               .n_index = 3};
    cr_assert_eq(frame_encode_request(&q, &rig.header, &why), ERR_OK);
    for (size_t i = 0; i < 128; i++)
        rig.rows[i] = (float)i / 128;

    cr_assert_eq(node_try(&rig, &p, &why), ERR_OK, "%s", why.text);
    size_t n_result = 3 * 64 * sizeof(float);
    uint8_t *want = malloc(n_result);
    memcpy(want, p.item.results, n_result);
    close_parts(&p);
    enum err_code rc = ERR_EXHAUSTED;
    for (uint64_t n = 1; rc != ERR_OK; n++) { /* each of them: there are not many */
        cr_assert_lt(n, 2000);
        mem_fail_at(n);
        rc = node_try(&rig, &p, &why);
        mem_fail_at(0);
        cr_assert(rc == ERR_OK || rc == ERR_EXHAUSTED, "allocation %llu: %s", (unsigned long long)n,
                  why.text);
        if (rc != ERR_OK && p.node != NULL && !node_busy(p.node)) { /* it goes on */
            frame_request_free(p.item.frame);
            rpc_message_free(p.item.message);
            mem_free(p.item.results);
            p.item = (struct item){0};
            enum err_code again = assign(&rig, &p, &why);
            if (again == ERR_OK) again = answer(&rig, &p, &why);
            cr_assert_eq(again, ERR_OK, "after allocation %llu: %s", (unsigned long long)n,
                         why.text);
            cr_assert_arr_eq(p.item.results, want, n_result);
        }
        close_parts(&p);
    }
    free(want);
    buf_free(&rig.header);
    workers_close(rig.workers);
    model_file_close(rig.file);
    rpc_close(rpc);
}
