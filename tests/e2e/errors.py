#!/usr/bin/env python3
"""What bad input and lost peers get (issue 2): one sentence and the right exit status within 10 s,
never a crash or a hang; no process and no shared memory of ours stays; strangers change nothing.
Its parts mostly wait, so they are run side by side: errors.py [input|workers|lost]... [--all]"""

import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import tap

sys.path.insert(0, str(tap.ROOT / "tests/tools"))
import gguf  # noqa: E402: found by the line above

TINY = ["--layers", 5, "--heads", 4, "--kv-heads", 2, "--head-dim", 16, "--embd", 64, "--ff", 96,
        "--ctx", 1024]
# Big enough that a long run is still at it when the test kills something.
LONG = ["--layers", 6, *(["--heads", 4, "--kv-heads", 2, "--embd", 256, "--ff", 512] if tap.SANITIZED else
                         ["--heads", 8, "--kv-heads", 4, "--embd", 512, "--ff", 1024]),
        "--head-dim", 64, "--ctx", 4096]
LONG_RUN = ["-p", "Once upon a time", "-n", 4000, "-c", 4096, "--temp", 0.9, "-s", 5]


def one_sentence(text):
    """No stack of messages, no sanitizer's report."""
    lines = text.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("shoal") and "Sanitizer" not in text


def refused(name, args, status, *words, stdin=None, env=None):
    """The command ends with this status and one sentence in which each of the words occurs."""
    result = tap.shoal(*args, stdin=stdin, timeout=10, env=env)
    good = (result.status == status and one_sentence(result.err) and result.out == ""
            and all(str(w).lower() in result.err.lower() for w in words))
    tap.ok(good, f"{name}: status {status}, says {', '.join(map(str, words)) or 'why'}", result)


def usage(model):
    run = ["run", "-m", model]
    missing = tap.TMP / "missing.gguf"
    refused("unknown flag", [*run, "--frobnicate"], 2, "--frobnicate", "shoal run --help")
    refused("misspelt flag", [*run, "--n-sample", 2], 2, "--n-samples")
    refused("flag without its value", [*run, "-p"], 2, "-p")
    refused("flag with a bad number", [*run, "-p", "x", "-n", "many"], 2, "-n", "many")
    refused("nine ranks", [*run, "-p", "x", "--tp", 9], 2, "8")
    refused("less than no rank", [*run, "-p", "x", "--tp", -1], 2, "--tp")
    refused("more nodes than layers", [*run, "-p", "x", "--ring", 6], 2, "5")
    refused("unknown arithmetic", [*run, "-p", "x", "--arith", "fp3"], 2, "fp3", "int8", "bf16")
    refused("unknown cache type", [*run, "-p", "x", "--kv", "q9"], 2, "q9", "f16")
    refused("unknown output", [*run, "-p", "x", "-o", "xml"], 2, "xml", "json")
    away = tap.TMP / "away"
    away.mkdir()
    shutil.copy(tap.PROGRAM, away / "shoal")  # where the project's own model is not beside it
    env = {"SHOAL_PROGRAM": str(away / "shoal"), "SHOAL_MODEL": ""}
    refused("no model named", ["run", "-p", "x"], 2, "-m", "stories.gguf", env=env)
    refused("missing model", ["run", "-m", missing, "-p", "x"], 2, missing)
    refused("missing model, inspect", ["inspect", missing], 2, missing)
    refused("missing model, tokenize", ["tokenize", "-m", missing, "-p", "x"], 2, missing)
    refused("missing model, quantize", ["quantize", missing, tap.TMP / "o.gguf", "q8_0"], 2, missing)
    refused("missing model, worker", ["worker", "--listen", f"127.0.0.1:{tap.free_port()}", "-m",
                                      missing], 2, missing)
    refused("model is a folder", ["run", "-m", tap.TMP, "-p", "x"], 2, tap.TMP)
    refused("missing prompt file", [*run, "-f", missing], 2, missing)
    refused("missing nodes file", [*run, "-p", "x", "--nodes", missing], 2, missing)
    refused("unknown type to quantize to", ["quantize", model, tap.TMP / "o.gguf", "q9_9"], 2, "q9_9",
            "q8_0")
    refused("unknown command", ["fly"], 2, "fly")
    refused("a bad address", ["worker", "--listen", "nowhere", "-m", model], 2, "nowhere")
    refused("prompt longer than the context", [*run, "-c", 16, "-p", "once upon a time " * 40], 2, "16",
            "context")
    learned = tap.mkmodel("learned.gguf", "--family", "gpt2", "--ctx", 64)
    refused("more positions than were learned", ["run", "-m", learned, "-p", "x", "-c", 65], 2, "65", "64",
            "-c")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("port in use", ["worker", "--listen", f"127.0.0.1:{port}", "-m", model], 2, port,
                "in use")

    for name, text, words in [("not JSON", "{nodes", ()), ("no secondaries", "{}", ("nodes",)),
                              ("no address", '{"nodes": {"starter": {"addr": "127.0.0.1"}, '
                                             '"secondary": [{}]}}', ())]:
        path = tap.TMP / "bad-nodes.json"
        path.write_text(text)
        refused(f"nodes file: {name}", [*run, "-p", "x", "--nodes", path], 2, path, *words)


