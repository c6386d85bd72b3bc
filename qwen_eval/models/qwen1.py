"""Qwen's first generation (`QWenLMHeadModel`: Qwen-1.8B, 7B, 14B, 72B and Chat, 2023) without its own code.

It is the architecture of Qwen2 under other names, so transformers' Qwen2 computes it: `read_config` translates the
configuration, `load_weights` the tensors, each of which is taken from the files or the load fails. The original code
is never run: with transformers 5 it draws some weights anew and says nothing.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import ModelError
from qwen_eval.models.longcontext import LongContext

if TYPE_CHECKING:
    import torch

__all__ = [
    "KIND",
    "convert_adapter",
    "convert_quantized",
    "is_qwen1",
    "load_weights",
    "long_context_of",
    "quantization",
    "read_config",
]

KIND = "qwen"
"""Its `model_type`."""

EARLIER_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
"""Fields of the first releases, and what they were called later."""
COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "kv_channels",
    "vocab_size",
    "seq_length",
)
NUMBERS = ("layer_norm_epsilon", "rotary_emb_base")

WHOLE = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    # w1 is the linear branch; w2 goes through SiLU.
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""What `attn.c_attn` holds, one after the other."""
OUTPUTS_AT = {"weight": 0, "bias": 0, "lora_B": 0, "qweight": 1, "qzeros": 1, "scales": 1}
"""The dimension of a tensor that counts outputs; those of GPTQ stand the other way round."""
PEFT = "base_model.model."
"""How peft begins the name of every tensor."""
IGNORED = re.compile(r".*\.(attn\.masked_bias|rotary_emb\.inv_freq)")
"""What older files carry and nothing needs."""


