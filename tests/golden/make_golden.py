#!/usr/bin/env python3
"""Makes tests/golden/*.json: the logits of tiny random models of each family, computed here in float64
straight from the papers' formulas and not from our code. Needs numpy; with --transformers also torch
and transformers, whose LlamaForCausalLM, GPT2LMHeadModel or GPTJForCausalLM then has to agree. Not run
by the tests: they read its files.

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
    "gpt2-tied": "--family gpt2 --layers 3 --heads 12 --head-dim 8 --embd 96 --ff 224 --tied",
    "gpt2-untied": "--family gpt2 --layers 2 --heads 5 --head-dim 12 --embd 60 --ff 88",
    "gptj": "--family gptj --layers 3 --heads 5 --head-dim 12 --rot 8 --embd 60 --ff 88",
}
N_IDS = 150  # more than two pages of the cache


class Model:
    def __init__(self, path):
        self.bytes = path.read_bytes()
        self.header = gguf.Header(self.bytes)
        meta = self.header.meta
        self.family = meta["general.architecture"].decode()
        get = lambda key, default=None: meta.get(f"{self.family}.{key}", default)
        self.n_ctx = get("context_length")
        self.n_layer = get("block_count")
        self.n_embd = get("embedding_length")
        self.n_head = get("attention.head_count")
        self.n_kv_head = get("attention.head_count_kv", self.n_head)
        self.head_dim = get("attention.key_length", self.n_embd // self.n_head)
        self.eps = get("attention.layer_norm_rms_epsilon", get("attention.layer_norm_epsilon"))
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


def layer_norm(x, gain, bias, eps):
    """Ba, Kiros & Hinton 2016, arXiv:1607.06450."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain + bias


