/* fuzz.h - what the fuzz targets share. A target is a file fuzz_<noun>.c with one function, fuzz_one(): it gives the
 * bytes to a decoder as the product does, checks what the decoder promises, and frees everything. Its first lines say
 * what it links, whose branches its seeds must reach, and how long inputs may get:
 *   // links: modelfile
 *   // covers: common/modelfile/safetensors.c
 *   // max_len: 4096
 *
 * Every input runs twice: as it is, then with memory that runs out at an allocation which the input's own bytes choose
 * (with MOESAIC_FUZZ_ALLOCATIONS=1 at many, one run for each: so the check of the seeds' coverage has it). One thread. */
#ifndef MOESAIC_TESTS_FUZZ_H
#define MOESAIC_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Once, before the first input: what is the same for all. Memory does not run out here. */
void fuzz_init(void);

/* Answers any number that is the same each time for the same bytes (an error code, say), or FUZZ_NO_MEMORY when
 * memory ran out; that may happen in the second run only. */
int fuzz_one(const uint8_t *data, size_t n);
#define FUZZ_NO_MEMORY (-1)
/* The first run: memory does not run out. For oracles that could not stand it. */
bool fuzz_calm(void);

/* A broken promise: says which, and ends the process as a finding. */
#define FUZZ_CHECK(holds, ...)                                                                     \
    do {                                                                                           \
        if (!(holds)) fuzz_fail(__FILE__, __LINE__, #holds, __VA_ARGS__);                          \
    } while (0)
_Noreturn void fuzz_fail(const char *file, int line, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* An input of several parts: the bytes up to the next line "----" (or all), which *n and the answer then no longer
 * hold. `rest` and `n_rest` move behind it. */
const uint8_t *fuzz_part(const uint8_t **rest, size_t *n_rest, size_t *n);

/* Choices that an input makes for itself, for those that are no part of its text: a splitmix64 over its hash. */
struct fuzz_dice {
    uint64_t state;
};
struct fuzz_dice fuzz_dice(const uint8_t *data, size_t n);
uint32_t fuzz_below(struct fuzz_dice *d, uint32_t n); /* 0..n - 1; n > 0 */

/* A folder of this process, made on first use in $TMPDIR (/tmp), removed at exit; and a file in it, `data` NULL: no
 * such file. */
const char *fuzz_dir(void);
void fuzz_put_file(const char *name, const void *data, size_t n);

#endif
