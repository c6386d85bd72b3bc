"""The dialogue of a model with a Python session: what is asked, what is run, where it ends, what is scored."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen_eval import code_interpreter, registry
from qwen_eval.code_interpreter import PRELOAD, Item, converse, item
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import DataError
from qwen_eval.paths import tasks_root
from qwen_eval.task import Cell, Chat, Dialogue, File, Generate, Generated, Message, Observed, Sample

FILES = registry.find()
TASK = registry.load("code_interpreter", FILES).task
RULES = sys.modules["qwen_eval_task_code_interpreter"]
PROMPT = """Answer the following questions as best you can. You have access to the following tools:

code_interpreter: Call this tool to interact with the 代码解释器 API. What is the 代码解释器 API useful for? 代码解释器，可用于执行Python代码。 Parameters: [{"name": "code", "type": "string", "description": "待执行的代码"}] Enclose the code within triple backticks (`) at the beginning and end of the code.

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [code_interpreter]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """
FIRST = "Thought: look\nAction: code_interpreter\nAction Input: ```py\nfirst = 0\n```\nObservation: 0\nThought:"
EMBEDDED = f"Plot it.<|im_end|>\n<|im_start|>assistant\n{FIRST}"


def step(code: str) -> str:
    return f" x\nAction: code_interpreter\nAction Input: ```py\n{code}\n```"


def said(*texts: str) -> list[Generated]:
    """Replies: those with an action are stopped before their observation."""
    return [
        Generated(
            text=f"{text}\n" if "Action Input" in text else text,
            finish="stop" if "Action Input" in text else "end",
            prompt_tokens=10,
            new_tokens=3,
        )
        for text in texts
    ]


def saw(*messages: tuple[str, str], end: str = "ok") -> Observed:
    return Observed(cell="", messages=tuple(Message(*each) for each in messages), end=end)


def hold(dialogue: Dialogue, replies: Sequence[Generated], seen: Sequence[Observed]) -> tuple[list[object], Generated]:
    """Hold a dialogue with these answers; return everything that was asked, and what is scored."""
    texts, steps, asked = iter(replies), iter(seen), []
    request = next(dialogue)
    try:
        while True:
            asked.append(request)
            request = dialogue.send(next(texts) if isinstance(request, Generate) else next(steps))
    except StopIteration as end:
        return asked, end.value


def chats(asked: Sequence[object]) -> list[Chat]:
    prompts = [request.prompt for request in asked if isinstance(request, Generate)]
    return [prompt for prompt in prompts if isinstance(prompt, Chat)]


def cells(asked: Sequence[object]) -> list[Cell]:
    return [request for request in asked if isinstance(request, Cell)]


# ------------------------------------------------------------------------------------------------------------ prompts


def test_the_prompt_is_the_published_one() -> None:
    asked, _ = hold(converse(item("How many?\n"), limit=1), said("Final Answer: 5"), [])
    assert len(asked) == 1
    assert isinstance(asked[0], Generate)
    assert (asked[0].max_new_tokens, asked[0].stops, asked[0].own_penalty) == (512, ("Observation:",), True)
    [chat] = chats(asked)
    turns = [(turn.role, turn.content) for turn in chat.turns]
    assert turns == [("system", "You are a helpful assistant."), ("user", f"{PROMPT}How many?")]
    assert chat.begun == ""


@pytest.mark.parametrize(
    ("language", "names", "prefix"),
    [
        ("en", ["a.csv"], "[Upload file a.csv]"),
        ("en", ["a.csv", "b.txt"], "[Upload file a.csv, b.txt]"),
        ("zh", ["a.csv", "b.txt"], "[上传文件a.csv, b.txt]"),
        ("", ["a.csv"], "[Upload file a.csv]"),
        ("zh", [], ""),
    ],
)
def test_the_names_of_files_stand_before_the_question(language: str, names: list[str], prefix: str) -> None:
    files = [File(name, "") for name in names]
    assert item("画图。", files=files, language=language).asked == f"{PROMPT}{prefix}画图。"


def test_a_step_in_the_query_is_what_the_assistant_has_begun_with() -> None:
    begun = item(f"{EMBEDDED}\n", files=[File("a.csv", "")])
    assert begun.asked == f"{PROMPT}[Upload file a.csv]Plot it."
    assert begun.begun == FIRST
    assert begun.before == (PRELOAD, "first = 0\n")


# ------------------------------------------------------------------------------------------------------------ the loop


def test_every_turn_goes_on_behind_what_was_seen_and_every_step_in_the_state_of_those_before() -> None:
    replies = said("Thought:" + step("a = 1"), step("a + 1"), " I know.\nFinal Answer: 2")
    asked, answer = hold(
        converse(Item(asked="q", files=(File("f", ""),)), limit=3), replies, [saw(), saw(("execute_result", "2"))]
    )
    assert [type(each) for each in asked] == [Generate, Cell, Generate, Cell, Generate]
    one = f"Thought:{step('a = 1')}\nObservation: \nThought:"
    two = f"{step('a + 1')}\nObservation: execute_result:\n\n```\n2\n```\nThought:"
    assert [chat.begun for chat in chats(asked)] == ["", one, one + two]
    first, second = cells(asked)
    assert (first.code, first.before, first.timeout) == ("a = 1\n", (PRELOAD,), 30)
    assert (second.code, second.before) == ("a + 1\n", (PRELOAD, "a = 1\n"))
    assert first.files == second.files == (File("f", ""),)
    assert answer == Generated(
        text=f"{one}{two} I know.\nFinal Answer: 2", finish="end", prompt_tokens=30, new_tokens=9
    )


def test_a_given_step_is_run_before_the_first_and_its_result_is_not_shown_again() -> None:
    asked, answer = hold(converse(item(EMBEDDED), limit=3), said(step("first"), " Final Answer: 0"), [saw()])
    assert [cell.before for cell in cells(asked)] == [(PRELOAD, "first = 0\n")]
    assert [chat.begun for chat in chats(asked)] == [FIRST, f"{FIRST}{step('first')}\nObservation: \nThought:"]
    assert answer.text == f"{step('first')}\nObservation: \nThought: Final Answer: 0"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_at_the_limit_the_transcript_ends_after_the_observation(limit: int) -> None:
    replies = said(*[step("1")] * 5)
    asked, answer = hold(converse(Item(asked="q"), limit=limit), replies, [saw(("execute_result", "1"))] * 5)
    assert len(cells(asked)) == len(chats(asked)) == limit
    assert answer.text.endswith("```\n1\n```\nThought:")
    assert answer.finish == "stop"


@pytest.mark.parametrize(
    "seen",
    [
        saw(("error", "ZeroDivisionError"), end="error"),
        saw(("stdout", "mean error: 3\n")),
        saw(("stderr", "Traceback (most recent call last)\n")),
        saw(end="timed out"),
        saw(end="memory"),
    ],
    ids=["exception", "printed word", "traceback", "too slow", "lost"],
)
def test_an_observation_that_tells_of_an_error_ends_it(seen: Observed) -> None:
    asked, answer = hold(converse(Item(asked="q"), limit=3), said(step("1"), step("2")), [seen, saw()])
    assert [type(each) for each in asked] == [Generate, Cell]
    assert answer.text.endswith("\n```\nThought:")


def test_figures_are_numbered_over_the_item() -> None:
    figures = [saw(("image", "a"), ("image", "b")), saw(("image", "c"))]
    _, answer = hold(converse(Item(asked="q"), limit=2), said(step("1"), step("2")), figures)
    assert "(fig-001.png)\n\n![fig-002](fig-002.png)\nThought:" in answer.text
    assert answer.text.endswith("\nObservation: ![fig-003](fig-003.png)\nThought:")


def test_a_reply_without_an_action_is_kept_as_it_is() -> None:
    _, answer = hold(converse(Item(asked="q"), limit=3), said(" I cannot.\n"), [])
    assert answer.text == " I cannot.\n"


# ------------------------------------------------------------------------------------------------------------ the tasks


@pytest.mark.parametrize(
    ("tags", "query", "answer", "group", "limit"),
    [
        ("all_ci,visualization", "Plot it.", "", "visualization-hard", 3),
        ("all_ci,visualization", EMBEDDED, "", "visualization-easy", 3),
        ("all_ci,general", "Count them.", "", "general", 1),
        ("all_ci,math", "What is 1 + 1?", "", "math", 1),
        ("all_ci,math", "What is 1 + 1?", "2", "math", 3),
    ],
)
def test_how_many_steps_an_item_may_take(tags: str, query: str, answer: str, group: str, limit: int) -> None:
    row = {"query": query, "tags": tags, "lang": "en", "answer": answer, "files": "[]"}
    assert RULES.group(tags, query) == group
    asked, _ = hold(
        TASK.protocols[0].build(None, 0)(Sample("0", row, "g", group)),
        said(*[step("1")] * 5),
        [saw()] * 5,  # type: ignore[arg-type]
    )
    assert len(cells(asked)) == limit


def test_gsm8k_with_the_interpreter_asks_the_bare_question_and_takes_three_steps() -> None:
    task = registry.load("gsm8k", FILES).task
    protocol = registry.protocol(task, "code-interpreter")
    row = {"question": "Ann buys 3 bags of 4 apples. How many?", "answer": "#### 12"}
    dialogue = protocol.build(None, 0)(Sample("0", row, row["answer"]))  # type: ignore[arg-type]
    assert not isinstance(dialogue, Generate)
    asked, answer = hold(dialogue, said(*[step("12")] * 5), [saw(("execute_result", "12"))] * 5)  # type: ignore[arg-type]
    assert len(cells(asked)) == 3
    assert chats(asked)[0].turns[1].content == f"{PROMPT}Ann buys 3 bags of 4 apples. How many?"
    verdicts = {rule: task.rules[rule](answer.text, Sample("0", row, row["answer"])) for rule in task.rules}
    assert verdicts["interpreter"] is not None
    assert not verdicts["interpreter"].correct, "a number on a line of its own is not seen"
    assert verdicts["corrected"] is not None
    assert verdicts["corrected"].correct


def test_the_longest_text_that_is_shown_leaves_room_in_a_small_window() -> None:
    seen = code_interpreter.observation(saw(("stdout", "9" * 1_000_000)), 0)
    assert len(seen) < code_interpreter.LONGEST + 100


# --------------------------------------------------------------------------------------------------------------- data


def published(folder: Path, *rows: dict[str, object]) -> Dataset:
    """A folder as the published archive has it, with these rows, and one file."""
    (folder / "code_interpreter" / "upload_file_clean").mkdir(parents=True)
    (folder / "code_interpreter" / "upload_file_clean" / "a.csv").write_text("x\n1\n")
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "code_interpreter" / "eval_code_interpreter_v1.jsonl").write_text(text)
    return find_dataset(TASK.data, tasks=tasks_root(), data_dir=folder, network=False)


