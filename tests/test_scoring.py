"""From verdicts to metrics: averages over items and over groups, and when there is no score."""

from typing import Any

import pytest

from qwen_eval import registry
from qwen_eval.registry import Entry
from qwen_eval.scoring import metrics, submission
from qwen_eval.stats import clopper_pearson, effective_size, effective_size_of_repeats, wilson


def record(identifier: str, *, correct: bool, gold: str = "A", extracted: str | None = "B") -> dict[str, Any]:
    return {
        "doc_id": identifier,
        "group": identifier.split("/")[0],
        "target": gold,
        "outputs": [{"logprobs": [0.0]}],
        "verdicts": {"choice": {"correct": correct, "extracted": extracted}},
    }


# Two subjects of different sizes: 1 of 1, and 1 of 4.
UNEQUAL = [record("law/val/0", correct=True)] + [record(f"logic/val/{row}", correct=row == 0) for row in range(4)]


@pytest.mark.parametrize(("protocol", "score"), [("qwen", 0.625), ("lm-eval", 0.4)])
def test_the_protocol_says_whether_subjects_or_items_are_averaged(
    entries: dict[str, Entry], protocol: str, score: float
) -> None:
    task = entries["ceval"].task
    found = metrics(task, registry.protocol(task, protocol), UNEQUAL, errors=0)
    assert found["score"] == found["rules"]["choice"]["score"] == score
    assert (found["macro"]["score"], found["micro"]["score"]) == (0.625, 0.4)
    assert found["low"] < score < found["high"]


def test_categories_are_averaged_as_the_whole_is(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    found = metrics(task, registry.protocol(task, "qwen"), UNEQUAL, errors=0)
    assert found["categories"]["Humanities"]["score"] == 0.625
    assert set(found["categories"]) == {"Humanities"}
    assert {name: part["score"] for name, part in found["groups"].items()} == {"law": 1.0, "logic": 0.25}


def test_without_answers_there_is_no_score_but_a_submission(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    protocol = registry.protocol(task, "qwen")
    records = [
        record(f"law/test/{row}", correct=False, gold="", extracted=said) for row, said in enumerate(["B", None])
    ]
    found = metrics(task, protocol, records, errors=0)
    assert found["ungraded"] == 2
    assert found["score"] is found["low"] is found["macro"]["score"] is found["groups"]["law"]["score"] is None
    assert submission(task, protocol, records) == {"law": {"0": "B", "1": ""}}


def test_errors_withhold_every_score(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    found = metrics(task, registry.protocol(task, "qwen"), UNEQUAL, errors=1)
    assert found["score"] is found["micro"]["score"] is found["categories"]["Humanities"]["high"] is None
    assert found["micro"]["correct"] == 2


def test_bad_golds_are_counted(entries: dict[str, Entry]) -> None:
    task = entries["bbh"].task
    verdicts = {name: {"correct": False, "extracted": "A"} for name in task.rules}
    records = [
        {**record(identifier, correct=False), "verdicts": verdicts, "outputs": [{"text": "A", "finish": "end"}]}
        for identifier in ("ruin_names/98", "ruin_names/99", "ruin_names/144", "movie_recommendation/163")
    ]
    assert metrics(task, registry.protocol(task, "opencompass"), records, errors=0)["bad_golds"] == 3


def repeated(identifier: str, *correct: bool) -> list[dict[str, Any]]:
    return [record(identifier, correct=each) | {"repeat": repeat} for repeat, each in enumerate(correct)]


# Means over the repeats: 1, 0.5 and 0.25 of law; 0, 0.75 of logic.
REPEATED = [
    *repeated("law/val/0", True, True, True, True),
    *repeated("law/val/1", True, False, True, False),
    *repeated("law/val/2", False, False, False, True),
    *repeated("logic/val/0", False, False, False, False),
    *repeated("logic/val/1", True, True, False, True),
]


def test_the_score_of_an_item_is_the_mean_over_its_repeats(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    found = metrics(task, registry.protocol(task, "lm-eval"), REPEATED, errors=0)
    assert (found["n"], found["repeats"]) == (5, 4)
    assert {name: found["micro"][name] for name in ("correct", "n", "score")} == {"correct": 10, "n": 5, "score": 0.5}
    size = effective_size_of_repeats([1, 0.5, 0.25, 0, 0.75], 4)
    assert 5 < size < 20
    assert (found["low"], found["high"]) == wilson(0.5, size)
    assert [found["groups"][name]["n"] for name in ("law", "logic")] == [3, 2]


def test_groups_count_alike_however_often_their_items_are_asked(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    found = metrics(task, registry.protocol(task, "qwen"), REPEATED, errors=0)
    score = (7 / 12 + 3 / 8) / 2
    assert found["score"] == pytest.approx(score)
    law, logic = effective_size_of_repeats([1, 0.5, 0.25], 4), effective_size_of_repeats([0, 0.75], 4)
    assert (found["low"], found["high"]) == pytest.approx(wilson(score, effective_size([law, logic])))


def test_answers_are_counted_one_by_one_and_golds_item_by_item(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    protocol = registry.protocol(task, "qwen")
    records = [
        each | {"target": "", "verdicts": {"choice": {"correct": False, "extracted": None}}} for each in REPEATED
    ]
    found = metrics(task, protocol, records, errors=0)
    assert (found["unparsed"], found["ungraded"]) == (20, 5)
    assert submission(task, protocol, REPEATED[:4]) == submission(task, protocol, REPEATED[:1])


def test_asked_once_the_repeat_changes_nothing(entries: dict[str, Entry]) -> None:
    task = entries["ceval"].task
    protocol = registry.protocol(task, "qwen")
    once = [each | {"repeat": 0} for each in UNEQUAL]
    found = metrics(task, protocol, once, errors=0)
    assert found == metrics(task, protocol, UNEQUAL, errors=0)
    assert (found["low"], found["high"]) == wilson(0.625, effective_size([1, 4]))
    assert (found["micro"]["low"], found["micro"]["high"]) == clopper_pearson(2, 5)
