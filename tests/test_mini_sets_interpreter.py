"""The small set of the code interpreter. Its references are run as a model's code is: in sessions of the sandbox."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_eval import code_interpreter
from qwen_eval.code_interpreter import EMBEDDED, PRELOAD
from qwen_eval.errors import SandboxError
from qwen_eval.sandbox import Seen, Sessions, Step
from qwen_eval.scorers.interpreter import snippets, with_call
from qwen_eval.task import File

SET = Path(__file__).resolve().parents[1] / "tasks" / "_mini" / "code_interpreter"
FOLDER = SET / "upload_file_clean"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ITEMS = lines(SET / "eval_code_interpreter_v1.jsonl")
REFERENCES = lines(Path(__file__).parent / "code_interpreter" / "references.jsonl")
ROWS = pytest.mark.parametrize("row", range(len(ITEMS)))


def kind(item: dict[str, Any]) -> str:
    every, tag = item["tags"].split(",")
    assert every == "all_ci"
    return str(tag)


def names(item: dict[str, Any]) -> list[str]:
    return [Path(path).name for path in item.get("input_file_path", [])]


# -------------------------------------------------------------------------------------------------------------- format


def test_counts() -> None:
    assert Counter(map(kind, ITEMS)) == {"math": 14, "visualization": 14, "general": 10}
    assert sum(EMBEDDED in item["query"] for item in ITEMS) == 6
    for each in ("math", "visualization", "general"):
        languages = Counter(item["lang"] for item in ITEMS if kind(item) == each)
        assert languages["zh"] == languages["en"]
    assert [reference["row"] for reference in REFERENCES] == list(range(len(ITEMS)))
    assert len({item["query"] for item in ITEMS}) == len(ITEMS)


@ROWS
def test_item_format(row: int) -> None:
    item = ITEMS[row]
    assert list(item) == [
        *("query", "tags", "lang"),
        *(["input_file_path"] if "input_file_path" in item else []),
        *(["answer"] if kind(item) == "math" else []),
    ]
    question, embedded, begun = item["query"].partition(EMBEDDED)
    assert question == question.strip()
    assert bool(re.search("[\u4e00-\u9fff]", question)) == (item["lang"] == "zh")
    assert not embedded or kind(item) == "visualization"
    assert not embedded or (begun.startswith("Thought: ") and begun.endswith("\n```\nThought:"))
    assert kind(item) != "math" or re.fullmatch(r"-?\d+(\.\d*[1-9])?", item["answer"])


def test_files_are_small_and_every_one_of_them_is_named() -> None:
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert {name for item in ITEMS for name in names(item)} == set(files)
    assert all(0 < len(content) < 20_000 for content in files.values())
    assert all(content.decode("utf-8").endswith("\n") and b"\r" not in content for content in files.values())


# -------------------------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Seen]]:
    """Run a step of an item of the set, in a session with its files."""
    try:
        with Sessions() as sessions:

            def step(row: int, code: str, *before: str) -> Seen:
                files = tuple((name, (FOLDER / name).read_bytes()) for name in names(ITEMS[row]))
                sessions.submit(row, Step(key=row, code=code, before=(PRELOAD, *before), files=files))
                [(_, seen)] = sessions.collect()
                sessions.close(row)
                return seen

            yield step
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def text(seen: Seen) -> str:
    return "\n".join(text for kind, text in seen.messages if kind in ("stdout", "execute_result"))


@ROWS
def test_a_reference_solves_the_item(row: int, run: Callable[..., Seen]) -> None:
    item, reference = ITEMS[row], REFERENCES[row]
    files = [File(name, "") for name in names(item)]
    _, *before = code_interpreter.item(item["query"], files=files).before
    seen = run(row, with_call(reference["code"]), *before)
    assert seen.end == "ok", seen
    images = [base64.b64decode(text) for kind, text in seen.messages if kind == "image"]
    assert len(images) == reference.get("images", 0)
    assert all(image.startswith(b"\x89PNG") and len(image) > 3000 for image in images)
    assert reference.get("says", "") in text(seen)
    if kind(item) == "math":
        assert text(seen).split()[-1] == item["answer"]


@pytest.mark.parametrize("row", [row for row, item in enumerate(ITEMS) if EMBEDDED in item["query"]])
def test_a_given_step_runs_and_has_seen_what_stands_behind_it(row: int, run: Callable[..., Seen]) -> None:
    [code] = snippets(ITEMS[row]["query"])
    seen = run(row, code)
    assert seen.end == "ok"
    shown = ITEMS[row]["query"].partition("\nObservation: ")[2]
    assert shown == f"execute_result:\n\n```\n{text(seen)}\n```\nThought:"


@pytest.mark.parametrize("row", [row for row, item in enumerate(ITEMS) if names(item)])
def test_without_its_files_an_item_cannot_be_solved(row: int, run: Callable[..., Seen]) -> None:
    seen = run(0, REFERENCES[row]["code"], *snippets(ITEMS[row]["query"]))
    assert seen.end == "error"


def test_what_stands_in_a_session_at_its_beginning(run: Callable[..., Seen]) -> None:
    assert text(run(0, "json, math, re, np, pd, plt, sns, Eq, symbols, solve\nprint('there')")) == "there\n"
    fonts = "plt.rcParams['font.sans-serif'], plt.rcParams['axes.unicode_minus']"
    first, again = text(run(0, fonts)), text(run(0, f"sns.set_theme(style='whitegrid')\n{fonts}"))
    assert first == again
    assert "'DejaVu Sans'], False" in first
    assert not run(0, "plt.plot([-1, 1])\nplt.title('a')\nplt.show()").messages[:-1], "a figure, and no warning"


# ----------------------------------------------------------------------------------------------------------- originality


def words(question: str) -> set[str]:
    """Every run of eight words."""
    found = re.findall(r"\w+", question.casefold())
    return {" ".join(found[start : start + 8]) for start in range(len(found) - 7)}


def test_no_question_shares_eight_words_with_gsm8k(real_data: Path) -> None:
    mine = {run for item in ITEMS for run in words(item["query"].partition(EMBEDDED)[0])}
    real = [row["question"] for name in ("test", "train") for row in lines(real_data / "gsm8k" / f"{name}.jsonl")]
    assert not {run for question in real for run in words(question) if run in mine}
