"""Models beside each other: one row a model, one column a benchmark, as model cards have it; or one table a benchmark.

The best score of a column is bold. Published scores stand in rows of their own, where they are the same measurement:
task, protocol, shots and split. All scores are in percent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from qwen_eval.report.comparison import Line
from qwen_eval.report.tables import draw

__all__ = ["by_part", "by_sample", "matrix"]

_BREAKS: Final = {"md": "<br>", "html": "<br>", "latex": ", ", "csv": ", "}


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A score with its interval, in percent; `said` is what a publication printed."""

    score: float
    low: float | None = None
    high: float | None = None
    said: str = ""


_Column = tuple[str, str, str, int, bool]


def _column(metrics: Mapping[str, Any]) -> _Column:
    return metrics["task"], metrics["protocol"], metrics["split"], metrics["shots"], metrics["mini"]


def _names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for the model of every run; two models of one name get the beginning of their fingerprint."""
    known: dict[str, set[str]] = {}
    for each in runs:
        known.setdefault(each["model"]["name"], set()).add(str(each["model"].get("fingerprint", "")))
    return [
        each["model"]["name"]
        if len(known[each["model"]["name"]]) == 1
        else f"{each['model']['name']} ({str(each['model'].get('fingerprint', ''))[:8]})"
        for each in runs
    ]


def matrix(runs: Sequence[Mapping[str, Any]], published: Sequence[Line], *, format: str = "text") -> str:
    """Return the table of models and benchmarks. `json` and `csv` have one record a score instead."""
    cells: dict[str, dict[_Column, _Cell]] = {}
    items: dict[_Column, set[int]] = {}
    for name, each in zip(_names(runs), runs, strict=True):
        row = cells.setdefault(name, {})
        items.setdefault(_column(each), set()).add(each["n"])
        if each["score"] is not None:
            row[_column(each)] = _cell(each)
    for line in published:
        if line.reported is not None and not line.category and not line.measure and not line.differs:
            row = cells.setdefault(f"{line.model}, reported", {})
            column = _column(line.run.metrics)
            said = [one for one in (row[column].said if column in row else "").split(" / ") if one]
            values = list(dict.fromkeys([*said, line.reported.value]))
            row[column] = _Cell(score=max(map(float, values)), said=" / ".join(values))
    if format in ("csv", "json"):
        return draw([_record(name, column, row[column]) for name, row in cells.items() for column in row], format)
    best = {column: max((row[column].score for row in cells.values() if column in row), default=0) for column in items}
    heads = {column: _head(column, items[column], format) for column in items}
    mark = _marker(format)
    rows = [
        {
            "Model": _plain(name, format),
            **{
                heads[column]: mark(_shown(row[column], format), row[column].score == best[column])
                if column in row
                else "-"
                for column in items
            },
        }
        for name, row in cells.items()
    ]
    return _drawn(rows, format)


def by_part(runs: Sequence[Mapping[str, Any]], part: str, *, format: str = "text") -> str:
    """Return a table for each benchmark: subjects ("groups") or "categories" down, models across."""
    names = _names(runs)
    tables = []
    records = []
    for column in dict.fromkeys(map(_column, runs)):
        shown = [(name, each) for name, each in zip(names, runs, strict=True) if _column(each) == column]
        parts = list(dict.fromkeys(name for _, each in shown for name in each[part]))
        scores: dict[str, dict[str, Mapping[str, Any]]] = {
            one: {name: each[part][one] for name, each in shown if one in each[part]} for one in parts
        }
        scores["all"] = dict(shown)
        records += [
            {**_record(name, column, _cell(found)), "part": one}
            for one, row in scores.items()
            for name, found in row.items()
            if found["score"] is not None
        ]
        if parts:
            rows = [_across(one, row, [name for name, _ in shown], format) for one, row in scores.items()]
            tables.append(f"{_head(column, {each['n'] for _, each in shown}, 'csv')}\n\n{_drawn(rows, format)}")
    return draw(records, format) if format in ("csv", "json") else "\n\n".join(tables)


def by_sample(runs: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, float]], *, format: str = "text") -> str:
    """Return a table for each benchmark: samples down, models across; `scores` are those of each run's samples."""
    names = _names(runs)
    tables = []
    for column in dict.fromkeys(map(_column, runs)):
        shown = {name: each for name, run, each in zip(names, runs, scores, strict=True) if _column(run) == column}
        samples = list(dict.fromkeys(sample for each in shown.values() for sample in each))
        rows = [
            {"Sample": sample, **{name: f"{each[sample]:g}" if sample in each else "-" for name, each in shown.items()}}
            for sample in samples
        ]
        if format in ("csv", "json"):
            rows = [{"task": f"{column[0]}@{column[1]}", **row} for row in rows]
            tables.append(draw(rows, format))
        else:
            tables.append(f"{_head(column, {len(samples)}, 'csv')}\n\n{draw(rows, format)}")
    return "\n\n".join(tables)


