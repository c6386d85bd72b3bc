"""HumanEval+: HumanEval with eighty times as many tests (Liu et al. 2023, https://arxiv.org/abs/2305.01210).

Two files with the same items: the plain one has prompt, function name, reference and HumanEval's own test; the one in
"original format" has as `test` a check of its base inputs and the added ones, up to half a megabyte.

Two protocols, and two rules over the same program (`standard` of `qwen_eval/scorers/code.py`): `plus` is whether the
large test passes, `base` whether HumanEval's does. Score: greedy pass@1 of `plus` over the 164 items (section 3).
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import code
from qwen_eval.task import DatasetSpec, Execute, Generate, ProgramRule, Protocol, Rows, Sample, SplitSpec, Task

DATA = DatasetSpec(
    name="humaneval_plus",
    licence="Apache-2.0",
    homepage="https://github.com/evalplus/humanevalplus_release",
    url=(
        "https://raw.githubusercontent.com/evalplus/humanevalplus_release/"
        "200defce9e3429d28ca215b6dd061c0f7f31c18b/{path}"
    ),
    splits={
        "test": SplitSpec(
            file="HumanEvalPlus.jsonl.gz",
            columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
            rows=164,
            fingerprint="0fd22b743a0bbee5",
        ),
        "plus": SplitSpec(
            file="HumanEvalPlus-OriginFmt.jsonl.gz",
            columns=("task_id", "test"),
            rows=164,
            fingerprint="baea5e64d2adc365",
        ),
    },
    folders=("humaneval_plus", "humanevalplus_release", "."),
)


# The large test of HumanEval/32 unpacks the number that the function returns, so nothing can pass it: the evaluation of
# the polynomial at that number is meant (what EvalPlus' own evaluator computes).
BROKEN = "_poly(*candidate(*inp), inp)"
MEANT = "abs(_poly(*inp, candidate(*inp)))"


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row of the plain file is a sample, with the large test of its namesake as `plus`."""
    plus = {row["task_id"]: row["test"].replace(BROKEN, MEANT) for row in dataset.rows("plus")}
    return [
        Sample(row["task_id"], {**row, "plus": plus[row["task_id"]]}, row["canonical_solution"])
        for row in dataset.rows(split)
    ]


def program(tests: str, column: str, timeout: float) -> ProgramRule:
    """The program that the rule `standard` finds, with one of the two tests."""

    def find(output: str, sample: Sample) -> Execute:
        row = sample.row
        return Execute(
            source=code.standard(output, row["prompt"], row["entry_point"]),
            prompt=row["prompt"],
            test=row.get(column, ""),  # a record leaves the large test out
            entry_point=row["entry_point"],
            timeout=timeout,
            tests=tests,
        )

    return find


# -------------------------------------------------------------------------------------------------------------- prompts


def standard(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The prompt as it is, and a stop wherever a function is over."""
    return lambda sample: Generate(prompt=sample.row["prompt"], max_new_tokens=768, stops=code.FUNCTION_ENDS)


def standard_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """EvalPlus' instruction."""
    return lambda sample: Generate(prompt=prompts.evalplus_chat(sample.row["prompt"]), max_new_tokens=768)


TASK = Task(
    name="humaneval_plus",
    title="HumanEval+",
    paper="https://arxiv.org/abs/2305.01210",
    data=DATA,
    samples=samples,
    programs={"plus": program("plus", "plus", 60.0), "base": program("base", "test", 3.0)},
    unrecorded=("plus",),
    protocols=(
        Protocol(
            name="standard",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="plus",
            build=standard,
            about="the bare prompt",
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
