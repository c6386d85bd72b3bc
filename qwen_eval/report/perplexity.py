"""Perplexity by length: a line a model and setting, a column a length, as in the table of Qwen's README."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

__all__ = ["by_length", "label", "long", "notes", "parts"]


def label(metrics: Mapping[str, Any]) -> str:
    """Return what a run is a line of: its model, and how it meets contexts beyond its training length."""
    return f"{metrics['model']['name']}, {metrics['model'].get('rope') or 'plain'}"


def parts(metrics: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return what was measured at each length, the shortest first; a file has them in the order of their digits."""
    return sorted(((int(length), part) for length, part in metrics["perplexity"].items()), key=itemgetter(0))


def by_length(runs: Sequence[Mapping[str, Any]]) -> list[list[dict[str, str]]]:
    """Return the tables of some runs: perplexity with its standard error, then bits per byte, then blocks."""
    columns = sorted({length for each in runs for length, _ in parts(each)})

    def table(title: str, cell: Any) -> list[dict[str, str]]:
        return [
            {title: label(each), **{str(length): cell(dict(parts(each)).get(length)) for length in columns}}
            for each in runs
        ]

    tables = [table("Perplexity", _perplexity), table("Bits per byte", _bits)]
    counts = table("Blocks", lambda part: "-" if part is None else f"{part['blocks']}")
    # All of them are measured on the same text, so one line says it, but where tokenizers differ.
    kept = {tuple(list(row.values())[1:]): row for row in reversed(counts)}
    return [*tables, counts if len(kept) > 1 else [{**counts[0], "Blocks": "of each"}]] if runs else []


def notes(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what must be said beside the tables."""
    windows = any("window" in (each["model"].get("rope") or "") for each in runs)
    return ["window: the schedule is this project's own; Qwen's was not published (EVALUATION.md)."] if windows else []


def long(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line a length of a run, for programs."""
    common = {"model": metrics["model"]["name"], "task": metrics["task"], "rope": metrics["model"].get("rope", "")}
    return [
        {**common, "part": "length", "name": length, "rule": metrics["rule"], **part} for length, part in parts(metrics)
    ]


def _perplexity(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "-"
    value, error = part["perplexity"], part["standard_error"]
    if value is None:
        return "> 1e308"
    digits = 2 if value < 1000 else 0
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _bits(part: Mapping[str, Any] | None) -> str:
    return "-" if part is None else f"{part['bits_per_byte']:.3f}"
