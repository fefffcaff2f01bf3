/* Merging works on a doubly linked list of symbols. Each symbol knows the rank of the pair it forms
 * with its right neighbor; a binary heap holds (rank, position) of every pair that ever arose. An
 * entry is stale unless the symbol at its position still has that rank, so nothing is ever removed
 * from the middle of the heap. */
#include "coordinator/text/bpe.h"

#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/grow.h"

#define NONE UINT32_MAX

enum { BMP = 0x10000 };

struct pair_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t whole;
};

struct bpe {
    const struct vocab *vocab;
    struct pair_slot *pairs; /* [mask + 1] open addressing */
    uint32_t mask;
    int32_t *bmp;          /* [BMP] the id of a one-character token, or -1 */
    int32_t byte_ids[256]; /* byte fallback; -1: no such token */
    int32_t unk;           /* -1: none */
    bool byte_fallback, fuse_unk, ignore_merges;
};

struct bpe_symbol {
    int32_t id;
    uint32_t prev, next; /* positions, NONE at the ends */
    uint32_t rank;       /* of the pair (this, next); NONE: no merge, or this symbol is gone */
};

/* ---- The merge table ---------------------------------------------------------------------------- */

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static struct pair_slot *pair_slot(const struct bpe *b, uint64_t pair)
{
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    for (uint32_t i = (uint32_t)h & b->mask;; i = (i + 1) & b->mask)
        if (b->pairs[i].pair == pair || b->pairs[i].pair == UINT64_MAX) return &b->pairs[i];
}

static uint32_t pair_rank(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t key = pair_key(left, right);
    const struct pair_slot *s = pair_slot(b, key);
    return s->pair == key ? s->rank : NONE;
}

static enum err_code load_merges(struct bpe *b, const struct bpe_merge *merges, size_t n,
                                 struct err *why)
{
    size_t slots = 64;
    if (n >= NONE / 4) return err_set(why, ERR_TOO_LARGE, "model: %zu merges", n);
    while (slots < 2 * n)
        slots *= 2;
    b->mask = (uint32_t)slots - 1;
    b->pairs = mem_zalloc_array(slots, sizeof *b->pairs);
    if (b->pairs == NULL) return err_nomem(why, "merges");
    for (size_t i = 0; i < slots; i++)
        b->pairs[i].pair = UINT64_MAX;
    for (size_t i = 0; i < n; i++) {
        uint64_t pair = pair_key(merges[i].left, merges[i].right);
        *pair_slot(b, pair) = /* a repeated merge: the last counts */
            (struct pair_slot){pair, merges[i].rank, merges[i].whole};
    }
    return ERR_OK;
}

static enum err_code index_characters(struct bpe *b, struct err *why)
{
    b->bmp = mem_alloc(BMP * sizeof *b->bmp);
    if (b->bmp == NULL) return err_nomem(why, "vocabulary");
    for (size_t i = 0; i < BMP; i++)
        b->bmp[i] = -1;
    for (uint32_t id = 0; id < b->vocab->n_ids; id++) {
        size_t n = 0;
        const char *s = vocab_text(b->vocab, (int32_t)id, &n);
        uint32_t cp;
        if (s == NULL || n == 0 || n > 3 || !(b->vocab->flags[id] & VOCAB_MODEL)) continue;
        if (utf8_decode(s, n, &cp) == n) b->bmp[cp] = (int32_t)id;
    }
    vocab_byte_tokens(b->vocab, b->byte_ids);
    return ERR_OK;
}

enum err_code bpe_open(const struct bpe_spec *spec, const struct vocab *vocab, struct bpe **out,
                       struct err *why)
{
    struct bpe *b = mem_zalloc(sizeof *b);
    if (b == NULL) return err_nomem(why, "model");
    b->vocab = vocab;
    b->unk = spec->unk;
    b->byte_fallback = spec->byte_fallback;
    b->fuse_unk = spec->fuse_unk;
    b->ignore_merges = spec->ignore_merges;
    enum err_code rc = load_merges(b, spec->merges, spec->n_merges, why);
    if (rc == ERR_OK) rc = index_characters(b, why);
    if (rc == ERR_OK)
        *out = b;
    else
        bpe_close(b);
    return rc;
}

void bpe_close(struct bpe *b)
{
    if (b == NULL) return;
    mem_free(b->pairs);
    mem_free(b->bmp);
    mem_free(b);
}

void bpe_work_deinit(struct bpe_work *w)
{
    mem_free(w->symbols);
    mem_free(w->heap);
    *w = (struct bpe_work){0};
}

/* ---- Encoding ----------------------------------------------------------------------------------- */

static void sift_down(uint64_t *h, size_t n, size_t i)
{
    uint64_t v = h[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1] < h[child]) child++;
        if (h[child] >= v) break;
        h[i] = h[child];
    }
    h[i] = v;
}

