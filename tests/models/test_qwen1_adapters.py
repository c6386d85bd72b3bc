"""Adapters for Qwen's first models, as its own fine-tuning scripts write them; and the names of quantised weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import first_qwen
import numpy as np
import pytest
import torch
from engines import answers_of
from first_qwen import HEAD, HEADS, HIDDEN, LAYERS, VOCABULARY, WIDTH, forward, weights, write
from safetensors.torch import save_file

from qwen_eval.errors import ModelError
from qwen_eval.models.transformers.checkpoint import locate
from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.task import Generate

pytest.importorskip("peft")
RANK, ALPHA = 4, 8
INNER = HEADS * HEAD
SIZES = {
    "attn.c_attn": (HIDDEN, 3 * INNER),
    "attn.c_proj": (INNER, HIDDEN),
    "mlp.w1": (HIDDEN, WIDTH),
    "mlp.w2": (HIDDEN, WIDTH),
}
TARGETS = ["c_attn", "attn.c_proj", "w1", "w2"]
"""The layers that the fine-tuning script names."""
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 30).tolist()


def adapter(folder: Path, *, whole: bool = False, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Write an adapter as peft does; returns its folder, and the weights that the model has with it.

    `whole`: embeddings and output are trained whole, as for base models.
    """
    draw = np.random.default_rng(9)
    held, merged = {}, weights()
    for layer in range(LAYERS):
        for name, (inputs, outputs) in SIZES.items():
            place = f"transformer.h.{layer}.{name}"
            inner = draw.standard_normal((RANK, inputs)).astype(np.float32) * 0.3
            outer = draw.standard_normal((outputs, RANK)).astype(np.float32) * 0.3
            held |= {f"{place}.lora_A.weight": inner, f"{place}.lora_B.weight": outer}
            merged[f"{place}.weight"] = merged[f"{place}.weight"] + ALPHA / RANK * outer @ inner
    if whole:
        for place in ("transformer.wte", "lm_head"):
            held[f"{place}.weight"] = draw.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
            merged[f"{place}.weight"] = held[f"{place}.weight"]
    folder.mkdir()
    tensors = {f"base_model.model.{name}": torch.from_numpy(value) for name, value in held.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "Qwen/checkpoint",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": TARGETS,
        "modules_to_save": ["wte", "lm_head"] if whole else None,
        "bias": "none",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, merged


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint")


@pytest.mark.parametrize("whole", [False, True])
def test_logits_are_those_of_the_weights_with_the_adapter_in_them(
    whole: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, merged = adapter(tmp_path / "tuned", whole=whole)
    model = ReferenceModel(locate(str(checkpoint), adapter=folder), device="cpu")
    assert model.identity.name == "checkpoint+tuned"
    with torch.inference_mode():
        found = model._weights()(torch.tensor([IDS])).logits[0].numpy()
    without = forward(IDS)
    monkeypatch.setattr(first_qwen, "weights", lambda: merged)
    expected = forward(IDS)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(without - expected).max() > 0.1 * np.abs(expected).max()


def test_the_engine_answers_as_the_reference_does(checkpoint: Path, tmp_path: Path) -> None:
    found = locate(str(checkpoint), adapter=adapter(tmp_path / "tuned")[0])
    requests = [Generate(prompt=text, max_new_tokens=8) for text in ("the cat", "the", "1212")]
    assert answers_of(PackedModel(found, device="cpu"), requests) == answers_of(
        ReferenceModel(found, device="cpu", batch_size=1), requests
    )


def test_the_tokenizer_is_the_base_models(checkpoint: Path, tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "tuned")
    for name in ("qwen.tiktoken", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    assert ReferenceModel(locate(str(checkpoint), adapter=folder), device="cpu").prompt_tokens(Generate(prompt="the"))


def other_layer(folder: Path) -> None:
    held = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(RANK, HIDDEN)}
    save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def other_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"w1": 8}}))


def dora(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_layer, "expected the layers of a Qwen model, found"),
        (other_rank, "expected one rank for all layers"),
        (dora, r"expected LoRA, found DoRA \(use_dora\)"),
    ],
)
def test_what_is_no_adapter_for_these_models_is_refused(
    spoil: Callable[[Path], None], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder, _ = adapter(tmp_path / "tuned")
    spoil(folder)
    with pytest.raises(ModelError, match=said):
        ReferenceModel(locate(str(checkpoint), adapter=folder), device="cpu").load()


def test_stored_quantised_weights_are_named_and_never_called_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_eval.models.transformers.quantisation.NEEDED", {})  # as where its packages are installed
    stored = {"bits": 4, "group_size": 16, "desc_act": False}
    folder = write(tmp_path / "gptq", quantization_config={"quant_method": "gptq", **stored})
    model = ReferenceModel(locate(str(folder)), device="cpu")
    assert (model.identity.dtype, model.identity.exact, model.quantised) == ("int4 (gptq)", False, True)
    beside = write(tmp_path / "beside")
    (beside / "quantize_config.json").write_text(json.dumps(stored))
    assert ReferenceModel(locate(str(beside)), device="cpu").identity.dtype == "int4 (gptq)"
    assert ReferenceModel(locate(str(write(tmp_path / "plain"))), device="cpu").identity.dtype == "float32"
