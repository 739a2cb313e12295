#!/usr/bin/env python3
"""Training as a user does it (issue 4): the loss falls, the model speaks; ranks and threads change no
bit; a run that is killed or interrupted goes on as if it had not been; what does not fit together, and
numbers that are none, get a sentence, and no checkpoint is lost."""

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import tap

# The smallest of each family that has every part.
GPT2 = ["--layers", 2, "--width", 32, "--heads", 2, "--context", 16]
LLAMA = ["--family", "llama", "--layers", 2, "--width", 32, "--heads", 4, "--kv-heads", 2, "--context", 16]
RUN = ["--batch-size", 6, "--max-iters", 24, "--ckpt-interval", 8, "--log-interval", 2, "--eval-iters", 2,
       "--warmup", 4, "--lr", 0.01, "--min-lr", 0.001, "-t", 1]
# One that is still at it when something happens to it.
LONG = [*RUN, "--max-iters", 3000, "--ckpt-interval", 20, "--no-sample"]


def one_sentence(text):
    lines = text.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("shoal train: ") and "Sanitizer" not in text


def refused(name, args, status, *words):
    result = tap.shoal("train", *args, timeout=20)
    tap.ok(result.status == status and one_sentence(result.err)
           and all(str(w) in result.err for w in words),
           f"{name}: status {status}, says {', '.join(map(str, words))}", result)


def make_text(name, n, seed=1):
    """Small words in an order that can be learned."""
    rng = random.Random(seed)
    who, does, what = ["the cat", "a dog", "the old man", "she"], ["sees", "has", "finds"], \
        ["a ball.", "the sun.", "two birds.", "her hat."]
    text = ""
    while len(text) < n:
        text += f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}\n"
    path = tap.TMP / name
    path.write_text(text)
    return path


def prepare(name, text, tokenizer="char", *more):
    folder = tap.TMP / name
    result = tap.shoal("prepare", text, "-o", folder, "--tokenizer", tokenizer, *more)
    tap.ok(result.status == 0, f"prepare {name}", result)
    return folder


def rows(folder, timing=False):
    """loss.csv without its columns of time."""
    lines = (folder / "loss.csv").read_text().splitlines()
    return [line if timing else ",".join(line.split(",")[:5]) for line in lines]


def sha(folder, name="last.gguf"):
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def train(name, data, *args, status=0, **kw):
    """A run to its end in a new folder."""
    folder = tap.TMP / name
    result = tap.shoal("train", "--ckpt", folder, "--dataset", data, *args, **kw)
    tap.ok(result.status == status, f"train {name}: status {status}", result)
    return folder, result


def speaks(name, folder):
    result = tap.shoal("run", "-m", folder / "best.gguf", "-p", "the cat", "-n", 8, "--temp", 0)
    tap.ok(result.status == 0 and len(result.out.strip()) > 0, f"{name}: the model runs", result)


def first_run(data):
    folder, result = train("first", data, *GPT2, *RUN)
    table = [line.split(",") for line in rows(folder, timing=True)]
    tap.ok(table[0] == "iter,tokens,train_loss,val_loss,lr,tokens_per_s,seconds".split(","),
           "loss.csv has its header", table[0])
    tap.ok([int(r[0]) for r in table[1:]] == list(range(0, 25, 2))
           and all((r[3] != "") == (int(r[0]) % 8 == 0) for r in table[1:])
           and all(int(r[1]) == int(r[0]) * 6 * 16 for r in table[1:]),
           "a row for each line, validation losses at evaluations, tokens counted", table)
    first, last = float(table[1][3]), float(table[-1][3])
    tap.ok(last < first - 0.4, f"the validation loss falls: {first:.2f} to {last:.2f}")
    err = result.err
    tap.ok("iter 24 of 24: loss" in err and "tok/s" in err and "% of peak" in err and " left" in err
           and "validation loss" in err, "lines of progress", result)
    tap.ok(err.count("\n    ") >= 3, "a sample of text at each evaluation", result)
    tap.ok(sorted(p.name for p in folder.iterdir() if p.name != "loss.svg") ==
           ["best.gguf", "last.gguf", "last.opt", "loss.csv"], "the folder has its files, no others",
           list(folder.iterdir()))
    if shutil.which("gnuplot"):
        svg = folder / "loss.svg"
        tap.ok(svg.exists() and "</svg>" in svg.read_text() and "validation loss" in svg.read_text(),
               "a picture of the losses")
    else:
        tap.note("gnuplot is not installed: no picture to look at")
    bare = {**tap.ENV, "PATH": "/nonexistent"}
    _, result = train("bare", data, *GPT2, *RUN, "--max-iters", 8, "--no-sample", env=bare)
    tap.ok(result.err.count("gnuplot") == 1, "without gnuplot it says so once and goes on", result)
    speaks("gpt2", folder)
    quiet, result = train("quiet", data, *GPT2, *RUN, "-q")
    tap.ok(result.err == "" and rows(quiet) == rows(folder), "-q says nothing and changes nothing", result)
    return folder