def gelu(x):
    """Hendrycks & Gimpel 2016, arXiv:1606.08415: the approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def gpt2_logits(m, ids):
    """After each id: (n_tok, n_vocab). Radford et al. 2019; fused Q, K and V stand in that order."""
    norm = lambda x, name: layer_norm(x, m.tensor(f"{name}.weight"), m.tensor(f"{name}.bias"), m.eps)
    linear = lambda x, name: x @ m.tensor(f"{name}.weight").T + m.tensor(f"{name}.bias")
    heads = lambda x: x.reshape(len(ids), m.n_head, m.head_dim)
    x = m.tensor("token_embd.weight")[ids] + m.tensor("position_embd.weight")[:len(ids)]
    for i in range(m.n_layer):
        at = f"blk.{i}."
        q, k, v = np.split(linear(norm(x, at + "attn_norm"), at + "attn_qkv"), 3, axis=1)
        x = x + linear(attention(heads(q), heads(k), heads(v)), at + "attn_output")
        x = x + linear(gelu(linear(norm(x, at + "ffn_norm"), at + "ffn_up")), at + "ffn_down")
    head = "output.weight" if m.has("output.weight") else "token_embd.weight"
    return norm(x, "output_norm") @ m.tensor(head).T


def gptj_logits(m, ids):
    """After each id: (n_tok, n_vocab). Wang & Komatsuzaki 2021: attention and feed-forward read the same
    norm, and both are added; of a head the first n_rot values turn."""
    norm = lambda x, name: layer_norm(x, m.tensor(f"{name}.weight"), m.tensor(f"{name}.bias"), m.eps)
    linear = lambda x, name: x @ m.tensor(f"{name}.weight").T + m.tensor(f"{name}.bias")
    x = m.tensor("token_embd.weight")[ids]
    angle = np.arange(len(ids))[:, None] * m.angles_per_position()[None, :]
    for i in range(m.n_layer):
        at = f"blk.{i}."
        h = norm(x, at + "attn_norm")
        q, k, v = ((h @ m.tensor(f"{at}attn_{what}.weight").T).reshape(len(ids), m.n_head, m.head_dim)
                   for what in "qkv")
        mixed = attention(rotate(q, angle), rotate(k, angle), v) @ m.tensor(at + "attn_output.weight").T
        x = x + mixed + linear(gelu(linear(h, at + "ffn_up")), at + "ffn_down")
    return linear(norm(x, "output_norm"), "output")


def llama_logits(m, ids):
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
    return rms_norm(x, m.tensor("output_norm.weight"), m.eps) @ m.tensor(head).T


def transformers_gpt2(m):
    """GPT2LMHeadModel with the same weights: its matrices are transposed."""
    import torch
    import transformers

    tied = not m.has("output.weight")
    config = transformers.GPT2Config(
        vocab_size=m.n_vocab, n_positions=m.n_ctx, n_embd=m.n_embd, n_layer=m.n_layer,
        n_head=m.n_head, n_inner=m.header.tensors["blk.0.ffn_up.weight"][1][1],
        layer_norm_epsilon=m.eps, tie_word_embeddings=tied, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).double().eval()
    state = {"transformer.wte.weight": m.tensor("token_embd.weight"),
             "transformer.wpe.weight": m.tensor("position_embd.weight"),
             "transformer.ln_f.weight": m.tensor("output_norm.weight"),
             "transformer.ln_f.bias": m.tensor("output_norm.bias"),
             "lm_head.weight": m.tensor("token_embd.weight" if tied else "output.weight")}
    names = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
             "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    for i in range(m.n_layer):
        for ours, theirs in names.items():
            for kind in "weight", "bias":
                state[f"transformer.h.{i}.{theirs}.{kind}"] = m.tensor(f"blk.{i}.{ours}.{kind}").T
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
    return model


def transformers_gptj(m):
    """GPTJForCausalLM with the same weights; its rotary pairs are neighbours as here, its sines float32."""
    import torch
    import transformers

    config = transformers.GPTJConfig(
        vocab_size=m.n_vocab, n_positions=m.n_ctx, n_embd=m.n_embd, n_layer=m.n_layer,
        n_head=m.n_head, rotary_dim=m.n_rot, n_inner=m.header.tensors["blk.0.ffn_up.weight"][1][1],
        layer_norm_epsilon=m.eps, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        attn_implementation="eager")
    model = transformers.GPTJForCausalLM(config).double().eval()
    names = {"token_embd.weight": "transformer.wte.weight", "output_norm": "transformer.ln_f",
             "output": "lm_head"}
    for i in range(m.n_layer):
        at = {"attn_norm": "ln_1", "attn_q.weight": "attn.q_proj.weight",
              "attn_k.weight": "attn.k_proj.weight", "attn_v.weight": "attn.v_proj.weight",
              "attn_output.weight": "attn.out_proj.weight", "ffn_up": "mlp.fc_in",
              "ffn_down": "mlp.fc_out"}
        names |= {f"blk.{i}.{ours}": f"transformer.h.{i}.{theirs}" for ours, theirs in at.items()}
    state = {}
    for ours, theirs in names.items():
        for kind in [""] if ours.endswith(".weight") else [".weight", ".bias"]:
            state[theirs + kind] = torch.tensor(m.tensor(ours + kind))
    model.load_state_dict(state)
    return model


def transformers_llama(m):
    """LlamaForCausalLM with the same weights: its rotary pairs are (i, i + head_dim / 2)."""
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
    return model


FAMILIES = {"llama": (llama_logits, transformers_llama), "gpt2": (gpt2_logits, transformers_gpt2),
            "gptj": (gptj_logits, transformers_gptj)}


def transformers_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids.tolist()])).logits[0].numpy()


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name, args in CASES.items():
            path = pathlib.Path(folder) / f"{name}.gguf"
            subprocess.run([sys.argv[1], *args.split(), str(path)], check=True)
            model = Model(path)
            ids = (np.arange(N_IDS) * 7919 + 3) % model.n_vocab
            ours, theirs = FAMILIES[model.family]
            logits = ours(model, ids)
            if "--transformers" in sys.argv:
                other = transformers_logits(theirs(model), ids)
                worst = np.abs(other - logits).max()
                print(f"{name}: transformers differs by at most {worst:.3g} "
                      f"of {np.abs(logits).max():.3g}")
                assert worst < 1e-5 * np.abs(logits).max()
            logits = logits[-1]
            golden = {"mkmodel": args.split(), "sha256": hashlib.sha256(model.bytes).hexdigest(),
                      "ids": ids.tolist(), "logits": [float(f"{x:.9g}") for x in logits]}
            (HERE / f"{name}.json").write_text(json.dumps(golden) + "\n")
            print(f"{name}: {len(logits)} logits, largest {np.abs(logits).max():.3g}")


if __name__ == "__main__":
    main()
