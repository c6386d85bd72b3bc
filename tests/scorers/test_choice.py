"""The letter rules: cases as data, and what the log-probability rule does with ties."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.scorers.choice import first_capital, most_likely, qwen_mmlu

CASES = [json.loads(line) for line in (Path(__file__).parent / "choice.jsonl").read_text(encoding="utf-8").splitlines()]
LETTERS = ("A", "B", "C", "D")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_case(case: dict[str, Any]) -> None:
    if case["rule"] == "qwen-chat":
        verdict = qwen_mmlu(case["output"], case["gold"], case["options"])
    else:
        verdict = first_capital(case["output"], case["gold"])
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"]), case["why"]


options = st.fixed_dictionaries({letter: st.text(max_size=12) for letter in LETTERS})


@given(st.text(max_size=120), options)
def test_the_chat_rule_gives_every_output_a_letter(output: str, options: dict[str, str]) -> None:
    assert qwen_mmlu(output, "A", options).extracted in LETTERS


@given(st.lists(st.sampled_from([-3.0, -2.0, -1.0]), min_size=4, max_size=4))
def test_the_most_likely_option_is_the_earliest_of_the_best(logprobs: list[float]) -> None:
    best = most_likely(logprobs, "A", LETTERS).extracted
    assert best is not None
    index = LETTERS.index(best)
    assert logprobs[index] == max(logprobs)
    assert all(value < logprobs[index] for value in logprobs[:index])
