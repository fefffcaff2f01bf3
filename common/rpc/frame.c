#include "common/rpc/frame.h"

#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/rpc/pb.h"
#include "moesaic/v1/expert.pb-c.h"

#define NAME_MAX_BYTES 256u /* ids, digests, names of formats */

/* ---- hello ------------------------------------------------------------------------------------ */

static enum err_code check_name(const char *field, const char *s, struct err *why)
{
    size_t n = strlen(s);
    if (n <= NAME_MAX_BYTES) return ERR_OK;
    return err_set(why, ERR_TOO_LARGE, "hello.%s: %zu bytes, the limit is %u", field, n,
                   NAME_MAX_BYTES);
}

/* Views of the message's bitmaps; *out is mem_free'd. */
static enum err_code decode_bitmaps(const char *field, size_t n, const ProtobufCBinaryData *in,
                                    struct frame_bitmap **out, struct err *why)
{
    if (n > LIMIT_LAYERS)
        return err_set(why, ERR_TOO_LARGE, "%s: %zu layers, the limit is %u", field, n,
                       LIMIT_LAYERS);
    for (size_t i = 0; i < n; i++)
        if (in[i].len > LIMIT_EXPERTS / 8)
            return err_set(why, ERR_TOO_LARGE, "%s[%zu]: %zu experts, the limit is %u", field, i,
                           in[i].len * 8, LIMIT_EXPERTS);
    struct frame_bitmap *maps = mem_zalloc_array(n, sizeof *maps);
    if (maps == NULL) return err_nomem(why, field);
    for (size_t i = 0; i < n; i++)
        maps[i] = (struct frame_bitmap){in[i].data, in[i].len};
    *out = maps;
    return ERR_OK;
}

static enum err_code decode_hello(const Moesaic__V1__Hello *p, struct expert_hello *h,
                                  struct frame_bitmap **held, struct err *why)
{
    enum err_code rc = check_name("model_digest", p->model_digest, why);
    if (rc == ERR_OK) rc = check_name("quantize", p->quantize, why);
    if (rc == ERR_OK) rc = check_name("id", p->id, why);
    if (rc == ERR_OK) rc = check_name("kernels", p->kernels, why);
    if (rc == ERR_OK && (unsigned)p->lane > RPC_LANE_BULK)
        rc = err_set(why, ERR_INVALID, "hello.lane: %d is no lane", (int)p->lane);
    if (rc == ERR_OK) rc = decode_bitmaps("hello.held", p->n_held, p->held, held, why);
    if (rc != ERR_OK) return rc;
    *h = (struct expert_hello){
        .protocol = p->protocol,
        .model_digest = p->model_digest,
        .numerics = p->numerics,
        .wire_profile = p->wire_profile,
        .quantize = p->quantize,
        .id = p->id,
        .incarnation = p->incarnation,
        .epoch = p->epoch,
        .lane = (enum rpc_lane)p->lane,
        .kernels = p->kernels,
        .held = *held,
        .n_layers = (uint32_t)p->n_held,
        .expert_bytes = p->expert_bytes,
        .threads = p->threads,
        .pinned = p->pinned != 0,
    };
    return ERR_OK;
}

static ProtobufCBinaryData *encode_bitmaps(const struct frame_bitmap *maps, uint32_t n)
{
    ProtobufCBinaryData *out = mem_zalloc_array(n, sizeof *out);
    for (uint32_t i = 0; out != NULL && i < n; i++)
        out[i] = (ProtobufCBinaryData){.len = maps[i].bytes, .data = pb_borrow(maps[i].bits)};
    return out;
}

