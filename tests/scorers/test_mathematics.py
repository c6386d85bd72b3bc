"""The rules of MATH: cases as data, measured ceilings on the real data, and what must hold for every answer."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.readers import read_json_lines
from qwen_eval.scorers.latex import same_answer
from qwen_eval.scorers.mathematics import RULES, boxed

CASES = [
    json.loads(line) for line in (Path(__file__).parent / "mathematics.jsonl").read_text(encoding="utf-8").splitlines()
]
# Every call of these asks the process for computer algebra; hypothesis would spend its time waiting for it.
QUICK = sorted(set(RULES) - {"math-verify", "lm-eval-minerva"})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}: {case['output'][:40]!r}")
def test_case(case: dict[str, Any]) -> None:
    verdict = RULES[case["rule"]](case["output"], case["gold"])
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"]), case["why"]


def test_every_rule_has_sixty_cases() -> None:
    counts = {rule: sum(case["rule"] == rule for case in CASES) for rule in RULES}
    assert min(counts.values()) >= 60, counts


MINERVA = "Final Answer: The final answer is ${}$. I hope it is correct."


@pytest.mark.parametrize(
    ("rule", "reply", "right"),
    [
        ("opencompass-2023", MINERVA, 4614),
        ("opencompass-2024", MINERVA, 4897),
        ("opencompass-2024", "It is $\\boxed{{{}}}$.", 5000),
        ("lm-eval-hendrycks", MINERVA, 5000),
        ("corrected", MINERVA, 5000),
        ("corrected", "It is $\\boxed{{{}}}$.", 5000),
        ("corrected", "The answer is ${}$.", 5000),
        ("corrected", "答案是${}$。", 5000),
        ("corrected", "**Answer:** \\({}\\)", 5000),
    ],
)
def test_ceiling_of_a_perfect_reply_on_the_real_data(golds: list[str], rule: str, reply: str, right: int) -> None:
    assert sum(RULES[rule](reply.format(gold), gold).correct for gold in golds) == right


def test_no_decimal_gold_can_be_scored_right_by_the_2023_rule(golds: list[str]) -> None:
    """The page's finding: it splits at full stops, and `\\left(` becomes `<(`."""
    wrong = [gold for gold in golds if not RULES["opencompass-2023"](MINERVA.format(gold), gold).correct]
    decimals = [gold for gold in golds if "." in gold]
    assert len(decimals) == 104
    assert set(decimals) <= set(wrong)
    assert {gold for gold in golds if "\\left" in gold} <= set(wrong)


@pytest.fixture
def golds(real_data: Path) -> list[str]:
    rows = read_json_lines(real_data / "math" / "test.jsonl", ("problem", "level", "type", "solution"))
    found = [boxed(row["solution"]) for row in rows]
    assert None not in found
    return [gold for gold in found if gold is not None]


@given(st.text(max_size=200), st.text(max_size=20), st.sampled_from(QUICK))
def test_no_output_and_no_gold_makes_a_rule_raise(output: str, gold: str, rule: str) -> None:
    RULES[rule](output, gold)


LATEX_PIECES = st.sampled_from(
    ["\\frac", "\\sqrt", "\\boxed{", "{", "}", "$", "1", "/", "=", ".", ",", " ", "\\text{ ", "x"]
)


@given(st.lists(LATEX_PIECES, max_size=14).map("".join), st.lists(LATEX_PIECES, max_size=8).map("".join))
def test_no_broken_latex_makes_a_rule_raise(output: str, gold: str) -> None:
    for rule in QUICK:
        RULES[rule](output, gold)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_hostile_lengths_are_read_in_no_time(rule: str) -> None:
    for piece in (
        "$",
        "\\boxed{",
        "answer is ",
        "final answer. ",
        "答案是",
        "(",
        "9",
        "1,",
        "{",
        "\\frac",
        "\\text{",
        "= ",
    ):
        RULES[rule](piece * (20_000 // len(piece)), "5")


# ------------------------------------------------------------------------------------------------------------ equality


@given(st.integers(-(10**7), 10**7), st.integers(1, 999))
def test_one_number_however_it_is_written(over: int, under: int) -> None:
    value = Fraction(over, under)
    sign = "-" if over < 0 else ""
    forms = [f"{over}/{under}", f"\\frac{{{over}}}{{{under}}}", f"{sign}\\dfrac{{{abs(over)}}}{{{under}}}"]
    forms += [
        str(value.numerator),
        f"{value.numerator:,}",
        f"{value.numerator}.0",
        f"{value.numerator}\\text{{ cm}}",
    ] * (value.denominator == 1)
    for form in forms:
        assert same_answer(form, forms[0]), form
    assert not same_answer(forms[0], f"{over + 1}/{under}")


@given(st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_matters_within_brackets_only(numbers: list[int], shuffle: Any) -> None:
    text = ",".join(map(str, numbers))
    mixed = list(numbers)
    shuffle.shuffle(mixed)
    other = ", ".join(map(str, mixed))
    assert same_answer(other, text)
    assert same_answer(f"({other})", f"({text})") is (mixed == numbers)
    assert not same_answer(f"[{text}]", f"({text})")
