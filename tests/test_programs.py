"""Code tasks: outputs become programs, the sandbox's answers verdicts. Nothing here runs a program."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sandboxes import FakeSandbox, by_hash

from qwen_eval import registry
from qwen_eval.commands.run import run as run_command
from qwen_eval.commands.score import score as score_command
from qwen_eval.data import mini_dataset
from qwen_eval.errors import Interrupted, SandboxError, StoreError, UsageError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.plan import Plan, make_plan
from qwen_eval.results import RunFolder, read_answers, read_records
from qwen_eval.runner import Helpers, Stop, run
from qwen_eval.sandbox import Program
from qwen_eval.scoring import program_hash, rule_names
from qwen_eval.task import Answer, Executed, Failed, Generate, Generated, Request, Sampling

SAMPLING = Sampling(temperature=0.8, seed=3)


def plan_of(name: str = "humaneval", protocol: str = "standard", **settings: Any) -> Plan:
    entry = registry.load(name, registry.find())
    dataset = mini_dataset(entry.task.data, entry.folder)
    return make_plan(entry.task, registry.protocol(entry.task, protocol), dataset, **settings)


def writes(request: Request) -> Answer:
    """A completion that depends on the request alone, of several lines, so that the rules cut it differently."""
    number = sum(repr(request).encode()) % 97
    return Generated(
        text=f"    a = {number}\n\n    return a\n",
        finish="end" if number % 2 else "stop",
        prompt_tokens=3,
        new_tokens=9,
    )


def finish(
    plan: Plan, path: Path, sandbox: FakeSandbox | None = None, *, batch: int = 4, stop: Stop | None = None
) -> tuple[dict[str, Any], ScriptedModel, FakeSandbox]:
    model, box = ScriptedModel(writes, batch=batch), sandbox or FakeSandbox()
    with RunFolder(path, plan.manifest()) as folder:
        metrics = run(plan, model, folder, stop=stop or Stop(), helpers=Helpers(sandbox=box), say=lambda line: None)  # type: ignore[arg-type]
    return metrics, model, box


def bytes_of(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("records.jsonl", "metrics.json")]


# ---------------------------------------------------------------------------------------------------------- running


def test_one_output_is_run_once_for_every_distinct_program_and_scored_by_every_rule(tmp_path: Path) -> None:
    plan = plan_of()
    metrics, model, box = finish(plan, tmp_path)
    assert model.asked == plan.total
    assert set(metrics["rules"]) == set(rule_names(plan.task))
    for sample, record in zip(plan.samples, read_records(tmp_path), strict=True):
        said, *ran = record["outputs"]
        programs = {name: rule(said["text"], sample) for name, rule in plan.task.programs.items()}
        assert len(ran) == len(set(programs.values())) < len(programs)
        outcomes = {each["program"]: each for each in ran}
        for name, program in programs.items():
            verdict = record["verdicts"][name]
            assert verdict["extracted"] == program.source
            assert verdict["correct"] == outcomes[program_hash(program)]["passed"]
            asked = Program(**{key: value for key, value in asdict(program).items() if key != "tests"})
            assert verdict["correct"] == (by_hash(asked) == "passed")
    assert len(box.programs) == sum(len(record["outputs"]) - 1 for record in read_records(tmp_path))
    assert {program.entry_point for program in box.programs} == {sample.row["entry_point"] for sample in plan.samples}


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "humaneval_plus", "mbpp_plus"])
def test_neither_batches_nor_the_order_of_outcomes_change_a_result(tmp_path: Path, name: str) -> None:
    plan = plan_of(name)
    for batch, programs in ((1, 1), (4, 3), (100, 100)):
        finish(plan, tmp_path / str(batch), FakeSandbox(batch=programs), batch=batch)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "4") == bytes_of(tmp_path / "100")


def test_the_same_command_again_neither_asks_nor_runs(tmp_path: Path) -> None:
    first, _, _ = finish(plan_of("mbpp"), tmp_path)
    again, model, box = finish(plan_of("mbpp"), tmp_path)
    assert (model.asked, box.programs) == (0, [])
    assert again == first


@settings(max_examples=25, deadline=None)
@given(
    stops=st.lists(st.integers(1, 30), max_size=5),
    batch=st.integers(1, 9),
    programs=st.integers(1, 9),
    repeats=st.sampled_from([1, 3]),
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int, programs: int, repeats: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    plan = plan_of("mbpp", sampling=SAMPLING if repeats > 1 else None, repeats=repeats)
    asked = 0

    class Stopping(FakeSandbox):
        """Stops the run after so many outcomes; what is in flight then is lost."""

        left, stop = 0, Stop()

        def collect(self, timeout: float | None = None) -> Sequence[tuple[int, Any]]:
            outcomes = super().collect(timeout)
            self.left -= len(outcomes)
            self.stop.asked = self.left <= 0
            return outcomes

    for after in stops:
        box = Stopping(batch=programs)
        box.left, box.stop = after, Stop()
        model = ScriptedModel(writes, batch=batch)
        with RunFolder(path / "a", plan.manifest()) as folder, suppress(Interrupted):
            run(plan, model, folder, stop=box.stop, helpers=Helpers(sandbox=box), say=lambda line: None)  # type: ignore[arg-type]
        asked += model.asked
    _, model, box = finish(plan, path / "a", batch=batch)
    finish(plan, path / "b", batch=1)
    assert asked + model.asked == plan.total * repeats, "something was asked twice"
    answers, _ = read_answers(path / "a" / "answers.jsonl")
    assert max(Counter(answer.key for answer in answers).values()) == 1, "something that was run was run again"
    assert bytes_of(path / "a") == bytes_of(path / "b")


def test_a_sandbox_that_fails_is_an_error_never_a_zero(tmp_path: Path) -> None:
    plan = plan_of("mbpp")
    name = plan.task.programs["standard"]("", plan.samples[5]).entry_point

    def breaks(program: Program) -> str:
        return "error: no memory" if program.entry_point == name else by_hash(program)

    metrics, _, _ = finish(plan, tmp_path, FakeSandbox(breaks))
    assert metrics["failures"] == {plan.samples[5].id: "error: no memory"}
    assert (metrics["score"], metrics["errors"]) == (None, 1)
    assert metrics["pass_at"] == {"1": {"score": None, "low": None, "high": None}}
    repaired, model, box = finish(plan, tmp_path)
    assert model.asked == 0
    assert {program.entry_point for program in box.programs} == {name}
    assert repaired["score"] is not None


def test_the_model_works_while_programs_run_and_the_sandbox_is_waited_for_at_the_end(tmp_path: Path) -> None:
    plan = plan_of("humaneval")
    events: list[str] = []

    class Model(ScriptedModel):
        def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
            events.append("model")
            return super().collect()

    class Slow(FakeSandbox):
        """Has nothing ready until it is waited for."""

        def collect(self, timeout: float | None = None) -> Sequence[tuple[int, Any]]:
            events.append("look" if timeout == 0 else "wait")
            return super().collect(timeout) if timeout != 0 else []

    box = Slow()
    with RunFolder(tmp_path, plan.manifest()) as folder:
        run(plan, Model(writes, batch=4), folder, stop=Stop(), helpers=Helpers(sandbox=box), say=lambda line: None)  # type: ignore[arg-type]
    # Six portions of the model; after each but the first a look at the sandbox, which is waited for at the end alone.
    assert events[:11] == ["model", *["model", "look"] * 5]
    assert set(events[11:]) == {"wait"}


def test_a_rule_that_changed_runs_its_program_anew_and_asks_no_model(tmp_path: Path) -> None:
    plan = plan_of("mbpp", limit=4)
    finish(plan, tmp_path)
    rules = dict(plan.task.programs)
    rules["standard"] = lambda output, sample: replace(
        plan.task.programs["standard"](output, sample), source=f"# new\n{output}"
    )
    changed = make_plan(replace(plan.task, programs=rules), plan.protocol, plan.dataset, limit=4)
    _, model, box = finish(changed, tmp_path)
    assert model.asked == 0
    assert sum(program.source.startswith("# new") for program in box.programs) == 4
    for record in read_records(tmp_path):
        assert record["verdicts"]["standard"]["extracted"].startswith("# new")
    _, model, box = finish(changed, tmp_path)
    assert (model.asked, box.programs) == (0, [])


def test_a_deterministic_run_never_runs_a_program_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_eval.runner.CHUNK", 30)
    plan = plan_of("humaneval", deterministic=True)
    stop = Stop()
    calls = 0

    def stops(program: Program) -> str:
        nonlocal calls
        calls += 1
        stop.asked = stop.asked or calls >= 20
        return by_hash(program)

    with pytest.raises(Interrupted):
        finish(plan, tmp_path, FakeSandbox(stops, batch=1), stop=stop)
    before = (tmp_path / "answers.jsonl").read_bytes().count(b'"executed"')
    _, model, box = finish(plan, tmp_path)
    assert model.asked == plan.total
    answers, _ = read_answers(tmp_path / "answers.jsonl")
    assert before + len(box.programs) == sum(isinstance(answer.answer, Executed) for answer in answers)


def test_a_plan_with_programs_and_no_sandbox_is_a_bug_of_ours(tmp_path: Path) -> None:
    plan = plan_of()
    with (
        RunFolder(tmp_path, plan.manifest()) as folder,
        pytest.raises(TypeError, match="expected somebody to answer Execute"),
    ):
        run(plan, ScriptedModel(writes), folder, stop=Stop(), say=lambda line: None)


def test_large_tests_stand_in_no_record(tmp_path: Path) -> None:
    plan = plan_of("humaneval_plus")
    _, _, box = finish(plan, tmp_path)
    assert {"plus", "base"} == set(plan.task.programs)
    for sample, record in zip(plan.samples, read_records(tmp_path), strict=True):
        assert "plus" in sample.row
        assert set(record["doc"]) == set(sample.row) - {"plus"}
        assert len(record["outputs"]) == 3
    timeouts = {(program.timeout, "def same" in program.test) for program in box.programs}
    assert timeouts == {(60.0, True), (3.0, False)}


def test_the_last_output_of_the_model_is_what_is_counted(tmp_path: Path) -> None:
    plan = plan_of("humaneval", limit=3)
    finishes = iter(["length", "end", "length"])
    texts = iter(["    return 1\n", " ", "    return 2\n"])

    def says(request: Request) -> Answer:
        return Generated(text=next(texts), finish=next(finishes), prompt_tokens=1, new_tokens=1)  # type: ignore[arg-type]

    box: Any = FakeSandbox()
    with RunFolder(tmp_path, plan.manifest()) as folder:
        metrics = run(
            plan, ScriptedModel(says, batch=1), folder, stop=Stop(), helpers=Helpers(sandbox=box), say=lambda line: None
        )
    assert (metrics["truncated"], metrics["empty"], metrics["unparsed"]) == (2, 1, 0)


# ------------------------------------------------------------------------------------------------------------ pass@k


def test_pass_at_k_counts_what_the_repeats_say(tmp_path: Path) -> None:
    assert finish(plan_of(), tmp_path / "once")[0]["pass_at"].keys() == {"1"}
    metrics, _, _ = finish(plan_of("mbpp", sampling=SAMPLING, repeats=12), tmp_path / "many")
    assert metrics["pass_at"].keys() == {"1", "10"}
    one, ten = metrics["pass_at"]["1"], metrics["pass_at"]["10"]
    assert one["score"] == pytest.approx(metrics["score"])
    assert metrics["low"] < one["score"] < metrics["high"]
    assert one["low"] < one["score"] < ten["low"] < ten["score"] < ten["high"]
    records = read_records(tmp_path / "many")
    counts = Counter(each["doc_id"] for each in records if each["verdicts"]["standard"]["correct"])
    missed = [math.comb(12 - counts[sample], 10) / math.comb(12, 10) for sample in {each["doc_id"] for each in records}]
    assert ten["score"] == pytest.approx(1 - sum(missed) / len(missed))


def test_tasks_without_programs_have_no_pass_at_k(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", limit=2)
    assert "pass_at" not in finish(plan, tmp_path)[0]


# ------------------------------------------------------------------------------------------------------------- score


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the commands open a fake sandbox; returns with what they opened it."""
    opened: list[dict[str, Any]] = []

    def open_fake(**settings: Any) -> FakeSandbox:
        opened.append(settings)
        return FakeSandbox()

    monkeypatch.setattr("qwen_eval.sandbox.Sandbox", open_fake)
    return opened


