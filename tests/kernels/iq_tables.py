#!/usr/bin/env python3
"""The code books of common/tensor/iq_tables.c against the reference decoder, asked for every entry.

    iq_tables.py            compares; exit code 0: all equal
    iq_tables.py --print    prints the file anew

Needs gguf-py (pip install gguf). Each entry is found from outside: a block of zeros with scale 1 that names it is decoded,
and the values it gives are turned back into codes. Nothing of the decoder's own text is read.
"""
import pathlib
import re
import sys

import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize

ONE = np.float16(1).tobytes()
IQ2 = [8, 25, 43]
IQ3 = [4, 12, 20, 28, 36, 44, 52, 62]
# name, type, block bytes, entries, where the low 8 bits and the bits above them go, elements, unit of the values, levels
BOOKS = [
    ("iq2_xxs_book", T.IQ2_XXS, 66, 256, 2, None, 8, 1 / 8, IQ2),
    ("iq2_xs_book", T.IQ2_XS, 74, 512, 2, 3, 8, 1 / 8, IQ2),
    ("iq2_s_book", T.IQ2_S, 82, 1024, 2, 66, 8, 1 / 8, IQ2),
    ("iq3_xxs_book", T.IQ3_XXS, 98, 256, 2, None, 4, 1 / 4, IQ3),
    ("iq3_s_book", T.IQ3_S, 110, 512, 2, 66, 4, 1, [2 * i + 1 for i in range(8)]),
    ("iq1_book", T.IQ1_S, 50, 2048, 2, 34, 8, 1, [i - 1 + 1 / 8 for i in range(3)]),
]


def probe(kind, size, n, low, high, elements, unit, levels):
    blocks = np.zeros((n, size), np.uint8)
    blocks[:, :2] = np.frombuffer(ONE, np.uint8)
    index = np.arange(n)
    blocks[:, low] = index & 255
    if high is not None:
        blocks[:, high] = index >> 8
    values = dequantize(blocks, kind)[:, :elements] / unit
    bits = 2 if elements == 8 else 3
    return [sum(levels.index(v) << bits * i for i, v in enumerate(row)) for row in values.tolist()]


def text(name, entries):
    lines = [f"const uint16_t {name}[{len(entries)}] = {{"]
    for i in range(0, len(entries), 12):
        lines.append("    " + " ".join(f"0x{e:04x}," for e in entries[i:i + 12]))
    return "\n".join(lines + ["};"])


def main():
    books = {name: probe(*rest) for name, *rest in BOOKS}
    if "--print" in sys.argv:
        print("/* Printed by tests/kernels/iq_tables.py, which also compares it with the reference decoder's values. */\n"
              '#include "common/tensor/iq_tables.h"\n\n/* clang-format off */')
        print("\n\n".join(text(*book) for book in books.items()))
        return 0
    source = (pathlib.Path(__file__).resolve().parents[2] / "common/tensor/iq_tables.c").read_text()
    failed = 0
    for name, want in books.items():
        body = re.search(rf"{name}\[\d+\] = {{(.*?)}};", source, re.S)
        got = [int(x, 16) for x in re.findall(r"0x[0-9a-f]+", body[1])] if body else []
        print(f"  {'passed' if got == want else 'FAILED'}  {name}: {len(want)} entries")
        failed += got != want
    print(f"{len(books) - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