/* p borrows from h; p->held is mem_free'd by the caller. */
static enum err_code encode_hello(const struct expert_hello *h, Moesaic__V1__Hello *p,
                                  struct err *why)
{
    moesaic__v1__hello__init(p);
    p->protocol = h->protocol;
    p->model_digest = pb_text(h->model_digest);
    p->numerics = h->numerics;
    p->wire_profile = h->wire_profile;
    p->quantize = pb_text(h->quantize);
    p->id = pb_text(h->id);
    p->incarnation = h->incarnation;
    p->epoch = h->epoch;
    p->lane = (Moesaic__V1__Lane)h->lane;
    p->kernels = pb_text(h->kernels);
    p->expert_bytes = h->expert_bytes;
    p->threads = h->threads;
    p->pinned = h->pinned;
    p->n_held = h->n_layers;
    p->held = encode_bitmaps(h->held, h->n_layers);
    return p->held != NULL ? ERR_OK : err_nomem(why, "hello");
}

static enum err_code differ_number(const char *what, uint32_t ours, uint32_t theirs,
                                   struct err *why)
{
    return err_set(why, ERR_MISMATCH, "%s differs: ours is %u, the peer's is %u", what, ours,
                   theirs);
}

static bool same_text(const char *a, const char *b)
{
    return strcmp(a != NULL ? a : "", b != NULL ? b : "") == 0;
}

static enum err_code differ_text(const char *what, const char *ours, const char *theirs,
                                 struct err *why)
{
    return err_set(why, ERR_MISMATCH, "%s differs: ours is \"%.200s\", the peer's is \"%.200s\"",
                   what, ours != NULL ? ours : "", theirs != NULL ? theirs : "");
}

enum err_code frame_hello_check(const struct expert_hello *ours, const struct expert_hello *theirs,
                                struct err *why)
{
    /* Numerics, profile and quantization are part of the digest too: named first, they say more than two hashes. */
    if (ours->protocol != theirs->protocol)
        return differ_number("protocol version", ours->protocol, theirs->protocol, why);
    if (ours->numerics != theirs->numerics)
        return differ_number("numerics version", ours->numerics, theirs->numerics, why);
    if (ours->wire_profile != theirs->wire_profile)
        return differ_number("wire profile", ours->wire_profile, theirs->wire_profile, why);
    if (!same_text(ours->quantize, theirs->quantize))
        return differ_text("quantize", ours->quantize, theirs->quantize, why);
    if (!same_text(ours->model_digest, theirs->model_digest))
        return differ_text("model digest", ours->model_digest, theirs->model_digest, why);
    return ERR_OK;
}

/* ---- request ---------------------------------------------------------------------------------- */

enum err_code frame_encode_request(const struct expert_request *q, struct buf *out, struct err *why)
{
    Moesaic__V1__ExpertRequest p;
    Moesaic__V1__Hello hello;
    moesaic__v1__expert_request__init(&p);
    p.kind = (Moesaic__V1__ExpertRequest__Kind)q->kind;
    p.step = q->step;
    p.epoch = q->epoch;
    p.layer = q->layer;
    p.format = (Moesaic__V1__RowFormat)q->format;
    p.rows = q->rows;
    p.n_experts = p.n_expert_rows = q->n_experts;
    p.experts = pb_borrow(q->experts);
    p.expert_rows = pb_borrow(q->expert_rows);
    p.n_row_index = q->n_index;
    p.row_index = pb_borrow(q->row_index);
    enum err_code rc = ERR_OK;
    if (q->hello != NULL) {
        rc = encode_hello(q->hello, &hello, why);
        p.hello = &hello;
    }
    if (rc == ERR_OK && q->n_layers > 0) {
        p.n_assign = q->n_layers;
        p.assign = encode_bitmaps(q->assign, q->n_layers);
        if (p.assign == NULL) rc = err_nomem(why, "assignment");
    }
    if (rc == ERR_OK) rc = pb_pack(&p.base, "ExpertRequest", out, why);
    mem_free(p.assign);
    if (p.hello != NULL) mem_free(hello.held);
    return rc;
}

struct request_box {
    struct expert_request q;
    struct expert_hello hello;
    struct frame_bitmap *held, *assign;
    Moesaic__V1__ExpertRequest *pb;
};

void frame_request_free(struct expert_request *q)
{
    if (q == NULL) return;
    struct request_box *box = q->owner;
    if (box->pb != NULL) pb_free(&box->pb->base);
    mem_free(box->held);
    mem_free(box->assign);
    mem_free(box);
}

