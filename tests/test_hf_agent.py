"""The agent task: samples, prompts, dialogues in the runner, and model-written programs behind the sandbox' walls.

Only the last test starts a sandbox. In the others a stand-in runs the steps: a step is our own interpreter, which walks
the programs of the model and executes none.
"""

import contextlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval import registry
from qwen_eval.data import Dataset, find_dataset, mini_dataset
from qwen_eval.errors import DataError, Interrupted, SandboxError, UsageError
from qwen_eval.fetch import fetch, pins
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.plan import Plan, make_plan
from qwen_eval.registry import Entry
from qwen_eval.results import RunFolder, read_answers, read_records
from qwen_eval.runner import Helpers, Stop, run
from qwen_eval.sandbox import Seen, Sessions, Step
from qwen_eval.scorers.agent_interpreter import TOOLS
from qwen_eval.task import Chat, Generate, Generated, Request

MODES = ("run", "chat")


def plan_of(protocol: str, dataset: Dataset, **settings: Any) -> Plan:
    task = registry.load("hf_agent", registry.find()).task
    return make_plan(task, registry.protocol(task, protocol), dataset, **settings)


def text_of(request: Request) -> str:
    assert isinstance(request, Generate)
    assert isinstance(request.prompt, Chat)
    assert [turn.role for turn in request.prompt.turns] == ["system", "user"]
    return request.prompt.turns[-1].content


class FakeSessions:
    """Runs the steps in this process, the one that came last first; counts them."""

    mode = "fake"

    def __init__(self, *, batch: int = 3) -> None:
        self.batch = batch
        self.steps: list[Step] = []
        self._queue: deque[tuple[int, Step]] = deque()

    def submit(self, ticket: int, step: Step) -> None:
        self._queue.append((ticket, step))
        self.steps.append(step)

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, Seen]]:
        ready = [self._queue.pop() for _ in range(min(self.batch, len(self._queue)))]
        return [(ticket, self.run(step)) for ticket, step in ready]

    def run(self, step: Step) -> Seen:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(step.code, {"__name__": "session"})
        return Seen(messages=(("stdout", said.getvalue()),), end="ok")

    def close(self, key: int) -> None:
        pass


def said(mode: str, code: str) -> str:
    """A reply as it should be: the tools in back-quotes, then the code."""
    named = ", ".join(f"`{name}`" for name in TOOLS if name in code)
    cue = "\n\nAnswer:\n" if mode == "run" else "\n\n"
    return f" tools: {named}.{cue}```py\n{code}\n```"


def perfect(plan: Plan) -> Callable[[Request], Generated]:
    """A model that knows the first reference solution of every step, by the tasks so far."""
    known: dict[tuple[str, ...], str] = {}
    for sample in plan.samples:
        steps = json.loads(sample.row["steps"])
        for number, step in enumerate(steps, 1):
            known.setdefault(tuple(each["task"] for each in steps[:number]), step["answers"][0])

    def reply(request: Request) -> Generated:
        shown = re.findall(r'^(?:_HUMAN_: (.*)|Task: "(.*)")$', text_of(request), re.MULTILINE)
        tasks = tuple("".join(each) for each in shown)
        code = next(known[tasks[begin:]] for begin in range(len(tasks)) if tasks[begin:] in known)
        return Generated(text=said(plan.protocol.name, code), finish="end", prompt_tokens=5, new_tokens=7)

    return reply


def finish(
    plan: Plan,
    path: Path,
    script: Callable[[Request], Generated],
    sessions: Any = None,
    *,
    batch: int = 4,
    stop: Stop | None = None,
) -> tuple[dict[str, Any], ScriptedModel]:
    model = ScriptedModel(script, batch=batch)
    helpers = Helpers(sessions=sessions or FakeSessions())
    with RunFolder(path, plan.manifest()) as folder:
        return run(plan, model, folder, stop=stop or Stop(), helpers=helpers, say=lambda line: None), model


def bytes_of(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("records.jsonl", "metrics.json")]


@pytest.fixture
def small(mini: Callable[[str], Dataset]) -> Dataset:
    return mini("hf_agent")


@pytest.fixture
def real(entries: dict[str, Entry], real_data: Path) -> Dataset:
    entry = entries["hf_agent"]
    return find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)


# ------------------------------------------------------------------------------------------------- samples, prompts


def test_the_official_set_has_27_tasks_and_47_steps(real: Dataset) -> None:
    for protocol, samples, steps in (("run", 27, 27), ("chat", 24, 47)):
        plan = plan_of(protocol, real)
        assert len(plan.samples) == samples
        assert sum(len(json.loads(sample.row["steps"])) for sample in plan.samples) == steps
        assert plan.samples[0].id == f"{protocol}/0/0"
    assert real.warnings == []


