"""The small sets of C-Eval and CMMLU."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

MINI = Path(__file__).resolve().parents[1] / "tasks" / "_mini"
# Subject and category; C-Eval counts high_school_mathematics among its hard subjects too, CMMLU chinese_food_culture
# among those specific to China.
CEVAL = {
    "high_school_mathematics": "STEM",
    "high_school_geography": "Social Science",
    "chinese_language_and_literature": "Humanities",
    "basic_medicine": "Other",
}
CMMLU = {
    "conceptual_physics": "STEM",
    "world_history": "Humanities",
    "chinese_food_culture": "Social Science",
    "computer_security": "Other",
}
CEVAL_SIZES = {"dev": 5, "val": 6, "test": 2}
CMMLU_SIZES = {"dev": 5, "test": 6}
CEVAL_COLUMNS = ["id", "question", "A", "B", "C", "D"]
CEVAL_HEADERS = {
    "dev": [*CEVAL_COLUMNS, "answer", "explanation"],
    "val": [*CEVAL_COLUMNS, "answer"],
    "test": CEVAL_COLUMNS,
}
CMMLU_HEADER = ["", "Question", "A", "B", "C", "D", "Answer"]


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def ceval(subject: str, split: str) -> list[list[str]]:
    return read_csv(MINI / "ceval" / split / f"{subject}_{split}.csv")


def cmmlu(subject: str, split: str) -> list[list[str]]:
    return read_csv(MINI / "cmmlu" / split / f"{subject}.csv")


CEVAL_ROWS = [
    pytest.param(split, row, id=f"{subject}-{split}-{row[0]}")
    for subject in CEVAL
    for split in CEVAL_SIZES
    for row in ceval(subject, split)[1:]
]
CMMLU_ROWS = [
    pytest.param(row, id=f"{subject}-{split}-{row[0]}")
    for subject in CMMLU
    for split in CMMLU_SIZES
    for row in cmmlu(subject, split)[1:]
]
QUESTIONS = [row[1] for subject in CEVAL for split in CEVAL_SIZES for row in ceval(subject, split)[1:]]
QUESTIONS += [row[1] for subject in CMMLU for split in CMMLU_SIZES for row in cmmlu(subject, split)[1:]]


@pytest.mark.parametrize("split", CEVAL_SIZES)
def test_ceval_counts(split: str) -> None:
    assert {path.name for path in (MINI / "ceval" / split).iterdir()} == {f"{name}_{split}.csv" for name in CEVAL}
    for subject in CEVAL:
        header, *rows = ceval(subject, split)
        assert header == CEVAL_HEADERS[split]
        assert [row[0] for row in rows] == [str(index) for index in range(CEVAL_SIZES[split])]


@pytest.mark.parametrize("split", CMMLU_SIZES)
def test_cmmlu_counts(split: str) -> None:
    assert {path.name for path in (MINI / "cmmlu" / split).iterdir()} == {f"{name}.csv" for name in CMMLU}
    for subject in CMMLU:
        header, *rows = cmmlu(subject, split)
        assert header == CMMLU_HEADER
        assert [row[0] for row in rows] == [str(index) for index in range(CMMLU_SIZES[split])]


def check_question(cells: list[str]) -> None:
    assert len(cells) == 5
    assert all(cell and cell == cell.strip() for cell in cells)
    assert re.search("[\u4e00-\u9fff]", cells[0])
    assert len({option.casefold() for option in cells[1:]}) == 4


@pytest.mark.parametrize(("split", "row"), CEVAL_ROWS)
def test_ceval_row_format(split: str, row: list[str]) -> None:
    assert len(row) == len(CEVAL_HEADERS[split])
    check_question(row[1:6])
    assert row[1].count("____") == 1
    assert split == "test" or row[6] in ("A", "B", "C", "D")
    if split == "dev":
        steps = row[7].split("\n")
        assert all(re.fullmatch(rf"{number}\. .+。", step) for number, step in enumerate(steps, start=1))


@pytest.mark.parametrize("row", CMMLU_ROWS)
def test_cmmlu_row_format(row: list[str]) -> None:
    assert len(row) == len(CMMLU_HEADER)
    check_question(row[1:6])
    assert row[6] in ("A", "B", "C", "D")


def test_answers_are_balanced() -> None:
    even = {"A": 6, "B": 6, "C": 6, "D": 6}
    assert Counter(row[6] for subject in CEVAL for row in ceval(subject, "val")[1:]) == even
    assert Counter(row[6] for subject in CMMLU for row in cmmlu(subject, "test")[1:]) == even
    for rows in [ceval(subject, "dev")[1:] for subject in CEVAL] + [cmmlu(subject, "dev")[1:] for subject in CMMLU]:
        assert {row[6] for row in rows} == {"A", "B", "C", "D"}


def test_ceval_has_the_cells_that_careless_readers_get_wrong() -> None:
    rows = [row for subject in CEVAL for row in ceval(subject, "val")[1:]]
    assert any("\n" in row[1] for row in rows)
    assert any("," in row[1] for row in rows)
    assert any(row[1].startswith("____") for row in rows)
    assert any(re.search(r"____[^。]+", row[1]) for row in rows)
    assert any(sum(option in other for other in row[2:6]) > 1 for row in rows for option in row[2:6])
    assert any(all(option.isdecimal() for option in row[2:6]) for row in cmmlu("computer_security", "test")[1:])


def test_no_question_appears_twice() -> None:
    assert len(QUESTIONS) == 4 * (5 + 6 + 2) + 4 * (5 + 6)
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def runs(question: str) -> set[str]:
    """Every run of twelve Chinese characters, whatever stands between them; the whole question where there is none."""
    characters = "".join(re.findall("[\u4e00-\u9fff]", question))
    found = {characters[start : start + 12] for start in range(len(characters) - 11)}
    return found or {"".join(re.findall(r"\w", question))}


def test_no_question_shares_twelve_characters_with_the_real_sets(real_data: Path) -> None:
    mine = {run: question for question in QUESTIONS for run in runs(question)}
    files = [path for name in ("ceval", "cmmlu") for path in (real_data / name).glob("*/*.csv")]
    assert len(files) == 52 * 3 + 67 * 2
    shared = {mine[run] for path in files for row in read_csv(path)[1:] for run in runs(row[1]) if run in mine}
    assert not shared


def test_subjects_are_real_ones(real_data: Path) -> None:
    mapping = json.loads((real_data / "ceval" / "subject_mapping.json").read_text(encoding="utf-8"))
    assert {subject: mapping[subject][2] for subject in CEVAL} == CEVAL
    table = json.loads((real_data / "cmmlu" / "categories.json").read_text(encoding="utf-8"))
    for subject, category in CMMLU.items():
        assert table["subcategories"][subject][0] in table["categories"][category]
