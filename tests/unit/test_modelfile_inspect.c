/* `moesaic inspect`: what it prints is what the files hold. */
// links: cli
#include <criterion/criterion.h>

#include "coordinator/cli/commands.h"
#include "tests/unit/modelfile_fixture.h"

/* Run with the words given; what it printed, to be freed. */
static char *run(int *code, const char *const *words)
{
    struct scratch s = scratch_open();
    char name[] = "moesaic inspect";
    char *argv[12] = {name};
    int argc = 1;
    for (; words[argc - 1] != NULL; argc++)
        argv[argc] = strdup(words[argc - 1]);
    cr_assert_not_null(freopen(scratch_path(&s, "out"), "w", stdout));
    *code = cmd_inspect(argc, argv);
    fflush(stdout);
    size_t n;
    char *text = (char *)read_bytes(scratch_path(&s, "out"), &n);
    text = realloc(text, n + 1);
    text[n] = '\0';
    for (int i = 1; i < argc; i++)
        free(argv[i]);
    scratch_close(&s);
    return text;
}

static long long number_at(const json_t *v, const char *a, const char *b)
{
    return json_integer_value(json_object_get(json_object_get(v, a), b));
}

Test(modelfile_inspect, the_json_adds_up)
{
    int code;
    char *text = run(
        &code, (const char *const[]){MODELS "tiny-qwen3_moe-bf16", "--json", "--nodes=5", NULL});
    cr_assert_eq(code, 0);
    json_t *v = json_loads(text, 0, NULL);
    cr_assert_not_null(v);
    cr_expect_str_eq(json_string_value(json_object_get(v, "family")), "qwen3_moe");
    json_t *index = load_json(MODELS "tiny-qwen3_moe-bf16", "model.safetensors.index.json");
    long long total = number_at(index, "metadata", "total_size"), sum = 0, on_nodes = 0,
              experts = 0;
    json_t *entry;
    size_t i;
    json_array_foreach(json_object_get(v, "classes"), i, entry)
    {
        sum += json_integer_value(json_object_get(entry, "file_bytes"));
        if (strcmp(json_string_value(json_object_get(entry, "class")), "experts") == 0)
            experts = json_integer_value(json_object_get(entry, "memory_bytes"));
    }
    cr_expect_eq(sum, total, "%lld and %lld", sum, total);
    cr_expect_eq(number_at(v, "parameters", "total") * 2, total, "two bytes each");
    cr_expect_eq(json_array_size(json_object_get(v, "nodes")), 5);
    json_array_foreach(json_object_get(v, "nodes"), i, entry) on_nodes +=
        json_integer_value(json_object_get(entry, "weight_bytes"));
    cr_expect_eq(on_nodes, experts);
    cr_expect_eq(number_at(v, "selected", "count"), 12);
    json_decref(index);
    json_decref(v);
    free(text);
}

Test(modelfile_inspect, lists_the_files_of_some_experts_and_no_others)
{
    int code;
    char *text = run(&code, (const char *const[]){MODELS "tiny-qwen3_moe-bf16", "--files",
                                                  "--experts=0:0", NULL});
    cr_assert_eq(code, 0);
    /* Checked against the index itself. */
    json_t *index = load_json(MODELS "tiny-qwen3_moe-bf16", "model.safetensors.index.json");
    json_t *map = json_object_get(index, "weight_map");
    static const char *const shards[] = {"model-00001-of-00002.safetensors",
                                         "model-00002-of-00002.safetensors"};
    for (int s = 0; s < 2; s++) {
        bool needed = false;
        const char *name;
        json_t *shard;
        json_object_foreach(map, name, shard) if (strstr(name, "layers.0.mlp.experts.0.") != NULL)
            needed = needed || strcmp(json_string_value(shard), shards[s]) == 0;
        cr_expect_eq(strstr(text, shards[s]) != NULL, needed, "%s: %s", shards[s], text);
    }
    cr_expect(strstr(text, "config.json") && strstr(text, "model.safetensors.index.json"));
    cr_expect(strstr(text, "experts 0:0: 1 of 12"), "%s", text);
    json_decref(index);
    free(text);
}

Test(modelfile_inspect, exit_codes_tell_usage_from_a_bad_model)
{
    int code;
    free(run(&code, (const char *const[]){"/nowhere", NULL}));
    cr_expect_eq(code, 4);
    free(run(&code, (const char *const[]){MODELS "tiny-olmoe", "--experts=7:0", NULL}));
    cr_expect_eq(code, 2);
}

Test(modelfile_inspect, a_wrong_option_ends_with_2, .exit_code = 2)
{
    int code;
    free(run(&code, (const char *const[]){MODELS "tiny-olmoe", "--quantize=q9", NULL}));
}
