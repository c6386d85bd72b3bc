"""The small sets of HumanEval, MBPP and their plus sets. Their references are ours, so they are run here as they are."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

MINI = Path(__file__).resolve().parents[1] / "tasks" / "_mini"
TEXTS = ("lm_eval_3shot.txt", "opencompass_1e1056_3shot.txt")


def rows(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MINI / file).read_text(encoding="utf-8").splitlines()]


HUMANEVAL = rows("humaneval/HumanEval.jsonl")
MBPP = rows("mbpp/mbpp.jsonl")
SANITIZED = json.loads((MINI / "mbpp" / "sanitized-mbpp.json").read_text(encoding="utf-8"))


def test_counts_and_numbers() -> None:
    assert [row["task_id"] for row in HUMANEVAL] == [f"HumanEval/{number}" for number in range(24)]
    assert [row["task_id"] for row in MBPP] == [2, 3, 4, *range(11, 35)]
    assert [row["task_id"] for row in SANITIZED] == [row["task_id"] for row in MBPP]
    for name, numbers in (("humaneval_plus/HumanEvalPlus", range(24)), ("mbpp_plus/MbppPlus", range(11, 35))):
        plain, origin = rows(f"{name}.jsonl"), rows(f"{name}-OriginFmt.jsonl")
        assert [int(str(row["task_id"]).split("/")[-1]) for row in plain] == list(numbers)
        assert [int(str(row["task_id"]).split("/")[-1]) for row in origin] == list(numbers)


@pytest.mark.parametrize("row", HUMANEVAL, ids=lambda row: row["entry_point"])
def test_humaneval_item_format_and_reference(row: dict[str, Any]) -> None:
    assert list(row) == ["task_id", "prompt", "entry_point", "canonical_solution", "test"]
    assert row["prompt"].endswith('    """\n')
    assert row["prompt"].count('"""') == 2
    assert "    >>> " in row["prompt"]
    exec(f"{row['prompt']}{row['canonical_solution']}{row['test']}\ncheck({row['entry_point']})", {})


@pytest.mark.parametrize("row", MBPP, ids=lambda row: str(row["task_id"]))
def test_mbpp_item_format_and_reference(row: dict[str, Any]) -> None:
    assert list(row) == ["text", "code", "task_id", "test_setup_code", "test_list", "challenge_test_list"]
    assert re.match(r"Write a (?:python )?function to [a-z].*\.$", row["text"])
    assert len(row["test_list"]) == 3
    assert "\n" not in row["code"].replace("\r\n", "")
    exec("\n".join([row["code"], *row["test_list"]]), {})
    name = re.findall(r"def (\w+)", row["code"])[-1]
    wrong = f"def {name}(*given): return 'wrong'"
    with pytest.raises((AssertionError, TypeError)):
        exec("\n".join([wrong, *row["test_list"]]), {})


@pytest.mark.parametrize("name", ["humaneval_plus/HumanEvalPlus", "mbpp_plus/MbppPlus"])
def test_plus_references_pass_and_a_wrong_function_does_not(name: str) -> None:
    for plain, origin in zip(rows(f"{name}.jsonl"), rows(f"{name}-OriginFmt.jsonl"), strict=True):
        call = f"\ncheck({plain['entry_point']})" if "def check(" in origin["test"] else ""
        before = plain["prompt"] if call else ""
        exec(f"{before}{plain['canonical_solution']}{origin['test']}{call}", {})
        exec(f"{before}{plain['canonical_solution']}{plain.get('assertion', plain.get('test'))}", {})
        with pytest.raises((AssertionError, TypeError)):
            exec(f"def {plain['entry_point']}(*given): return 'wrong'\n{origin['test']}{call}", {})


def test_the_exemplar_files_hold_the_items_2_to_4() -> None:
    clean, padded = ((MINI / "mbpp" / file).read_bytes().decode() for file in TEXTS)
    assert clean.count("[BEGIN]\n") == clean.count("\n[DONE]\n\n") == 3
    assert padded.count("[BEGIN]\n '") == padded.count("' \n[DONE] \n\n \n") == 3
    for row in MBPP[:3]:
        assert all(text in clean for text in (row["text"], row["code"].replace("\r\n", "\n"), *row["test_list"]))
        assert all(text in padded for text in (row["text"], f"'{row['code']}'", *row["test_list"]))


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of eight words."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 8]) for start in range(len(words) - 7)}


def test_no_text_shares_eight_words_with_the_real_sets(real_data: Path) -> None:
    mbpp = [json.loads(line) for line in (real_data / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
    sanitized = json.loads((real_data / "mbpp" / "sanitized-mbpp.json").read_text(encoding="utf-8"))
    with gzip.open(real_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as stream:
        humaneval = [json.loads(line) for line in stream]
    assert (len(mbpp), len(sanitized), len(humaneval)) == (974, 427, 164)
    real = set().union(
        *(runs(row["text"]) | runs(row["code"]) for row in mbpp),
        *(runs(row["prompt"]) | runs(row["code"]) for row in sanitized),
        *(runs(row["prompt"]) | runs(row["canonical_solution"]) for row in humaneval),
    )
    assert not [row["text"] for row in MBPP if (runs(row["text"]) | runs(row["code"])) & real]
    assert not [row["prompt"] for row in HUMANEVAL if (runs(row["prompt"]) | runs(row["canonical_solution"])) & real]
    names = {name for row in mbpp for name in re.findall(r"def (\w+)", row["code"])}
    names |= {row["entry_point"] for row in humaneval}
    assert not {row["entry_point"] for row in HUMANEVAL} & names
