"""Weights of 8 and 4 bits: quantised when they are loaded (bitsandbytes), or stored so (GPTQ, AWQ and others)."""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import ModelError, UsageError

if TYPE_CHECKING:
    from qwen_eval.models.transformers.checkpoint import Checkpoint

__all__ = [
    "SHARE_OF_STORED",
    "check_quantisation",
    "hush_bitsandbytes",
    "is_quantised",
    "loading_settings",
    "packages",
    "precision_name",
    "stored_method",
]

BITSANDBYTES = ("bitsandbytes", "accelerate")
NEEDED = {
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel", "accelerate"),
    "bitsandbytes": BITSANDBYTES,
    "compressed-tensors": ("compressed_tensors",),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "torchao": ("torchao",),
}
"""The modules that read weights stored by a method; their packages have the same names, with `-` for `_` and `.`."""

SHARE_OF_STORED = {"int8": 0.6, "int4": 0.35}
"""What quantised weights take of weights stored in 16 bits: embeddings, norms and scales are not quantised."""


def stored_method(config: Any) -> str:
    """Return how the weights of a checkpoint are stored quantised ("gptq"), "" where they are not."""
    found = getattr(config, "quantization_config", None) or {}
    method = found.get("quant_method", "") if isinstance(found, dict) else getattr(found, "quant_method", "")
    return str(getattr(method, "value", method))


def is_quantised(checkpoint: "Checkpoint", config: Any) -> bool:
    """Return whether weights will be quantised once they are loaded."""
    return bool(checkpoint.quantisation or stored_method(config))


def packages(checkpoint: "Checkpoint", config: Any) -> tuple[str, ...]:
    """Return the packages that decide answers beside torch and transformers: of a quantisation, of an adapter."""
    kernels = BITSANDBYTES if checkpoint.quantisation else NEEDED.get(stored_method(config), ())
    found = kernels[:1] + (("peft",) if checkpoint.adapter else ())
    return tuple(name.replace("_", "-").replace(".", "-") for name in found if _is_installed(name))


def precision_name(checkpoint: "Checkpoint", config: Any, dtype: str) -> str:
    """Return what weights are loaded as, for people: "bfloat16", "int4 (bitsandbytes)", "int4 (gptq)"."""
    if checkpoint.quantisation:
        return f"{checkpoint.quantisation} (bitsandbytes)"
    method = stored_method(config)
    if not method:
        return dtype
    found = config.quantization_config
    bits = found.get("bits") if isinstance(found, dict) else getattr(found, "bits", None)
    return f"int{bits} ({method})" if bits else method


def check_quantisation(checkpoint: "Checkpoint", config: Any) -> None:
    """Raise ModelError where a package is missing, UsageError where stored quantised weights were to be quantised."""
    method = stored_method(config)
    if checkpoint.quantisation and method:
        raise UsageError(
            f"--precision {checkpoint.quantisation}: {checkpoint.folder.name} is stored quantised ({method}) and is "
            "loaded as it is.\nNext: leave out --precision for it, or give the model it was made from."
        )
    needed = BITSANDBYTES if checkpoint.quantisation else NEEDED.get(method, ())
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        how = f"--precision {checkpoint.quantisation}" if checkpoint.quantisation else f"weights stored by {method}"
        names = " ".join(name.replace("_", "-").replace(".", "-") for name in missing)
        raise ModelError(
            f"{checkpoint.folder.name}: {how} needs {' and '.join(missing)}, which is not installed.\n"
            f"Next: `pip install {names}`."
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def hush_bitsandbytes() -> None:
    """Keep bitsandbytes from saying at its import which kernels it lacks, and of every product that it casts."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def loading_settings(checkpoint: "Checkpoint", dtype: str) -> dict[str, Any]:
    """Return what `from_pretrained` is told so that it quantises: 8 bits as LLM.int8() (arXiv:2208.07339), 4 bits as
    NF4 of QLoRA (arXiv:2305.14314), computed in `dtype`."""
    if not checkpoint.quantisation:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    hush_bitsandbytes()
    if checkpoint.quantisation == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    }
