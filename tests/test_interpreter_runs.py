"""Whole runs of the code interpreter on its small set: a model that knows the answers, sessions that run its code."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_eval import run
from qwen_eval.code_interpreter import EMBEDDED
from qwen_eval.commands.export import export as export_command
from qwen_eval.commands.score import score
from qwen_eval.errors import IncompleteError, SandboxError
from qwen_eval.loaded import LoadedRun
from qwen_eval.models.base import Identity
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.results import read_records
from qwen_eval.sandbox import Sessions
from qwen_eval.task import Chat, Failed, Generate, Generated, Judge, Request

ROOT = Path(__file__).resolve().parents[1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ITEMS = lines(ROOT / "tasks" / "_mini" / "code_interpreter" / "eval_code_interpreter_v1.jsonl")
REFERENCES = lines(ROOT / "tests" / "code_interpreter" / "references.jsonl")


class Knowing:
    """A model that writes the reference of the item it is asked, then says the answer."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, request: Request) -> Generated:
        self.asked += 1
        assert isinstance(request, Generate)
        assert isinstance(request.prompt, Chat)
        chat = request.prompt
        row = next(row for row, item in enumerate(ITEMS) if self.is_about(chat, item["query"]))
        said = chat.begun.removeprefix(ITEMS[row]["query"].partition(EMBEDDED)[2])
        return self.answer(row) if said else self.step(row)

    def is_about(self, chat: Chat, query: str) -> bool:
        return chat.turns[-1].content.endswith(query.partition(EMBEDDED)[0])

    def step(self, row: int) -> Generated:
        code = REFERENCES[row]["code"]
        text = f"Thought: x\nAction: code_interpreter\nAction Input: ```py\n{code}\n```\n"
        return Generated(text=text, finish="stop", prompt_tokens=9, new_tokens=5)

    def answer(self, row: int) -> Generated:
        text = f" I know.\nFinal Answer: The answer is {ITEMS[row].get('answer', 'there')}."
        return Generated(text=text, finish="end", prompt_tokens=9, new_tokens=5)


class Failing(Knowing):
    """A model that writes no code for one item, and code that fails for another; of each kind."""

    def step(self, row: int) -> Generated:
        if row in (0, 14, 28):
            return self.answer(row)
        if row in (1, 15, 29):
            text = "x\nAction: code_interpreter\nAction Input: ```py\n1 / 0\n```\n"
            return Generated(text=text, finish="stop", prompt_tokens=9, new_tokens=5)
        return super().step(row)


class Judging:
    """A judge that calls every first figure right, and says how many it was shown."""

    identity = Identity(
        name="eye",
        fingerprint="1" * 16,
        dtype="none",
        device="none",
        engine="scripted",
        chat=True,
        chat_template=None,
        exact=True,
    )

    def __init__(self) -> None:
        self.asked: list[tuple[int, Judge]] = []
        self.shown: list[int] = []

    def submit(self, ticket: int, request: Judge) -> None:
        self.asked.append((ticket, request))

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, str | Failed]]:
        self.shown += [len(request.images) for _, request in self.asked]
        ready, self.asked = [(ticket, "It is right.") for ticket, _ in self.asked], []
        return ready


class Refusing(Judging):
    """A judge that takes no images; where there is none nobody is asked."""

    identity = replace(Judging.identity, name="blind", fingerprint="2" * 16)

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, str | Failed]]:
        ready = [(ticket, Failed(reason="no images") if each.images else "") for ticket, each in self.asked]
        self.asked = []
        return ready


@pytest.fixture(autouse=True, scope="module")
def sandbox() -> None:
    try:
        with Sessions(workers=1, live=1):
            pass
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def finished(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: Knowing, judge: Judging | None = None, **settings: Any
) -> LoadedRun:
    commands = importlib.import_module("qwen_eval.commands.run")
    monkeypatch.setattr(commands, "open_engine", lambda *names, **more: ScriptedModel(script, chat=True))
    monkeypatch.setattr(commands, "open_judge", lambda name: judge)
    (loaded,) = run(task="code_interpreter@qwen", model="toy", output_dir=folder, **settings)
    return loaded


def scored_again(path: Path, target: Path) -> set[tuple[str, str, bool]]:
    """The verdicts of `score` on a run folder."""
    words = ["--task", "code_interpreter", "--input", str(path), "--output", str(target)]
    assert CliRunner().invoke(score, words, catch_exceptions=False).exit_code == 0
    return {(line["id"], line["rule"], line["correct"]) for line in lines(target)}