def scored(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(score_command, list(words), catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_is_scored_by_running_its_programs(tmp_path: Path, sandbox: list[dict[str, Any]]) -> None:
    rows = [{"id": f"HumanEval/{number}", "output": "    return 1\n", "gold": "whatever"} for number in (3, 0)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task", "humaneval", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    code, said = scored(*words, "--judge", "official")
    assert code == 0
    assert sandbox == [{"judge": "official", "container": "", "unsafe": False}]
    found = lines_of(tmp_path / "out.jsonl")
    task = registry.load("humaneval", registry.find()).task
    assert [(each["id"], each["rule"]) for each in found] == [
        (row["id"], rule) for row in rows for rule in task.programs
    ]
    assert all(each["extracted"].endswith("    return 1\n") for each in found if each["rule"] == "standard")
    assert "humaneval, qwen:" in said


def test_a_run_is_scored_from_its_records_alone(tmp_path: Path, sandbox: list[dict[str, Any]]) -> None:
    plan = plan_of("mbpp_plus", sampling=SAMPLING, repeats=2)
    finish(plan, tmp_path / "run")
    words = ["--task", "mbpp_plus", "--input", str(tmp_path / "run"), "--output", str(tmp_path / "out.jsonl")]
    assert scored(*words)[0] == 0
    assert not sandbox
    expected = [
        (record["doc_id"], record["repeat"], rule, record["verdicts"][rule]["correct"])
        for record in read_records(tmp_path / "run")
        for rule in ("plus", "base")
    ]
    found = lines_of(tmp_path / "out.jsonl")
    assert [(each["id"], each["repeat"], each["rule"], each["correct"]) for each in found] == expected


def test_a_program_that_was_not_run_is_said(tmp_path: Path, sandbox: list[dict[str, Any]]) -> None:
    finish(plan_of("mbpp", limit=3), tmp_path / "run")
    file = tmp_path / "run" / "answers.jsonl"
    sample = read_records(tmp_path / "run")[1]["doc_id"]
    answers, _ = read_answers(file)
    kept = [each for each in answers if each.sample != sample or isinstance(each.answer, Generated)]
    assert len(kept) < len(answers)
    file.write_text("".join(each.line() for each in kept))
    words = ["--task", "mbpp", "--input", str(tmp_path / "run"), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(StoreError, match="has not been run"):
        scored(*words)


def test_ids_are_looked_up_in_one_split_on_request(tmp_path: Path, real_data: Path, sandbox: list[Any]) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 602, "output": "x = 1"}\n')
    words = ["--task", "mbpp", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    words += ["--data-dir", str(real_data), "--rule", "standard"]
    assert scored(*words)[0] == 0
    assert lines_of(tmp_path / "out.jsonl")[0]["id"] == 602
    with pytest.raises(UsageError, match=r"--split tests: mbpp has test, sanitized, .* Did you mean 'test'"):
        scored(*words, "--split", "tests")
    with pytest.raises(Exception, match="id '602' is no sample of mbpp"):
        scored(*words, "--split", "test")


# --------------------------------------------------------------------------------------------------------------- run


def test_without_a_sandbox_nothing_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Any
) -> None:
    class Refused(FakeSandbox):
        def __enter__(self) -> Any:
            raise SandboxError("no walls here")

    monkeypatch.setattr("qwen_eval.sandbox.Sandbox", lambda **settings: Refused())
    words = ["--task", "humaneval", "--model", str(tiny_checkpoint()), "--output-dir", str(tmp_path / "results")]
    with pytest.raises(SandboxError, match="no walls"):
        CliRunner().invoke(run_command, words, catch_exceptions=False)
    assert SandboxError.exit_code == 3
    assert not list((tmp_path / "results").iterdir())


def test_the_manifest_says_how_programs_were_run_and_another_judge_is_another_run(
    tmp_path: Path, sandbox: list[dict[str, Any]], tiny_checkpoint: Any
) -> None:
    words = ["--task", "humaneval@standard,gsm8k@qwen-chat", "--model", str(tiny_checkpoint()), "--limit", "1"]
    words += ["--output-dir", str(tmp_path)]
    assert CliRunner().invoke(run_command, words, catch_exceptions=False).exit_code == 0
    assert sandbox == [{"judge": "split", "container": "", "unsafe": False}]
    manifests = {file.parent.name: json.loads(file.read_text()) for file in tmp_path.rglob("manifest.json")}
    assert manifests["humaneval@standard"]["sandbox"] == {"mode": "fake", "judge": "split"}
    assert "sandbox" not in manifests["gsm8k@qwen-chat-mini"]
    words[1] = "humaneval@standard"
    with pytest.raises(UsageError, match=r"sandbox\.judge was 'split' and is now 'official'"):
        CliRunner().invoke(run_command, [*words, "--judge", "official"], catch_exceptions=False)


def test_a_task_without_code_opens_no_sandbox(
    tmp_path: Path, sandbox: list[dict[str, Any]], tiny_checkpoint: Any
) -> None:
    words = ["--task", "gsm8k", "--model", str(tiny_checkpoint()), "--limit", "1", "--output-dir", str(tmp_path)]
    assert CliRunner().invoke(run_command, words, catch_exceptions=False).exit_code == 0
    assert not sandbox


def test_a_dialogue_begins_with_the_model() -> None:
    plan = plan_of("mbpp", limit=1)
    broken = replace(plan, ask=lambda sample: (each for each in [plan.task.programs["standard"]("", sample)]))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="asks the model first"):
        list(broken.first_requests())
    assert isinstance(next(plan.first_requests())[1], Generate)
