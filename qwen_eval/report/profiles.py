"""Measured speeds and memory as a table, with what was published beside them."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qwen_eval.profile import Measurement
from qwen_eval.report.tables import draw
from qwen_eval.reported import Reported

__all__ = ["place", "profile_table", "published_rows"]

GIGABYTE = 2**30
_LENGTHS = (
    (r"tokens/s(?: generating|,) (?P<new>\d+)(?: \(1 context token\))?", "speed"),
    (r"(?:peak )?GB generating (?P<new>\d+)(?: from 1 token)?", "memory"),
    (r"peak GB encoding (?P<context>\d+) \+ (?P<new>1) new token", "memory"),
)


def place(row: Reported) -> tuple[int, int, str] | None:
    """Return what a published number is of: context, new tokens, and "speed" or "memory"; None for anything else."""
    if row.benchmark not in ("Inference speed", "GPU memory"):
        return None
    for pattern, what in _LENGTHS:
        if match := re.fullmatch(pattern, row.metric):
            found = match.groupdict()
            return int(found.get("context") or 1), int(found["new"]), what
    return None


def published_rows(rows: Sequence[Reported], measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return the published numbers for the lengths that were measured: one row a model, precision, setting, source."""
    wanted = {(each.context, each.new) for each in measured}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        of = place(row)
        if of is None or of[:2] not in wanted:
            continue
        context, new, what = of
        key = (row.model, row.precision, row.setting, row.source, f"{context}+{new}")
        line = found.setdefault(
            key,
            {
                "model": row.model,
                "precision": row.precision,
                "setting": row.setting,
                "source": row.source,
                "context": context,
                "new": new,
            },
        )
        line[what] = row.value
    return list(found.values())


def profile_table(
    measured: Sequence[Measurement], published: Sequence[Mapping[str, Any]] = (), *, format: str = "text"
) -> str:
    """Return the table: a row a measurement, then the published ones; below, in words, what was measured and where.

    `json` has the measurements whole, `csv` one flat row for each; published ones are in neither.
    """
    if format == "json":
        return draw([each.record() for each in measured], format)
    if format == "csv":
        return draw([_flat(each) for each in measured], format)
    rows = [_row(each) for each in measured] + [_published(each) for each in published]
    columns = [name for name in rows[0] if name in KEPT or any(row[name] != "-" for row in rows)]
    table = draw([{name: row[name] for name in columns} for row in rows], format)
    return table if format == "latex" else "\n\n".join([table, *_notes(measured)])


MEASURED_ONLY = ("Prefill s", "Decode tokens/s", "Tokens/CPU s", "Peak after loading", "Reserved GB", "Joules/token")
KEPT = ("Model", "Precision", "By", "Context", "New", "Tokens/s", "Peak GB")
"""Columns that are there in any case; the others where they hold something."""


def _row(each: Measurement) -> dict[str, str]:
    def gigabytes(value: int | None) -> str:
        return "-" if value is None else f"{value / GIGABYTE:.2f}"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return {
        "Model": each.model,
        "Precision": each.precision,
        "By": each.engine,
        "Context": f"{each.context:,}",
        "New": f"{each.new:,}",
        "Tokens/s": number(each.speed),
        "Prefill s": f"{each.prefill:.3f}",
        "Decode tokens/s": number(each.decode_speed),
        "Tokens/CPU s": number(each.processor_speed),
        "Peak GB": gigabytes(each.peak_memory_bytes),
        "Peak after loading": gigabytes(each.peak_memory_answering_bytes),
        "Reserved GB": gigabytes(each.reserved_memory_bytes),
        "Joules/token": number(each.joules_a_token),
    }


def _published(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        **dict.fromkeys(MEASURED_ONLY, "-"),
        "Model": f"{row['model']}, reported",
        "Precision": row["precision"],
        "By": f"{row['source']}: {row['setting']}",
        "Context": f"{row['context']:,}",
        "New": f"{row['new']:,}",
        "Tokens/s": row.get("speed", "-"),
        "Peak GB": row.get("memory", "-"),
    }


def _flat(each: Measurement) -> dict[str, Any]:
    record = each.record()
    environment = record.pop("environment")
    lists = {name: " ".join(map(str, value)) for name, value in record.items() if isinstance(value, list)}
    return {**record, **lists, **environment}


def _notes(measured: Sequence[Measurement]) -> list[str]:
    """Return what the numbers mean, and a line for every environment they were measured in."""
    gpu = any("gpus" in each.environment for each in measured)
    repeats = sorted({len(each.seconds) for each in measured})
    of = "allocated on all GPUs" if gpu else "the resident set of the process"
    pieces = ", ".join(dict.fromkeys(each.piece.strip() or repr(each.piece) for each in measured))
    lines = [
        f"Batch 1, greedy, the context is {pieces} repeated, end tokens end nothing; median of "
        f"{' or '.join(map(str, repeats))} after a warm-up. Tokens/s: new tokens by seconds, prefill included (the "
        f"published quotient). Peak: {of}, loading included; 1 GB = 2^30 bytes."
    ]
    if any(each.beyond_window for each in measured):
        lines.append("Some lengths are beyond the model's window: their text is worse, their speed is not.")
    loads = [float(each.environment["load_average"]) for each in measured if "load_average" in each.environment]
    busy = f" Load average {min(loads):g} to {max(loads):g}." if loads else ""
    facts = [
        {name: value for name, value in each.environment.items() if value and name not in HIDDEN} for each in measured
    ]
    common = {name: value for name, value in facts[0].items() if all(each.get(name) == value for each in facts)}
    own = {
        f"{each.engine}, {each.precision}": _said(found, without=common)
        for each, found in zip(measured, facts, strict=True)
    }
    return [*lines, f"{_said(common)}.{busy}", *(f"{name}: {said}." for name, said in own.items() if said)]


HIDDEN = ("batch_size", "dtype", "load_average")
"""Facts that stand elsewhere."""


def _said(facts: Mapping[str, Any], without: Mapping[str, Any] = MappingProxyType({})) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name not in without)
