"""Measured scores beside published ones: one line a pair of a run and a reported number, with a verdict.

The reported number is taken as fixed: how far it would move on other items, or in another run on the same items, is not
published. So a verdict says whether the measured 95 % interval reaches it, and no more. All scores are in percent, but
for measures that are published on another scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from qwen_eval.report.tables import draw
from qwen_eval.reported import Reported

__all__ = ["Line", "Run", "lines", "table"]

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}
_OPTIONAL = ("Category", "Measure", "Protocol", "Precision")
_OF_RUN = ("Task", "Category", "Measure", "Model", "n", "Measured", "95 % interval")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its metrics, and what its task file says of it (None where there is no such task file).

    `chat` is whether the protocol is one for chat models; `total` the number of items of the whole split.
    """

    metrics: Mapping[str, Any]
    chat: bool | None
    total: int | None

    @property
    def name(self) -> str:
        """The spelling in tables: `gsm8k@qwen`."""
        return f"{self.metrics['task']}@{self.metrics['protocol']}"

    @property
    def model(self) -> str:
        """The model that was measured."""
        return str(self.metrics["model"]["name"])


@dataclass(frozen=True, kw_only=True)
class Line:
    """A score of a run beside a reported number, or beside None where nothing is reported.

    `category` is "" for the whole run, `model` the reported model, `other_kind` whether numbers are reported for the
    other kind of model (base, chat) only. `score`, `low` and `high` are in percent, None where they are withheld.
    `measure` is the head of the column where it is a number beside the score; it then has the scale of the publication.
    """

    run: Run
    model: str
    category: str
    n: int
    score: float | None
    low: float | None
    high: float | None
    reported: Reported | None
    other_kind: bool = False
    measure: str = ""

    @property
    def difference(self) -> float | None:
        """Measured minus reported, in points."""
        return None if self.reported is None or self.score is None else self.score - self.reported.number

    @property
    def differs(self) -> list[str]:
        """What keeps the two from being the same measurement, in words."""
        if self.reported is None:
            return []
        here, there = self.run.metrics, self.reported
        found = [] if there.protocol == self.run.name else ["other protocol"]
        if "judge" in there.notes:
            found.append("other judge")
        if there.shots != str(here["shots"]):
            found.append(f"other shots (run: {here['shots']})" if there.shots else "shots not published")
        # What is measured beside a score belongs to a benchmark whose only split is its protocol's.
        if there.split != here["split"] and not self.measure:
            found.append(f"other split ({there.split})" if there.split else "split not published")
        if there.average and not self.category and there.average != here.get("average", there.average):
            found.append(f"other average ({there.average})")
        return found

    @property
    def verdict(self) -> str:
        """Where the measured score stands to the reported one, or what differs between the two."""
        if self.reported is None:
            other = "base" if self.run.chat else "chat"
            return f"reported for {other} only" if self.other_kind else "nothing reported"
        if self.score is None:
            return "no score"
        if self.differs:
            return ", ".join(self.differs)
        if self.low is None or self.high is None:
            return "no interval"
        # Both are decimal numbers held in binary; a billionth of a point never decides.
        reach = self.reported.half_unit + 1e-9
        if self.low - reach <= self.reported.number <= self.high + reach:
            return "within noise"
        return "higher" if self.score > self.reported.number else "lower"


def lines(runs: Sequence[Run], reported: Sequence[Reported], *, by: str = "task") -> list[Line]:
    """Return every pair of a run and a reported number of its task and kind, in the order of both.

    With `by="category"` the categories of a run follow it, each beside its reported numbers; categories without any are
    left out.
    """
    found = []
    for run in runs:
        for model in dict.fromkeys(row.model for row in reported):
            task = [row for row in reported if row.model == model and _same_task(row, run)]
            own = [row for row in task if _same_kind(row, run)]
            whole: list[Reported | None] = [row for row in own if not row.part]
            line = partial(Line, run=run, model=model, other_kind=bool(task) and not own)
            measured = [
                line(category="", measure=measure["title"], reported=row, **_scores(part, measure["scale"]))
                for measure, part in _measured(run.metrics)
                for row in _published(reported, model, run, measure["reported"])
            ]
            whole = whole or ([] if measured else [None])
            found += [line(category="", reported=row, **_whole(run.metrics)) for row in whole]
            found += measured
            for name, part in run.metrics["categories"].items() if by == "category" else ():
                found += [
                    line(category=name, reported=row, **_scores(part))
                    for row in own
                    if row.part and _plain(row.part) == _plain(name)
                ]
    return found