def test_a_listed_input_is_its_name_in_angle_brackets(small: Dataset) -> None:
    by_id = {sample.id: sample for sample in plan_of("run", small).samples}
    assert json.loads(by_id["run/0/1"].row["steps"])[0]["inputs"] == {
        "document": "<<document>>",
        "question": "<<question>>",
    }
    assert json.loads(by_id["run/7/0"].row["steps"])[0]["inputs"] == {"scene": "A lighthouse in the snow"}
    assert by_id["run/3/0"].gold.count(" or ") == 1


@pytest.mark.parametrize("mode", MODES)
def test_tools_stand_in_the_order_of_the_toolbox(small: Dataset, mode: str) -> None:
    for _, request in plan_of(mode, small).first_requests():
        listed = re.findall(r"^- (\w+): ", text_of(request), re.MULTILINE)
        assert listed[:3] == ["document_qa", "image_captioner", "image_qa"]
        assert listed[-4:] == ["image_transformer", "text_downloader", "image_generator", "video_generator"]
        assert set(listed) == set(TOOLS)
        assert isinstance(request, Generate)
        assert (request.own_penalty, request.max_new_tokens, request.stops) == (True, 512, ())


def test_run_mode_ends_where_the_explanation_begins(small: Dataset) -> None:
    sample, request = next(iter(plan_of("run", small).first_requests()))
    (step,) = json.loads(sample.row["steps"])
    assert text_of(request).endswith(f'\n\nTask: "{step["task"]}"\n\nI will use the following')
    assert "<<" not in text_of(request)


def test_every_turn_of_a_dialogue_carries_all_that_was_said_before(small: Dataset) -> None:
    plan = plan_of("chat", small)
    sample = next(sample for sample in plan.samples if sample.id == "chat/2/0")
    tasks = [step["task"] for step in json.loads(sample.row["steps"])]
    replies = [" First, `transcriber`. \n_HUMAN_:", "Second=====", "Third _ASSISTANT_: x"]
    dialogue = plan.ask(sample)
    texts = [text_of(next(dialogue))]  # type: ignore[arg-type]
    for reply in replies:
        answer = Generated(text=reply, finish="end", prompt_tokens=1, new_tokens=2)
        asked: Any = dialogue.send(answer)
        if isinstance(asked, Generate):
            texts.append(text_of(asked))
    assert len(texts) == 3
    begin = texts[0].removesuffix(f"\n_HUMAN_: {tasks[0]}\n\n_ASSISTANT_: ")
    assert begin.endswith("\n=====\n")
    assert "Human:" not in texts[2]
    assert "Assistant:" not in texts[2]
    # The stop at its end is gone from a reply, and what is then its last space stays.
    assert texts[2] == (
        f"{begin}\n_HUMAN_: {tasks[0]}\n\n_ASSISTANT_: First, `transcriber`. \n\n"
        f"\n_HUMAN_: {tasks[1]}\n\n_ASSISTANT_: Second\n"
        f"\n_HUMAN_: {tasks[2]}\n\n_ASSISTANT_: "
    )


def test_the_files_cannot_be_fetched_and_the_error_says_what_to_do(entries: dict[str, Entry]) -> None:
    entry = entries["hf_agent"]
    with pytest.raises(DataError, match=r"no public copy.*\nNext: --data-dir DIR"):
        fetch(entry.task.data, pins(entry.task.data, entry.folder))


# ----------------------------------------------------------------------------------------------------- in the runner


@pytest.mark.parametrize("mode", MODES)
def test_reference_solutions_score_100_three_times(small: Dataset, tmp_path: Path, mode: str) -> None:
    plan = plan_of(mode, small)
    metrics, _ = finish(plan, tmp_path, perfect(plan))
    assert metrics["score"] == 1
    for rule in ("transformers", "strict"):
        measures = metrics["rules"][rule]["measures"]
        assert {name: each["score"] for name, each in measures.items()} == {
            "tool selection": 1,
            "tool used": 1,
            "code": 1,
        }
        assert {each["n"] for each in measures.values()} == {{"run": 18, "chat": 16}[mode]}


@pytest.mark.parametrize("mode", MODES)
def test_the_official_reference_solutions_score_100_three_times(real: Dataset, tmp_path: Path, mode: str) -> None:
    plan = plan_of(mode, real)
    metrics, _ = finish(plan, tmp_path, perfect(plan))
    assert metrics["score"] == 1
    measures = metrics["rules"]["transformers"]["measures"]
    assert [(each["score"], each["n"]) for each in measures.values()] == [(1, {"run": 27, "chat": 47}[mode])] * 3


def test_a_model_that_does_nothing_gets_30_and_strictly_nothing(real: Dataset, tmp_path: Path) -> None:
    """The published floor. One failure in 27 is GPT-4's 97.4, eleven are Qwen-7B-Chat's 71.5."""
    plan = plan_of("run", real)
    right = perfect(plan)
    for failures, published in ((27, 30.0), (1, 97.4), (11, 71.5)):
        left = failures

        def reply(request: Request) -> Generated:
            nonlocal left
            left -= 1
            answer = right(request)
            return answer if left < 0 else Generated(text="No.", finish="end", prompt_tokens=1, new_tokens=1)

        metrics, _ = finish(plan, tmp_path / str(failures), reply)
        rules = metrics["rules"]
        assert round(100 * rules["transformers"]["measures"]["code"]["score"], 1) == published
        assert rules["strict"]["measures"]["code"]["score"] == pytest.approx((27 - failures) / 27)
        assert metrics["unparsed"] == failures


