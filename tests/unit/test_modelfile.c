/* Whole model folders: what opens, what is refused, and with which words. */
// links: modelfile
#include <criterion/criterion.h>
#include <fcntl.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "common/modelfile/mapped_file.h"
#include "common/modelfile/model_file.h"
#include "common/modelfile/weights.h"
#include "tests/unit/modelfile_fixture.h"

#define MIXTRAL MODELS "tiny-mixtral"
#define QWEN    MODELS "tiny-qwen3_moe"
#define SHARDED MODELS "tiny-qwen3_moe-bf16"
#define OLMOE   MODELS "tiny-olmoe"
#define DEMO    PROJECT_ROOT "/deploy/demo"

static struct model_file *open_ok(const char *dir)
{
    struct model_file *f = NULL;
    struct err why = {0};
    cr_assert_eq(model_file_open(dir, &f, &why), ERR_OK, "%s", why.text);
    return f;
}

static void expect_refused(const char *dir, enum err_code code, const char *word, const char *word2)
{
    struct model_file *f = NULL;
    struct err why = {0};
    enum err_code rc = model_file_open(dir, &f, &why);
    cr_expect_eq(rc, code, "%s instead of %s: %s", err_name(rc), err_name(code), why.text);
    cr_expect(f == NULL);
    cr_expect(strstr(why.text, word) && strstr(why.text, word2), "'%s' and '%s' not in: %s", word,
              word2, why.text);
}

Test(modelfile, every_family_has_all_its_weights_with_their_shapes)
{
    static const char *const dirs[] = {MIXTRAL, MODELS "tiny-mixtral-bf16", QWEN, SHARDED, OLMOE,
                                       DEMO};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        struct model_file *f = open_ok(dirs[i]);
        const struct hparams *hp = model_file_hparams(f);
        uint32_t found = 0;
        for (int role = 0; role < W_N_ROLES; role++) {
            uint32_t layers = weight_scope(role) == SCOPE_MODEL ? 1 : hp->n_layers;
            uint32_t experts = weight_scope(role) == SCOPE_EXPERT ? hp->n_experts : 1;
            for (uint32_t l = 0; l < layers; l++)
                for (uint32_t e = 0; e < experts; e++) {
                    const struct tensor *t = model_file_find(f, role, l, e);
                    uint32_t n_dims;
                    uint64_t dims[TENSOR_MAX_DIMS];
                    bool has = weight_shape(hp, role, l, &n_dims, dims);
                    if (role == W_HEAD && hp->tied_head) {
                        cr_expect(!has && t->data == model_file_find(f, W_EMBED, 0, 0)->data);
                        continue;
                    }
                    cr_assert_eq(has, t != NULL);
                    if (!has) continue;
                    found++;
                    cr_expect(t->n_dims == n_dims && t->dims[0] == dims[0] &&
                              (n_dims == 1 || t->dims[1] == dims[1]));
                    cr_expect_eq(t->bytes,
                                 dtype_bytes(t->dtype, dims[0] * (n_dims == 1 ? 1 : dims[1])));
                }
        }
        /* The fixtures hold nothing that the family does not use: so every tensor has found its role. */
        cr_expect_eq(found, model_file_n_tensors(f), "%s: %u of %u", dirs[i], found,
                     model_file_n_tensors(f));
        model_file_close(f);
    }
}

