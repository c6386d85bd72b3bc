"""MATH: competition mathematics, seven subjects, five levels (Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874).

A row has a problem, its type and level, and a worked solution that carries the answer in its last box:

    problem  If $x+1=3$, find $x$.    type  Algebra    level  Level 1    solution  Subtracting, $x=\\boxed{2}.$

Four protocols (prompts as published; EVALUATION.md says by whom). All show the four exemplars of Lewkowycz et al. 2022
(appendix D), read from a file of the data folder. Six rules over the same output (`qwen_eval/scorers/mathematics.py`).
Score: accuracy over the 5,000 test items; by type and by level beside it.
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import mathematics
from qwen_eval.task import DatasetSpec, Generate, Protocol, Rows, Rule, Sample, SplitSpec, Task, Verdict

TYPES = (
    "Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra",
    "Precalculus",
)  # fmt: skip
LEVELS = ("Level 1", "Level 2", "Level 3", "Level 4", "Level 5")

MINERVA = "minerva_4shot_prompt.txt"
OPENCOMPASS = "opencompass_265cce_4shot.txt"
LM_EVAL = "lm_eval_4shot.txt"

DATA = DatasetSpec(
    name="math",
    licence="MIT",
    homepage="https://github.com/hendrycks/math",
    url="https://raw.githubusercontent.com/microsoft/ToRA/213c1c995038c73fab10343814df7a42f990f026/src/data/math/{path}",
    splits={
        "test": SplitSpec(
            file="test.jsonl",
            columns=("problem", "level", "type", "solution"),
            values={"type": TYPES, "level": LEVELS},
            rows=5000,
            fingerprint="f119cf7a0797b930",
        ),
    },
    folders=("math", "MATH", "src/data/math", "."),
    texts={
        MINERVA: (
            "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Math/"
            "b8b0f8ce093d80bf8e9a641e44142f06d092c305/evaluation/few_shot_prompts/cot_minerva_math_4_shot.py"
        ),
        OPENCOMPASS: "",
        LM_EVAL: "",
    },
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is the row number, its gold the content of the solution's last box."""
    return [
        Sample(str(index), row, mathematics.boxed(row["solution"]) or row["solution"], f"{row['type']}, {row['level']}")
        for index, row in enumerate(dataset.rows(split))
    ]


def on_gold(rule: Callable[[str, str], Verdict]) -> Rule:
    """A rule over answers needs nothing of the sample but its gold."""
    return lambda output, sample: rule(output, sample.gold)


# -------------------------------------------------------------------------------------------------------------- prompts


def standard(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Ours: the Minerva prompt, blocks separated by a blank line, and room for long solutions."""
    shown = dataset.text(MINERVA)
    return lambda sample: Generate(
        prompt=f"{shown}\n\nProblem:\n{sample.row['problem']}\n\nSolution:", max_new_tokens=1024, stops=("Problem:",)
    )


def opencompass(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `math_gen_265cce` for base models: the parts of the rounds joined by newlines."""
    shown = dataset.text(OPENCOMPASS)
    return lambda sample: Generate(prompt=f"{shown}{opencompass_question(sample)}")


def opencompass_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `math_gen_265cce` for chat models: the same exemplars, one round each."""
    blocks = dataset.text(OPENCOMPASS).removesuffix("\n\n").split("\n\nProblem:\n")
    rounds = []
    for block in blocks:
        problem, _, solution = block.removeprefix("Problem:\n").partition("\nSolution:\n")
        rounds.append((f"Problem:\n{problem}\nSolution:", f"{solution}\n"))
    return lambda sample: Generate(prompt=prompts.opencompass_chat(rounds, opencompass_question(sample)))


def opencompass_question(sample: Sample) -> str:
    """The last part of OpenCompass' prompt; unlike those of the exemplars it ends in a newline."""
    return f"Problem:\n{sample.row['problem']}\nSolution:\n"


def lm_eval(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `minerva_math`: the solution on the same line as its label."""
    shown = dataset.text(LM_EVAL)
    return lambda sample: Generate(prompt=f"{shown}Problem:\n{sample.row['problem']}\n\nSolution:", stops=("Problem:",))


TASK = Task(
    name="math",
    title="MATH",
    paper="https://arxiv.org/abs/2103.03874",
    data=DATA,
    samples=samples,
    # A group is a type at a level, so each can be summed both ways.
    categories={
        **{name: tuple(f"{name}, {level}" for level in LEVELS) for name in TYPES},
        **{level: tuple(f"{name}, {level}" for name in TYPES) for level in LEVELS},
    },
    rules={name: on_gold(rule) for name, rule in mathematics.RULES.items()},
    protocols=(
        Protocol(
            name="standard",
            chat=False,
            shots=4,
            shots_allowed=range(4, 5),
            rule="corrected",
            build=standard,
            about="ours: the Minerva prompt, 1,024 new tokens, boxed answers first",
        ),
        Protocol(
            name="opencompass-chat",
            chat=True,
            shots=4,
            shots_allowed=range(4, 5),
            rule="opencompass-2023",
            build=opencompass_chat,
            about="OpenCompass math_gen_265cce (September 2023), one round an exemplar",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="opencompass",
            chat=False,
            shots=4,
            shots_allowed=range(4, 5),
            rule="opencompass-2023",
            build=opencompass,
            about="OpenCompass math_gen_265cce (September 2023), plain text",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=4,
            shots_allowed=range(4, 5),
            rule="lm-eval-minerva",
            build=lm_eval,
            about="lm-evaluation-harness minerva_math: equality by sympy",
        ),
    ),
)
