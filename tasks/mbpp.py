"""MBPP: mostly basic Python problems, a sentence and three asserts each (Austin et al. 2021, https://arxiv.org/abs/2108.07732).

A row has the sentence, a reference solution, three asserts, and for two items code that has to run before them:

    text  Write a function to add.    code  def add(a, b):⏎  return a + b    test_list  ["assert add(1, 2) == 3", …]

The parts of the data are ranges of `task_id` (section 2.1): 1-10 for prompts, 11-510 the test set, 511-600 validation,
601-974 training. The split `sanitized` holds the test items of the set its authors went over by hand.

Four protocols (prompts as published; EVALUATION.md says by whom) show three exemplars; three rules find a program in
the output (`qwen_eval/scorers/code.py`), which passes where the asserts hold. Score: pass@1 over the 500 test items.
"""

import json
import re
from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import code
from qwen_eval.task import (
    Chat,
    DatasetSpec,
    Execute,
    Generate,
    ProgramRule,
    Protocol,
    Row,
    Rows,
    Sample,
    SplitSpec,
    Task,
    Turn,
)

OPENCOMPASS = "opencompass_1e1056_3shot.txt"
LM_EVAL = "lm_eval_3shot.txt"
EXEMPLARS = (1, 2, 3)  # rows of the prompting part: the items 2, 3 and 4, as in the paper


def problems(numbers: range, fingerprint: str) -> SplitSpec:
    """The items with these numbers."""
    return SplitSpec(
        file="mbpp.jsonl",
        columns=("task_id", "text", "code", "test_setup_code", "test_list"),
        structured=("task_id", "test_list"),
        part=("task_id", numbers),
        rows=len(numbers),
        fingerprint=fingerprint,
    )


DATA = DatasetSpec(
    name="mbpp",
    licence="CC BY 4.0",
    homepage="https://github.com/google-research/google-research/tree/master/mbpp",
    # A copy of the authors' folder with the rows that are pinned here; one revision of theirs has others.
    url="https://raw.githubusercontent.com/patdfb/TPC-EES/7036e20c0ff3e9bcc2de60545dadd8c705599ecf/mbpp/{path}",
    splits={
        "test": problems(range(11, 511), "65a565519f686b39"),
        "sanitized": SplitSpec(
            file="sanitized-mbpp.json",
            columns=("task_id", "prompt", "code", "test_imports", "test_list"),
            structured=("task_id", "test_imports", "test_list"),
            part=("task_id", range(11, 511)),
            rows=257,
            fingerprint="ab134279c027cc1b",
        ),
        "prompt": problems(range(1, 11), "7722767a68c8a5af"),
        "validation": problems(range(511, 601), "dbb2d1ac2c23b706"),
        "train": problems(range(601, 975), "55de0e34122a3e95"),
    },
    folders=("mbpp", "google-research/mbpp", "MBPP", "."),
    texts={OPENCOMPASS: "", LM_EVAL: ""},
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is the item's number, its gold the reference solution."""
    return [Sample(row["task_id"], problem(row), row["code"]) for row in dataset.rows(split)]


def problem(row: Row) -> Row:
    """A row in the form of the whole set; the sanitized set names its columns otherwise."""
    if "text" in row:
        return row
    return {
        "task_id": row["task_id"],
        "text": row["prompt"],
        "code": row["code"],
        "test_setup_code": "\n".join(json.loads(row["test_imports"])),
        "test_list": row["test_list"],
    }


def asserts(row: Row) -> str:
    """The asserts, one a line."""
    return "\n".join(json.loads(row["test_list"]))


def entry_point(row: Row) -> str:
    """The name that the asserts call first of those that the reference defines. No column holds it."""
    defined = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.MULTILINE)
    called = re.findall(r"\b(\w+)\s*\(", asserts(row))
    return next((name for name in called if name in defined), "")


