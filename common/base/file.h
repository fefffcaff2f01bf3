/* file.h - small files read and written whole. Any thread. */
#ifndef MOESAIC_BASE_FILE_H
#define MOESAIC_BASE_FILE_H

#include <stddef.h>

#include "common/base/err.h"

/* Read a whole regular file; 0-terminated, mem_free. NOT_FOUND, TOO_LARGE (names both sizes), IO. */
enum err_code file_read(const char *path, size_t max_bytes, char **out, size_t *len,
                        struct err *why);

/* Write to `path` so that a reader sees the old file or the whole new one: temporary name, then rename. */
enum err_code file_replace(const char *path, const char *bytes, size_t n, struct err *why);

#endif
