"""The rules of BFCL: cases as data, references of the real data, and what must hold whatever the item is."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import as_native, as_prompted, reference

from qwen_eval.data import find_dataset
from qwen_eval.registry import Entry
from qwen_eval.scorers import literals
from qwen_eval.scorers.bfcl import RULES, escaped, right
from qwen_eval.scorers.call_syntax import java_calls, javascript_calls, python_calls
from qwen_eval.scorers.functions import Call
from qwen_eval.task import Sample

HERE = Path(__file__).parent
ITEMS: dict[str, Any] = json.loads((HERE / "bfcl_items.json").read_text(encoding="utf-8"))
CASES = [json.loads(line) for line in (HERE / "bfcl.jsonl").read_text(encoding="utf-8").splitlines()]


def sample(item: Mapping[str, Any]) -> Sample:
    gold = item["ground_truth"]
    row = {"function": json.dumps(item["function"])}
    return Sample("0", row, gold if isinstance(gold, str) else json.dumps(gold), item["category"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['rule']}, {case['item']}: {case['why']}")
def test_case(case: dict[str, Any]) -> None:
    verdict = RULES[case["rule"]](case["output"], sample(ITEMS[case["item"]]))
    assert (verdict.extracted, verdict.correct) == (case["extracted"], case["correct"])


def test_there_are_enough_cases_of_both_kinds() -> None:
    assert len(CASES) >= 80
    for rule in RULES:
        assert {case["correct"] for case in CASES if case["rule"] == rule} == {True, False}


# -------------------------------------------------------------------------------------------- what holds for every item

names = st.from_regex(r"x[a-z]{0,5}(\.x[a-z]{0,5})?", fullmatch=True)  # no keyword of Python begins so
values = {
    "string": st.text(min_size=1, max_size=8),
    "integer": st.integers(-99, 99),
    "float": st.floats(-9, 9, allow_nan=False),
    "boolean": st.booleans(),
}


@st.composite
def items(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A declaration of one to three functions, and a reference that calls each of them once."""
    functions, answers = [], []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique_by=escaped)):
        kinds = draw(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(sorted(values)), min_size=1))
        accepted = {each: draw(st.lists(values[kind], min_size=1, max_size=3)) for each, kind in kinds.items()}
        properties = {each: {"type": kind, "description": ""} for each, kind in kinds.items()}
        parameters = {"type": "dict", "properties": properties, "required": list(kinds)}
        functions.append({"name": name, "description": "", "parameters": parameters})
        answers.append({name: accepted})
    return functions, answers


@given(items(), st.randoms())
def test_a_reference_passes_in_any_order_and_in_either_form(
    item: tuple[list[dict[str, Any]], list[dict[str, Any]]], order: random.Random
) -> None:
    functions, answers = item
    calls = reference(functions, answers, "parallel_multiple")
    order.shuffle(calls)
    given_sample = sample({"function": functions, "ground_truth": answers, "category": "parallel_multiple"})
    assert right(calls, functions, answers, category="parallel_multiple")
    for rule, written in (
        ("native", as_native(calls)),
        ("lenient", as_native(calls)),
        ("prompted", as_prompted(calls)),
    ):
        assert RULES[rule](written, given_sample).correct, (rule, written)


@given(items(), st.data())
def test_what_is_missing_too_much_or_renamed_fails(
    item: tuple[list[dict[str, Any]], list[dict[str, Any]]], data: st.DataObject
) -> None:
    functions, answers = item
    calls = reference(functions, answers, "parallel_multiple")
    place = data.draw(st.integers(0, len(calls) - 1))
    call = calls[place]
    dropped = data.draw(st.sampled_from(sorted(call.arguments)))
    wrong = [
        [],
        calls[:place] + calls[place + 1 :],
        [*calls, call],
        [*calls[:place], Call(f"{call.name}_", call.arguments), *calls[place + 1 :]],
        [*calls[:place], Call(call.name, {**call.arguments, "unknown": 1}), *calls[place + 1 :]],
        [
            *calls[:place],
            Call(call.name, {name: value for name, value in call.arguments.items() if name != dropped}),
            *calls[place + 1 :],
        ],
        [*calls[:place], Call(call.name, {**call.arguments, dropped: [call.arguments[dropped]]}), *calls[place + 1 :]],
    ]
    for each in wrong:
        assert not right(each, functions, answers, category="parallel_multiple"), each