def program(rule: Callable[[str, str], str], *, set_up: bool, timeout: float) -> ProgramRule:
    """The program that a rule finds, with the asserts, and before them the set-up code where it is run at all.

    Set-up code stands behind the solution: that of two items uses a class which the solution defines.
    """

    def find(output: str, sample: Sample) -> Execute:
        row = sample.row
        name = entry_point(row)
        before = f"{row['test_setup_code']}\n" if set_up and row["test_setup_code"] else ""
        return Execute(
            source=rule(output, name),
            test=before + asserts(row),
            entry_point=name,
            timeout=timeout,
            tests="" if set_up else "without set-up",
        )

    return find


# -------------------------------------------------------------------------------------------------------------- prompts


def question(row: Row) -> str:
    """The authors' format: the sentence, a blank line, the asserts (figure 2 of the paper)."""
    return f"{header(row)}\n\n{asserts(row)}"


def header(row: Row) -> str:
    """Its first line."""
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:"
    )


def answer(row: Row) -> str:
    """An exemplar's solution between its marks; the line ends of the data, CRLF, become those of the prompt."""
    solution = row["code"].replace("\r\n", "\n")
    return f"[BEGIN]\n{solution}\n[DONE]"


def standard(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Ours: the authors' format as it stands in the paper, a blank line between the shots."""
    shown = "".join(f"{question(row)}\n{answer(row)}\n\n" for row in dataset.exemplars("prompt", EXEMPLARS[:shots]))
    return lambda sample: Generate(prompt=f"{shown}{question(sample.row)}\n[BEGIN]\n", stops=("[DONE]",))


def standard_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Ours: the same text, one round an exemplar."""
    turns = [Turn("system", prompts.DEFAULT_SYSTEM)]
    for row in dataset.exemplars("prompt", EXEMPLARS[:shots]):
        turns += [Turn("user", question(row)), Turn("assistant", answer(row))]
    return lambda sample: Generate(prompt=Chat((*turns, Turn("user", question(sample.row)))), stops=("[DONE]",))


def opencompass(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `mbpp_gen_1e1056` for base models: padded asserts, the exemplars' code in quotes."""
    shown = dataset.text(OPENCOMPASS)
    return lambda sample: Generate(
        prompt=f"{shown}{header(sample.row)}\n\n {asserts(sample.row)}  \n\n[BEGIN]\n",
    )


def lm_eval(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `mbpp`: the same, but for the line ends inside the exemplars' code."""
    shown = dataset.text(LM_EVAL)
    return lambda sample: Generate(prompt=f"{shown}{question(sample.row)}\n[BEGIN]\n", stops=("[DONE]",))


TASK = Task(
    name="mbpp",
    title="MBPP",
    paper="https://arxiv.org/abs/2108.07732",
    data=DATA,
    samples=samples,
    splits=("test", "sanitized", "validation", "train", "prompt"),
    programs={
        # The reference of item 123 needs three seconds on a slow machine; nobody should lose it to the machine.
        "standard": program(code.MBPP["standard"], set_up=True, timeout=10.0),
        "opencompass-2023": program(code.MBPP["opencompass-2023"], set_up=False, timeout=2.0),
        "opencompass-2023-chat": program(code.MBPP["opencompass-2023-chat"], set_up=False, timeout=2.0),
    },
    protocols=(
        Protocol(
            name="standard",
            chat=False,
            shots=3,
            shots_allowed=range(4),
            rule="standard",
            build=standard,
            about="ours: the authors' format, items 2, 3 and 4; set-up code is run",
        ),
        Protocol(
            name="standard-chat",
            chat=True,
            shots=3,
            shots_allowed=range(4),
            rule="standard",
            build=standard_chat,
            about="ours: the same, one round an exemplar",
        ),
        Protocol(
            name="opencompass",
            chat=False,
            shots=3,
            shots_allowed=range(3, 4),
            rule="opencompass-2023",
            build=opencompass,
            about="OpenCompass mbpp_gen_1e1056 (September 2023): padded format, between BEGIN and DONE",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=3,
            shots_allowed=range(3, 4),
            rule="standard",
            build=lm_eval,
            about="lm-evaluation-harness mbpp: its own spelling of the exemplars",
        ),
    ),
)
