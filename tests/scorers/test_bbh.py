"""The rules of BIG-Bench Hard: cases as data, and the measured ceilings of ideal replies on the real data."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.data import find_dataset
from qwen_eval.registry import Entry
from qwen_eval.scorers.bbh import RULES
from qwen_eval.task import Sample

CASES = [json.loads(line) for line in (Path(__file__).parent / "bbh.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_case(case: dict[str, Any], entries: dict[str, Entry]) -> None:
    rule = entries["bbh"].task.rules[case["rule"]]
    verdict = rule(case["output"], Sample(f"{case['subtask']}/0", {}, case["gold"]))
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"]), case["why"]


def test_every_rule_has_sixty_cases() -> None:
    counts = {rule: sum(case["rule"] == rule for case in CASES) for rule in RULES}
    assert min(counts.values()) >= 60, counts


@pytest.fixture
def samples(entries: dict[str, Entry], real_data: Path) -> list[Sample]:
    entry = entries["bbh"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    return list(entry.task.samples(dataset, "test"))


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("opencompass", {"ruin_names": 2}),
        ("corrected", {}),
        # The stop at a capital Q takes option (Q) away.
        ("lm-eval", {"reasoning_about_colored_objects": 7}),
    ],
)
def test_ceiling_of_an_ideal_reply(
    samples: list[Sample], entries: dict[str, Entry], rule: str, wrong: dict[str, int]
) -> None:
    score = entries["bbh"].task.rules[rule]
    lost = Counter(
        each.group for each in samples if not score(f"Let's see.\nSo the answer is {each.gold}.", each).correct
    )
    assert lost == wrong


def test_the_bad_golds_are_all_there_are(samples: list[Sample], entries: dict[str, Entry]) -> None:
    """In a multiple-choice subtask a target that is no letter in brackets cannot be met by a letter."""
    task = entries["bbh"].task
    choice = task.categories["Multiple choice"]
    bad = {each.id for each in samples if each.group in choice and not (len(each.gold) == 3 and each.gold[0] == "(")}
    assert bad == set(task.bad_golds)
    assert Counter(each.group in choice for each in samples)[True] == 4074
    assert len(choice) == 17
    assert len(task.categories["Free form"]) == 10


@given(st.text(max_size=200), st.text(max_size=20), st.sampled_from(sorted(RULES)), st.booleans())
def test_no_output_and_no_gold_makes_a_rule_raise(output: str, gold: str, rule: str, multiple_choice: bool) -> None:
    RULES[rule](output, gold, multiple_choice)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_hostile_lengths_are_read_in_no_time(rule: str) -> None:
    for piece in ("answer is ", "the answer is ", "(", "Q:\n", "9", "** ", "[ ", "answer: \n", "\n"):
        for multiple_choice in (True, False):
            RULES[rule](piece * (20_000 // len(piece)), "5", multiple_choice)
