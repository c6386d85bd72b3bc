"""BFCL's prompts and averages: all items can be asked, and the measures are the leaderboard's numbers."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_eval import registry
from qwen_eval.commands.score import _summary
from qwen_eval.data import find_dataset
from qwen_eval.plan import make_plan
from qwen_eval.registry import Entry
from qwen_eval.scoring import metrics, stored
from qwen_eval.task import Chat, Generate, Sample, Verdict

# Single-turn items of the package, and their numbers on the leaderboard's page.
SIZES = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_the_measures_are_the_leaderboards_averages(entries: dict[str, Entry], seed: int) -> None:
    task, draw = entries["bfcl"].task, random.Random(seed)
    function = json.dumps([{"name": "f", "parameters": {"type": "dict", "properties": {}, "required": []}}])
    records: list[dict[str, Any]] = []
    right: dict[str, list[bool]] = {}
    for group, size in SIZES.items():
        ability = draw.random()
        for number in range(size):
            called = draw.random() < ability
            sample = Sample(f"{group}_{number}", {"function": function}, '[{"f": {}}]', group)
            output = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' if called else ""
            verdict = task.rules["native"](output, sample)
            assert verdict is not None
            right.setdefault(group, []).append(verdict.correct)
            records.append(
                {
                    "doc_id": sample.id,
                    "group": group,
                    "target": sample.gold,
                    "outputs": [],
                    "verdicts": {"native": stored(verdict)},
                }
            )
    accuracy = {group: mean(each) for group, each in right.items()}
    found = metrics(task, registry.protocol(task, "native"), records, errors=0)["rules"]["native"]["measures"]
    languages = mean([accuracy["simple_python"], accuracy["simple_java"], accuracy["simple_javascript"]])
    others = [accuracy["multiple"], accuracy["parallel"], accuracy["parallel_multiple"]]
    live = [
        each for group in ("simple", "multiple", "parallel", "parallel_multiple") for each in right[f"live_{group}"]
    ]
    expected = {
        "non_live": mean([languages, *others]),
        "live": mean(live),
        "irrelevance": mean([accuracy["irrelevance"], accuracy["live_irrelevance"]]),
        "relevance": accuracy["live_relevance"],
    }
    assert {name: each["score"] for name, each in found.items()} == pytest.approx(expected)
    assert all(each["low"] <= each["score"] <= each["high"] for each in found.values())
    assert found["irrelevance"]["n"] == SIZES["irrelevance"] + SIZES["live_irrelevance"]
    assert sum(each["n"] for each in found.values()) == len(records)


@pytest.mark.parametrize("protocol", ["native", "prompted"])
def test_every_item_can_be_asked(entries: dict[str, Entry], real_data: Path, protocol: str) -> None:
    entry = entries["bfcl"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    plan = make_plan(entry.task, registry.protocol(entry.task, protocol), dataset)
    requests = {sample.id: request for sample, request in plan.first_requests()}
    assert len(requests) == sum(SIZES.values()) == 3641
    for request in requests.values():
        assert isinstance(request, Generate)
        assert isinstance(request.prompt, Chat)
        assert (request.prompt.tools != "") == (protocol == "native")
        for tool in json.loads(request.prompt.tools or "[]"):
            assert list(tool) == ["type", "function"]
            assert "." not in tool["function"]["name"]
            assert tool["function"]["parameters"]["type"] == "object"
        assert request.prompt.turns[-1].role == "user"


def test_scored_outputs_are_summed_up_with_the_weights_of_the_leaderboard(entries: dict[str, Entry]) -> None:
    """One of two Java items is right, and no JavaScript item, which counts twice as often."""
    given = [("simple_java", 1.0), ("simple_java", 0.0), ("simple_javascript", 0.0)]
    found = [(group, Verdict(value == 1, "", measures={"non_live": (value,)})) for group, value in given]
    assert _summary(entries["bfcl"].task, found) == "1 of 3 correct (33.3 %), non_live 25.0 %"