def same_bits(data, want):
    """want: the folder of one rank with one thread."""
    for name, args in [("two threads", ["-t", 2]), ("two ranks", ["--ranks", 2]),
                       ("four ranks", ["--ranks", 4])]:
        folder, _ = train(name.replace(" ", "-"), data, *GPT2, *RUN, "--no-sample", *args)
        tap.ok(rows(folder) == rows(want) and sha(folder) == sha(want)
               and sha(folder, "best.gguf") == sha(want, "best.gguf"),
               f"{name}: the same losses and weights as one", "\n".join(rows(folder)))
    more = [*LLAMA, *RUN, "--no-sample", "--grad-acc-steps", 2, "--dropout", 0.1, "--dtype", "f32",
            "--untied"]
    one, _ = train("llama1", data, *more)
    four, _ = train("llama4", data, *more, "--ranks", 4)
    tap.ok(rows(one) == rows(four) and sha(one) == sha(four),
           "llama, accumulation, dropout, f32: four ranks as one", "\n".join(rows(four)))
    speaks("llama", one)
    if shutil.which("mpirun") and not tap.SANITIZED:
        folder = tap.TMP / "mpi"
        result = subprocess.run(
            ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", tap.PROGRAM, "train", "--ckpt",
             str(folder), "--dataset", str(data), *map(str, [*GPT2, *RUN])],
            env=tap.ENV, capture_output=True, text=True, timeout=60)
        tap.ok(result.returncode == 0 and rows(folder) == rows(want) and sha(folder) == sha(want),
               "mpirun -n 2: the same losses and weights as one", result.stderr)
    else:
        tap.note("mpirun is not installed, or has no place under sanitizers")


def until_row(folder, n, process):
    """Waits until loss.csv has the row of iteration n."""
    def there():
        try:
            return any(int(line.split(",")[0]) >= n for line in rows(folder)[1:])
        except (OSError, ValueError):
            return False
    return tap.until(lambda: there() or process.poll() is not None, 30) and process.poll() is None


def broken_off(data):
    """SIGKILL, SIGINT, SIGTERM in the middle; then on to the end, as if nothing had been."""
    whole, _ = train("whole", data, *GPT2, *LONG, "--max-iters", 400)
    ways = [("killed", signal.SIGKILL, 1), ("ctrl-c-ranks", signal.SIGINT, 2)]
    if not tap.SANITIZED:  # there it would take long
        ways += [("killed-ranks", signal.SIGKILL, 2), ("ctrl-c", signal.SIGINT, 1),
                 ("sigterm", signal.SIGTERM, 1)]
    for name, sig, n_rank in ways:
        folder = tap.TMP / name
        args = ["train", "--ckpt", folder, "--dataset", data, *GPT2, *LONG, "--decay-iters", 400]
        process = tap.start(*args, "--ranks", n_rank, start_new_session=True)
        begun = until_row(folder, 50, process)
        if sig == signal.SIGINT:
            os.killpg(process.pid, sig)  # as a terminal does: to all processes
        else:
            process.send_signal(sig)
        began = time.monotonic()
        err = tap.plain(process.communicate()[1].decode())
        seconds = time.monotonic() - began
        whole_rows = (folder / "loss.csv").read_text().endswith("\n")
        want = -9 if sig == signal.SIGKILL else 128 + sig
        tap.ok(begun and process.returncode == want and seconds < 10 * tap.SLOW,
               f"{name}: it had begun and ends with {want}", f"{process.returncode}, {seconds} s: {err}")
        if sig != signal.SIGKILL:
            tap.ok("interrupted after iteration" in err.splitlines()[-1] and "--resume" in err and whole_rows,
                   f"{name}: says where it is and how to go on", err)
        left = tap.until(lambda: not tap.ours(), 5)
        tap.ok(left, f"{name}: no process stays", tap.ours())
        result = tap.shoal("train", "--resume", "--ckpt", folder, "--dataset", data, "--max-iters", 400,
                           "--decay-iters", 0, "--no-sample", "-t", 1)
        tap.ok(result.status == 0 and "going on after iteration" in result.err, f"{name}: goes on", result)
        done = int(result.err.split("going on after iteration ")[1].split()[0])
        said = f"interrupted after iteration {done};"
        tap.ok(done >= 40 and (done % 20 == 0 if sig == signal.SIGKILL else said in err),
               f"{name}: less than an interval was lost, nothing in an orderly end", f"{done}: {err}")
        tap.ok(rows(folder) == rows(whole) and sha(folder) == sha(whole)
               and sha(folder, "best.gguf") == sha(whole, "best.gguf"),
               f"{name}: the same losses and weights as the unbroken run",
               "\n".join(set(rows(folder)) ^ set(rows(whole))))
    again = tap.shoal("train", "--resume", "--ckpt", whole, "--dataset", data, "-t", 1)
    tap.ok(again.status == 0 and "already" in again.err, "a run that is done says so", again)
    return whole


