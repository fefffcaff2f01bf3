/* GGUF files on disk: one file, parts of a split one, a folder. */
// links: modelfile
#include <criterion/criterion.h>
#include <fcntl.h>

#include "common/modelfile/gguf_set.h"
#include "tests/unit/gguf_fixture.h"
#include "tests/unit/modelfile_fixture.h"

static void write_part(const struct scratch *s, const char *name, int no, int count, int total,
                       const char *const *tensors)
{
    struct gguf_maker m = {0};
    if (no == 0) make_string(&m, "general.architecture", "llama");
    if (no >= 0) make_int(&m, "split.no", GGUF_U16, no);
    if (count >= 0) make_int(&m, "split.count", GGUF_U16, count);
    if (total >= 0) make_int(&m, "split.tensors.count", GGUF_I32, total);
    for (; *tensors != NULL; tensors++)
        make_tensor(&m, *tensors, 0, 1, (uint64_t[]){1}, *tensors, 4);
    size_t n;
    uint8_t *file = make_file(&m, &n);
    scratch_write(s, name, file, n);
    free(file);
}

#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NONE       ((const char *const[]){NULL})

static void write_three(const struct scratch *s)
{
    write_part(s, "m-00001-of-00003.gguf", 0, 3, 3, NONE);
    write_part(s, "m-00002-of-00003.gguf", 1, 3, 3, PARTS("bbbb", "dddd"));
    write_part(s, "m-00003-of-00003.gguf", 2, 3, 3, PARTS("cccc"));
}

static void expect_error(const char *path, bool in_part, enum err_code code, const char *a,
                         const char *b)
{
    struct gguf_set set;
    struct err why = {0};
    enum err_code rc = gguf_set_open(path, in_part, &set, &why);
    cr_expect_eq(rc, code, "%s: %s", err_name(rc), why.text);
    cr_expect(strstr(why.text, a) != NULL && strstr(why.text, b) != NULL, "'%s', '%s' not in: %s",
              a, b, why.text);
    gguf_set_close(&set);
}

