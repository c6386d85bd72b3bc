"""The small sets of MATH and BBH."""

import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest

MINI = Path(__file__).resolve().parents[1] / "tasks" / "_mini"
TYPES = {
    "Algebra": 4,
    "Prealgebra": 4,
    "Geometry": 4,
    "Number Theory": 4,
    "Counting & Probability": 3,
    "Intermediate Algebra": 3,
    "Precalculus": 2,
}
LEVELS = {f"Level {number}" for number in range(1, 6)}
LAST_LINE = r"Final Answer: The final answer is \$([^\n]+?)\$\. I hope it is correct\."
LAYOUTS = {
    "lm_eval_4shot.txt": rf"Problem:\n(.+?)\n\nSolution: (.+?)\n{LAST_LINE}\n\n",
    "opencompass_265cce_4shot.txt": rf"Problem:\n(.+?)\nSolution:\n(.+?)\n{LAST_LINE}\n\n",
    "minerva_4shot_prompt.txt": rf"Problem:\n(.+?)\n\nSolution:\n(.+?)\n{LAST_LINE}(?:\n\n|\Z)",
}
CHOICE = ("date_understanding", "hyperbaton", "logical_deduction_three_objects")
FREE = {
    "boolean_expressions": r"True|False",
    "multistep_arithmetic_two": r"-?\d+",
    "word_sorting": r"[a-z&]+(?: [a-z&]+)+",
}
SUBTASKS = (*CHOICE, *FREE)


def boxed(solution: str) -> str | None:
    """The content of the last \\boxed{...} with balanced braces, None where there is none."""
    _, found, rest = solution.rpartition("\\boxed{")
    depth = 1
    for index, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if found and depth == 0:
            return rest[:index]
    return None


def math() -> list[dict[str, str]]:
    text = (MINI / "math" / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def exemplars(file: str) -> list[tuple[str, str, str]]:
    """Problem, solution and answer of each exemplar; the file is made of nothing else."""
    text = (MINI / "math" / file).read_text(encoding="utf-8")
    assert re.sub(LAYOUTS[file], "", text, flags=re.DOTALL) == ""
    return re.findall(LAYOUTS[file], text, flags=re.DOTALL)


def bbh(subtask: str) -> list[dict[str, str]]:
    content = json.loads((MINI / "bbh" / "bbh" / f"{subtask}.json").read_text(encoding="utf-8"))
    assert list(content) == ["canary", "examples"]
    assert "small original set" in content["canary"]
    return content["examples"]


def cot(subtask: str) -> list[tuple[str, str, str]]:
    """Question, chain of thought and answer of each exemplar of a prompt."""
    text = (MINI / "bbh" / "cot-prompts" / f"{subtask}.txt").read_text(encoding="utf-8")
    head, *blocks = text.split("\n\n")
    note, line, description = head.split("\n")
    assert "small original set" in note.casefold()
    assert line == "-----"
    assert description.endswith(".")
    found = [
        re.fullmatch(r"Q: (.+)\nA: Let's think step by step\.\n(.+) So the answer is (.+)\.", block, re.DOTALL)
        for block in blocks
    ]
    return [(match[1], match[2], match[3]) for match in found if match]


MATH_ITEMS = [pytest.param(item, id=str(item["idx"])) for item in math()]
# Question and answer, of items and of exemplars.
BBH_PAIRS = {
    subtask: [(item["input"], item["target"]) for item in bbh(subtask)]
    + [(question, answer) for question, _, answer in cot(subtask)]
    for subtask in SUBTASKS
}


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so $\boxed{1}$, or $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{\text{a {b} c}}$", r"\text{a {b} c}"),
        (r"$\boxed{1$", None),
        (r"$1}$", None),
    ],
)
def test_boxed_is_the_last_and_balanced(solution: str, gold: str | None) -> None:
    assert boxed(solution) == gold


def test_math_counts() -> None:
    items = math()
    assert [item["idx"] for item in items] == list(range(24))
    assert Counter(item["type"] for item in items) == TYPES
    assert {item["level"] for item in items} == LEVELS


@pytest.mark.parametrize("item", MATH_ITEMS)
def test_math_item_format(item: dict[str, str]) -> None:
    assert list(item) == ["problem", "level", "type", "solution", "idx"]
    for text in (item["problem"], item["solution"]):
        assert text == text.strip()
        assert text.count("{") == text.count("}")
        assert text.replace(r"\$", "").count("$") % 2 == 0
    assert item["solution"].count(r"\boxed{") == 1
    assert boxed(item["solution"])


def test_math_golds_have_many_shapes() -> None:
    golds = [boxed(item["solution"]) or "" for item in math()]
    shapes = {
        "integer": r"\d+",
        "fraction": r"-?\\frac\{\d+\}\{\d+\}",
        "display fraction": r"\\dfrac\{\d+\}\{\d+\}",
        "decimal": r"\d+\.\d+",
        "money": r"\\\$\d+\.\d\d",
        "thousands": r"\d+,\\!\d{3}",
        "radical": r"\d+\\sqrt\{\d+\}",
        "radical in a fraction": r"\\frac\{\d+-\\sqrt\{\d+\}\}\{\d+\}",
        "multiple of pi": r"\d+\\pi",
        "closed interval": r"\[.+,.+\]",
        "tuple or open interval": r"\(.+,.+\)",
        "list": r"\d+(?:, \d+)+",
        "unit": r".+\\text\{ .+\}",
        "squared unit": r".+\\text\{ .+\}\^2",
        "degrees": r"\d+\^\\circ",
        "word": r"\\text\{[A-Z][a-z]+\}",
        "base": r"\d+_\d",
        "equation": r"[a-z]=\d+",
        "polynomial": r"\d*[a-z].*[-+]\d+",
        "matrix": r"\\begin\{pmatrix\}.+\\end\{pmatrix\}",
    }
    missing = [name for name, shape in shapes.items() if not any(re.fullmatch(shape, gold) for gold in golds)]
    assert not missing


