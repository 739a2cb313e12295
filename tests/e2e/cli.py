#!/usr/bin/env python3
"""The commands as a person types them: help, output, prompts, files."""

import json

import tap

SHAPE = ["--layers", 3, "--heads", 4, "--kv-heads", 2, "--head-dim", 16, "--embd", 64, "--ff", 96]
COMMANDS = ["run", "bench", "worker", "inspect", "tokenize", "quantize", "prepare", "train"]
PROMPT = "Once upon a time"


def help_and_version():
    top = tap.shoal("--help")
    tap.ok(top.status == 0 and all(c in top.out for c in COMMANDS) and not top.err,
           "--help lists the commands", top)
    for command in COMMANDS:
        for flag in ("--help", "-h"):
            result = tap.shoal(command, flag)
            tap.ok(result.status == 0 and f"shoal {command}" in result.out and not result.err
                   and max(map(len, result.out.splitlines())) <= 110, f"{command} {flag}", result)
    run = tap.shoal("run", "--help").out
    for flag in ("-m -p -f -n -c -t -b -s --seed --temp --top-k --top-p --min-p --repeat-penalty --stop "
                 "--n-samples --tp --ring --nodes --arith --cpu --kv --echo -o -v").split():
        tap.ok(flag in run.replace(",", " ").split(), f"run --help has {flag}")
    version = tap.shoal("--version")
    tap.ok(version.status == 0 and version.out.strip() == "shoal 0.1.0", "--version", version)
    bare = tap.shoal()
    tap.ok(bare.status == 2 and "shoal" in bare.err + bare.out, "no command: status 2, says how", bare)


def schema(line):
    return (set(line) >= {"sample", "text", "tokens", "finish", "hash"}
            and isinstance(line["sample"], int) and isinstance(line["text"], str)
            and all(isinstance(t, int) for t in line["tokens"])
            and line["finish"] in ("length", "stop", "eos")
            and line["hash"] == tap.tokens_hash(line["tokens"]))


def output(model):
    run = ["run", "-m", model, "-p", PROMPT, "-s", 3, "--temp", 0.8]
    one = tap.shoal(*run, "-n", 32, "-o", "json")
    lines = one.lines() if one.status == 0 else []
    if not tap.ok(len(lines) == 1 and schema(lines[0]), "-o json: one line, its keys", one):
        return
    text = lines[0]["text"]

    plain = tap.shoal(*run, "-n", 32)
    tap.ok(plain.status == 0 and plain.out.rstrip("\n") == text.rstrip("\n"),
           "stdout is the text and nothing else", f"{plain}\nwanted {text!r}")
    tap.ok("tok" in plain.err and lines[0]["hash"] in plain.err, "the figures, with the hash, go to stderr",
           plain)
    echo = tap.shoal(*run, "-n", 32, "--echo")
    tap.ok(echo.out.rstrip("\n") == (PROMPT + text).rstrip("\n"), "--echo puts the prompt before it", echo)

    again = tap.shoal(*run, "-n", 32, "-o", "json")
    tap.ok(again.out == one.out, "the same seed gives the same text", again)
    other = tap.shoal(*run[:5], "-s", 4, "--temp", 0.8, "-n", 32, "-o", "json")
    tap.ok(other.status == 0 and other.lines()[0]["tokens"] != lines[0]["tokens"], "another seed, another",
           other)
    prefix = tap.shoal(*run, "-n", 10, "-o", "json")
    tap.ok(prefix.lines()[0]["tokens"] == lines[0]["tokens"][:10] and
           prefix.lines()[0]["finish"] == "length", "-n 10 is the beginning of -n 32", prefix)

    full = tap.shoal(*run, "-n", 100, "-c", 32, "-o", "json")
    ids = tap.shoal("tokenize", "-m", model, "--ids", "-p", PROMPT).out.split()
    (line,) = full.lines() if full.status == 0 else [{"finish": None, "tokens": []}]
    tap.ok(line["finish"] in ("length", "eos") and len(ids) + len(line["tokens"]) <= 33,
           "a full context ends with length", full)

    stop = next((text[i:i + 2] for i in range(8, len(text) - 2) if text[i:i + 2].isascii()), None)
    if tap.ok(stop is not None, "there is text to stop at", text):
        end = text.index(stop)
        stopped = tap.shoal(*run, "-n", 32, "--stop", stop, "--stop", "never said", "-o", "json")
        (line,) = stopped.lines() if stopped.status == 0 else [{"text": None, "finish": None}]
        tap.ok(line["text"] == text[:end] and line["finish"] == "stop",
               f"--stop {stop!r}: the text before it, finish stop", stopped)
        streamed = tap.shoal(*run, "-n", 32, "--stop", stop)
        tap.ok(streamed.out.rstrip("\n") == text[:end].rstrip("\n"), "nothing of it is printed", streamed)

    for flag, value in [("--top-k", 1), ("--temp", 0), ("--min-p", 1)]:
        a = tap.shoal(*run, "-n", 16, flag, value, "-s", 1, "-o", "json")
        b = tap.shoal(*run, "-n", 16, flag, value, "-s", 2, "-o", "json")
        tap.ok(a.status == 0 and a.out == b.out, f"{flag} {value} is greedy: the seed is nothing to it", a)
    a = tap.shoal(*run, "-n", 32, "--temp", 0, "-o", "json")
    b = tap.shoal(*run, "-n", 32, "--temp", 0, "--repeat-penalty", 5, "-o", "json")
    repeats = lambda r: len(r.lines()[0]["tokens"]) - len(set(r.lines()[0]["tokens"]))
    tap.ok(a.status == b.status == 0 and repeats(b) <= repeats(a), "--repeat-penalty: fewer repeats", b)