pieces = st.lists(st.sampled_from([*"[](){}'\"=,.:;+-*/\\ \n`", "f", "x", "1", "2.5", "true", "new ", "None", "é"]))


@given(st.text() | pieces.map("".join), st.sampled_from(sorted(RULES)), st.sampled_from(sorted(ITEMS)))
def test_no_reply_makes_a_rule_raise(output: str, rule: str, item: str) -> None:
    RULES[rule](output, sample(ITEMS[item]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.sampled_from(sorted(set(ITEMS) - {"none", "some"})))
def test_no_value_makes_the_checker_raise(data: st.DataObject, item: str) -> None:
    functions, answers = ITEMS[item]["function"], ITEMS[item]["ground_truth"]
    calls = reference(functions, answers, ITEMS[item]["category"])
    changed = [Call(each.name, {name: data.draw(json_values) for name in each.arguments}) for each in calls]
    right(changed, functions, answers, category=ITEMS[item]["category"])


# ------------------------------------------------------------------------------------------------------- hostile replies


@pytest.mark.parametrize(
    "piece", ["[", "(", "f(", "f(x=", "[[1], ", "{'a': ", "-", "1+", "'", "new A(", "`", "a.", "\n", "((int)"]
)
@pytest.mark.parametrize("read", [python_calls, java_calls, javascript_calls])
def test_hostile_lengths_are_read_in_no_time(read: Any, piece: str) -> None:
    read(piece * (20_000 // len(piece)))


@pytest.mark.parametrize(
    "piece", ["[", "[[1], ", "[1],", "[ ", "{", "{a: ", "a: b, ", "new ", "put(", "add(", "}}", " ", "\n"]
)
def test_hostile_literals_are_read_in_no_time(piece: str) -> None:
    filler = piece * (20_000 // len(piece))
    for text in (filler, f"[[{filler}", f"new Array([{filler}x", f"{{{filler}}}", f"new HashMap<>() {{{filler}"):
        for kind in ("dict", "array"):
            literals.javascript(text, kind, "integer")
        for kind in ("Array", "ArrayList", "HashMap"):
            literals.java(text, kind, "integer")


@pytest.mark.parametrize(
    "value", ["9**9**9**9", "'a'*10**12", "[0]*10**12", "1<<10**12", "'%999999999d' % 1", "(2**9999)**99"]
)
def test_arithmetic_that_would_never_end_is_no_call(value: str) -> None:
    assert python_calls(f"[f(x={value})]") == []


def test_nothing_of_a_reply_is_run() -> None:
    assert python_calls("[f(x=__import__('os').system('false') + 1)]") == []
    assert python_calls("[f(x=print('said'))]") == [Call("f", {"x": "print('said')"})]


# --------------------------------------------------------------------------------------------------------- the real data


def test_every_reference_passes_but_those_that_no_reply_meets(entries: dict[str, Entry], real_data: Path) -> None:
    task = entries["bfcl"].task
    dataset = find_dataset(task.data, tasks=entries["bfcl"].folder, data_dir=real_data, network=False)
    lost: dict[str, set[str]] = {rule: set() for rule in RULES}
    items = [each for each in task.samples(dataset, "test") if "relevance" not in each.group]
    for each in items:
        calls = reference(json.loads(each.row["function"]), json.loads(each.gold), each.group)
        replies = {"native": as_native(calls), "lenient": as_native(calls), "prompted": as_prompted(calls)}
        if "java" in each.group:
            del replies["prompted"]  # Python does not write it
        for rule, reply in replies.items():
            lost[rule] |= set() if RULES[rule](reply, each).correct else {each.id}
    assert len(items) == 2501
    assert lost["native"] == lost["lenient"] == set(task.bad_golds)
    assert lost["prompted"] == {each for each in task.bad_golds if "java" not in each}