def _across(one: str, row: Mapping[str, Mapping[str, Any]], names: Sequence[str], format: str) -> dict[str, str]:
    best = max((found["score"] for found in row.values() if found["score"] is not None), default=None)
    mark = _marker(format)
    cells = {
        _plain(name, format): mark(_shown(_cell(row[name]), format), row[name]["score"] == best and len(row) > 1)
        if name in row and row[name]["score"] is not None
        else "-"
        for name in names
    }
    return {"Part": _plain(one, format), "n": f"{max(found['n'] for found in row.values()):,}", **cells}


def _cell(part: Mapping[str, Any]) -> _Cell:
    low, high = (None if part.get(end) is None else 100 * part[end] for end in ("low", "high"))
    return _Cell(score=100 * (part["score"] or 0), low=low, high=high)


def _record(name: str, column: _Column, cell: _Cell) -> dict[str, Any]:
    task, protocol, split, shots, mini = column
    place = {"model": name, "task": task, "protocol": protocol, "split": split, "shots": shots, "mini": mini}
    rounded = {end: None if (value := getattr(cell, end)) is None else round(value, 4) for end in ("low", "high")}
    return {**place, "score": round(cell.score, 4), **rounded, "reported": bool(cell.said)}


def _head(column: _Column, items: set[int], format: str) -> str:
    task, protocol, split, shots, mini = column
    count = f"n {min(items):,}" if len(items) == 1 else f"n {min(items):,} to {max(items):,}"
    lines = [f"{task}{' (mini)' if mini else ''}", f"@{protocol}", f"{shots}-shot", f"{split}, {count}"]
    return _BREAKS.get(format, "\n").join(_plain(line, format) for line in lines)


def _shown(cell: _Cell, format: str) -> str:
    if cell.said:
        return cell.said
    reach = "" if cell.low is None or cell.high is None else f" ({cell.low:.1f}-{cell.high:.1f})"
    return f"{cell.score:.1f}{reach.replace('-', '--') if format == 'latex' else reach}"


def _plain(text: str, format: str) -> str:
    """Return text without the signs of HTML; what other formats take for theirs is escaped where it is drawn."""
    return escape(text) if format == "html" else text


def _marker(format: str) -> Callable[[str, bool], str]:
    """Return what marks the best of a column: a star where there is no bold."""
    begin, end = {"md": ("**", "**"), "html": ("<b>", "</b>"), "latex": ("\x02", "\x03")}.get(format, ("", " *"))
    return lambda text, best: f"{begin}{text}{end}" if best else text


def _drawn(rows: Sequence[Mapping[str, Any]], format: str) -> str:
    """Draw rows. In LaTeX bold is put in afterwards, because drawing escapes every sign of it."""
    return draw(rows, format).replace("\x02", r"\textbf{").replace("\x03", "}")
