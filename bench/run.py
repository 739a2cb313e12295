#!/usr/bin/env python3
"""The tables of bench/README.md: speed against the ceiling and the floors that were set, loading, and
what a parallel region costs. Markdown on stdout; with --json FILE every row of shoal bench as well.

    bench/run.py [--program build/shoal] [--quick] [--only decode,prompt,...] [--json rows.json]

Run it on a quiet machine. The big shapes are left out where memory is short."""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Bench:
    def __init__(self, args):
        self.program, self.repeat, self.rows = args.program, 2 if args.quick else 5, []
        self.quick = args.quick

    def __call__(self, shape, dtype, *flags, threads=2):
        """Rows of one run, [] with a note on stderr if it was refused (too little memory, no such shape)."""
        command = [self.program, "bench", "--shape", shape, "--type", dtype, "-r", str(self.repeat), "-t",
                   str(threads), "-o", "json", *map(str, flags)]
        run = subprocess.run(command, capture_output=True, text=True)
        print(f"+ {' '.join(command)}\n{run.stderr.strip()}", file=sys.stderr)
        if run.returncode:
            return []
        rows = json.loads(run.stdout)
        for row in rows:
            row["ceilings"] = run.stderr.strip().splitlines()[-1]
        self.rows += rows
        return rows


def table(title, head, rows):
    """A markdown table, right-aligned but for the first column."""
    if not rows:
        return
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(str(v) for v in row)} |")


def against(label, row, floor):
    """A line of a table of ratios."""
    mark = "" if floor is None else "yes" if row["ratio"] >= floor else "**no**"
    return [label, f"{row['median']:.1f}", f"{row['stddev']:.1f}", f"{row['ceiling_tps']:.1f}",
            f"{row['median'] / row['max_ceiling_tps']:.3f}", f"{row['ratio']:.3f}", "" if floor is None else f"{floor:.2f}", mark]


RATIOS = ["test", "tok/s (median)", "±", "ceiling", "to the best", "ratio", "floor", "reached"]


def decode(bench):
    floors = {"q4_0": (0.90, 0.80), "q8_0": (0.93, 0.85), "bf16": (0.93, 0.88)}
    lines = []
    for dtype, floor in floors.items():
        for row in bench("tinyllama", dtype, "-p", 0, "-n", 128, "-d", "0,2000"):
            lines.append(against(f"{dtype} depth {row['depth']}", row, floor[row["depth"] > 0]))
        for row in bench("tinyllama", dtype, "-p", 0, "-n", 128, "-d", 2000, "--kv", "q8_0"):
            lines.append(against(f"{dtype} depth {row['depth']}, cache in q8_0", row, floor[1]))
    for row in bench("llama2-7b", "q4_0", "-p", 0, "-n", 32):
        lines.append(against("llama2-7b q4_0", row, 0.90))
    for row in bench("gpt2", "q8_0", "-p", 0, "-n", 128):
        lines.append(against("gpt2 q8_0", row, 0.85))
    for row in bench("gptj-6b", "q4_0", "-p", 0, "-n", 32):
        lines.append(against("gptj-6b q4_0", row, None))
    table("Decoding, two threads, shape tinyllama", RATIOS, lines)


def prompt(bench):
    lines = []
    for dtype, floor in (("q4_0", 0.50), ("q8_0", 0.50), ("bf16", 0.55)):
        for row in bench("tinyllama", dtype, "-p", 512, "-n", 0, "--arith", "bf16"):
            lines.append(against(f"{dtype} --arith bf16", row, floor))
    for dtype in ("q4_0", "q8_0"):
        for row in bench("tinyllama", dtype, "-p", 512, "-n", 0, "--arith", "int8"):
            lines.append(against(f"{dtype} --arith int8", row, None))
    for row in bench("gpt2", "q8_0", "-p", 512, "-n", 0):
        lines.append(against("gpt2 q8_0", row, None))
    table("Prompts of 512 tokens, two threads, shape tinyllama", RATIOS, lines)


def batch(bench):
    rows = bench("tinyllama", "q8_0", "-p", 0, "-n", 64, "-b", "1,2,4,8,16,32")
    one = next((r for r in rows if r["test"] == "b1"), None)
    table("Sequences at once, q8_0 (floor: 32 give 15 times one)",
          ["sequences", "tok/s in all", "times one", "ceiling", "ratio"],
          [[r["batch"], f"{r['median']:.1f}", f"{r['median'] / one['median']:.1f}", f"{r['ceiling_tps']:.1f}",
            f"{r['ratio']:.3f}"] for r in rows if r["test"].startswith("b")])


def threads(bench):
    lines = []
    for dtype in ("q4_0", "q8_0", "bf16"):
        rows = bench("tinyllama", dtype, "-p", 512, "-n", 64, threads="1,2")
        for test in ("pp512", "tg64"):
            speed = {r["threads"]: r["median"] for r in rows if r["test"] == test}
            if len(speed) == 2:
                lines.append([f"{dtype} {test}", f"{speed[1]:.1f}", f"{speed[2]:.1f}", f"{speed[2] / speed[1]:.2f}"])
    table("Two threads against one (floor: 1.9)", ["test", "1 thread", "2 threads", "times"], lines)


def sets(bench):
    lines = []
    for cpu in ("avx2", "avx512", "amx"):
        for dtype in ("q4_0", "q8_0"):
            for row in bench("tinyllama", dtype, "-p", 512, "-n", 64, "--cpu", cpu):
                floor = 0.80 if cpu == "avx2" and row["test"].startswith("tg") else None
                if row["cpu"] == cpu:
                    lines.append(against(f"{cpu} {dtype} {row['test']}", row, floor))
    table("Instruction sets", RATIOS, lines)