static enum err_code check_step(const Moesaic__V1__ExpertRequest *p, struct err *why)
{
    if (p->n_experts == 0) return err_set(why, ERR_INVALID, "step without experts");
    if (p->n_experts > LIMIT_EXPERTS)
        return err_set(why, ERR_TOO_LARGE, "%zu experts, the limit is %u", p->n_experts,
                       LIMIT_EXPERTS);
    if (p->n_experts != p->n_expert_rows)
        return err_set(why, ERR_INVALID, "%zu experts but %zu expert_rows", p->n_experts,
                       p->n_expert_rows);
    uint64_t sum = 0;
    for (size_t i = 0; i < p->n_experts; i++) {
        if (p->experts[i] >= LIMIT_EXPERTS)
            return err_set(why, ERR_INVALID, "experts[%zu] is %u, the limit is %u", i,
                           p->experts[i], LIMIT_EXPERTS);
        if (i > 0 && p->experts[i] <= p->experts[i - 1])
            return err_set(why, ERR_INVALID, "experts[%zu] is %u after %u: not ascending", i,
                           p->experts[i], p->experts[i - 1]);
        if (p->expert_rows[i] == 0) return err_set(why, ERR_INVALID, "expert_rows[%zu] is 0", i);
        sum += p->expert_rows[i];
    }
    if (sum != p->n_row_index)
        return err_set(why, ERR_INVALID, "expert_rows sum to %llu but there are %zu row indices",
                       (unsigned long long)sum, p->n_row_index);
    for (size_t i = 0; i < p->n_row_index; i++)
        if (p->row_index[i] >= p->rows)
            return err_set(why, ERR_INVALID, "row_index[%zu] is %u of %u rows", i, p->row_index[i],
                           p->rows);
    return ERR_OK;
}

static enum err_code check_request(const Moesaic__V1__ExpertRequest *p, struct err *why)
{
    if ((unsigned)p->format > FRAME_Q8)
        return err_set(why, ERR_INVALID, "unknown row format %d", (int)p->format);
    if (p->rows > LIMIT_FRAME_ROWS)
        return err_set(why, ERR_TOO_LARGE, "%u rows, the limit is %u", p->rows, LIMIT_FRAME_ROWS);
    if (p->layer >= LIMIT_LAYERS)
        return err_set(why, ERR_INVALID, "layer %u, the limit is %u", p->layer, LIMIT_LAYERS);
    switch ((int)p->kind) {
    case EXPERT_REQUEST_HELLO:
        return p->hello != NULL ? ERR_OK
                                : err_set(why, ERR_INVALID, "hello request without a hello");
    case EXPERT_REQUEST_STEP:
        return check_step(p, why);
    case EXPERT_REQUEST_ASSIGN:
    case EXPERT_REQUEST_PING:
        return ERR_OK;
    default:
        return err_set(why, ERR_INVALID, "unknown request kind %d", (int)p->kind);
    }
}

enum err_code frame_decode_request(const struct rpc_message *m, struct expert_request **out,
                                   struct err *why)
{
    size_t n;
    const uint8_t *bytes = rpc_message_header(m, &n);
    struct request_box *box = mem_zalloc(sizeof *box);
    if (box == NULL) return err_nomem(why, "ExpertRequest");
    struct expert_request *q = &box->q;
    q->owner = box;
    ProtobufCMessage *base = NULL;
    enum err_code rc =
        pb_unpack(&moesaic__v1__expert_request__descriptor, "ExpertRequest", bytes, n, &base, why);
    if (rc != ERR_OK) goto fail;
    Moesaic__V1__ExpertRequest *p = box->pb = (Moesaic__V1__ExpertRequest *)base;
    rc = check_request(p, why);
    if (rc == ERR_OK && p->hello != NULL) rc = decode_hello(p->hello, &box->hello, &box->held, why);
    if (rc == ERR_OK) rc = decode_bitmaps("assign", p->n_assign, p->assign, &box->assign, why);
    if (rc != ERR_OK) {
        err_wrap(why, rc, "ExpertRequest kind %d step %llu", (int)p->kind,
                 (unsigned long long)p->step);
        goto fail;
    }
    q->kind = (enum expert_request_kind)p->kind;
    q->step = p->step;
    q->epoch = p->epoch;
    q->layer = p->layer;
    q->format = (enum frame_format)p->format;
    q->rows = p->rows;
    if (q->kind == EXPERT_REQUEST_STEP) { /* only then were they checked */
        q->experts = p->experts;
        q->expert_rows = p->expert_rows;
        q->n_experts = (uint32_t)p->n_experts;
        q->row_index = p->row_index;
        q->n_index = (uint32_t)p->n_row_index;
    }
    q->hello = p->hello != NULL ? &box->hello : NULL;
    q->assign = box->assign;
    q->n_layers = (uint32_t)p->n_assign;
    *out = q;
    return ERR_OK;
fail:
    frame_request_free(q);
    return rc;
}

