"""The rules of tool calling, and the readers of ReAct transcripts: cases as data, Rouge-L against its definition."""

import json
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.prompts import Tool, react
from qwen_eval.scorers.react import LONGEST, Action, first_action, last_action, listed_tools, normalised
from qwen_eval.scorers.tool_calling import rouge_l, rules
from qwen_eval.task import Sample

CASES = [json.loads(line) for line in (Path(__file__).parent / "react.jsonl").read_text(encoding="utf-8").splitlines()]
RULES = rules(list)  # a token is a character: Rouge-L can be counted by hand
PROMPT = react(
    [
        Tool(name=name, name_for_human=name, description="用于测试。", parameters="[]")
        for name in ("air", "weather", "smart_home")
    ],
    "明天杭州天气如何？",
)
GOLD = (
    'Thought: 查。\nAction: weather\nAction Input: {"city": "杭州", "date": "明天"}\nObservation: 晴\nFinal Answer: 晴'
)


def sample(group: str, gold: str = GOLD) -> Sample:
    return Sample(f"{group}/0", {"prompt": PROMPT, "response": gold}, gold, group)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}, {case['group']}: {case['why']}")
def test_case(case: dict[str, Any]) -> None:
    verdict = RULES[case["rule"]](case["output"], sample(case["group"], case["gold"]))
    assert verdict is not None
    if case["group"] == "negative":
        assert verdict.measures == {"false positive error": (float(case["called"]),)}
        assert verdict.correct is not case["called"]
        return
    assert verdict.measures == {
        "tool selection": (float(case["selection"]),),
        "tool input": (pytest.approx(case["input"], abs=1e-6),),
        "valid call": (float(case["valid"]),),
        "argument exact match": (float(case["exact"]),),
    }
    assert verdict.correct is case["selection"]


def test_every_rule_has_its_cases() -> None:
    for rule, least in {"qwen": 80, "corrected": 80, "native": 16}.items():
        assert sum(case["rule"] == rule for case in CASES) >= least


def test_a_verdict_says_what_was_called() -> None:
    react = 'Thought: 查。\nAction: weather\nAction Input: {"date": "明天", "city": "杭州"}'
    native = '<tool_call>\n{"name": "weather", "arguments": {"date": "明天", "city": "杭州"}}\n</tool_call>'
    called = 'weather {"city": "杭州", "date": "明天"}'
    for name, said in {
        "qwen": (called, "no call", "no call", "no call"),
        "native": ("no call", called, "no call", None),
        "corrected": (called, called, "no call", None),
    }.items():
        found = [RULES[name](each, sample("positive")) for each in (react, native, "你好", "<tool_call>\n{")]
        assert tuple(each.extracted for each in found if each) == said


# --------------------------------------------------------------------------------------------------------- the readers


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("T\nAction: a\nAction Input: {}\nObservation: o", ("a", "{}"), ("a", "{}")),
        ("T\nAction: a\nAction Input: {}", ("a", "{}"), ("a", "{}")),
        ("T\nAction: a\nAction Input: 1\nObservation: o\nAction: b\nAction Input: 2", ("a", "1"), ("b", "2")),
        ("T\nAction: a\nAction Input: 1\nObservation: o\nThought: t", ("a", "1"), ("a", "1")),
        ("T\nAction: a\nAction Input: 1\nAction: b", ("a", "1\nAction: b"), None),
        ("Action: a\nAction Input: 1", ("a", "1"), None),
        ("T\nAction: a\nAction Input: ```py\n1\n```\n", ("a", "```py\n1\n```"), ("a", "```py\n1\n```")),
        ("T\nAction: a\nAction Input:", ("a", ""), ("a", "")),
        ("Observation: o\nAction: a\nAction Input: 1", ("a", ""), ("a", "1")),
        ("T\nAction: a", ("a", ""), None),
        ("no action", ("ion", ""), None),
        ("", ("", ""), None),
    ],
)
def test_readers(text: str, first: tuple[str, str], last: tuple[str, str] | None) -> None:
    assert first_action(text) == Action(*first)
    assert last_action(text) == (Action(*last) if last else None)


def test_the_listed_tools_are_those_of_the_format() -> None:
    assert listed_tools(PROMPT) == ("air", "weather", "smart_home")
    assert listed_tools(PROMPT.replace("[air,weather,", "[air, weather, ")) == ("air", "weather", "smart_home")
    assert listed_tools("你好") == ()


def test_an_input_is_read_up_to_a_length() -> None:
    assert normalised(f'"{"x" * (LONGEST - 2)}"')
    assert normalised(f'"{"x" * (LONGEST - 1)}"') == ""
    assert normalised("0x" + "f" * 9000) == ""  # an integer of more digits than Python writes


# ------------------------------------------------------------------------------------------------------------- Rouge-L


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, from its recursive definition."""

    @cache
    def length(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        return 1 + length(i + 1, j + 1) if one[i] == other[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@given(st.text("ab 城", max_size=12), st.text("ab 城", max_size=12))
def test_rouge_l_is_its_definition(reference: str, candidate: str) -> None:
    one, other = [[each for each in text if each != " "] for text in (reference, candidate)]
    common = longest_common(one, other)
    expected = 2 * common / (len(one) + len(other)) if common else 0.0
    assert rouge_l(reference, candidate, list) == pytest.approx(expected)


def test_rouge_l_over_qwens_tokens(with_vocabulary: None) -> None:
    from qwen_eval.scorers.tool_calling import RULES as ACROSS_QWENS_TOKENS

    output = GOLD.replace("杭州", "北京")
    found = ACROSS_QWENS_TOKENS["qwen"](output, sample("positive"))
    assert found is not None
    # Twelve tokens, of which one differs: {" city ":  " 杭州 ",  " date ":  " 明天 "}
    assert found.measures["tool input"] == (pytest.approx(11 / 12),)


# ------------------------------------------------------------------------------------------------------------- hostile

PIECES = (
    *(
        "Action:",
        "\nAction: ",
        "Action Input:",
        "\nAction Input: ",
        "\nObservation:",
        "\nFinal Answer: ",
        "\nQuestion: ",
    ),
    *(
        "weather",
        "无",
        "{",
        "}",
        "[",
        '"',
        ":",
        ",",
        "1",
        "```",
        "\n",
        " ",
        "*",
        "<tool_call>",
        "</tool_call>",
        "</think>",
    ),
    *('{"city": "杭州"}', '{"name": "weather", "arguments": {}}', "\\", "/*", "<|im_end|>", "\ud800"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from(["positive", "negative"]))
def test_no_output_makes_a_rule_raise(pieces: list[str], group: str) -> None:
    for rule in RULES.values():
        verdict = rule("".join(pieces), sample(group))
        assert verdict is not None
        assert all(0 <= value <= 1 for values in verdict.measures.values() for value in values)
        if group == "positive":
            scores = {name: values[0] for name, values in verdict.measures.items()}
            assert scores["argument exact match"] <= scores["tool selection"]
            assert verdict.extracted not in (None, "no call") or scores["valid call"] == 0


def test_hostile_lengths_are_read_in_little_time() -> None:
    choose = random.Random(5)
    units = ["".join(choose.choices(PIECES, k=3)) for _ in range(40)]
    for start in ("", "T\nAction: weather\nAction Input: ["):
        for unit in (*units, "1,", "[", "[1],", '{"a":', "'',"):
            output = start + unit * (40_000 // len(unit))
            began = time.process_time()
            for rule in RULES.values():
                rule(output, sample("positive"))
            assert time.process_time() - began < 5, repr(unit)
