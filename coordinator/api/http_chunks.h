/* http_chunks.h - the chunked transfer coding, strictly: exact CRLFs, hexadecimal sizes without blanks, capped
 * extensions and trailers (which are checked and dropped). Pure, any thread. */
#ifndef MOESAIC_API_HTTP_CHUNKS_H
#define MOESAIC_API_HTTP_CHUNKS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "coordinator/api/error_body.h"

enum http_chunks_result { HTTP_CHUNKS_MORE, HTTP_CHUNKS_DONE, HTTP_CHUNKS_BAD };

/* Zero-initialised; one per body. */
struct http_chunks {
    int state;
    uint64_t left;        /* of the present chunk */
    uint32_t digits;      /* of its size so far */
    uint32_t extra_bytes; /* extensions and trailers of the whole body */
};

/* Take bytes, append the content to *out (never beyond max_bytes in all). *used: how many of the n were taken; the
 * rest belongs to the next request once DONE. BAD: *why. A failed allocation shows in out->failed. */
enum http_chunks_result http_chunks_feed(struct http_chunks *c, const char *bytes, size_t n,
                                         size_t max_bytes, struct buf *out, size_t *used,
                                         struct fault *why);

#endif
