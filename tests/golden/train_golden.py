#!/usr/bin/env python3
"""Makes tests/golden/train/: what training of tiny llama and gpt2 models gives, computed by torch in
float64 from float32 weights. Needs torch, transformers and numpy. Not run by the tests: they read its
files.

    python3 tests/golden/train_golden.py [--check]

For each case NAME there is NAME.json - the settings of AdamW, the batch of each step (rows of n_ctx + 1
ids: a row's ids but the last are read, its ids but the first are the targets), the loss and the norm of the
gradient at each step before its update, the loss of the first batch after the last update, and the logits
after the first n_ctx ids of the first batch - and four GGUF files with the same tensors, all float32:

    NAME.gguf         the weights at the beginning; a model that `shoal run` opens
    NAME.grad.gguf    the gradient at the first step, before clipping
    NAME.1.gguf       the weights after one step
    NAME.20.gguf      the weights after 20 steps

The models are written below from the papers' formulas, and the script stops unless loss, logits and
gradients are those of transformers' LlamaForCausalLM and GPT2LMHeadModel. It prints how far torch in
float32 is from the same in float64, tensor by tensor where that is far: no test can ask for more. With
--check it writes nothing.

The key part of gpt2's blk.*.attn_qkv.bias has no effect: it adds the same to all the scores of a query. Its
gradient is nothing but rounding, from which Adam makes steps of any size and sign, so the files hold zeros
as its gradient and its first values as those after 1 and 20 steps, decay being for matrices only. A test
should leave it out."""

import argparse
import json
import pathlib
import struct
import sys

import numpy as np
import torch
import transformers
from torch.nn import functional as F

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "train"

SEQS, STEPS = 3, 20
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.1}
# kv_heads divides heads; head_dim * heads need not be embd. The first clips every step, the others some.
CASES = {
    "llama": {"family": "llama", "layers": 2, "embd": 36, "heads": 4, "kv_heads": 2, "head_dim": 10,
              "ff": 56, "vocab": 53, "context": 24, "tied": False, "clip": 1.0},
    "llama-tied": {"family": "llama", "layers": 2, "embd": 40, "heads": 4, "kv_heads": 1,
                   "head_dim": 10, "ff": 72, "vocab": 61, "context": 24, "tied": True, "clip": 5.3},
    "gpt2": {"family": "gpt2", "layers": 2, "embd": 36, "heads": 4, "kv_heads": 4, "head_dim": 9,
             "ff": 100, "vocab": 61, "context": 24, "tied": True, "clip": 3.2},
}
EPS, ROPE_BASE = 1e-5, 10000.0


