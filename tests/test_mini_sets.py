"""The small sets of GSM8K and MMLU, and the files of all of them; those of C-Eval, CMMLU, MATH and BBH stand beside."""

import ast
import csv
import json
import operator
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

MINI = Path(__file__).resolve().parents[1] / "tasks" / "_mini"
SUBJECTS = ("elementary_mathematics", "philosophy", "high_school_geography", "miscellaneous")
GSM8K_SIZES = {"test": 24, "train": 8}
MMLU_SIZES = {"test": 6, "dev": 5}
FILES = {"gsm8k": 3, "mmlu": 8, "ceval": 12, "cmmlu": 8, "math": 4, "bbh": 12, "longcontext": 4}

NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def evaluate(expression: str) -> Fraction:
    """Exact value of an expression made of numbers, + - * / and brackets; anything else is a ValueError."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        raise ValueError(f"not arithmetic: {expression!r}")

    return walk(ast.parse(expression, mode="eval").body)


def gsm8k(split: str) -> list[dict[str, str]]:
    text = (MINI / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def mmlu(subject: str, split: str) -> list[list[str]]:
    return read_csv(MINI / "mmlu" / split / f"{subject}_{split}.csv")


GSM8K_ITEMS = [
    pytest.param(item, id=f"{split}-{index}") for split in GSM8K_SIZES for index, item in enumerate(gsm8k(split))
]
MMLU_ROWS = [
    pytest.param(row, id=f"{subject}-{split}-{index}")
    for subject in SUBJECTS
    for split in MMLU_SIZES
    for index, row in enumerate(mmlu(subject, split))
]


@pytest.mark.parametrize(
    ("expression", "value"),
    [("3*4", 12), ("-27+15", -12), ("90*2/5", 36), ("14400*.10", 1440), ("7.20+4.80", 12), ("2*(3-5)", -4)],
)
def test_evaluator_knows_arithmetic(expression: str, value: int) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize("expression", ["2**3", "abs(1)", "x+1", "True+1", "'a'*3", "[1][0]"])
def test_evaluator_refuses_everything_else(expression: str) -> None:
    with pytest.raises(ValueError, match="not arithmetic"):
        evaluate(expression)


@pytest.mark.parametrize(("split", "size"), GSM8K_SIZES.items())
def test_gsm8k_counts(split: str, size: int) -> None:
    assert len(gsm8k(split)) == size


@pytest.mark.parametrize("item", GSM8K_ITEMS)
def test_gsm8k_item_format(item: dict[str, str]) -> None:
    assert list(item) == ["question", "answer"]
    assert item["question"] == item["question"].strip()
    assert item["question"].endswith("?")
    *steps, last = item["answer"].split("\n")
    assert re.fullmatch(rf"#### {NUMBER}", last)
    assert number(last.removeprefix("#### ")).denominator == 1
    assert 2 <= len(steps) <= 6
    for step in steps:
        assert len(MARK.findall(step)) == step.count("<<") == step.count(">>") == 1


@pytest.mark.parametrize("item", GSM8K_ITEMS)
def test_gsm8k_marks_evaluate_and_are_followed_by_their_value(item: dict[str, str]) -> None:
    answer = item["answer"]
    for mark in MARK.finditer(answer):
        expression, value = mark.groups()
        assert evaluate(expression) == number(value)
        written = re.match(NUMBER, answer[mark.end() :])
        assert written is not None
        assert number(written.group()) == number(value)
        assert answer[: mark.start()].replace(",", "").rstrip("$").endswith(f" {expression}=")


@pytest.mark.parametrize("item", GSM8K_ITEMS)
def test_gsm8k_gold_is_the_last_value(item: dict[str, str]) -> None:
    steps, gold = item["answer"].split("\n#### ")
    assert number(gold) == number(MARK.findall(steps)[-1][1])


def test_gsm8k_golds_have_commas_and_a_minus_sign() -> None:
    golds = [item["answer"].split("\n#### ")[1] for item in gsm8k("test")]
    assert sum("," in gold for gold in golds) == 2
    assert sum(gold.startswith("-") for gold in golds) == 1


def test_gsm8k_exemplars() -> None:
    text = (MINI / "gsm8k" / "lm_eval_cot_8shot.txt").read_text(encoding="utf-8")
    assert text.endswith(".\n\n")
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert len(blocks) == 8
    for block in blocks:
        match = re.fullmatch(rf"Q: [^\n]+\?\nA: ([^\n]+) The answer is ({NUMBER})\.", block)
        assert match is not None
        thought, answer = match.groups()
        sums = re.findall(r"(\d[\d.]*(?: [-+*/] \d[\d.]*)+) = (\d+)", thought)
        assert sums
        assert all(evaluate(expression) == number(value) for expression, value in sums)
        assert sums[-1][1] == answer


@pytest.mark.parametrize("split", MMLU_SIZES)
def test_mmlu_counts(split: str) -> None:
    assert {path.name for path in (MINI / "mmlu" / split).iterdir()} == {f"{name}_{split}.csv" for name in SUBJECTS}
    for subject in SUBJECTS:
        assert len(mmlu(subject, split)) == MMLU_SIZES[split]


@pytest.mark.parametrize("row", MMLU_ROWS)
def test_mmlu_row_format(row: list[str]) -> None:
    question, *options, answer = row
    assert len(options) == 4
    assert answer in ("A", "B", "C", "D")
    assert all(cell and cell == cell.strip() for cell in row)
    assert len({option.casefold() for option in options}) == 4
    assert question


def test_mmlu_answers_are_balanced() -> None:
    counts = Counter(row[-1] for subject in SUBJECTS for row in mmlu(subject, "test"))
    assert counts == {"A": 6, "B": 6, "C": 6, "D": 6}
    for subject in SUBJECTS:
        assert len({row[-1] for row in mmlu(subject, "dev")}) > 1


def test_mmlu_has_the_cells_that_careless_readers_get_wrong() -> None:
    rows = [row for subject in SUBJECTS for row in mmlu(subject, "test")]
    assert any("\n" in row[0] for row in rows)
    assert any('"' in row[0] for row in rows)
    assert any("," in cell for row in rows for cell in row[1:5])
    assert any(row["ABCD".index(row[5]) + 1] == "None" for row in rows)
    assert any(all(re.fullmatch(NUMBER, option) for option in row[1:5]) for row in rows)


@pytest.mark.parametrize(("folder", "files"), FILES.items())
def test_line_ends_are_those_of_the_real_files(folder: str, files: int) -> None:
    paths = [path for path in (MINI / folder).rglob("*") if path.is_file()]
    assert len(paths) == files
    for path in paths:
        content = path.read_bytes()
        if folder == "ceval":  # rows end in CRLF, lines inside a cell in LF
            assert content.endswith(b"\r\n")
            assert content.count(b"\r") == content.count(b"\r\n") == len(read_csv(path))
        else:
            assert b"\r" not in content
            assert content.endswith(b"\n") == (folder != "bbh" and path.name != "minerva_4shot_prompt.txt")


def test_no_question_appears_twice() -> None:
    questions = [item["question"] for split in GSM8K_SIZES for item in gsm8k(split)]
    questions += re.findall(r"^Q: (.+)$", (MINI / "gsm8k" / "lm_eval_cot_8shot.txt").read_text("utf-8"), re.MULTILINE)
    questions += [row[0] for subject in SUBJECTS for split in MMLU_SIZES for row in mmlu(subject, split)]
    assert len(questions) == 24 + 8 + 8 + 24 + 20
    assert len({" ".join(re.findall(r"\w+", question.casefold())) for question in questions}) == len(questions)
