"""The readers and rules of the code interpreter: cases as data, and properties that hold for every transcript."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval import code_interpreter, registry
from qwen_eval.scorers import interpreter
from qwen_eval.scorers.react import last_action
from qwen_eval.task import Cell, Generated, Judge, Judged, Message, Observed, Sample

FILE = Path(__file__).parent / "code_interpreter.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
TASK = registry.load("code_interpreter", registry.find()).task
RULES = sys.modules["qwen_eval_task_code_interpreter"]


def of(kind: str) -> Any:
    cases = [case for case in CASES if case["of"] == kind]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["why"])


def sample(group: str, query: str = "q", language: str = "en") -> Sample:
    row = {"query": query, "tags": "", "lang": language, "input_file_path": "", "answer": "", "files": "[]"}
    return Sample("0", row, "g", group)


def test_there_are_many_cases_of_every_kind() -> None:
    counts = {kind: sum(case["of"] == kind for case in CASES) for kind in {case["of"] for case in CASES}}
    assert len(CASES) >= 100, counts
    assert min(counts.values()) >= 10, counts


@of("code")
def test_the_code_of_an_input(case: dict[str, Any]) -> None:
    assert interpreter.code_of(case["input"]) == case["code"]


@of("snippets")
def test_the_code_of_a_transcript(case: dict[str, Any]) -> None:
    assert interpreter.snippets(case["transcript"]) == case["snippets"]


@of("turn")
def test_what_a_turn_has_run_and_what_is_kept_of_it(case: dict[str, Any]) -> None:
    answer = Generated(text=case["text"], finish=case["finish"], prompt_tokens=1, new_tokens=1)
    turn = code_interpreter.put_back(answer)
    action = last_action(turn)
    assert (action and action.name) == case["tool"]
    assert (action and code_interpreter.runnable(action.argument_text)) == case["runs"]
    assert (code_interpreter.until_observation(turn) if action else turn) == case["kept"]


@of("figures")
def test_the_figures_of_a_transcript(case: dict[str, Any]) -> None:
    found = interpreter.figures(case["transcript"])
    assert (list(found.numbers), found.clean) == (case["figures"], case["clean"])


@of("observation")
def test_what_the_model_sees_of_a_step(case: dict[str, Any]) -> None:
    observed = Observed(cell="", messages=tuple(Message(*each) for each in case["messages"]), end=case["end"])
    assert code_interpreter.observation(observed, case["drawn"]) == case["text"]


@of("judge")
def test_the_verdict_of_a_judge(case: dict[str, Any]) -> None:
    asked, images = sample(case["group"]), Observed(cell="", messages=(Message("image", "iVBOR"),), end="ok")
    request = TASK.checks["judge"].request(case["output"], asked, [images])
    assert (list(request.images) if isinstance(request, Judge) else None) == case["images"]
    reply = None if case["reply"] is None else Judged(judged="", text=case["reply"])
    verdict = TASK.checks["judge"].verdict(case["output"], asked, reply if request else None)
    assert (verdict and verdict.correct) == case["correct"]


@of("executable")
def test_the_verdict_on_code(case: dict[str, Any]) -> None:
    asked = sample(case["group"], case["query"])
    request = TASK.checks["executable"].request(case["output"], asked, [])
    assert (request.code if isinstance(request, Cell) else None) == case["program"]
    answer = None if case["end"] is None else Observed(cell="", messages=(), end=case["end"])
    verdict = TASK.checks["executable"].verdict(case["output"], asked, answer)
    assert (verdict and verdict.correct) == case["correct"]
    if verdict is not None:
        has_code = case["program"] is not None
        assert verdict.measures["has code"] == (float(has_code),)
        assert ("executable among items with code" in verdict.measures) == has_code
        assert verdict.measures["executable all"] == (float(verdict.correct),)
        assert verdict.measures[f"executable {case['group'].partition('-')[0]}"] == (float(verdict.correct),)


# ------------------------------------------------------------------------------------------------------------ the judge


def test_the_judge_sees_every_figure_of_the_dialogue_and_the_question_alone() -> None:
    query = "Plot it.<|im_end|>\n<|im_start|>assistant\nThought: x"
    figures = [Observed(cell="", messages=(Message("stdout", "1"), Message("image", name)), end="ok") for name in "abc"]
    output = "\nObservation: ![fig-001](fig-001.png)\nThought: y\nObservation: ![fig-002](fig-002.png)\nThought:"
    request = TASK.checks["judge"].request(output, sample("visualization-easy", query), figures)
    assert isinstance(request, Judge)
    assert request.images == ("a", "b"), "the third belongs to a check"
    assert request.prompt.endswith('then reply "wrong".\n[Question]: Plot it.\n')


def test_the_judge_is_asked_in_the_language_of_the_item() -> None:
    figure = Observed(cell="", messages=(Message("image", "a"),), end="ok")
    output = "\nObservation: ![fig-001](fig-001.png)\nThought:"
    request = TASK.checks["judge"].request(output, sample("visualization-hard", "画图。", "zh"), [figure])
    assert isinstance(request, Judge)
    assert (
        request.prompt
        == "请判断图片是否与下面的[问题]一致，如果一致则回复“right”，不一致则回复“wrong”。\n[问题]：画图。\n"
    )


def test_a_figure_that_was_only_written_is_not_there() -> None:
    output = "\nObservation: stdout:\n\n```\n![fig-001](fig-001.png)\n```\nThought:"
    request = TASK.checks["judge"].request(output, sample("visualization-hard"), [])
    assert isinstance(request, Judge)
    assert request.images == ()


def test_without_a_judge_no_item_is_scored_by_it() -> None:
    for output in ("Final Answer: no figure", "\nObservation: ![fig-001](fig-001.png)\nThought:"):
        assert TASK.checks["judge"].verdict(output, sample("visualization-hard"), None) is None


# ------------------------------------------------------------------------------------------------------------- numbers


def test_a_rule_over_numbers_is_about_items_whose_answer_is_known() -> None:
    row = {**sample("math").row, "answer": "42"}
    known = Sample("0", row, "42", "math")
    for rule in ("interpreter", "corrected"):
        verdict = TASK.rules[rule]("Thought: done\nFinal Answer: The answer is 42.", known)
        assert verdict is not None
        assert verdict.correct
        assert TASK.rules[rule]("Final Answer: 42", sample("visualization-hard")) is None


def test_the_published_number_rule_does_not_see_a_number_that_was_only_printed() -> None:
    row = {**sample("math").row, "answer": "42"}
    known = Sample("0", row, "42", "math")
    printed = "Thought: x\nObservation: stdout:\n\n```\n42\n\n```\nThought:"
    assert [TASK.rules[rule](printed, known).correct for rule in ("interpreter", "corrected")] == [False, True]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------ properties


@given(st.text(alphabet="`{}\"':,code \n/\\py1", max_size=60))
def test_no_input_makes_the_reader_raise(text: str) -> None:
    assert isinstance(interpreter.code_of(text), str)


@given(
    st.lists(st.sampled_from(["\nAction:", "\nAction Input:", "\nObservation:", "\nThought:", "```", "\n", "a", " "]))
)
def test_no_transcript_makes_a_rule_raise(parts: list[str]) -> None:
    output = "".join(parts)
    for group in ("math", "visualization-easy", "general"):
        for check in TASK.checks.values():
            check.request(output, sample(group), [])
            check.verdict(output, sample(group), None)


@pytest.mark.parametrize(
    "piece",
    ["```", "```\n", "`", "\nAction Input: ", "\nAction Input: x", "\nObservation:", "![fig-001](", "{", "[{'code':"],
)
def test_hostile_lengths_are_read_in_no_time(piece: str) -> None:
    long = piece * (40_000 // len(piece))
    interpreter.code_of(long)
    interpreter.code_of(f"{{{long}")
    interpreter.snippets(long)
    interpreter.figures(f"\nObservation:{long}")