def shapes(c):
    """{GGUF's name: shape}, in the order of the file; matrices are (outputs, inputs)."""
    embd, ff, vocab = c["embd"], c["ff"], c["vocab"]
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    s = {"token_embd.weight": (vocab, embd)}
    if c["family"] == "gpt2":
        s["position_embd.weight"] = (c["context"], embd)
    for i in range(c["layers"]):
        if c["family"] == "llama":
            rows = {"attn_norm": (embd,), "attn_q": (q, embd), "attn_k": (kv, embd),
                    "attn_v": (kv, embd), "attn_output": (embd, q), "ffn_norm": (embd,),
                    "ffn_gate": (ff, embd), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
        else:
            rows = {"attn_norm": (embd,), "attn_qkv": (q + 2 * kv, embd), "attn_output": (embd, q),
                    "ffn_norm": (embd,), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
        for name, shape in rows.items():
            s[f"blk.{i}.{name}.weight"] = shape
            if c["family"] == "gpt2":
                s[f"blk.{i}.{name}.bias"] = shape[:1]
    s["output_norm.weight"] = (embd,)
    if c["family"] == "gpt2":
        s["output_norm.bias"] = (embd,)
    if not c["tied"]:
        s["output.weight"] = (vocab, embd)
    return s


def first_weights(c):
    """{name: float32 array}. Large enough that attention is uneven and every part matters."""
    rng = np.random.Generator(np.random.PCG64(7))
    w = {}
    for name, shape in shapes(c).items():
        x = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            x = 1 + 0.1 * x
        elif len(shape) == 1:
            x = 0.1 * x
        elif name.startswith(("token_embd", "position_embd")):
            x = 0.3 * x
        else:
            x = x / np.sqrt(shape[1])
        w[name] = x.astype(np.float32)
    return w


def first_batches(c):
    """(STEPS, SEQS, context + 1) ids; with a rule in them, that there is something to learn."""
    rng = np.random.Generator(np.random.PCG64(11))
    n, shape = c["vocab"], (STEPS, SEQS)
    ids = np.zeros((*shape, c["context"] + 1), np.int64)
    ids[..., 0] = rng.integers(0, n, shape)
    for t in range(1, ids.shape[-1]):
        chance = rng.integers(0, n, shape)
        ids[..., t] = np.where(rng.random(shape) < 0.25, chance, (3 * ids[..., t - 1] + 5) % n)
    return ids


def attention(q, k, v, c):
    """q (seq, tok, heads, head_dim), k and v (seq, tok, kv_heads, head_dim); causal."""
    share = c["heads"] // c["kv_heads"]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)))
    score = q @ k.transpose(2, 3) / c["head_dim"]**0.5
    later = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
    weight = score.masked_fill(later, -torch.inf).softmax(-1)
    return (weight @ v).transpose(1, 2).flatten(2)


def rotate(x):
    """x (seq, tok, head, head_dim): neighbours (2i, 2i + 1) turn. Su et al. 2021, arXiv:2104.09864."""
    n_tok, dim = x.shape[1], x.shape[3]
    freq = ROPE_BASE ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(n_tok, dtype=torch.float64)[:, None] * freq
    cos, sin = angle.cos().to(x.dtype)[:, None, :], angle.sin().to(x.dtype)[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def llama_logits(w, ids, c):
    """Touvron et al. 2023, arXiv:2302.13971. ids (seq, tok) -> (seq, tok, vocab)."""
    norm = lambda x, gain: x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain
    heads = lambda x: x.unflatten(-1, (-1, c["head_dim"]))
    x = w["token_embd.weight"][ids]
    for i in range(c["layers"]):
        p = lambda name: w[f"blk.{i}.{name}.weight"]
        h = norm(x, p("attn_norm"))
        q, k, v = (heads(h @ p(name).T) for name in ("attn_q", "attn_k", "attn_v"))
        x = x + attention(rotate(q), rotate(k), v, c) @ p("attn_output").T
        h = norm(x, p("ffn_norm"))
        x = x + (F.silu(h @ p("ffn_gate").T) * (h @ p("ffn_up").T)) @ p("ffn_down").T
    head = w["token_embd.weight"] if c["tied"] else w["output.weight"]
    return norm(x, w["output_norm.weight"]) @ head.T


def gpt2_logits(w, ids, c):
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; GELU by its tanh form."""
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], EPS)
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]
    heads = lambda x: x.unflatten(-1, (-1, c["head_dim"]))
    x = w["token_embd.weight"][ids] + w["position_embd.weight"][:ids.shape[1]]
    for i in range(c["layers"]):
        p = f"blk.{i}."
        q, k, v = (heads(y) for y in linear(norm(x, p + "attn_norm"), p + "attn_qkv").chunk(3, -1))
        x = x + linear(attention(q, k, v, c), p + "attn_output")
        h = F.gelu(linear(norm(x, p + "ffn_norm"), p + "ffn_up"), approximate="tanh")
        x = x + linear(h, p + "ffn_down")
    return norm(x, "output_norm") @ w["token_embd.weight"].T


def loss_of(w, rows, c):
    """Mean cross-entropy over rows (seq, context + 1)."""
    logits = (llama_logits if c["family"] == "llama" else gpt2_logits)(w, rows[:, :-1], c)
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()), logits


def halves(x, n_head):
    """Rows of neighbouring pairs to rows of pairs half a head apart, as transformers has them."""
    return x.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)


def transformers_model(w, c):
    """Their model, and {our name: function of their gradients}."""
    shared = {"vocab_size": c["vocab"], "attn_implementation": "eager"}
    if c["family"] == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=c["embd"], intermediate_size=c["ff"], num_hidden_layers=c["layers"],
            num_attention_heads=c["heads"], num_key_value_heads=c["kv_heads"], head_dim=c["head_dim"],
            rms_norm_eps=EPS, tie_word_embeddings=c["tied"], max_position_embeddings=c["context"],
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE}, **shared))
        names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        layer = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                 "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
                 "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
                 "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
        stem = "model.layers"
    else:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_embd=c["embd"], n_inner=c["ff"], n_layer=c["layers"], n_head=c["heads"],
            n_positions=c["context"], layer_norm_epsilon=EPS, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0, bos_token_id=0, eos_token_id=0, **shared))
        names = {"token_embd": "transformer.wte", "position_embd": "transformer.wpe",
                 "output_norm": "transformer.ln_f"}
        layer = {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn",
                 "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
        stem = "transformer.h"
    model = model.double()
    theirs = dict(model.named_parameters())
    pairs = {}  # our name: (their parameter, ours to theirs)
    for name, x in w.items():
        what, kind = name.rsplit(".", 1)
        parts = what.split(".")
        their = f"{stem}.{parts[1]}.{layer[parts[2]]}" if parts[0] == "blk" else names[what]
        if parts[-1] in ("attn_q", "attn_k"):
            n_head = c["heads"] if parts[-1] == "attn_q" else c["kv_heads"]
            turn = lambda y, n_head=n_head: halves(y, n_head)
        elif c["family"] == "gpt2" and parts[0] == "blk" and x.dim() == 2:
            turn = lambda y: y.T
        else:
            turn = lambda y: y
        pairs[name] = (theirs[f"{their}.{kind}"], turn)
    assert len(pairs) == len(theirs), "a parameter of theirs has no partner"
    with torch.no_grad():
        for name, (p, turn) in pairs.items():
            p.copy_(turn(w[name]))
    return model, pairs


def check_against_transformers(w, rows, c):
    w = {name: x.double().requires_grad_() for name, x in w.items()}
    loss, logits = loss_of(w, rows, c)
    loss.backward()
    model, pairs = transformers_model(w, c)
    out = model(rows[:, :-1]).logits
    their_loss = F.cross_entropy(out.flatten(0, 1), rows[:, 1:].flatten())
    their_loss.backward()
    worst = max([(out - logits).abs().max().item(), (their_loss - loss).abs().item()] +
                [(p.grad - turn(w[name].grad)).abs().max().item() for name, (p, turn) in pairs.items()])
    print(f"  transformers {transformers.__version__}: logits, loss and gradients differ by at most "
          f"{worst:.2g}")
    assert worst < (1e-5 if c["family"] == "llama" else 1e-10)  # their RMSNorm computes in float32


def idle(name, x, c):
    """The part of a tensor that has no effect, or None."""
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    return x[q:q + kv] if name.endswith("attn_qkv.bias") else None


def train(first, batches, c, dtype):
    """Losses and gradient norms of every step, the first gradient, weights after 1 and 20 steps, the last
    loss, all in dtype."""
    w = {name: x.to(dtype, copy=True).requires_grad_() for name, x in first.items()}
    matrices, others = ([x for x in w.values() if (x.dim() >= 2) == yes] for yes in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": ADAMW["decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"])
    result = {"losses": [], "norms": []}
    copy = lambda: {name: x.detach().double().numpy().copy() for name, x in w.items()}
    for step, rows in enumerate(batches):
        loss, _ = loss_of(w, rows, c)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, x in w.items():
                if idle(name, x, c) is not None:
                    idle(name, x.grad, c).zero_()
        if step == 0:
            result["grad"] = {name: x.grad.double().numpy().copy() for name, x in w.items()}
        norm = torch.nn.utils.clip_grad_norm_(w.values(), c["clip"])
        optimizer.step()
        result["losses"].append(loss.item())
        result["norms"].append(norm.item())
        if step == 0:
            result["1"] = copy()
    result["20"] = copy()
    with torch.no_grad():
        loss, logits = loss_of(w, batches[0], c)
        result["last_loss"] = loss.item()
    return result


def compare(ours, best, c):
    """Prints float32's distance from float64, as the tests measure it: the largest difference in a tensor
    over the tensor's largest value."""
    for what in ("grad", "1", "20"):
        far = {name: np.abs(ours[what][name] - x).max() / np.abs(x).max()
               for name, x in best[what].items()}
        worst = sorted(far, key=far.get)[-3:][::-1]
        absolute = max(np.abs(ours[what][name] - x).max() for name, x in best[what].items())
        print(f"  float32 against float64, {what}: " +
              ", ".join(f"{name} {far[name]:.2g}" for name in worst) + f"; absolute {absolute:.2g}")
    losses = max(abs(a - b) / b for a, b in zip(ours["losses"], best["losses"]))
    print(f"  losses {losses:.2g} (relative); clipped steps "
          f"{sum(n > c['clip'] for n in best['norms'])} of {STEPS}; "
          f"loss {best['losses'][0]:.4f} to {best['losses'][-1]:.4f}")


def gguf_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(x):
    """Type and value: str, bool, int (u32), float (f32) or a list of one of them (ints as i32)."""
    if isinstance(x, list):
        body = {str: lambda: b"".join(map(gguf_string, x)),
                float: lambda: struct.pack(f"<{len(x)}f", *x),
                int: lambda: struct.pack(f"<{len(x)}i", *x)}[type(x[0])]()
        return struct.pack("<IIQ", 9, {str: 8, float: 6, int: 5}[type(x[0])], len(x)) + body
    if isinstance(x, str):
        return struct.pack("<I", 8) + gguf_string(x)
    if isinstance(x, bool):
        return struct.pack("<I?", 7, x)
    return struct.pack("<II", 4, x) if isinstance(x, int) else struct.pack("<If", 6, x)


def vocabulary(n):
    """A SentencePiece kind of n single characters, whatever the family."""
    chars = "▁etaoinshrdlucmfwypvbgkqjxz.,!?'-;:ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {"tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"] + list(chars[:n - 3]),
            "tokenizer.ggml.scores": [0.0] * 3 + [-float(i) for i in range(n - 3)],
            "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (n - 3),
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": False}


def metadata(c, title):
    f = c["family"]
    meta = {"general.architecture": f, "general.name": title, "general.file_type": 0,
            f"{f}.context_length": c["context"], f"{f}.embedding_length": c["embd"],
            f"{f}.block_count": c["layers"], f"{f}.feed_forward_length": c["ff"],
            f"{f}.attention.head_count": c["heads"]}
    if f == "llama":
        meta |= {f"{f}.attention.head_count_kv": c["kv_heads"],
                 f"{f}.attention.key_length": c["head_dim"], f"{f}.attention.value_length": c["head_dim"],
                 f"{f}.attention.layer_norm_rms_epsilon": EPS, f"{f}.rope.dimension_count": c["head_dim"],
                 f"{f}.rope.freq_base": ROPE_BASE, f"{f}.vocab_size": c["vocab"]}
    else:
        meta |= {f"{f}.attention.layer_norm_epsilon": EPS}
    return meta | vocabulary(c["vocab"])


def write_gguf(path, meta, tensors):
    """tensors {name: array}, written as float32, rounded once."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(meta))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in meta.items())
    data = b""
    for name, x in tensors.items():
        head += gguf_string(name) + struct.pack(f"<I{x.ndim}QIQ", x.ndim, *x.shape[::-1], 0, len(data))
        data += x.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def write(name, c, first, batches, best, logits):
    OUT.mkdir(exist_ok=True)
    for what, tensors in (("", first), (".grad", best["grad"]), (".1", best["1"]), (".20", best["20"])):
        title = f"golden {name}{what}"
        write_gguf(OUT / f"{name}{what}.gguf", metadata(c, title), tensors)
    digits = lambda values: [float(f"{x:.9g}") for x in values]
    golden = c | ADAMW | {
        "torch": torch.__version__, "batches": batches.tolist(), "losses": digits(best["losses"]),
        "norms": digits(best["norms"]), "last_loss": digits([best["last_loss"]])[0],
        "ids": batches[0, 0, :-1].tolist(), "logits": digits(logits)}
    (OUT / f"{name}.json").write_text(json.dumps(golden) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, c in CASES.items():
        first = {key: torch.from_numpy(x) for key, x in first_weights(c).items()}
        batches = torch.from_numpy(first_batches(c))
        print(f"{name}: {sum(x.numel() for x in first.values())} parameters, torch {torch.__version__}")
        check_against_transformers(first, batches[0], c)
        best = train(first, batches, c, torch.float64)
        compare(train(first, batches, c, torch.float32), best, c)
        with torch.no_grad():
            _, logits = loss_of({key: x.double() for key, x in first.items()}, batches[0, :1], c)
        if not args.check:
            write(name, c, {key: x.numpy() for key, x in first.items()}, batches, best,
                  logits[0, -1].tolist())


if __name__ == "__main__":
    sys.exit(main())
