"""Reads what lm-evaluation-harness (0.4) wrote: samples_<task>_<time>.jsonl, and results_<time>.json beside it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_eval.errors import StoreError, UsageError

__all__ = ["Log", "Logged", "read_log"]

NOT_FOUND = "[invalid]"
"""What its regular-expression filters leave where they found nothing."""


@dataclass(frozen=True)
class Logged:
    """One document: what was answered, and what was said of it.

    `texts` are the generated answers, one a repeat; `logprobs` those of the options. Only one of the two is there.
    `scores` has the value of every metric, `extracted` what its filter left, by "metric,filter".
    """

    number: int
    doc: Mapping[str, Any]
    target: str
    prompt_hash: str
    texts: Sequence[str]
    logprobs: Sequence[float]
    scores: Mapping[str, Any]
    extracted: Mapping[str, str | None]


@dataclass(frozen=True)
class Log:
    """One file of samples: its task's name there, its time, its documents, and the results beside it."""

    file: Path
    task: str
    time: str
    digest: str
    documents: Sequence[Logged]
    results: Mapping[str, Any]


def read_log(file: Path) -> Log:
    """Read a file of samples. Raises StoreError for a damaged or incomplete one, UsageError for anything else."""
    kind, _, rest = file.stem.partition("_")
    task, _, time = rest.rpartition("_")
    if kind != "samples" or file.suffix != ".jsonl" or not task:
        raise UsageError(
            f"{file}: expected a sample log of lm-evaluation-harness, samples_<task>_<time>.jsonl.\n"
            "Next: run it with --log_samples --output_path, and give the files it writes."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}).") from None
    results = _results(file, file.with_name(f"results_{time}.json"))
    lines: dict[int, list[Mapping[str, Any]]] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            each = _line(f"{file}, line {number}", line)
            lines.setdefault(each["doc_id"], []).append(each)
    expected = results.get("n-samples", {}).get(task, {}).get("effective", len(lines))
    if not lines or len(lines) != expected:
        raise StoreError(
            f"{file}: expected {expected:,} samples as {_name(time)} says, found {len(lines):,}.\n"
            "Next: copy the file anew; a run that was killed has to be finished first."
            if lines
            else f"{file}: expected samples, found an empty file."
        )
    documents = [_logged(file, number, of) for number, of in sorted(lines.items())]
    return Log(file, task, time, hashlib.sha256(content).hexdigest(), documents, results)


def _name(time: str) -> str:
    return f"results_{time}.json"


def _results(log: Path, file: Path) -> Mapping[str, Any]:
    try:
        results = json.loads(file.read_bytes())
    except OSError:
        raise UsageError(
            f"{log}: expected {file.name} beside it, which says what was run; found none.\n"
            "Next: copy it there from the run's --output_path."
        ) from None
    except ValueError as error:
        raise StoreError(f"{file}: expected JSON, found a damaged file ({error}).") from None
    tables = ("results", "configs", "config", "n-samples", "n-shot")
    if not isinstance(results, dict) or not all(isinstance(results.get(name, {}), dict) for name in tables):
        raise UsageError(f"{file}: expected the results of lm-evaluation-harness, found other JSON.")
    return results


def _line(where: str, line: bytes) -> Mapping[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise StoreError(
            f"{where}: expected one JSON object, found a damaged line ({error}).\nNext: copy the file anew."
        ) from None
    wanted = {"doc_id": int, "doc": dict, "resps": list, "filtered_resps": list}
    wrong = [
        name for name, kind in wanted.items() if not isinstance(sample, dict) or not isinstance(sample.get(name), kind)
    ]
    if wrong:
        raise UsageError(
            f"{where}: expected a sample of lm-evaluation-harness, found no usable '{wrong[0]}'.\n"
            "Next: give the samples_<task>_<time>.jsonl that its --log_samples writes."
        )
    return dict(sample)


def _logged(file: Path, number: int, lines: Sequence[Mapping[str, Any]]) -> Logged:
    """One document from its lines, one a filter."""
    first = lines[0]
    scores: dict[str, Any] = {}
    extracted: dict[str, str | None] = {}
    try:
        chosen = isinstance(first["resps"][0][0], list)
        texts = [] if chosen else [str(text) for text in first["resps"][0]]
        logprobs = [float(option[0][0]) for option in first["resps"]] if chosen else []
        for line in lines:
            filtered = line["filtered_resps"][0]
            left = filtered if isinstance(filtered, str) and filtered != NOT_FOUND else None
            for metric in line.get("metrics", ()):
                key = f"{metric},{line.get('filter', 'none')}"
                scores[key] = line[metric]
                extracted[key] = left
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}, document {number}: expected responses and metrics as lm-evaluation-harness writes them, found "
            f"others ({type(error).__name__}: {error})."
        ) from None
    return Logged(
        number,
        first["doc"],
        str(first.get("target", "")),
        str(first.get("prompt_hash", "")),
        texts,
        logprobs,
        scores,
        extracted,
    )
