"""Tool calling: Qwen's Chinese ReAct plugin benchmark (Qwen Team 2023, https://arxiv.org/abs/2309.16609, section 3.4).

A row has a whole ReAct prompt, in which up to five plugins are described, and a golden transcript:

    prompt    Answer the following questions as best you can. You have access to the following tools:⏎⏎weather: …
    response  Thought: 应该查天气。⏎Action: weather⏎Action Input: {"city": "杭州"}⏎Observation: …⏎Final Answer: …

Of the positive rows one plugin is to be called; of the negative ones none, near as they may be. Two versions of the
data with a protocol each (prompts as stored), and `native`, which asks the same through function calling; rules that
read the first call (`qwen_eval/scorers/tool_calling.py`). Score: right decisions over all rows, the right tool or
no call; beside it stand the published measures.
"""

import json
from collections.abc import Callable

from qwen_eval import prompts
from qwen_eval.scorers import tool_calling
from qwen_eval.task import Chat, DatasetSpec, Generate, Measure, Protocol, Rows, Sample, SplitSpec, Task, Turn


def split(file: str) -> SplitSpec:
    """Two files of one version. How many rows they have was never published; some copies may number them."""
    return SplitSpec(
        file=file,
        columns=("prompt", "response"),
        optional=("id",),
        structured=("id",),
        rows=0,
        fingerprint="",
        mini="react_{group}.jsonl",
    )


DATA = DatasetSpec(
    name="tool_calling",
    licence="not stated",
    homepage="https://github.com/QwenLM/Qwen/blob/main/eval/EVALUATION.md",
    url="https://qianwen-res.oss-cn-beijing.aliyuncs.com/opensource_data/exam_plugin_v20231206/{path}",
    splits={
        "20231206": split("exam_plugin_v20231206_react_{group}.jsonl"),
        "20230803": split("exam_plugin_v1_react_{group}.jsonl"),
    },
    folders=("tool_calling", "exam_plugin", "eval/data", "."),
    groups=("positive", "negative"),
    mini_groups=("positive", "negative"),
)

MEASURES = (
    Measure(name="tool selection", title="Tool Selection (Acc.↑)", reported="tool selection accuracy (%)"),
    Measure(name="tool input", title="Tool Input (Rouge-L↑)", scale=1, reported="tool input Rouge-L (0-1)"),
    Measure(name="false positive error", title="False Positive Error↓", reported="false positive error (%)"),
    Measure(name="valid call", title="Valid Call↑"),
    Measure(name="argument exact match", title="Argument Exact Match↑"),
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample, its gold the golden transcript; its id is the data's where all have one of their own."""
    rows = dataset.rows(split)
    own = [str(json.loads(row["id"])) if row["id"] else "" for row in rows]
    named = all(own) and len(set(own)) == len(own)
    ids = own if named else [f"{row['group']}/{row['row']}" for row in rows]
    return [Sample(each, row, row["response"], row["group"]) for each, row in zip(ids, rows, strict=True)]


def stored(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The row's prompt in one user turn, with nothing that stops before the answer ends by itself."""
    return lambda sample: Generate(prompt=prompts.chat(sample.row["prompt"]), own_penalty=True)


def native(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The question as the user's turn; the tools, read out of the row's prompt, as functions that may be called."""

    def request(sample: Sample) -> Generate:
        tools, question = prompts.read_react(sample.row["prompt"])
        turns = (Turn("system", prompts.DEFAULT_SYSTEM), Turn("user", question))
        return Generate(prompt=Chat(turns, tools=prompts.function_declarations(tools)), own_penalty=True)

    return request


TASK = Task(
    name="tool_calling",
    title="Tool calling",
    paper="https://arxiv.org/abs/2309.16609",
    data=DATA,
    samples=samples,
    splits=("20231206", "20230803"),
    rules=tool_calling.RULES,
    rules_by_tokens=tool_calling.rules,
    prepare=tool_calling.prepare,
    measures=MEASURES,
    protocols=(
        Protocol(
            name="20230803",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen",
            build=stored,
            about="Qwen's plugin script on its data of August 2023: ReAct prompts as stored",
            split="20230803",
        ),
        Protocol(
            name="20231206",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="qwen",
            build=stored,
            about="Qwen's plugin script on its data of December 2023: ReAct prompts as stored",
            split="20231206",
        ),
        Protocol(
            name="native",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="native",
            build=native,
            about="ours: the same questions and tools through the model's own function calling",
        ),
    ),
)
