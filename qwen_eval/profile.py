"""How fast a model generates and what memory that takes, by the definition of Qwen's published tables.

A context of n tokens (我, n times), then exactly N new ones, batch 1. The speed is N by the seconds of both; memory is
the peak since before the weights were loaded. What the published script did not do, and this does: it warms up, waits
for the GPU before it looks at the clock, decodes greedily, takes the median of several runs, and tells reading the
context apart from writing. Every measurement is a process of its own, so that no peak is another's.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qwen_eval import __version__
from qwen_eval.errors import DeviceError, ModelError
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.task import Failed, Generate

if TYPE_CHECKING:
    from qwen_eval.models.transformers.reference import ReferenceModel

__all__ = ["ENGINES", "PUBLISHED", "Job", "Measurement", "measure", "measure_apart"]

PUBLISHED = ((1, 2048), (1, 8192), (2048, 1))
"""Lengths of context and new tokens in the published tables."""
ENGINES = ("auto", "reference", "transformers")
SEED = 1024
"""That of the published script. Greedy decoding draws nothing."""
WARM_UP = 16
"""New tokens before the first measurement: every kernel has run, and the context's memory was had once."""
PIECES = ("我", " the", *(f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "a", "\n", "。")
"""What a context is made of: the first of these that is one token, also beside itself."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be measured. `engine` is one of ENGINES; "auto" is what `run` uses.

    `trusted`: code that comes with the checkpoint may be run.
    """

    checkpoint: Checkpoint
    engine: str = "auto"
    device: str = "auto"
    context: int
    new: int
    repeats: int = 3
    trusted: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured, in seconds, bytes and joules, one value a repetition.

    `seconds` are of reading the context and writing all new tokens, `prefill_seconds` of reading it and writing one;
    `processor_seconds` are what the processors worked meanwhile, which a busy machine changes less.
    `peak_memory_bytes` has loading in it, as published; `peak_memory_answering_bytes` has not. Both are what torch
    allocated, summed over all GPUs, or on a CPU the resident set of the process. `reserved_memory_bytes` and `joules`
    are None where there is no GPU, or nothing that measures it.
    """

    model: str
    fingerprint: str
    precision: str
    engine: str
    context: int
    new: int
    piece: str
    beyond_window: bool
    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]
    prefill_seconds: tuple[float, ...]
    load_seconds: float
    peak_memory_bytes: int
    peak_memory_answering_bytes: int
    reserved_memory_bytes: int | None = None
    joules: tuple[float, ...] | None = None
    environment: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """New tokens by the median of the seconds: the published number."""
        return self.new / median(self.seconds)

    @property
    def prefill(self) -> float:
        """Median seconds of reading the context."""
        return median(self.prefill_seconds)

    @property
    def decode_speed(self) -> float | None:
        """Tokens a second after the first; None where there is only one."""
        rest = median(self.seconds) - self.prefill
        return (self.new - 1) / rest if self.new > 1 and rest > 0 else None

    @property
    def processor_speed(self) -> float | None:
        """New tokens by the median of the processors' seconds; None where GPUs computed."""
        return None if "gpus" in self.environment else self.new / median(self.processor_seconds)

    @property
    def joules_a_token(self) -> float | None:
        """Median energy of all GPUs by new tokens."""
        return median(self.joules) / self.new if self.joules else None

    def record(self) -> dict[str, Any]:
        """Return everything, with what follows from it, as JSON has it."""
        derived = ("speed", "prefill", "decode_speed", "processor_speed", "joules_a_token")
        rounded = {name: None if (value := getattr(self, name)) is None else round(value, 6) for name in derived}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, **rounded}


