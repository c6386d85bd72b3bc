"""Tiny checkpoints of Qwen's first generation, written in the layout of the released ones, and the model once more.

`forward` is slow and independent of the harness: numpy in float64, one sequence at a time, no cache.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, LAYERS, HEADS, HEAD, WIDTH, NATIVE = 32, 3, 2, 16, 44, 64
MERGES = ["th", "the", " t", " th", " the", "an", "in", "er", " a", "on", "re", " s", " c", "es", "ap", "12", ". "]
CONTROL = 208
VOCABULARY = 256 + len(MERGES) + CONTROL
EARLIER = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "n_positions",
    "emb_dropout_prob": "embd_pdrop",
    "attn_dropout_prob": "attn_pdrop",
}


def config(*, earlier: bool = False, **changes: Any) -> dict[str, Any]:
    """A configuration, in the names of the later releases or of the first ones."""
    found: dict[str, Any] = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "model_type": "qwen",
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * WIDTH,
        "kv_channels": HEAD,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 4096,
        "no_bias": True,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": NATIVE,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "vocab_size": VOCABULARY,
        **changes,
    }
    if not earlier:
        return found
    # They counted the tokens there, and beside it the rows of the embedding.
    counts = {"vocab_size": VOCABULARY - 3, "padded_vocab_size": VOCABULARY}
    return {EARLIER.get(name, name): value for name, value in found.items()} | counts


def weights(seed: int = 0) -> dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]:
    """Weights under the names of the released checkpoints, far from uniform."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.3) -> "np.ndarray[Any, np.dtype[np.float32]]":
        return (scale * draw.standard_normal(shape)).astype(np.float32)

    inner = HEADS * HEAD
    found = {
        "transformer.wte.weight": normal(VOCABULARY, HIDDEN, scale=1.0),
        "transformer.ln_f.weight": 1 + normal(HIDDEN),
        "lm_head.weight": normal(VOCABULARY, HIDDEN, scale=0.6),
    }
    for layer in range(LAYERS):
        begin = f"transformer.h.{layer}"
        found |= {
            f"{begin}.ln_1.weight": 1 + normal(HIDDEN),
            f"{begin}.attn.c_attn.weight": normal(3 * inner, HIDDEN, scale=0.4),
            f"{begin}.attn.c_attn.bias": normal(3 * inner),
            f"{begin}.attn.c_proj.weight": normal(HIDDEN, inner),
            f"{begin}.ln_2.weight": 1 + normal(HIDDEN),
            f"{begin}.mlp.w1.weight": normal(WIDTH, HIDDEN),
            f"{begin}.mlp.w2.weight": normal(WIDTH, HIDDEN),
            f"{begin}.mlp.c_proj.weight": normal(HIDDEN, WIDTH),
        }
    return found


def write(folder: Path, *, files: str = "one", earlier: bool = False, chat: bool = True, **changes: Any) -> Path:
    """Write a checkpoint: `files` is "one", "shards" (both safetensors) or "bin" (shards of the older kind)."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(earlier=earlier, **changes)))
    # What would be run, were it ever run.
    for name in ("configuration_qwen.py", "modeling_qwen.py"):
        (folder / name).write_text("raise AssertionError('the code of the checkpoint was run')\n")
    tensors = {name: torch.from_numpy(value) for name, value in weights().items()}
    if files == "one":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = list(tensors)
        parts = {f"part-{at}": names[at::3] for at in range(3)}
        where = {}
        for part, members in parts.items():
            held = {name: tensors[name] for name in members}
            if files == "bin":
                # As some older files have them.
                held |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)} if part == "part-0" else {}
                held |= {"transformer.rotary_emb.inv_freq": torch.ones(8)} if part == "part-0" else {}
                torch.save(held, folder / f"pytorch_model-{part}.bin")
            else:
                save_file(held, folder / f"model-{part}.safetensors", metadata={"format": "pt"})
            where |= dict.fromkeys(held, f"pytorch_model-{part}.bin" if files == "bin" else f"model-{part}.safetensors")
        index = "pytorch_model.bin.index.json" if files == "bin" else "model.safetensors.index.json"
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    tokens = [bytes([byte]) for byte in range(256)] + [merge.encode() for merge in MERGES]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    generation = {
        "chat_format": "chatml" if chat else "raw",
        "eos_token_id": len(tokens),
        "do_sample": True,
        "top_p": 0.8,
        "top_k": 0,
        "max_new_tokens": 512,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def alpha_of(tokens: int, native: int = NATIVE) -> float:
    """NTK's alpha for a first pass over so many tokens, by the published formula."""
    return max(1.0, 2 ** math.ceil(math.log2(tokens / native) + 1) - 1)


def forward(ids: list[int], *, alpha: float = 1.0, logn: bool = False, native: int = NATIVE) -> Any:
    """Logits of one sequence, [tokens, vocabulary], in float64."""
    held = {name: value.astype(np.float64) for name, value in weights().items()}

    def norm(values: Any, name: str) -> Any:
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * held[name]

    count = len(ids)
    base = 10000 * alpha ** (HEAD / (HEAD - 2))
    angles = np.arange(count)[:, None] * (1.0 / base ** (np.arange(0, HEAD, 2) / HEAD))
    cosines, sines = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotated(values: Any) -> Any:
        first, second = values[..., : HEAD // 2], values[..., HEAD // 2 :]
        return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)

    factors = np.array([math.log(place, native) if logn and place > native else 1.0 for place in range(1, count + 1)])
    visible = np.tril(np.ones((count, count), dtype=bool))
    values = held["transformer.wte.weight"][ids]
    for layer in range(LAYERS):
        begin = f"transformer.h.{layer}"
        packed = norm(values, f"{begin}.ln_1.weight") @ held[f"{begin}.attn.c_attn.weight"].T
        packed += held[f"{begin}.attn.c_attn.bias"]
        query, key, value = (part.reshape(count, HEADS, HEAD) for part in np.split(packed, 3, axis=-1))
        query, key = rotated(query) * factors[:, None, None], rotated(key)
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(HEAD)
        scores = np.where(visible, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        read = np.einsum("hqk,khd->qhd", shares, value).reshape(count, -1)
        values = values + read @ held[f"{begin}.attn.c_proj.weight"].T
        inner = norm(values, f"{begin}.ln_2.weight")
        gate = inner @ held[f"{begin}.mlp.w2.weight"].T
        wide = (inner @ held[f"{begin}.mlp.w1.weight"].T) * gate / (1 + np.exp(-gate))
        values = values + wide @ held[f"{begin}.mlp.c_proj.weight"].T
    return norm(values, "transformer.ln_f.weight") @ held["lm_head.weight"].T