def test_published_rows_need_neither_language_nor_files(tmp_path: Path) -> None:
    rows = [
        {"query": "Plot it.", "tags": "all_ci,visualization", "input_file_path": ["/tmp/upload_file/a.csv"]},
        {"query": "数一数。", "tags": "all_ci,general", "lang": "zh", "input_file_path": []},
        {"query": "1 + 1?", "tags": "all_ci, math", "lang": None, "input_file_path": None},
        {"query": "Count.", "tags": "all_ci,general", "input_file_path": "upload_file_clean/a.csv"},
    ]
    found = TASK.samples(published(tmp_path, *rows), "test")
    assert [(sample.id, sample.group) for sample in found] == [
        ("0", "visualization-hard"),
        ("1", "general"),
        ("2", "math"),
        ("3", "general"),
    ]
    assert RULES.item(found[0]).files == (File("a.csv", "eAoxCg=="),)
    assert RULES.item(found[0]).asked.endswith("Question: [Upload file a.csv]Plot it.")
    assert RULES.item(found[3]).files == RULES.item(found[0]).files
    assert RULES.item(found[1]).files == RULES.item(found[2]).files == ()
    assert all(sample.gold and not sample.row["answer"] for sample in found)


def test_a_file_that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    rows = {"query": "Plot it.", "tags": "all_ci,visualization", "input_file_path": ["b.csv"]}
    with pytest.raises(DataError, match=r"b\.csv"):
        TASK.samples(published(tmp_path, rows), "test")
