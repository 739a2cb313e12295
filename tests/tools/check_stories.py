#!/usr/bin/env python3
"""How good the stories of a model are: samples continuations of unseen openings and counts those that have no
broken word and keep the name of the main character. Standard library only.

    models/stories/generate.py --megabytes 4 -o corpus.txt
    models/stories/generate.py --openings 10 -o openings.txt
    tests/tools/check_stories.py --program build/shoal --corpus corpus.txt --openings openings.txt MODEL

A line of the openings is the main character's name, a tab and the opening. Each continuation is that of

    shoal run -m MODEL -p OPENING -n 120 --temp 0.7 --n-samples 10 -s SEED -o json

with SEED from --seed upwards, one for each opening, so the verdict can be had again.

- A word is broken if the corpus does not have it, but for a capital at its beginning and an 's at its end; a
  character that the corpus does not have is a broken word too. The last word does not count where the sample
  was cut off in it.
- The name is kept if it occurs in the continuation, and nobody else comes in without being introduced. A
  person's name is a word of the corpus that is always capitalised and stands inside sentences too; it is
  introduced if it is in the opening, or if its first mention follows a word that introduces people ("friend
  Sam", "a boy named Sam", "Sam the fox").

Exit status: 0 if at least --need of the continuations are good, 1 if not, 2 if none could be made. With
--stories FILE instead of a model the corpus's own kind of stories are judged, cut to the same length: nearly
all have to be good, or the rules or the corpus are wrong."""

import argparse
import json
import re
import subprocess
import sys

END = "<|endoftext|>"
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
INTRODUCE = set("friend brother sister cousin neighbor uncle aunt named called is".split())
NOBODY = set("Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June "
             "July August September October November December Christmas Easter English".split())
TOKEN_CHARS = 4.2  # of a story, about: only --stories uses it


class Corpus:
    """words: as they are spelled; names: of people; chars: all that occur."""

    def __init__(self, text):
        self.chars = set(text)
        spelled = set(WORD.findall(text))
        inside = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+\b", text)
        self.words = spelled
        self.names = {word for word in inside if word.lower() not in spelled} - NOBODY

    def knows(self, word):
        word = word.removesuffix("'s")
        return word in self.words or (word[0].isupper() and word[0].lower() + word[1:] in self.words)


def broken(corpus, opening, text, cut_off):
    """The broken words of a continuation; a word that began in the opening is the continuation's too."""
    whole = opening + text
    words = [m for m in WORD.finditer(whole) if m.end() > len(opening)]
    if cut_off and words and words[-1].end() == len(whole):
        words.pop()
        whole = whole.rstrip("\ufffd")
    return ([m.group() for m in words if not corpus.knows(m.group())] +
            sorted({repr(c) for c in whole[len(opening):] if c not in corpus.chars}))


def strangers(corpus, name, opening, text):
    """The names of those who come in without being introduced."""
    whole = opening + text
    seen, found = {name}, []
    for m in WORD.finditer(whole):
        word = m.group().removesuffix("'s")
        if word not in corpus.names or word in seen:
            continue
        seen.add(word)
        before = whole[:m.start()].rsplit(None, 1)
        introduced = (m.start() < len(opening) or (before and before[-1] in INTRODUCE) or
                      re.match(r" the [a-z]", whole[m.end():]))
        if not introduced:
            found.append(word)
    return found


def judge(corpus, name, opening, text, cut_off):
    """What is wrong with a continuation: sentences."""
    text = text.split(END)[0]
    wrong = [f"broken: {word}" for word in broken(corpus, opening, text, cut_off)]
    if not re.search(rf"\b{re.escape(name)}\b", text):
        wrong.append(f"{name} is not mentioned")
    return wrong + [f"{other} comes in unintroduced" for other in strangers(corpus, name, opening, text)]


def sample(args, opening, seed):
    command = [args.program, "run", "-m", args.model, "-p", opening, "-n", str(args.n_tokens), "--temp",
               str(args.temp), "--n-samples", str(args.samples), "-s", str(seed), "-o", "json"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"{' '.join(command)}\n{run.stderr.strip()}", file=sys.stderr)
        sys.exit(2)
    return [json.loads(line) for line in run.stdout.splitlines()]


def continuations(args):
    """(name, opening, continuation, whether it was cut off) of every sample of the model."""
    with open(args.openings, encoding="utf-8") as f:
        lines = [line.rstrip("\n").split("\t") for line in f if line.strip()]
    for i, fields in enumerate(lines):
        if len(fields) != 2 or fields[0] not in fields[1]:
            print(f"{args.openings}: line {i + 1} is not a name, a tab and an opening with the name",
                  file=sys.stderr)
            sys.exit(2)
        for row in sample(args, fields[1], args.seed + i):
            yield *fields, row["text"], row["finish"] == "length"


def beginnings(args, corpus):
    """The same of a file of stories: the first sentence is the opening, its first name the main one."""
    with open(args.stories, encoding="utf-8") as f:
        stories = f.read().split(END)
    for story in stories:
        m = re.match(r"\s*(.*?[.!?]\"?)(?=\s)", story, re.DOTALL)
        names = m and [word for word in WORD.findall(m.group(1)) if word in corpus.names]
        if names:
            text = story[m.end():].rstrip()
            most = int(args.n_tokens * TOKEN_CHARS)
            yield names[0], m.group(1), text[:most], len(text) > most


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--program", default="build/shoal")
    parser.add_argument("--corpus", required=True, help="text like that which the model learned from")
    parser.add_argument("--openings", help="lines: a name, a tab, an opening")
    parser.add_argument("--stories", help="judge this file instead of a model")
    parser.add_argument("--n-tokens", type=int, default=120)
    parser.add_argument("--temp", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=10, help="of each opening")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--need", type=float, default=0.95, help="the part that has to be good")
    args = parser.parse_args()
    if not args.stories and not (args.model and args.openings):
        parser.error("a model and --openings, or --stories, are needed")
    with open(args.corpus, encoding="utf-8") as f:
        corpus = Corpus(f.read())
    print(f"corpus: {len(corpus.words)} words, {len(corpus.names)} names")

    n = good = whole = kept = 0
    for name, opening, text, cut_off in beginnings(args, corpus) if args.stories else continuations(args):
        wrong = judge(corpus, name, opening, text, cut_off)
        words_wrong = sum(w.startswith("broken") for w in wrong)
        n, good = n + 1, good + (not wrong)
        whole, kept = whole + (not words_wrong), kept + (len(wrong) == words_wrong)
        if wrong:
            print(f"\n{n}: {'; '.join(wrong)}\n  " + f"{opening} |{text}".replace("\n", "\n  "))
    if n == 0:
        print("there was nothing to judge", file=sys.stderr)
        sys.exit(2)
    print(f"\nof {n}: {whole} without a broken word, {kept} keep the name; {good} are good "
          f"({100 * good / n:.1f} %, {100 * args.need:g} % are needed)")
    sys.exit(0 if good >= args.need * n else 1)


if __name__ == "__main__":
    main()
