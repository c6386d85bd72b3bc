"""Code Interpreter: questions to be answered by running Python (Qwen-Agent, `benchmark/`, 2023;
https://github.com/QwenLM/Qwen-Agent).

A row has a question, its tags, and where it is about files, their names; `answer` is a column of the small set only:

    query  Plot revenue by month as a bar chart.    tags  all_ci,visualization    input_file_path  ["sales.csv"]

An easy visualization item has the assistant's first step in its query already. The model and a Python session take
turns (`qwen_eval/code_interpreter.py`). Score: the share of items whose code runs without an exception; beside it, by
a judge that sees the images, the share of figures that show what was asked for.
"""

import base64
import json
from collections.abc import Callable, Sequence

from qwen_eval import code_interpreter
from qwen_eval.scorers import numbers
from qwen_eval.scorers.functions import after_reasoning
from qwen_eval.scorers.interpreter import figures, snippets, with_call
from qwen_eval.task import (
    Answer,
    Cell,
    Check,
    DatasetSpec,
    Dialogue,
    File,
    Judge,
    Judged,
    Measure,
    Observed,
    Protocol,
    Rows,
    Rule,
    Sample,
    SplitSpec,
    Task,
    Verdict,
)

EASY, HARD = "visualization-easy", "visualization-hard"
KINDS = ("math", "visualization", "general")
LIMIT = 3
"""Steps of a visualization, or where the answer is asked for; of anything else one is run."""
SECONDS = {"math": 10.0, "visualization": 10.0, "general": 60.0}
"""How long the code of an item may run when it is checked; published: no limit for general items."""
UPLOADED = "upload_file_clean"
NO_ANSWER = "runs without an exception"

