/* bench_kernels - what the product reaches on this machine.
 *
 * usage: bench_kernels [N K]        (default 1024 2048; one thread)
 *
 * M = 1: GB/s of packed bytes over cold matrices, beside a plain read loop over the same memory.
 * Larger M: Gop/s (2 per weight and row) over one warm and over cold matrices. Best of several short pieces, because
 * neighbors on the host slow single ones down. */
// links: kernels
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/kernels/kernels.h"

#define COLD_BYTES (256u << 20)
#define PIECES     7

static const char *const pack_names[PACK_N] = {"F32", "BF16", "Q8_0"};

static double plain_read_gbs(const uint8_t *p, size_t bytes)
{
    double best = 0;
    volatile uint64_t sink;
    for (int piece = 0; piece < 3; piece++) {
        uint64_t t0 = clock_now_ns(), sum[8] = {0};
        for (size_t i = 0; i + 64 <= bytes; i += 64) {
            uint64_t line[8];
            memcpy(line, p + i, 64);
            for (int j = 0; j < 8; j++)
                sum[j] += line[j];
        }
        uint64_t t1 = clock_now_ns();
        sink = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
        double gbs = (double)bytes / (double)(t1 - t0);
        if (gbs > best) best = gbs;
    }
    (void)sink;
    return best;
}

/* Best time in ns of one product over matrices [0, count) in turn. */
static double best_ns(const struct kernels *k, struct packed w, uint32_t count, size_t bytes,
                      const struct rows *x, float *y, void *scratch)
{
    double best = 1e30;
    uint8_t *base = w.data;
    for (int piece = 0; piece < PIECES; piece++) {
        uint64_t t0 = clock_now_ns();
        for (uint32_t i = 0; i < count; i++) {
            w.data = base + i * bytes;
            k->matmul(&w, 0, w.panels, x, y, w.n, scratch);
        }
        double ns = (double)(clock_now_ns() - t0) / count;
        if (ns < best) best = ns;
    }
    return best;
}

static int bench(const struct kernels *k, enum pack_format f, uint32_t n, uint32_t width)
{
    static const uint32_t ms[] = {1, 2, 4, 8, 16, 64, 256};
    const enum row_format input[PACK_N] = {ROW_F32, ROW_BF16, ROW_Q8};
    struct packed w;
    if (!packed_shape(f, input[f], n, width, &w)) return 1;
    size_t bytes = packed_bytes(&w);
    uint32_t count = (uint32_t)(COLD_BYTES / bytes) + 1;
    w.data = mem_map(count * bytes);
    struct rows x = {.format = input[f], .m = 256, .k = width};
    x.data = mem_map(256 * row_data_bytes(x.format, width));
    x.scales = mem_map(256 * row_scale_bytes(x.format, width) + 64);
    float *y = mem_map((size_t)256 * n * sizeof *y);
    void *scratch = mem_map(matmul_scratch_bytes(&w, 256) + 64);
    if (w.data == NULL || x.data == NULL || x.scales == NULL || y == NULL || scratch == NULL)
        return 1;
    /* Small whole numbers: no denormals, no NaN, whatever the format makes of the bytes. */
    memset(w.data, 0x3c, count * bytes);
    memset(x.data, 0x3c, 256 * row_data_bytes(x.format, width));

    printf("%-5s %-5s read loop %5.1f GB/s\n", k->name, pack_names[f],
           plain_read_gbs(w.data, count * bytes));
    for (size_t i = 0; i < sizeof ms / sizeof ms[0]; i++) {
        x.m = ms[i];
        double cold = best_ns(k, w, ms[i] > 16 ? count / 8 + 1 : count, bytes, &x, y, scratch);
        double warm = best_ns(k, w, 1, bytes, &x, y, scratch);
        double ops = 2.0 * n * width * ms[i];
        printf("  M=%-4" PRIu32
               " cold %8.1f us %6.1f GB/s %7.1f Gop/s   warm %8.1f us %7.1f Gop/s\n",
               ms[i], cold / 1e3, (double)bytes / cold, ops / cold, warm / 1e3, ops / warm);
    }
    mem_unmap(w.data, count * bytes);
    mem_unmap(x.data, 256 * row_data_bytes(x.format, width));
    mem_unmap(x.scales, 256 * row_scale_bytes(x.format, width) + 64);
    mem_unmap(y, (size_t)256 * n * sizeof *y);
    mem_unmap(scratch, matmul_scratch_bytes(&w, 256) + 64);
    return 0;
}

int main(int argc, char **argv)
{
    uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1024;
    uint32_t width = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 2048;
    const struct kernels *best;
    struct err why;
    if (kernels_pick(getenv("MOESAIC_CPU"), &best, &why) != ERR_OK) {
        fprintf(stderr, "bench_kernels: %s\n", why.text);
        return 1;
    }
    int failed = 0;
    for (enum pack_format f = PACK_F32; f < PACK_N; f++)
        failed |= bench(best, f, n, width);
    return failed;
}