def _measured(metrics: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return what a run measured beside its score: every measure with its numbers, by the first rule that has it."""
    rules = sorted(metrics["rules"], key=lambda rule: rule != metrics["rule"])
    found = []
    for measure in metrics.get("measures", ()):
        parts = [metrics["rules"][rule].get("measures", {}).get(measure["name"]) for rule in rules]
        found += [(measure, part) for part in parts if part][:1]
    return found


def _published(reported: Sequence[Reported], model: str, run: Run, metric: str) -> list[Reported]:
    own = [row for row in reported if row.model == model and row.task == run.metrics["task"] and _same_kind(row, run)]
    return [row for row in own if metric and row.metric == metric and not row.part]


def _same_task(row: Reported, run: Run) -> bool:
    return row.task == run.metrics["task"] and row.is_share


def _same_kind(row: Reported, run: Run) -> bool:
    kind = {True: "chat", False: "base", None: ""}[run.chat]
    return not row.kind or not kind or row.kind == kind


def _plain(category: str) -> str:
    """Documents write "Social Science" and "Social Sciences", "Other" and "Others"."""
    return category.lower().removesuffix("s")


def _whole(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The headline; in metrics of earlier versions its interval stands with its rule only."""
    nothing = {"score": None, "low": None, "high": None, "n": metrics["n"]}
    part = {**nothing, **metrics["rules"].get(metrics["rule"], {}), "n": metrics["n"], "score": metrics["score"]}
    return _scores({**part, **{name: metrics[name] for name in ("low", "high") if name in metrics}})


def _scores(part: Mapping[str, Any], scale: float = 100) -> dict[str, Any]:
    scaled = {name: None if part.get(name) is None else scale * part[name] for name in ("score", "low", "high")}
    return {"n": part["n"], **scaled}


# --------------------------------------------------------------------------------------------------------- drawing


def table(pairs: Sequence[Line], notes: Mapping[str, str], *, format: str = "text") -> str:
    """Return the pairs as a table, with the footnotes of the reported numbers under it.

    `notes` maps the id of a footnote to its text. In `csv` and `json` every pair carries the texts of its footnotes.
    """
    if format in ("csv", "json"):
        records = [_record(line, notes) for line in pairs]
        if format == "csv":
            # An empty cell, not NaN: pandas would turn a column of whole numbers with gaps into decimals.
            records = [{name: "" if value is None else value for name, value in each.items()} for each in records]
        return draw(records, format)
    marks = {
        identifier: f"[{number}]"
        for number, identifier in enumerate(dict.fromkeys(each for line in pairs for each in _notes(line)), 1)
    }
    rows = [_row(line, marks) for line in pairs]
    dropped = {name for name in _OPTIONAL if not any(row[name] for row in rows)}
    above = []
    if format == "text":
        # A terminal is narrow: what is the same in every row stands above the table.
        for column, words in (("Model", "Measured"), ("Reported model", "Reported")):
            values = {row[column] for row in rows} - {"-"}
            if len(values) <= 1:
                dropped.add(column)
                above += [f"{words}: {value}" for value in values]
        rows = _once(rows)
    body = draw([{name: value for name, value in row.items() if name not in dropped} for row in rows], format)
    footnotes = [f"{mark} {notes[identifier]}" for identifier, mark in marks.items()]
    if format == "latex":
        footnotes = ["".join(_LATEX.get(letter, letter) for letter in each) for each in footnotes]
    between = "\n" if format == "text" else "\n\n"
    return "\n\n".join(part for part in ("\n".join(above), body, between.join(footnotes)) if part)


def _once(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out what a row repeats of the row above it: the measured score it stands beside."""
    seen: list[str] = []
    found = []
    for row in rows:
        own = [row[name] for name in _OF_RUN]
        found.append({**row, **dict.fromkeys(_OF_RUN, "")} if own == seen else row)
        seen = own
    return found


def _notes(line: Line) -> tuple[str, ...]:
    return line.reported.notes if line.reported else ()


def _row(line: Line, marks: Mapping[str, str]) -> dict[str, str]:
    """One line for people. A protocol is named where it is not the run's own, or where that it is has been inferred."""
    row, run = line.reported, line.run
    part_of_whole = bool(run.total) and not line.category and not line.measure and line.n < (run.total or 0)
    digits = 3 if line.reported is not None and line.measure and line.reported.number <= 1 else 1
    protocol = "" if row is None else row.protocol or "none of ours"
    if row and protocol == run.name:
        protocol = "the run's (inferred)" if row.protocol_evidence == "inferred" else ""
    return {
        "Task": run.name,
        "Category": line.category,
        "Measure": line.measure,
        "Model": run.model,
        "n": f"{line.n:,} of {run.total:,}" if part_of_whole else f"{line.n:,}",
        "Measured": "-" if line.score is None else f"{line.score:.{digits}f}",
        "95 % interval": "-"
        if line.low is None or line.high is None
        else f"{line.low:.{digits}f} to {line.high:.{digits}f}",
        "Reported": f"{row.value} {''.join(marks[each] for each in row.notes)}".rstrip() if row else "-",
        "Reported model": line.model,
        "Protocol": protocol,
        "Shots": (row.shots or "-") if row else "-",
        "Precision": row.precision if row else "",
        "Source": row.source if row else "-",
        "Difference": "-" if line.difference is None else f"{_rounded(line.difference, digits):+.{digits}f}",
        "Verdict": line.verdict,
    }


def _record(line: Line, notes: Mapping[str, str]) -> dict[str, Any]:
    """One line for programs; scores and differences in percent."""
    row, run = line.reported, line.run
    names = ("model", "protocol", "protocol_evidence", "split", "shots", "precision", "setting", "source")
    fields = asdict(row) if row else dict.fromkeys(names)
    return {
        "task": run.metrics["task"],
        "protocol": run.metrics["protocol"],
        "model": run.model,
        "split": run.metrics["split"],
        "shots": run.metrics["shots"],
        "category": line.category,
        **({"measure": line.measure} if line.measure else {}),
        "n": line.n,
        "total": None if line.category else run.total,
        "measured": _rounded(line.score, 4),
        "low": _rounded(line.low, 4),
        "high": _rounded(line.high, 4),
        "reported": row.number if row else None,
        **{f"reported_{name}": fields[name] for name in names} | {"reported_model": line.model},
        "difference": _rounded(line.difference, 4),
        "verdict": line.verdict,
        "note": " ".join(notes[each] for each in _notes(line)),
    }


def _rounded(value: Any, digits: int) -> Any:
    # Adding nought turns -0.0 into 0.0.
    return None if value is None else round(value, digits) + 0.0
