"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300).

A row has a question, four options and the letter of the right one:

    question  What is the order of Z_6?    A 1    B 2    C 3    D 6    answer  D

Five protocols (prompts as published; EVALUATION.md says by whom), built by `qwen_eval/multiple_choice.py`. Score:
accuracy over all 14,042 test items (micro average) in Qwen's protocols and lm-eval's, the unweighted mean over subjects
in OpenCompass'; the other one stands beside it.
"""

from collections.abc import Callable

from qwen_eval import multiple_choice, prompts
from qwen_eval.multiple_choice import SPACED
from qwen_eval.scorers import choice
from qwen_eval.task import DatasetSpec, Hub, LeftCut, Row, SplitSpec, Task

# Qwen's grouping: anatomy is counted in STEM.
CATEGORIES = {
    "STEM": (
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
        "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning",
    ),
    "Social Sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
        "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
        "public_relations", "security_studies", "sociology", "us_foreign_policy",
    ),
    "Humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
        "prehistory", "professional_law", "world_religions",
    ),
    "Other": (
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management",
        "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology",
    ),
}  # fmt: skip

DATA = DatasetSpec(
    name="mmlu",
    licence="MIT",
    homepage="https://github.com/hendrycks/test",
    url=(
        "https://raw.githubusercontent.com/lu-wang-dl/chain-of-thought-hub/"
        "d52bae89527daca8a354f97561438f12725df780/MMLU/data/{path}"
    ),
    groups=tuple(sorted(subject for subjects in CATEGORIES.values() for subject in subjects)),
    mini_groups=("elementary_mathematics", "high_school_geography", "miscellaneous", "philosophy"),
    splits={
        split: SplitSpec(
            file=f"{split}/{{group}}_{split}.csv",
            columns=("question", *prompts.LETTERS, "answer"),
            header=False,
            values={"answer": prompts.LETTERS},
            rows=rows,
            fingerprint=fingerprint,
        )
        for split, rows, fingerprint in (
            ("test", 14042, "842f0404c804fdc3"),
            ("dev", 285, "39a46e58ef55eb97"),
            ("val", 1531, "3fe40f5333c9066f"),
        )
    },
    folders=("mmlu", "MMLU/data", "mmlu/data", "data", "mmlu/all", "cais/mmlu/all", "all", "."),
    hub=Hub(
        id="cais/mmlu",
        config="all",
        splits={"val": "validation"},
        row=lambda row: {
            "group": row["subject"],
            "question": row["question"],
            **dict(zip(prompts.LETTERS, row["choices"], strict=True)),
            "answer": prompts.LETTERS[row["answer"]],
        },
    ),
)


# -------------------------------------------------------------------------------------------------------------- prompts


def header(spaces: str) -> Callable[[str], str]:
    """The line that stands once at the top: between "about" and the subject are one or two spaces, as published."""
    return lambda subject: (
        f"The following are multiple choice questions (with answers) about{spaces}{subject.replace('_', ' ')}.\n\n"
    )


def qwen_item(row: Row) -> str:
    """An item of Qwen's base prompt."""
    return f"Question: {row['question']}\n{prompts.lettered(row)}\nAnswer:"


def opencompass_item(row: Row) -> str:
    """An item of OpenCompass' base prompt: no prefix."""
    return f"{row['question']}\n{prompts.lettered(row)}\nAnswer:"


def lm_eval_item(row: Row) -> str:
    """An item of lm-evaluation-harness: no prefix, the question stripped."""
    return f"{row['question'].strip()}\n{prompts.lettered(row)}\nAnswer:"


def chat_item(row: Row) -> str:
    """The user turn of Qwen's 0-shot chat prompt."""
    return (
        "The following is a multiple-choice question. Please choose the most suitable one among A, B, C and D "
        f"as the answer to this question.\n\n{row['question']}\n{prompts.lettered(row)}\n"
    )


def hint(row: Row) -> str:
    """The first line of OpenCompass' user turns."""
    return (
        f"There is a single choice question about {row['group'].replace('_', ' ')}. "
        "Answer the question by replying A, B, C or D.\n"
    )


TASK = Task(
    name="mmlu",
    title="MMLU",
    paper="https://arxiv.org/abs/2009.03300",
    data=DATA,
    samples=multiple_choice.samples,
    letters=prompts.LETTERS,
    categories=CATEGORIES,
    rules=multiple_choice.lettered_rules(choice.qwen_mmlu),
    protocols=multiple_choice.protocols(
        average="micro",
        qwen=(
            multiple_choice.choose(qwen_item, options=SPACED, header=header(" ")),
            "Qwen's base script: log-probability of ' A' … ' D'",
        ),
        qwen_cut=LeftCut(over=2048, keep=2047),
        qwen_chat=(multiple_choice.chat(chat_item), "Qwen's chat script: generation, six-step extraction"),
        opencompass=(
            multiple_choice.choose(opencompass_item, options=SPACED, header=header("  ")),
            "OpenCompass mmlu_ppl_ac766d: log-probability of the letters",
        ),
        opencompass_chat=(
            multiple_choice.rounds(
                lambda row: f"{hint(row)}Question: {row['question']}\n{prompts.lettered(row)}\nAnswer: ",
                lambda row: f"{row['answer']}\n",
                # The test turn has its own, shorter labels.
                asked=lambda row: f"{hint(row)}Q: {row['question']}\n{prompts.lettered(row)}\nA: ",
            ),
            "OpenCompass mmlu_gen_a484b3: five rounds, first upper-case character",
        ),
        lm_eval=(
            multiple_choice.choose(lm_eval_item, options=SPACED, header=header(" ")),
            "lm-evaluation-harness mmlu: log-probability of ' A' … ' D'",
        ),
    ),
)
