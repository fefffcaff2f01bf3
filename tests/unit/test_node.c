/* The node's core: what is merged, what goes first, what is refused, what happens to steps whose stream is gone. */
// links: node
#include <criterion/criterion.h>
#include <string.h>

#include "expert_node/node.h"

static const bool MOE[2] = {true, true};
static const struct err FINE;

static struct node *open_node(uint32_t max_rows)
{
    struct node *n;
    struct err why;
    struct node_cfg cfg = {2, 8, MOE, max_rows, 64};
    cr_assert_eq(node_open(&cfg, &n, &why), ERR_OK);
    return n;
}

static struct node_actions step(struct node *n, struct node_event ev)
{
    struct node_actions todo;
    struct err why;
    cr_assert_eq(node_step(n, &ev, &todo, &why), ERR_OK, "%s", why.text);
    return todo;
}

/* Hold all experts of both layers: every LOAD is answered at once. */
static void hold(struct node *n, uint8_t layer0, uint8_t layer1)
{
    uint8_t held[2] = {layer0, layer1};
    struct node_actions todo =
        step(n, (struct node_event){.kind = NODE_ASSIGN, .assign = {9, held}});
    while (todo.n > 0 && todo.items[todo.n - 1].kind == NODE_ACT_LOAD)
        todo = step(n, (struct node_event){.kind = NODE_LOADED, .done = {true, &FINE}});
    cr_assert_eq(todo.items[todo.n - 1].kind, NODE_ACT_HOLDINGS);
    cr_expect_eq(todo.items[todo.n - 1].stream, 9);
    cr_expect_eq(todo.items[todo.n - 1].code, ERR_OK);
}

static const uint32_t E13[] = {1, 3}, ONE_TWO[] = {1, 2}, ROWS[] = {0, 0, 1}, E3[] = {3},
                      ONE[] = {1}, ROW0[] = {0};

static struct node_request two_experts(uint64_t stream, uint64_t id, uint32_t layer, bool bulk)
{
    return (struct node_request){.stream = stream,
                                 .step = id,
                                 .layer = layer,
                                 .bulk = bulk,
                                 .n_rows = 2,
                                 .n_experts = 2,
                                 .experts = E13,
                                 .expert_rows = ONE_TWO,
                                 .row_index = ROWS,
                                 .n_results = 3};
}

static struct node_request one_expert(uint64_t stream, uint64_t id, uint32_t layer, bool bulk)
{
    return (struct node_request){.stream = stream,
                                 .step = id,
                                 .layer = layer,
                                 .bulk = bulk,
                                 .n_rows = 1,
                                 .n_experts = 1,
                                 .experts = E3,
                                 .expert_rows = ONE,
                                 .row_index = ROW0,
                                 .n_results = 1};
}

static struct node_actions submit(struct node *n, struct node_request *r)
{
    return step(n, (struct node_event){.kind = NODE_STEP, .request = r});
}

static struct node_actions computed(struct node *n)
{
    return step(n, (struct node_event){.kind = NODE_COMPUTED, .done = {true, &FINE}});
}

Test(node, requests_that_wait_together_share_one_task_per_expert)
{
    struct node *n = open_node(100);
    hold(n, 0xff, 0xff);
    struct node_request first = one_expert(1, 10, 0, false), a = two_experts(1, 11, 0, false),
                        b = one_expert(2, 12, 0, false);
    struct node_request other_layer = one_expert(2, 13, 1, false);
    cr_assert_eq(submit(n, &first).items[0].kind, NODE_ACT_COMPUTE);
    cr_expect_eq(submit(n, &a).n, 0);
    cr_expect_eq(submit(n, &b).n, 0);
    cr_expect_eq(submit(n, &other_layer).n, 0);
    struct node_actions todo = computed(n);
    cr_assert_eq(todo.n, 2);
    cr_expect_eq(todo.items[0].kind, NODE_ACT_REPLY);
    cr_expect_eq(todo.items[0].request, &first);
    cr_assert_eq(todo.items[1].kind, NODE_ACT_COMPUTE);
    const struct node_batch *batch = todo.items[1].batch;
    cr_assert_eq(batch->n_requests, 2);
    cr_expect_eq(batch->n_rows, 3);
    cr_assert_eq(batch->n_tasks, 2);
    cr_expect_eq(batch->tasks[0].expert, 1);
    cr_expect_eq(batch->tasks[0].m, 1);
    const struct node_task *t = &batch->tasks[1];
    cr_expect_eq(t->expert, 3);
    cr_assert_eq(t->m, 3);
    cr_expect_arr_eq(t->row, ((uint32_t[]){0, 1, 2}), 12);
    cr_expect_arr_eq(t->request, ((uint32_t[]){0, 0, 1}), 12);
    cr_expect_arr_eq(t->result, ((uint32_t[]){1, 2, 0}), 12);
    computed(n);
    computed(n);
    struct node_stats s;
    node_stats(n, &s);
    cr_expect_eq(s.steps, 4);
    cr_expect_eq(s.rows, 6);
    cr_expect_eq(s.multiplications, 4);
    cr_expect_not(node_busy(n));
    node_close(n);
}

