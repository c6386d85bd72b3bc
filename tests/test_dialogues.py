"""Dialogues that run steps of sessions, ask a judge, and are scored with more than right or wrong.

The task is a toy: the model names a number, a session doubles it, the model may go on once; a rule has the whole
transcript run again, another asks a judge about what was drawn.
"""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandboxes import FakeJudge, FakeSessions

from qwen_eval.data import Dataset
from qwen_eval.errors import Interrupted, UsageError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.paired import pair
from qwen_eval.plan import Plan, make_plan
from qwen_eval.report.tables import results as tables
from qwen_eval.results import RunFolder, checksum, read_answers, read_records
from qwen_eval.runner import Helpers, Stop, run
from qwen_eval.sandbox import Seen, Step
from qwen_eval.scoring import verdicts
from qwen_eval.stats import wilson
from qwen_eval.task import (
    Answer,
    Cell,
    Check,
    DatasetSpec,
    Dialogue,
    Failed,
    File,
    Generate,
    Generated,
    Judge,
    Judged,
    Measure,
    Observed,
    Protocol,
    Request,
    Rows,
    Sample,
    SplitSpec,
    Task,
    Verdict,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n made up").decode()
FILES = (File("a.csv", base64.b64encode(b"x\n1\n").decode()),)


def samples(dataset: Rows, split: str) -> list[Sample]:
    return [Sample(row["n"], row, row["n"], "even" if int(row["n"]) % 2 == 0 else "odd") for row in dataset.rows(split)]


def build(dataset: Rows, shots: int) -> Callable[[Sample], Dialogue]:
    def dialogue(sample: Sample) -> Dialogue:
        transcript, before, last = "", ("import math",), None
        for _ in range(1 + int(sample.gold) % 3):
            last = yield Generate(prompt=f"{sample.gold}: {transcript}")
            assert isinstance(last, Generated)
            seen = yield Cell(code=last.text, before=before, files=FILES)
            assert isinstance(seen, Observed)
            before = (*before, last.text)
            transcript += f"{last.text} -> {seen.end}\n"
        assert last is not None
        return Generated(text=transcript, finish=last.finish, prompt_tokens=1, new_tokens=1)

    return dialogue


def whole(output: str, sample: Sample, answers: object) -> Cell | None:
    return Cell(code=output, timeout=9) if sample.gold != "5" else None


def ran(output: str, sample: Sample, answer: Observed | Judged | None) -> Verdict:
    steps = 1 + int(sample.gold) % 3
    if answer is None:
        return Verdict(False, None, value=0.0, steps=steps, measures={"has code": (0.0,)})
    assert isinstance(answer, Observed)
    good = answer.end == "ok"
    return Verdict(
        good, output, value=1.0 if good else 0.3, steps=steps, measures={"has code": (1.0,), "step": (0.5,) * steps}
    )


def pictures(output: str, sample: Sample, answers: Any) -> Judge | None:
    images = [
        message.text
        for each in answers
        if isinstance(each, Observed)
        for message in each.messages
        if message.kind == "image"
    ]
    return Judge(prompt=sample.gold, images=tuple(images)) if sample.group == "even" else None


def says_right(output: str, sample: Sample, answer: Observed | Judged | None) -> Verdict | None:
    return Verdict("right" in answer.text, answer.text) if isinstance(answer, Judged) else None


TASK = Task(
    name="toy",
    title="Toy",
    paper="-",
    data=DatasetSpec(
        name="toy",
        licence="-",
        homepage="-",
        url="-",
        folders=("toy",),
        splits={"test": SplitSpec(file="t.jsonl", columns=("n",), rows=0, fingerprint="")},
    ),
    samples=samples,
    rules={"short": lambda output, sample: None if sample.gold == "1" else Verdict(len(output) < 20, output)},
    checks={"runs": Check(whole, ran), "seen": Check(pictures, says_right)},
    measures=(
        Measure(name="has code", title="Has code"),
        Measure(name="step", title="Step", scale=1.0),
        Measure(name="never", title="Never"),
    ),
    protocols=(
        Protocol(
            name="loop", chat=True, shots=0, shots_allowed=range(1), rule="runs", build=build, about="-", sessions=True
        ),
    ),
)


def plan_of(count: int = 9, **more: Any) -> Plan:
    rows = [{"n": str(number)} for number in range(count)]
    return make_plan(TASK, TASK.protocols[0], Dataset(TASK.data, "made up", lambda split: rows), **more)


def says(request: Request) -> Answer:
    assert isinstance(request, Generate)
    return Generated(text=f"print({checksum(request.prompt)[:3]})", finish="stop", prompt_tokens=3, new_tokens=2)


def session(step: Step) -> Seen:
    """What a step says follows from it alone; every third breaks, some draw."""
    number = int(checksum([step.code, list(step.before), len(step.files)]), 16)
    drawn = [("image", PNG)] if number % 2 else []
    return Seen(messages=(("stdout", f"{number % 100}\n"), *drawn), end=("ok", "ok", "error")[number % 3])


def word(request: Judge) -> str:
    return "right" if len(request.images) % 2 else "wrong"


def finish(plan: Plan, path: Path, *, judge: FakeJudge | None = None, **more: Any) -> tuple[Any, Any, Any]:
    model = ScriptedModel(more.pop("script", says), batch=more.pop("batch", 4))
    sessions = FakeSessions(more.pop("session", session), batch=more.pop("steps", 3))
    helpers = Helpers(sessions=sessions, judge=judge)  # type: ignore[arg-type]
    manifest = plan.manifest() | {"model": {"name": "m"}} | ({"judge_model": {"name": "j"}} if judge else {})
    with RunFolder(path, manifest) as folder:
        metrics = run(plan, model, folder, stop=more.get("stop", Stop()), helpers=helpers, say=lambda line: None)
    return metrics, model, sessions


def bytes_of(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("records.jsonl", "metrics.json")]


def test_every_turn_is_recorded_and_the_transcript_is_what_is_scored(tmp_path: Path) -> None:
    metrics, model, sessions = finish(plan_of(), tmp_path)
    records = read_records(tmp_path)
    for record in records:
        turns = 1 + int(record["target"]) % 3
        again = 0 if record["target"] == "5" else 1
        assert [("text" in each, "cell" in each) for each in record["outputs"]] == [
            *[(True, False), (False, True)] * turns,
            *[(False, True)] * again,
        ]
        assert record["verdicts"]["runs"]["extracted"] == (record["scored"] if again else None)
        assert "seen" not in record["verdicts"]  # nobody judged
        assert ("short" in record["verdicts"]) == (record["target"] != "1")
    assert model.asked == sum(1 + number % 3 for number in range(9))
    assert len(sessions.steps) == model.asked + 8
    assert len(set(sessions.closed)) == 9
    assert metrics["rules"]["short"]["n"] == 8
    assert metrics["rules"]["seen"] == {"correct": 0, "n": 0, "score": None, "low": None, "high": None}


def test_a_step_names_all_that_decides_it(tmp_path: Path) -> None:
    _, _, sessions = finish(plan_of(), tmp_path)
    by_key: dict[int, list[Step]] = {}
    for step in sessions.steps:
        by_key.setdefault(step.key, []).append(step)
    for steps in by_key.values():
        codes: tuple[str, ...] = ("import math",)
        for step in (each for each in steps if each.files):
            assert step.before == codes
            assert step.files == (("a.csv", b"x\n1\n"),)
            codes = (*codes, step.code)


def test_images_are_files_to_look_at_and_only_hashes_in_the_records(tmp_path: Path) -> None:
    finish(plan_of(), tmp_path)
    drawn = [
        message
        for record in read_records(tmp_path)
        for each in record["outputs"]
        for message in each.get("messages", ())
        if message["kind"] == "image"
    ]
    assert drawn
    assert {message["text"] for message in drawn} == {f"sha256:{checksum(PNG)}"}
    files = sorted((tmp_path / "images").iterdir())
    assert len(files) == len(drawn)
    assert {file.read_bytes() for file in files} == {base64.b64decode(PNG)}
    assert files[0].name.endswith("-fig-001.png")


@settings(max_examples=30, deadline=None)
@given(stops=st.lists(st.integers(1, 20), max_size=6), batch=st.integers(1, 9), steps=st.integers(1, 9))
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, steps: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    plan = plan_of()
    asked = 0
    for after in stops:
        stop, calls = Stop(), 0

        def counted(step: Step, after: int = after, stop: Stop = stop) -> Seen:
            nonlocal calls, asked
            calls, asked = calls + 1, asked + 1
            stop.asked = calls >= after
            return session(step)

        try:
            finish(plan, path, session=counted, stop=stop, batch=batch, steps=steps)
        except Interrupted:
            continue
        break
    _, _, last = finish(plan, path, batch=batch, steps=steps)
    uninterrupted = tmp_path_factory.mktemp("at once")
    _, _, alone = finish(plan, uninterrupted)
    assert bytes_of(path) == bytes_of(uninterrupted)
    # What was in flight when a run stopped may be asked again; what was answered never.
    assert asked + len(last.steps) >= len(alone.steps)
    answers, _ = read_answers(path / "answers.jsonl")
    assert len({each.key for each in answers}) == len(answers)


def test_a_judge_that_comes_later_is_all_that_is_asked(tmp_path: Path) -> None:
    without, _, _ = finish(plan_of(), tmp_path / "later")
    judge = FakeJudge(word)
    judged, model, sessions = finish(plan_of(judged=True), tmp_path / "later", judge=judge)
    assert (model.asked, len(sessions.steps)) == (0, 0)
    assert len(judge.asked) == 5
    finish(plan_of(judged=True), tmp_path / "at once", judge=FakeJudge(word))
    assert bytes_of(tmp_path / "later") == bytes_of(tmp_path / "at once")
    assert judged["rules"]["seen"]["n"] == 5
    assert judged["rules"]["runs"] == without["rules"]["runs"]


def test_the_judge_sees_what_the_dialogue_drew_and_nothing_that_a_rule_had_run(tmp_path: Path) -> None:
    judge = FakeJudge(word)
    finish(plan_of(judged=True), tmp_path, judge=judge)
    for request in judge.asked:
        record = next(each for each in read_records(tmp_path) if each["target"] == request.prompt)
        turns = 1 + int(record["target"]) % 3
        own = record["outputs"][: 2 * turns]
        drawn = sum(message["kind"] == "image" for each in own for message in each.get("messages", ()))
        assert len(request.images) == drawn
        assert record["verdicts"]["seen"]["correct"] == bool(drawn % 2)


def test_stored_answers_give_the_same_verdicts_again(tmp_path: Path) -> None:
    finish(plan_of(judged=True), tmp_path, judge=FakeJudge(word))
    answers: dict[str, list[Answer]] = {}
    for each in sorted(read_answers(tmp_path / "answers.jsonl")[0], key=lambda answer: answer.turn):
        answers.setdefault(each.sample, []).append(each.answer)
    known = {sample.id: sample for sample in plan_of().samples}
    for record in read_records(tmp_path):
        said = Generated(text=record["scored"], finish="end", prompt_tokens=0, new_tokens=0)
        found = verdicts(TASK, known[record["doc_id"]], said, answers[record["doc_id"]])
        assert {name: each.correct for name, each in found.items()} == {
            name: each["correct"] for name, each in record["verdicts"].items()
        }


def test_a_judge_that_never_said_a_word_can_be_replaced_or_left_out(tmp_path: Path) -> None:
    def named(judge: FakeJudge | None, name: str) -> dict[str, Any]:
        plan = plan_of(judged=judge is not None)
        manifest = plan.manifest() | {"model": {"name": "m"}} | ({"judge_model": {"name": name}} if judge else {})
        helpers = Helpers(sessions=FakeSessions(session), judge=judge)  # type: ignore[arg-type]
        with RunFolder(tmp_path, manifest) as folder:
            return run(plan, ScriptedModel(says), folder, stop=Stop(), helpers=helpers, say=lambda line: None)

    broken = FakeJudge(lambda request: Failed(reason="HTTP 500"))
    assert named(broken, "broken")["score"] is None
    assert named(None, "")["score"] is not None
    assert named(FakeJudge(word), "good")["rules"]["seen"]["n"] == 5
    with pytest.raises(UsageError, match=r"judge_model\.name was 'good'"):
        named(FakeJudge(word), "another")


def test_a_user_who_stops_is_heard_while_a_step_runs(tmp_path: Path) -> None:
    stop = Stop()

    class Endless(FakeSessions):
        def collect(self, timeout: float | None = None) -> Sequence[tuple[int, Seen]]:
            assert timeout is not None
            stop.asked = True
            return []

    helpers = Helpers(sessions=Endless(session))  # type: ignore[arg-type]
    with RunFolder(tmp_path, plan_of().manifest()) as folder, pytest.raises(Interrupted):
        run(plan_of(), ScriptedModel(says), folder, stop=stop, helpers=helpers, say=lambda line: None)


def test_what_fails_elsewhere_is_an_error_and_never_a_zero(tmp_path: Path) -> None:
    def lost(step: Step) -> Seen:
        return Seen(messages=(), end="failed: no worker") if "import math" in step.before else session(step)

    metrics, _, sessions = finish(plan_of(), tmp_path / "sessions", session=lost)
    assert (metrics["errors"], metrics["score"]) == (9, None)
    assert len(set(sessions.closed)) == 9
    silent = FakeJudge(lambda request: Failed(reason="the judge does not answer"))
    metrics, _, _ = finish(plan_of(judged=True), tmp_path / "judge", judge=silent)
    assert (metrics["errors"], metrics["score"]) == (5, None)
    assert set(metrics["failures"].values()) == {"the judge does not answer"}
    again, model, _ = finish(plan_of(judged=True), tmp_path / "judge", judge=FakeJudge(word))
    assert (again["errors"], model.asked) == (0, 0)


def test_an_item_weighs_as_many_steps_as_it_has(tmp_path: Path) -> None:
    metrics, _, _ = finish(plan_of(), tmp_path)
    weighed = [
        (record["verdicts"]["runs"]["value"], record["verdicts"]["runs"].get("steps", 1))
        for record in read_records(tmp_path)
    ]
    total = sum(steps for _, steps in weighed)
    score = sum(value * steps for value, steps in weighed) / total
    assert metrics["score"] == pytest.approx(score)
    size = total**2 / sum(steps**2 for _, steps in weighed)
    assert (metrics["low"], metrics["high"]) == pytest.approx(wilson(score, size))


def test_measures_are_over_the_steps_that_they_are_about(tmp_path: Path) -> None:
    metrics, _, _ = finish(plan_of(), tmp_path)
    measures = metrics["rules"]["runs"]["measures"]
    assert list(measures) == ["has code", "step"]
    assert (measures["has code"]["n"], measures["has code"]["score"]) == (9, pytest.approx(8 / 9))
    assert measures["step"]["n"] == sum(1 + number % 3 for number in range(9) if number != 5)
    assert measures["step"]["score"] == 0.5
    assert measures["step"]["low"] < 0.5 < measures["step"]["high"]
    metrics |= {"model": {"name": "m", "dtype": "-"}}
    table = tables([metrics])
    assert "Has code" in table
    assert "0.500 (" in table
    assert "Never" not in table
    rows = tables([metrics], format="csv")
    assert sum(",measure,has code," in line for line in rows.splitlines()) == 1
    json.loads(tables([metrics], format="json"))


def test_runs_are_paired_by_their_values_and_weights(tmp_path: Path) -> None:
    def other(request: Request) -> Answer:
        assert isinstance(request, Generate)
        return Generated(text=f"print({len(str(request.prompt))})", finish="stop", prompt_tokens=3, new_tokens=2)

    before, _, _ = finish(plan_of(), tmp_path / "one")
    after, _, _ = finish(plan_of(), tmp_path / "two", script=other)
    found = pair(tmp_path / "one", tmp_path / "two")
    assert found.difference.value == pytest.approx(after["score"] - before["score"])
    assert not found.difference.counted
    short = pair(tmp_path / "one", tmp_path / "two", rule="short")
    assert short.difference.n == 8


def test_words_of_different_judges_are_not_compared(tmp_path: Path) -> None:
    for name, judge in (("one", "j"), ("two", "j"), ("other", "k"), ("none", "")):
        plan = plan_of(judged=bool(judge))
        finish(plan, tmp_path / name, judge=FakeJudge(word) if judge else None)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        if judge:
            metrics["judge_model"] = {"name": judge}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    assert pair(tmp_path / "one", tmp_path / "two", rule="seen").difference.n == 5
    assert pair(tmp_path / "one", tmp_path / "none").difference.n == 9
    with pytest.raises(UsageError, match=r"judge_model\.name"):
        pair(tmp_path / "one", tmp_path / "other")
    with pytest.raises(UsageError, match="rule 'seen' scores in both"):
        pair(tmp_path / "one", tmp_path / "none", rule="seen")


def test_a_plan_without_sessions_or_a_judge_asks_neither() -> None:
    asked = [type(request).__name__ for sample in plan_of().samples for request in everything(plan_of(), sample)]
    assert "Judge" not in asked
    judged = [
        type(request).__name__ for sample in plan_of().samples for request in everything(plan_of(judged=True), sample)
    ]
    assert judged.count("Judge") == 5


def everything(plan: Plan, sample: Sample) -> list[Any]:
    """All that is asked of a sample."""
    asked, dialogue = [], plan.ask(sample)
    request = next(dialogue)
    try:
        while True:
            asked.append(request)
            answer: Any = Judged(judged="", text="right")
            if isinstance(request, Generate):
                answer = says(request)
            elif isinstance(request, Cell):
                answer = Observed(cell="", messages=(), end="ok")
            request = dialogue.send(answer)
    except StopIteration:
        return asked
