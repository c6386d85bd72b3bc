"""The small set of the agent benchmark: counts, references that run, nothing taken from the real one."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.scorers.agent_interpreter import TOOLS, evaluate

MINI = Path(__file__).resolve().parents[1] / "tasks" / "_mini" / "hf_agent"
TASKS = json.loads((MINI / "evaluation_tasks.json").read_text(encoding="utf-8"))
CHATS = json.loads((MINI / "evaluation_chats.json").read_text(encoding="utf-8"))
STEPS = [*TASKS, *chain(*CHATS)]


def answers(step: dict[str, Any]) -> list[str]:
    return [step["answer"]] if isinstance(step["answer"], str) else step["answer"]


def test_counts() -> None:
    assert (len(TASKS), sum(len(task["task"]) for task in TASKS)) == (8, 18)
    dialogues = [len(chat[0]["task"]) for chat in CHATS]
    assert (len(CHATS), sum(dialogues)) == (6, 9)
    assert sum(phrasings * len(chat) for phrasings, chat in zip(dialogues, CHATS, strict=True)) == 16


def test_every_step_of_a_dialogue_has_as_many_phrasings_and_answers() -> None:
    for chat in CHATS:
        assert len({len(step["task"]) for step in chat}) == 1
        assert len({len(answers(step)) for step in chat}) == 1
    phrasings = [phrasing for step in STEPS for phrasing in step["task"]]
    assert len(set(phrasings)) == len(phrasings)


def test_a_task_names_its_inputs_in_back_quotes() -> None:
    for step in STEPS:
        for phrasing in step["task"]:
            assert set(re.findall(r"`(\w+)`", phrasing)) == set(step["inputs"])


@pytest.mark.parametrize("chat", [*([task] for task in TASKS), *CHATS], ids=lambda chat: chat[0]["task"][0])
def test_every_reference_solution_has_a_value_of_its_own(chat: list[dict[str, Any]]) -> None:
    states: list[dict[str, Any]] = [{} for _ in answers(chat[0])]
    for step in chat:
        inputs = (
            step["inputs"] if isinstance(step["inputs"], dict) else {name: f"<<{name}>>" for name in step["inputs"]}
        )
        values = [evaluate(answer, state | inputs) for answer, state in zip(answers(step), states, strict=True)]
        for answer, state in zip(answers(step), states, strict=True):
            state |= inputs
            evaluate(answer, state)
        assert all(isinstance(value, str) for value in values)
        assert len(set(values)) == len(values)


def test_most_tools_are_asked_for() -> None:
    code = " ".join(answer for step in STEPS for answer in answers(step))
    assert {name for name in TOOLS if name not in code} == {"image_transformer"}
    described = json.loads((MINI / "tools.json").read_text(encoding="utf-8"))
    assert [tool["name"] for tool in described] == list(TOOLS)


def test_no_text_shares_eight_words_in_a_row_with_the_real_set(real_data: Path) -> None:
    official = next(real_data / name for name in ("hf_agent", "hfagent") if (real_data / name).is_dir())

    def runs(folder: Path) -> set[str]:
        found = set()
        for file in folder.iterdir():
            words = re.findall(r"[A-Za-z]+", file.read_text(encoding="utf-8").lower())
            found |= {" ".join(words[begin : begin + 8]) for begin in range(len(words) - 7)}
        return found

    assert runs(MINI) & runs(official) == set()
