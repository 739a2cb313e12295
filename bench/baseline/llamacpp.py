#!/usr/bin/env python3
"""How fast llama.cpp reads a prompt and decodes, with the file and threads of a run of shoal bench.
Needs the PyPI package llama-cpp-python; CMAKE_ARGS says for which instruction set pip builds it.

    bench/baseline/llamacpp.py MODEL.gguf [--threads 2] [--prompt 512] [--gen 32] [--repeat 3]"""

import argparse
import random
import statistics
import time

import llama_cpp


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    for flag, value in (("--threads", 2), ("--prompt", 512), ("--gen", 32), ("--repeat", 3)):
        parser.add_argument(flag, type=int, default=value)
    args = parser.parse_args()
    model = llama_cpp.Llama(args.model, n_ctx=args.prompt + args.gen + 64, n_batch=args.prompt, n_ubatch=args.prompt,
                            n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    random.seed(1)
    ids = [random.randrange(3, model.n_vocab()) for _ in range(args.prompt)]
    prompt, gen = [], []
    for i in range(args.repeat + 1):  # the first is not counted
        model.reset()
        begin = time.monotonic()
        model.eval(ids)
        prompt.append(args.prompt / (time.monotonic() - begin))
        model.reset()
        model.eval(ids[:1])
        begin = time.monotonic()
        for token in ids[: args.gen]:
            model.eval([token])
        gen.append(args.gen / (time.monotonic() - begin))
    print(f"llama-cpp-python {llama_cpp.__version__}: pp{args.prompt} {statistics.median(prompt[1:]):.1f} tok/s, "
          f"tg{args.gen} {statistics.median(gen[1:]):.1f} tok/s")


main()
