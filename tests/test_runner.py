"""The runner: one path for every task. Order, batches, interruptions and resuming never change a result."""

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval import registry
from qwen_eval.commands.dry_run import shared_length
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import Interrupted, StoreError, UsageError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.registry import Entry
from qwen_eval.results import RunFolder
from qwen_eval.runner import Plan, Stop, make_plan, run, stop_on_signal
from qwen_eval.task import Answer, Chosen, Dialogue, Failed, Generate, Generated, Request, Sample


def plan_of(name: str, protocol: str, **settings: Any) -> Plan:
    files = registry.find()
    entry = registry.load(name, files)
    dataset = find_dataset(entry.task.data, tasks=entry.folder, network=False)
    return make_plan(entry.task, registry.protocol(entry.task, protocol), dataset, **settings)


def script(request: Request) -> Answer | Failed:
    """An answer that depends on the request alone."""
    number = int(hashlib.sha256(repr(request).encode()).hexdigest(), 16)
    if isinstance(request, Generate):
        return Generated(text=f"The answer is {number % 50}", finish="end", prompt_tokens=5, new_tokens=4)
    return Chosen(logprobs=tuple(-float(number // 7**index % 7) for index in range(4)), prompt_tokens=5)


def finish(plan: Plan, path: Path, **settings: Any) -> tuple[dict[str, Any], ScriptedModel]:
    model = ScriptedModel(settings.pop("script", script), batch=settings.pop("batch", 4))
    with RunFolder(path, plan.manifest() | {"model": {"name": "m"}}, **settings) as folder:
        return run(plan, model, folder, stop=Stop(), say=lambda line: None), model


def bytes_of(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("records.jsonl", "metrics.json")]


@pytest.mark.parametrize("name", ["gsm8k@qwen", "gsm8k@qwen-chat", "mmlu@qwen", "mmlu@opencompass-chat"])
def test_batch_size_never_changes_a_result(tmp_path: Path, name: str) -> None:
    plan = plan_of(*name.split("@"))
    for batch in (1, 3, 100):
        finish(plan, tmp_path / str(batch), batch=batch)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "3") == bytes_of(tmp_path / "100")


def test_the_same_command_again_asks_nothing(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen")
    first, _ = finish(plan, tmp_path)
    again, model = finish(plan, tmp_path)
    assert model.asked == 0
    assert again == first


def test_a_larger_limit_extends_a_run(tmp_path: Path) -> None:
    finish(plan_of("mmlu", "qwen", limit=8), tmp_path / "run")
    _, model = finish(plan_of("mmlu", "qwen", limit=20), tmp_path / "run")
    assert model.asked == 12
    finish(plan_of("mmlu", "qwen", limit=20), tmp_path / "at once")
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "at once")


def two_turns(sample: Sample) -> Dialogue:
    first = yield Generate(prompt=sample.row["question"])
    assert isinstance(first, Generated)
    second = yield Generate(prompt=sample.row["question"] + first.text + " Sure?")
    return second


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(1, 20), max_size=6), batch=st.integers(1, 9), dialogue=st.booleans())
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, dialogue: bool
) -> None:
    path = tmp_path_factory.mktemp("run")
    plan = plan_of("gsm8k", "qwen-chat")
    if dialogue:
        plan = replace(plan, ask=two_turns)
    asked = 0
    for after in stops:
        stop, calls = Stop(), 0

        def counted(request: Request, after: int = after, stop: Stop = stop) -> Answer | Failed:
            nonlocal calls, asked
            calls, asked = calls + 1, asked + 1
            stop.asked = stop.asked or calls >= after
            return script(request)

        model = ScriptedModel(counted, batch=batch)
        with RunFolder(path / "a", plan.manifest() | {"model": {"name": "m"}}) as folder:
            try:
                run(plan, model, folder, stop=stop, say=lambda line: None)
            except Interrupted:
                continue
    _, model = finish(plan, path / "a", batch=batch)
    finish(plan, path / "b", batch=1)
    assert asked + model.asked == len(plan.samples) * (2 if dialogue else 1), "something was asked twice"
    assert bytes_of(path / "a") == bytes_of(path / "b")