def read_seconds(path):
    """One thread's plain read of the cached file."""
    best = 1e9
    buffer = bytearray(4 << 20)
    for _ in range(4):
        with open(path, "rb", buffering=0) as f:
            begin = time.monotonic()
            while f.readinto(buffer):
                pass
            best = min(best, time.monotonic() - begin)
    return best


def load(bench):
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("q8_0",) if bench.quick else ("q4_0", "q8_0", "bf16"):
            path = os.path.join(folder, f"{dtype}.gguf")
            make = ["quantize", "shape:tinyllama:f32" if dtype == "bf16" else "shape:tinyllama:bf16", path, dtype]
            subprocess.run([bench.program, *make], check=True, capture_output=True)
            plain, best, rss = read_seconds(path), 1e9, 0
            for _ in range(bench.repeat):
                child = subprocess.Popen([bench.program, "run", "-m", path, "-p", "x", "-n", "1", "-c", "64", "-v"],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                text = child.stderr.read()
                _, status, usage = os.wait4(child.pid, 0)
                child.returncode = status
                best = min(best, float(text.split("loaded in ")[1].split()[0]))
                rss = max(rss, usage.ru_maxrss / 1024)
                weights = float(text.split("weights here ")[1].split()[0])
            lines.append([f"tinyllama {dtype}", f"{plain:.2f}", f"{best:.2f}", f"{best / plain:.2f}",
                          f"{weights:.0f}", f"{rss:.0f}", f"{rss / weights:.3f}"])
            os.unlink(path)
    table("Loading (at most 2 times the plain read; memory at most 1.1 times weights and KV)",
          ["file", "plain read, s", "load, s", "times", "weights, MiB", "peak memory, MiB", "times"], lines)


def regions(bench):
    program = pathlib.Path(bench.program).parent / "bench" / "bench_threads"
    if not program.exists():
        print(f"{program} is not built (meson setup -Dbench=true)", file=sys.stderr)
        return
    print("\n### A parallel region, microseconds beyond the work\n")
    print(subprocess.run([program], check=True, capture_output=True, text=True).stdout, end="")


# What a token's time is spent on, by the functions of the program (those of kernels are rows of the table).
SPENT = {
    "products": r"matmul_.*|group|parts?|add_parts|run|(f32|f16|bf16|q8|q4)_(f32|bf16|i8|sums|tiles_.)|whole_runs_.|block",
    "unpacking": r"tiles_.*|(q8_|q4_)?unpack_.*",
    "attention": r"attend_.*|scores_.*|values_.*|softmax_.*|merge_share",
    "cache, rotations": r"put_(f32|f16|bf16|q8_0)|rope|store_block",
    "rows": r"rmsnorm|layernorm|add|self_add_sum|silu_mul|gelu|prepare_.*|norm_row|act_row|rows_block",
    "sampling": r"sh_sample|select_best|sort_all",
    "waiting": r"sh_pool_run|thread_main",
}


def where(bench):
    """By perf's samples of both threads, of the functions above: loading and ceilings are left out."""
    if not shutil.which("perf"):
        print("perf is not installed: no table of where the time goes", file=sys.stderr)
        return
    lines = []
    for shape, label, flags in (("tinyllama", "decoding", ["-p", 0, "-n", 64]),
                                ("tinyllama", "prompt of 512", ["-p", 512, "-n", 0]),
                                ("gpt2", "decoding", ["-p", 0, "-n", 256]),
                                ("gpt2", "prompt of 512", ["-p", 512, "-n", 0])):
        with tempfile.TemporaryDirectory() as folder:
            data = os.path.join(folder, "data")
            command = [bench.program, "bench", "--shape", shape, "--type", "q8_0", "-r", "5", "-t", "2", *map(str, flags)]
            subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", data, *command], check=True,
                           capture_output=True)
            report = subprocess.run(["perf", "report", "-i", data, "--stdio", "-s", "symbol", "-F", "period,symbol"],
                                    check=True, capture_output=True, text=True).stdout
        spent = dict.fromkeys(SPENT, 0)
        for count, symbol in re.findall(r"^ *(\d+) +\[\.\] (\S+)", report, re.M):
            for part, names in SPENT.items():
                if re.fullmatch(names, symbol.split(".")[0]):  # gcc's copies of a function: name.constprop.0
                    spent[part] += int(count)
                    break
        whole = sum(spent.values()) or 1
        lines.append([f"{shape} {label}", *(f"{100 * n / whole:.1f}" for n in spent.values())])
    table("Where the time goes, q8_0, two threads, per cent", ["test", *SPENT], lines)


PARTS = {f.__name__: f for f in (decode, prompt, batch, threads, sets, load, where, regions)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build/shoal"))
    parser.add_argument("--quick", action="store_true", help="two measurements of each instead of five")
    parser.add_argument("--only", default=",".join(PARTS), help="parts with commas between them: %(default)s")
    parser.add_argument("--json", help="write the rows of shoal bench there")
    args = parser.parse_args()
    bench = Bench(args)
    for name in args.only.split(","):
        if name not in PARTS:
            parser.error(f"no part is called {name}; the parts are: {', '.join(PARTS)}")
        PARTS[name](bench)
        sys.stdout.flush()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(bench.rows, indent=1) + "\n")


main()