def ctrl_c_while_drawing(data):
    """What draws the picture gets no SIGINT from the terminal: gnuplot can hang for it."""
    folder, bin_dir = tap.TMP / "drawing", tap.TMP / "bin"
    bin_dir.mkdir()
    (bin_dir / "gnuplot").write_text(f"""#!{sys.executable}
import pathlib, signal, time
def hang(*_):
    pathlib.Path("{bin_dir}/got").touch()
    time.sleep(60)
signal.signal(signal.SIGINT, hang)
pathlib.Path("{bin_dir}/drawing").touch()
time.sleep(2)
""")
    (bin_dir / "gnuplot").chmod(0o755)
    process = tap.start("train", "--ckpt", folder, "--dataset", data, *GPT2, *LONG, start_new_session=True,
                        env=dict(tap.ENV, PATH=f"{bin_dir}:{os.environ['PATH']}"))
    begun = tap.until((bin_dir / "drawing").exists, 30)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60 * tap.SLOW)[1].decode()
    tap.ok(begun and process.returncode == 130 and not (bin_dir / "got").exists(),
           "Ctrl-C while the picture is drawn: the drawing program does not get it", err)


def ends(data):
    folder, result = train("patience", data, *GPT2, *RUN, "--max-iters", 5000, "--ckpt-interval", 4,
                           "--patience", 2, "--lr", 0, "--min-lr", 0, "--no-sample", "-au")
    table = rows(folder)
    tap.ok("2 evaluations without" in result.err and table[-1].startswith("8,"),
           "--patience 2: stops after two evaluations that are no better", result)
    tap.ok(sha(folder) == sha(folder, "best.gguf"), "-au: best.gguf is the last model", table)


def finetune(text):
    """From a model with random weights and its own tokenizer."""
    model = tap.mkmodel("base.gguf", "--layers", 2, "--heads", 4, "--kv-heads", 2, "--head-dim", 16,
                        "--embd", 64, "--ff", 96, "--type", "q8_0")
    data = prepare("data-base", text, model)
    folder, result = train("tuned", data, *RUN, "--init", model, "--context", 16, "--lr", 0.003)
    table = [line.split(",") for line in rows(folder)[1:]]
    tap.ok(float(table[-1][3]) < float(table[0][3]) - 0.5, "finetuning: the loss falls", table)
    speaks("finetuned", folder)
    return model


