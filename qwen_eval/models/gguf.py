"""A GGUF file as a plain transformers checkpoint: dequantised once, rounded to bfloat16, saved as safetensors.

Covered: the causal language models that transformers' GGUF loader maps tensor by tensor (llama, mistral, qwen2, qwen3,
their mixtures of experts, gemma 2-4, phi3, starcoder2, gpt2, bloom, falcon, ...).
Not covered, and refused in plain lines: split files, files that stretch their rotary frequencies (the loader drops that
silently, so every score would be of another model), and what only transformers' newer packed reader knows (qwen35).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qwen_eval.errors import ModelError

__all__ = [
    "CONVERSION",
    "convert_gguf",
    "require_free_space",
    "require_gguf",
    "require_transformers",
    "restored_tokenizer",
]

CONVERSION = 1
"""Raised whenever the conversion writes something else; folders of an older one are made again."""

# Tested: 5.18 to 5.23 agree; 5.0 to 5.15 get other end tokens or other token ids out of the same file.
_OLDEST_TRANSFORMERS = (5, 18)

# Vocabularies whose digits are cut one by one before the merges run. The GGUF names them, but transformers' table of
# pre-tokenizers lacks them, and its fallback joins digits: "2024" would become other tokens than in training.
_DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})

# Qwen's tokenizer shows these in decoded text; a GGUF marks them as control tokens, which would hide them.
_SHOWN_BY_QWEN = frozenset(
    {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the conversion has to know about a GGUF file before it loads it."""

    architecture: str
    pre_tokenizer: str | None
    end_token_ids: tuple[int, ...]
    parameters: int
    """Number of weights; the converted folder takes two bytes for each."""


def convert_gguf(path: Path, *, into: Path) -> None:
    """Write the GGUF file `path` as a transformers checkpoint into the new folder `into`.

    Weights are rounded to bfloat16, matrix by matrix, so the peak of memory is two bytes a weight, the file itself and
    a few copies of the largest matrix in float32: 5.6 GB for 1.5 billion weights in 4 bits. Raises ModelError when
    transformers cannot convert the file.
    """
    require_transformers()
    header = _read_header(path)
    require_free_space(into.parent, needed=2 * header.parameters, purpose=path.name)
    try:
        with _quiet_transformers(), TemporaryDirectory(dir=into.parent, prefix="alone-") as alone:
            # transformers also reads tokenizer files that lie beside the GGUF file; they are not part of it.
            link = Path(alone) / "model.gguf"
            link.symlink_to(path.resolve())
            model = _dequantised_model(link)
            tokenizer = _tokenizer(link)
            _set_ends(model, header=header)
            tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
            if header.pre_tokenizer == "qwen2":
                # llama.cpp needs some BOS to store; Qwen's own tokenizer has none and no prompt starts with one.
                tokenizer.bos_token = None
            for trace in ("is_local", "local_files_only"):  # of this loading, not of the tokenizer
                tokenizer.init_kwargs.pop(trace, None)
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)
    except (ValueError, LookupError, RuntimeError, ImportError, MemoryError) as error:
        raise ModelError(
            f"transformers {version('transformers')} cannot convert {path} (GGUF architecture "
            f"{header.architecture!r}): {' '.join(str(error).split())[:300]}\n"
            "Give the model's own checkpoint folder instead (config.json and safetensors)."
        ) from error
    _restore_tokenizer_file(into / "tokenizer.json", pre_tokenizer=header.pre_tokenizer)
    # safetensors writes for its owner's eyes only; in a cache shared by several users all files are read alike.
    shutil.copymode(into / "config.json", into / "model.safetensors")