def is_qwen1(folder: Path) -> bool:
    """Return whether a checkpoint folder holds a model of Qwen's first generation."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") == KIND or "QWenLMHeadModel" in (config.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        return False  # what reads the configuration says what is wrong with it


# ------------------------------------------------------------------------------------------------------ configuration


def _fields(folder: Path) -> dict[str, Any]:
    """Return the configuration in its later names."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {EARLIER_NAMES.get(name, name): value for name, value in found.items()}
    # In the first releases `vocab_size` did not count the rows that fill the embedding up.
    fields["vocab_size"] = found.get("padded_vocab_size") or found.get("vocab_size")
    fields = {"rotary_emb_base": 10000, **fields}
    if missing := [name for name in (*COUNTS, *NUMBERS) if fields.get(name) is None]:
        raise ModelError(f"{folder}/config.json: expected the fields of a Qwen model, found no {', '.join(missing)}.")
    fields["max_position_embeddings"] = fields.get("max_position_embeddings") or fields["seq_length"]
    for name in (*COUNTS, "max_position_embeddings", *NUMBERS):
        value, is_count = fields[name], name not in NUMBERS
        if not _is_positive(value) or (is_count and value % 1):
            wanted = "whole number" if is_count else "number"
            raise ModelError(f"{folder}/config.json: {name}: expected a {wanted} above 0, found {value!r}.")
        fields[name] = int(value) if is_count else float(value)
    other = {"no_bias": True, "rotary_pct": 1.0, "tie_word_embeddings": False}
    for name, only in other.items():
        if fields.get(name, only) != only:
            raise ModelError(f"{folder}/config.json: {name}: expected {only}, as in all of them, found {fields[name]}.")
    return fields


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def read_config(folder: Path) -> Any:
    """Return the configuration of the same model as a Qwen2. Raises ModelError."""
    import transformers

    fields = _fields(folder)
    quantized = quantization(folder)
    return transformers.Qwen2Config(
        **({"quantization_config": quantized} if quantized else {}),
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        # Twice the width of the MLP, which has two matrices in that place.
        intermediate_size=fields["intermediate_size"] // 2,
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields["num_attention_heads"],
        head_dim=fields["kv_channels"],
        max_position_embeddings=fields["max_position_embeddings"],
        rms_norm_eps=fields["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["rotary_emb_base"]},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def long_context_of(folder: Path) -> LongContext:
    """Return how the checkpoint itself meets contexts beyond its training length, `seq_length`."""
    fields = _fields(folder)
    # Both are on where nothing is said, as in the original configuration.
    rope = "dynamic_ntk" if fields.get("use_dynamic_ntk", True) else "plain"
    return LongContext(native=fields["seq_length"], rope=rope, logn=bool(fields.get("use_logn_attn", True)))


def quantization(folder: Path) -> dict[str, Any] | None:
    """Return how the weights are quantised, None where they are not. Raises ModelError for another way than GPTQ."""
    found, beside = _fields(folder).get("quantization_config"), folder / "quantize_config.json"
    if found is None and beside.is_file():
        try:
            found = {"quant_method": "gptq", **json.loads(beside.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{beside}: expected how the weights are quantised, in JSON, found none.") from error
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"{folder}/config.json: quantization_config: expected its fields, found {found!r}.")
    if found and found.get("quant_method", "gptq") != "gptq":
        raise ModelError(f"{folder}: expected weights as they are or in GPTQ, found {found['quant_method']}.")
    return found


# ------------------------------------------------------------------------------------------------------------ weights


def mapped(name: str, tensor: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Return a tensor of a checkpoint under Qwen2's name or, for queries, keys and values in one, as its three parts.

    Nothing for what is not needed. Raises KeyError for a name that no Qwen model has, ModelError where the three
    are not of one size.
    """
    if IGNORED.fullmatch(name):
        return {}
    module, _, kind = name.rpartition(".")
    if module in WHOLE:
        return {f"{WHOLE[module]}.{kind}": tensor}
    found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", module)
    if found is None:
        raise KeyError(name)
    layer = f"model.layers.{found[1]}"
    if found[2] != "attn.c_attn":
        return {f"{layer}.{WHOLE[found[2]]}.{kind}": tensor}
    # The order of the inputs (g_idx) is the same for all three, and so is the half of an adapter that meets them.
    parts: Sequence[torch.Tensor] = (tensor,) * 3
    if kind not in ("g_idx", "lora_A"):
        if tensor.dim() <= OUTPUTS_AT[kind] or tensor.shape[OUTPUTS_AT[kind]] % 3:
            raise ModelError(f"{name}: expected three parts of one size, found the shape {_shape(tensor.shape)}.")
        parts = tensor.tensor_split(3, OUTPUTS_AT[kind])
    return {f"{layer}.{part}.{kind}": piece for part, piece in zip(PARTS, parts, strict=True)}


def tensors(folder: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield every tensor of a checkpoint, one at a time, on the CPU: of its index's files, or of all there are.

    Raises ModelError for a file that is missing or none.
    """
    for file in _weight_files(folder):
        try:
            yield from _read(file)
        except ModelError:
            raise
        except Exception as error:  # both libraries raise whatever the file at fault makes them raise
            raise ModelError(f"{file}: expected a file of weights, found none ({type(error).__name__}).") from error


def _weight_files(folder: Path) -> list[Path]:
    for kind in ("safetensors", "bin"):
        for index in sorted(folder.glob(f"*.{kind}.index.json")):
            try:
                names = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index}: expected a weight_map with the file of each weight, found none.") from error
            if missing := sorted(name for name in names if not (folder / name).is_file()):
                raise ModelError(f"{folder}: expected the file {missing[0]}, which {index.name} names, found none.")
            return [folder / name for name in sorted(names)]
        pattern = "*.safetensors" if kind == "safetensors" else "pytorch_model*.bin"
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{folder}: expected weights (*.safetensors or pytorch_model*.bin), found none.")


def _read(file: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    import torch
    from safetensors import safe_open

    if file.suffix == ".bin":
        # Files of before torch 1.6 are no archives and cannot be mapped.
        is_archive = zipfile.is_zipfile(file)
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive).items()
        return
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - this is no dictionary
            yield name, opened.get_tensor(name)


def load_weights(folder: Path, config: Any, *, dtype: str, device: "torch.device", spread: bool = False) -> Any:
    """Return the model with the weights of a folder, in `dtype` on `device`, or `spread` over all GPUs.

    It is made without any weights and gets each one from the files: what is missing, left over or of another shape
    raises ModelError. One tensor at a time, so little more memory is needed than the model takes.
    """
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    model = model.to(getattr(torch, dtype))
    places = _spread_over_gpus(model, dtype) if spread else {"": device}
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    loaded: dict[str, torch.Tensor] = {}
    for name, tensor in tensors(folder):
        for target, part in _pieces(folder, name, tensor, wanted).items():
            if target in loaded:
                raise ModelError(f"{folder}: expected every weight once, found {name} twice.")
            loaded[target] = part.to(_place_of(target, places), getattr(torch, dtype), copy=True).contiguous()
    if missing := sorted(wanted.keys() - loaded.keys()):
        raise ModelError(f"{folder}: expected {len(wanted)} weights, found no {_some(missing)}.")
    model.load_state_dict(loaded, strict=True, assign=True)
    # Frequencies are not in the files; they are computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(model.get_input_embeddings().weight.device)
    if spread:
        import accelerate

        model = accelerate.dispatch_model(model, device_map=places)
    return model


def _spread_over_gpus(model: Any, dtype: str) -> dict[str, Any]:
    """Return which part stands on which GPU: one layer after the other, as much as fits each."""
    import accelerate
    import torch

    found: dict[str, Any] = accelerate.infer_auto_device_map(
        model, no_split_module_classes=["Qwen2DecoderLayer"], dtype=getattr(torch, dtype)
    )
    return found


def _pieces(folder: Path, name: str, tensor: "torch.Tensor", wanted: Mapping[str, Any]) -> Mapping[str, "torch.Tensor"]:
    """Return what a tensor is in Qwen2. Raises ModelError where it has no place there."""
    try:
        found = mapped(name, tensor)
    except KeyError:
        raise ModelError(f"{folder}: expected the weights of a Qwen model, found {name} among them.") from None
    for target, part in found.items():
        if target not in wanted:
            raise ModelError(f"{folder}: expected the weights of config.json, found {name} beside them.")
        if part.shape != wanted[target]:
            raise ModelError(
                f"{folder}: {name}: expected the shape {_shape(wanted[target])}, found {_shape(part.shape)}"
                f"{' in each third' if len(found) > 1 else ''}."
            )
    return found


def _place_of(name: str, places: Mapping[str, Any]) -> Any:
    """Return where a weight stands: where the part of the model does that it belongs to; "" is the whole."""
    return next(place for part, place in places.items() if not part or name.startswith(f"{part}."))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "of one number"


# --------------------------------------------------------------------------------------------------------------- GPTQ


def convert_quantized(folder: Path, config: Any, *, into: Path) -> None:
    """Write a checkpoint in GPTQ as one of Qwen2, file by file, for a package that knows Qwen2. Raises ModelError.

    Nothing is computed: packed numbers, scales and zeros of queries, keys and values are cut apart.
    """
    import torch
    from safetensors.torch import save_file

    into.mkdir(parents=True, exist_ok=True)
    weights: dict[str, str] = {}
    for number, file in enumerate(_weight_files(folder), 1):
        part = {
            target: piece.clone(memory_format=torch.contiguous_format)
            for name, tensor in _read(file)
            if not _is_no_bias(folder, name, tensor)
            for target, piece in _mapped_quantized(folder, name, tensor).items()
        }
        save_file(part, into / f"model-{number:05}.safetensors", metadata={"format": "pt"})
        weights |= dict.fromkeys(part, f"model-{number:05}.safetensors")
    (into / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    fields = {**config.to_dict(), "architectures": ["Qwen2ForCausalLM"]}
    (into / "config.json").write_text(json.dumps(fields, indent=1) + "\n")


def _mapped_quantized(folder: Path, name: str, tensor: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
    try:
        return mapped(name, tensor)
    except KeyError:
        raise ModelError(f"{folder}: expected the weights of a Qwen model in GPTQ, found {name} among them.") from None


def _is_no_bias(folder: Path, name: str, tensor: "torch.Tensor") -> bool:
    """Return whether a tensor is one of the biases that quantising added: of zeros, where the model has none."""
    if not name.endswith(".bias") or ".attn.c_attn." in name:
        return False
    if tensor.any():
        raise ModelError(f"{folder}: {name}: expected no bias, or one of zeros, found another.")
    return True


# ----------------------------------------------------------------------------------------------------------- adapters


def convert_adapter(adapter: Path, *, into: Path) -> None:
    """Write an adapter of peft (LoRA) for one of these models as the same one for Qwen2. Raises ModelError.

    What adapts queries, keys and values in one adapts each of them: by the same inner matrix, and its third of the
    outer.
    """
    import torch
    from safetensors.torch import save_file

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ModelError(f"--adapter {adapter}: expected one rank for all layers of a Qwen model, found several.")
    if config.get("use_dora"):
        raise ModelError(
            f"--adapter {adapter}: expected LoRA, found DoRA (use_dora), which Qwen's first models do not get here.\n"
            "Next: merge it with peft and give the model that this makes."
        )
    file = next(file for kind in ("safetensors", "bin") if (file := adapter / f"adapter_model.{kind}").is_file())
    made: dict[str, torch.Tensor] = {}
    layers: dict[bool, set[str]] = {True: set(), False: set()}  # by LoRA, and trained whole
    for name, tensor in _read(file):
        inner, lora, half = name.removeprefix(PEFT).removesuffix(".weight").partition(".lora_")
        try:
            found = mapped(f"{inner}.lora_{half}" if lora else name.removeprefix(PEFT), tensor)
        except KeyError:
            raise ModelError(f"--adapter {adapter}: expected the layers of a Qwen model, found {name}.") from None
        for target, part in found.items():
            layers[bool(lora)].add(target.rpartition(".")[0])
            made[f"{PEFT}{target}{'.weight' if lora else ''}"] = part.clone(memory_format=torch.contiguous_format)
    into.mkdir(parents=True)
    config |= {"target_modules": sorted(layers[True]), "modules_to_save": sorted(layers[False]) or None}
    (into / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(made, into / "adapter_model.safetensors", metadata={"format": "pt"})