Test(modelfile, a_tensor_points_at_its_own_bytes)
{
    struct model_file *f = open_ok(SHARDED);
    cr_assert_eq(model_file_n_paths(f), 2);
    cr_expect(strstr(model_file_index_path(f), "model.safetensors.index.json") != NULL);
    for (uint32_t i = 0; i < model_file_n_tensors(f); i++) {
        const struct tensor *t = model_file_tensor(f, i);
        cr_expect(i == 0 || strcmp(model_file_tensor(f, i - 1)->name, t->name) < 0);
        size_t n;
        unsigned char *file = read_bytes(model_file_path(f, t->file), &n);
        cr_expect_eq(model_file_size(f, t->file), n);
        cr_assert(t->file_off + t->bytes <= n);
        cr_expect_eq(memcmp(t->data, file + t->file_off, t->bytes), 0);
        /* The header, read independently, puts that name at that place. */
        uint64_t len = 0;
        for (int b = 7; b >= 0; b--)
            len = len << 8 | file[b];
        json_t *header = json_loadb((const char *)file + 8, len, 0, NULL);
        json_t *offsets = json_object_get(json_object_get(header, t->name), "data_offsets");
        cr_expect_eq((uint64_t)json_integer_value(json_array_get(offsets, 0)) + 8 + len,
                     t->file_off);
        json_decref(header);
        free(file);
    }
    model_file_close(f);

    f = open_ok(MIXTRAL);
    cr_expect_str_eq(model_file_find(f, W_EXPERT_GATE, 1, 5)->name,
                     "model.layers.1.block_sparse_moe.experts.5.w1.weight");
    cr_expect_str_eq(model_file_find(f, W_EXPERT_UP, 1, 5)->name,
                     "model.layers.1.block_sparse_moe.experts.5.w3.weight");
    cr_expect_str_eq(model_file_find(f, W_EXPERT_DOWN, 1, 5)->name,
                     "model.layers.1.block_sparse_moe.experts.5.w2.weight");
    cr_expect_null(model_file_find(f, W_Q_NORM, 0, 0));
    cr_expect_null(model_file_index_path(f));
    model_file_close(f);
}

Test(modelfile, dropped_pages_read_the_same_again)
{
    struct model_file *f = open_ok(DEMO);
    uint64_t before = model_file_expert_hash(f, 3, 7);
    for (uint32_t i = 0; i < model_file_n_tensors(f); i++)
        model_file_drop(f, model_file_tensor(f, i));
    cr_expect_eq(model_file_expert_hash(f, 3, 7), before);
    cr_expect_neq(model_file_expert_hash(f, 3, 8), before);
    cr_expect_neq(model_file_expert_hash(f, 2, 7), before);
    model_file_close(f);
}

