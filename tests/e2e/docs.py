#!/usr/bin/env python3
"""The examples in README.md and docs/ are true: commands run, diffs apply, named files exist."""

import json
import re
import shlex
import shutil
import subprocess

import tap

DOCS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/adding.md", "docs/numerics.md",
        "docs/protocol.md", "docs/training.md"]


def blocks(text, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def readme(text):
    """Runs every `build/shoal` line of the README in a folder where the project's own model is model.gguf."""
    folder = tap.TMP / "readme"
    (folder / "build").mkdir(parents=True)
    (folder / "build/shoal").symlink_to(tap.PROGRAM)
    shutil.copy(tap.ROOT / "models/stories.gguf", folder / "model.gguf")
    (folder / "text.txt").write_text("Once upon a time a fox ran over the hill. " * 200)
    (nodes,) = [json.loads(b) for b in blocks(text, "json")]
    with tap.Worker(folder / "model.gguf") as worker:
        for node in [nodes["nodes"]["starter"], *nodes["nodes"]["secondary"]]:
            node["addr"] = "127.0.0.1"
            node["inference"] = {"port_in": tap.free_port(), "port_out": tap.free_port()}
        nodes["nodes"]["starter"]["communication"]["port"] = tap.free_port()
        nodes["nodes"]["secondary"][0]["communication"]["port"] = worker.port
        (folder / "nodes.json").write_text(json.dumps(nodes))
        commands = [line for b in blocks(text, "") for line in b.splitlines()
                    if line.startswith("build/shoal ")]
        for line in commands:
            words = shlex.split(re.split(r"   +", line)[0])
            if words[1] == "worker":
                continue  # it is what `worker` above is
            result = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=tap.ENV,
                                    stdin=subprocess.DEVNULL, timeout=60 * tap.SLOW)
            tap.ok(result.returncode == 0, f"README: {' '.join(words)}", result)
    tap.ok(len(commands) >= 5, "README has its commands")


def named_files(name, text):
    """Paths in backquotes that look like files of this repository."""
    missing = []
    for path in re.findall(r"`((?:src|tests|docs|include|script|bench)/[\w./*-]+)`", text):
        if "*" not in path and not (tap.ROOT / path).exists():
            missing.append(path)
    tap.ok(not missing, f"{name}: every file it names is there", missing)


def adding(text):
    """Each diff of docs/adding.md applies to the tree as it is; lines beside it may have changed."""
    diffs = blocks(text, "diff")
    for diff in diffs:
        patch = tap.TMP / "adding.diff"
        patch.write_text(diff)
        result = subprocess.run(["git", "apply", "--check", "-C0", str(patch)],
                                cwd=tap.ROOT, capture_output=True, text=True)
        first = re.search(r"^\+\+\+ b/(.*)$", diff, re.M)
        tap.ok(result.returncode == 0, f"docs/adding.md: the diff of {first and first[1]} applies",
               result.stderr)
    tap.ok(len(diffs) >= 5, "docs/adding.md has its diffs")


def main():
    for name in DOCS:
        path = tap.ROOT / name
        if tap.ok(path.exists(), f"{name} is there"):
            named_files(name, path.read_text())
    readme((tap.ROOT / "README.md").read_text())
    adding((tap.ROOT / "docs/adding.md").read_text())
    tap.done()


if __name__ == "__main__":
    main()
