"""The products of all block formats once more, from their written definition (common/kernels/README.md), in exact arithmetic:
every step is computed as a fraction and rounded to f32 where the definition rounds. Slow, and independent of the C kernels: it
reads a file's blocks by itself.

    matvec(type, row_of_blocks, q, d)    one output, for an input row quantized by q8_reference.quantize_row
    --selftest-vector                    print hex bits for seeded blocks and rows; tests/kernels/test_blocks_reference.c makes the same
"""

import struct
import sys
from fractions import Fraction

from q8_reference import bits, f32, quantize_row

# type: elements, bytes of a block; where its f16 (MXFP4: E8M0) scale and its minimum stand
TYPES = {
    "Q8_0": (32, 34, 0, None),
    "Q4_0": (32, 18, 0, None),
    "Q4_1": (32, 20, 0, 2),
    "Q5_0": (32, 22, 0, None),
    "Q5_1": (32, 24, 0, 2),
    "Q4_K": (256, 144, 0, 2),
    "Q5_K": (256, 176, 0, 2),
    "Q6_K": (256, 210, 208, None),
    "MXFP4": (32, 17, 0, None),
}


def half(block, at):
    return Fraction(struct.unpack_from("<e", bytes(block), at)[0])


def nibbles(data):
    return [b & 15 for b in data] + [b >> 4 for b in data]


def fifth(data):
    word = int.from_bytes(bytes(data), "little")
    return [16 * (word >> i & 1) for i in range(32)]


def small(block):
    """Blocks of 32 -> whole weights, scale, minimum."""
    kind, b = block
    if kind == "Q8_0":
        return [x - 256 if x > 127 else x for x in b[2:]], half(b, 0), None
    if kind == "Q4_0":
        return [x - 8 for x in nibbles(b[2:])], half(b, 0), None
    if kind == "Q4_1":
        return nibbles(b[4:]), half(b, 0), half(b, 2)
    if kind == "Q5_0":
        return [x + y - 16 for x, y in zip(nibbles(b[6:]), fifth(b[2:6]))], half(b, 0), None
    if kind == "Q5_1":
        return [x + y for x, y in zip(nibbles(b[8:]), fifth(b[4:8]))], half(b, 0), half(b, 2)
    values = [0, 1, 2, 3, 4, 6, 8, 12]
    values += [-v for v in values]
    return [values[x] for x in nibbles(b[1:])], Fraction(2) ** (b[0] - 128), None


def k_scales(s):
    """Twelve bytes -> eight 6-bit scales, eight 6-bit minima."""
    scale = [s[j] & 63 for j in range(4)] + [s[j + 8] & 15 | s[j] >> 6 << 4 for j in range(4)]
    low = [s[j + 4] & 63 for j in range(4)] + [s[j + 8] >> 4 | s[j + 4] >> 6 << 4 for j in range(4)]
    return scale, low


def k_parts(kind, b):
    """Eight times: whole weights of 32, scale, minimum."""
    scale, low = k_scales(b[4:16])
    quants = b[16:] if kind == "Q4_K" else b[48:]
    for part in range(8):
        data = quants[part // 2 * 32 : part // 2 * 32 + 32]
        code = [x >> 4 if part % 2 else x & 15 for x in data]
        if kind == "Q5_K":
            code = [c + 16 * (h >> part & 1) for c, h in zip(code, b[16:48])]
        yield code, half(b, 0) * scale[part], -(half(b, 2) * low[part])


def q6_parts(b):
    """Eight times: weights of 32 times their subscale, a whole number; d."""
    for part in range(8):
        n, quarter = part // 4, part % 4
        out = []
        for i in range(32):
            x = b[64 * n + 32 * (quarter % 2) + i]
            code = (x & 15 if quarter < 2 else x >> 4) | (b[128 + 32 * n + i] >> 2 * quarter & 3) << 4
            s = b[192 + 2 * part + i // 16]
            out.append((code - 32) * (s - 256 if s > 127 else s))
        yield out, half(b, 208), None


def parts(kind, data):
    size = TYPES[kind][1]
    for at in range(0, len(data), size):
        block = data[at : at + size]
        if kind in ("Q4_K", "Q5_K"):
            yield from k_parts(kind, block)
        elif kind == "Q6_K":
            yield from q6_parts(block)
        else:
            yield small((kind, block))


def matvec(kind, data, q, d):
    acc = Fraction(0)
    for b, (weights, scale, low) in enumerate(parts(kind, data)):
        row, step = q[32 * b : 32 * b + 32], Fraction(d[b])
        dot = sum(w * x for w, x in zip(weights, row))
        assert abs(dot) < 1 << 24
        acc = f32(dot * f32(scale * step) + acc)  # fused: one rounding
        if low is not None:
            acc = f32(low * f32(step * sum(row)) + acc)
    return acc


class Stream:
    """The linear congruential generator of the C test."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 1664525 + 1013904223) & 0xFFFFFFFF
        return self.state >> 16


def make_block(kind, stream):
    _, size, scale, low = TYPES[kind]
    block = [stream.next() & 255 for _ in range(size)]
    if kind == "MXFP4":
        block[0] = 120 + block[0] % 10
        return block
    for at in (scale, low):
        if at is not None:  # an exponent of 2^-13 .. 2^2, either sign
            block[at + 1] = block[at + 1] & 0x83 | (2 + (block[at + 1] >> 2) % 16) << 2
    return block


def selftest_vector(features=3, k=512):
    for number, kind in enumerate(TYPES):
        stream = Stream(100 + number)
        elements = TYPES[kind][0]
        x = [(stream.next() - 32768) / 32768.0 * 2.0 ** (i // 32 % 7 - 3) for i in range(k)]
        q, d = quantize_row(x)
        for _ in range(features):
            data = []
            for _ in range(k // elements):
                data += make_block(kind, stream)
            print("%s %08x" % (kind, bits(float(matvec(kind, data, q, d)))))


if __name__ == "__main__":
    if sys.argv[1:] != ["--selftest-vector"]:
        sys.exit(__doc__)
    selftest_vector()
