#!/usr/bin/env python3
"""Do the seeds of every fuzz target still reach its decoder?

    tests/fuzz/coverage.py [--lines] [--keep-few FOLDER] [NOUN...]

Runs each target over tests/fuzz/seeds/NOUN with its allocations failing in turn, and counts the branches taken in the
files that its `// covers:` lines name (clang's source-based coverage; nothing is left out of the count). A target fails
below 90 % of them all together, or 80 % of one file's. `--lines` lists the branches that were not taken. `--keep-few FOLDER` is for whoever
adds seeds: of the inputs in FOLDER/NOUN (what a long run has found) it copies those to the seeds that take a branch
which the seeds do not yet take. Standard library only.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/fuzz"
PROGRAMS = pathlib.Path(os.environ.get("MOESAIC_FUZZ_BIN", ROOT / "build-fuzz/fuzz"))
LEAST = 0.90
LEAST_OF_A_FILE = 0.80
SEEDS_MAX_BYTES = 8192  # a seed is meant to be read


def covered_files(noun):
    """The files of the `// covers:` lines; the words may be in one line or several."""
    text = (HERE / f"fuzz_{noun}.c").read_text()
    return [name for line in re.findall(r"^// covers: *(.*)$", text, re.M) for name in line.split()]


def run(noun, inputs, folder):
    """Run a target over files. Answers its raw profile, or raises RuntimeError with what it said."""
    profile = pathlib.Path(folder) / "raw"
    env = dict(os.environ, LLVM_PROFILE_FILE=str(profile), MOESAIC_FUZZ_ALLOCATIONS="1", TMPDIR=str(folder))
    done = subprocess.run([PROGRAMS / f"fuzz_{noun}", "-rss_limit_mb=2048", "-timeout=60", *map(str, inputs)], env=env, cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(done.stdout.decode(errors="replace")[-3000:])
    return profile


def branches(noun, raw, folder):
    """(file, line, column, way) -> was it taken, for the files that the noun covers."""
    merged = pathlib.Path(folder) / "merged"
    subprocess.run(["llvm-profdata-14", "merge", "-sparse", "-o", merged, raw], check=True)
    files = covered_files(noun)
    report = subprocess.run(["llvm-cov-14", "export", "-format=text", f"-instr-profile={merged}", PROGRAMS / f"fuzz_{noun}"],
                            check=True, stdout=subprocess.PIPE).stdout
    taken = {}
    for function in json.loads(report)["data"][0]["functions"]:
        for line, column, _, _, n_true, n_false, file_id, _, _ in function.get("branches", []):
            # A compiler cache may have made the path relative to its build folder.
            name = os.path.relpath(os.path.normpath(PROGRAMS.parent / function["filenames"][file_id]), ROOT)
            if name not in files:
                continue
            for way, n in (("true", n_true), ("false", n_false)):
                key = (name, line, column, way)
                taken[key] = taken.get(key, False) or n > 0
    return taken


def measure(noun, inputs):
    with tempfile.TemporaryDirectory(prefix="moesaic-fuzz-") as folder:
        return branches(noun, run(noun, inputs, folder), folder)


def seeds_of(noun):
    return sorted(p for p in (HERE / "seeds" / noun).glob("*") if p.is_file())


def keep_few(noun, found):
    """Copy what adds a branch, smallest inputs first."""
    have = {k for k, taken in measure(noun, seeds_of(noun)).items() if taken} if seeds_of(noun) else set()
    candidates = sorted((p for p in found.glob("*") if 0 < p.stat().st_size <= SEEDS_MAX_BYTES), key=lambda p: (p.stat().st_size, p.name))
    n_kept = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, taken in zip(candidates, pool.map(lambda p: measure(noun, [p]), candidates)):
            new = {k for k, v in taken.items() if v} - have
            if new:
                have |= new
                (HERE / "seeds" / noun).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, HERE / "seeds" / noun / path.name[:24])
                n_kept += 1
    print(f"  {noun}: {n_kept} of {len(candidates)} kept as seeds")


def check(noun, show_lines):
    began = time.monotonic()
    try:
        taken = measure(noun, seeds_of(noun))
    except RuntimeError as e:
        print(f"  FAILED  {noun}\n{e}")
        return False
    good = True
    parts = []
    for name in covered_files(noun):
        own = {k: v for k, v in taken.items() if k[0] == name}
        share = sum(own.values()) / len(own) if own else 0
        good = good and share >= LEAST_OF_A_FILE
        parts.append(f"{name.rsplit('/', 1)[1]} {100 * share:.1f} % of {len(own)}")
        if show_lines:
            for _, line, column, way in sorted(k for k, v in own.items() if not v):
                print(f"    {name}:{line}:{column} never {way}")
    share = sum(taken.values()) / len(taken)
    good = good and share >= LEAST
    print(f"  {'passed' if good else 'FAILED'}  {noun}: {len(seeds_of(noun))} seeds, {time.monotonic() - began:.1f} s: "
          f"{100 * share:.1f} %; {', '.join(parts)}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--keep-few", type=pathlib.Path)
    parser.add_argument("nouns", nargs="*")
    args = parser.parse_args()
    nouns = args.nouns or sorted(p.stem.removeprefix("fuzz_") for p in HERE.glob("fuzz_*.c"))
    if args.keep_few:
        for noun in nouns:
            keep_few(noun, args.keep_few / noun)
        return 0
    results = [check(noun, args.lines) for noun in nouns]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