def measure_apart(job: Job) -> Measurement:
    """Measure in a process of its own. Raises what `measure` does, and DeviceError where the process was killed."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Read when torch is imported: idle threads that spin would slow down the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, job).result()
        except BrokenProcessPool:
            raise DeviceError(
                f"{job.checkpoint.name}, {job.context:,} + {job.new:,} tokens: the process that measured was killed, "
                "most likely because memory ran out.\nNext: a smaller --precision, or fewer tokens."
            ) from None


def measure(job: Job) -> Measurement:
    """Measure in this process, which should not have loaded a model before. Raises ModelError, DeviceError."""
    import torch

    torch.manual_seed(SEED)
    model = _opened(job)
    model.load()
    piece, text = _context(model, job.context)
    # Positions beyond the window make worse text, not another speed; the published tables have them too.
    beyond, model.window = job.context + job.new > model.window, max(model.window, job.context + job.new)
    # No token ends the answer. `PlainModel` makes end tokens impossible instead, which takes the same time.
    if job.engine != "transformers":
        model.tokenizer.end_tokens = frozenset()
    _seconds(model, text, min(job.new, WARM_UP))
    meter = _Meter(model)
    seconds, processor, prefill = [], [], []
    for _ in range(job.repeats):
        begun = time.process_time()
        with meter:
            seconds.append(_seconds(model, text, job.new))
        processor.append(time.process_time() - begun)
        prefill.append(_seconds(model, text, 1) if job.new > 1 else seconds[-1])
    counted = model.counters()
    return Measurement(
        model=model.identity.name,
        fingerprint=model.identity.fingerprint,
        precision=model.identity.dtype,
        engine=model.identity.engine,
        context=job.context,
        new=job.new,
        piece=piece,
        beyond_window=beyond,
        seconds=tuple(round(value, 6) for value in seconds),
        processor_seconds=tuple(round(value, 6) for value in processor),
        prefill_seconds=tuple(round(value, 6) for value in prefill),
        load_seconds=float(counted["load_seconds"]),
        peak_memory_bytes=int(counted["peak_memory_bytes"]),
        peak_memory_answering_bytes=int(counted["peak_memory_answering_bytes"]),
        reserved_memory_bytes=sum(map(torch.cuda.max_memory_reserved, _gpus(model))) if _gpus(model) else None,
        joules=tuple(meter.joules) or None,
        environment=_environment(model),
    )


def _opened(job: Job) -> "ReferenceModel":
    from qwen_eval.models.transformers.engine import open_model
    from qwen_eval.models.transformers.plain import PlainModel

    if job.engine == "transformers":
        return PlainModel(job.checkpoint, device=job.device, batch_size=1, trusted=job.trusted)
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731  # the measurement says which engine it was
    settings: dict[str, Any] = {"device": job.device, "batch_size": 1, "trusted": job.trusted}
    return open_model(job.checkpoint, engine=job.engine, say=quiet, **settings)


def _context(model: "ReferenceModel", tokens: int) -> tuple[str, str]:
    """Return a piece of text, and a text of exactly so many tokens that repeats it."""
    # Some tokenizers begin every text with a token of their own.
    begun = len(model.prompt_tokens(Generate(prompt="")))
    for piece in PIECES:
        text = piece * (tokens - begun)
        if len(model.prompt_tokens(Generate(prompt=text))) == tokens:
            return piece, text
    raise ModelError(
        f"{model.identity.name}: expected a tokenizer for which {PIECES[0]} or a letter is one token, found none."
    )


def _seconds(model: "ReferenceModel", text: str, new: int) -> float:
    """Let the model read a text and write so many tokens; return how long that took."""
    model.forget()  # the engine would remember the context
    _wait(model)
    begun = time.perf_counter()
    model.submit(0, Generate(prompt=text, max_new_tokens=new))
    ((_, answer),) = model.collect()
    _wait(model)
    seconds = time.perf_counter() - begun
    if isinstance(answer, Failed):
        raise DeviceError(
            f"{model.identity.name}: {answer.reason}.\nNext: a smaller --precision, fewer tokens, or another --device."
        )
    written = getattr(answer, "new_tokens", 0)
    if written != new:
        raise RuntimeError(f"{written:,} tokens were generated instead of {new:,}")
    return seconds


def _gpus(model: "ReferenceModel") -> list[int]:
    """Return the GPUs that the model stands on."""
    import torch

    if model.device.type != "cuda":
        return []
    return [index for index in range(torch.cuda.device_count()) if torch.cuda.max_memory_allocated(index)]


def _wait(model: "ReferenceModel") -> None:
    import torch

    for index in _gpus(model):
        torch.cuda.synchronize(index)


class _Meter:
    """The energy that the GPUs of a model take, by their own counters (NVML), in joules: one value a block of `with`.

    Nothing is measured without the package nvidia-ml-py, or by a GPU that does not count.
    """

    def __init__(self, model: "ReferenceModel") -> None:
        self.joules: list[float] = []
        self._handles: list[Any] = []
        try:
            import pynvml
            import torch

            self._nvml: Any = pynvml
            if gpus := _gpus(model):
                pynvml.nvmlInit()
                ids = [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in gpus]
                self._handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{each}".encode()) for each in ids]
                self._read()
        except ImportError:
            return
        except self._nvml.NVMLError:
            self._handles = []

    def _read(self) -> float:
        return float(sum(map(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handles))) / 1000

    def __enter__(self) -> None:
        self._before = self._read() if self._handles else 0.0

    def __exit__(self, *error: object) -> None:
        if self._handles and error[0] is None:
            self.joules.append(self._read() - self._before)


def _environment(model: "ReferenceModel") -> dict[str, str | int | float]:
    """Return what a reader has to know of the machine and of what computed."""
    import torch

    gpus = _gpus(model)
    found: dict[str, str | int | float] = {
        **{name: version for name, version in model.identity.versions.items() if name != "tokenizers"},
        "qwen_eval": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "attention": model.attention,
        "dtype": model.dtype,
        "batch_size": 1,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    if gpus:
        names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
        found["gpus"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        found["cuda"] = torch.version.cuda or "unknown"
        found["driver"] = _first_match(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", Path("/proc/driver/nvidia/version"))
    return found


def _processor() -> str:
    return _first_match(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")) or platform.machine()


def _first_match(pattern: str, file: Path) -> str:
    try:
        match = re.search(pattern, file.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1].strip() if match else ""
