"""The small set of BFCL: every kind of item, in the format of the real files, each with one right answer that passes."""

import json
from collections import Counter
from collections.abc import Callable

import pytest
from references import as_native, as_prompted, reference

from qwen_eval.data import Dataset
from qwen_eval.registry import Entry
from qwen_eval.scorers import literals
from qwen_eval.task import Sample


@pytest.fixture
def samples(entries: dict[str, Entry], mini: Callable[[str], Dataset]) -> list[Sample]:
    return list(entries["bfcl"].task.samples(mini("bfcl"), "test"))


def test_there_are_two_items_of_every_category(samples: list[Sample], entries: dict[str, Entry]) -> None:
    groups = entries["bfcl"].task.data.groups
    assert Counter(each.group for each in samples) == dict.fromkeys(groups, 2)
    assert len({each.id for each in samples}) == len(samples) == 26
    assert all(each.id.startswith(f"{each.group}_") and each.gold for each in samples)


def test_declarations_are_in_the_format_of_the_real_ones(samples: list[Sample]) -> None:
    for each in samples:
        types = {"java": literals.JAVA_TYPES, "javascript": literals.JAVASCRIPT_TYPES}
        known = types.get(each.group.rpartition("_")[2], literals.PYTHON_TYPES)
        for function in json.loads(each.row["function"]):
            assert list(function) == ["name", "description", "parameters"]
            assert list(function["parameters"]) == ["type", "properties", "required"]
            assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
            for declared in function["parameters"]["properties"].values():
                assert declared["type"] in known
                assert declared["description"]


def test_references_name_declared_arguments_and_all_that_are_required(samples: list[Sample]) -> None:
    for each in samples:
        if "relevance" in each.group:
            continue
        declared = {function["name"]: function["parameters"] for function in json.loads(each.row["function"])}
        for answer in json.loads(each.gold):
            ((name, accepted),) = answer.items()
            assert set(declared[name]["required"]) <= set(accepted) <= set(declared[name]["properties"])
            assert all("" not in accepted[required] for required in declared[name]["required"])


def test_a_reference_passes_every_rule_and_silence_none(samples: list[Sample], entries: dict[str, Entry]) -> None:
    rules = entries["bfcl"].task.rules
    for each in samples:
        if "relevance" in each.group:
            continue
        calls = reference(json.loads(each.row["function"]), json.loads(each.gold), each.group)
        python = "java" not in each.group
        for rule, reply in (
            ("native", as_native(calls)),
            ("lenient", as_native(calls)),
            ("prompted", as_prompted(calls)),
        ):
            verdict, silent = rules[rule](reply, each), rules[rule]("", each)
            assert verdict is not None
            assert verdict.correct or (rule == "prompted" and not python), each.id
            assert silent is not None
            assert not silent.correct
