#!/usr/bin/env python3
"""Makes tests/golden/*.json: the logits of tiny random llama models, computed here in float64 straight
from the papers' formulas and not from our code. Needs numpy; with --transformers also torch and
transformers, whose LlamaForCausalLM then has to agree. Not run by the tests: they read its files.

    python3 tests/golden/make_golden.py build/tests/mkmodel [--transformers]

Each file holds the arguments that make the model, the SHA-256 of the file they make, token ids, and
the logits after the last of them."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))
import gguf  # noqa: E402: found by the line above

CASES = {
    "tied": "--layers 2 --heads 4 --kv-heads 4 --head-dim 16 --embd 64 --ff 160 --tied",
    "untied-gqa": "--layers 3 --heads 6 --kv-heads 2 --head-dim 16 --embd 96 --ff 192",
    "odd-head-dim": "--layers 2 --heads 5 --kv-heads 1 --head-dim 10 --embd 60 --ff 88",
    "rope-linear": "--layers 2 --heads 4 --kv-heads 2 --head-dim 16 --embd 64 --ff 128 "
                   "--rope-linear 4",
    "rope-llama3": "--layers 2 --heads 4 --kv-heads 2 --head-dim 32 --embd 64 --ff 128 "
                   "--rope-llama3 --rope-base 500000",
}
N_IDS = 150  # more than two pages of the cache


class Model:
    def __init__(self, path):
        self.bytes = path.read_bytes()
        self.header = gguf.Header(self.bytes)
        meta = self.header.meta
        get = lambda key, default=None: meta.get(f"llama.{key}", default)
        self.n_ctx = get("context_length")
        self.n_layer = get("block_count")
        self.n_embd = get("embedding_length")
        self.n_head = get("attention.head_count")
        self.n_kv_head = get("attention.head_count_kv", self.n_head)
        self.head_dim = get("attention.key_length", self.n_embd // self.n_head)
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.n_rot = get("rope.dimension_count", self.head_dim)
        self.base = get("rope.freq_base", 10000.0)
        self.scaling = get("rope.scaling.type", b"none").decode()
        self.factor = get("rope.scaling.factor", 1.0)
        self.n_vocab = len(meta["tokenizer.ggml.tokens"])

    def tensor(self, name):
        """(rows, columns) or (n), float64."""
        number, dims, at, n_bytes = self.header.tensors[name]
        assert gguf.TYPES[number][0] == "f32", f"{name} is {gguf.TYPES[number][0]}"
        flat = np.frombuffer(self.bytes, "<f4", n_bytes // 4, at)
        return flat.reshape(dims[::-1]).astype(np.float64)

    def has(self, name):
        return name in self.header.tensors

    def angles_per_position(self):
        """Radians that each pair turns per position: (n_rot / 2)."""
        freq = self.base ** (-np.arange(0, self.n_rot, 2, dtype=np.float64) / self.n_rot)
        if self.scaling == "linear":
            freq = freq / self.factor
        if self.has("rope_freqs.weight"):  # llama3: a divisor for each pair, kept in the file
            freq = freq / self.tensor("rope_freqs.weight")
        return freq


def rms_norm(x, gain, eps):
    """Zhang & Sennrich 2019, arXiv:1910.07467."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x, angle):
    """x (n_tok, n_head, head_dim): neighbours (2i, 2i+1) turn by angle (n_tok, n_rot / 2).
    Su et al. 2021, arXiv:2104.09864."""
    y = x.copy()
    n_rot = 2 * angle.shape[1]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
    y[..., 0:n_rot:2] = a * cos - b * sin
    y[..., 1:n_rot:2] = a * sin + b * cos
    return y


