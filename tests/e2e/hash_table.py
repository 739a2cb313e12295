#!/usr/bin/env python3
"""One hash per (model, type, arithmetic, prompt, seed), whatever computed it: the table of issue 2.
The bits of the last logits are compared too.

Each row of the table is one such combination, computed once by one thread and again by a set of
topologies; the sets of all rows together cover every topology several times. --markdown prints the
table; --all runs every topology for every row."""

import concurrent.futures
import os
import re
import sys

import tap

PROMPT = ("Once upon a time there was a little dog named Spot who liked to run in the big park with "
          "his friend Lily, and one sunny day they found a red ball under the old tree.")
DEEP_PROMPT = PROMPT * (4 if tap.SANITIZED else 8)  # 2 or 4 spans
N_TOKENS = 8 if tap.SANITIZED else 16
N_SAMPLES = 5

MODELS = {
    # 12 heads of 16 over 3 KV heads, 6 and 7 blocks for 8 slices: nothing divides evenly.
    "awkward": ["--layers", 7, "--heads", 12, "--kv-heads", 3, "--head-dim", 16, "--embd", 96,
                "--ff", 224, "--ctx", 512],
    "even": ["--layers", 5, "--heads", 8, "--kv-heads", 8, "--head-dim", 32, "--embd", 128,
             "--ff", 256, "--ctx", 512],
    # Fused Q, K and V, biases, learned positions; 3 blocks of heads and 7 of ff for 8 slices.
    "gpt2": ["--family", "gpt2", "--layers", 7, "--heads", 12, "--head-dim", 8, "--embd", 96,
             "--ff", 224, "--ctx", 512],
    # Attention and feed-forward in one sum; a part of each head rotates; a head with a bias.
    "gptj": ["--family", "gptj", "--layers", 7, "--heads", 12, "--head-dim", 8, "--rot", 4,
             "--embd", 96, "--ff", 224, "--ctx", 512],
}
SHORT = "gptj"  # every other of its rows, but with --all: the script has to end in its time
# always said: what `auto` chooses may change with --cpu, and attention of prompts with it
ARITHS = {"f32": ["int8"], "f16": ["bf16"], "bf16": ["bf16"], "q8_0": ["int8", "bf16"],
          "q4_0": ["int8", "bf16"]}
# Rows with a quantised cache besides: as many as take every topology once. (model, type, arithmetic, sampling)
Q8_CACHE = [("awkward", "bf16", "bf16", "greedy"), ("awkward", "q8_0", "int8", "sampled"),
            ("even", "f32", "int8", "sampled"), ("even", "q4_0", "bf16", "greedy"),
            ("gpt2", "q8_0", "bf16", "sampled")]
SAMPLINGS = {"greedy": ["--temp", 0],
             "sampled": ["--temp", 0.9, "--top-k", 40, "--top-p", 0.95, "--seed", 7]}

# Name of a topology: (flags, samples).
TOPOLOGIES = {
    "t1": ([], 1), "t2": (["-t", 2], 1), "t4": (["-t", 4], 2),
    "tp2": (["--tp", 2], 1), "tp3": (["--tp", 3], 2), "tp4": (["--tp", 4], 1),
    "tp5": (["--tp", 5], 1), "tp8": (["--tp", 8], 3),
    "ring2": (["--ring", 2], 2), "ring3": (["--ring", 3], 5), "ring5": (["--ring", 5], 4),
    "b1": (["-b", 1], 2), "b7": (["-b", 7], 3), "b64": (["-b", 64], 4), "b512": (["-b", 512], 5),
    "np2": (["-np", 2], 5),
    "ring2 tp2": (["--ring", 2, "--tp", 2], 3), "ring3 tp2 t2": (["--ring", 3, "--tp", 2, "-t", 2], 4),
    "ring2 tp3 b7": (["--ring", 2, "--tp", 3, "-b", 7], 5), "ring5 b7": (["--ring", 5, "-b", 7], 1),
    "ring3 b1": (["--ring", 3, "-b", 1], 2), "tp8 b64": (["--tp", 8, "-b", 64], 1),
    "tp5 b7": (["--tp", 5, "-b", 7], 2), "ring3 np3": (["--ring", 3, "-np", 3], 5),
    "cpu c": ([], 2),  # the portable kernels against the best that this machine has
}
if tap.SANITIZED:  # one of each kind; tests/kernels/test_isa.c has the C kernels
    TOPOLOGIES = {t: TOPOLOGIES[t] for t in ("t4", "tp3", "tp8 b64", "ring5", "b7", "np2", "ring3 tp2 t2",
                                             "ring2 tp3 b7")}
PER_ROW = 1 if tap.SANITIZED else 5


def run(model, arith, sampling, kv, flags, n_samples, env=None, prompt=PROMPT):
    """Of each sample: token ids, hash of the bits of its last logits. Or the result that has none."""
    common = ["-m", model, "-p", prompt, "-n", N_TOKENS, "-c", 512, "-o", "json", "-v",
              "--n-samples", n_samples, *SAMPLINGS[sampling], "--arith", arith, "--kv", kv]
    result = tap.shoal("run", *common, *flags, timeout=60, env=env)
    if result.status != 0:
        return result
    lines = sorted(result.lines(), key=lambda line: line["sample"])
    if any(line["hash"] != tap.tokens_hash(line["tokens"]) for line in lines):
        return result
    logits = re.findall(r"sample \d+: .* logits ([0-9a-f]{16})", result.err)
    if len(logits) != len(lines):
        return result
    return [(line["tokens"], bits) for line, bits in zip(lines, logits)]


