#!/usr/bin/env python3
"""What the build compiles without a warning, does clang too? Every file of the build, tests included, is read by the other
compiler with the same options; nothing is generated, so that this takes seconds.

    tests/lint/clang.py [BUILD]          default: build; it must have been configured and built

Standard library only; `MOESAIC_CLANG` names another clang than clang-14.
"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLANG = os.environ.get("MOESAIC_CLANG", "clang-14")
OTHERS = ("-fdiagnostics",)  # options that only the build's own compiler has


def command(entry):
    """The entry's command for clang, checking alone."""
    words, out = shlex.split(entry["command"]), [CLANG, "-fsyntax-only", "-Werror"]
    at = next(i for i, w in enumerate(words) if w.startswith("-"))  # behind the compiler and its launcher
    skip = False
    for word in words[at:]:
        if skip or word in ("-c", "-Werror") or word.startswith(OTHERS):
            skip = False
        elif word == "-o":
            skip = True
        else:
            out.append(word)
    return out


def check(entry):
    done = subprocess.run(command(entry), cwd=entry["directory"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else done.stdout


def main():
    build = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build")
    entries = json.loads((build / "compile_commands.json").read_text())
    entries = [e for e in entries if not pathlib.Path(e["file"]).is_relative_to(build)]  # protoc-c's are nobody's
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = list(pool.map(check, entries))
    for entry, text in zip(entries, said):
        if text:
            print(f"FAILED {os.path.relpath(entry['file'], ROOT)}\n{text[:2000]}")
    n_bad = sum(t is not None for t in said)
    print(f"{len(entries)} files, {CLANG}")
    print(f"{int(n_bad == 0)} passed, {n_bad} failed")
    return 1 if n_bad or not entries else 0


if __name__ == "__main__":
    sys.exit(main())