@pytest.mark.parametrize("file", LAYOUTS)
def test_math_exemplar_files_have_four_exemplars(file: str) -> None:
    found = exemplars(file)
    assert len(found) == 4
    for _, solution, answer in found:
        assert boxed(solution) == answer


def test_math_exemplars_are_the_same_in_three_layouts() -> None:
    first, *others = [[[" ".join(text.split()) for text in one] for one in exemplars(file)] for file in LAYOUTS]
    assert all(other == first for other in others)
    assert all("\n" not in text for one in exemplars("opencompass_265cce_4shot.txt") for text in one)


def test_bbh_files() -> None:
    assert {path.name for path in (MINI / "bbh" / "bbh").iterdir()} == {f"{name}.json" for name in SUBTASKS}
    assert {path.name for path in (MINI / "bbh" / "cot-prompts").iterdir()} == {f"{name}.txt" for name in SUBTASKS}


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_bbh_item_format(subtask: str) -> None:
    items, shots = bbh(subtask), cot(subtask)
    assert len(items) == 4
    assert len(shots) == 3
    assert all(list(item) == ["input", "target"] for item in items)
    assert all("answer is" not in thought for _, thought, _ in shots)
    questions = [question for question, _ in BBH_PAIRS[subtask]]
    assert len(set(questions)) == 7
    assert all(question == question.strip() for question in questions)


@pytest.mark.parametrize("subtask", CHOICE)
def test_bbh_choices(subtask: str) -> None:
    for question, answer in BBH_PAIRS[subtask]:
        stem, *options = question.split("\n")
        assert options.pop(0) == "Options:"
        assert stem
        assert [option[:4] for option in options] == [f"({letter}) " for letter in "ABCDEF"[: len(options)]]
        assert len(set(options)) == len({option[4:].casefold() for option in options})
        assert answer in [option[:3] for option in options]
    answers = Counter(item["target"] for item in bbh(subtask))
    assert max(answers.values()) <= 2
    assert len({answer for _, _, answer in cot(subtask)}) > 1


@pytest.mark.parametrize(("subtask", "form"), FREE.items())
def test_bbh_free_answers(subtask: str, form: str) -> None:
    for question, answer in BBH_PAIRS[subtask]:
        assert "Options:" not in question
        assert re.fullmatch(form, answer)


def test_bbh_words_are_sorted() -> None:
    for question, answer in BBH_PAIRS["word_sorting"]:
        assert answer.split() == sorted(question.split("List: ")[1].split())


def test_bbh_booleans_evaluate() -> None:
    for question, answer in BBH_PAIRS["boolean_expressions"]:
        expression = question.removesuffix(" is")
        assert set(expression.split()) <= {"True", "False", "not", "and", "or", "(", ")"}
        assert str(eval(expression)) == answer
    assert Counter(item["target"] for item in bbh("boolean_expressions")) == {"True": 2, "False": 2}


def test_bbh_arithmetic_evaluates() -> None:
    outer = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    for question, answer in BBH_PAIRS["multistep_arithmetic_two"]:
        match = re.fullmatch(r"\((\([-\d +*]+\)) ([-+*]) (\([-\d +*]+\))\) =", question)
        assert match is not None
        first, sign, second = match.groups()
        assert str(outer[sign](eval(first), eval(second))) == answer


def test_bbh_prompts_have_a_character_beyond_ascii() -> None:
    assert any(not thought.isascii() for subtask in SUBTASKS for _, thought, _ in cot(subtask))


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of eight words."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 8]) for start in range(len(words) - 7)}


def test_no_math_text_shares_eight_words_with_the_real_set(real_data: Path) -> None:
    lines = (real_data / "math" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [item[field] for item in map(json.loads, lines) for field in ("problem", "solution")]
    texts += [(real_data / "math" / file).read_text(encoding="utf-8") for file in LAYOUTS]
    assert len(texts) == 10003
    real = set().union(*map(runs, texts))
    mine = [item[field] for item in math() for field in ("problem", "solution")]
    mine += [text for file in LAYOUTS for problem, solution, _ in exemplars(file) for text in (problem, solution)]
    assert not [text for text in mine if runs(text) & real]


def test_no_bbh_text_shares_eight_words_with_the_real_set(real_data: Path) -> None:
    files = list((real_data / "bbh" / "bbh").glob("*.json"))
    questions = [item["input"] for path in files for item in json.loads(path.read_text(encoding="utf-8"))["examples"]]
    assert len(questions) == 6511
    prompts = [path.read_text(encoding="utf-8") for path in (real_data / "bbh" / "cot-prompts").glob("*.txt")]
    real = set().union(*map(runs, [*questions, *prompts]))
    for subtask in SUBTASKS:
        mine = [question for question, _ in BBH_PAIRS[subtask]]
        if subtask in ("boolean_expressions", "multistep_arithmetic_two"):  # few symbols: runs of them are no text
            assert not set(mine) & set(questions)
            assert not [question for question in mine for prompt in prompts if f"Q: {question}\n" in prompt]
        else:
            assert not [text for text in mine if runs(text) & real]
