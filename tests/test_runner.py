"""The runner: one path for every task. Order, batches, interruptions and resuming never change a result."""

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandboxes import FakeSandbox, FakeSessions

from qwen_eval import registry
from qwen_eval.commands.dry_run import shared_length
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import Interrupted, StoreError, UsageError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.plan import Plan, make_plan
from qwen_eval.registry import Entry
from qwen_eval.results import RunFolder, read_answers, read_records
from qwen_eval.runner import Helpers, Stop, run, stop_on_signal
from qwen_eval.sandbox import Seen
from qwen_eval.scoring import rule_names
from qwen_eval.task import Answer, Choose, Chosen, Dialogue, Failed, Generate, Generated, Request, Sample, Sampling

SAMPLING = Sampling(temperature=0.7, top_p=0.95, top_k=20, seed=5)


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
    sandbox: Any = FakeSandbox(**settings.pop("sandbox", {}))
    sessions: Any = FakeSessions(lambda step: Seen(messages=(), end="error"))
    with RunFolder(path, plan.manifest() | {"model": {"name": "m"}}, **settings) as folder:
        return run(
            plan, model, folder, stop=Stop(), helpers=Helpers(sandbox=sandbox, sessions=sessions), say=lambda line: None
        ), model


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


@pytest.mark.parametrize(("name", "first", "second"), [("gsm8k", "qwen", "qwen-chat"), ("hf_agent", "run", "chat")])
def test_a_run_names_the_splits_that_it_has_read_itself(
    mini: Callable[[str], Dataset], entries: dict[str, Entry], name: str, first: str, second: str
) -> None:
    def manifest(dataset: Dataset, protocol: str) -> dict[str, Any]:
        task = entries[name].task
        return make_plan(task, registry.protocol(task, protocol), dataset).manifest()

    shared = mini(name)
    beside = [manifest(shared, protocol) for protocol in (first, second)]
    assert beside == [manifest(mini(name), protocol) for protocol in (first, second)]
    assert beside[0]["dataset"] != beside[1]["dataset"]


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
@given(
    stops=st.lists(st.integers(1, 20), max_size=6),
    batch=st.integers(1, 9),
    dialogue=st.booleans(),
    repeats=st.sampled_from([1, 1, 3]),
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, dialogue: bool, repeats: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    plan = plan_of("gsm8k", "qwen-chat", sampling=SAMPLING if repeats > 1 else None, repeats=repeats)
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
    assert asked + model.asked == len(plan.samples) * repeats * (2 if dialogue else 1), "something was asked twice"
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


# ------------------------------------------------------------------------------------------------ sampling, repeats


def requests_of(plan: Plan, path: Path, **settings: Any) -> list[Generate]:
    """Run a plan and return what the model was asked, in order."""
    asked: list[Generate] = []

    def listens(request: Request) -> Answer | Failed:
        assert isinstance(request, Generate)
        asked.append(request)
        return script(request)

    finish(plan, path, script=listens, **settings)
    return asked


def seed_of(request: Generate) -> int:
    assert request.sampling is not None
    return request.sampling.seed


def test_every_repeat_is_asked_with_a_seed_of_its_own_and_has_a_record(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", limit=5, sampling=SAMPLING, repeats=3)
    asked = requests_of(plan, tmp_path)
    assert len({seed_of(request) for request in asked}) == 15
    assert {replace(request.sampling, seed=5) for request in asked if request.sampling} == {SAMPLING}
    beside = [asked[first : first + 3] for first in range(0, 15, 3)]
    assert all(len({request.prompt for request in requests}) == 1 for requests in beside)
    records = read_records(tmp_path)
    assert [(each["doc_id"], each["repeat"]) for each in records] == [
        (sample.id, repeat) for sample in plan.samples for repeat in range(3)
    ]
    texts = {each["outputs"][0]["text"] for each in records if each["doc_id"] == plan.samples[0].id}
    assert len(texts) > 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["n"], metrics["repeats"], metrics["micro"]["n"]) == (5, 3, 5)
    right = sum(each["verdicts"]["qwen-chat"]["correct"] for each in records)
    assert metrics["micro"]["correct"] == right
    assert metrics["score"] == right / 15


def test_the_hash_of_the_prompts_is_without_sampling_that_of_the_answers_with_it(tmp_path: Path) -> None:
    plans = [plan_of("gsm8k", "qwen-chat", limit=2), plan_of("gsm8k", "qwen-chat", limit=2, sampling=SAMPLING)]
    assert plans[0].prompts == plans[1].prompts
    hashes = []
    for number, plan in enumerate(plans):
        finish(plan, tmp_path / str(number))
        answers, _ = read_answers(tmp_path / str(number) / "answers.jsonl")
        hashes.append(([each["prompt_hash"] for each in read_records(tmp_path / str(number))], answers[0].request))
    assert hashes[0][0] == hashes[1][0]
    assert hashes[0][1] != hashes[1][1]


def test_what_is_drawn_depends_on_the_seed_of_the_run_and_the_place_of_the_answer_alone(tmp_path: Path) -> None:
    def seeds(name: str, sampling: Sampling = SAMPLING, batch: int = 1, **settings: Any) -> set[tuple[str, int]]:
        plan = replace(plan_of("gsm8k", "qwen-chat", sampling=sampling, **settings), ask=two_turns)
        return {(str(each.prompt), seed_of(each)) for each in requests_of(plan, tmp_path / name, batch=batch)}

    few = seeds("few", limit=4, repeats=2)
    assert len({seed for _, seed in few}) == 4 * 2 * 2
    assert few == seeds("other batches", limit=4, repeats=2, batch=7)
    assert few < seeds("more", limit=9, repeats=3)
    other = seeds("other seed", limit=4, repeats=2, sampling=replace(SAMPLING, seed=6))
    assert not {seed for _, seed in few} & {seed for _, seed in other}
    # Pinned: another way to derive it would change every run that is not finished.
    request = plan_of("gsm8k", "qwen", sampling=SAMPLING).with_sampling(Generate(prompt=""), Sample("7", {}, ""), 2, 1)
    assert isinstance(request, Generate)
    assert seed_of(request) == int(hashlib.sha256(b'[5,"7",2,1]').hexdigest()[:16], 16)


def test_log_probabilities_are_never_sampled() -> None:
    plan = plan_of("mmlu", "qwen", sampling=SAMPLING, repeats=3)
    assert (plan.sampling, plan.repeats) == (None, 1)
    assert plan.manifest() == plan_of("mmlu", "qwen").manifest()
    generating = plan_of("mmlu", "qwen-chat", sampling=SAMPLING, repeats=3)
    assert (generating.sampling, generating.repeats) == (SAMPLING, 3)
    choice = Choose(prompt="", options=("A", "B"))
    assert generating.with_sampling(choice, generating.samples[0], 0, 0) is choice


def test_more_repeats_extend_a_run(tmp_path: Path) -> None:
    def plan(limit: int, repeats: int) -> Plan:
        return plan_of("gsm8k", "qwen-chat", limit=limit, sampling=SAMPLING, repeats=repeats)

    finish(plan(6, 1), tmp_path / "run")
    _, model = finish(plan(6, 3), tmp_path / "run")
    assert model.asked == 12
    _, model = finish(plan(8, 4), tmp_path / "run")
    assert model.asked == 32 - 18
    finish(plan(8, 4), tmp_path / "at once")
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "at once")
    with pytest.raises(UsageError, match="repeats was 4 and is now 3"):
        finish(plan(8, 3), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sampling": replace(SAMPLING, temperature=1.0)}, "sampling.temperature was 0.7 and is now 1.0"),
        ({"sampling": replace(SAMPLING, top_p=1.0)}, "sampling.top_p was 0.95 and is now 1.0"),
        ({"sampling": replace(SAMPLING, top_k=0)}, "sampling.top_k was 20 and is now 0"),
        ({"sampling": None}, "sampling was {.*} and is now None"),
        ({"deterministic": True}, "deterministic was False and is now True"),
    ],
)
def test_other_decoding_is_another_run(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"limit": 2, "sampling": SAMPLING, "repeats": 2}
    finish(plan_of("gsm8k", "qwen-chat", **settings), tmp_path)
    with pytest.raises(UsageError, match=says):
        finish(plan_of("gsm8k", "qwen-chat", **{**settings, **changed}), tmp_path)


