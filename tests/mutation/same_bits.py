#!/usr/bin/env python3
"""Does the same-bits test see what it is there for? One fault per axis is planted, each must turn it red.

    tests/mutation/same_bits.py [--list] [--check] [WORD...]          only faults whose name has one of the words

Each fault is what somebody might write by mistake or for speed: an answer then depends on something that a cluster may do. The
tree is copied once, each fault is built into the copy and taken out again, tests/integration/test_same_bits.py runs on it.
Ends with "N passed, N failed"; a fault that stays green is a failure. Some six minutes on two cores. `--check` plants nothing: it
says whether each fault still finds its place, which the default test run asks for, as code moves. Standard library only.
"""
import os
import subprocess
import sys
import tempfile
import time

from planting import NotThere, Tree, check

PROGRAMS = ["moesaic", "moesaic-coordinator", "moesaic-node"]
TEST = "tests/integration/test_same_bits.py"

# name: what is wrong, then (file, old, new) each of which must be there exactly once.
FAULTS = {
    "nodes: results are combined in the order of their arrival": [
        ("coordinator/model/pass.c", "static void combine_row(", "unsigned planted_arrival[1 << 20];\nstatic void combine_row("),
        ("coordinator/model/pass.c", "    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {\n",
         """    size_t order[64];
    for (size_t n = 0; n < top_k; n++) {
        size_t at = n, slot = row * top_k + n;
        for (; at > 0 && planted_arrival[order[at - 1]] > planted_arrival[slot]; at--)
            order[at] = order[at - 1];
        order[at] = slot;
    }
    for (size_t n = 0; n < top_k; n++) {
        size_t i = order[n];
"""),
        ("coordinator/drivers/node_driver.c", "static enum err_code on_result(void *ctx",
         "extern unsigned planted_arrival[];\nstatic unsigned planted_clock;\n\nstatic enum err_code on_result(void *ctx"),
        ("coordinator/drivers/node_driver.c", "    for (uint32_t i = 0; i < s->n_entries; i++)\n        rpc_message_tensor_copy(m, i",
         "    planted_clock++;\n    for (uint32_t i = 0; i < s->n_entries; i++)\n        planted_arrival[s->result_slot[i]] = planted_clock;\n"
         "    for (uint32_t i = 0; i < s->n_entries; i++)\n        rpc_message_tensor_copy(m, i")],
    "seed: of an expert's nodes those with a high number get its last row again": [
        ("coordinator/cluster/dispatch_cut.c", "        a.result_slot[i] = entry;",
         "        a.result_slot[i] = i > 0 && i + 1 == n && node > expert % 3u ? a.result_slot[i - 1] : entry;")],
    "replicas: the last row asked of a second copy overwrites the row before": [
        ("coordinator/cluster/dispatch_cut.c", "        a.result_slot[i] = entry;",
         """        const uint16_t *copies;
        bool second = placement_replicas(d->placement, lot->layer, expert, &copies) > 1 && copies[0] != node;
        a.result_slot[i] = second && i > 0 && i + 1 == n ? a.result_slot[i - 1] : entry;""")],
    "chunk: the order in which attention merges blocks depends on the length of the pass": [
        ("coordinator/model/attention.c", "    for (uint32_t b = first / KV_BLOCK_TOKENS; b <= (end - 1) / KV_BLOCK_TOKENS; b++) {\n",
         "    const uint32_t low = first / KV_BLOCK_TOKENS, high = (end - 1) / KV_BLOCK_TOKENS;\n"
         "    for (uint32_t i = low; i <= high; i++) {\n        uint32_t b = st->p->n > 64 ? low + high - i : i;\n")],
    "company: a tile of four rows and more multiplies and adds apart": [
        ("common/kernels/matmul_avx2.c", "            acc[r][i / 2][i % 2] = _mm256_fmadd_ps(w[i / 2][i % 2], value, acc[r][i / 2][i % 2]);",
         """            acc[r][i / 2][i % 2] = R > 3 ? _mm256_add_ps(_mm256_mul_ps(w[i / 2][i % 2], value), acc[r][i / 2][i % 2])
                                         : _mm256_fmadd_ps(w[i / 2][i % 2], value, acc[r][i / 2][i % 2]);""")],
    "admitted late: the rows of a pass are taken for one sequence": [
        ("coordinator/model/pass.c", "rows[i].position,", "rows[0].position + i,")],
    "pieces: rows of steps that wait together are taken from the first of them": [
        ("expert_node/batcher.c", "base = batch->row_base[i];", "base = batch->row_base[i] * 0;")],
    "threads: a helper adds a row's experts backwards": [
        ("coordinator/model/pass.c", "    for (size_t i = row * top_k; i < (row + 1) * top_k; i++) {\n",
         "    for (size_t n = 0; n < top_k; n++) {\n        size_t i = row * top_k + (worker > 0 ? top_k - 1 - n : n);\n")],
    "kernels: one fused step unfused": [
        ("common/kernels/vector_avx2.c", "                         _mm256_fmadd_ps(a, _mm256_loadu_ps(y + i), _mm256_loadu_ps(acc + i)));",
         "                         _mm256_add_ps(_mm256_mul_ps(a, _mm256_loadu_ps(y + i)), _mm256_loadu_ps(acc + i)));")],
    "storage q8_0: a row is quantized by truncation in one kernel": [
        ("common/kernels/rows_avx2.c", "            n[i] = _mm256_cvtps_epi32(", "            n[i] = _mm256_cvttps_epi32(")],
    "storage bf16: halves are rounded up in one kernel": [
        ("common/kernels/rows_avx2.c", "_mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd)",
         "_mm256_or_si256(_mm256_set1_epi32(0x8000), _mm256_setzero_si256())"),
        ("common/kernels/rows_avx2.c", "        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));\n", "")],
    "sampling: the random numbers of all requests come from one stream": [
        ("coordinator/model/sampler.c", "        token = draw(weights, vocab, rng_uniform(p->seed, output_index, p->choice));",
         "        static uint64_t drawn;\n        token = draw(weights, vocab, rng_uniform(p->seed, output_index + (drawn++ > 8), p->choice));")],
    "cache: of a sequence that was preempted the first position is not computed again": [
        ("coordinator/engine/scheduler.c", "    q->n_kv = 0;", "    q->n_kv = q->n_kv > 0;")],
    "fault: of a step that was lost the first row counts as computed": [
        ("coordinator/cluster/dispatch.c", "        if (lot->dead[entry / d->shape.top_k]) {",
         "        if (lot->dead[entry / d->shape.top_k] || (s->state == STEP_SENT && i == 0 && s->pub.n_entries > 1)) {")],
}


