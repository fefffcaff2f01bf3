#!/usr/bin/env python3
"""The include arrows of the tree, read from every #include in common/, coordinator/ and expert_node/.

What may point where is the table below; that it is also free of cycles follows from checking the arrows that are there.
Each rule is tried first on a planted violation, so that a rule that sees nothing is noticed. Standard library only.
"""
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^">]+)[">]', re.M)

# A folder may include from itself and from these.
MAY_INCLUDE = {
    "common/base": "",
    "common/sys": "common/base",
    "common/tensor": "common/base",
    "common/kernels": "common/base common/tensor",
    "common/modelfile": "common/base common/tensor",
    "common/experts": "common/base common/tensor common/kernels common/modelfile common/sys",
    "common/rpc": "common/base",
    "coordinator/text": "common/base",
    "coordinator/modeltext": "common/base common/tensor common/modelfile coordinator/text coordinator/modeltext",
    "coordinator/cluster": "common/base",
    "coordinator/engine": "common/base coordinator/cluster",
    "coordinator/model": "common/base common/tensor common/kernels common/modelfile common/sys common/experts",
    "coordinator/api": "common/base common/sys common/rpc coordinator/text coordinator/model",
    "coordinator/drivers": "common/base common/sys common/rpc common/experts coordinator/model coordinator/cluster coordinator/engine "
                           "coordinator/api",
    "coordinator": "common/base common/sys common/rpc common/tensor common/kernels common/modelfile common/experts coordinator/text coordinator/modeltext "
                   "coordinator/model coordinator/cluster coordinator/engine coordinator/drivers coordinator/api",
    "coordinator/cli": "common/base common/sys common/rpc common/tensor common/kernels common/modelfile coordinator/text "
                       "coordinator/modeltext",
    "expert_node": "common/base common/sys common/rpc common/tensor common/kernels common/modelfile common/experts",
}

# Pure: time, threads, sockets, files and chance come from outside, as events. From common/base they take only what has
# none of these (rng.h is a function of its key and counter).
PURE = ("coordinator/engine/", "coordinator/cluster/", "expert_node/node.")
PURE_SYSTEM = {"assert.h", "inttypes.h", "limits.h", "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h",
               "string.h"}
NOT_PURE = {"common/base/clock.h", "common/base/file.h", "common/base/log.h", "common/base/options.h"}
NOT_PURE_FOLDERS = ("common/sys", "common/rpc", "common/kernels", "common/tensor", "coordinator/drivers", "coordinator/api")


def read_tree():
    """path -> list of (is system, included)"""
    tree = {}
    for top in ("common", "coordinator", "expert_node"):
        for f in sorted((ROOT / top).rglob("*")):
            if f.suffix in (".c", ".h", ".def", ".inc"):
                tree[f.relative_to(ROOT).as_posix()] = [(m[1] == "<", m[2]) for m in INCLUDE.finditer(f.read_text())]
    return tree


def folder(path):
    return path.rsplit("/", 1)[0]


def only_rpc_sees_grpc(tree):
    return [f"{f} includes {i}" for f, list_ in tree.items() for _, i in list_
            if (i.startswith("grpc") or "protobuf-c/" in i or i.endswith(".pb-c.h")) and folder(f) != "common/rpc"]


def only_kernels_see_intrinsics_and_blas(tree):
    hidden = re.compile(r"^(.*intrin|cblas|.*blas|cpuid|arm_neon|arm_sve|sys/auxv)\.h$")
    return [f"{f} includes {i}" for f, list_ in tree.items() for _, i in list_ if hidden.match(i) and folder(f) != "common/kernels"]


def pure_code_sees_no_clock_thread_socket_or_chance(tree):
    found = []
    for f, list_ in tree.items():
        if not f.startswith(PURE):
            continue
        for system, i in list_:
            if (i not in PURE_SYSTEM if system else i in NOT_PURE or folder(i) in NOT_PURE_FOLDERS):
                found.append(f"{f} is pure and includes {i}")
    return found


