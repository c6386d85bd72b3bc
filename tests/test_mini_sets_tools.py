"""The small set of tool calling: every item has one right call, which its question and the tools' parameters determine."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.prompts import function_declarations, react, read_react
from qwen_eval.scorers.react import first_action, listed_tools
from qwen_eval.scorers.tool_calling import rules
from qwen_eval.task import Sample

FOLDER = Path(__file__).resolve().parents[1] / "tasks" / "_mini" / "tool_calling"


def rows(group: str) -> list[dict[str, str]]:
    text = (FOLDER / f"react_{group}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


POSITIVE, NEGATIVE = rows("positive"), rows("negative")
ALL = [*POSITIVE, *NEGATIVE]
RULES = rules(list)


def names(cases: list[dict[str, str]]) -> list[Any]:
    return [pytest.param(row, id=read_react(row["prompt"])[1]) for row in cases]


def test_counts() -> None:
    assert len(POSITIVE) == 60
    assert len(NEGATIVE) == 24
    assert len({first_action(row["response"]).name for row in POSITIVE}) == 37
    assert {path.name for path in FOLDER.iterdir()} == {"react_positive.jsonl", "react_negative.jsonl"}


@pytest.mark.parametrize("row", names(ALL))
def test_format(row: dict[str, str]) -> None:
    assert list(row) == ["prompt", "response"]
    tools, question = read_react(row["prompt"])
    assert row["prompt"] == react(tools, question)
    assert listed_tools(row["prompt"]) == tuple(tool.name for tool in tools)
    assert 1 <= len(tools) <= 5
    assert len({tool.name for tool in tools}) == len(tools)
    assert question == question.strip()
    assert re.search("[\u4e00-\u9fff]", question)
    for tool in tools:
        assert re.fullmatch("[a-z_]+", tool.name)
        assert tool.description.endswith("。")


@pytest.mark.parametrize("row", names(POSITIVE))
def test_the_golden_call_is_one_that_the_tool_takes(row: dict[str, str]) -> None:
    tools, question = read_react(row["prompt"])
    call = first_action(row["response"])
    functions = [each["function"] for each in json.loads(function_declarations(tools))]
    declared = {each["name"]: each["parameters"] for each in functions}
    check(json.loads(call.argument_text), declared[call.name], question)


TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
TIMES = r"\d{4}-\d\d-\d\d( \d\d:\d\d)?|\d\d:\d\d"


def check(value: Any, schema: dict[str, Any], question: str) -> None:
    """The value is one of the schema; a text that is no choice and no time stands in the question, word for word."""
    if schema["type"] == "object":
        assert isinstance(value, dict)
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"])
        assert value
        for name, each in value.items():
            check(each, schema["properties"][name], question)
    elif schema["type"] == "array":
        assert isinstance(value, list)
        assert value
        for each in value:
            check(each, schema["items"], question)
    else:
        assert type(value) in TYPES[schema["type"]]
        assert value in schema.get("enum", [value])
        assert not isinstance(value, int | float) or value >= schema.get("minimum", value)
        if isinstance(value, str) and "enum" not in schema:
            assert bool(re.fullmatch(TIMES, value)) == bool(re.search("YYYY|HH", schema.get("description", "")))
            assert value in question or re.fullmatch(TIMES, value)


@pytest.mark.parametrize("row", names(POSITIVE))
def test_dates_and_numbers_are_those_of_the_question(row: dict[str, str]) -> None:
    _, question = read_react(row["prompt"])
    argument = first_action(row["response"]).argument_text
    for year, month, day in re.findall(r"(\d{4})-(\d\d)-(\d\d)", argument):
        assert f"{year}年{int(month)}月{int(day)}日" in question
    for number in re.findall(r": (\d+(?:\.\d+)?)", re.sub(r'"(?:[^"\\]|\\.)*"(?!:)', "", argument)):
        assert number in question or number in SPELLED, number


# Numbers that a question says in words, checked by reading: 一间住三晚, 六个人, 一个半小时, 一份, 两张, 120万 …
SPELLED = {"1", "2", "3", "6", "8", "90"}


@pytest.mark.parametrize("rule", ["qwen", "corrected"])
@pytest.mark.parametrize("row", names(ALL))
def test_the_golden_transcript_is_perfect(row: dict[str, str], rule: str) -> None:
    group = "positive" if row in POSITIVE else "negative"
    verdict = RULES[rule](row["response"], Sample("0", row, row["response"], group))
    assert verdict is not None
    assert verdict.correct
    perfect = 0.0 if group == "negative" else 1.0
    assert all(values == (perfect,) for values in verdict.measures.values())


@pytest.mark.parametrize("rule", ["native", "corrected"])
@pytest.mark.parametrize("row", names(POSITIVE))
def test_a_native_call_of_the_golden_tool_is_perfect(row: dict[str, str], rule: str) -> None:
    call = first_action(row["response"])
    output = f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.argument_text}}}\n</tool_call>'
    verdict = RULES[rule](output, Sample("0", row, row["response"], "positive"))
    assert verdict is not None
    assert all(values == (1.0,) for values in verdict.measures.values())


@pytest.mark.parametrize("row", names(ALL))
def test_transcripts_end_in_an_answer(row: dict[str, str]) -> None:
    markers = re.findall(r"^(Thought|Action|Action Input|Observation|Final Answer): \S", row["response"], re.MULTILINE)
    called = ["Thought", "Action", "Action Input", "Observation", "Thought", "Final Answer"]
    assert markers == (called if row in POSITIVE else ["Thought", "Final Answer"])


def test_no_question_appears_twice() -> None:
    questions = [read_react(row["prompt"])[1] for row in ALL]
    assert len({"".join(re.findall(r"\w", question)) for question in questions}) == len(ALL)


def test_a_tool_is_the_same_wherever_it_is_offered() -> None:
    offered = {tool for row in ALL for tool in read_react(row["prompt"])[0]}
    assert len(offered) == len({tool.name for tool in offered}) == 37


def test_the_right_tool_stands_anywhere_and_is_offered_elsewhere_too() -> None:
    places: Counter[tuple[int, int]] = Counter()
    others: Counter[str] = Counter()
    for row in POSITIVE:
        offered = [tool.name for tool in read_react(row["prompt"])[0]]
        right = first_action(row["response"]).name
        places[len(offered), offered.index(right)] += 1
        others.update(set(offered) - {right})
    assert {size for size, _ in places} == {1, 2, 3, 4, 5}
    for size in (2, 3, 4):
        assert {place for found, place in places if found == size} == set(range(size))
    others.update(tool.name for row in NEGATIVE for tool in read_react(row["prompt"])[0])
    assert {first_action(row["response"]).name for row in POSITIVE} - set(others) == set()


def test_arguments_are_of_many_kinds() -> None:
    kinds = Counter(type(value).__name__ for row in POSITIVE for value in leaves(first_action(row["response"])))
    assert {"str", "int", "float", "bool"} == set(kinds)
    assert min(kinds.values()) >= 5
    texts = [first_action(row["response"]).argument_text for row in POSITIVE]
    assert sum("[" in text for text in texts) >= 10
    assert sum(text.count("{") > 1 for text in texts) >= 10
    schemas = [tool.parameters.startswith("{") for row in ALL for tool in read_react(row["prompt"])[0]]
    assert any(schemas)
    assert not all(schemas)


def leaves(call: Any) -> list[Any]:
    def walk(value: Any) -> list[Any]:
        if isinstance(value, dict | list):
            return [leaf for each in (value.values() if isinstance(value, dict) else value) for leaf in walk(each)]
        return [value]

    return walk(json.loads(call.argument_text))


def test_line_ends() -> None:
    for path in FOLDER.iterdir():
        assert b"\r" not in path.read_bytes()
