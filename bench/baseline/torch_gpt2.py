#!/usr/bin/env python3
"""How fast torch trains GPT-2: forward, backward and AdamW step of a model with random weights, in
every number format and way of running that torch has on a CPU, and which of them is the best. What
`shoal train` is measured against. Needs torch 2 and, for torch.compile, a C++ compiler.

    bench/baseline/torch_gpt2.py [--threads 2] [--batch 8] [--context 512] [--steps 4] [--json FILE]

Each way of running is a process of its own, so that none profits from or pays for the one before. On a
busy machine the CPU seconds of a step over the number of threads say what the step might take."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

N_LAYER, N_HEAD, N_EMBD, N_CTX, N_VOCAB = 12, 12, 768, 1024, 50257
DESCRIPTION = {"float32": "float32", "medium": "float32, products in bfloat16",
               "autocast": "bfloat16 autocast, float32 weights", "bfloat16": "bfloat16 weights"}
WAYS = [(dtype, compiled) for dtype in DESCRIPTION for compiled in (False, True)]


def model_of(torch, n_vocab):
    """GPT-2 of Radford et al. 2019: learned positions, LayerNorm before each half, GELU (tanh), tied
    head. Takes (ids, targets), gives the mean cross-entropy."""
    nn, F = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(N_EMBD), nn.LayerNorm(N_EMBD)
            self.qkv, self.out = nn.Linear(N_EMBD, 3 * N_EMBD), nn.Linear(N_EMBD, N_EMBD)
            self.up, self.down = nn.Linear(N_EMBD, 4 * N_EMBD), nn.Linear(4 * N_EMBD, N_EMBD)

        def forward(self, x):
            n_seq, n_tok, _ = x.shape
            q, k, v = (part.view(n_seq, n_tok, N_HEAD, -1).transpose(1, 2)
                       for part in self.qkv(self.norm1(x)).split(N_EMBD, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(n_seq, n_tok, N_EMBD))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(n_vocab, N_EMBD), nn.Embedding(N_CTX, N_EMBD)
            self.layers = nn.ModuleList(Layer() for _ in range(N_LAYER))
            self.norm = nn.LayerNorm(N_EMBD)
            for name, p in self.named_parameters():
                if p.dim() > 1:
                    nn.init.normal_(p, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(p)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, n_vocab), targets.reshape(-1))

    return Model()


def measure(args):
    """One way of running: seconds of each step, compilation and two steps of warming up left out."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.dtype == "medium":
        torch.set_float32_matmul_precision("medium")
    model = model_of(torch, args.vocab)
    if args.dtype == "bfloat16":
        model = model.bfloat16()
    try:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    except (RuntimeError, TypeError):  # before torch 2.4 not on a CPU
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    step = torch.compile(model) if args.compile else model
    seconds, cpu_seconds, losses = [], [], []
    for i in range(args.steps + 2):
        ids = torch.randint(args.vocab, (args.batch, args.context + 1))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "autocast"):
            loss = step(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if i >= 2:
            seconds.append(time.perf_counter() - begin)
            cpu_seconds.append(time.process_time() - cpu_begin)
    n_tok = args.batch * args.context
    print(json.dumps({
        "dtype": args.dtype, "compile": args.compile, "seconds": seconds,
        "cpu_seconds": cpu_seconds, "losses": losses,
        "best_tps": n_tok / min(seconds), "median_tps": n_tok / statistics.median(seconds)}))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="timed steps; two more warm up")
    parser.add_argument("--vocab", type=int, default=N_VOCAB, help="50304 is nanoGPT's padding")
    parser.add_argument("--json", help="write all figures here")
    parser.add_argument("--dtype", choices=DESCRIPTION, help="only this one, in this process")
    parser.add_argument("--compile", action="store_true", help="with --dtype: torch.compile")
    return parser.parse_args()


def main():
    args = arguments()
    if args.dtype:
        return measure(args)
    import torch

    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, GPT-2 124M, batch {args.batch} x {args.context}, "
          f"{args.threads} threads, load before {load:.2f}")
    rows = []
    for dtype, compiled in WAYS:
        name = DESCRIPTION[dtype] + (", torch.compile" if compiled else "")
        command = [sys.executable, __file__, "--dtype", dtype] + ["--compile"] * compiled
        for flag in ("threads", "batch", "context", "steps", "vocab"):
            command += [f"--{flag}", str(getattr(args, flag))]
        env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
        run = subprocess.run(command, capture_output=True, text=True, env=env)
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if "Error" in line] or [run.stderr]
            print(f"{name}: failed: {lines[-1].strip()}")
            continue
        row = json.loads(run.stdout.splitlines()[-1])
        rows.append(row | {"name": name, "load": os.getloadavg()[0]})
        print(f"{name}: {row['best_tps']:.0f} tokens/s at best, {row['median_tps']:.0f} median; "
              f"a step takes {min(row['cpu_seconds']):.1f} CPU seconds; load {rows[-1]['load']:.2f}",
              flush=True)
    best = max(rows, key=lambda row: row["best_tps"])
    print(f"best: {best['name']}: {best['best_tps']:.0f} tokens/s")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"torch": torch.__version__, "load": load, "best": best, "rows": rows}, f,
                      indent=1)


if __name__ == "__main__":
    main()
