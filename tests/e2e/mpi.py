#!/usr/bin/env python3
"""Ranks that mpirun starts compute and train as one process does, and nothing of them hangs or is left
behind."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import tap

SHAPE = ["--layers", 3, "--heads", 12, "--kv-heads", 3, "--head-dim", 16, "--embd", 96, "--ff", 224,
         "--ctx", 256]
# Tests may run as root, and with fewer cores than ranks.
ENV = {**tap.ENV, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def mpirun(n_rank, *args, program=tap.PROGRAM, flags=(), env=None, timeout=60):
    """Runs to its end; its result. Status -1000: it hung."""
    words = ["mpirun", "--oversubscribe", "--bind-to", "none", *flags, "-n", str(n_rank), program,
             *map(str, args)]
    began = time.monotonic()
    process = subprocess.Popen(words, env={**ENV, **(env or {})}, stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        (out, err), status = process.communicate(), -1000
    return tap.Result(status, out, err, time.monotonic() - began, 0)


def answer(result):
    """Token ids and hashes of the last logits, or the result that has none."""
    logits = re.findall(r"sample \d+: .* logits ([0-9a-f]{16})", result.err)
    if result.status != 0 or not logits:
        return result
    return [line["tokens"] for line in sorted(result.lines(), key=lambda line: line["sample"])], logits


def run(model):
    words = ["run", "-m", model, "-p", "Once upon a time there was a little dog", "-n", 16, "--temp", 0.9,
             "--seed", 3, "--n-samples", 3, "-o", "json", "-v"]
    want = answer(tap.shoal(*words, "-t", 1))
    tap.ok(isinstance(want, tuple), "one process has an answer", want)
    for n_rank, flags in (2, []), (3, []), (5, []), (2, ["--mca", "btl", "tcp,self"]):
        got = answer(mpirun(n_rank, *words, flags=flags))
        tap.ok(got == want, f"mpirun -n {n_rank} {' '.join(flags)}: the same bits", got)
    with subprocess.Popen(["mpirun", "--oversubscribe", "-n", "2", tap.PROGRAM, "worker", "-m", model,
                           "--listen", f"127.0.0.1:{(port := tap.free_port())}"], env=ENV,
                          stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        worker.port = port
        tap.until(lambda: any(port in tap.listening(p) for p in tap.ours()), 15)
        for turn in "first", "second":  # each opens a group and closes it
            got = answer(tap.shoal(*words, "--nodes", tap.nodes_file([worker])))
            tap.ok(got == want, f"a secondary of two ranks under mpirun, {turn} session", got)
        worker.terminate()
    tap.ok(tap.until(lambda: not tap.ours(), 5), "it ends with mpirun", tap.ours())


def train():
    text = tap.TMP / "text"
    text.write_text("".join(f"The dog number {i} saw {i * 7 % 13} red balls under a tree.\n"
                            for i in range(300)))
    made = tap.shoal("prepare", text, "-o", tap.TMP / "dataset", "--tokenizer", "char")
    tap.ok(made.status == 0, "a text is prepared", made)
    words = ["train", "--dataset", tap.TMP / "dataset", "--layers", 2, "--heads", 2, "--width", 32,
             "--context", 32, "--batch-size", 8, "--max-iters", 6, "--ckpt-interval", 3, "--eval-iters", 2]
    one = tap.shoal(*words, "--ckpt", tap.TMP / "one")
    tap.ok(one.status == 0, "one process trains", one)
    two = mpirun(2, *words, "--ckpt", tap.TMP / "two")
    same = [(tap.TMP / "one" / name).read_bytes() == (tap.TMP / "two" / name).read_bytes()
            for name in ("last.gguf", "best.gguf")] if two.status == 0 else []
    tap.ok(same == [True, True], "two ranks under mpirun train the same bits", f"{same}\n{two}")


def sentences(model):
    """Rank 0 says it once, whatever else mpirun says."""
    alone = tap.TMP / "alone"
    alone.mkdir()
    shutil.copy(tap.PROGRAM, alone / "shoal")
    with_path = {"SHOAL_PROGRAM": str(alone / "shoal")}
    for name, want, result in [
            ("another number of ranks", "3 ranks, and mpirun has started 2: leave --tp out",
             mpirun(2, "run", "-m", model, "-p", "x", "--tp", 3)),
            ("a local ring", "give --nodes instead of --ring", mpirun(2, "run", "-m", model, "-p", "x", "--ring", 2)),
            ("no such model", "nothing.gguf", mpirun(2, "run", "-m", "nothing.gguf", "-p", "x")),
            ("too many ranks", "mpirun has started 9 ranks: at most 8", mpirun(9, "--version")),
            ("no module", f"{alone}/libshoal-mpi.so is not there",
             mpirun(2, "--version", program=alone / "shoal", env=with_path))]:
        tap.ok(result.status in (1, 2) and result.err.count(want) == 1, f"{name}: one sentence", result)
    result = mpirun(3, "inspect", model)
    tap.ok(result.status == 0 and result.out == tap.shoal("inspect", model).out,
           "other commands run once", result)
    result = tap.shoal("--version", env={**with_path, "OMPI_COMM_WORLD_SIZE": "1"})
    tap.ok(result.status == 0, "one rank needs no module", result)


def losses(model):
    """A rank or mpirun itself is killed: all end soon."""
    for who in "rank 1", "mpirun":
        process = subprocess.Popen(
            ["mpirun", "--oversubscribe", "-n", "3", tap.PROGRAM, "run", "-m", model, "-p", "x", "-n", "-1",
             "--ignore-eos", "--n-samples", "60000"], env=ENV, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ranks = lambda: [p for p, words in tap.ours().items() if words.startswith(tap.PROGRAM)]
        tap.until(lambda: len(ranks()) == 3, 15)
        time.sleep(1)  # until they compute
        numbers = {number_of(p): p for p in ranks()}
        os.kill(process.pid if who == "mpirun" else numbers[int(who[-1])], signal.SIGKILL)
        try:
            status = process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait() and "it hung"
        tap.ok(status not in (0, "it hung"), f"{who} is killed: mpirun fails", status)
        tap.ok(tap.until(lambda: not tap.ours(), 10), f"{who} is killed: all ranks end", tap.ours())


def number_of(pid):
    found = re.search(rb"\0OMPI_COMM_WORLD_RANK=(\d+)\0", pathlib.Path(f"/proc/{pid}/environ").read_bytes())
    return int(found[1]) if found else -1


def groups():
    """The collectives, by tests/comm/test_group.c."""
    for n_rank in 2, 5:
        result = mpirun(n_rank, "mpi", program=os.environ["SHOAL_TEST_GROUP"], env={"CMOCKA_MESSAGE_OUTPUT": "TAP"})
        tap.ok(result.status == 0 and len(re.findall(r"^ok ", result.out, re.M)) == 4,
               f"groups of {n_rank} ranks under mpirun", result)


def main():
    model = tap.mkmodel("model.gguf", *SHAPE)
    groups()
    run(model)
    train()
    sentences(model)
    losses(model)
    tap.done()


if __name__ == "__main__":
    main()
