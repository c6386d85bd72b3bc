"""GSM8K: grade-school mathematics word problems (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

A row has a question and a worked solution that ends in the answer:

    question  Ann buys 3 bags of 4 apples. How many apples has she?
    answer    She has 3*4=<<3*4=12>>12 apples.⏎#### 12

Eight protocols (prompts as published; EVALUATION.md says by whom) and nine rules over the same output
(`qwen_eval/scorers/numbers.py`). Score: accuracy over the 1,319 test items.
"""

import random
import re
from collections.abc import Callable, Sequence

from qwen_eval import code_interpreter, prompts
from qwen_eval.scorers import numbers
from qwen_eval.task import (
    DatasetSpec,
    Dialogue,
    Generate,
    Hub,
    Protocol,
    Row,
    Rows,
    Rule,
    Sample,
    SplitSpec,
    Task,
    Verdict,
)

# Indices into the training split, in the order of the published prompts.
QWEN_8_SHOT = (4997, 4280, 3996, 1344, 6011, 328, 3809, 2053)
FOUR_SHOT = (7364, 1708, 669, 6724)

DATA = DatasetSpec(
    name="gsm8k",
    licence="MIT",
    homepage="https://github.com/openai/grade-school-math",
    url=(
        "https://raw.githubusercontent.com/openai/grade-school-math/"
        "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/{path}"
    ),
    splits={
        "test": SplitSpec(file="test.jsonl", columns=("question", "answer"), rows=1319, fingerprint="32c548f08195e19e"),
        "train": SplitSpec(
            file="train.jsonl", columns=("question", "answer"), rows=7473, fingerprint="dca449882e67a1e7"
        ),
    },
    folders=(
        "gsm8k",
        "grade_school_math/data",
        "grade-school-math/grade_school_math/data",
        "gsm8k/main",
        "openai/gsm8k/main",
        "main",
        ".",
    ),
    hub=Hub(
        id="openai/gsm8k",
        config="main",
        row=lambda row: {"question": row["question"], "answer": row["answer"]},
    ),
    texts={"lm_eval_cot_8shot.txt": ""},
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is the row number, its gold the whole solution."""
    return [Sample(str(index), row, row["answer"]) for index, row in enumerate(dataset.rows(split))]


def solution(row: Row) -> str:
    """The worked solution without calculator marks, its last line rewritten as "The answer is 20800" (no commas)."""
    steps, _, answer = re.sub(r"<<[^>]*>>", "", row["answer"]).rpartition("#### ")
    return f"{steps}The answer is {answer.replace(',', '')}"


def on_gold(rule: Callable[[str, str], Verdict]) -> Rule:
    """A rule over numbers needs nothing of the sample but its gold."""
    return lambda output, sample: rule(output, sample.gold)


# -------------------------------------------------------------------------------------------------------------- prompts


def qwen(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's base prompt: training items in a fixed order, blocks separated by a blank line, a newline at the end."""
    exemplars = dataset.exemplars("train", QWEN_8_SHOT[:shots])
    shown = [f"Question: {row['question']}\nLet's think step by step\n{solution(row)}\n" for row in exemplars]

    def request(sample: Sample) -> Generate:
        asked = f"Question: {sample.row['question']}\nLet's think step by step\n"
        return Generate(prompt="\n".join([*shown, asked]))

    return request


def qwen_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's 0-shot chat prompt: the bare question."""
    return lambda sample: Generate(prompt=prompts.chat(sample.row["question"]))


def qwen_chat_4shot(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's few-shot chat prompt: all exemplars and the question in one user turn, no newline at the end."""
    exemplars = dataset.exemplars("train", FOUR_SHOT[:shots])
    shown = [f"Question: {row['question']}\nLet's think step by step\n{solution(row)}\n\n" for row in exemplars]

    def request(sample: Sample) -> Generate:
        asked = f"Question: {sample.row['question']}\nLet's think step by step"
        return Generate(prompt=prompts.chat("".join([*shown, asked])))

    return request


def opencompass(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `gsm8k_gen_1d7fe4` for base models: the parts of the rounds joined by newlines."""
    rounds = opencompass_rounds(dataset, shots)

    def request(sample: Sample) -> Generate:
        parts = [part for pair in rounds for part in pair]
        return Generate(prompt="\n".join([*parts, opencompass_question(sample.row)]))

    return request


def opencompass_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """OpenCompass `gsm8k_gen_1d7fe4` for chat models: every exemplar is a round of its own."""
    rounds = opencompass_rounds(dataset, shots)
    return lambda sample: Generate(prompt=prompts.opencompass_chat(rounds, opencompass_question(sample.row)))


def opencompass_rounds(dataset: Rows, shots: int) -> Sequence[tuple[str, str]]:
    """The exemplars as (user, assistant) texts."""
    exemplars = dataset.exemplars("train", FOUR_SHOT[:shots])
    return [(opencompass_question(row), f"{solution(row)}\n") for row in exemplars]


def opencompass_question(row: Row) -> str:
    """The user's part of a round."""
    return f"Question: {row['question']}\nLet's think step by step\nAnswer:"


LM_EVAL_ENDS = ("</s>", "<|im_end|>")


def lm_eval(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `gsm8k`: new exemplars for every item, drawn from one generator for the whole run."""
    train = dataset.rows("train")
    draw = random.Random(1234)
    drawn = [draw.sample(range(len(train)), shots) for _ in dataset.rows("test")]

    def request(sample: Sample) -> Generate:
        exemplars = [train[index] for index in drawn[int(sample.id)]]
        shown = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in exemplars]
        asked = f"Question: {sample.row['question']}\nAnswer:"
        return Generate(prompt="\n\n".join([*shown, asked]), stops=("Question:", *LM_EVAL_ENDS))

    return request


def lm_eval_cot(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `gsm8k_cot`: the eight exemplars of Wei et al. 2022, read from the data folder."""
    shown = dataset.text("lm_eval_cot_8shot.txt")
    return lambda sample: Generate(prompt=f"{shown}Q: {sample.row['question']}\nA:", stops=("Q:", *LM_EVAL_ENDS))


def with_interpreter(dataset: Rows, shots: int) -> Callable[[Sample], Dialogue]:
    """Qwen-Agent's code interpreter: the bare question, at most three steps of a Python session."""
    return lambda sample: code_interpreter.converse(code_interpreter.item(sample.row["question"]), limit=3)


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    paper="https://arxiv.org/abs/2110.14168",
    data=DATA,
    samples=samples,
    rules={name: on_gold(rule) for name, rule in numbers.RULES.items()},
    protocols=(
        Protocol(
            name="qwen",
            chat=False,
            shots=8,
            shots_allowed=range(9),
            rule="qwen",
            build=qwen,
            about="Qwen's base script: 8 training items, last run of digits",
        ),
        Protocol(
            name="qwen-chat",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen-chat",
            build=qwen_chat,
            about="Qwen's chat script: the bare question, last number",
        ),
        Protocol(
            name="qwen-chat-4shot",
            chat=True,
            shots=4,
            shots_allowed=range(5),
            rule="qwen-chat",
            build=qwen_chat_4shot,
            about="Qwen's chat script with --use-fewshot: four training items in one user turn",
        ),
        Protocol(
            name="opencompass",
            chat=False,
            shots=4,
            shots_allowed=range(5),
            rule="opencompass-2023",
            build=opencompass,
            about="OpenCompass gsm8k_gen_1d7fe4 (September 2023), plain text",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="opencompass-chat",
            chat=True,
            shots=4,
            shots_allowed=range(5),
            rule="opencompass-2023",
            build=opencompass_chat,
            about="OpenCompass gsm8k_gen_1d7fe4 (September 2023), one round an exemplar",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=5,
            shots_allowed=range(9),
            rule="lm-eval-strict",
            build=lm_eval,
            about="lm-evaluation-harness gsm8k: 5 training items drawn anew for every item",
        ),
        Protocol(
            name="lm-eval-cot",
            chat=False,
            shots=8,
            shots_allowed=range(8, 9),
            rule="lm-eval-cot-strict",
            build=lm_eval_cot,
            about="lm-evaluation-harness gsm8k_cot: the eight chain-of-thought exemplars of Wei et al.",
        ),
        Protocol(
            name="code-interpreter",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="interpreter",
            build=with_interpreter,
            about="Qwen-Agent's code interpreter: ReAct with a Python session, last number of the whole transcript",
            sessions=True,
        ),
    ),
)
