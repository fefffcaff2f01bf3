/* added_tokens.h - finding the tokens of "added_tokens" in a text: leftmost, longest, with their flags
 * (single_word, lstrip, rstrip). Immutable after load: any thread. */
#ifndef MOESAIC_TEXT_ADDED_TOKENS_H
#define MOESAIC_TEXT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct added_token {
    int32_t id;
    bool single_word, lstrip, rstrip;
    bool control; /* not recognized in untrusted text */
};

/* A set of tokens in a trie over bytes. Zero-initialized is empty. */
struct added_tokens {
    struct added_token *tokens;
    struct added_node *nodes; /* node 0 is the root; its children are found in `first` */
    size_t n_tokens, n_nodes, tokens_cap, nodes_cap;
    uint32_t first[256];
};

void added_tokens_deinit(struct added_tokens *a);

/* Add a token with the text to look for; an empty text is ignored, a repeated one replaced. */
enum err_code added_tokens_add(struct added_tokens *a, const struct added_token *t,
                               const char *text, size_t n, struct err *why);

struct added_match {
    const struct added_token *token;
    size_t start, end; /* with the white space that lstrip and rstrip absorb */
    size_t resume;     /* where the search goes on */
};

/* The next match at or after `from`; `done` is the end of the match before it, which white space to
 * its right belongs to first. Tokens that are `control` are passed over when `no_control`. */
bool added_tokens_find(const struct added_tokens *a, const char *text, size_t n, size_t from,
                       size_t done, bool no_control, struct added_match *out);

#endif