def test_a_repeat_that_fails_withholds_the_score_until_it_is_repaired(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", limit=4, sampling=SAMPLING, repeats=3)
    broken = requests_of(plan, tmp_path / "whole")[4]
    metrics, _ = finish(
        plan, tmp_path / "run", script=lambda request: Failed(reason="full") if request == broken else script(request)
    )
    assert metrics["failures"] == {f"{plan.samples[1].id}, repeat 1": "full"}
    assert (metrics["score"], metrics["errors"], metrics["n"], metrics["repeats"]) == (None, 1, 4, 3)
    assert len(read_records(tmp_path / "run")) == 11
    _, model = finish(plan, tmp_path / "run")
    assert model.asked == 1
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


def test_a_leaderboard_gets_the_first_repeat(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"split": "test", "sampling": SAMPLING}
    for repeats in (1, 3):
        metrics, _ = finish(
            plan_of("ceval", "opencompass-chat", repeats=repeats, **settings), tmp_path / str(repeats), script=letter
        )
        assert metrics["ungraded"] == metrics["n"] == 8
    forms = [(tmp_path / name / "submission.json").read_text() for name in ("1", "3")]
    assert forms[0] == forms[1]


def letter(request: Request) -> Answer:
    number = int(hashlib.sha256(repr(request).encode()).hexdigest(), 16)
    return Generated(text=f"答案是{'ABCD'[number % 4]}。", finish="end", prompt_tokens=5, new_tokens=4)


# ------------------------------------------------------------------------------------------------ deterministic runs


class RoundingModel(ScriptedModel):
    """A model whose every answer depends on what is computed beside it, and on all since it last forgot."""

    def __init__(self, *, batch: int, stop: Stop | None = None, after: int = 0) -> None:
        super().__init__(script, batch=batch)
        self.history = ""
        self.stop, self.after = stop, after

    def forget(self) -> None:
        assert not self._queue
        self.history = ""

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        self.history = hashlib.sha256(
            (self.history + repr([request for _, request in self._queue][: self.batch])).encode()
        ).hexdigest()
        rounded = int(self.history, 16) % 1000
        self.after -= 1
        if self.stop is not None:
            self.stop.asked = self.after <= 0
        return [(ticket, self.with_rounding(answer, rounded)) for ticket, answer in super().collect()]

    @staticmethod
    def with_rounding(answer: Answer | Failed, rounded: int) -> Answer | Failed:
        if isinstance(answer, Generated):
            return replace(answer, text=f"{answer.text}.{rounded}")
        assert isinstance(answer, Chosen)
        return replace(answer, logprobs=tuple(value + rounded / 1e6 for value in answer.logprobs))


def session(plan: Plan, path: Path, after: int, batch: int) -> None:
    """Run a plan on a rounding model that is stopped after so many collections; Interrupted where it was too early."""
    stop = Stop()
    with RunFolder(path, plan.manifest() | {"model": {"name": "m"}}) as folder:
        run(plan, RoundingModel(batch=batch, stop=stop, after=after), folder, stop=stop, say=lambda line: None)


def resumed(plan: Plan, path: Path, stops: Sequence[int], batch: int) -> None:
    """Run a plan in sessions that are stopped after so many collections, then to its end."""
    for after in stops:
        with suppress(Interrupted):
            session(plan, path, after, batch)
    session(plan, path, 10_000, batch)


def sessions_of(path: Path) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = json.loads((path / "timing.json").read_text())["sessions"]
    return sessions


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 samples: the 24 of a mini set make five, the last one short."""
    monkeypatch.setattr("qwen_eval.runner.CHUNK", 5)


@pytest.mark.usefixtures("small_chunks")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stops=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    batch=st.integers(1, 7),
    kind=st.sampled_from(["chosen", "generated", "dialogue", "repeats"]),
)
def test_a_deterministic_run_ends_alike_where_rounding_depends_on_the_batch(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, kind: str
) -> None:
    path = tmp_path_factory.mktemp("run")
    several: dict[str, Any] = {"sampling": SAMPLING, "repeats": 2} if kind == "repeats" else {}
    plan = plan_of(*("mmlu", "qwen") if kind == "chosen" else ("gsm8k", "qwen-chat"), deterministic=True, **several)
    if kind == "dialogue":
        plan = replace(plan, ask=two_turns)
    resumed(plan, path / "resumed", stops, batch)
    resumed(plan, path / "at once", [], batch)
    assert bytes_of(path / "resumed") == bytes_of(path / "at once")


@pytest.mark.usefixtures("small_chunks")
def test_without_it_a_resumed_run_may_differ(tmp_path: Path) -> None:
    plan = plan_of("mmlu", "qwen")
    resumed(plan, tmp_path / "resumed", [3], 2)
    resumed(plan, tmp_path / "at once", [], 2)
    assert bytes_of(tmp_path / "resumed") != bytes_of(tmp_path / "at once")


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_with_an_open_sample_is_asked_again_and_what_is_stored_stays(tmp_path: Path) -> None:
    plan = replace(plan_of("gsm8k", "qwen-chat", deterministic=True), ask=two_turns)
    # One chunk of five with two turns each, and of the second chunk five first turns and one second turn.
    with pytest.raises(Interrupted, match="stopped with 6 of 24 samples done"):
        session(plan, tmp_path, 16, 1)
    stored = (tmp_path / "answers.jsonl").read_bytes()
    assert stored.count(b"\n") == 16

    def fails(request: Request) -> Answer | Failed:
        return (
            Failed(reason="never") if calls.pop() else Generated(text="5", finish="end", prompt_tokens=1, new_tokens=1)
        )

    # The first turns of the second chunk fail this time; all that was stored is there to go on with.
    calls = [False] * 100 + [True] * 5
    metrics, model = finish(plan, tmp_path, script=fails, batch=1)
    assert model.asked == 48 - 10
    assert metrics["errors"] == 0
    counts = {name: sessions_of(tmp_path)[-1][name] for name in ("answered", "reused", "asked_again")}
    assert counts == {"answered": 32, "reused": 10, "asked_again": 6}
    after = (tmp_path / "answers.jsonl").read_bytes()
    assert after.startswith(stored)
    answers, _ = read_answers(tmp_path / "answers.jsonl")
    assert len(answers) == len({answer.key for answer in answers}) == 48
    first = {answer.sample: answer.answer.text for answer in answers if not answer.turn}  # type: ignore[union-attr]
    for record in read_records(tmp_path):
        assert record["outputs"][0]["text"] == first[record["doc_id"]]


@pytest.mark.usefixtures("small_chunks")
def test_a_deterministic_run_asks_chunk_after_chunk_and_a_finished_one_nothing(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", deterministic=True, sampling=SAMPLING, repeats=2)
    forgot: list[int] = []

    class Forgetful(ScriptedModel):
        def forget(self) -> None:
            forgot.append(self.asked)

    for expected in ([0, 10, 20, 30, 40], []):
        forgot.clear()
        with RunFolder(tmp_path, plan.manifest()) as folder:
            run(plan, Forgetful(script, batch=100), folder, stop=Stop(), say=lambda line: None)
        assert forgot == expected


@pytest.mark.parametrize(
    ("changed", "says"), [({"limit": 20}, "samples was 8 and is now 20"), ({"repeats": 3}, "repeats was 2")]
)
def test_a_deterministic_run_does_not_grow(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"limit": 8, "repeats": 2, "sampling": SAMPLING, "deterministic": True}
    finish(plan_of("gsm8k", "qwen-chat", **settings), tmp_path)
    with pytest.raises(UsageError, match=says):
        finish(plan_of("gsm8k", "qwen-chat", **{**settings, **changed}), tmp_path)


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
        plan.task,
        samples=lambda rows, split: [replace(each, gold=answers[each.id]) for each in plan.task.samples(rows, split)],
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
        if name == "perplexity":
            continue  # which asks for no text and has no score (test_perplexity.py)
        totals = []
        for protocol in entry.task.protocols:
            plan = make_plan(entry.task, protocol, mini(name))
            metrics, _ = finish(plan, tmp_path / plan.folder)
            totals.append(plan.total)
            assert metrics["rule"] == protocol.rule
            assert metrics["n"] == plan.total
            assert 0 <= metrics["score"] <= 1
            assert set(metrics["rules"]) == ({"choice"} if protocol.rule == "choice" else set(rule_names(entry.task)))
        assert min(totals) >= 20 or (entry.task.together and sum(totals) >= 20)
