"""BIG-Bench Hard: 27 subtasks of reasoning with a chain of thought (Suzgun et al. 2022, https://arxiv.org/abs/2210.09261).

A row has an input and a target:

    input  not ( True ) and ( True ) is    target  False

Each subtask has one published prompt with three worked exemplars, read from the dataset's own `cot-prompts` files;
their first two lines (a canary and a rule) are not part of the prompt. Three protocols (EVALUATION.md says by whom) and
three rules (`qwen_eval/scorers/bbh.py`). Score: the unweighted mean over the 27 subtasks (lm-eval's protocol: over
items).
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import bbh
from qwen_eval.task import DatasetSpec, Generate, Protocol, Rows, Rule, Sample, SplitSpec, Task, Verdict

MULTIPLE_CHOICE = (
    "date_understanding", "disambiguation_qa", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection",
    "snarks", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects",
)  # fmt: skip
FREE_FORM = (
    "boolean_expressions", "causal_judgement", "dyck_languages", "formal_fallacies", "multistep_arithmetic_two",
    "navigate", "object_counting", "sports_understanding", "web_of_lies", "word_sorting",
)  # fmt: skip

# A comma inside an option split it upstream: the target is a piece of the option's text, not its letter.
BAD_GOLDS = ("movie_recommendation/163", "ruin_names/99", "ruin_names/144")

DATA = DatasetSpec(
    name="bbh",
    licence="MIT",
    homepage="https://github.com/suzgunmirac/BIG-Bench-Hard",
    url=(
        "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/{path}"
    ),
    groups=tuple(sorted((*MULTIPLE_CHOICE, *FREE_FORM))),
    mini_groups=(
        "boolean_expressions",
        "date_understanding",
        "hyperbaton",
        "logical_deduction_three_objects",
        "multistep_arithmetic_two",
        "word_sorting",
    ),
    splits={
        "test": SplitSpec(
            file="bbh/{group}.json", columns=("input", "target"), rows=6511, fingerprint="fdfb6e7c1c3fea05"
        ),
    },
    folders=("bbh", "BIG-Bench-Hard", "BBH", "."),
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is `subtask/row`, its gold the target."""
    return [Sample(f"{row['group']}/{row['row']}", row, row["target"], row["group"]) for row in dataset.rows(split)]


def on_kind(rule: Callable[[str, str, bool], Verdict]) -> Rule:
    """The rules need to know whether the subtask, the first part of the sample's id, is multiple choice."""
    return lambda output, sample: rule(output, sample.gold, sample.id.split("/")[0] in MULTIPLE_CHOICE)


# -------------------------------------------------------------------------------------------------------------- prompts


def worked(dataset: Rows) -> Callable[[str], str]:
    """The description and the exemplars of a subtask, without the canary line and the rule below it."""
    return lambda subtask: dataset.text(f"cot-prompts/{subtask}.txt").partition("\n-----\n")[2]


INSTRUCTION = "Follow the given examples and answer the question.\n"


def opencompass(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `bbh_gen_5bf00b`: ends in `A: ` with its space; the cue is left to the model."""
    shown = worked(dataset)
    return lambda sample: Generate(prompt=f"{INSTRUCTION}{shown(sample.group)}\n\nQ: {sample.row['input']}\nA: ")


def opencompass_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `bbh_gen_5b92b0`: the same as one user turn, which ends in the cue."""
    shown = worked(dataset)
    return lambda sample: Generate(
        prompt=prompts.opencompass_chat(
            (),
            f"{INSTRUCTION}{shown(sample.group)}\n\nQ: {sample.row['input']}\nA: Let's think step by step.",
        )
    )


def lm_eval(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `bbh_cot_fewshot`: no instruction, a newline after every cue (one subtask has a space)."""
    shown = worked(dataset)
    cue = "A: Let's think step by step."

    def request(sample: Sample) -> Generate:
        exemplars = shown(sample.group).replace(f"{cue} ", f"{cue}\n")
        return Generate(
            prompt=f"{exemplars}\n\nQ: {sample.row['input']}\n{cue}\n",
            max_new_tokens=1024,
            stops=("</s>", "Q", "\n\n"),
        )

    return request


TASK = Task(
    name="bbh",
    title="BIG-Bench Hard",
    paper="https://arxiv.org/abs/2210.09261",
    data=DATA,
    samples=samples,
    categories={"Multiple choice": MULTIPLE_CHOICE, "Free form": FREE_FORM},
    bad_golds=BAD_GOLDS,
    rules={name: on_kind(rule) for name, rule in bbh.RULES.items()},
    protocols=(
        Protocol(
            name="opencompass",
            chat=False,
            shots=3,
            shots_allowed=range(3, 4),
            rule="opencompass",
            average="macro",
            build=opencompass,
            about="OpenCompass bbh_gen_5bf00b: three worked exemplars, first 'answer is '",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="opencompass-chat",
            chat=True,
            shots=3,
            shots_allowed=range(3, 4),
            rule="opencompass",
            average="macro",
            build=opencompass_chat,
            about="OpenCompass bbh_gen_5b92b0: the same in one user turn",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=3,
            shots_allowed=range(3, 4),
            rule="lm-eval",
            average="micro",
            build=lm_eval,
            about="lm-evaluation-harness bbh_cot_fewshot: the three exemplars, stops at a capital Q",
        ),
    ),
)