/* ---- reply ------------------------------------------------------------------------------------ */

enum err_code frame_encode_reply(const struct expert_reply *r, struct buf *out, struct err *why)
{
    Moesaic__V1__ExpertReply p;
    Moesaic__V1__Hello hello;
    moesaic__v1__expert_reply__init(&p);
    p.kind = (Moesaic__V1__ExpertReply__Kind)r->kind;
    p.step = r->step;
    p.rows = r->rows;
    p.format = (Moesaic__V1__RowFormat)r->format;
    p.queue_us = r->queue_us;
    p.compute_us = r->compute_us;
    if (r->error != ERR_OK) p.error_code = pb_text(err_name(r->error));
    p.error_text = pb_text(r->error_text);
    enum err_code rc = ERR_OK;
    if (r->hello != NULL) {
        rc = encode_hello(r->hello, &hello, why);
        p.hello = &hello;
    }
    if (rc == ERR_OK) rc = pb_pack(&p.base, "ExpertReply", out, why);
    if (p.hello != NULL) mem_free(hello.held);
    return rc;
}

struct reply_box {
    struct expert_reply r;
    struct expert_hello hello;
    struct frame_bitmap *held;
    Moesaic__V1__ExpertReply *pb;
};

void frame_reply_free(struct expert_reply *r)
{
    if (r == NULL) return;
    struct reply_box *box = r->owner;
    if (box->pb != NULL) pb_free(&box->pb->base);
    mem_free(box->held);
    mem_free(box);
}

static enum err_code code_by_name(const char *name)
{
    for (int i = ERR_OK + 1; i < ERR_N_CODES; i++)
        if (strcmp(err_name((enum err_code)i), name) == 0) return (enum err_code)i;
    return ERR_INTERNAL;
}

static enum err_code check_reply(const Moesaic__V1__ExpertReply *p, size_t tensor_bytes,
                                 struct err *why)
{
    switch ((int)p->kind) {
    case EXPERT_REPLY_HELLO:
    case EXPERT_REPLY_HOLDINGS:
        return p->hello != NULL ? ERR_OK : err_set(why, ERR_INVALID, "no hello in it");
    case EXPERT_REPLY_RESULT:
        if ((unsigned)p->format > FRAME_BF16)
            return err_set(why, ERR_INVALID, "row format %d in a reply", (int)p->format);
        if (p->rows > tensor_bytes / 2) /* a row has at least one bf16 */
            return err_set(why, ERR_INVALID, "%u rows in a tensor of %zu bytes", p->rows,
                           tensor_bytes);
        return ERR_OK;
    case EXPERT_REPLY_ERROR:
    case EXPERT_REPLY_DRAINING:
    case EXPERT_REPLY_PONG:
        return ERR_OK;
    default:
        return err_set(why, ERR_INVALID, "unknown reply kind %d", (int)p->kind);
    }
}