def several(model):
    prompts = tap.TMP / "prompts.txt"
    prompts.write_text("Once upon a time\n\nLily saw\na big dog\n\n\nThe end\n")
    alone = {}
    for prompt in ("Once upon a time", "Lily saw\na big dog", "The end"):
        r = tap.shoal("run", "-m", model, "-p", prompt, "-n", 12, "-o", "json")
        alone[prompt] = r.lines()[0]["tokens"] if r.status == 0 else None
    result = tap.shoal("run", "-m", model, "-f", prompts, "-n", 12, "-o", "json", "--temp", 0)
    lines = sorted(result.lines(), key=lambda l: l["sample"]) if result.status == 0 else []
    tap.ok([l["sample"] for l in lines] == [0, 1, 2] and all(map(schema, lines)),
           "a file with a prompt per paragraph: a sample each", result)
    greedy = []
    for prompt in alone:
        r = tap.shoal("run", "-m", model, "-p", prompt, "-n", 12, "-o", "json", "--temp", 0)
        greedy.append(r.lines()[0]["tokens"] if r.status == 0 else None)
    tap.ok([l["tokens"] for l in lines] == greedy, "each as if it were alone", f"{lines}\n{greedy}")
    two = tap.shoal("run", "-m", model, "-f", prompts, "-n", 12, "-o", "json", "--temp", 0.9,
                    "--n-samples", 2, "--ring", 2)
    tap.ok(two.status == 0 and sorted(l["sample"] for l in two.lines()) == list(range(6)),
           "two samples of each of three prompts", two)
    stdin = tap.shoal("run", "-m", model, "-f", "-", "-n", 12, "-o", "json", "--temp", 0,
                      stdin=prompts.read_text())
    tap.ok(stdin.status == 0 and sorted(stdin.out.splitlines()) == sorted(result.out.splitlines()),
           "-f - reads stdin", stdin)


def files(model):
    table = tap.shoal("inspect", model)
    tap.ok(table.status == 0 and "llama" in table.out and "token_embd.weight" in table.out
           and "f32" in table.out, "inspect: family, tensors, types", table)
    raw = tap.shoal("inspect", "--json", model)
    try:
        info = json.loads(raw.out)
    except ValueError:
        info = {}
    tap.ok(raw.status == 0 and isinstance(info, dict) and "llama" in raw.out
           and "token_embd.weight" in raw.out, "inspect --json is JSON", raw)

    for dtype in ("f16", "bf16", "q8_0", "q4_0"):
        out = tap.TMP / f"{dtype}.gguf"
        made = tap.shoal("quantize", model, out, dtype)
        shown = tap.shoal("inspect", out)
        tap.ok(made.status == 0 and dtype in shown.out, f"quantize to {dtype}", f"{made}\n{shown}")
        result = tap.shoal("run", "-m", out, "-p", PROMPT, "-n", 8, "-o", "json")
        tap.ok(result.status == 0 and len(result.lines()[0]["tokens"]) in range(1, 9), f"run it", result)
        twice = tap.TMP / f"{dtype}-again.gguf"
        tap.shoal("quantize", model, twice, dtype)
        tap.ok(out.read_bytes() == twice.read_bytes(), f"{dtype}: the same bytes every time")
    fused, out = tap.mkmodel("fused.gguf", "--family", "gpt2"), tap.TMP / "fused-q8_0.gguf"
    made, shown = tap.shoal("quantize", fused, out, "q8_0"), tap.shoal("inspect", out)
    types = {line.split()[0]: line.split()[1] for line in shown.out.splitlines() if ".weight" in line}
    tap.ok(made.status == 0 and types["position_embd.weight"] == "f32"
           and types["token_embd.weight"] == types["blk.0.attn_qkv.weight"] == "q8_0",
           "quantize gpt2: matrices, but not the learned positions", f"{made}\n{shown}")
    same = tap.shoal("quantize", model, model, "q8_0")
    tap.ok(same.status == 2 and tap.shoal("inspect", model).out == table.out,
           "quantize onto its own input is refused", same)


def tokens(model):
    for text in ("Once upon a time", "  two  spaces", "Grüße 😀!", "a\n\tb", ""):
        ids = tap.shoal("tokenize", "-m", model, "--ids", "-p", text)
        bare = tap.shoal("tokenize", "-m", model, "--ids", "--no-bos", "-p", text)
        tap.ok(ids.status == bare.status == 0 and ids.out.split()[1:] == bare.out.split(),
               f"tokenize {text!r}: --no-bos is the same less the first", f"{ids}\n{bare}")
        if text:
            stdin = tap.shoal("tokenize", "-m", model, "--ids", stdin=text)
            tap.ok(stdin.out == ids.out, f"tokenize {text!r} from stdin", stdin)
    shown = tap.shoal("tokenize", "-m", model, "-p", "Once upon a time")
    tap.ok(shown.status == 0 and shown.out.strip(), "tokenize without --ids shows the pieces", shown)


def main():
    model = tap.mkmodel("tiny.gguf", *SHAPE)
    help_and_version()
    output(model)
    several(model)
    files(model)
    tokens(model)
    tap.done()


if __name__ == "__main__":
    main()
