"""`python -m qwen_eval sandbox`: rows in, verdicts out, in their order; what is wrong with the input is said by its line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Command = Callable[..., CompletedProcess[str]]
ADD = "def check(candidate):\n    assert candidate(2, 3) == 5\n"
RIGHT = "def add(a, b):\n    return a + b\n"
GOOD = {"task_id": "good", "program": RIGHT, "test": ADD, "entry_point": "add"}


def write(folder: Path, rows: Sequence[object]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_verdict_for_every_row_in_order(tmp_path: Path, command: Command) -> None:
    prompt = 'def add(a, b):\n    """The sum."""\n'
    rows: list[dict[str, Any]] = [
        GOOD,
        {"task_id": 2, "prompt": prompt, "completion": "    return a + b", "test": ADD, "entry_point": "add"},
        {"task_id": "wrong", "prompt": prompt, "completion": "    return a", "test": ADD, "entry_point": "add"},
        {**GOOD, "task_id": "whole wins", "prompt": "x", "completion": "y"},
        {"task_id": "slow", "program": "while True: pass", "test": ADD, "entry_point": "add", "timeout": 0.5},
        {"task_id": "good", "program": RIGHT, "test": "assert add(1, 1) == 2", "entry_point": "add"},
        {"task_id": "no name", "program": RIGHT, "test": "assert add(1, 1) == 2"},
    ]
    write(tmp_path, rows)
    done = command("sandbox", "--input", "in.jsonl", "--output", "out.jsonl", "--workers", "2")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path)
    assert [row["task_id"] for row in found] == [row["task_id"] for row in rows]
    assert [row["passed"] for row in found] == [True, True, False, True, False, True, True]
    assert found[2]["result"] == "failed: AssertionError"
    assert found[4]["result"] == "timed out"
    assert [row["judge"] for row in found] == ["split"] * 6 + ["official"]
    assert "5 of 7 passed (71.4 %)" in done.stderr


def test_official_verdicts_say_where_the_other_judge_disagrees(tmp_path: Path, command: Command) -> None:
    lying = "class Yes:\n    __eq__ = lambda self, other: True\n\ndef add(a, b):\n    return Yes()\n"
    write(tmp_path, [GOOD, {**GOOD, "task_id": "lying", "program": lying}])
    assert command("sandbox", "--input", "in.jsonl", "--output", "out.jsonl", "--judge", "official").returncode == 0
    good, lied = read(tmp_path)
    assert good == {"task_id": "good", "passed": True, "result": "passed", "judge": "official"}
    assert lied == {
        "task_id": "lying",
        "passed": True,
        "result": "passed",
        "judge": "official",
        "other_judge_passed": False,
    }


def test_without_isolation_every_verdict_is_marked(tmp_path: Path, command: Command) -> None:
    write(tmp_path, [GOOD])
    assert command("sandbox", "--input", "in.jsonl", "--output", "out.jsonl", "--unsafe-exec").returncode == 0
    assert read(tmp_path) == [{"task_id": "good", "passed": True, "result": "passed", "judge": "split", "unsafe": True}]


def test_what_cannot_be_judged_is_an_error_with_a_verdict_for_the_rest(tmp_path: Path, command: Command) -> None:
    broken = {**GOOD, "task_id": "broken", "test": f"import no_such_module\n{ADD}"}
    write(tmp_path, [GOOD, broken, GOOD])
    done = command("sandbox", "--input", "in.jsonl", "--output", "out.jsonl")
    assert done.returncode == 4
    assert [row["passed"] for row in read(tmp_path)] == [True, False, True]
    assert read(tmp_path)[1]["result"].startswith("error: the test cannot run")
    assert "1 of 3 programs could not be judged, 'broken' first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["{"], "in.jsonl, line 1: expected JSON"),
        ([GOOD, "", "[1]"], 'in.jsonl, line 3: expected an object {"task_id", "test", …}, found list'),
        ([{**GOOD, "program": 3}], 'line 1: expected a string as "program", found int'),
        ([{"task_id": 1, "test": ""}], 'line 1: "completion" is missing'),
        ([{"program": "", "test": ""}], 'line 1: "task_id" is missing'),
        ([{"task_id": 1, "program": RIGHT, "test": ADD}], 'line 1: "entry_point" is missing'),
        ([{**GOOD, "timeout": "3"}], "expected a number of seconds above 0 as \"timeout\", found '3'"),
        ([{**GOOD, "timeout": 0}], 'as "timeout", found 0'),
        ([{**GOOD, "timeout": True}], 'as "timeout", found True'),
        ([], "expected programs to judge, found none"),
    ],
)
def test_wrong_input_is_said_by_its_line(rows: list[object], expected: str, tmp_path: Path, command: Command) -> None:
    write(tmp_path, rows)
    done = command("sandbox", "--input", "in.jsonl", "--output", "out.jsonl")
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be(tmp_path: Path, command: Command) -> None:
    write(tmp_path, [GOOD])
    assert "cannot be read" in command("sandbox", "--input", "none.jsonl", "--output", "out.jsonl").stderr
    assert "another file than --input" in command("sandbox", "--input", "in.jsonl", "--output", "in.jsonl").stderr
    assert "cannot be written" in command("sandbox", "--input", "in.jsonl", "--output", "no/where.jsonl").stderr
    done = command("sandbox", "--input", "in.jsonl", "--output", "/dev/stdout")
    assert json.loads(done.stdout)["passed"]
