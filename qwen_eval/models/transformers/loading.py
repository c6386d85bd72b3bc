"""From a checkpoint folder to configuration and weights: through transformers, but for Qwen's first models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import DeviceError, ModelError
from qwen_eval.models import qwen1
from qwen_eval.models.longcontext import LongContext, long_context
from qwen_eval.models.prepared import Source, prepared_folder
from qwen_eval.models.transformers.adapters import with_adapter
from qwen_eval.models.transformers.checkpoint import Checkpoint, fingerprint, first_line, has_own_code, untrusted
from qwen_eval.models.transformers.quantisation import is_quantised, loading_settings
from qwen_eval.paths import home

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights", "own_long_context", "read_config", "with_setting", "without_gpu"]


def read_config(folder: Path, *, trusted: bool) -> tuple[str, Any]:
    """Return the `model_type` of a checkpoint and its configuration, of the text part where it has several.

    Raises ModelError, also where the model is code in the folder and that is not `trusted`.
    """
    if qwen1.is_qwen1(folder):
        config = qwen1.read_config(folder)
        if found := qwen1.quantization(folder):
            config.quantization_config = {"quant_method": "gptq", **found}
        return qwen1.KIND, config
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # transformers raises whatever the file at fault makes it raise
        if has_own_code(folder) and not trusted:
            raise untrusted(folder) from error
        raise ModelError(f"{folder}: this configuration cannot be read ({first_line(error)}).") from error
    text = config.get_text_config()
    if (stored := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = stored  # which stands beside the part for text where there are several
    return config.model_type, text


# ------------------------------------------------------------------------------------------------------ long contexts


def own_long_context(folder: Path, kind: str, config: Any) -> LongContext:
    """Return how a checkpoint itself meets contexts beyond its training length, as far as that is not transformers'."""
    if kind == qwen1.KIND:
        return qwen1.long_context_of(folder)
    return LongContext(native=getattr(config, "max_position_embeddings", None) or 1 << 30)


def with_setting(own: LongContext, setting: str, kind: str, config: Any) -> LongContext:
    """Return what the user wants instead of a checkpoint's `own`. Raises UsageError, ModelError."""
    from qwen_eval.models.transformers.engine import KINDS

    wanted = long_context(setting, native=own.native)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope != "default" or kind not in KINDS:
        raise ModelError(
            f"--settings {setting}: expected a model with a plain rotary embedding on which this was tried, found kind "
            f"{kind}, rope type {rope}.\nNext: leave out --settings; what config.json says is in force."
        )
    return wanted


# ------------------------------------------------------------------------------------------------------------- weights


def load_weights(
    checkpoint: Checkpoint, config: Any, *, dtype: str, device: "torch.device", spread: bool, trusted: bool
) -> Any:
    """Return the model as it is to answer: in `dtype` on `device`, or `spread` over all GPUs (needs accelerate).

    It is quantised, and has its adapter, as the checkpoint says. Raises ModelError, DeviceError, and whatever
    transformers raises.
    """
    import torch

    quantised = is_quantised(checkpoint, config)
    model = _read_weights(checkpoint, config, dtype=dtype, device=device, spread=spread, trusted=trusted)
    if checkpoint.adapter:
        model = _adapted(model, checkpoint.folder, checkpoint.adapter, merge=not quantised)
    if quantised:
        # Kernels that are missing or refuse the sizes of a layer say so only when they are called.
        model(torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device))
    return model


def _read_weights(
    checkpoint: Checkpoint, config: Any, *, dtype: str, device: "torch.device", spread: bool, trusted: bool
) -> Any:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    folder, quantised = checkpoint.folder, is_quantised(checkpoint, config)
    if qwen1.is_qwen1(folder):
        if not quantised:
            return qwen1.load_weights(folder, config, dtype=dtype, device=device, spread=spread)
        if device.type != "cuda":
            raise without_gpu(folder, device)
        folder = converted_folder(folder, config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        # Quantised weights cannot be moved afterwards.
        device_map="auto" if spread else {"": device} if quantised else None,
        trust_remote_code=trusted,
        **loading_settings(checkpoint, dtype),
    )
    return model if spread or quantised else model.to(device)


def without_gpu(folder: Path, device: "torch.device") -> DeviceError:
    """Return the error for a GPTQ checkpoint of Qwen's first models where there is no GPU."""
    return DeviceError(
        f"{folder}: its weights are quantised (GPTQ); expected a CUDA device to run them on, found {device}.\n"
        "Next: run it on a machine with a GPU, or take the checkpoint that is not quantised."
    )


def _adapted(model: Any, folder: Path, adapter: Path, *, merge: bool) -> Any:
    """Put an adapter onto a model; one for Qwen's first models is put into the names of Qwen2 before."""
    if not qwen1.is_qwen1(folder):
        return with_adapter(model, adapter, merge=merge)
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as work:
        into = Path(work) / adapter.name
        qwen1.convert_adapter(adapter, into=into)
        return with_adapter(model, into, merge=merge)


def converted_folder(folder: Path, config: Any) -> Path:
    """Return the folder in the cache that holds a GPTQ checkpoint of Qwen's first models as one of Qwen2."""
    digest = fingerprint(folder)
    source = Source(name=folder.name, sha256=digest, note="the same numbers under the names of Qwen2", conversion=1)
    return prepared_folder(
        home() / "models" / f"qwen1-{digest}",
        source=source,
        build=lambda work: qwen1.convert_quantized(folder, config, into=work / "converted"),
    )