enum err_code frame_decode_reply(const struct rpc_message *m, struct expert_reply **out,
                                 struct err *why)
{
    size_t n;
    const uint8_t *bytes = rpc_message_header(m, &n);
    struct reply_box *box = mem_zalloc(sizeof *box);
    if (box == NULL) return err_nomem(why, "ExpertReply");
    struct expert_reply *r = &box->r;
    r->owner = box;
    ProtobufCMessage *base = NULL;
    enum err_code rc =
        pb_unpack(&moesaic__v1__expert_reply__descriptor, "ExpertReply", bytes, n, &base, why);
    if (rc != ERR_OK) goto fail;
    Moesaic__V1__ExpertReply *p = box->pb = (Moesaic__V1__ExpertReply *)base;
    rc = check_reply(p, rpc_message_tensor_bytes(m), why);
    if (rc == ERR_OK && p->hello != NULL) rc = decode_hello(p->hello, &box->hello, &box->held, why);
    if (rc != ERR_OK) {
        err_wrap(why, rc, "ExpertReply kind %d step %llu", (int)p->kind,
                 (unsigned long long)p->step);
        goto fail;
    }
    r->kind = (enum expert_reply_kind)p->kind;
    r->step = p->step;
    r->rows = p->rows;
    r->format = p->format == (Moesaic__V1__RowFormat)FRAME_BF16 ? FRAME_BF16 : FRAME_F32;
    r->queue_us = p->queue_us;
    r->compute_us = p->compute_us;
    /* HOLDINGS carries one when an expert could not be loaded. */
    if (r->kind == EXPERT_REPLY_ERROR ||
        (r->kind == EXPERT_REPLY_HOLDINGS && p->error_code[0] != '\0'))
        r->error = code_by_name(p->error_code);
    r->error_text = p->error_text;
    r->hello = p->hello != NULL ? &box->hello : NULL;
    *out = r;
    return ERR_OK;
fail:
    frame_reply_free(r);
    return rc;
}

/* ---- describe --------------------------------------------------------------------------------- */

enum err_code frame_encode_describe(const struct expert_describe *d, struct buf *out,
                                    struct err *why)
{
    Moesaic__V1__DescribeReply p;
    Moesaic__V1__Hello hello;
    moesaic__v1__describe_reply__init(&p);
    enum err_code rc = encode_hello(d->hello, &hello, why);
    p.hello = &hello;
    p.steps = d->steps;
    p.rows = d->rows;
    p.multiplications = d->multiplications;
    p.resident_bytes = d->resident_bytes;
    if (rc == ERR_OK) rc = pb_pack(&p.base, "DescribeReply", out, why);
    mem_free(hello.held);
    return rc;
}

struct describe_box {
    struct expert_describe d;
    struct expert_hello hello;
    struct frame_bitmap *held;
    Moesaic__V1__DescribeReply *pb;
};

void frame_describe_free(struct expert_describe *d)
{
    if (d == NULL) return;
    struct describe_box *box = d->owner;
    if (box->pb != NULL) pb_free(&box->pb->base);
    mem_free(box->held);
    mem_free(box);
}

enum err_code frame_decode_describe(const void *bytes, size_t n, struct expert_describe **out,
                                    struct err *why)
{
    struct describe_box *box = mem_zalloc(sizeof *box);
    if (box == NULL) return err_nomem(why, "DescribeReply");
    struct expert_describe *d = &box->d;
    d->owner = box;
    ProtobufCMessage *base = NULL;
    enum err_code rc =
        pb_unpack(&moesaic__v1__describe_reply__descriptor, "DescribeReply", bytes, n, &base, why);
    if (rc != ERR_OK) goto fail;
    Moesaic__V1__DescribeReply *p = box->pb = (Moesaic__V1__DescribeReply *)base;
    rc = p->hello != NULL ? decode_hello(p->hello, &box->hello, &box->held, why)
                          : err_set(why, ERR_INVALID, "no hello in it");
    if (rc != ERR_OK) {
        err_wrap(why, rc, "DescribeReply");
        goto fail;
    }
    d->hello = &box->hello;
    d->steps = p->steps;
    d->rows = p->rows;
    d->multiplications = p->multiplications;
    d->resident_bytes = p->resident_bytes;
    *out = d;
    return ERR_OK;
fail:
    frame_describe_free(d);
    return rc;
}