def attention(q, k, v):
    """q (n_tok, n_head, head_dim), k and v (n_tok, n_kv_head, head_dim); causal."""
    n_tok, n_head, head_dim = q.shape
    k = np.repeat(k, n_head // k.shape[1], axis=1)
    v = np.repeat(v, n_head // v.shape[1], axis=1)
    score = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head_dim)
    score = np.where(np.tri(n_tok, dtype=bool), score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weight, v).reshape(n_tok, -1)


def last_logits(m, ids):
    x = m.tensor("token_embd.weight")[ids]
    angle = np.arange(len(ids))[:, None] * m.angles_per_position()[None, :]
    for i in range(m.n_layer):
        w = lambda name: m.tensor(f"blk.{i}.{name}.weight")
        h = rms_norm(x, w("attn_norm"), m.eps)
        q = rotate((h @ w("attn_q").T).reshape(len(ids), m.n_head, m.head_dim), angle)
        k = rotate((h @ w("attn_k").T).reshape(len(ids), m.n_kv_head, m.head_dim), angle)
        v = (h @ w("attn_v").T).reshape(len(ids), m.n_kv_head, m.head_dim)
        x = x + attention(q, k, v) @ w("attn_output").T
        h = rms_norm(x, w("ffn_norm"), m.eps)
        gate = h @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
    head = "output.weight" if m.has("output.weight") else "token_embd.weight"
    return rms_norm(x[-1], m.tensor("output_norm.weight"), m.eps) @ m.tensor(head).T


def transformers_logits(m, ids):
    """The same from Hugging Face's LlamaForCausalLM, whose rotary pairs are (i, i + head_dim / 2)."""
    import torch
    import transformers

    def unpermute(weight, n_head):
        rows, columns = weight.shape
        return weight.reshape(n_head, rows // n_head // 2, 2, columns).swapaxes(1, 2).reshape(
            rows, columns)

    tied = not m.has("output.weight")
    rope = {"rope_type": "default", "rope_theta": m.base}
    if m.scaling == "linear":
        rope |= {"rope_type": "linear", "factor": m.factor}
    if m.has("rope_freqs.weight"):  # what mkmodel --rope-llama3 stands for
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": m.n_ctx}
    n_ff = m.header.tensors["blk.0.ffn_up.weight"][1][1]
    config = transformers.LlamaConfig(
        vocab_size=m.n_vocab, hidden_size=m.n_embd, intermediate_size=n_ff,
        num_hidden_layers=m.n_layer, num_attention_heads=m.n_head,
        num_key_value_heads=m.n_kv_head, head_dim=m.head_dim, rms_norm_eps=m.eps,
        rope_parameters=rope, tie_word_embeddings=tied,
        max_position_embeddings=4096, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).double().eval()
    state = {"model.embed_tokens.weight": m.tensor("token_embd.weight"),
             "model.norm.weight": m.tensor("output_norm.weight"),
             "lm_head.weight": m.tensor("token_embd.weight" if tied else "output.weight")}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for i in range(m.n_layer):
        for ours, theirs in names.items():
            t = m.tensor(f"blk.{i}.{ours}.weight")
            t = unpermute(t, m.n_head) if ours == "attn_q" else t
            t = unpermute(t, m.n_kv_head) if ours == "attn_k" else t
            state[f"model.layers.{i}.{theirs}.weight"] = t
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
    with torch.no_grad():
        return model(torch.tensor([ids.tolist()])).logits[0, -1].numpy()


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name, args in CASES.items():
            path = pathlib.Path(folder) / f"{name}.gguf"
            subprocess.run([sys.argv[1], *args.split(), str(path)], check=True)
            model = Model(path)
            ids = (np.arange(N_IDS) * 7919 + 3) % model.n_vocab
            logits = last_logits(model, ids)
            if "--transformers" in sys.argv:
                other = transformers_logits(model, ids)
                worst = np.abs(other - logits).max()
                print(f"{name}: transformers differs by at most {worst:.3g} "
                      f"of {np.abs(logits).max():.3g}")
                assert worst < 1e-5 * np.abs(logits).max()
            golden = {"mkmodel": args.split(), "sha256": hashlib.sha256(model.bytes).hexdigest(),
                      "ids": ids.tolist(), "logits": [float(f"{x:.9g}") for x in logits]}
            (HERE / f"{name}.json").write_text(json.dumps(golden) + "\n")
            print(f"{name}: {len(logits)} logits, largest {np.abs(logits).max():.3g}")


if __name__ == "__main__":
    main()
