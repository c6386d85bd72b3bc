"""From verdicts to metrics: averages over items and over groups, and when there is no score."""

from typing import Any

import pytest

from qwen_eval import registry
from qwen_eval.registry import Entry
from qwen_eval.scoring import metrics, submission


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
