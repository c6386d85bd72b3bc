"""MMLU: multiple-choice questions on 57 subjects (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300).

A row has a question, four options and the letter of the right one:

    question  What is the order of Z_6?    A 1    B 2    C 3    D 6    answer  D

Five protocols (prompts as published; EVALUATION.md says by whom). Base protocols compare the log-probabilities of the
letters; chat protocols generate and read a letter from the reply (`qwen_eval/scorers/choice.py`). Exemplars are the
first five dev rows of the subject. Score: accuracy over all 14,042 test items (micro average); the unweighted mean
over subjects stands beside it.
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import choice
from qwen_eval.task import (
    Choose,
    DatasetSpec,
    Generate,
    Hub,
    LeftCut,
    Protocol,
    Row,
    Rows,
    Sample,
    SplitSpec,
    Task,
)

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


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is `subject/split/row`, its gold the letter."""
    return [
        Sample(f"{row['group']}/{split}/{row['row']}", row, row["answer"], row["group"]) for row in dataset.rows(split)
    ]


def exemplars(dataset: Rows, shots: int) -> dict[str, list[Row]]:
    """The first dev rows of every subject."""
    shown: dict[str, list[Row]] = {}
    if shots:
        for row in dataset.rows("dev"):
            rows = shown.setdefault(row["group"], [])
            if len(rows) < shots:
                rows.append(row)
    return shown


def subject(name: str) -> str:
    """The subject's name in a prompt: spaces for underscores."""
    return name.replace("_", " ")


# -------------------------------------------------------------------------------------------------------------- prompts

# The option tokens: after "Answer:" the natural continuation is the *spaced* letter. " A" and "A" are different tokens.
SPACED = tuple(f" {letter}" for letter in prompts.LETTERS)


def choose_after_exemplars(
    header: str, item: Callable[[Row], str]
) -> Callable[[Rows, int], Callable[[Sample], Choose]]:
    """Header once, then dev rows with their letter, then the item: three protocols differ only in header and item."""

    def build(dataset: Rows, shots: int) -> Callable[[Sample], Choose]:
        shown = {
            group: "".join(f"{item(row)} {row['answer']}\n\n" for row in rows)
            for group, rows in exemplars(dataset, shots).items()
        }

        def request(sample: Sample) -> Choose:
            start = header.format(subject=subject(sample.group)) + shown.get(sample.group, "")
            return Choose(prompt=start + item(sample.row), options=SPACED)

        return request

    return build


def qwen_item(row: Row) -> str:
    """An item of Qwen's base prompt."""
    return f"Question: {row['question']}\n{prompts.lettered(row)}\nAnswer:"


def opencompass_item(row: Row) -> str:
    """An item of OpenCompass' base prompt: no prefix."""
    return f"{row['question']}\n{prompts.lettered(row)}\nAnswer:"


def lm_eval_item(row: Row) -> str:
    """An item of lm-evaluation-harness: no prefix, the question stripped."""
    return f"{row['question'].strip()}\n{prompts.lettered(row)}\nAnswer:"


def qwen_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's 0-shot chat prompt."""
    instruction = (
        "The following is a multiple-choice question. Please choose the most suitable one among A, B, C and D "
        "as the answer to this question."
    )
    return lambda sample: Generate(
        prompt=prompts.chat(f"{instruction}\n\n{sample.row['question']}\n{prompts.lettered(sample.row)}\n")
    )


def opencompass_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `mmlu_gen_a484b3`: every exemplar a round; the test turn has its own, shorter labels."""
    shown = exemplars(dataset, shots)

    def request(sample: Sample) -> Generate:
        hint = (
            f"There is a single choice question about {subject(sample.group)}. "
            "Answer the question by replying A, B, C or D."
        )
        rounds = [
            (f"{hint}\nQuestion: {row['question']}\n{prompts.lettered(row)}\nAnswer: ", f"{row['answer']}\n")
            for row in shown.get(sample.group, ())
        ]
        asked = f"{hint}\nQ: {sample.row['question']}\n{prompts.lettered(sample.row)}\nA: "
        return Generate(prompt=prompts.opencompass_chat(rounds, asked))

    return request


TASK = Task(
    name="mmlu",
    title="MMLU",
    paper="https://arxiv.org/abs/2009.03300",
    data=DATA,
    samples=samples,
    letters=prompts.LETTERS,
    categories=CATEGORIES,
    rules={
        "qwen-chat": lambda output, sample: choice.qwen_mmlu(
            output, sample.gold, {letter: sample.row[letter] for letter in prompts.LETTERS}
        ),
        "first-capital": lambda output, sample: choice.first_capital(output, sample.gold),
    },
    protocols=(
        Protocol(
            name="qwen",
            chat=False,
            shots=5,
            shots_allowed=range(6),
            rule="choice",
            build=choose_after_exemplars(
                "The following are multiple choice questions (with answers) about {subject}.\n\n", qwen_item
            ),
            about="Qwen's base script: log-probability of ' A' … ' D'",
            cut=LeftCut(over=2048, keep=2047),
        ),
        Protocol(
            name="qwen-chat",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen-chat",
            build=qwen_chat,
            about="Qwen's chat script: generation, six-step extraction",
        ),
        Protocol(
            name="opencompass",
            chat=False,
            shots=5,
            shots_allowed=range(6),
            rule="choice",
            build=choose_after_exemplars(
                # Two spaces before the subject, as published.
                "The following are multiple choice questions (with answers) about  {subject}.\n\n",
                opencompass_item,
            ),
            about="OpenCompass mmlu_ppl_ac766d: log-probability of the letters",
        ),
        Protocol(
            name="opencompass-chat",
            chat=True,
            shots=5,
            shots_allowed=range(6),
            rule="first-capital",
            build=opencompass_chat,
            about="OpenCompass mmlu_gen_a484b3: five rounds, first upper-case character",
            cut=LeftCut(over=1536, keep=1536),
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=5,
            shots_allowed=range(6),
            rule="choice",
            build=choose_after_exemplars(
                "The following are multiple choice questions (with answers) about {subject}.\n\n", lm_eval_item
            ),
            about="lm-evaluation-harness mmlu: log-probability of ' A' … ' D'",
        ),
    ),
)