def rows(everything):
    """(model's name, path, type, arithmetic, sampling, cache), the whole product but for half of SHORT, and
    those of Q8_CACHE; under sanitizers a fifth."""
    turn = 0
    for name, shape in MODELS.items():
        plain = tap.mkmodel(f"{name}-f32.gguf", *shape)
        for dtype, ariths in ARITHS.items():
            path = plain
            if dtype != "f32":
                path = tap.TMP / f"{name}-{dtype}.gguf"
                made = tap.shoal("quantize", plain, path, dtype)
                if made.status != 0:
                    raise SystemExit(f"Bail out! quantize {dtype}: {made}")
            for arith in ariths:
                for sampling in SAMPLINGS:
                    turn += 1
                    if name == SHORT and turn % 4 in (0, 1) and not everything:
                        continue
                    if not tap.SANITIZED or turn % 5 == 0:  # which is slow, and looks for other faults
                        yield name, path, dtype, arith, sampling, "f16"
    for name, dtype, arith, sampling in Q8_CACHE[:1 if tap.SANITIZED else None]:
        yield name, tap.TMP / f"{name}-{dtype}.gguf", dtype, arith, sampling, "q8_0"


def chosen(row_number, everything):
    """The topologies of a row: over the rows they go round the whole list."""
    names = list(TOPOLOGIES)
    if everything:
        return names
    return [names[(row_number * PER_ROW + i) % len(names)] for i in range(PER_ROW)]


def row_cases(pool, row_number, row, everything):
    name, path, dtype, arith, sampling, kv = row
    want = pool.submit(run, path, arith, sampling, kv, ["-t", 1], N_SAMPLES)
    got = {t: pool.submit(run, path, arith, sampling, kv, *TOPOLOGIES[t],
                          {"SHOAL_CPU": "c"} if t == "cpu c" else None)
           for t in chosen(row_number, everything)}
    return want, got


def deep(pool):
    """Contexts of several spans of attention, over which threads share one token's work."""
    for name, arith, kv in (("awkward", "bf16", "q8_0"), ("awkward", "int8", "f16"))[:1 if tap.SANITIZED else 2]:
        model = tap.TMP / f"{name}-q8_0.gguf"
        flags = [["-t", 1], ["-t", 2], ["-t", 3], ["-t", 4], ["--tp", 3], ["--tp", 5, "-t", 2], ["-np", 2, "-t", 3]]
        if tap.SANITIZED:
            flags = flags[::3]
        jobs = [pool.submit(run, model, arith, "greedy", kv, [*f, "-c", 1024], 2, prompt=DEEP_PROMPT) for f in flags]
        want, *got = [job.result() for job in jobs]
        tap.ok(isinstance(want, list) and all(0 < len(w) <= N_TOKENS for w, _ in want), f"deep {name} {arith} {kv}", want)
        for f, ids in zip(flags[1:], got):
            tap.ok(ids == want, f"deep {name} {arith} {kv}: {' '.join(map(str, f))}", f"{ids}\nwanted {want}")


def main():
    everything = "--all" in sys.argv
    markdown = "--markdown" in sys.argv
    table = []
    hashes = set()
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        work = [(row, row_cases(pool, i, row, everything)) for i, row in enumerate(rows(everything))]
        for (name, _, dtype, arith, sampling, kv), (want, got) in work:
            title = f"{name} {dtype} {arith} {sampling}" + " cache in q8_0" * (kv != "f16")
            want = want.result()
            if not tap.ok(isinstance(want, list) and len(want) == N_SAMPLES
                          and all(0 < len(w) <= N_TOKENS for w, _ in want),
                          f"{title}: one thread, {N_SAMPLES} samples", want):
                continue
            if sampling == "greedy":
                tap.ok(all(w == want[0] for w in want), f"{title}: greedy samples are the same", want)
            else:
                tap.ok(any(w != want[0] for w in want), f"{title}: samples differ", want)
            hashes.add(tap.tokens_hash(want[0][0]))
            same = []
            for topology, future in got.items():
                ids = future.result()
                good = ids == want[:TOPOLOGIES[topology][1]]
                same += [topology] if good else []
                tap.ok(good, f"{title}: {topology}", f"{ids}\nwanted {want}")
            table.append((name, dtype, arith, sampling, kv, tap.tokens_hash(want[0][0]),
                          f"{len(same)} of {len(got)}", ", ".join(same)))
        deep(pool)
    # The answers are not all one: a broken hash or a model that says one thing would hide everything.
    tap.ok(len(hashes) > len(table) // 2, "rows have different hashes", f"{len(hashes)} hashes")
    if markdown:
        print("| model | type | arithmetic | sampling | cache | hash | same | topologies |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in table:
            print("| " + " | ".join(row) + " |")
    tap.done()


if __name__ == "__main__":
    main()