def test_an_infrastructure_failure_is_an_error_never_a_zero(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat")
    broken = plan.samples[3]

    def fails(request: Request) -> Answer | Failed:
        assert isinstance(request, Generate)
        return Failed(reason="too long") if broken.row["question"] in str(request.prompt) else script(request)

    metrics, _ = finish(plan, tmp_path, script=fails)
    assert metrics["score"] is None
    assert (metrics["errors"], metrics["n"]) == (1, len(plan.samples) - 1)
    assert metrics["failures"] == {broken.id: "too long"}
    repaired, model = finish(plan, tmp_path)
    assert model.asked == 1
    assert repaired["score"] is not None


def test_answers_of_another_prompt_are_refused(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat")
    finish(plan, tmp_path)
    with pytest.raises(StoreError, match="belongs to another prompt"):
        finish(replace(plan, ask=two_turns), tmp_path)


def test_unparsed_truncated_and_empty_answers_are_counted(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", limit=3)
    texts = iter(["no number", "", "18 and on and on"])
    finishes = iter(["end", "end", "length"])

    def speaks(request: Request) -> Answer:
        return Generated(text=next(texts), finish=next(finishes), prompt_tokens=1, new_tokens=1)  # type: ignore[arg-type]

    metrics, _ = finish(plan, tmp_path, script=speaks, batch=1)
    assert (metrics["unparsed"], metrics["empty"], metrics["truncated"]) == (2, 1, 1)


def test_the_first_signal_asks_to_stop_and_the_second_stops_at_once() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal(said.append) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# ------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (8, 8), (99, 24), (0.1, 3), (1.0, 24), (None, 24)])
def test_limits(limit: int | float | None, count: int) -> None:
    assert len(plan_of("gsm8k", "qwen", limit=limit).samples) == count


def test_a_limit_is_spread_over_subjects_and_a_larger_one_contains_it() -> None:
    plans = [plan_of("mmlu", "qwen", limit=limit) for limit in (4, 10, 24)]
    assert len({sample.group for sample in plans[0].samples}) == 4
    ids = [{sample.id for sample in plan.samples} for plan in plans]
    assert ids[0] < ids[1] < ids[2]


@pytest.mark.parametrize(("protocol", "most"), [("qwen", 2), ("lm-eval", 4)])
def test_a_limit_takes_groups_equally_or_by_size_as_the_score_averages(
    real_data: Path, entries: dict[str, Entry], protocol: str, most: int
) -> None:
    entry = entries["ceval"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    plan = make_plan(entry.task, registry.protocol(entry.task, protocol), dataset, limit=104)
    counts = Counter(sample.group for sample in plan.samples)
    assert max(counts.values()) == most
    sizes = Counter(sample.group for sample in entry.task.samples(dataset, "val"))
    if protocol == "lm-eval":
        assert all(abs(counts[group] - 104 * size / 1346) < 1.5 for group, size in sizes.items())


def test_another_split_has_a_folder_and_ids_of_its_own() -> None:
    plan = plan_of("ceval", "qwen", split="test")
    assert plan.folder == "ceval@qwen-test-mini"
    assert plan_of("ceval", "qwen").folder == "ceval@qwen-mini"
    assert all(sample.id.split("/")[1] == "test" and not sample.gold for sample in plan.samples)
    with pytest.raises(UsageError, match="--split dev: ceval is evaluated on val or test"):
        plan_of("ceval", "qwen", split="dev")


def test_a_whole_run_of_a_test_split_writes_what_the_leaderboard_takes(tmp_path: Path) -> None:
    plan = plan_of("ceval", "qwen", split="test")
    metrics, _ = finish(plan, tmp_path / "whole")
    assert metrics["score"] is None
    assert metrics["ungraded"] == plan.total == 8
    form = json.loads((tmp_path / "whole" / "submission.json").read_text())
    assert {subject: list(rows) for subject, rows in form.items()} == {
        subject: ["0", "1"] for subject in plan.task.data.mini_groups
    }
    assert {letter for rows in form.values() for letter in rows.values()} <= set("ABCD")
    finish(plan_of("ceval", "qwen", split="test", limit=7), tmp_path / "part")
    finish(plan_of("ceval", "qwen"), tmp_path / "val")
    assert not (tmp_path / "part" / "submission.json").exists()
    assert not (tmp_path / "val" / "submission.json").exists()


def test_answers_that_come_later_score_a_run_without_asking_again(tmp_path: Path, entries: dict[str, Entry]) -> None:
    plan = plan_of("ceval", "qwen", split="test")
    finish(plan, tmp_path)
    answers = {sample.id: "A" for sample in plan.samples}
    task = replace(
        plan.task, samples=lambda rows, split: [replace(each, gold=answers[each.id]) for each in plan.samples]
    )
    graded = make_plan(task, plan.protocol, plan.dataset, split="test")
    metrics, model = finish(graded, tmp_path)
    assert model.asked == 0
    assert metrics["ungraded"] == 0
    assert 0 <= metrics["score"] <= 1


def test_the_prompt_hash_does_not_depend_on_the_limit_but_on_every_prompt() -> None:
    assert plan_of("gsm8k", "qwen", limit=2).prompts == plan_of("gsm8k", "qwen").prompts
    assert plan_of("gsm8k", "qwen", shots=3).prompts != plan_of("gsm8k", "qwen").prompts


@pytest.mark.parametrize(
    ("name", "shots"), [("gsm8k@qwen", 9), ("gsm8k@qwen-chat", 1), ("gsm8k@lm-eval-cot", 4), ("mmlu@qwen", 6)]
)
def test_shots_a_prompt_is_not_defined_for_are_refused(name: str, shots: int) -> None:
    with pytest.raises(UsageError, match=f"--shots {shots}"):
        plan_of(*name.split("@"), shots=shots)


def test_the_published_cut_is_applied_on_request_only() -> None:
    for on in (False, True):
        _, request = next(plan_of("mmlu", "qwen", published_truncation=on).first_requests())
        cut = request.cut  # type: ignore[union-attr]
        assert (cut is not None) is on


@given(st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), max_size=12))
def test_shared_length_is_the_number_of_distinct_prefixes(prompts: Sequence[tuple[int, ...]]) -> None:
    prefixes = {prompt[:length] for prompt in prompts for length in range(1, len(prompt) + 1)}
    assert shared_length(prompts) == len(prefixes)


def test_every_protocol_of_every_task_runs_on_its_mini_set(
    tmp_path: Path, entries: dict[str, Entry], mini: Callable[[str], Dataset]
) -> None:
    for name, entry in entries.items():
        for protocol in entry.task.protocols:
            plan = make_plan(entry.task, protocol, mini(name))
            metrics, _ = finish(plan, tmp_path / plan.folder)
            assert metrics["rule"] == protocol.rule
            assert metrics["n"] == plan.total >= 20
            assert 0 <= metrics["score"] <= 1
            assert set(metrics["rules"]) == ({"choice"} if protocol.rule == "choice" else set(entry.task.rules))
