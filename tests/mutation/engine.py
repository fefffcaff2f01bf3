#!/usr/bin/env python3
"""Do the simulator and the unit tests see a wrong line in engine, dispatch, placement and combine? Each mutant must turn one red.

    tests/mutation/engine.py [--list] [--check] [--mechanical N] [--seed S] [--simulated N] [--sanitize]
                             [WORD...]                only mutants with one of the words

Half of the mutants are written by hand where a mistake would be plausible; the others the script makes from the sources: a flipped
comparison, off by one, a dropped statement, a negated condition, && for || and back. Which ones follows from the seed and the
line alone, so that a change elsewhere leaves the choice as it is. One that does not compile, or compiles to the same code, is
replaced by the next. The tree is copied once; each mutant is built into the copy and taken out again.
Ends with "N passed, N failed"; a mutant that survives and is not in EQUIVALENT is a failure. Standard library only.
"""
import argparse
import collections
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

from planting import ROOT, NotThere, Tree, check

ENGINE_TESTS = ["test_sim", "test_engine", "test_engine_preemption", "test_dispatch", "test_placement", "test_kv_cache"]
COMBINE_TESTS = ["test_golden", "test_same_bits"]
COMBINE = "coordinator/model/pass.c"
TIMEOUT_S = 60
MEMORY = 8 << 30

FILES = [
    "coordinator/cluster/dispatch.c", "coordinator/cluster/dispatch_cut.c", "coordinator/cluster/placement.c",
    "coordinator/cluster/step_pool.c", "coordinator/engine/engine.c", "coordinator/engine/kv_cache.c", "coordinator/engine/pass.c",
    "coordinator/engine/progress.c", "coordinator/engine/scheduler.c", "coordinator/engine/sequence.c", COMBINE
]

# What is wrong: (file, old, new), old there exactly once.
HAND = {
    "engine: who leaves during a pass gives its blocks back at once":
        ("coordinator/engine/scheduler.c", "        q->state = SEQUENCE_GONE;\n    else\n        scheduler_release",
         "        q->state = SEQUENCE_GONE;\n    scheduler_release"),
    "engine: the deadline of a new request sets no timer":
        ("coordinator/engine/engine.c", "    if (q->deadline_us < e->deadline_us) e->deadline_us = q->deadline_us;\n    e->look", "    e->look"),
    "engine: a slot that became free is not looked at":
        ("coordinator/engine/progress.c", "    pass_clear(p);\n    e->look = true;", "    pass_clear(p);"),
    "engine: a pass with an unsent expert goes on":
        ("coordinator/engine/progress.c", "dispatch_n_open(e->dispatch, p->slot) > 0) {",
         "dispatch_n_open(e->dispatch, p->slot) > dispatch_n_unsent(e->dispatch, p->slot)) {"),
    "scheduler: one that was preempted goes to the end of the queue":
        ("coordinator/engine/scheduler.c", "    list_insert_after(where, &q->link);\n    s->n_waiting++;",
         "    list_append(&s->waiting, &q->link);\n    s->n_waiting++;"),
    "scheduler: one that was preempted keeps its count of computed positions":
        ("coordinator/engine/scheduler.c", "&q->n_blocks);\n    q->n_kv = 0;", "&q->n_blocks);"),
    "scheduler: the keys are computed again one token before the long rope begins":
        ("coordinator/engine/progress.c", "q->n_tokens == p->rope_length + 1;", "q->n_tokens == p->rope_length;"),
    "scheduler: rows of encoder and decoder share a pass":
        ("coordinator/engine/scheduler.c", "    if (p->n_rows > 0 && encodes != p->encodes) return 0;\n", ""),
    "dispatch: dead rows of a step that is taken back stay open":
        ("coordinator/cluster/dispatch.c", "            lot->n_open--;\n        } else {", "        } else {"),
    "dispatch: what waits for a stream that is lost stays in its queue":
        ("coordinator/cluster/dispatch.c", "    while (!list_empty(&l->queued))\n        take_back",
         "    if (now_us == 0)\n        take_back"),
    "dispatch: a new placement keeps what was tried with the old one":
        ("coordinator/cluster/dispatch.c", "        memset(d->lots[i].tried, 0, d->shape.n_experts * sizeof *d->lots[i].tried);\n", ""),
    "dispatch: a late answer is no sign of life":
        ("coordinator/cluster/dispatch.c", "        if (s == NULL) hear_from(d, step);\n", ""),
    "retry: a node that refused is asked again at once":
        ("coordinator/cluster/dispatch.c", "    dispatch_mark_tried(d, lot, s);\n    take_back(d, s);\n    dispatch_place", "    take_back(d, s);\n    dispatch_place"),
    "retry: what is asked again has no timer":
        ("coordinator/cluster/dispatch_cut.c", "    if (d->timer_us > lot->retry_us) d->timer_us = lot->retry_us;\n}", "}"),
    "cut: a row that is in two pieces is sent with the first only":
        ("coordinator/cluster/dispatch_cut.c", "            rows = 0;\n            is_new = true;\n", "            rows = 0;\n"),
    "cut: the first row of a piece is in all pieces":
        ("coordinator/cluster/dispatch_cut.c", "        d->row_bits[w] = 0;\n", "        d->row_bits[w] &= 1;\n"),
    "steps: numbers are given twice":
        ("coordinator/cluster/step_pool.c", ".id = ++p->serial * STEP_POOL_MAX", ".id = (p->serial = 1) * STEP_POOL_MAX"),
    "placement: the replicas turn without an end":
        ("coordinator/cluster/placement.c", "                    at = (at + 1) % count;\n", "                    at = (at + 2) % count;\n"),
    "combine: a row takes the weights of the first":
        (COMBINE, "        float gate = hp->router.weights_input ? 1.0f : p->b.gates[i];",
         "        float gate = hp->router.weights_input ? 1.0f : p->b.gates[i - row * top_k];"),
    "combine: the last expert of a row is left out":
        (COMBINE, "    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {\n        float gate", "    for (size_t i = row * top_k; i + 1 < (row + 1) * top_k; i++) {\n        float gate"),
    "combine: experts are added backwards":
        (COMBINE, "    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {\n        float gate", "    for (size_t i = (row + 1) * top_k; i-- > row * top_k;) {\n        float gate"),
    "combine: a row begins with the sum of the pass before":
        (COMBINE, "    memset(acc, 0, d * sizeof *acc);\n    for (size_t i = row * top_k;", "    for (size_t i = row * top_k;"),
}