def arrows_point_where_the_table_says(tree):
    found = []
    for f, list_ in tree.items():
        allowed = MAY_INCLUDE.get(folder(f))
        if allowed is None:
            found.append(f"{f}: its folder is not in the table")
            continue
        for system, i in list_:
            if system or i.startswith("moesaic/v1/"):
                continue
            if "/" not in i:
                found.append(f"{f} includes \"{i}\": paths begin at the project's folder")
            elif folder(i) != folder(f) and folder(i) not in allowed.split():
                found.append(f"{f} includes {i}: {folder(f)} may not see {folder(i)}")
    return found


def cycle(graph):
    """One cycle of the graph as a list of names, or None."""
    state, path = {}, []
    for start in graph:
        stack = [(start, iter(sorted(graph.get(start, ()))))] if start not in state else []
        if stack:
            state[start] = "open"
            path = [start]
        while stack:
            node, rest = stack[-1]
            for other in rest:
                if state.get(other) == "open":
                    return path[path.index(other):] + [other]
                if other not in state and other in graph:
                    state[other] = "open"
                    path.append(other)
                    stack.append((other, iter(sorted(graph[other]))))
                    break
            else:
                state[node] = "done"
                path.pop()
                stack.pop()
    return None


def no_cycle_of_files(tree):
    c = cycle({f: {i for system, i in list_ if not system} for f, list_ in tree.items()})
    return [" -> ".join(c)] if c else []


def no_cycle_of_folders(tree):
    graph = {}
    for f, list_ in tree.items():
        graph.setdefault(folder(f), set()).update(folder(i) for system, i in list_ if not system and "/" in i and folder(i) != folder(f))
    c = cycle(graph)
    return [" -> ".join(c)] if c else []


# rule -> files that break it, added to the real tree
RULES = {
    only_rpc_sees_grpc: {"coordinator/api/planted.c": [(True, "grpc/grpc.h")], "expert_node/planted.c": [(False, "moesaic/v1/expert.pb-c.h")]},
    only_kernels_see_intrinsics_and_blas: {"coordinator/model/planted.c": [(True, "immintrin.h")], "common/experts/planted.c": [(True, "cblas.h")]},
    pure_code_sees_no_clock_thread_socket_or_chance: {
        "coordinator/engine/planted.c": [(False, "common/base/clock.h")], "coordinator/cluster/planted.c": [(True, "pthread.h")],
        "coordinator/engine/planted.h": [(True, "uv.h")], "expert_node/node.c": [(True, "sys/random.h")]},
    arrows_point_where_the_table_says: {"coordinator/model/planted.c": [(False, "coordinator/engine/engine.h")],
                                        "common/base/planted.h": [(False, "common/sys/workers.h")], "common/new/planted.c": [],
                                        "common/base/planted.c": [(False, "mem.h")]},
    no_cycle_of_files: {"common/base/planted_a.h": [(False, "common/base/planted_b.h")],
                        "common/base/planted_b.h": [(False, "common/base/planted_a.h")]},
    no_cycle_of_folders: {"common/base/planted.h": [(False, "common/sys/workers.h")]},
}


def main():
    tree = read_tree()
    arrows = sum(len(v) for v in tree.values())
    passed = failed = 0

    def verdict(name, faults, began):
        nonlocal passed, failed
        passed, failed = passed + (not faults), failed + bool(faults)
        print(f"{name} {'ok' if not faults else 'FAILED'} ({time.monotonic() - began:.1f} s)")
        for fault in faults:
            print(f"  {fault}")

    print(f"{len(tree)} files, {arrows} includes")
    for rule, planted in RULES.items():
        began = time.monotonic()
        missed = [f"not noticed: {f} including {[i for _, i in list_]}" for f, list_ in planted.items()
                  if not rule({**tree, **(planted if rule is no_cycle_of_files else {f: list_})})]
        verdict(f"{rule.__name__}_and_notices_what_breaks_it", missed, began)
        verdict(rule.__name__, rule(tree), began)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
