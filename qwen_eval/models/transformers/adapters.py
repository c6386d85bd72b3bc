"""Adapters of peft (LoRA, Q-LoRA) on a loaded model: merged into plain weights, beside quantised ones."""

import json
import warnings
from pathlib import Path
from typing import Any

from qwen_eval.errors import ModelError
from qwen_eval.models.transformers.checkpoint import first_line
from qwen_eval.models.transformers.quantisation import hush_bitsandbytes

__all__ = ["base_of", "with_adapter"]


def base_of(adapter: Path) -> str:
    """Return the name of the model that an adapter was trained on, "" where it does not say."""
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return str(found.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{adapter / 'adapter_config.json'}: cannot be read ({first_line(error)}).") from None


def with_adapter(model: Any, adapter: Path, *, merge: bool) -> Any:
    """Return the model with an adapter in it. Raises ModelError where it does not fit.

    `merge` adds the product of its matrices to the weights, in the dtype of the weights: as fast as the model alone,
    and what an export of the merged model would hold. Quantised weights would be rounded once more, and weights that
    two layers share would change in both, so there the adapter stays beside them. Every tensor of the adapter has to
    find its place, and every place its tensor: peft leaves out what it does not know, and begins at random what is
    missing.
    """
    hush_bitsandbytes()  # which peft imports where it is installed
    import peft
    from peft.utils import load_peft_weights

    name, base = adapter.name, base_of(adapter) or "its configuration does not say which"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers' own deprecations, and of missing tensors (see below)
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter))
            expected = set(peft.get_peft_model_state_dict(wrapped))
        found = set(load_peft_weights(str(adapter), device="cpu"))
    except Exception as error:  # peft raises whatever the file at fault makes it raise
        raise ModelError(
            f"--adapter {name}: cannot be put onto {type(model).__name__} ({first_line(error)}).\n"
            f"Next: give the model that it was trained on: {base}."
        ) from error
    if getattr(wrapped.active_peft_config, "layer_replication", None):
        raise ModelError(
            f"--adapter {name}: expected an adapter on the model's own layers, found one that repeats some of them "
            "(layer_replication).\nNext: merge it with peft and give the model that this makes."
        )
    if expected != found:
        wrong = sorted(expected ^ found)
        raise ModelError(
            f"--adapter {name}: {len(wrong):,} tensor(s) of the adapter and of the model do not belong together, such "
            f"as {wrong[0]}.\nNext: give the model that it was trained on: {base}."
        )
    if not hasattr(wrapped, "merge_and_unload") or wrapped.active_peft_config.is_prompt_learning:
        kind = wrapped.active_peft_config.peft_type
        raise ModelError(f"--adapter {name}: expected an adapter of weights, such as LoRA, found {kind}.")
    return wrapped.merge_and_unload() if merge and not _shared(wrapped) else wrapped.get_base_model()


def _shared(wrapped: Any) -> bool:
    """Return whether an adapter changes embeddings that are also the output's weights: merged, it would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = wrapped.get_base_model()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return bool(model.config.tie_word_embeddings) and any(isinstance(end, BaseTunerLayer) for end in ends)
