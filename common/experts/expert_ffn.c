/* The computation of experts: y = down(act(gate x, up x)), with biases where the model has them, for the rows of several
 * experts at once.
 *
 * Tasks are cut into pieces of rows, pieces are gathered into waves that fit the scratch. Per wave there are two
 * joins over flat lists (gate and up of all pieces; down of all pieces) and one over the rows after each.
 * No cut changes a bit: every output is one chain. */
#include <assert.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/experts/expert_internal.h"

/* A wave's scratch stays below this unless one piece alone needs more. */
#define WAVE_BYTES  ((size_t)48 << 20)
#define PIECE_ROWS  256u
#define PIECE_LEAST 16u

/* Some rows of one task, in the wave's scratch from row0 on. */
struct expert_piece {
    const struct expert_task *task;
    const struct expert *expert;
    struct packed gate, up, down;
    uint32_t first, m; /* rows [first, first + m) of the task */
    uint32_t row0;
    struct rows in, mid;
};

struct wave {
    struct expert_store *s;
    const struct expert_geometry *g;
    struct expert_piece *pieces;
    uint32_t n_pieces, n_rows;
    float *gate, *up, *out; /* [n_rows, F], [n_rows, F], [n_rows, D] */
    struct product_scratch kernel;
};

static size_t round_up_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

/* Scratch of one piece's rows: each of its buffers starts on a line of its own. */
static size_t piece_bytes(const struct expert_geometry *g, uint32_t m)
{
    return rows_bytes(g->gate.input, m, g->gate.k) + rows_bytes(g->down.input, m, g->down.k) +
           2 * (size_t)m * g->gate.n * sizeof(float) + (size_t)m * g->down.n * sizeof(float);
}

static uint32_t piece_rows(const struct expert_geometry *g)
{
    size_t fit = WAVE_BYTES / piece_bytes(g, 1);
    return fit < PIECE_LEAST ? PIECE_LEAST : fit > PIECE_ROWS ? PIECE_ROWS : (uint32_t)fit;
}

static size_t kernel_bytes(const struct expert_geometry *g)
{
    size_t in = product_scratch_bytes(&g->gate, PRODUCT_ROWS),
           up = g->up.n > 0 ? product_scratch_bytes(&g->up, PRODUCT_ROWS) : 0;
    size_t down = product_scratch_bytes(&g->down, PRODUCT_ROWS);
    if (up > in) in = up;
    return down > in ? down : in;
}

static enum err_code grow(struct expert_scratch *scratch, size_t bytes, uint32_t n_pieces,
                          struct err *why)
{
    if (bytes > scratch->bytes) {
        mem_free(scratch->data);
        scratch->bytes = 0;
        scratch->data = mem_aligned(64, bytes);
        if (scratch->data == NULL)
            return err_set(why, ERR_EXHAUSTED, "no memory for expert rows (%zu bytes)", bytes);
        scratch->bytes = bytes;
    }
    if (n_pieces > scratch->n_pieces) {
        struct product *products =
            mem_realloc(scratch->products, (size_t)n_pieces * 2 * sizeof *products);
        if (products == NULL) return err_nomem(why, "expert products");
        scratch->products = products;
        struct expert_piece *pieces = mem_realloc(scratch->pieces, n_pieces * sizeof *pieces);
        if (pieces == NULL) return err_nomem(why, "expert pieces");
        scratch->pieces = pieces;
        scratch->n_pieces = n_pieces;
    }
    return ERR_OK;
}

static const struct expert_piece *find_piece(const struct wave *wave, uint32_t row)
{
    uint32_t low = 0, high = wave->n_pieces;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (wave->pieces[middle].row0 <= row)
            low = middle;
        else
            high = middle;
    }
    return &wave->pieces[low];
}

static const float *expert_bias(const struct expert *e, size_t off)
{
    return (const float *)(const void *)(e->region + off);
}

static void gather_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct wave *wave = ctx;
    const struct expert_piece *piece = find_piece(wave, row);
    uint32_t i = row - piece->row0;
    uint32_t source = piece->task->row_index[piece->first + i];
    assert(source < piece->task->in->m);
    rows_copy(&piece->in, i, piece->task->in, source);
}