def bad_input(data, text, folder, base):
    """folder: of a finished run."""
    out = tap.TMP / "none"
    new = ["--ckpt", out, "--dataset", data]
    refused("no folders", [], 2, "--ckpt")
    refused("no text", ["--ckpt", out], 2, "--dataset", "shoal prepare")
    refused("missing dataset", ["--ckpt", out, "--dataset", tap.TMP / "nowhere"], 2, "nowhere",
            "shoal prepare")
    refused("three ranks", [*new, "--ranks", 3], 2, "1, 2, 4 or 8")
    refused("unknown shape", [*new, "--shape", "huge"], 2, "huge", "tinyllama")
    refused("unknown family", [*new, "--family", "gptj"], 2, "gptj", "llama")
    refused("a shape that only runs", [*new, "--shape", "gptj-6b"], 2, "gptj", "does not train")
    refused("unknown type", [*new, "--dtype", "f16"], 2, "f16", "bf16")
    refused("heads that do not divide", [*new, "--heads", 3], 2, "--heads")
    refused("a text shorter than the context", [*new, "--context", 100000], 2, "train.bin", 100000)
    refused("a place for checkpoints that cannot be", ["--ckpt", text / "x", "--dataset", data], 1, text)
    refused("too large for the memory", [*new, "--width", 1 << 18, "--layers", 500], 1, "GiB")
    refused("a folder that holds a checkpoint", ["--ckpt", folder, "--dataset", data], 2, "--resume")
    refused("nothing to go on from", [*new, "--resume"], 2, out, "no checkpoint")
    resume = ["--resume", "--ckpt", folder, "--dataset"]
    refused("another shape", [*resume, data, "--layers", 3], 2, "--layers", "another shape")
    refused("another family", [*resume, data, "--family", "llama"], 2, "gpt2")
    other = prepare("other", make_text("other.txt", 5000), "bpe", "--vocab-size", 270)
    refused("another vocabulary", [*resume, other], 2, "vocabulary", "270")
    refused("finetuning with another vocabulary", [*new, "--init", base], 2, "vocabulary", "--tokenizer")
    refused("a model that is none", [*new, "--init", text], 2, text)
    tap.ok(not out.exists(), "what is refused leaves nothing")
    before = sha(folder), sha(folder, "last.opt")
    (folder / "last.opt").rename(folder / "kept.opt")
    (folder / "last.opt").write_bytes((folder / "kept.opt").read_bytes()[:-1])
    refused("a checkpoint that was cut", [*resume, data], 2, "last.opt", "--init")
    (folder / "kept.opt").rename(folder / "last.opt")
    tap.ok(before == (sha(folder), sha(folder, "last.opt")), "and nothing was changed")


def not_a_number(data):
    folder, result = train("nan", data, *GPT2, *RUN, "--lr", 1e30, "--grad-clip", 0, "--warmup", 0,
                           "--no-sample", status=1)
    last = result.err.splitlines()[-1]
    number = re.search(r": iteration (\d+): the (?:loss|gradient) is not a finite number; .*\.weight;", last)
    tap.ok(number and int(number[1]) < 8 and str(folder) in last,
           "a loss that is no number: iteration, tensor, checkpoint", result)
    speaks("after it", folder)
    _, two = train("nan2", data, *GPT2, *RUN, "--lr", 1e30, "--grad-clip", 0, "--warmup", 0, "--no-sample",
                   "--ranks", 2, status=1)
    tap.ok(two.err.splitlines()[-1].replace("nan2", "nan") == last, "two ranks: the same sentence, once", two)


def full_disk(data):
    """A limit on the size of files stands for the disk."""
    folder = tap.TMP / "full"
    base = ["--ckpt", folder, "--dataset", data, "--no-sample"]
    _, result = train("full", data, *GPT2, *RUN, "--max-iters", 8, "--no-sample")
    before = sha(folder), sha(folder, "last.opt")
    size = (folder / "last.opt").stat().st_size
    for limit in (size // 4, size * 3 // 4):  # in the model, in the optimiser's state
        process = tap.start("train", "--resume", *base, "--max-iters", 24, "-t", 1,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        err = tap.plain(process.communicate(timeout=60 * tap.SLOW)[1].decode())
        tap.ok(process.returncode == 1 and str(folder) in err.splitlines()[-1] and "stays" in err,
               f"no room after {limit} bytes: status 1 and a sentence", f"{process.returncode}: {err}")
        tap.ok(before == (sha(folder), sha(folder, "last.opt")) and not list(folder.glob("next*")),
               "the last checkpoint stays, nothing else does", list(folder.iterdir()))
    again = tap.shoal("train", "--resume", *base, "--max-iters", 24, "-t", 1)
    tap.ok(again.status == 0, "and with room it goes on", again)


def main():
    text = make_text("text.txt", 20000)
    data = prepare("data", text)
    folder = first_run(data)
    same_bits(data, folder)
    whole = broken_off(data)
    ctrl_c_while_drawing(data)
    ends(data)
    base = finetune(text)
    not_a_number(data)
    full_disk(data)
    bad_input(data, text, whole, base)
    tap.ok(tap.until(lambda: not tap.ours(), 5), "no process stays", tap.ours())
    tap.done()


if __name__ == "__main__":
    main()
