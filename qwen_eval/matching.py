"""Finds the sample of an item from elsewhere by its texts: question, options, subject; never by its number."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_eval.task import Sample

__all__ = ["Matcher", "question_of"]

QUESTIONS = ("question", "problem", "input", "text", "prompt")
"""What the column of the question is called, in the order of looking; upper and lower case are the same."""
OPTIONS = ("A", "B", "C", "D")


class Matcher:
    """The samples of a split by their texts; every sample is given to one item only."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        """Index the samples; `given` has the ids of those that were matched."""
        self.given: set[str] = set()
        self._by_question: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_question.setdefault(_plain(question_of(sample.row)), []).append(sample)

    def find(self, item: Mapping[str, Any], *, group: str = "", number: int = -1) -> Sample | None:
        """Return the sample with the texts of an item, None where there is none left.

        The options count where both have some, the subject where the item's is known. Of samples that are alike the one
        is taken whose id ends in the item's `number`.
        """
        question, options = _plain(question_of(item)), _options(item)
        found = [
            sample
            for sample in self._by_question.get(question, ())
            if question
            and sample.id not in self.given
            and (not options or not _options(sample.row) or options == _options(sample.row))
            and (not group or not sample.group or sample.group == group)
        ]
        if not found:
            return None
        sample = next((sample for sample in found if re.search(rf"(?<!\d)0*{number}$", sample.id)), found[0])
        self.given.add(sample.id)
        return sample


def question_of(row: Mapping[str, Any]) -> str:
    """Return the question of a row, whatever its column is called; "" where there is none of a known name."""
    columns = {name.lower(): value for name, value in row.items() if isinstance(value, str)}
    return next((columns[name] for name in QUESTIONS if name in columns), "")


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = row.get("choices") or [row[letter] for letter in OPTIONS if letter in row]
    return tuple(_plain(str(choice)) for choice in choices) if isinstance(choices, list) else ()


def _plain(text: str) -> str:
    """A text with every run of white space as one space: copies of a dataset differ in it."""
    return " ".join(text.split())