static uint64_t heap_pop(struct bpe_work *w)
{
    uint64_t top = w->heap[0];
    w->heap[0] = w->heap[--w->heap_len];
    if (w->heap_len > 0) sift_down(w->heap, w->heap_len, 0);
    return top;
}

static void heap_push(struct bpe_work *w, uint64_t v)
{
    size_t i = w->heap_len++;
    for (; i > 0 && w->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = v;
}

static void add_symbol(struct bpe_work *w, size_t *n, int32_t id)
{
    w->symbols[*n] = (struct bpe_symbol){id, (uint32_t)*n - 1, (uint32_t)*n + 1, NONE};
    ++*n;
}

/* One symbol per character; w->symbols has room for one per byte. Returns how many. */
static size_t split_symbols(const struct bpe *b, struct bpe_work *w, const char *piece, size_t n)
{
    size_t count = 0;
    bool unk_pending =
        false; /* an unknown is emitted once the next symbol is known, so that runs can fuse */
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode(piece + i, n - i, &cp);
        int32_t id = cp < BMP ? b->bmp[cp] : vocab_find_model(b->vocab, piece + i, used);
        bool bytes = id < 0 && b->byte_fallback;
        for (size_t k = 0; k < used && bytes; k++)
            bytes = b->byte_ids[(uint8_t)piece[i + k]] >= 0;
        if (id < 0 && !bytes) {
            if (b->unk >= 0) {
                if (unk_pending && !b->fuse_unk) add_symbol(w, &count, b->unk);
                unk_pending = true;
            }
        } else {
            if (unk_pending) add_symbol(w, &count, b->unk);
            unk_pending = false;
            if (bytes)
                for (size_t k = 0; k < used; k++)
                    add_symbol(w, &count, b->byte_ids[(uint8_t)piece[i + k]]);
            else
                add_symbol(w, &count, id);
        }
        i += used;
    }
    if (unk_pending) add_symbol(w, &count, b->unk);
    if (count > 0) w->symbols[count - 1].next = NONE; /* the first one's prev is 0 - 1 == NONE */
    return count;
}

static void set_rank(const struct bpe *b, struct bpe_work *w, uint32_t at)
{
    struct bpe_symbol *s = &w->symbols[at];
    s->rank = s->next == NONE ? NONE : pair_rank(b, s->id, w->symbols[s->next].id);
    if (s->rank != NONE) heap_push(w, (uint64_t)s->rank << 32 | at);
}

static void merge_all(const struct bpe *b, struct bpe_work *w, size_t count)
{
    struct bpe_symbol *s = w->symbols;
    w->heap_len = 0;
    for (uint32_t i = 0; i + 1 < count; i++) {
        s[i].rank = pair_rank(b, s[i].id, s[i + 1].id);
        if (s[i].rank != NONE) w->heap[w->heap_len++] = (uint64_t)s[i].rank << 32 | i;
    }
    for (size_t i = w->heap_len / 2; i-- > 0;)
        sift_down(w->heap, w->heap_len, i);
    while (w->heap_len > 0) {
        uint64_t top = heap_pop(w);
        uint32_t at = (uint32_t)top, rank = (uint32_t)(top >> 32);
        if (s[at].rank != rank) continue;
        struct bpe_symbol *right = &s[s[at].next];
        s[at].id = pair_slot(b, pair_key(s[at].id, right->id))->whole;
        s[at].next = right->next;
        right->rank = NONE;
        if (right->next != NONE) s[right->next].prev = at;
        set_rank(b, w, at);
        if (s[at].prev != NONE) set_rank(b, w, s[at].prev);
    }
}

enum err_code bpe_encode(const struct bpe *b, struct bpe_work *w, const char *piece, size_t n,
                         bool no_control, struct ids *out, struct err *why)
{
    if (n == 0) return ERR_OK;
    if (n > LIMIT_ENCODE_BYTES)
        return err_set(why, ERR_TOO_LARGE, "a piece of %zu bytes, at most %u", n,
                       LIMIT_ENCODE_BYTES);
    if (b->ignore_merges) {
        int32_t id = vocab_find_model(b->vocab, piece, n);
        if (id >= 0 && !(no_control && vocab_flags(b->vocab, id) & VOCAB_CONTROL))
            return ids_push(out, id) ? ERR_OK : err_nomem(why, "ids");
    }
    /* A merge removes one symbol and pushes at most two entries, so 3 n entries are enough for ever. */
    if (!grow((void **)&w->symbols, &w->symbols_cap, n + 1, sizeof *w->symbols))
        return err_nomem(why, "text");
    size_t count = split_symbols(b, w, piece, n);
    if (count > 1) {
        if (!grow((void **)&w->heap, &w->heap_cap, 3 * count, sizeof *w->heap))
            return err_nomem(why, "text");
        merge_all(b, w, count);
    }
    for (uint32_t i = 0; count > 0 && i != NONE; i = w->symbols[i].next)
        if (!ids_push(out, w->symbols[i].id)) return err_nomem(why, "ids");
    return ERR_OK;
}