def export(path: Path, target: Path) -> None:
    """Every layout takes a run with a rule that says nothing of most items; the published numbers are in lm-eval's."""
    for layout in ("eee", "lm-eval", "csv"):
        words = [str(path), "--format", layout, "--output", str(target)]
        assert CliRunner().invoke(export_command, words, catch_exceptions=False).exit_code == 0
    [results] = target.rglob("results_*.json")
    named = json.loads(results.read_text(encoding="utf-8"))["results"].values()
    [found] = [each["executable_math,executable"] for each in named if "executable_math,executable" in each]
    assert found == pytest.approx(12 / 14)


def measures(loaded: LoadedRun, rule: str) -> dict[str, float]:
    found = loaded.metrics["rules"][rule]["measures"]
    return {name: part["score"] for name, part in found.items()}


def test_a_model_that_knows_every_answer_is_right_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge = Judging()
    loaded = finished(monkeypatch, tmp_path, Knowing(), judge)
    metrics = loaded.metrics
    assert (metrics["n"], metrics["errors"], metrics["rule"], metrics["score"]) == (38, 0, "executable", 1.0)
    assert set(measures(loaded, "executable").values()) == {1.0}
    assert measures(loaded, "judge") == dict.fromkeys(
        ("visualization hard", "visualization easy", "visualization all"), 1.0
    )
    assert {rule: part["n"] for rule, part in metrics["rules"].items()} == {
        **{"executable": 38, "judge": 14},
        **{"interpreter": 14, "corrected": 14},
    }
    assert metrics["rules"]["interpreter"]["score"] == metrics["rules"]["corrected"]["score"] == 1.0
    assert {name: part["n"] for name, part in metrics["categories"].items()} == {
        **{"math": 14, "visualization": 14, "general": 10}
    }
    assert judge.shown == [1] * 14


def test_failing_and_missing_code_are_told_apart_and_a_judge_can_be_named_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = finished(monkeypatch, tmp_path, Failing())
    assert alone.metrics["rules"]["executable"]["correct"] == 38 - 6
    found = measures(alone, "executable")
    assert found["has code"] == pytest.approx(35 / 38)
    assert found["executable among items with code"] == pytest.approx(32 / 35)
    assert found["executable all"] == alone.metrics["score"] == pytest.approx(32 / 38)
    assert found["executable math"] == found["executable visualization"] == pytest.approx(12 / 14)
    assert found["executable general"] == pytest.approx(8 / 10)
    assert alone.metrics["rules"]["judge"] == {"correct": 0, "n": 0, "score": None, "low": None, "high": None}

    # One that refuses every image has said nothing, and keeps the folder from nobody.
    with pytest.raises(IncompleteError):
        finished(monkeypatch, tmp_path, Failing(), Refusing())

    script, judge = Failing(), Judging()
    judged = finished(monkeypatch, tmp_path, script, judge)
    assert script.asked == 0, "nothing is generated again"
    assert scored_again(judged.path, tmp_path / "again.jsonl") == {
        (record["doc_id"], rule, verdict["correct"])
        for record in read_records(judged.path)
        for rule, verdict in record["verdicts"].items()
    }
    export(judged.path, tmp_path / "exported")
    assert judged.metrics["rules"]["executable"] == alone.metrics["rules"]["executable"]
    assert judged.metrics["rules"]["judge"]["n"] == 14
    assert measures(judged, "judge")["visualization hard"] == pytest.approx(6 / 8), "no figure is wrong, says who will"
    assert measures(judged, "judge")["visualization easy"] == 1.0
    assert judge.shown == [1] * 12, "of what has no figure the first judge was told already"


def test_every_turn_is_recorded_and_a_larger_run_goes_on_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Knowing()
    finished(monkeypatch, tmp_path, first, limit=4)
    second = Knowing()
    loaded = finished(monkeypatch, tmp_path, second, limit=10)
    turns = {"math": 2, "visualization": 2, "general": 1}  # the one step of a general item ends it
    records = read_records(loaded.path)
    assert first.asked + second.asked == sum(turns[record["group"].partition("-")[0]] for record in records)
    for record in records:
        texts = [output["text"] for output in record["outputs"] if "finish" in output]
        seen = [output for output in record["outputs"] if "messages" in output]
        assert len(texts) == turns[record["group"].partition("-")[0]]
        assert len(seen) == 2, "a step of the dialogue, and the check of its code"
        assert "files" not in record["doc"]
        assert "\nObservation: " in record["scored"]
    whole = finished(monkeypatch, tmp_path / "at once", Knowing(), limit=10)
    assert whole.metrics["rules"] == loaded.metrics["rules"]
    assert read_records(whole.path) == records

    answers = whole.path / "answers.jsonl"
    stored = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(stored[: len(stored) // 2]) + stored[-1][:20])
    third = Knowing()
    again = finished(monkeypatch, tmp_path / "at once", third, limit=10)
    assert 0 < third.asked < first.asked + second.asked, "what stood before the torn line is not asked again"
    assert read_records(again.path) == records
