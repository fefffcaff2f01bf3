/* mapped_file.h - a whole file, mapped read only. Immutable after open, any thread.
 *
 * The size is that at open. A file that is cut short later by someone else ends the process with SIGBUS when
 * a page behind the new end is touched: model files must be replaced (rename), never rewritten in place. */
#ifndef MOESAIC_MODELFILE_MAPPED_FILE_H
#define MOESAIC_MODELFILE_MAPPED_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct mapped_file;

/* NOT_FOUND, IO (not a regular file, no permission), EXHAUSTED (no memory or address space). */
enum err_code mapped_file_open(const char *path, struct mapped_file **out, struct err *why);
void mapped_file_close(struct mapped_file *f);

const uint8_t *
mapped_file_data(const struct mapped_file *f); /* page aligned; NULL for an empty file */
size_t mapped_file_size(const struct mapped_file *f);

/* Drop the pages that lie wholly inside [off, off + n) from this process; touching them again reads the file.
 * A hint: errors are ignored. */
void mapped_file_drop(const struct mapped_file *f, size_t off, size_t n);

#endif
