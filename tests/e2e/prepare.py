#!/usr/bin/env python3
"""`shoal prepare`: what stands in the folder, from which text, and that a failure leaves nothing."""

import array
import random
import signal
import subprocess
import time

import tap

WORDS = "the a cat dog tree river runs sees under over small green naïve 猫 it's don't 12 1999 3.5".split()


def ids(path, size=2):
    a = array.array("H" if size == 2 else "I")
    a.frombytes(path.read_bytes())
    return list(a)


def story(seed, n):
    r = random.Random(seed)
    return " ".join(r.choice(WORDS) + r.choice(["", "", "", ".", "!\n", ",  "]) for _ in range(n))


def prepare(name, *args, **kw):
    folder = tap.TMP / name
    return folder, tap.shoal("prepare", *args, "-o", folder, **kw)


def tokenize(folder, text):
    run = tap.shoal("tokenize", "-m", folder / "tokenizer.gguf", "-f", "-", "--ids", "--no-bos", stdin=text)
    return [int(w) for w in run.out.split()]


def characters():
    text = story(1, 3000)
    path = tap.TMP / "chars.txt"
    path.write_text(text)
    folder, run = prepare("chars", path, "--tokenizer", "char")
    tap.ok(run.status == 0 and run.out == "", "char: done, and stdout is empty", run)
    table = {c: i for i, c in enumerate(sorted(set(text)))}
    cut = int(len(text) * 0.9)
    want = [table[c] for c in text]
    tap.ok(ids(folder / "train.bin") == want[:cut], "char: train.bin has the ids of nanoGPT's table")
    tap.ok(ids(folder / "val.bin") == want[cut:], "char: val.bin has the last tenth of the characters")
    tap.ok(tokenize(folder, text[:500]) == want[:500], "char: the tokenizer gives the same ids")
    tap.ok(sorted(p.name for p in folder.iterdir()) == ["tokenizer.gguf", "train.bin", "val.bin"],
           "char: three files and nothing else")

    _, run = prepare("chars", path, "--tokenizer", "char", "--val", 0)
    tap.ok(run.status == 0 and ids(folder / "train.bin") == want and not (folder / "val.bin").exists(),
           "--val 0: all is for training, and the val.bin of before is gone", run)


def learned():
    docs = [story(i, 200) for i in range(60)]
    path, other = tap.TMP / "docs.txt", tap.TMP / "other.txt"
    path.write_text("<|endoftext|>".join(docs[:40]))
    other.write_text("<|endoftext|>".join(docs[40:]) + "<|endoftext|>")
    folder, run = prepare("bpe", path, other, "--vocab-size", 300)
    tap.ok(run.status == 0, "bpe: done", run)
    got = ids(folder / "train.bin") + ids(folder / "val.bin")
    tap.ok(max(got) == 299 and got.count(299) == 60, "bpe: one end-of-text for each document, the last id",
           got.count(299))
    tap.ok(ids(folder / "train.bin")[-1] == 299, "bpe: train ends with a document")
    tap.ok(len(ids(folder / "val.bin")) > 0.05 * len(got), "bpe: val has about its share")
    both = path.read_text() + "<|endoftext|>" + other.read_text()
    tap.ok(got == tokenize(folder, both), "bpe: all ids are those of `shoal tokenize`")
    found = tap.shoal("inspect", folder / "tokenizer.gguf")
    tap.ok(found.status == 0 and "gpt-2" in found.out, "bpe: shoal inspect opens the tokenizer", found)

    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    for name, args, kw in [("one thread", [path, other, "-t", 1], {}), ("5 threads", [path, other, "-t", 5], {}),
                           ("one text from stdin", ["-"], {"stdin": both})]:
        again, run = prepare("bpe-" + name.replace(" ", "-"), *args, "--vocab-size", 300, **kw)
        tap.ok(run.status == 0 and {p.name: p.read_bytes() for p in again.iterdir()} == files,
               f"bpe: the same bytes with {name}", run)

    text = "\n\n\n".join(docs)
    again, run = prepare("separator", "-", "--vocab-size", 300, "--separator", "\n\n\n", stdin=text)
    got = ids(again / "train.bin") + ids(again / "val.bin")
    tap.ok(run.status == 0 and got.count(299) == 59, "--separator: an end-of-text between documents", run)

    again, run = prepare("given", path, "--tokenizer", folder / "tokenizer.gguf")
    got = ids(again / "train.bin") + ids(again / "val.bin")
    tap.ok(run.status == 0 and got == tokenize(folder, path.read_text()),
           "--tokenizer FILE: the ids of that tokenizer", run)
    tap.ok((again / "tokenizer.gguf").read_bytes() == files["tokenizer.gguf"],
           "--tokenizer FILE: it is copied")
    _, run = prepare("given", path, "--tokenizer", again / "tokenizer.gguf")
    tap.ok(run.status == 0 and (again / "tokenizer.gguf").read_bytes() == files["tokenizer.gguf"],
           "--tokenizer FILE: also the one of the folder itself", run)


