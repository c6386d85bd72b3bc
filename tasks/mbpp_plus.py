"""MBPP+: the items of MBPP that EvalPlus kept, with many more tests (Liu et al. 2023, https://arxiv.org/abs/2305.01210).

Two files with the same items: the plain one has prompt (a docstring with the sentence and the first assert), function
name, reference and MBPP's asserts; the one in "original format" has as `test` statements that check its base inputs and
the added ones, up to 790 KB.

Two protocols, and two rules over the same program (`standard` of `qwen_eval/scorers/code.py`): `plus` is whether the
large test passes, `base` whether the asserts hold. Score: greedy pass@1 of `plus` over the 378 items.
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import code
from qwen_eval.scorers.text import cut
from qwen_eval.task import DatasetSpec, Execute, Generate, ProgramRule, Protocol, Rows, Sample, SplitSpec, Task

DATA = DatasetSpec(
    name="mbpp_plus",
    licence="Apache-2.0",
    homepage="https://github.com/evalplus/mbppplus_release",
    url=("https://raw.githubusercontent.com/evalplus/mbppplus_release/dadf43da556a00f7bacd71cb154f2932757d9144/{path}"),
    splits={
        "test": SplitSpec(
            file="MbppPlus.jsonl.gz",
            columns=("task_id", "prompt", "entry_point", "canonical_solution", "assertion"),
            rows=378,
            fingerprint="20ff51ad2a492f63",
        ),
        "plus": SplitSpec(
            file="MbppPlus-OriginFmt.jsonl.gz",
            columns=("task_id", "test"),
            structured=("task_id",),
            rows=378,
            fingerprint="633fffca4775381b",
        ),
    },
    folders=("mbpp_plus", "mbppplus_release", "."),
)

STOPS = ('\n"""', "\nassert", "\nprint", "\nif __name__")


# The asserts of one item (Mbpp/120) use a module that neither they nor its reference import.
IMPORTS = "import math\n"


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row of the plain file is a sample, with the large test of its namesake as `plus`."""
    plus = {f"Mbpp/{row['task_id']}": row["test"] for row in dataset.rows("plus")}
    return [
        Sample(
            row["task_id"],
            {**row, "assertion": IMPORTS + row["assertion"], "plus": plus[row["task_id"]]},
            row["canonical_solution"],
        )
        for row in dataset.rows(split)
    ]


def program(tests: str, column: str, timeout: float) -> ProgramRule:
    """The program that the rule `standard` finds, with one of the two tests.

    What is no reply with a fence continues the docstring, and is cut where the protocol stops.
    """

    def find(output: str, sample: Sample) -> Execute:
        row = sample.row
        text = output if "```" in output else cut(output, *STOPS)
        return Execute(
            source=code.mbpp_standard(text, row["entry_point"]),
            test=row.get(column, ""),  # a record leaves the large test out
            entry_point=row["entry_point"],
            timeout=timeout,
            tests=tests,
        )

    return find


# -------------------------------------------------------------------------------------------------------------- prompts


def standard(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The docstring as it is, and a stop where tests would follow."""
    return lambda sample: Generate(prompt=sample.row["prompt"], max_new_tokens=768, stops=STOPS)


def standard_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """EvalPlus' instruction."""
    return lambda sample: Generate(prompt=prompts.evalplus_chat(sample.row["prompt"]), max_new_tokens=768)


TASK = Task(
    name="mbpp_plus",
    title="MBPP+",
    paper="https://arxiv.org/abs/2305.01210",
    data=DATA,
    samples=samples,
    programs={"plus": program("plus", "plus", 60.0), "base": program("base", "assertion", 10.0)},
    unrecorded=("plus",),
    protocols=(
        Protocol(
            name="standard",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="plus",
            build=standard,
            about="the bare docstring",
        ),
        Protocol(
            name="standard-chat",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="plus",
            build=standard_chat,
            about="EvalPlus' instruction, without its prefilled reply",
        ),
    ),
)
