#!/usr/bin/env python3
"""The stories that the default model learns from (models/stories): the same bytes for a seed whatever the
number of processes, correct English as far as a machine can see, names that hold, unseen openings."""

import collections
import random
import re
import subprocess
import sys
import time

import tap

FOLDER = tap.ROOT / "models/stories"
sys.path.insert(0, str(FOLDER))
import cast  # noqa: E402: found by the line above
import generate  # noqa: E402
import words  # noqa: E402

NAMES = {name for name, _ in cast.NAMES}
END = generate.END
WRONG = [  # what, pattern
    ("residue of a template", r"[{}\[\]<>|_#%$*^~]"),
    ("blank or mark twice", r"  |\.\.|,,|\. \.|,\.|\.,|[!?][.,!?]"),
    ("blank before a mark", r" [.,!?;:]"),
    ("no blank behind a mark", r'[.,!?;:](?![\s"]|$)'),
    ("a before a vowel", r"\b[Aa] [aeiou]"),
    ("an before a consonant", r"\b[Aa]n (?!hour|honest)[^aeiou\W]"),
    ("a word twice", r"\b(\w+) \1\b(?<!had had)"),
    ("a small letter at a sentence's start", r'(?:^|(?<!["!?])[.!?] |\." )"?[a-z]'),
    ("speech begins small", r'(?:^|[.!?] |" )"[a-z]'),
    ("a name with an article", r"\b(?:[Aa]n?|[Tt]he|his|her) (?:%s)\b" % "|".join(NAMES)),
    ("a pronoun of the wrong case", r"\b(?:to|with|for|of|from|like|about|behind|beside|by|than) (?:he|she)\b(?! (?:had|could))"),
]


def run(*args):
    result = subprocess.run([sys.executable, str(FOLDER / "generate.py"), *map(str, args)], env=tap.ENV,
                            capture_output=True, timeout=60 * tap.SLOW)
    return result.stdout if result.returncode == 0 else result.stderr + b"\nfailed"


def output():
    one = run("--megabytes", 0.5, "--seed", 7, "--jobs", 1)
    tap.ok(one == run("--megabytes", 0.5, "--seed", 7, "--jobs", 3), "1 and 3 processes write the same bytes")
    tap.ok(one.startswith(run("--megabytes", 0.1, "--seed", 7)), "less text is the beginning of more")
    tap.ok(0.5e6 <= len(one) < 0.5e6 + 3000, "as much as was asked, to the end of a story", len(one))
    tap.ok(one.endswith(f"\n{END}\n".encode()), "each story ends with its line")
    tap.ok(not one.startswith(run("--megabytes", 0.1, "--seed", 8)), "another seed, other text")
    texts = one.decode("ascii").split(f"\n{END}\n")[:-1]
    stories = [text for text in texts if len(text.split()) >= 80]  # the others are rhymes
    tap.ok(len(set(stories)) == len(stories), "no story is there twice")
    tap.ok(0.4 < (len(texts) - len(stories)) / len(stories) < 0.8, "rhymes stand between them",
           (len(texts), len(stories)))
    path = tap.TMP / "stories.txt"
    run("--megabytes", 0.01, "--seed", 7, "-o", path)
    tap.ok(one.startswith(path.read_bytes()) and path.stat().st_size >= 10000, "-o writes to a file")
    tap.ok(b"above 0" in run("--jobs", 0), "no process: says what it wants")


def english(told):
    for what, pattern in WRONG:
        found = [(m.group(), s) for s, _, _ in told for line in s.splitlines() for m in [re.search(pattern, line)] if m]
        tap.ok(not found, f"found nowhere: {what}", f"{len(found)}: {found[:3]}")
    lines = [line for s, _, _ in told for line in s.split("\n")]
    tap.ok(all(line and line == line.strip() and line[-1] in '.!?"' for line in lines), "paragraphs end their sentence",
           [line for line in lines if not line or line[-1] not in '.!?"'][:3])
    odd = [line for line in lines if line.count('"') % 2 or re.search(r'\w"\w| " |^" | "$', line)]
    tap.ok(not odd, "quotes come in pairs", odd[:3])
    lengths = [len(s.split()) for s, _, _ in told]
    tap.ok(min(lengths) >= 80 and max(lengths) <= 250, "80 to 250 words", (min(lengths), max(lengths)))
    count = collections.Counter(w for s, _, _ in told for w in re.findall(r"[a-z]+", s.lower()))
    tap.ok(1500 <= len(count) <= 2500, f"{len(count)} distinct words", count.most_common()[-20:])