static void activate_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct wave *wave = ctx;
    const struct expert_piece *piece = find_piece(wave, row);
    const struct expert_geometry *g = wave->g;
    const struct hparams *hp = wave->s->hp;
    size_t width = g->gate.n;
    float *gate = wave->gate + row * width, *up = wave->up + row * width;
    if (hp->expert_bias) {
        wave->s->k->add(expert_bias(piece->expert, g->gate_bias_off), width, gate);
        wave->s->k->add(expert_bias(piece->expert, g->up_bias_off), width, up);
    }
    ffn_activate(wave->s->k, hp, gate, up, width);
    rows_set(wave->s->k, &piece->mid, row - piece->row0, gate);
}

static void deliver_row(void *ctx, uint32_t row, unsigned worker)
{
    (void)worker;
    const struct wave *wave = ctx;
    const struct expert_piece *piece = find_piece(wave, row);
    uint32_t width = wave->g->down.n;
    float *y = wave->out + (size_t)row * width;
    if (wave->s->hp->expert_bias)
        wave->s->k->add(expert_bias(piece->expert, wave->g->down_bias_off), width, y);
    void *to = piece->task->out[piece->first + row - piece->row0];
    if (wave->s->reply_bf16)
        wave->s->k->round_bf16(y, width, to);
    else
        memcpy(to, y, width * sizeof *y);
}

static uint8_t *take(uint8_t **at, size_t bytes)
{
    uint8_t *p = *at;
    *at += round_up_64(bytes);
    return p;
}

/* Divide the scratch among the pieces. */
static void lay_out(struct wave *wave)
{
    struct expert_store *s = wave->s;
    const struct expert_geometry *g = wave->g;
    uint8_t *at = s->scratch.data;
    wave->kernel.data = take(&at, wave->kernel.each * wave->kernel.n_workers);
    wave->gate = (float *)(void *)take(&at, (size_t)wave->n_rows * g->gate.n * sizeof(float));
    wave->up = (float *)(void *)take(&at, (size_t)wave->n_rows * g->gate.n * sizeof(float));
    wave->out = (float *)(void *)take(&at, (size_t)wave->n_rows * g->down.n * sizeof(float));
    for (uint32_t i = 0; i < wave->n_pieces; i++) {
        struct expert_piece *piece = &wave->pieces[i];
        piece->in = rows_at(take(&at, rows_bytes(g->gate.input, piece->m, g->gate.k)),
                            g->gate.input, piece->m, g->gate.k);
        piece->mid = rows_at(take(&at, rows_bytes(g->down.input, piece->m, g->down.k)),
                             g->down.input, piece->m, g->down.k);
    }
    assert((size_t)(at - s->scratch.data) <= s->scratch.bytes);
}

static void run_wave(struct wave *wave, struct workers *w)
{
    struct expert_store *s = wave->s;
    const struct expert_geometry *g = wave->g;
    struct product *products = s->scratch.products;
    lay_out(wave);
    run_rows(w, wave->n_rows, g->gate.k / 4, gather_row, wave);
    uint32_t n = 0;
    for (uint32_t i = 0; i < wave->n_pieces; i++) {
        struct expert_piece *piece = &wave->pieces[i];
        size_t off = (size_t)piece->row0 * g->gate.n;
        piece->gate = expert_matrix(&g->gate, piece->expert->region, 0);
        piece->up = expert_matrix(&g->up, piece->expert->region, g->up_off);
        piece->down = expert_matrix(&g->down, piece->expert->region, g->down_off);
        products[n++] = (struct product){
            .w = &piece->gate, .x = piece->in, .y = wave->gate + off, .ldy = g->gate.n};
        if (g->up.n > 0)
            products[n++] = (struct product){
                .w = &piece->up, .x = piece->in, .y = wave->up + off, .ldy = g->gate.n};
    }
    products_run(s->k, products, n, &wave->kernel, w);
    run_rows(w, wave->n_rows, g->gate.n, activate_row, wave);
    for (uint32_t i = 0; i < wave->n_pieces; i++) {
        struct expert_piece *piece = &wave->pieces[i];
        products[i] = (struct product){.w = &piece->down,
                                       .x = piece->mid,
                                       .y = wave->out + (size_t)piece->row0 * g->down.n,
                                       .ldy = g->down.n};
    }
    products_run(s->k, products, wave->n_pieces, &wave->kernel, w);
    run_rows(w, wave->n_rows, g->down.n / 4, deliver_row, wave);
}