Test(gguf_set, any_part_or_the_folder_opens_all_parts)
{
    struct scratch s = scratch_open();
    write_three(&s);
    scratch_write(&s, "mmproj-m.gguf", "GGUF", 4);
    scratch_write(&s, "notes.txt", "x", 1);
    char second[1100];
    snprintf(second, sizeof second, "%s", scratch_path(&s, "m-00002-of-00003.gguf"));
    const char *const paths[] = {s.dir, second};
    for (int i = 0; i < 2; i++) {
        struct gguf_set set;
        struct err why;
        cr_expect(gguf_set_is(paths[i]));
        cr_assert_eq(gguf_set_open(paths[i], false, &set, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(set.n_parts, 3);
        cr_assert_eq(set.n_entries, 3);
        cr_expect_str_eq(set.entries[0].tensor->name, "bbbb");
        cr_expect_str_eq(set.entries[1].tensor->name, "cccc");
        cr_expect_eq(set.entries[1].part, 2);
        const struct gguf_entry *e = gguf_set_find(&set, "dddd");
        cr_assert_not_null(e);
        cr_expect_eq(e->part, 1);
        cr_expect_arr_eq(gguf_set_data(&set, e), "dddd", 4);
        cr_expect_null(gguf_set_find(&set, "eeee"));
        cr_expect_not_null(gguf_find(gguf_set_meta(&set), "general.architecture"));
        gguf_set_close(&set);
    }
    scratch_close(&s);
}

Test(gguf_set, a_missing_part_is_named_unless_opened_in_part)
{
    struct scratch s = scratch_open();
    write_three(&s);
    unlink(scratch_path(&s, "m-00002-of-00003.gguf"));
    expect_error(s.dir, false, ERR_NOT_FOUND, "part 2 of 3", "m-00002-of-00003.gguf");
    struct gguf_set set;
    struct err why;
    cr_assert_eq(gguf_set_open(s.dir, true, &set, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(set.n_absent, 1);
    cr_expect_null(set.parts[1].file);
    cr_expect_eq(set.n_entries, 1);
    gguf_set_close(&set);
    unlink(scratch_path(&s, "m-00001-of-00003.gguf"));
    expect_error(s.dir, true, ERR_NOT_FOUND, "part 1 of 3", "m-00001-of-00003.gguf");
    scratch_close(&s);
}

Test(gguf_set, names_and_keys_must_agree)
{
    struct scratch s = scratch_open();
    char first[1100];
    snprintf(first, sizeof first, "%s", scratch_path(&s, "m-00001-of-00002.gguf"));
    write_part(&s, "m-00001-of-00002.gguf", 0, 2, 2, PARTS("aaaa"));
    write_part(&s, "m-00002-of-00002.gguf", 0, 2, 2, PARTS("bbbb"));
    expect_error(first, false, ERR_CORRUPT, "00002-of-00002.gguf", "'split.no' is 0");
    write_part(&s, "m-00002-of-00002.gguf", 1, 3, 2, PARTS("bbbb"));
    expect_error(first, false, ERR_CORRUPT, "'split.count' is 3", "it is of 2");
    write_part(&s, "m-00002-of-00002.gguf", 1, -1, 2, PARTS("bbbb"));
    expect_error(first, false, ERR_CORRUPT, "00002-of-00002.gguf", "'split.count' is missing");
    write_part(&s, "m-00002-of-00002.gguf", -1, 2, 2, PARTS("bbbb"));
    expect_error(first, false, ERR_CORRUPT, "00002-of-00002.gguf", "'split.no' is missing");
    write_part(&s, "m-00002-of-00002.gguf", 1, 2, 2, PARTS("aaaa"));
    expect_error(first, false, ERR_CORRUPT, "'aaaa'", "in both");
    write_part(&s, "m-00002-of-00002.gguf", 1, 2, 2, PARTS("bbbb", "cccc"));
    expect_error(first, false, ERR_CORRUPT, "'split.tensors.count' is 2", "3 together");
    scratch_write(&s, "m-00002-of-00002.gguf", "GGUF", 4);
    expect_error(first, false, ERR_CORRUPT, "00002-of-00002.gguf", "bytes");
    write_part(&s, "part.gguf", 1, 2, 2, PARTS("bbbb"));
    expect_error(scratch_path(&s, "part.gguf"), false, ERR_CORRUPT, "'split.count' is 2", "of 1");
    write_part(&s, "whole.gguf", 0, 0, 0, PARTS("bbbb"));
    struct gguf_set set;
    struct err why;
    cr_expect_eq(gguf_set_open(scratch_path(&s, "whole.gguf"), false, &set, &why), ERR_OK, "%s",
                 why.text);
    gguf_set_close(&set);
    scratch_close(&s);
}

Test(gguf_set, a_folder_must_hold_one_model)
{
    struct scratch s = scratch_open();
    expect_error(s.dir, false, ERR_NOT_FOUND, s.dir, "no .gguf file");
    cr_expect_not(gguf_set_is(s.dir));
    write_part(&s, "a.gguf", -1, -1, -1, PARTS("aaaa"));
    cr_expect(gguf_set_is(s.dir));
    write_part(&s, "b.gguf", -1, -1, -1, PARTS("aaaa"));
    expect_error(s.dir, false, ERR_INVALID, "'a.gguf' and 'b.gguf'", "name one");
    scratch_write(&s, "config.json", "{}", 2);
    cr_expect_not(gguf_set_is(s.dir));
    unlink(scratch_path(&s, "config.json"));
    unlink(scratch_path(&s, "b.gguf"));
    write_three(&s);
    expect_error(s.dir, false, ERR_INVALID, "'a.gguf'", "name one");
    expect_error(scratch_path(&s, "none.gguf"), false, ERR_NOT_FOUND, "none.gguf", "");
    scratch_close(&s);
}

Test(gguf_set, a_sparse_file_of_real_size_opens_at_once)
{
    struct scratch s = scratch_open();
    struct gguf_maker m = {0};
    make_tensor(&m, "huge", 0, 2, (uint64_t[]){1 << 16, 1 << 16}, NULL, 0); /* 16 GiB */
    size_t n;
    uint8_t *file = make_file(&m, &n);
    scratch_write(&s, "huge.gguf", file, n);
    free(file);
    expect_error(scratch_path(&s, "huge.gguf"), false, ERR_CORRUPT, "'huge'", "17179869184 bytes");
    cr_assert_eq(truncate(scratch_path(&s, "huge.gguf"), 17179869184 + 128), 0);
    struct gguf_set set;
    struct err why;
    cr_assert_eq(gguf_set_open(scratch_path(&s, "huge.gguf"), false, &set, &why), ERR_OK, "%s",
                 why.text);
    cr_expect_eq(gguf_set_find(&set, "huge")->tensor->bytes, 17179869184);
    gguf_set_close(&set);
    scratch_close(&s);
}
