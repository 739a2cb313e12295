#!/usr/bin/env python3
"""Writes short stories in simple English: the text that the default model learns from.

    models/stories/generate.py --megabytes 200 --seed 1 -o stories.txt
    models/stories/generate.py --megabytes 4 --seed 1 --held-out -o unseen.txt
    models/stories/generate.py --openings 10

Rhymes (rhymes.py) stand between the stories. Each text is followed by a line `<|endoftext|>`; its paragraphs
are lines. The bytes depend on the size, the seed and --held-out, not on --jobs. Stories whose main
character's name and place are a reserved pair (cast.held_out) are in the held-out text only, so their
openings do not occur in what is trained on.

A plot of plots/*.txt is told by a function made from it (grammar.py) about people and things drawn for the
story (cast.py, words.py)."""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import random
import re
import sys

import cast
import grammar
import rhymes

HERE = pathlib.Path(__file__).resolve().parent
END = "<|endoftext|>"
CHUNK = 400  # stories that one generator of random numbers draws: the unit of work
CHUNK_BYTES = 335000  # of them and their rhymes, about
WORDS = range(80, 251)
ALONE = 0.4  # the part of the stories that no rhyme follows
plots = []  # of this process
numbers = set()  # of all the ways to tell their beats


def load():
    if not plots:
        files = [HERE / "beats.txt", *sorted((HERE / "plots").glob("*.txt"))]
        found, flags, all_ways = grammar.build({f.name: f.read_text() for f in files})
        numbers.update(all_ways)
        plots.extend(cast.Plot(*row) for row in found)
        clash = flags & {tag for place in cast.PLACES for tag in place.tags}
        if clash:
            raise grammar.Error(f"set by a plot, but also tags of places: {clash}")


def ways():
    return numbers


def stories(rng, n, held, with_cast=False):
    """n stories as text; with_cast: as pairs of a text and its cast."""
    c = cast.Cast(rng.random)
    usable = [p for p in plots if p.held or not held]
    out = []
    while len(out) < n:
        plot = c.pick(usable)
        c.draw(plot, held)
        plot.tell(c)
        text = "".join(c.out)
        name = c.H.name
        if text.count(" ") + 1 in WORDS and text.count(name) >= 4 and text.rfind(name) * 3 > len(text) * 2:
            out.append((text, c, plot) if with_cast else text)
            if with_cast:
                c = cast.Cast(rng.random)
    return out


def generator(seed, held, chunk):
    return random.Random(f"{seed} {'held out' if held else 'train'} {chunk}")


def chunk_bytes(task):
    seed, held, chunk = task
    load()
    rng, texts = generator(seed, held, f"{chunk} rhymes"), []
    for s in stories(generator(seed, held, chunk), CHUNK, held):
        texts += [s] if rng.random() < ALONE else [s, rhymes.rhyme(rng)]
    return "".join(f"{s}\n{END}\n" for s in texts).encode()


def write(out, n_bytes, seed, held, jobs):
    """At least n_bytes, to the end of a story. (Units are asked for as they are needed: the terminate() of a
    multiprocessing.Pool with some left over can hang.)"""
    tasks = ((seed, held, i) for i in range(sys.maxsize))
    end = f"\n{END}\n".encode()
    ahead = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        while n_bytes > 0:
            while len(ahead) < min(jobs * 3, 1 + n_bytes // CHUNK_BYTES):
                ahead.append(pool.submit(chunk_bytes, next(tasks)))
            text = ahead.popleft().result()
            if len(text) >= n_bytes:
                text = text[:text.index(end, max(0, n_bytes - len(end))) + len(end)]
            out.write(text)
            n_bytes -= len(text)


def first_sentences(text, n=2):
    ends = [m.end() for m in re.finditer(r'[.!?]"?(?=\s)(?! [a-z])', text)]
    return text[:ends[n - 1]].replace("\n", " ")


def openings(n, seed):
    """The first one or two sentences of unseen stories, with the main character's name and the place."""
    load()
    rng, out = generator(seed, True, "openings"), []
    while len(out) < n:
        ((text, c, _),) = stories(rng, 1, True, True)
        for k in (2, 1):
            start = first_sentences(text, k)
            if c.H.name in start and c.L.the in start and c.F.name not in start:
                if c.H.name not in [name for name, _ in out[-9:]]:
                    out.append((c.H.name, start))
                break
    return out


def main():
    p = argparse.ArgumentParser(description="Writes short stories in simple English, to train a model on.")
    p.add_argument("--megabytes", type=float, default=1, help="how much text (1 MB is 1,000,000 bytes; default 1)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each CPU)")
    p.add_argument("--held-out", action="store_true", help="stories that are never in the other text")
    p.add_argument("--openings", type=int, metavar="N", help="N lines instead: a name, a tab, an unseen opening")
    p.add_argument("-o", "--output", default="-", help="file (default: standard output)")
    args = p.parse_args()
    if args.jobs < 1 or args.megabytes <= 0:
        p.error("--jobs and --megabytes must be above 0")
    out = sys.stdout.buffer if args.output == "-" else open(args.output, "wb")
    with out:
        if args.openings:
            out.write("".join(f"{name}\t{text}\n" for name, text in openings(args.openings, args.seed)).encode())
        else:
            write(out, int(args.megabytes * 1e6), args.seed, args.held_out, args.jobs)


if __name__ == "__main__":
    main()