# Mutants that change nothing that anybody could see: "file function: old => new" and why. Without spaces at the ends.
EQUIVALENT = {
    "engine.c engine_step: if (ev->now_us > e->now_us) e->now_us = ev->now_us; => "
    "if (ev->now_us >= e->now_us) e->now_us = ev->now_us;":
        "an equal time is set to itself",
    "step_pool.c add_step: list_init(&s->in_lot); => nothing": "the link is first written when the step joins its lot",
    "step_pool.c add_step: list_init(&s->in_lane); => nothing": "the link is first written when the step joins its lane",
}

MUTANT = collections.namedtuple("MUTANT", "name kind edits file")


# ---- mutants made from the sources -------------------------------------------------------------------------------------------

FLIPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
DECLARATION = re.compile(r"\s+((static|const|struct|enum|uint\w+|int\w*|size_t|bool|double|float|char|va_list)\b|\w+ \*)")
SILENT = re.compile(r"\b(assert|err_set|err_nomem|err_wrap|engine_fail|vsnprintf)\(")


def code_lines(path, text):
    """(line number, function, how much of the line may be changed) of each line of code, without asserts and texts."""
    function, inside, silent, comment = "", False, False, False
    for at, line in enumerate(text.split("\n")):
        if comment or line.lstrip().startswith("/*"):
            comment = "*/" not in line
            continue
        if not inside:
            named = re.match(r"[a-z].*?\b(\w+)\(", line)
            function = named.group(1) if named else function
            inside = line == "{"
            continue
        if line == "}":
            inside = False
            continue
        code = line.split("/*")[0].rstrip()
        if silent:
            silent = not code.endswith(";")
            continue
        found = SILENT.search(code)
        if found:
            silent = not code.endswith(";")
            code = code[:found.start()] if code.lstrip().startswith("if (") else ""
        if path == COMBINE and function != "combine_row":
            continue
        if code.strip() and '"' not in code:
            yield at, function, code


def negated(code):
    """The line with the condition of its `if` negated; None where it does not end on this line."""
    begin = code.find("if (")
    if begin < 0:
        return None
    depth = 0
    for i in range(begin + 3, len(code)):
        depth += (code[i] == "(") - (code[i] == ")")
        if depth == 0:
            return code[:begin + 4] + "!(" + code[begin + 4:i] + ")" + code[i:]
    return None


def changes(code, before):
    """(operator, changed code) of one line; `before` is the line before it."""
    for m in re.finditer(r" (<=|>=|==|!=|<|>) ", code):
        yield "comparison", code[:m.start(1)] + FLIPS[m.group(1)] + code[m.end(1):]
    for m in re.finditer(r" [+-] 1\b", code):
        yield "off by one", code[:m.start()] + code[m.end():]
    for m in re.finditer(r"= 0([;,])", code):
        yield "off by one", code[:m.start()] + "= 1" + code[m.start(1):]
    whole = re.fullmatch(r"\s+[^{}]*;", code) and code.count("(") == code.count(")") and not code.lstrip().startswith("for (")
    if whole and not DECLARATION.match(code) and re.search(r"[;{}:]$|^$", before.split("/*")[0].rstrip()):
        yield "dropped", re.match(r"\s+", code).group() + ";"
    if negated(code):
        yield "negated", negated(code)
    for m in re.finditer(r" (&&|\|\|)( |$)", code):
        yield "and/or", code[:m.start(1)] + ("||" if m.group(1) == "&&" else "&&") + code[m.end(1):]