def damaged(model, family, everything):
    data = model.read_bytes()
    header = gguf.Header(data)
    head = header.data_at
    bad = tap.TMP / "damaged.gguf"
    baseline = tap.shoal("inspect", model).max_rss_bytes

    def commands():
        yield ["inspect", bad]
        yield ["run", "-m", bad, "-p", "Once", "-n", 1]

    for cut in sorted({0, 1, 4, 8, 23, 24, 40, 100, head // 3, head // 2, head - 40, len(data) // 2,
                       len(data) - 33, len(data) - 1}):
        bad.write_bytes(data[:cut])
        for args in commands():
            refused(f"cut off at {cut} of {len(data)}, {args[0]}", args, 2, bad)

    # Any byte changed: refused or computed, never worse.
    rng = random.Random(2)
    worst, limit = [], baseline + len(data) + (64 << 20)
    n = 400 if everything else 20 if tap.SANITIZED else 40
    for _ in range(n):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(head)] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)])
        bad.write_bytes(changed)
        for args in commands():
            result = tap.shoal(*args, timeout=10)
            fine = result.status == 0 or (result.status == 2 and one_sentence(result.err)
                                          and str(bad) in result.err)
            if not fine or (result.max_rss_bytes > limit and not tap.SANITIZED):
                worst.append(f"{args}: {result}, {result.max_rss_bytes} bytes")
    tap.ok(not worst, f"{n} files with bytes changed: an error or an answer", "\n".join(worst))

    at = data.index(struct.pack("<Q", len(family)) + family)
    changed = bytearray(data)
    changed[at + 8:at + 8 + len(family)] = b"zebra"[:len(family)]
    bad.write_bytes(changed)
    refused("unknown family", ["run", "-m", bad, "-p", "x"], 2, bad, "zebra", "llama")

    for number, words in [(12, ("q4_k",)), (999, ("999",))]:
        changed = bytearray(data)
        struct.pack_into("<I", changed, header.type_at["output_norm.weight"], number)
        bad.write_bytes(changed)
        refused(f"type number {number}", ["run", "-m", bad, "-p", "x"], 2, bad, *words, "q8_0")


def nothing_left(name, shm_before):
    left = tap.until(lambda: not tap.ours(), 5)
    tap.ok(left, f"{name}: no process stays", tap.ours())
    new = set(tap.in_dev_shm()) - set(shm_before)
    tap.ok(not new, f"{name}: nothing of ours stays in /dev/shm", new)
    for pid in tap.ours():
        os.kill(pid, signal.SIGKILL)