def models():
    """A SentencePiece tokenizer out of a model; large vocabularies."""
    path = tap.TMP / "spm.txt"
    text = "once upon a time there was a cat. " * 20
    path.write_text(text)
    model = tap.mkmodel("prep.gguf", "--layers", 1, "--heads", 1, "--kv-heads", 1, "--head-dim", 16, "--embd", 16,
                        "--ff", 32)
    folder, run = prepare("spm", path, "--tokenizer", model, "--val", 0)
    want = tap.shoal("tokenize", "-m", model, "-f", path, "--ids").out.split()
    tap.ok(run.status == 0 and ids(folder / "train.bin") == [int(w) for w in want],
           "--tokenizer of a llama model: ids as by shoal tokenize, with BOS", run)
    size = (folder / "tokenizer.gguf").stat().st_size
    tap.ok(size < model.stat().st_size, "the tokenizer leaves the tensors behind", size)

    shared = tap.SHARED / "tokenizers/ggml-vocab-llama-bpe.gguf"
    if not shared.exists():
        return tap.note(f"{shared} is not here: ids of four bytes are not tried")
    folder, run = prepare("l3", path, "--tokenizer", shared, "--val", 0)
    want = tap.shoal("tokenize", "-m", shared, "-f", path, "--ids").out.split()
    tap.ok(run.status == 0 and ids(folder / "train.bin", 4) == [int(w) for w in want],
           "more than 65536 tokens: ids of four bytes", run)


def any_bytes():
    r = random.Random(5)
    raw = bytes(r.choice([r.randrange(256), 97, 98, 32]) for _ in range(20000))
    path = tap.TMP / "raw"
    path.write_bytes(raw)
    for kind, size in [("char", []), ("bpe", ["--vocab-size", 280])]:
        folder, run = prepare("raw-" + kind, path, "--tokenizer", kind, *size)
        got = ids(folder / "train.bin") + ids(folder / "val.bin") if run.status == 0 else []
        tap.ok(run.status == 0 and 0 < len(got) <= len(raw), f"{kind}: a text that is not UTF-8 works", run)
    folder, run = prepare("run", "-", "--vocab-size", 262, stdin=b"x" * 3_000_000)
    tap.ok(run.status == 0 and run.seconds < 20 * tap.SLOW, "3 MB without a space: no attack", run)


