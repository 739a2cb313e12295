#!/usr/bin/env python3
"""nanoGPT's small CPU setting for Tiny Shakespeare by characters, in torch: 4 layers, 4 heads, width 128,
context 64, batch 12, 2000 iterations. What `shoal train` is measured against: the validation loss and the
time it takes on this machine. nanoGPT's published loss is 1.88. Needs torch 2 and numpy.

    bench/baseline/nanogpt_shakespeare.py [TEXT] [--compile] [--fused] [--seed 1337] [--threads 2]

The settings are those of nanoGPT's readme and of its config/train_shakespeare_char.py. --compile and
--fused (AdamW) are what torch has to be faster; without them it is what the readme runs."""

import argparse
import json
import math
import os
import pathlib
import time

START = time.perf_counter()

import numpy as np  # noqa: E402: its loading is part of the time
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

TEXT = pathlib.Path(__file__).resolve().parents[3] / "shared/data/shakespeare.txt"
N_LAYER, N_HEAD, N_EMBD, N_CTX = 4, 4, 128, 64
BATCH, N_ITER, WARMUP, LR, MIN_LR = 12, 2000, 100, 1e-3, 1e-4
BETAS, DECAY, CLIP = (0.9, 0.99), 0.1, 1.0
EVAL_EVERY, EVAL_BATCHES = 250, 20


class Norm(nn.Module):
    """LayerNorm without a bias."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N_EMBD))

    def forward(self, x):
        return F.layer_norm(x, (N_EMBD,), self.weight, None, 1e-5)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv = nn.Linear(N_EMBD, 3 * N_EMBD, bias=False)
        self.out = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.up = nn.Linear(N_EMBD, 4 * N_EMBD, bias=False)
        self.down = nn.Linear(4 * N_EMBD, N_EMBD, bias=False)

    def forward(self, x):
        n_seq, n_tok, _ = x.shape
        q, k, v = (part.view(n_seq, n_tok, N_HEAD, -1).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).split(N_EMBD, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n_seq, n_tok, N_EMBD))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, n_vocab):
        super().__init__()
        self.tokens, self.places = nn.Embedding(n_vocab, N_EMBD), nn.Embedding(N_CTX, N_EMBD)
        self.layers = nn.ModuleList(Layer() for _ in range(N_LAYER))
        self.norm = Norm()
        for name, p in self.named_parameters():
            if p.dim() > 1:  # matrices back into the residual stream are smaller
                back = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * N_LAYER) if back else 0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def rate(i):
    """Warm-up, then half a cosine down to MIN_LR."""
    if i < WARMUP:
        return LR * (i + 1) / (WARMUP + 1)
    return MIN_LR + 0.5 * (LR - MIN_LR) * (1 + math.cos(math.pi * (i - WARMUP) / (N_ITER - WARMUP)))


def batch(ids):
    """BATCH windows at random places: ids and the ids that follow them."""
    at = torch.randint(len(ids) - N_CTX, (BATCH,)).tolist()
    window = torch.stack([ids[i:i + N_CTX + 1] for i in at])
    return window[:, :-1], window[:, 1:]


@torch.no_grad()
def estimate(model, ids):
    """As nanoGPT does it: the mean of some random batches."""
    return sum(model(*batch(ids)).item() for _ in range(EVAL_BATCHES)) / EVAL_BATCHES


@torch.no_grad()
def exact(model, ids):
    """Every window of the text once: the estimate without its chance."""
    n = (len(ids) - 1) // N_CTX
    x, y = ids[:n * N_CTX].view(n, N_CTX), ids[1:n * N_CTX + 1].view(n, N_CTX)
    return sum(model(x[i:i + 64], y[i:i + 64]).item() * len(x[i:i + 64]) for i in range(0, n, 64)) / n


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    load = os.getloadavg()[0]

    text = np.frombuffer(pathlib.Path(args.text).read_bytes(), np.uint8)
    chars, numbers = np.unique(text, return_inverse=True)
    ids = torch.from_numpy(numbers.astype(np.int64))
    cut = int(0.9 * len(ids))
    train, val = ids[:cut], ids[cut:]

    plain = Model(len(chars))
    model = torch.compile(plain) if args.compile else plain
    matrices = [p for p in plain.parameters() if p.dim() > 1]
    others = [p for p in plain.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LR, betas=BETAS, fused=args.fused)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    evaluating = 0.0
    best = math.inf
    for i in range(N_ITER + 1):
        if i % EVAL_EVERY == 0:
            at = time.perf_counter()
            last_train, last_val = estimate(model, train), estimate(model, val)
            best = min(best, last_val)
            evaluating += time.perf_counter() - at
            print(f"iteration {i}: train {last_train:.4f}, validation {last_val:.4f}, "
                  f"{time.perf_counter() - begin:.1f} s", flush=True)
        for group in optimizer.param_groups:
            group["lr"] = rate(i)
        loss = model(*batch(train))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
        optimizer.step()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    print(json.dumps({
        "torch": torch.__version__, "compile": args.compile, "fused": args.fused,
        "seed": args.seed, "threads": args.threads, "load_before": load, "load_after": os.getloadavg()[0],
        "validation_best": round(best, 4), "validation_last": round(last_val, 4),
        "validation_whole_text": round(exact(plain, val), 4), "train_seconds": round(seconds, 2),
        "train_cpu_seconds": round(cpu_seconds, 2),
        "of_that_evaluating": round(evaluating, 2),
        "process_seconds": round(time.perf_counter() - START, 2)}))


if __name__ == "__main__":
    main()