def try_fault(tree, name, edits):
    """Is it seen? Prints a line, and why not."""
    began = time.monotonic()
    seen = ""
    try:
        with tree.planted(edits):
            wrong = tree.build(PROGRAMS)
            if wrong is None:
                seen, wrong = run_test(tree)
    except NotThere as e:
        wrong = str(e)
    print(f"  {'passed' if seen else 'FAILED'}  {name} ({time.monotonic() - began:.0f} s)\n          {seen or wrong}", flush=True)
    return bool(seen)


def run_test(tree):
    """What the test found, or what is wrong that it found nothing."""
    env = {k: v for k, v in os.environ.items() if k not in ("MOESAIC_BIN", "MOESAIC_BIN_AVX512")}
    done = subprocess.run([sys.executable, "-u", TEST], cwd=tree.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    red = [line.strip() for line in done.stdout.splitlines() if "AssertionError" in line]
    return (red[-1][:150], None) if done.returncode != 0 and red else ("", "it stayed green")


def main():
    words = [a for a in sys.argv[1:] if not a.startswith("-")]
    chosen = {n: e for n, e in FAULTS.items() if not words or any(w in n for w in words)}
    if "--list" in sys.argv:
        print("\n".join(chosen))
        return 0
    if "--check" in sys.argv:
        return check(chosen)
    with tempfile.TemporaryDirectory(prefix="moesaic-faults-") as folder:
        tree = Tree(folder, "-DMOESAIC_TESTS=OFF")
        wrong = tree.build(PROGRAMS)
        if wrong:
            print(wrong)
            return 1
        results = [try_fault(tree, n, e) for n, e in chosen.items()]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