def names(told):
    strangers, rare, gone, far = [], [], [], []
    for text, c, _ in told:
        used = [w for w in re.findall(r"\b[A-Z][a-z]+\b", text) if w in NAMES]
        if not set(used) <= {c.H.name, c.F.name, c.K.name}:
            strangers.append(text)
        if used.count(c.H.name) < 4:
            rare.append(text)
        if c.H.name not in text[len(text) * 2 // 3:]:
            gone.append(text)
        subjects = {c.H.name, c.H.he, c.H.he.capitalize(), c.H.his, c.H.his.capitalize(), c.H.him, "they", "They"}
        sentences = [set(re.findall(r"\w+", s)) for s in re.split(r"[.!?]", text.split("\n")[0])]
        if not any(subjects & s for s in sentences[:4]):
            far.append(text)
    tap.ok(not strangers, "only those who belong to a story have a name in it", strangers[:1])
    tap.ok(not rare, "the main character is named four times or more", rare[:1])
    tap.ok(not gone, "and in the last third", gone[:1])
    tap.ok(not far, "and is in the first sentences", far[:1])
    clash = [w for w in {w for s, _, _ in told for w in re.findall(r"\b[A-Z][a-z]+", s)} - NAMES
             if any(w.startswith(n) for n in NAMES)]
    tap.ok(not clash and len(NAMES) in range(50, 71), "no word begins with a name", clash)


def variety(told):
    plots = {plot.name for _, _, plot in told}
    tap.ok(len(plots) >= 30 and plots == {p.name for p in generate.plots}, f"{len(plots)} plots, all of them told")
    skeletons = {tuple(c.skeleton) for _, c, _ in told}
    tap.ok(len(skeletons) > 10000, f"{len(skeletons)} distinct skeletons in {len(told)} stories")
    starts = collections.Counter(" ".join(s.split()[:3]) for s, _, _ in told)
    tap.ok(starts.most_common(1)[0][1] < len(told) // 10, "stories begin in many ways", starts.most_common(5))
    tap.ok(len(cast.PLACES) >= 40 and len(cast.THINGS) >= 60 and len(cast.ANIMALS) >= 30,
           f"{len(cast.PLACES)} places, {len(cast.THINGS)} things, {len(cast.ANIMALS)} animals")
    ways = set()
    for _, c, _ in told:
        ways.update(c.skeleton)
    tap.ok(ways == generate.ways(), "every way to tell a beat is taken", sorted(generate.ways() - ways)[:20])


def unseen(told):
    openings = generate.openings(40, 1)
    tap.ok(len({n for n, _ in openings}) >= 20 and all(n in s for n, s in openings), "openings name the main character",
           openings[:3])
    trained = [s.replace("\n", " ") for s, _, _ in told]
    seen = [s for _, s in openings if any(t.startswith(s) for t in trained)]
    tap.ok(not seen, "held-out openings do not occur in the training text", seen)
    pairs = {(c.H.name, c.L.the) for _, c, _ in told}
    tap.ok(not pairs & cast.RESERVED, "a reserved pair of name and place is never trained on", pairs & cast.RESERVED)
    held = generate.stories(random.Random(5), 500, True, True)
    tap.ok({(c.H.name, c.L.the) for _, c, _ in held} <= cast.RESERVED, "and held-out stories have no other")
    lines = run("--openings", 10).decode().splitlines()
    tap.ok(len(lines) == 10 and all(name in NAMES and name in text for name, text in (x.split("\t") for x in lines)),
           "--openings: a name, a tab, the opening", lines)


def main():
    output()
    generate.load()
    start = time.process_time()
    told = generate.stories(random.Random(11), 12000, False, True)
    tap.note(f"{sum(len(s) for s, _, _ in told) / 1e6 / (time.process_time() - start):.1f} MB/s with everything kept")
    english(told[:2500])
    names(told[:5000])
    variety(told)
    unseen(told)
    tap.done()


if __name__ == "__main__":
    main()
