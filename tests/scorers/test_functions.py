"""Calls in a reply, as the models' own format and leniently: cases as data, and what must hold for any text."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.scorers.functions import tool_calls

LINES = (Path(__file__).parent / "functions.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [json.loads(line) for line in LINES]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3)), max_size=4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_case(case: dict[str, Any]) -> None:
    for reading in ("strict", "lenient"):
        found = tool_calls(case["output"], lenient=reading == "lenient")
        assert [[call.name, call.arguments] for call in found] == case[reading], reading


@given(calls)
def test_what_is_written_in_the_models_form_is_read_by_both(written: list[tuple[str, dict[str, Any]]]) -> None:
    blocks = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in written]
    text = "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)
    for lenient in (False, True):
        assert [(call.name, call.arguments) for call in tool_calls(text, lenient=lenient)] == written


@given(st.text() | st.text(alphabet='{}[]":,<tool_cal>/\nnameargumts '), st.booleans())
def test_no_text_makes_a_reading_raise(text: str, lenient: bool) -> None:
    tool_calls(text, lenient=lenient)


@pytest.mark.parametrize("piece", ["{", "[", '{"a":', "<tool_call>\n", '{"name": "f", "arguments": ', "</think>"])
def test_hostile_lengths_are_read_in_no_time(piece: str) -> None:
    for lenient in (False, True):
        tool_calls(piece * (20_000 // len(piece)), lenient=lenient)