@pytest.mark.parametrize("mode", MODES)
def test_every_turn_is_recorded_and_one_step_runs_for_both_rules(small: Dataset, tmp_path: Path, mode: str) -> None:
    plan, sessions = plan_of(mode, small), FakeSessions()
    finish(plan, tmp_path, perfect(plan), sessions)
    assert len(sessions.steps) == len(plan.samples)
    for sample, record in zip(plan.samples, read_records(tmp_path), strict=True):
        *turns, ran = record["outputs"]
        assert len(turns) == len(json.loads(sample.row["steps"]))
        assert all("text" in turn for turn in turns)
        (message,) = ran["messages"]
        assert len(json.loads(message["text"])) == len(turns)
        if mode == "chat" and len(turns) > 0:
            assert json.loads(record["scored"]) == [turn["text"] for turn in turns]


def varied(request: Request) -> Generated:
    """Replies that depend on the request alone: right, wrong, without a program."""
    number = sum(text_of(request).encode()) % 5
    mode = "run" if text_of(request).endswith("the following") else "chat"
    codes = ("summarizer(text)", "text_reader(text)", "image_generator('a')", "x = text_downloader(url)", "text +")
    text = said(mode, codes[number]) if number else "I cannot."
    return Generated(text=text, finish="end", prompt_tokens=3, new_tokens=4)


@settings(max_examples=10, deadline=None)
@given(mode=st.sampled_from(MODES), stops=st.lists(st.integers(1, 12), max_size=4), batch=st.integers(1, 20))
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, mode: str, stops: list[int], batch: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    entry = registry.load("hf_agent", registry.find())
    plan = plan_of(mode, mini_dataset(entry.task.data, entry.folder))
    asked = 0
    for left in stops:
        stop = Stop()
        last = asked + left

        def reply(request: Request, stop: Stop = stop, last: int = last) -> Generated:
            nonlocal asked
            asked += 1
            stop.asked = stop.asked or asked >= last
            return varied(request)

        with suppress(Interrupted):
            finish(plan, path / "stopped", reply, batch=batch, stop=stop)
    _, model = finish(plan, path / "stopped", varied, batch=batch)
    finish(plan, path / "whole", varied, batch=20)
    assert bytes_of(path / "stopped") == bytes_of(path / "whole")
    steps = sum(len(json.loads(sample.row["steps"])) for sample in plan.samples)
    assert asked + model.asked == steps
    answers, _ = read_answers(path / "whole" / "answers.jsonl")
    assert len(answers) == steps + len(plan.samples)


def test_all_dialogues_are_in_flight_at_once(small: Dataset, tmp_path: Path) -> None:
    plan = plan_of("chat", small)
    seen: list[int] = []

    class Watching(ScriptedModel):
        def collect(self) -> Any:
            seen.append(len(self._queue))
            return super().collect()

    model = Watching(varied, batch=100)
    with RunFolder(tmp_path, plan.manifest()) as folder:
        run(plan, model, folder, stop=Stop(), helpers=Helpers(sessions=FakeSessions()), say=lambda line: None)  # type: ignore[arg-type]
    assert [count for count in seen if count] == [9, 6, 1]  # nine dialogues, six of two steps or more, one of three


# ------------------------------------------------------------------------------------------------------ in the sandbox


def test_programs_of_the_model_are_walked_behind_the_walls(small: Dataset, tmp_path: Path) -> None:
    """The same records as with the stand-in, a loop without end and an attempt on the interpreter included."""
    plan = plan_of("chat", small, limit=4)
    right = perfect(plan)

    def reply(request: Request) -> Generated:
        answer = right(request)
        if text_of(request).count("_HUMAN_:") % 2:
            return answer
        loop = "for i in range(1000000000000):\n    x = i\nimport os\nTOOLS['summarizer'] = 1"
        return Generated(text=said("chat", loop), finish="end", prompt_tokens=5, new_tokens=7)

    try:
        with Sessions(workers=1) as sessions:
            finish(plan, tmp_path / "walls", reply, sessions)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    finish(plan, tmp_path / "stand-in", reply)
    assert bytes_of(tmp_path / "walls") == bytes_of(tmp_path / "stand-in")


def test_a_protocol_has_its_own_split_and_no_other() -> None:
    entry = registry.load("hf_agent", registry.find())
    dataset = mini_dataset(entry.task.data, entry.folder)
    with pytest.raises(UsageError, match="--split chat: hf_agent@run is evaluated on run"):
        make_plan(entry.task, registry.protocol(entry.task, "run"), dataset, split="chat")
