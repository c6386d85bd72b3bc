"""The number rules: cases as data, and properties that hold for every number and for every real gold."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.readers import read_json_lines
from qwen_eval.scorers.numbers import RULES, corrected

CASES = [
    json.loads(line) for line in (Path(__file__).parent / "numbers.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_case(case: dict[str, Any]) -> None:
    verdict = RULES[case["rule"]](case["output"], case["gold"])
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"]), case["why"]


def test_every_rule_has_sixty_cases() -> None:
    counts = {rule: sum(case["rule"] == rule for case in CASES) for rule in RULES}
    assert min(counts.values()) >= 60, counts


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["The answer is {}.", "{}", "\\boxed{{{}}}", "答案是{}。", "#### {}"])
)
def test_corrected_reads_every_integer_however_it_is_written(number: int, form: str) -> None:
    for written in (str(number), f"{number:,}", f"{number}.00"):
        verdict = corrected(form.format(written), f"#### {number}")
        assert verdict.correct, (form.format(written), verdict)


@given(st.text(max_size=200), st.sampled_from(sorted(RULES)))
def test_no_output_makes_a_rule_raise(output: str, rule: str) -> None:
    verdict = RULES[rule](output, "#### 1,234")
    assert not (verdict.correct and verdict.extracted is None)


@pytest.mark.parametrize("gold", ["", "no number", "####", "#### .", "#### 1.2.3", "####5"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_gold_makes_a_rule_raise(rule: str, gold: str) -> None:
    RULES[rule]("The answer is 5. #### 5", gold)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_hostile_lengths_are_read_in_no_time(rule: str) -> None:
    outputs = ["9" * 20_000, "1," * 20_000, "answer " * 5_000, "-" * 20_000, "Q:\n" * 5_000, "1/" + "9" * 20_000 + ".5"]
    outputs += ["#### " * 10_000, "The answer is " * 5_000, "答案" * 20_000, "\\boxed{" * 5_000, "answer of " * 5_000]
    for output in outputs:
        RULES[rule](output, "#### 5")


@pytest.mark.parametrize(
    ("rule", "reply", "right"),
    [
        ("corrected", "The answer is {}", 1319),
        ("qwen", "The answer is {}", 1303),  # 98.79 %: 14 golds with a comma, 2 negative ones
        ("qwen-chat", "The answer is {}", 1319),
        ("lm-eval-strict", "#### {}", 1319),
        ("lm-eval-cot-strict", "The answer is {}.", 1319),
    ],
)
def test_ceiling_of_a_perfect_reply_on_the_real_data(real_data: Path, rule: str, reply: str, right: int) -> None:
    golds = [row["answer"] for row in read_json_lines(real_data / "gsm8k" / "test.jsonl", ("question", "answer"))]
    correct = sum(RULES[rule](reply.format(gold.rpartition("#### ")[2]), gold).correct for gold in golds)
    assert correct == right


def test_ceiling_of_the_base_rule_without_commas(real_data: Path) -> None:
    golds = [row["answer"] for row in read_json_lines(real_data / "gsm8k" / "test.jsonl", ("question", "answer"))]
    correct = sum(RULES["qwen"](gold.rpartition("#### ")[2].replace(",", ""), gold).correct for gold in golds)
    assert correct == 1317  # 99.85 %: all but the two negative golds
