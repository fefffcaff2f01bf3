/* The encoder-decoder model against what the official implementation computes: both stacks' hidden states, routing with
 * tokens that are dropped for capacity, logits, greedy tokens; and its bits when it is cut otherwise. */
// links: model
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/expected.h"
#include "tests/support/one_process.h"

/* The model of this repository, or, by hand, another one of that name in the folder that MOESAIC_GOLDEN names. */
static const char *model_dir(void)
{
    static char dir[1024];
    const char *root = getenv("MOESAIC_GOLDEN");
    snprintf(dir, sizeof dir, "%s/tiny-switch_transformers", root ? root : TEST_DATA "/models");
    return dir;
}

struct compare {
    const struct expected *x;
    const char *prompt, *stack; /* "encoder_" or "" */
    uint32_t first_layer;       /* of the stack */
    double hidden, router, gates;
    uint32_t choices, dropped;
};

static void check_close(const struct compare *c, const char *key, int index, const float *got,
                        double *worst)
{
    char name[64];
    uint64_t dims[2] = {0};
    snprintf(name, sizeof name, "%s%s", c->stack, key);
    float *want = expected_get(c->x, c->prompt, name, index, dims);
    if (want == NULL && strcmp(name, "encoder_hidden") == 0) return; /* the long prompt has none */
    cr_assert(want, "%s.%s.%d", c->prompt, name, index);
    for (uint64_t i = 0; i < dims[0] * dims[1]; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        if (!(d <= *worst)) *worst = d;
    }
    mem_free(want);
}

static void see_routed(void *ctx, const struct one_process *o, uint32_t layer)
{
    struct compare *c = ctx;
    char name[64];
    uint64_t dims[2] = {0};
    const int index = (int)(layer - c->first_layer);
    check_close(c, "router_scores", index, model_pass_router(o->pass), &c->router);
    check_close(c, "gates", index, model_pass_gates(o->pass), &c->gates);
    snprintf(name, sizeof name, "%sexperts", c->stack);
    int32_t *ids = expected_get(c->x, c->prompt, name, index, dims);
    cr_assert(ids);
    for (uint64_t i = 0; i < dims[0]; i++, c->choices++) {
        c->dropped += ids[i] < 0;
        if (ids[i] >= 0)
            cr_expect_eq(model_pass_experts(o->pass)[i], ids[i]);
        else
            cr_expect(model_pass_gates(o->pass)[i] <= 0, "token %d was not dropped", (int)i);
    }
    mem_free(ids);
}

static void see_layer(void *ctx, const struct one_process *o, uint32_t layer)
{
    struct compare *c = ctx;
    check_close(c, "hidden", (int)(layer - c->first_layer) + 1, model_pass_hidden(o->pass),
                &c->hidden);
}

/* Rows [position, position + n) of one stack through its layers. */
static void run_stack(struct one_process *o, const uint32_t *blocks, const int32_t *ids, uint32_t n,
                      uint32_t position, uint32_t n_encoder, const struct one_observer *see)
{
    struct model_row rows[128];
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct model_row){.token = ids[i],
                                     .position = position + i,
                                     .blocks = blocks,
                                     .n_encoder = n_encoder,
                                     .wants_logits = position >= n_encoder};
    one_pass(o, rows, n, see);
}

static void open_it(struct one_process *o, const char *kernels)
{
    one_open(o, &(struct one_cfg){.path = model_dir(),
                                  .kernels = kernels,
                                  .threads = 2,
                                  .max_rows = 128,
                                  .n_blocks = 12});
}

Test(golden_encoder, tiny_switch_is_the_official_model)
{
    struct expected x;
    struct one_process o;
    expected_open(&x, model_dir());
    open_it(&o, NULL);
    const uint32_t vocab = model_hparams(o.model)->vocab,
                   n_encoder_layers = model_hparams(o.model)->n_encoder_layers;
    uint32_t dropped = 0;
    for (int p = 0; p < 3; p++) {
        char prompt[8];
        uint64_t dims[2] = {0};
        snprintf(prompt, sizeof prompt, "p%d", p);
        int32_t *ids = expected_get(&x, prompt, "ids", -1, dims);
        const uint32_t n = (uint32_t)dims[0];
        int32_t *decoder = expected_get(&x, prompt, "decoder_ids", -1, dims);
        const uint32_t n_decoder = (uint32_t)dims[0];
        float *logits = expected_get(&x, prompt, "logits", -1, dims);
        int32_t *greedy = expected_get(&x, prompt, "greedy", -1, dims);
        const uint32_t n_greedy = (uint32_t)dims[0];
        cr_assert(ids && decoder && logits && greedy && n_decoder >= 1 && n_greedy <= 64);
        o.used_blocks = 0;
        struct one_sequence s = one_sequence(&o, n + n_decoder + n_greedy);
        struct compare c = {.x = &x, .prompt = prompt, .stack = "encoder_"};
        run_stack(&o, s.blocks, ids, n, 0, n, &(struct one_observer){see_routed, see_layer, &c});
        dropped += c.dropped;
        c.stack = "";
        c.first_layer = n_encoder_layers;
        run_stack(&o, s.blocks, decoder, n_decoder, n, n,
                  &(struct one_observer){see_routed, see_layer, &c});
        double worst = 0;
        for (uint32_t i = 0; i < n_decoder * vocab; i++)
            worst = fmax(worst, fabs((double)model_pass_logits(o.pass, i / vocab)[i % vocab] -
                                     (double)logits[i]));
        printf(
            "golden tiny-switch %s: worst |error| logits %.2g hidden %.2g router %.2g gates %.2g; "
            "%u choices, %u dropped\n",
            prompt, worst, c.hidden, c.router, c.gates, c.choices, c.dropped);
        cr_expect_leq(worst, 5e-5);
        cr_expect_leq(c.hidden, 1e-4);
        cr_expect_leq(c.router, 5e-5);
        cr_expect_leq(c.gates, 1e-5);
        int32_t token = decoder[0];
        for (uint32_t i = 0; i < n_greedy; i++) {
            run_stack(&o, s.blocks, &token, 1, n + i, n, NULL);
            token = one_best(model_pass_logits(o.pass, 0), vocab);
            cr_expect_eq(token, greedy[i], "%s: greedy token %u", prompt, i);
        }
        mem_free(ids);
        mem_free(decoder);
        mem_free(logits);
        mem_free(greedy);
    }
    cr_expect_gt(dropped, 0u, "no prompt was long enough to drop a token");
    one_close(&o);
    expected_close(&x);
}
