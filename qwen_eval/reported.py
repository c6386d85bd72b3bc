"""Published scores as data: what model cards, reports and leaderboards say of a model. Read from `results/reported`.

Nothing is chosen here: where two documents differ, both rows are given, each with its source and its footnote.
"""

import csv
import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache

from qwen_eval.errors import UsageError
from qwen_eval.paths import reported_root

__all__ = ["THEMES", "Reported", "every", "models", "notes", "reported"]

THEMES = ("accuracy", "agents", "perplexity", "profile")
"""The files of the data: `accuracy.csv`, … All have the same columns, the fields of `Reported`."""

SHARES = ("accuracy", "exact match", "pass@1")
"""The metrics that are a share of right answers, in percent: what a run's score can be set beside."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One published number. Every field is text as in the data; empty means: not published, or not applicable.

    `protocol` is the `task@protocol` of ours that the number belongs to, empty where none of ours is the one;
    `protocol_evidence` says whether that is "stated" or "inferred" ("-" without a protocol). `part` is a category, or
    empty for the whole. `metric` may name its average: "accuracy (macro)" is the mean over subjects. `note` holds ids
    of footnotes, separated by spaces.
    """

    model: str
    task: str
    benchmark: str
    metric: str
    part: str
    split: str
    shots: str
    protocol: str
    protocol_evidence: str
    kind: str
    precision: str
    setting: str
    value: str
    source: str
    note: str

    @property
    def notes(self) -> tuple[str, ...]:
        """The ids of the footnotes."""
        return tuple(self.note.split())

    @property
    def is_share(self) -> bool:
        """Whether the number is a share of right answers in percent."""
        return self.metric.partition(" (")[0] in SHARES

    @property
    def average(self) -> str:
        """Return "micro" (over items) or "macro" (mean over subjects) where the metric names it, else ""."""
        return self.metric.partition(" (")[2].removesuffix(")") if self.is_share else ""

    @property
    def number(self) -> float:
        """The value in the unit of its metric. Raises ValueError for the few that are words (out of memory)."""
        return float(self.value)

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit: 58.2 stands for anything from 58.15 to 58.25, so 0.05."""
        return 0.5 * 10.0 ** -len(self.value.partition(".")[2])


@cache
def every() -> tuple[Reported, ...]:
    """Return every published number, in the order of the files."""
    columns = [field.name for field in fields(Reported)]
    return tuple(Reported(**{name: row[name] for name in columns}) for theme in THEMES for row in _rows(theme))


@cache
def notes() -> dict[str, str]:
    """Return the footnotes: id to text."""
    return {row["id"]: row["text"] for row in _rows("notes")}


def models() -> dict[str, int]:
    """Return the models that have published numbers, with how many, sorted by name."""
    counts: dict[str, int] = {}
    for row in every():
        counts[row.model] = counts.get(row.model, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: pair[0].lower()))


def reported(model: str) -> tuple[Reported, ...]:
    """Return the published numbers of a model. Raises UsageError for an unknown one.

    Upper and lower case, `-`, `_` and space are alike, and an organisation before the name does not matter.
    """
    found = tuple(row for row in every() if _plain(row.model) == _plain(model))
    if not found:
        close = get_close_matches(_plain(model), [_plain(name) for name in models()], n=1)
        meant = next((f" Did you mean '{name}'?" for name in models() if close and _plain(name) == close[0]), "")
        raise UsageError(
            f"No published scores of '{model}' are here.{meant}\n"
            "Next: `python -m qwen_eval compare --reported list` names every model that has some."
        )
    return found


def _plain(model: str) -> str:
    return re.sub(r"[\s_-]+", "-", model.rpartition("/")[2].strip().lower())


def _rows(name: str) -> list[dict[str, str]]:
    with (reported_root() / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