def mechanical(seed):
    """All mutants by operator, each list in the order that the seed gives it."""
    lists = collections.defaultdict(list)
    for path in FILES:
        text = (ROOT / path).read_text()
        lines = text.split("\n")
        for at, function, code in code_lines(path, text):
            for kind, changed in changes(code, lines[at - 1]):
                new = lines[:at] + [changed + lines[at][len(code):]] + lines[at + 1:]
                short = changed.strip() if kind != "dropped" else "nothing"
                name = f"{path.split('/')[-1]} {function}: {code.strip()} => {short}"
                lists[kind].append(MUTANT(name, kind, [(path, text, "\n".join(new))], path))
    for kind in lists:
        lists[kind].sort(key=lambda m: hashlib.sha256(f"{seed} {m.name}".encode()).digest())
    return lists


# ---- trying one ----------------------------------------------------------------------------------------------------------------

def limit(limit_memory):
    if limit_memory:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_tests(tree, tests, simulated):
    """[(test, what it says)] of those that are red."""
    red = []
    for test in tests:
        env = {**os.environ, "SIM_SEEDS": str(simulated)}
        env.pop("SIM_SEED", None)
        try:
            done = subprocess.run([tree.folder / "build/tests" / test], cwd=tree.folder, env=env, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=TIMEOUT_S, preexec_fn=lambda: limit(tree.limit_memory))
        except subprocess.TimeoutExpired:
            return red + [(test, "it does not end")]
        if done.returncode == 0:
            continue
        text = done.stdout.decode(errors="replace")
        seed = re.findall(r"^seed \d+: [^(\n]*", text, re.M)
        failed = re.findall(r"\[.*?FAIL.*?\] \S*?::(\w+)", text)
        red.append((test, (seed or failed or ["it died"])[0]))
    return red


class Tried:
    def __init__(self, tree, simulated):
        self.tree, self.simulated = tree, simulated
        self.objects = {f: self.object_of(f) for f in FILES}

    def object_of(self, path):
        found = list((self.tree.folder / "build").glob(f"**/{path}.o"))
        return [f.read_bytes() for f in sorted(found)]

    def try_mutant(self, m):
        """"caught", "survived", "equivalent" or "skipped", and the reason."""
        tests = COMBINE_TESTS if m.file == COMBINE else ENGINE_TESTS
        with self.tree.planted(m.edits):
            wrong = self.tree.build(tests)
            if wrong is not None:
                return "skipped", "it does not compile" if m.kind != "hand" else wrong
            if self.object_of(m.file) == self.objects[m.file]:
                return "skipped", "it compiles to the same code"
            red = run_tests(self.tree, tests, self.simulated)
        if red:
            return "caught", "; ".join(f"{test}: {what[:110]}" if i == 0 else test for i, (test, what) in enumerate(red))
        return ("equivalent", EQUIVALENT[m.name]) if m.name in EQUIVALENT else ("survived", "")


def choose(args):
    """Hand-written mutants, then mechanical ones in turn of their operators, more than are wanted."""
    def wanted(m):
        return not args.words or any(w in m.name for w in args.words)
    hand = [MUTANT(name, "hand", [edit], edit[0]) for name, edit in HAND.items()]
    lists = [list(filter(wanted, l)) for _, l in sorted(mechanical(args.seed).items())]
    turns = [l[i] for i in range(max(map(len, lists))) for l in lists if i < len(l)]
    return list(filter(wanted, hand)), turns


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true", help="only say whether each mutant by hand still finds its place")
    parser.add_argument("--mechanical", type=int, default=26)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--simulated", type=int, default=1000)
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan: sees what leaks or reads out of bounds")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    if args.check:
        return check({name: [edit] for name, edit in HAND.items()})
    hand, turns = choose(args)
    if args.list:
        print("\n".join(f"{m.kind:11} {m.name}" for m in hand + turns))
        return 0
    counts = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="moesaic-mutants-") as folder:
        tree = Tree(folder, *(["-DMOESAIC_SANITIZE=ON"] if args.sanitize else []))
        tree.limit_memory = not args.sanitize  # the sanitizer maps terabytes
        tests = ENGINE_TESTS + (COMBINE_TESTS if any(m.file == COMBINE for m in hand + turns) else [])
        red = tree.build(tests) or run_tests(tree, tests, args.simulated)
        if red:
            print("without a mutant:", red)
            return 1
        print(f"without a mutant all is green; mechanical mutants of seed {args.seed}", flush=True)
        tried = Tried(tree, args.simulated)
        made = 0
        for m in hand + turns:
            if m.kind != "hand" and made >= args.mechanical:
                break
            began = time.monotonic()
            try:
                result, why = tried.try_mutant(m)
            except NotThere as e:
                result, why = "skipped", str(e)
            made += m.kind != "hand" and result != "skipped"
            if m.kind == "hand" and result == "skipped":
                result = "survived"
            counts[result] += 1
            print(f"  {result.upper():10} [{m.kind}] {m.name} ({time.monotonic() - began:.0f} s)\n             {why}", flush=True)
    failed = counts["survived"]
    print(f"{counts['caught']} caught, {counts['equivalent']} equivalent, {counts['skipped']} skipped")
    print(f"{counts['caught'] + counts['equivalent']} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
