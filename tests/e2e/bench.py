#!/usr/bin/env python3
"""shoal bench at tiny sizes: the rows and keys of issue 3, shapes without a file, and what it refuses.
No speed is tested here: a test machine may be busy."""

import csv
import io
import json
import os

import tap

KEYS = ("test model type threads ranks stages depth batch tps stddev ceiling_tps ratio median min max "
        "max_ceiling_tps cpu arith kv").split()
NUMBERS = "tps stddev ceiling_tps ratio median min max max_ceiling_tps".split()
TINY = ["--layers", 2, "--heads", 4, "--kv-heads", 2, "--head-dim", 16, "--embd", 64, "--ff", 96, "--ctx", 256]
SMALL = ["-p", 12, "-n", 3, "-r", 2]


def bench(*args, timeout=60):
    return tap.shoal("bench", *args, timeout=timeout)


def rows(result):
    try:
        return json.loads(result.out)
    except ValueError:
        return []


def sane(row):
    """Repetitions have ceilings of their own, none above the best of all: only one repetition's ratio is a quotient."""
    low, high = row["min"] / row["max_ceiling_tps"], 1e9
    if row["min"] == row["max"]:
        low = high = row["median"] / row["ceiling_tps"]
    return (set(row) >= set(KEYS) and 0 < row["min"] <= row["median"] <= row["max"] and row["stddev"] >= 0
            and 0 < row["ceiling_tps"] <= row["max_ceiling_tps"] * 1.001
            and low * 0.99 - 0.002 < row["ratio"] < high * 1.01 + 0.002)


def output(model):
    result = bench("-m", model, *SMALL, "-d", "0,20", "-b", "1,5", "-t", "1,2", "-o", "json")
    got = rows(result)
    want = [(t, d, b, n) for n in (1, 2) for d in (0, 20)
            for t, b in (("pp12", 1), ("tg3", 1), ("b1", 1), ("b5", 5))]
    tap.ok(result.status == 0 and [(r["test"], r["depth"], r["batch"], r["threads"]) for r in got] == want,
           "json: a row for every test, in order", result)
    # a prompt at a depth is a difference of two times, which noise can make anything
    tap.ok(got and all(sane(r) for r in got if not (r["depth"] and r["test"].startswith("pp"))),
           "json: keys, and numbers that agree", result)
    tap.ok(got and {(r["model"], r["type"], r["ranks"], r["stages"]) for r in got}
           == {(os.path.basename(model), "q8_0", 1, 1)}, "json: what was measured", result)


def topologies(model):
    """Each also in another form of output, and with other flags: the ceilings take seconds every time."""
    result = bench("-m", model, *SMALL, "-b", 3, "-t", 1, "--tp", 2, "-o", "csv")
    got = list(csv.DictReader(io.StringIO(result.out)))
    tap.ok(result.status == 0 and [r["test"] for r in got] == ["pp12", "tg3", "b3"] and list(got[0]) == KEYS,
           "csv: a heading and a row for every test", result)
    tap.ok(got and all(sane({k: float(v) if k in NUMBERS else v for k, v in r.items()}) for r in got)
           and {(r["ranks"], r["stages"]) for r in got} == {("2", "1")}, "--tp 2", result)

    result = bench("-m", model, "-p", 12, "-n", 0, "-r", 1, "-d", 8, "-t", 1, "--ring", 2)
    lines = result.out.splitlines()
    tap.ok(result.status == 0 and len(lines) == 3 and "pp12 @ d8" in lines[2]
           and len({line.count("|") for line in lines}) == 1, "md: a table", result)
    names, values = ([word.strip() for word in line.split("|")] for line in (lines[:1] + lines[-1:] or ["", ""]))
    tap.ok(dict(zip(names, values)).get("stages") == "2", "--ring 2", result)
    tap.ok("GB/s" in result.err and "GOP/s" in result.err, "the ceilings are said on stderr", result)


def shapes():
    result = bench("--shape", "nanollama", "--type", "q4_0", "-p", 0, "-n", 1, "-r", 1, "--cpu", "c", "--arith",
                   "int8", "--kv", "f32", "-o", "json", timeout=120)
    tap.ok([(r["test"], r["model"], r["type"]) for r in rows(result)] == [("tg1", "nanollama", "q4_0")],
           "a shape without a file", result)
    tap.ok(all(sane(r) for r in rows(result)), "one repetition: its ratio is its speed over its ceiling", result)
    tap.ok([(r["cpu"], r["arith"], r["kv"]) for r in rows(result)] == [("c", "int8", "f32")],
           "--cpu, --arith and --kv are in the rows", result)
    result = tap.shoal("inspect", "shape:llama2-13b:f32")
    tap.ok(result.status == 0 and "13015864320" in result.out and result.max_rss_bytes < 1 << 30,
           "inspect shows a shape in little memory", result)


def refused(name, args, *words, status=2):
    result = tap.shoal(*args, timeout=20)
    tap.ok(result.status == status and result.out == "" and len(result.err.splitlines()) == 1
           and all(w in result.err for w in words), f"{name}: status {status}, says {', '.join(words)}", result)


def refusals(model):
    refused("unknown shape", ["bench", "--shape", "hugellama"], "tinyllama", "llama2-7b")
    refused("unknown type", ["bench", "--shape", "tinyllama", "--type", "q9"], "q8_0", "q4_0")
    refused("unknown instruction set", ["bench", "-m", model, "--cpu", "mmx"], "mmx", "avx2" if os.uname().machine == "x86_64" else "neon")
    refused("unknown instruction set, run", ["run", "-m", model, "-p", "x", "--cpu", "mmx"], "mmx")
    refused("no model", ["bench"], "-m", "--shape")
    refused("two models", ["bench", "-m", model, "--shape", "tinyllama"], "-m", "--shape")
    refused("a list with a word", ["bench", "-m", model, "-p", "1,x"], "-p")
    refused("a number too small", ["bench", "-m", model, "-b", "0"], "-b")
    refused("no test", ["bench", "-m", model, "-p", "0", "-n", "0"], "-p", "-n")
    refused("unknown output", ["bench", "-m", model, "-o", "xml"], "xml", "json")
    # petabytes: no machine has them, and nothing is allocated before that is said
    refused("too little memory", ["run", "-m", "shape:llama2-13b:q8_0", "-p", "x", "-c", 1 << 26, "-np", 256],
            "GiB", "weights", "KV cache", "-c", status=1)


def kernels():
    result = tap.shoal("inspect", "--kernels")
    lines = result.out.splitlines()
    tap.ok(result.status == 0 and any(line.startswith("matmul q8_0 i8 ") for line in lines)
           and any(line.startswith("rmsnorm ") for line in lines), "inspect --kernels lists the rows", result)
    held = tap.start("inspect", "--kernels", env={**tap.ENV, "SHOAL_CPU": "c"}, text=True)
    out, _ = held.communicate()
    served = {line.split()[-1] for line in out.splitlines()[3:]}
    tap.ok(held.returncode == 0 and served == {"c"}, "SHOAL_CPU=c: c serves all rows", out)


def main():
    model = str(tap.mkmodel("bench.gguf", *TINY, "--type", "q8_0"))
    output(model)
    topologies(model)
    shapes()
    refusals(model)
    kernels()
    tap.done()


main()
