/* Whole models in block formats against a Python program that follows the written definitions. Both make the same
 * roundings; between them the program computes in double, so the logits differ by accumulated f32 rounding: about 1e-6. (A
 * quantised value that lies within that of a half would differ by one: none does in these prompts.) */
// links: model
// threads: yes
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/one_process.h"
#include "tests/support/shared.h"

#define TOLERANCE 2e-5

#define N 3u
static const int32_t prompts[][N] = {{51, 257, 220}, {7, 201, 90}};

struct chosen {
    uint16_t experts[8][N][8]; /* [layer][position][k] */
};

static void see_routed(void *ctx, const struct one_process *o, uint32_t layer)
{
    struct chosen *c = ctx;
    const uint32_t k = model_hparams(o->model)->top_k;
    cr_assert(layer < 8 && k <= 8);
    for (uint32_t i = 0; i < N; i++)
        memcpy(c->experts[layer][i], model_pass_experts(o->pass) + i * k, k * sizeof(uint16_t));
}

static void check(const char *path, const char *quantize, const int32_t prompt[N])
{
    if (system("python3 -c '' 2>/dev/null") != 0) {
        fprintf(stderr, "skipped: no python3\n");
        return;
    }
    struct one_process o;
    struct chosen chosen;
    one_open(&o,
             &(struct one_cfg){
                 .path = path, .quantize = quantize, .threads = 2, .max_rows = N, .n_blocks = 2});
    const struct hparams *hp = model_hparams(o.model);
    struct one_sequence s = one_sequence(&o, N);
    one_feed(&o, &s, prompt, N, true, &(struct one_observer){.routed = see_routed, .ctx = &chosen});

    char command[2048];
    int n = snprintf(command, sizeof command,
                     "python3 '%s/tests/golden/block_model_reference.py' '%s'", PROJECT_ROOT, path);
    for (size_t i = 0; i < N; i++)
        n += snprintf(command + n, sizeof command - (size_t)n, " %d", prompt[i]);
    cr_assert_lt((size_t)n, sizeof command);
    FILE *from = popen(command, "r");
    cr_assert_not_null(from);
    double worst = 0;
    size_t rows = 0, choices = 0;
    char kind;
    while (fscanf(from, " %c", &kind) == 1) {
        unsigned position, layer;
        if (kind == 'e') {
            cr_assert_eq(fscanf(from, "%u %u", &position, &layer), 2);
            cr_assert(position < N && layer < hp->n_layers);
            for (uint32_t k = 0; k < hp->top_k; k++) {
                unsigned expert;
                cr_assert_eq(fscanf(from, "%u", &expert), 1);
                cr_expect_eq(chosen.experts[layer][position][k], expert, "position %u, layer %u",
                             position, layer);
            }
            choices++;
            continue;
        }
        cr_assert_eq(kind, 'l');
        cr_assert_eq(fscanf(from, "%u", &position), 1);
        cr_assert_lt(position, N);
        for (uint32_t v = 0; v < hp->vocab; v++) {
            double want;
            cr_assert_eq(fscanf(from, "%lf", &want), 1);
            double error = fabs((double)model_pass_logits(o.pass, position)[v] - want);
            if (!(error <= worst)) worst = error;
        }
        rows++;
    }
    cr_expect_eq(pclose(from), 0);
    cr_expect_eq(rows, N);
    cr_expect_eq(choices, N * hp->n_layers);
    printf("%s: worst |error| of the logits against the definitions %.2g\n", strrchr(path, '/') + 1,
           worst);
    cr_expect_leq(worst, TOLERANCE);
    one_close(&o);
}

Test(block_model, quantized_at_load_computes_what_the_definitions_say)
{
    check(TEST_DATA "/models/tiny-qwen3_moe", "q8_0", prompts[0]);
}

Test(block_model, from_gguf_files_too)
{
    static const char *const names[] = {"tiny-qwen3_moe-q4_0", "tiny-qwen3_moe-q8_0",
                                        "tiny-qwen3_moe-k-q4_k_m", "tiny-qwen3_moe-k-q6_k"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[1024];
        if (!shared_path("models/gguf", path, sizeof path)) return;
        size_t n = strlen(path);
        snprintf(path + n, sizeof path - n, "/%s.gguf", names[i]);
        check(path, "none", prompts[1]);
    }
}
