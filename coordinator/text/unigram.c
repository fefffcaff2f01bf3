/* Tokens are found in a trie whose edges are a hash table of (node, byte): a text is walked from every
 * character, and each token on the way is an edge of the Viterbi graph over the text's bytes. */
#include "coordinator/text/unigram.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/grow.h"

#define NOWHERE     UINT32_MAX
#define UNK_PENALTY 10.0

struct edge {
    uint64_t key; /* (node + 1) << 8 | byte; 0: empty */
    uint32_t to;
};

struct unigram {
    const struct vocab *vocab;
    double *scores;     /* [vocab->n_ids] */
    struct edge *edges; /* [mask + 1] open addressing */
    uint64_t mask;
    uint32_t root[256]; /* the edges of node 0; 0: none (no edge leads back to it) */
    int32_t *tokens;    /* [n_nodes] the token that ends there, or -1 */
    uint32_t n_nodes;
    int32_t byte_ids[256];
    int32_t unk;
    double unk_score;
    bool byte_fallback;
};

/* The best way to a position of the text. */
struct unigram_node {
    double score;
    uint32_t from; /* where its last token starts; NOWHERE: there is no way yet */
    int32_t id;
};

/* ---- The trie ----------------------------------------------------------------------------------- */

static struct edge *edge_of(const struct unigram *u, uint32_t node, uint8_t byte)
{
    uint64_t key = ((uint64_t)node + 1) << 8 | byte, h = key * 0x9E3779B97F4A7C15u;
    for (uint64_t i = h >> 24 & u->mask;; i = (i + 1) & u->mask)
        if (u->edges[i].key == key || u->edges[i].key == 0) return &u->edges[i];
}

static uint32_t child_of(const struct unigram *u, uint32_t node, uint8_t byte)
{
    return node == 0 ? u->root[byte] : edge_of(u, node, byte)->to;
}

static void add_token(struct unigram *u, int32_t id, const char *text, size_t n)
{
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)text[i];
        uint32_t next = child_of(u, node, byte);
        if (next == 0) {
            next = u->n_nodes++;
            u->tokens[next] = -1;
            if (node == 0)
                u->root[byte] = next;
            else
                *edge_of(u, node, byte) = (struct edge){((uint64_t)node + 1) << 8 | byte, next};
        }
        node = next;
    }
    if (n > 0) u->tokens[node] = id;
}

static enum err_code load_tokens(struct unigram *u, struct err *why)
{
    const struct vocab *v = u->vocab;
    uint64_t n_bytes = 1, slots = 64;
    for (uint32_t id = 0; id < v->n_ids; id++)
        if (v->flags[id] & VOCAB_MODEL) n_bytes += v->len[id];
    while (slots < 2 * n_bytes) /* no more nodes than bytes */
        slots *= 2;
    u->mask = slots - 1;
    u->edges = mem_zalloc_array(slots, sizeof *u->edges);
    u->tokens = mem_zalloc_array(n_bytes, sizeof *u->tokens);
    u->scores = mem_zalloc_array(v->n_ids, sizeof *u->scores);
    if (u->edges == NULL || u->tokens == NULL || u->scores == NULL)
        return err_nomem(why, "vocabulary");
    u->n_nodes = 1;
    u->tokens[0] = -1;
    for (uint32_t id = 0; id < v->n_ids; id++) {
        size_t n = 0;
        const char *text = vocab_text(v, (int32_t)id, &n);
        if (v->flags[id] & VOCAB_MODEL) add_token(u, (int32_t)id, text, n);
    }
    return ERR_OK;
}

enum err_code unigram_open(const struct unigram_spec *spec, const struct vocab *vocab,
                           struct unigram **out, struct err *why)
{
    struct unigram *u = mem_zalloc(sizeof *u);
    if (u == NULL) return err_nomem(why, "model");
    u->vocab = vocab;
    u->unk = spec->unk;
    u->unk_score = spec->min_score - UNK_PENALTY;
    u->byte_fallback = spec->byte_fallback;
    enum err_code rc = load_tokens(u, why);
    if (rc != ERR_OK) {
        unigram_close(u);
        return rc;
    }
    memcpy(u->scores, spec->scores, vocab->n_ids * sizeof *u->scores);
    vocab_byte_tokens(vocab, u->byte_ids);
    *out = u;
    return ERR_OK;
}

