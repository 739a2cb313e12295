"""What the end-to-end tests share: running the program, TAP output, and finding what it left behind.
Standard library only."""

import atexit
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(os.environ.get("SHOAL_SOURCE_ROOT") or pathlib.Path(__file__).parents[2]).resolve()
PROGRAM = os.environ.get("SHOAL_PROGRAM") or str(ROOT / "build/shoal")
MKMODEL = os.environ.get("SHOAL_MKMODEL") or str(ROOT / "build/tests/mkmodel")
SHARED = pathlib.Path(os.environ.get("SHOAL_SHARED") or ROOT.parent / "shared")
# Sanitizers make everything slower and larger: tests of time and memory ask.
SANITIZED = os.environ.get("SHOAL_SANITIZE", "none") != "none"
SLOW = 4 if SANITIZED else 1

TMP = pathlib.Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
atexit.register(shutil.rmtree, TMP, ignore_errors=True)

# Every process that a test starts, and their children, carry this mark in their environment.
MARK = f"SHOAL_E2E={os.getpid()}.{time.monotonic_ns()}"
ENV = {**os.environ, **dict([MARK.split("=")]), "SHOAL_PROGRAM": PROGRAM,
       "SHOAL_MODEL": str(ROOT / "models/stories.gguf")}  # a build folder may be anywhere

count = failures = 0


def ok(good, name, detail=""):
    """One test case. Gives `good` back."""
    global count, failures
    count += 1
    name = name.replace("#", "no.").replace("\n", " ")
    print(f"{'ok' if good else 'not ok'} {count} - {name}", flush=True)
    if not good:
        failures += 1
        for line in str(detail).splitlines()[:40]:
            print(f"# {line}", file=sys.stderr, flush=True)
    return good


def note(text):
    print(f"# {text}", flush=True)


def done():
    print(f"1..{count}", flush=True)
    sys.exit(1 if failures or not count else 0)


class Result:
    def __init__(self, status, out, err, seconds, max_rss_bytes):
        self.status, self.out, self.err = status, out, err
        self.seconds, self.max_rss_bytes = seconds, max_rss_bytes

    def __str__(self):
        return (f"status {self.status}, {self.seconds:.2f} s\nstdout: {self.out[-1500:]!r}\n"
                f"stderr: {self.err[-3000:]}")

    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


def plain(text):
    """What the program wrote, less a remark of LeakSanitizer: at exit it lists the threads, and one that
    has been joined may still be leaving the kernel. That is no leak and no fault of the program."""
    return re.sub(r"==\d+==Unable to get registers from thread \d+\.\n?", "", text) if SANITIZED else text


def start(*args, **kw):
    kw.setdefault("env", ENV)
    kw.setdefault("stdin", subprocess.DEVNULL)
    kw.setdefault("stdout", subprocess.PIPE)
    kw.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen([PROGRAM, *map(str, args)], **kw)


def shoal(*args, stdin=None, timeout=60, env=None):
    """Runs the program to its end. Status -1000: it hung and was killed. env: more variables."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(*args, stdout=out, stderr=err, env={**ENV, **(env or {})},
                        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL)
        if stdin is not None:
            process.stdin.write(stdin if isinstance(stdin, bytes) else stdin.encode())
            process.stdin.close()
        status, usage = wait4(process, timeout * SLOW)
        texts = []
        for f in (out, err):
            f.seek(0)
            texts.append(plain(f.read().decode("utf-8", "backslashreplace")))
    return Result(status, *texts, time.monotonic() - began, usage.ru_maxrss * 1024)


def wait4(process, timeout):
    """Waits for a process; its status and what it used. -1000 after a kill at the time limit."""
    end = time.monotonic() + timeout
    hung = False
    while True:
        pid, raw, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = -1000 if hung else os.waitstatus_to_exitcode(raw)
            return process.returncode, usage
        if time.monotonic() > end:
            hung = True
            process.kill()
        time.sleep(0.003)


def mkmodel(name, *args):
    """A model of random weights; the same bytes for the same arguments."""
    path = TMP / name
    run = subprocess.run([MKMODEL, *map(str, args), str(path)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"Bail out! mkmodel {args}: {run.stderr}")
    return path


def tokens_hash(ids):
    """First 16 hex digits of the SHA-256 of the ids as little-endian uint32."""
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()[:16]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(pid):
    """TCP ports on which a process listens."""
    inodes = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    except OSError:
        return []
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            word = line.split()
            if word[3] == "0A" and word[9] in inodes:
                ports.add(int(word[1].rsplit(":", 1)[1], 16))
    return sorted(ports)


def ours():
    """Processes alive that carry our mark: {pid: command line}. Zombies are not alive."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            proc = pathlib.Path("/proc") / entry
            if MARK.encode() not in (proc / "environ").read_bytes().split(b"\0"):
                continue
            if re.search(r"^State:\s+Z", (proc / "status").read_text(), re.M):
                continue
            found[int(entry)] = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def descendants(pid):
    """Pids of the living children of a process, theirs too."""
    parents = {}
    for p in ours():
        try:
            parents[p] = int(re.search(r"^PPid:\s+(\d+)",
                                       pathlib.Path(f"/proc/{p}/status").read_text(), re.M)[1])
        except OSError:
            continue
    found, grown = {pid}, True
    while grown:
        grown = {p for p, parent in parents.items() if parent in found and p not in found}
        found |= grown
    return sorted(found - {pid})


def until(condition, timeout):
    """Waits for condition() to be true; gives its last value back."""
    end = time.monotonic() + timeout * SLOW
    while True:
        value = condition()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.02)


def in_dev_shm():
    """What of ours is in /dev/shm."""
    return sorted(n for n in os.listdir("/dev/shm") if "shoal" in n)


class Worker:
    """A `shoal worker` on this host; a context."""

    def __init__(self, model, *args, port=None):
        self.port = port or free_port()
        self.addr = f"127.0.0.1:{self.port}"
        self.log = open(TMP / f"worker-{self.port}.log", "w+b")
        self.process = start("worker", "--listen", self.addr, "-m", model, *args,
                             stdout=self.log, stderr=self.log)
        self.pid = self.process.pid

    def __enter__(self):
        if not until(lambda: self.port in listening(self.pid) or self.process.poll() is not None, 15):
            raise SystemExit(f"Bail out! worker {self.addr} does not listen: {self.text()}")
        if self.process.poll() is not None:
            raise SystemExit(f"Bail out! worker {self.addr} ended: {self.text()}")
        return self

    def text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text(errors="backslashreplace")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5 * SLOW)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def nodes_file(workers, name="nodes.json"):
    """The JSON that MDI-LLM uses, for workers on this host."""
    def node(port):
        return {"addr": "127.0.0.1", "communication": {"port": port, "starter_addr": "127.0.0.1"},
                "inference": {"port_in": free_port(), "port_out": free_port()}, "device": "cpu"}
    path = TMP / name
    path.write_text(json.dumps({"nodes": {"starter": node(free_port()),
                                          "secondary": [node(w.port) for w in workers]}}))
    return path