class Running:
    """A command that goes on by itself. It writes to files: a child that outlives it holds no pipe."""

    def __init__(self, *args, **kw):
        self.out_file, self.err_file = (tempfile.NamedTemporaryFile(dir=tap.TMP) for _ in "12")
        self.process = tap.start(*args, stdout=self.out_file, stderr=self.err_file, **kw)
        self.pid = self.process.pid

    def text(self, file):
        return tap.plain(pathlib.Path(file.name).read_text(errors="backslashreplace"))

    def begun(self):
        """Whether it has written text: then it is in the middle of things."""
        return tap.until(lambda: self.text(self.out_file) or self.process.poll() is not None, 20)

    def end(self, limit):
        """Status, seconds, stdout, stderr; the status is -1000 if it did not end in time."""
        began = time.monotonic()
        try:
            status = self.process.wait(limit * tap.SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = -1000
        return status, time.monotonic() - began, self.text(self.out_file), self.text(self.err_file)


def lost_in_the_middle(model):
    """A rank, a local node, or the first process itself goes away."""
    shm = tap.in_dev_shm()
    for flags, what in [(["--tp", 3], "rank"), (["--ring", 3], "node"),
                        (["--ring", 2, "--tp", 2], "rank or node")]:
        process = Running("run", "-m", model, *LONG_RUN, *flags)
        begun = process.begun()
        children = tap.descendants(process.pid)
        title = f"{' '.join(map(str, flags))}: a {what} killed"
        tap.ok(begun and children, f"{title}: it had begun, with {len(children)} children")
        if children:
            os.kill(children[-1], signal.SIGKILL)
        status, seconds, out, err = process.end(10)
        tap.ok(status == 1 and one_sentence(err) and ("rank" in err or "node" in err)
               and seconds < 10 * tap.SLOW,
               f"{title}: status 1, the sentence names it", f"{status}, {seconds} s: {err}")
        nothing_left(title, shm)

    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        every = [["--tp", 2], ["--ring", 3], ["--ring", 2, "--tp", 2]]
        for flags in every[2:] if tap.SANITIZED else every:  # each waits for seconds
            process = Running("run", "-m", model, *LONG_RUN, *flags)
            process.begun()
            process.process.send_signal(sig)
            status, seconds, out, err = process.end(10)
            title = f"{' '.join(map(str, flags))}: {sig.name}"
            tap.ok(status not in (0, -1000), f"{title}: it ends, not with 0", f"{status}: {err}")
            nothing_left(title, shm)


def signal_to_the_terminal(model):
    """Ctrl-C goes to every process of the terminal's group at once."""
    shm = tap.in_dev_shm()
    process = Running("run", "-m", model, *LONG_RUN, "--ring", 2, "--tp", 2, start_new_session=True)
    begun = process.begun()
    os.killpg(process.pid, signal.SIGINT)
    status, _, out, err = process.end(10)
    tap.ok(begun and status not in (0, -1000) and "rank" not in err and "lost" not in err,
           "Ctrl-C to the whole group: ends without complaints about lost peers", f"{status}: {err}")
    nothing_left("Ctrl-C to the whole group", shm)


def workers(model, other):
    run = ["run", "-m", model, "-p", "Once upon a time", "-n", 30, "-s", 3, "--temp", 0.8, "-o", "json",
           "--n-samples", 3]
    alone = tap.shoal(*run)
    tap.ok(alone.status == 0, "one process", alone)
    want = sorted(alone.out.splitlines())

    absent = tap.TMP / "absent.json"
    with tap.Worker(model) as a:
        gone = type(a).__new__(type(a))
        gone.port = tap.free_port()
        absent = tap.nodes_file([a, gone], "absent.json")
        result = tap.shoal(*run, "--nodes", absent, timeout=15)
        tap.ok(result.status == 1 and one_sentence(result.err)
               and f"127.0.0.1:{gone.port}" in result.err and result.seconds < 10 * tap.SLOW,
               "a worker that is not there: named within 10 s", result)
    with tap.Worker(model) as a, tap.Worker(other) as b:
        result = tap.shoal(*run, "--nodes", tap.nodes_file([a, b]), timeout=15)
        tap.ok(result.status in (1, 2) and one_sentence(result.err) and b.addr in result.err
               and "model" in result.err, "a worker with another model: refused by name", result)

    with tap.Worker(model) as a, tap.Worker(model, "--tp", 2) as b:
        nodes = tap.nodes_file([a, b])
        for turn in ("first", "second"):
            result = tap.shoal(*run, "--nodes", nodes)
            tap.ok(result.status == 0 and sorted(result.out.splitlines()) == want,
                   f"two workers, {turn} run: the same text as one process", result)
        tap.ok(a.process.poll() is None and b.process.poll() is None, "the workers still wait",
               a.text() + b.text())
        strangers(a, b, run, nodes, want)
    left = tap.until(lambda: not tap.ours(), 5)
    tap.ok(left, "ended workers leave no process", tap.ours())


def zmtp(kind):
    """What a ZeroMQ peer without keys says first: greeting, READY, two messages."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return greeting + b"\x04" + bytes([len(ready)]) + ready


def pester(port, rng):
    """A stranger's bytes to one port: noise, half a greeting, a peer of every kind with noise in it."""
    texts = [rng.randbytes(rng.randrange(1, 5000)), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10, b"",
             b"\x00" * 3000]
    for kind in (b"DEALER", b"PUSH", b"PAIR", b"REQ", b"ROUTER", b"PULL"):
        body = rng.randbytes(rng.randrange(1, 200))
        texts.append(zmtp(kind) + b"\x00" + bytes([len(body)]) + body + b"\x01\x00\x00\x00")
    for text in texts:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as s:
                s.sendall(text)
                s.settimeout(0.01)
                try:
                    s.recv(4096)
                except OSError:
                    pass
        except OSError:
            pass


def strangers(a, b, run, nodes, want):
    rng = random.Random(11)
    more = ["-n", 120 if tap.SANITIZED else 400]
    process = Running(*run, *more, "--nodes", nodes)
    rounds = 0
    while process.process.poll() is None and rounds < (10 if tap.SANITIZED else 40):
        for worker in (a, b):
            for port in tap.listening(worker.pid):
                pester(port, rng)
        for port in tap.listening(process.pid):
            pester(port, rng)
        rounds += 1
    status, _, out, err = process.end(60)
    long_want = tap.shoal(*run, *more)
    tap.ok(status == 0 and sorted(out.splitlines()) == sorted(long_want.out.splitlines()),
           "strangers during a run change nothing", f"{status}, {rounds} rounds: {err}")
    tap.ok(rounds > 0, f"they came {rounds} times")
    for worker in (a, b):
        for port in tap.listening(worker.pid):
            pester(port, rng)
    result = tap.shoal(*run, "--nodes", nodes)
    tap.ok(result.status == 0 and sorted(result.out.splitlines()) == want,
           "strangers between runs change nothing", result)


def worker_killed(model):
    with tap.Worker(model) as a, tap.Worker(model) as b:
        nodes = tap.nodes_file([a, b])
        process = Running("run", "-m", model, *LONG_RUN, "--nodes", nodes)
        process.begun()

        busy = tap.shoal("run", "-m", model, "-p", "x", "-n", 1, "--nodes", nodes, timeout=15)
        tap.ok(busy.status == 1 and one_sentence(busy.err) and "busy" in busy.err
               and (a.addr in busy.err or b.addr in busy.err),
               "a second starter is told that the worker is busy", busy)

        b.process.kill()
        status, seconds, out, err = process.end(10)
        tap.ok(status == 1 and one_sentence(err) and b.addr in err and seconds < 10 * tap.SLOW,
               "a worker killed in the middle: named within 10 s, status 1",
               f"{status}, {seconds:.1f} s: {err}")
        tap.ok(len(out) > 0, "what was printed stays")
        tap.ok(a.process.poll() is None, "the other worker lives", a.text())
        with tap.Worker(model, port=b.port):
            again = tap.shoal("run", "-m", model, "-p", "Once", "-n", 4, "--nodes", nodes)
            tap.ok(again.status == 0, "and takes part in the next run", again)

    # The starter of a worker's session is killed: the worker waits for the next one.
    with tap.Worker(model) as a:
        nodes = tap.nodes_file([a])
        process = Running("run", "-m", model, *LONG_RUN, "--nodes", nodes)
        process.begun()
        process.process.kill()
        process.end(5)
        began = time.monotonic()
        again = tap.until(
            lambda: tap.shoal("run", "-m", model, "-p", "Once", "-n", 4, "--nodes", nodes).status == 0,
            12)
        tap.ok(again, "starter killed: its worker serves the next one", a.text())
        tap.note(f"{time.monotonic() - began:.1f} s until the worker was free again")

    # A worker stopped from outside (a host that vanished): silence is noticed as well.
    with tap.Worker(model) as a:
        process = Running("run", "-m", model, *LONG_RUN, "--nodes", tap.nodes_file([a]))
        process.begun()
        a.process.send_signal(signal.SIGSTOP)
        status, seconds, out, err = process.end(12)
        a.process.send_signal(signal.SIGCONT)
        tap.ok(status == 1 and a.addr in err and seconds < 10 * tap.SLOW,
               "a worker that falls silent: named within 10 s", f"{status}, {seconds:.1f} s: {err}")


def main():
    everything = "--all" in sys.argv
    parts = [word for word in sys.argv[1:] if word != "--all"] or ["input", "workers", "lost"]
    if not set(parts) <= {"input", "workers", "lost"}:
        raise SystemExit(f"Bail out! no such part: {parts}")
    model = tap.mkmodel("tiny.gguf", *TINY)
    long = tap.mkmodel("long.gguf", *LONG)
    shm = tap.in_dev_shm()
    if "input" in parts:
        usage(model)
        damaged(model, b"llama", everything)
    if "workers" in parts:
        workers(model, tap.mkmodel("other.gguf", *TINY, "--seed", 2))
    if "lost" in parts:
        worker_killed(long)
        lost_in_the_middle(long)
        signal_to_the_terminal(long)
    nothing_left("after everything", shm)
    tap.done()


if __name__ == "__main__":
    main()
