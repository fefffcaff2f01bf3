"""The Q8_0 product once more, from its written definition, in exact arithmetic: every step is computed as a
fraction and rounded to f32 where the definition rounds. Slow, and independent of the C kernels.

    quantize_row(x)          -> (q, d)      an input row: int8 per value, one f32 scale per 32
    q8_0_blocks(w)           -> [(d, q)]    a row of weights as ggml stores it: f16 scale, 32 int8
    matvec(weights, x)       -> [y]         weights: list of q8_0_blocks(...), x: a row of f32 values

All numbers are Python floats that hold f32 values exactly.
    --selftest-vector   print hex bits for seeded inputs; tests/kernels/test_q8_reference.c makes the same ones.
"""

import struct
import sys
from fractions import Fraction

BLOCK = 32


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def from_bits(u):
    return struct.unpack("<f", struct.pack("<I", u))[0]


def _round(x, mantissa_bits, least_exponent):
    """Fraction -> the nearest multiple of a power of two that the format has, ties to even."""
    if x == 0:
        return Fraction(0)
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - mantissa_bits, least_exponent)
    whole = round(magnitude / unit)  # Python rounds half to even
    return whole * unit if x > 0 else -whole * unit


def f32(x):
    return _round(Fraction(x), 23, -149)


def f16(x):
    return _round(Fraction(x), 10, -24)


def quantize_row(x):
    q, d = [], []
    for b in range(0, len(x), BLOCK):
        block = [Fraction(v) for v in x[b : b + BLOCK]]
        amax = max(abs(v) for v in block)
        if amax < Fraction(2) ** -100:
            amax = Fraction(0)
        d.append(float(f32(amax / 127)))
        inverse = f32(Fraction(127) / amax) if amax else Fraction(0)
        q += [round(f32(v * inverse)) for v in block]  # half to even
    return q, d


def q8_0_blocks(w):
    """ggml's reference quantiser: the inverse is of the unrounded scale, halves go away from zero."""
    out = []
    for b in range(0, len(w), BLOCK):
        block = [Fraction(v) for v in w[b : b + BLOCK]]
        d = f32(max(abs(v) for v in block) / 127)
        inverse = f32(1 / d) if d else Fraction(0)
        q = []
        for v in block:
            scaled = f32(v * inverse)
            whole = int(abs(scaled) + Fraction(1, 2))
            q.append(whole if scaled >= 0 else -whole)
        out.append((float(f16(d)), q))
    return out


def matvec(weights, x):
    q, d = quantize_row(x)
    y = []
    for row in weights:
        acc = Fraction(0)
        for b, (wd, w) in enumerate(row):
            dot = sum(a * c for a, c in zip(w, q[BLOCK * b : BLOCK * (b + 1)]))
            scale = f32(Fraction(wd) * Fraction(d[b]))
            acc = f32(dot * scale + acc)  # fused: one rounding
        y.append(float(acc))
    return y


def _numbers(seed, n):
    """A linear congruential generator: multiples of 2^-15 in -1..1, each 32 of them scaled by another power of two."""
    state, out = seed, []
    for i in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        scale = (i // BLOCK) % 7 - 3
        out.append(((state >> 16) - 32768) / 32768.0 * 2.0**scale)
    return out


def selftest_vector(features=5, k=160):
    weights = [q8_0_blocks(_numbers(100 + j, k)) for j in range(features)]
    x = _numbers(7, k)
    q, d = quantize_row(x)
    for value in q:
        print("q %08x" % (value & 0xFFFFFFFF))
    for value in d:
        print("d %08x" % bits(value))
    for row in weights:
        for scale, quants in row:
            print("w %08x" % bits(scale))
            print("s %08x" % (sum((i + 1) * v for i, v in enumerate(quants)) & 0xFFFFFFFF))
    for value in matvec(weights, x):
        print("y %08x" % bits(value))


if __name__ == "__main__":
    if sys.argv[1:] != ["--selftest-vector"]:
        sys.exit(__doc__)
    selftest_vector()