DATA = DatasetSpec(
    name="code_interpreter",
    licence="not stated",
    homepage="https://github.com/QwenLM/Qwen-Agent",
    url="https://qianwen-res.oss-cn-beijing.aliyuncs.com/assets/qwen_agent/benchmark_code_interpreter_data.zip",
    splits={
        "test": SplitSpec(
            file="eval_code_interpreter_v1.jsonl",
            columns=("query", "tags"),
            optional=("lang", "input_file_path", "answer"),
            structured=("input_file_path",),
            rows=0,
            fingerprint="",
        )
    },
    folders=("code_interpreter", "benchmark_code_interpreter_data", "."),
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample, its id the row number; its files, in base64, become a column of their own."""
    read: dict[str, File] = {}
    found: list[Sample] = []
    for index, row in enumerate(dataset.rows(split)):
        paths = json.loads(row["input_file_path"] or "[]") or []
        names = [path.rpartition("/")[2] for path in ([paths] if isinstance(paths, str) else paths)]
        for name in names:
            if name not in read:
                content = dataset.content(f"{UPLOADED}/{name}")
                read[name] = File(name, base64.b64encode(content).decode("ascii"))
        files = json.dumps([[name, read[name].content] for name in names])
        found.append(
            Sample(str(index), {**row, "files": files}, row["answer"] or NO_ANSWER, group(row["tags"], row["query"]))
        )
    return found


def group(tags: str, query: str) -> str:
    """Return the kind of an item, and of a visualization whether its first step is given.

    As published, a kind may stand anywhere in the tags. Where none does, the item is a general one.
    """
    kind = next((kind for kind in KINDS if kind in tags), "general")
    if kind == "visualization":
        return EASY if code_interpreter.EMBEDDED in query else HARD
    return kind


def kind(sample: Sample) -> str:
    """Return math, visualization or general."""
    return sample.group.partition("-")[0]


def item(sample: Sample) -> code_interpreter.Item:
    """Return what the dialogue of a sample begins with."""
    row = sample.row
    files = [File(name, content) for name, content in json.loads(row["files"])]
    return code_interpreter.item(row["query"], files=files, language=row["lang"])


def qwen(dataset: Rows, shots: int) -> Callable[[Sample], Dialogue]:
    """Qwen-Agent's dialogue: three steps for a visualization, one for anything else that has no answer to be given."""

    def dialogue(sample: Sample) -> Dialogue:
        several = kind(sample) == "visualization" or sample.row["answer"]
        return code_interpreter.converse(item(sample), limit=LIMIT if several else 1)

    return dialogue


# ---------------------------------------------------------------------------------------------------------------- rules


def program(output: str, sample: Sample) -> str | None:
    """Return the code that is checked: all of a math item, else the first step; behind a step that was given.

    None where the output has no code.
    """
    found = snippets(output)
    if not found:
        return None
    query = sample.row["query"]
    given = snippets(query) if code_interpreter.EMBEDDED in query else []
    return with_call("\n".join([*given, *(found if kind(sample) == "math" else found[:1])]))


def to_run(output: str, sample: Sample, answers: Sequence[Answer]) -> Cell | None:
    """Return the check of whether the code runs."""
    code = program(output, sample)
    if code is None:
        return None
    begin = item(sample)
    return Cell(code=code, before=(code_interpreter.PRELOAD,), files=begin.files, timeout=SECONDS[kind(sample)])


def executable(output: str, sample: Sample, answer: Observed | Judged | None) -> Verdict | None:
    """Return whether the code ran without an exception; None where it was not run."""
    code = program(output, sample)
    if code is not None and not isinstance(answer, Observed):
        return None
    good = isinstance(answer, Observed) and answer.end == "ok"
    named = (
        "executable all",
        f"executable {kind(sample)}",
        *(("executable among items with code",) if code is not None else ()),
    )
    measures = {"has code": (float(code is not None),), **dict.fromkeys(named, (float(good),))}
    return Verdict(good, code, measures=measures)


JUDGE = {
    "zh": "请判断图片是否与下面的[问题]一致，如果一致则回复“right”，不一致则回复“wrong”。\n[问题]：{query}\n",
    "en": (
        "Please judge whether the image is consistent with the [Question] below, "
        'if it is consistent then reply "right", if not then reply "wrong".\n[Question]: {query}\n'
    ),
}


def to_judge(output: str, sample: Sample, answers: Sequence[Answer]) -> Judge | None:
    """Return the question to the judge, with every figure of the transcript; with none where no good one is there.

    It is asked about every visualization: so an item without a figure is wrong where there is a judge, and like all the
    others not scored where there is none.
    """
    if kind(sample) != "visualization":
        return None
    seen = figures(output)
    drawn = [
        message.text
        for answer in answers
        if isinstance(answer, Observed)
        for message in answer.messages
        if message.kind == "image"
    ]
    images = tuple(drawn[number - 1] for number in seen.numbers if seen.clean and 0 < number <= len(drawn))
    question = sample.row["query"].partition("<|im_end|>")[0]
    return Judge(prompt=JUDGE["zh" if sample.row["lang"] == "zh" else "en"].format(query=question), images=images)


def judged(output: str, sample: Sample, answer: Observed | Judged | None) -> Verdict | None:
    """Return whether there is a good figure and the judge said "right", as published: also in "not right".

    What a judge thinks before `</think>` is not its word. None where nobody judged.
    """
    if not isinstance(answer, Judged):
        return None
    clean = figures(output).clean
    text = after_reasoning(answer.text)
    good = clean and "right" in text.lower()
    measures = dict.fromkeys(("visualization all", f"visualization {sample.group.partition('-')[2]}"), (float(good),))
    return Verdict(good, text.strip() if clean else None, measures=measures)


def where_answered(rule: Callable[[str, str], Verdict]) -> Rule:
    """A rule over numbers, for the items whose answer is known."""
    return lambda output, sample: rule(output, sample.gold) if sample.row["answer"] else None


TASK = Task(
    name="code_interpreter",
    title="Code Interpreter",
    paper="https://arxiv.org/abs/2309.16609",
    data=DATA,
    samples=samples,
    checks={
        "executable": Check(request=to_run, verdict=executable),
        "judge": Check(request=to_judge, verdict=judged),
    },
    rules={"interpreter": where_answered(numbers.interpreter), "corrected": where_answered(numbers.corrected)},
    measures=(
        Measure(name="executable all", title="Executable", reported="executable rate All (%)"),
        Measure(name="executable math", title="Executable, math", reported="executable rate Math (%)"),
        Measure(
            name="executable visualization",
            title="Executable, visualization",
            reported="executable rate Visualization (%)",
        ),
        Measure(name="executable general", title="Executable, general", reported="executable rate General (%)"),
        Measure(name="has code", title="Has code"),
        Measure(name="executable among items with code", title="Executable where there is code"),
        Measure(name="visualization hard", title="Visualization, hard", reported="correctness Visualization-Hard (%)"),
        Measure(name="visualization easy", title="Visualization, easy", reported="correctness Visualization-Easy (%)"),
        Measure(name="visualization all", title="Visualization", reported="correctness Visualization-All (%)"),
    ),
    unrecorded=("files",),
    categories={"math": ("math",), "visualization": (HARD, EASY), "general": ("general",)},
    protocols=(
        Protocol(
            name="qwen",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="executable",
            build=qwen,
            about="Qwen-Agent's benchmark: ReAct with a Python session; whether the code runs",
            sessions=True,
        ),
    ),
)