def refusals():
    text = tap.TMP / "small.txt"
    text.write_text("ab ab ab cd cd")
    empty = tap.TMP / "empty.txt"
    empty.write_text("")
    plain = tap.TMP / "plain"
    plain.write_text("x")
    for args, part in [
            ([], "which text?"),
            ([text, "--vocab-size", 256], "--vocab-size is 256, but must be from 257"),
            ([text, "--vocab-size", 1000], "the text is too small for 1000 tokens"),
            ([text, "--vocab-size", 300, "--tokenizer", "char"], "--vocab-size is for --tokenizer bpe"),
            ([text, "--tokenizer", "char", "--separator", "|"], "no token that ends a text"),
            ([text, "--tokenizer", "cahr"], "--tokenizer is 'cahr', but must be char, bpe, or a model file"),
            ([text, "--tokenizer", plain], "plain"),
            ([text, "--val", 0.95], "--val is 0.95"),
            ([tap.TMP / "nowhere"], "nowhere: cannot open the file"),
            ([tap.TMP], "is a folder; name the text files in it"),
            ([empty], "empty.txt: there is no text in it"),
            (["-", "-"], "stdin (-) can be read once only"),
            ([plain, "--vocab-size", 257], "too few for both"),
    ]:
        folder, run = prepare("refused", *args)
        tap.ok(run.status == 2 and part in run.err and run.err.count("shoal prepare: ") == 1,
               f"refused: {' '.join(map(str, args))[-60:]}", run)
        tap.ok(not folder.exists(), "and nothing is left")
    run = tap.shoal("prepare", text)
    tap.ok(run.status == 2 and "-o DIR" in run.err, "refused: no folder", run)
    run = tap.shoal("prepare", text, "-o", plain)
    tap.ok(run.status == 2 and "is not a folder" in run.err, "refused: a folder that is a file", run)
    run = tap.shoal("prepare", text, "-o", tap.TMP / "a/b")
    tap.ok(run.status == 2 and "cannot make the folder" in run.err, "refused: a folder in no folder", run)


def limited(folder, bytes_, *args):
    """With a limit on the size of files, as a full disk would be."""
    return subprocess.run(["bash", "-c", f"trap '' XFSZ; ulimit -f {bytes_ // 1024}; exec \"$@\"", "-", tap.PROGRAM,
                           "prepare", *map(str, args), "-o", str(folder)],
                          capture_output=True, text=True, env=tap.ENV, timeout=60 * tap.SLOW)


def full_disk():
    text = tap.TMP / "long.txt"
    text.write_text(story(9, 60000))
    folder, run = prepare("full", text, "--vocab-size", 300)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    tap.ok(run.status == 0 and len(before["train.bin"]) > 100_000, "there is a folder to lose", run)
    for limit in (1024, 65536):
        run = limited(folder, limit, text, "--vocab-size", 310)
        tap.ok(run.returncode == 1 and "File too large" in run.stderr, f"{limit} bytes of disk: says so", run)
        tap.ok({p.name: p.read_bytes() for p in folder.iterdir()} == before, "and what was there stays as it was")
        run = limited(tap.TMP / "never", limit, text, "--vocab-size", 310)
        tap.ok(run.returncode == 1 and not (tap.TMP / "never").exists(), "and no new folder is left", run)


def interrupted():
    text = tap.TMP / "huge.txt"
    text.write_text(story(3, 20000) * 200)
    folder = tap.TMP / "stopped"
    process = tap.start("prepare", text, "-o", folder, "--tokenizer", "char", "-t", 1)
    began = tap.until(lambda: folder.exists() and any(p.name.startswith("train.bin.") for p in folder.iterdir()), 30)
    process.send_signal(signal.SIGINT)
    end = time.monotonic()
    err = process.communicate(timeout=60 * tap.SLOW)[1].decode()
    tap.ok(began and process.returncode == -signal.SIGINT and not folder.exists() and "interrupted" in err,
           "Ctrl-C while writing: nothing is left", f"{process.returncode} {err}")
    tap.ok(time.monotonic() - end < 5 * tap.SLOW, "and it ends soon")
    text.unlink()


def main():
    characters()
    learned()
    models()
    any_bytes()
    refusals()
    full_disk()
    interrupted()
    tap.done()


if __name__ == "__main__":
    main()