/* Walks over the tasks piece by piece. */
struct cursor {
    uint32_t task, row;
};

/* Fill a wave from the cursor on, up to max_rows rows; pieces NULL: only count. */
static void fill_wave(struct expert_store *s, uint32_t layer, const struct expert_task *tasks,
                      uint32_t n_tasks, struct cursor *at, uint32_t max_rows, uint32_t piece_max,
                      struct expert_piece *pieces, uint32_t *n_pieces, uint32_t *n_rows)
{
    *n_pieces = *n_rows = 0;
    while (at->task < n_tasks && *n_rows < max_rows) {
        const struct expert_task *task = &tasks[at->task];
        uint32_t m = task->m - at->row, room = max_rows - *n_rows;
        if (m > piece_max) m = piece_max;
        if (m > room) m = room;
        if (pieces != NULL)
            pieces[*n_pieces] = (struct expert_piece){.task = task,
                                                      .expert = expert_at(s, layer, task->expert),
                                                      .first = at->row,
                                                      .m = m,
                                                      .row0 = *n_rows};
        ++*n_pieces;
        *n_rows += m;
        at->row += m;
        if (at->row == task->m) *at = (struct cursor){at->task + 1, 0};
    }
}

enum err_code expert_store_run(struct expert_store *s, uint32_t layer,
                               const struct expert_task *tasks, uint32_t n_tasks, struct workers *w,
                               struct err *why)
{
    const struct expert_geometry *g = &s->layers[layer];
    uint64_t total = 0;
    for (uint32_t i = 0; i < n_tasks; i++) {
        assert(tasks[i].m >= 1 && expert_store_holds(s, layer, tasks[i].expert));
        assert(tasks[i].in->format == g->gate.input && tasks[i].in->k == g->gate.k);
        total += tasks[i].m;
    }
    if (total == 0) return ERR_OK;
    uint32_t piece_max = piece_rows(g);
    size_t fit = WAVE_BYTES / piece_bytes(g, 1);
    uint32_t max_rows = fit < piece_max ? piece_max : fit > total ? (uint32_t)total : (uint32_t)fit;
    if (max_rows > total) max_rows = (uint32_t)total;

    /* Room for the largest wave: every piece may lose a line per buffer to alignment. */
    uint32_t most_pieces = 0;
    struct cursor at = {0, 0};
    while (at.task < n_tasks) {
        uint32_t n_pieces, n_rows;
        fill_wave(s, layer, tasks, n_tasks, &at, max_rows, piece_max, NULL, &n_pieces, &n_rows);
        if (n_pieces > most_pieces) most_pieces = n_pieces;
    }
    struct wave wave = {
        .s = s, .g = g, .kernel = {.each = kernel_bytes(g), .n_workers = workers_count(w)}};
    size_t bytes = piece_bytes(g, 1) * max_rows + ((size_t)most_pieces * 4 + 4) * 64 +
                   wave.kernel.each * wave.kernel.n_workers;
    enum err_code rc = grow(&s->scratch, bytes, most_pieces, why);
    if (rc != ERR_OK) return rc;
    wave.pieces = s->scratch.pieces;

    at = (struct cursor){0, 0};
    while (at.task < n_tasks) {
        fill_wave(s, layer, tasks, n_tasks, &at, max_rows, piece_max, wave.pieces, &wave.n_pieces,
                  &wave.n_rows);
        run_wave(&wave, w);
    }
    return ERR_OK;
}
