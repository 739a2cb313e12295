#!/usr/bin/env python3
"""Another engine's greedy text for stories260k: ours is equal, on every topology. And the project's own
model: the tokens that it wrote when it was made, on every topology and machine."""

import json

import tap

TOPOLOGIES = [[], ["-t", 2, "-b", 7], ["--tp", 2], ["--tp", 8], ["--ring", 3], ["--ring", 5],
              ["--ring", 2, "--tp", 2]]


def check(model, sample, flags):
    common = ["run", "-m", model, "-p", sample["prompt"], "-n", sample["n"], "--temp", 0, "--kv",
              "f32", *flags]
    title = f"{sample['prompt']!r} {' '.join(map(str, flags))}"
    result = tap.shoal(*common, "-o", "json")
    if not tap.ok(result.status == 0, f"{title}: runs", result):
        return
    (line,) = result.lines()
    tap.ok(line["tokens"] == sample["tokens"], f"{title}: tokens", line["tokens"])
    tap.ok(line["text"] == sample["text"], f"{title}: text", line["text"])
    tap.ok(line["hash"] == tap.tokens_hash(sample["tokens"]), f"{title}: hash", line["hash"])


def own_model():
    """The arithmetic of prompts is named, since `auto` is another one on other machines."""
    sample = json.loads((tap.ROOT / "tests/golden/stories.json").read_text())
    topologies = [*(f for f in TOPOLOGIES if f != ["--ring", 5]), ["--ring", 4]]  # it has 4 layers
    for flags in topologies[:2] if tap.SANITIZED else topologies:
        title = f"the project's own model {' '.join(map(str, flags))}"
        result = tap.shoal("run", "-p", sample["prompt"], "-n", sample["n"], "--temp", 0, "--arith",
                           "int8", "-o", "json", *flags)
        got = result.lines()[0] if result.status == 0 else {}
        tap.ok(got.get("tokens") == sample["tokens"] and got.get("text") == sample["text"],
               f"{title}: the text of its golden file", result)


def another_engine():
    model = tap.SHARED / "models/stories260k-f32.gguf"
    expected = tap.SHARED / "models/stories260k.expected.json"
    if not model.exists() or not expected.exists():
        tap.ok(True, f"there is no {model}: nothing to compare with")
        return
    samples = json.loads(expected.read_text())["samples"]
    for sample in samples:
        ids = tap.shoal("tokenize", "-m", model, "--ids", "-p", sample["prompt"])
        tap.ok(ids.out.split() == [str(i) for i in sample["prompt_tokens"]],
               f"{sample['prompt']!r}: prompt tokens", ids)
        check(model, sample, [])
    for flags in TOPOLOGIES[1::4 if tap.SANITIZED else 1]:
        check(model, samples[0], flags)

    # All prompts in flight at once, one paragraph each.
    prompts = tap.TMP / "prompts.txt"
    prompts.write_text("\n\n".join(s["prompt"] for s in samples) + "\n")
    result = tap.shoal("run", "-m", model, "-f", prompts, "-n", samples[0]["n"], "--temp", 0, "--kv",
                       "f32", "--ring", 3, "-o", "json")
    lines = sorted(result.lines(), key=lambda line: line["sample"]) if result.status == 0 else []
    tap.ok([line["tokens"] for line in lines] == [s["tokens"] for s in samples],
           "all prompts at once on a ring of three", result)


def main():
    own_model()
    another_engine()
    tap.done()


if __name__ == "__main__":
    main()