void unigram_close(struct unigram *u)
{
    if (u == NULL) return;
    mem_free(u->scores);
    mem_free(u->edges);
    mem_free(u->tokens);
    mem_free(u);
}

void unigram_work_deinit(struct unigram_work *w)
{
    mem_free(w->nodes);
    ids_free(&w->reversed);
    *w = (struct unigram_work){0};
}

/* ---- Encoding ----------------------------------------------------------------------------------- */

/* A way to `node` whose last token is `id`; among equals the first one found stays. */
static void offer(struct unigram_node *node, double score, size_t from, int32_t id)
{
    if (node->from == NOWHERE || score > node->score)
        *node = (struct unigram_node){score, (uint32_t)from, id};
}

static bool is_hidden(const struct unigram *u, int32_t id, bool no_control)
{
    return no_control && id != u->unk && u->vocab->flags[id] & VOCAB_CONTROL;
}

static enum err_code find_ways(const struct unigram *u, struct unigram_work *w, const char *piece,
                               size_t n, bool no_control, struct err *why)
{
    struct unigram_node *nodes = w->nodes;
    for (size_t i = 0; i <= n; i++)
        nodes[i].from = NOWHERE;
    nodes[0].score = 0;
    for (size_t at = 0; at < n;) {
        uint32_t cp, node = 0;
        size_t used = utf8_decode(piece + at, n - at, &cp);
        bool alone = false; /* is this character a token by itself? */
        double here = nodes[at].score;
        for (size_t i = at; i < n; i++) {
            node = child_of(u, node, (uint8_t)piece[i]);
            w->steps++;
            if (node == 0) break;
            int32_t id = u->tokens[node];
            if (id < 0 || is_hidden(u, id, no_control)) continue;
            offer(&nodes[i + 1], here + u->scores[id], at, id);
            alone |= i + 1 == at + used;
        }
        if (!alone) {
            if (u->unk < 0)
                return err_set(why, ERR_INVALID,
                               "the text cannot be encoded: no token for U+%04X at byte %zu of "
                               "%zu, and the model has no unknown token",
                               cp, at, n);
            offer(&nodes[at + used], here + u->unk_score, at, u->unk);
        }
        at += used;
    }
    return ERR_OK;
}

/* Unknown text from..end, in reverse: a token after all, its bytes, or the unknown token. */
static bool put_unknown(const struct unigram *u, const char *piece, size_t from, size_t end,
                        bool no_control, struct ids *out)
{
    int32_t id = vocab_find_model(u->vocab, piece + from, end - from);
    if (id >= 0 && !is_hidden(u, id, no_control)) return ids_push(out, id);
    bool bytes = u->byte_fallback;
    for (size_t i = from; i < end && bytes; i++)
        bytes = u->byte_ids[(uint8_t)piece[i]] >= 0;
    if (!bytes) return ids_push(out, u->unk);
    for (size_t i = end; i-- > from;)
        if (!ids_push(out, u->byte_ids[(uint8_t)piece[i]])) return false;
    return true;
}

enum err_code unigram_encode(const struct unigram *u, struct unigram_work *w, const char *piece,
                             size_t n, bool no_control, struct ids *out, struct err *why)
{
    if (n == 0) return ERR_OK;
    if (n > LIMIT_ENCODE_BYTES)
        return err_set(why, ERR_TOO_LARGE, "a piece of %zu bytes, at most %u", n,
                       LIMIT_ENCODE_BYTES);
    if (!grow((void **)&w->nodes, &w->nodes_cap, n + 1, sizeof *w->nodes))
        return err_nomem(why, "text");
    enum err_code rc = find_ways(u, w, piece, n, no_control, why);
    if (rc != ERR_OK) return rc;
    w->reversed.len = 0;
    bool ok = true;
    for (size_t end = n; end > 0 && ok;) {
        size_t from = w->nodes[end].from;
        assert(from < end);
        int32_t id = w->nodes[end].id;
        if (id != u->unk) {
            ok = ids_push(&w->reversed, id);
        } else {
            while (from > 0 && w->nodes[from].id == u->unk) /* the run that it ends */
                from = w->nodes[from].from;
            ok = put_unknown(u, piece, from, end, no_control, &w->reversed);
        }
        end = from;
    }
    for (size_t i = w->reversed.len; i-- > 0 && ok;)
        ok = ids_push(out, w->reversed.data[i]);
    return ok ? ERR_OK : err_nomem(why, "ids");
}
