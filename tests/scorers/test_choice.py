"""The letter rules: cases as data, and what the log-probability rule does with ties."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.scorers.choice import first_capital, most_likely, qwen_ceval, qwen_mmlu

HERE = Path(__file__).parent
MMLU, CEVAL = (
    [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("choice", "ceval")
)
LETTERS = ("A", "B", "C", "D")


def checked(case: dict[str, Any], rule: Any, row: dict[str, str]) -> None:
    if case["rule"] == "qwen-chat":
        verdict = rule(case["output"], case["gold"], row)
    else:
        verdict = first_capital(case["output"], case["gold"])
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"]), case["why"]


@pytest.mark.parametrize("case", MMLU, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_mmlu_case(case: dict[str, Any]) -> None:
    checked(case, qwen_mmlu, case["options"])


@pytest.mark.parametrize("case", CEVAL, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_ceval_case(case: dict[str, Any]) -> None:
    checked(case, qwen_ceval, {"question": case["question"], **case["options"]})


@pytest.mark.parametrize("cases", [MMLU, CEVAL], ids=["mmlu", "ceval"])
def test_every_rule_has_sixty_cases(cases: list[dict[str, Any]]) -> None:
    assert min(sum(case["rule"] == rule for case in cases) for rule in ("qwen-chat", "first-capital")) >= 60


options = st.fixed_dictionaries({name: st.text(max_size=12) for name in ("question", *LETTERS)})


@given(st.text(max_size=120), options)
def test_the_chat_rules_give_every_output_a_letter(output: str, row: dict[str, str]) -> None:
    assert qwen_mmlu(output, "A", row).extracted in LETTERS
    assert qwen_ceval(output, "A", row).extracted in LETTERS


@pytest.mark.parametrize(
    "form", ["{}", "{}。", "答案是{}。", "答案：{}", "选{}", "故选{}。", "正确答案是{}选项", "（{}）", "{}项正确"]
)
@given(gold=st.sampled_from(LETTERS))
def test_a_plain_chinese_reply_reads_as_its_letter(form: str, gold: str) -> None:
    row = {"question": "下列说法正确的是____。", "A": "甲说", "B": "乙说", "C": "丙说", "D": "丁说"}
    assert qwen_ceval(form.format(gold), gold, row).correct


@given(st.lists(st.sampled_from([-3.0, -2.0, -1.0]), min_size=4, max_size=4))
def test_the_most_likely_option_is_the_earliest_of_the_best(logprobs: list[float]) -> None:
    best = most_likely(logprobs, "A", LETTERS).extracted
    assert best is not None
    index = LETTERS.index(best)
    assert logprobs[index] == max(logprobs)
    assert all(value < logprobs[index] for value in logprobs[:index])