Test(node, decode_goes_before_bulk)
{
    struct node *n = open_node(100);
    hold(n, 0xff, 0xff);
    struct node_request running = one_expert(1, 1, 0, true), bulk = one_expert(1, 2, 0, true),
                        decode = one_expert(2, 3, 1, false);
    submit(n, &running);
    submit(n, &bulk);
    submit(n, &decode);
    struct node_actions todo = computed(n);
    cr_expect_eq(todo.items[1].batch->requests[0], &decode);
    todo = computed(n);
    cr_expect_eq(todo.items[1].batch->requests[0], &bulk);
    computed(n);
    node_close(n);
}

Test(node, a_batch_is_bounded_but_never_empty)
{
    struct node *n = open_node(2);
    hold(n, 0xff, 0xff);
    struct node_request first = one_expert(1, 1, 0, false), large = two_experts(1, 2, 0, false),
                        next = one_expert(1, 3, 0, false);
    submit(n, &first);
    submit(n, &large);
    submit(n, &next);
    struct node_actions todo = computed(n);
    cr_expect_eq(todo.items[1].batch->n_requests, 1);
    cr_expect_eq(todo.items[1].batch->requests[0], &large);
    computed(n);
    computed(n);
    node_close(n);
}

Test(node, an_expert_that_is_not_held_is_refused_by_its_number)
{
    struct node *n = open_node(100);
    hold(n, 0x02, 0x00);
    struct node_request r = two_experts(1, 1, 0, false);
    struct node_actions todo = submit(n, &r);
    cr_assert_eq(todo.n, 1);
    cr_expect_eq(todo.items[0].kind, NODE_ACT_REFUSE);
    cr_expect_eq(todo.items[0].code, ERR_NOT_FOUND);
    cr_expect(strstr(todo.items[0].text, "expert 3 of layer 0"));
    struct node_request beyond = one_expert(1, 2, 7, false);
    cr_expect_eq(submit(n, &beyond).items[0].code, ERR_INVALID);
    node_close(n);
}

Test(node, a_stream_that_is_gone_takes_its_waiting_steps_along)
{
    struct node *n = open_node(100);
    hold(n, 0xff, 0xff);
    struct node_request running = one_expert(1, 1, 0, false), waiting = one_expert(1, 2, 0, false),
                        other = one_expert(2, 3, 0, false);
    submit(n, &running);
    submit(n, &waiting);
    submit(n, &other);
    struct node_actions todo = step(n, (struct node_event){.kind = NODE_CLOSED, .stream = 1});
    cr_assert_eq(todo.n, 1);
    cr_expect_eq(todo.items[0].kind, NODE_ACT_DISCARD);
    cr_expect_eq(todo.items[0].request, &waiting);
    todo = computed(n);
    cr_expect_eq(todo.items[0].request,
                 &running); /* its batch was under way: given back like any other */
    cr_expect_eq(todo.items[1].batch->n_requests, 1);
    computed(n);
    node_close(n);
}

Test(node, a_new_assignment_unloads_and_loads_one_by_one)
{
    struct node *n = open_node(100);
    hold(n, 0x03, 0x01);
    cr_expect(node_holds(n, 0, 1) && node_holds(n, 1, 0) && !node_holds(n, 1, 1));
    uint8_t held[2] = {0x01, 0x03};
    struct node_actions todo =
        step(n, (struct node_event){.kind = NODE_ASSIGN, .assign = {4, held}});
    cr_assert_eq(todo.n, 2);
    cr_expect_eq(todo.items[0].kind, NODE_ACT_UNLOAD);
    cr_expect_eq(todo.items[0].expert, 1);
    cr_expect_eq(todo.items[1].kind, NODE_ACT_LOAD);
    cr_expect_eq(todo.items[1].layer, 1);
    cr_expect_eq(todo.items[1].expert, 1);
    struct err full = {ERR_EXHAUSTED, "no memory"};
    todo = step(n, (struct node_event){.kind = NODE_LOADED, .done = {false, &full}});
    cr_assert_eq(todo.items[0].kind, NODE_ACT_HOLDINGS);
    cr_expect_eq(todo.items[0].code, ERR_EXHAUSTED);
    cr_expect_not(node_holds(n, 1, 1));
    node_close(n);
}

Test(node, a_failed_batch_refuses_its_steps_and_goes_on)
{
    struct node *n = open_node(100);
    hold(n, 0xff, 0xff);
    struct node_request a = one_expert(1, 1, 0, false), b = one_expert(1, 2, 0, false);
    struct err full = {ERR_EXHAUSTED, "no memory for a batch"};
    submit(n, &a);
    submit(n, &b);
    struct node_actions todo =
        step(n, (struct node_event){.kind = NODE_COMPUTED, .done = {false, &full}});
    cr_expect_eq(todo.items[0].kind, NODE_ACT_REFUSE);
    cr_expect_eq(todo.items[0].code, ERR_EXHAUSTED);
    cr_expect_eq(todo.items[1].batch->requests[0], &b);
    computed(n);
    node_close(n);
}