def restored_tokenizer(tokenizer: Mapping[str, Any], *, pre_tokenizer: str | None) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` with what the way through GGUF lost of the original.

    `pre_tokenizer` is the file's `tokenizer.ggml.pre`. SmolLM2 and its like get their digit-by-digit split back, Qwen
    its NFC normaliser (Hangul and accents are often written decomposed) and its visible fill-in-the-middle tokens.
    """
    restored = dict(tokenizer)
    if pre_tokenizer in _DIGIT_BY_DIGIT:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        digits = {"type": "Digits", "individual_digits": True}
        restored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    if pre_tokenizer == "qwen2":
        restored["normalizer"] = {"type": "NFC"}
        restored["added_tokens"] = [
            token | {"special": False} if token["content"] in _SHOWN_BY_QWEN else token
            for token in tokenizer["added_tokens"]
        ]
    return restored


def _restore_tokenizer_file(path: Path, *, pre_tokenizer: str | None) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    restored = restored_tokenizer(content, pre_tokenizer=pre_tokenizer)
    path.write_text(json.dumps(restored, ensure_ascii=False), encoding="utf-8")


def require_gguf(path: Path) -> None:
    """Raise ModelError unless there is a file `path` that starts like a GGUF file."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}: expected a .gguf file.")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: expected it to start with b'GGUF', found {magic!r}.")


def require_transformers() -> None:
    """Raise ModelError when the installed transformers is too old to read a GGUF file's tokenizer rightly."""
    found = version("transformers")
    if tuple(int(number) for number in found.split(".")[:2]) < _OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, _OLDEST_TRANSFORMERS))
        raise ModelError(
            f"Converting a GGUF file needs transformers {oldest} or newer, found {found}: older ones misread tokens.\n"
            f"Install a newer one (pip install 'transformers>={oldest}'), or give a checkpoint folder with --model."
        )


def require_free_space(folder: Path, *, needed: int, purpose: str) -> None:
    """Raise ModelError when fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{purpose} needs {needed / 1e9:.2f} GB of free disk in {folder.parent}, found {free / 1e9:.2f} GB.\n"
            "Free some, or set QWEN_EVAL_HOME to a folder on a larger disk."
        )


def _read_header(path: Path) -> _Header:
    """Return what the file says about itself. Raises ModelError for a damaged file and for what is not covered."""
    from gguf import GGUFReader

    require_gguf(path)
    try:
        reader = GGUFReader(path)
        architecture = str(_metadata(reader, "general.architecture"))
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is damaged or cut short; fetch it again. The reader says: {error}") from error
    if int(_metadata(reader, "split.count") or 1) > 1:
        raise ModelError(f"{path} is one part of a split GGUF file. Merge the parts first (llama-gguf-split --merge).")
    names = {tensor.name for tensor in reader.tensors}
    scaling = _metadata(reader, f"{architecture}.rope.scaling.type")
    stretched = {name for name in names if name.startswith(("rope_freqs", "rope_factors"))}
    if stretched or scaling not in (None, "none"):
        found = f"{architecture}.rope.scaling.type = {scaling!r}" if not stretched else " and ".join(sorted(stretched))
        raise ModelError(
            f"{path} stretches its rotary frequencies ({found}), which transformers' GGUF loader drops.\n"
            "Its scores would be of another model: give the model's own checkpoint folder instead."
        )
    pre_tokenizer = _metadata(reader, "tokenizer.ggml.pre")
    ends = [_metadata(reader, f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    padding = _metadata(reader, "tokenizer.ggml.padding_token_id")
    if pre_tokenizer == "qwen2" and padding is not None:
        # Qwen's chat models also stop at <|endoftext|>, which a GGUF keeps only as the padding token.
        ends.append(padding if _metadata(reader, "tokenizer.ggml.tokens", index=padding) == "<|endoftext|>" else None)
    return _Header(
        architecture=architecture,
        pre_tokenizer=pre_tokenizer,
        end_token_ids=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )


def _metadata(reader: Any, key: str, *, index: int = 0) -> Any:
    """Return a metadata value of a `gguf.GGUFReader` as str, int, float or bool, or None where the key is missing.

    `index` picks the element where the value is a list.
    """
    from gguf import GGUFValueType

    field = reader.get_field(key)
    if field is None:
        return None
    part = field.parts[field.data[index]]
    return bytes(part).decode() if field.types[-1] == GGUFValueType.STRING else part[0].item()


def _dequantised_model(path: Path) -> Any:
    """Return a causal language model with the file's weights in bfloat16, embeddings tied where they are equal.

    `from_pretrained(gguf_file=...)` would do most of this, but asks for the package accelerate and returns a model
    that refuses to be saved; the loader below it returns the bare tensors.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    def empty_model(config: Any) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)

    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = empty_model(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16)[
        "tensors"
    ]
    # A GGUF with an output matrix counts as untied. Where the matrix only repeats the embedding, one copy is enough;
    # where it was quantised with other bits (the usual Q4_K_M: output in Q6_K), both are needed.
    embedding, output = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    if embedding is not None and output is not None and torch.equal(embedding, output):
        config.tie_word_embeddings = True
        del tensors["lm_head.weight"]
        model = empty_model(config)
    unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing or unexpected:
        raise ValueError(f"the file lacks {missing[:3]} and has {unexpected[:3]} without a place in the model")
    return model


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)


def _set_ends(model: Any, *, header: _Header) -> None:
    """Give the model a greedy generation config with the end tokens of the file."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=list(header.end_token_ids) or None,
        pad_token_id=model.config.pad_token_id,
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide transformers' bars and remarks, which speak of steps nobody asked for. Exceptions still come through."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The bar over the tensors follows no setting at all, so its stream goes.
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