Test(modelfile, the_digest_changes_with_what_decides_the_bits_and_with_nothing_else)
{
    char a[MODEL_FILE_DIGEST_CHARS], b[MODEL_FILE_DIGEST_CHARS];
    struct model_file *f = open_ok(MIXTRAL);
    model_file_digest(f, "none", a);
    cr_expect_eq(strlen(a), 32);
    cr_expect_eq(strspn(a, "0123456789abcdef"), 32);
    model_file_digest(f, "q8_0", b);
    cr_expect_str_neq(a, b);
    model_file_close(f);

    static const struct {
        const char *change;
        bool same;
    } cases[] = {
        {"{}", true},
        {"{\"eos_token_id\":[5,6],\"bos_token_id\":null,\"transformers_version\":\"9\"}", true},
        {"{\"rms_norm_eps\":2e-5}", false},
        {"{\"rope_theta\":1000001}", false},
        {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", false},
        {"{\"sliding_window\":16}", false},
        {"{\"num_experts_per_tok\":3}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch s = scratch_open();
        scratch_write_config(&s, MIXTRAL, cases[i].change);
        scratch_link_model(&s, MIXTRAL);
        f = open_ok(s.dir);
        model_file_digest(f, "none", b);
        cr_expect_eq(strcmp(a, b) == 0, cases[i].same, "%s", cases[i].change);
        model_file_close(f);
        scratch_close(&s);
    }
}

Test(modelfile, a_folder_that_is_not_one_is_told_apart)
{
    expect_refused("/nowhere/at/all", ERR_NOT_FOUND, "/nowhere/at/all", "no such file or folder");
    expect_refused(MIXTRAL "/config.json", ERR_INVALID, "config.json", "neither a folder");
    expect_refused("x/y.gguf", ERR_NOT_FOUND, "y.gguf", "no such file");
    struct scratch s = scratch_open();
    expect_refused(s.dir, ERR_NOT_FOUND, s.dir, "config.json");
    scratch_write(&s, "model.gguf", "GGUF", 4);
    expect_refused(s.dir, ERR_CORRUPT, "model.gguf", "header: 4 bytes");
    scratch_write_config(&s, MIXTRAL, "{}");
    expect_refused(s.dir, ERR_NOT_FOUND, "model.safetensors", "model.safetensors.index.json");
    scratch_write(&s, "model.safetensors", "", 0);
    expect_refused(s.dir, ERR_CORRUPT, "model.safetensors", "0 bytes");
    unlink(scratch_path(&s, "model.safetensors"));
    mkdir(scratch_path(&s, "model.safetensors"), 0700);
    expect_refused(s.dir, ERR_IO, "model.safetensors", "not a regular file");
    scratch_close(&s);
}

Test(modelfile, a_download_cache_is_followed_to_its_snapshot)
{
    struct scratch s = scratch_open();
    char snapshot[600], link_name[700], target[700];
    mkdir(scratch_path(&s, "refs"), 0700);
    mkdir(scratch_path(&s, "snapshots"), 0700);
    snprintf(snapshot, sizeof snapshot, "%s/snapshots/0123abc", s.dir);
    mkdir(snapshot, 0700);
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        snprintf(link_name, sizeof link_name, "%s/%s", snapshot, names[i]);
        snprintf(target, sizeof target, MIXTRAL "/%s", names[i]);
        cr_assert_eq(symlink(target, link_name), 0);
    }
    scratch_write(&s, "refs/main", "0123abc\n", 8);
    struct model_file *f = open_ok(s.dir);
    cr_expect_str_eq(model_file_dir(f), snapshot);
    model_file_close(f);
    scratch_write(&s, "refs/main", "../../etc", 9);
    expect_refused(s.dir, ERR_CORRUPT, "refs/main", "commit");
    scratch_write(&s, "refs/main", "4567def", 7);
    expect_refused(s.dir, ERR_NOT_FOUND, "4567def", "config.json");
    scratch_close(&s);
}

/* config.json against the tensors: each number that shapes a tensor, wrong by one step. */
Test(modelfile, a_shape_that_disagrees_names_tensor_and_both_shapes)
{
    static const struct {
        const char *model, *change, *tensor, *shapes;
    } cases[] = {
        {MIXTRAL, "{\"vocab_size\":321}", "model.embed_tokens.weight",
         "[320, 64], config.json makes it [321, 64]"},
        {MIXTRAL, "{\"num_local_experts\":7}", "block_sparse_moe.gate.weight",
         "[6, 64], config.json makes it [7, 64]"},
        {MIXTRAL, "{\"intermediate_size\":34}", "experts.0.w1.weight",
         "[32, 64], config.json makes it [34, 64]"},
        {MIXTRAL, "{\"num_key_value_heads\":4}", "k_proj.weight",
         "[32, 64], config.json makes it [64, 64]"},
        {MIXTRAL, "{\"num_hidden_layers\":3}", "model.layers.2.input_layernorm.weight", "missing"},
        {QWEN, "{\"head_dim\":16}", "q_proj.weight", "[128, 64], config.json makes it [64, 64]"},
        {QWEN, "{\"attention_bias\":true}", "q_proj.bias", "missing"},
        {QWEN, "{\"mlp_only_layers\":[1]}", "model.layers.1.mlp.gate_proj.weight", "missing"},
        {OLMOE, "{\"num_key_value_heads\":2}", "k_proj.weight",
         "[64, 64], config.json makes it [32, 64]"},
        {MODELS "tiny-mixtral", "{\"model_type\":\"olmoe\",\"num_experts\":6}", "q_norm.weight",
         "missing"},
        {DEMO, "{\"tie_word_embeddings\":false}", "lm_head.weight", "missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch s = scratch_open();
        scratch_write_config(&s, cases[i].model, cases[i].change);
        scratch_link_model(&s, cases[i].model);
        expect_refused(s.dir, ERR_CORRUPT, cases[i].tensor, cases[i].shapes);
        scratch_close(&s);
    }
}

/* Replace the first `from` behind `after` by `to` (same length) in a copy of the model's one file. */
static void open_patched(const char *model, const char *after, const char *from, const char *to,
                         enum err_code code, const char *word, const char *word2)
{
    struct scratch s = scratch_open();
    char path[600];
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    size_t n;
    unsigned char *file = read_bytes(path, &n);
    unsigned char *at = memmem(file, n, after, strlen(after));
    cr_assert_not_null(at);
    at = memmem(at, n - (size_t)(at - file), from, strlen(from));
    cr_assert_not_null(at);
    cr_assert_eq(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    scratch_write(&s, "model.safetensors", file, n);
    scratch_link_model(&s, model);
    free(file);
    if (code == ERR_OK)
        model_file_close(open_ok(s.dir));
    else
        expect_refused(s.dir, code, word, word2);
    scratch_close(&s);
}

Test(modelfile, a_dtype_matters_where_the_tensor_is_needed)
{
    open_patched(MIXTRAL, "lm_head.weight", "F32", "I32", ERR_UNSUPPORTED, "lm_head.weight", "I32");
    open_patched(MIXTRAL, "\"model.norm.weight", "norm.weight", "norm_weight", ERR_CORRUPT,
                 "model.norm.weight", "missing");
    open_patched(MODELS "tiny-mixtral-bf16", "experts.3.w2", "BF16", "F16\"", ERR_CORRUPT,
                 "model.safetensors", "JSON");
    open_patched(MODELS "tiny-mixtral-bf16", "lm_head", "\"BF16\"", " \"F16\"", ERR_OK, "", "");
}

/* ---- shards ------------------------------------------------------------------------------------- */

static void open_with_index(const char *tensor, const char *shard, enum err_code code,
                            const char *word, const char *word2)
{
    struct scratch s = scratch_open();
    json_t *index = load_json(SHARDED, "model.safetensors.index.json");
    json_object_set_new(json_object_get(index, "weight_map"), tensor, json_string(shard));
    scratch_write_json(&s, "model.safetensors.index.json", index);
    json_decref(index);
    scratch_link_model(&s, SHARDED);
    expect_refused(s.dir, code, word, word2);
    scratch_close(&s);
}

Test(modelfile, the_index_is_held_to_its_word)
{
    open_with_index("lm_head.weight", "model-00001-of-00002.safetensors", ERR_CORRUPT,
                    "lm_head.weight", "model-00001-of-00002.safetensors");
    open_with_index("extra", "model-00001-of-00002.safetensors", ERR_CORRUPT, "'extra'",
                    "does not hold it");
    open_with_index("lm_head.weight", "model-00003-of-00003.safetensors", ERR_NOT_FOUND,
                    "model-00003-of-00003.safetensors", "No such file");
    open_with_index("lm_head.weight", "../model-00001-of-00002.safetensors", ERR_CORRUPT,
                    "lm_head.weight", "../model");
    open_with_index("lm_head.weight", "/etc/passwd", ERR_CORRUPT, "lm_head.weight", "/etc/passwd");
    open_with_index("lm_head.weight", "..", ERR_CORRUPT, "lm_head.weight", "'..'");
    open_with_index("lm_head.weight", "", ERR_CORRUPT, "lm_head.weight", "not the name of a file");

    static const struct {
        const char *text, *word;
    } broken[] = {{"{", "not valid JSON"},
                  {"[]", "weight_map"},
                  {"{}", "weight_map"},
                  {"{\"weight_map\":[]}", "weight_map"},
                  {"{\"weight_map\":{}}", "names no file"},
                  {"{\"weight_map\":{\"a\":3}}", "'a'"}};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct scratch s = scratch_open();
        scratch_write(&s, "model.safetensors.index.json", broken[i].text, strlen(broken[i].text));
        scratch_link_model(&s, SHARDED);
        expect_refused(s.dir, ERR_CORRUPT, "index.json", broken[i].word);
        scratch_close(&s);
    }
}

Test(modelfile, a_missing_or_cut_shard_is_named)
{
    struct scratch s = scratch_open();
    scratch_link_model(&s, SHARDED);
    unlink(scratch_path(&s, "model-00002-of-00002.safetensors"));
    expect_refused(s.dir, ERR_NOT_FOUND, "model-00002-of-00002.safetensors", "No such file");
    size_t n;
    unsigned char *file = read_bytes(SHARDED "/model-00002-of-00002.safetensors", &n);
    scratch_write(&s, "model-00002-of-00002.safetensors", file, n - 1);
    free(file);
    expect_refused(s.dir, ERR_CORRUPT, "model-00002-of-00002.safetensors", "the file has");
    scratch_close(&s);
}

/* ---- limits ------------------------------------------------------------------------------------- */

Test(modelfile, any_allocation_may_fail)
{
    static const char *const dirs[] = {MIXTRAL, SHARDED};
    for (int d = 0; d < 2; d++) {
        uint64_t n = 1;
        for (;; n++) {
            struct model_file *f = NULL;
            struct err why = {0};
            mem_fail_at(n);
            enum err_code rc = model_file_open(dirs[d], &f, &why);
            mem_fail_at(0);
            if (rc == ERR_OK) {
                model_file_close(f);
                break;
            }
            cr_assert_eq(rc, ERR_EXHAUSTED, "allocation %llu: %s %s", (unsigned long long)n,
                         err_name(rc), why.text);
            cr_assert(strstr(why.text, dirs[d]) != NULL && f == NULL);
        }
        cr_expect_gt(n, 60, "every tensor name is an allocation");
    }
}

/* One expert of 3 x 704 MiB and more behind it, in a sparse file. */
Test(modelfile, a_file_of_many_gib_opens_without_reading_it)
{
    struct scratch s = scratch_open();
    struct buf header = {0};
    static const char *const changes =
        "{\"num_hidden_layers\":1,\"num_local_experts\":3,\"hidden_size\":8192,\"intermediate_size\":24576,"
        "\"head_dim\":16}";
    scratch_write_config(&s, MIXTRAL, changes);
    struct hparams hp;
    struct err why;
    cr_assert_eq(hparams_read(s.dir, &hp, &why), ERR_OK, "%s", why.text);
    uint64_t end = 0;
    buf_putc(&header, '{');
    for (int role = 0; role < W_N_ROLES; role++)
        for (uint32_t e = 0; e < (weight_scope(role) == SCOPE_EXPERT ? 3u : 1u); e++) {
            uint32_t n_dims;
            uint64_t dims[TENSOR_MAX_DIMS];
            char name[WEIGHT_NAME_MAX];
            if (!weight_shape(&hp, role, 0, &n_dims, dims)) continue;
            struct weight_place place;
            cr_assert(weight_place(&hp, FILES_HF, role, 0, 0, &place));
            weight_name(place.name, 0, e, name);
            uint64_t bytes = 4 * dims[0] * (n_dims == 2 ? dims[1] : 1);
            buf_printf(&header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%llu", end > 0 ? "," : "",
                       name, (unsigned long long)dims[0]);
            if (n_dims == 2) buf_printf(&header, ",%llu", (unsigned long long)dims[1]);
            buf_printf(&header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)end,
                       (unsigned long long)(end + bytes));
            end += bytes;
        }
    buf_putc(&header, '}');
    uint8_t len[8];
    for (int i = 0; i < 8; i++)
        len[i] = (uint8_t)(header.len >> 8 * i);
    int fd = open(scratch_path(&s, "model.safetensors"), O_RDWR | O_CREAT, 0600);
    cr_assert(fd >= 0 && write(fd, len, 8) == 8 &&
              write(fd, header.data, header.len) == (ssize_t)header.len);
    off_t size = (off_t)(8 + header.len + end);
    cr_assert_eq(ftruncate(fd, size), 0);
    cr_assert_eq(pwrite(fd, "\x2a", 1, size - 1), 1);
    close(fd);

    clock_t start = clock();
    struct model_file *f = open_ok(s.dir);
    cr_expect_lt((double)(clock() - start) / CLOCKS_PER_SEC, 0.5);
    const struct tensor *t = model_file_find(f, W_EXPERT_DOWN, 0, 2);
    cr_expect_gt(t->file_off, 4ull << 30);
    cr_expect_eq(t->file_off + t->bytes, (uint64_t)size);
    cr_expect_eq(t->data[t->bytes - 1], 0x2a);
    model_file_drop(f, t);
    cr_expect_eq(t->data[t->bytes - 1], 0x2a);
    model_file_close(f);
    buf_free(&header);
    scratch_close(&s);
}
