"""HuggingFace Agent: a model answers with code that calls tools (Transformers 4.29, module `tools.evaluate_agent`).

A problem has phrasings, inputs (names of variables, or their values) and the code of one or several solutions; a chat
problem is a list of such steps, and its n-th phrasings make a dialogue:

    task    ["Paint what `text` says.", "Make a picture of `text`."]
    inputs  ["text"]
    answer  "image_generator(text)"

Two protocols: `run`, one reply for every phrasing (27), and `chat`, a reply for every step of a dialogue (47 steps). A
restricted interpreter runs the programs, with stubs for tools, inside the sandbox (`qwen_eval/scorers/agent.py`); two
rules give the three published scores with and without the floor of the code score.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from qwen_eval import prompts
from qwen_eval.scorers import agent
from qwen_eval.task import (
    DatasetSpec,
    Dialogue,
    Generate,
    Generated,
    Measure,
    Protocol,
    Rows,
    Sample,
    SplitSpec,
    Task,
)

DATA = DatasetSpec(
    name="hf_agent",
    licence="Apache-2.0",
    homepage="https://github.com/huggingface/transformers",
    url="",
    splits={
        "run": SplitSpec(
            file="evaluation_tasks.json",
            columns=("task", "inputs", "answer"),
            structured=("task", "inputs", "answer"),
            rows=11,
            fingerprint="58bfecd95a8e2f4f",
        ),
        "chat": SplitSpec(
            file="evaluation_chats.json",
            columns=("steps",),
            structured=("steps",),
            rows=11,
            fingerprint="548dcbca7b475757",
        ),
    },
    folders=("hf_agent", "hfagent", "."),
    texts={
        "tools.json": "",
        "run_prompt_template.txt": "",
        "chat_prompt_template.txt": "",
        "chat_message_prompt.txt": "",
    },
)

# Transformers lists its own tools first, then those of the hub.
TOOLBOX = (
    "document_qa",
    "image_captioner",
    "image_qa",
    "image_segmenter",
    "transcriber",
    "summarizer",
    "text_classifier",
    "text_qa",
    "text_reader",
    "translator",
    "image_transformer",
    "text_downloader",
    "image_generator",
    "video_generator",
)


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every phrasing is a sample, `run/problem/phrasing` or `chat/dialogue/phrasing`; the gold has a line a step."""
    found = []
    for number, row in enumerate(dataset.rows(split)):
        problem = json.loads(row["steps"]) if split == "chat" else [{key: json.loads(row[key]) for key in row}]
        for phrasing in range(len(problem[0]["task"])):
            steps = [step(each, phrasing) for each in problem]
            gold = "\n".join(" or ".join(each["answers"]) for each in steps)
            row_of_sample = {"mode": split, "steps": json.dumps(steps, ensure_ascii=False)}
            found.append(Sample(f"{split}/{number}/{phrasing}", row_of_sample, gold))
    return found


def step(problem: dict[str, Any], phrasing: int) -> dict[str, Any]:
    """One step in one phrasing: task, values of the inputs, reference solutions."""
    inputs, answer = problem["inputs"], problem["answer"]
    return {
        "task": problem["task"][phrasing],
        "inputs": inputs if isinstance(inputs, dict) else {name: f"<<{name}>>" for name in inputs},
        "answers": [answer] if isinstance(answer, str) else answer,
    }


# -------------------------------------------------------------------------------------------------------------- prompts


def with_tools(dataset: Rows, template: str) -> str:
    """A template with the list of the tools in its place, a line each."""
    described = {tool["name"]: tool["description"] for tool in json.loads(dataset.text("tools.json"))}
    listed = "\n".join(f"- {name}: {described[name]}" for name in TOOLBOX)
    return dataset.text(template).replace("<<all_tools>>", listed)


def request(text: str) -> Generate:
    """Qwen's adapter: the whole text is one user turn; the checkpoint's repetition penalty is not reset."""
    return Generate(prompt=prompts.chat(agent.renamed(text)), own_penalty=True)


def run(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """Run mode: instruction, tools, worked tasks, the task, and the beginning of the explanation."""
    template = with_tools(dataset, "run_prompt_template.txt")

    def ask(sample: Sample) -> Generate:
        (only,) = json.loads(sample.row["steps"])
        return request(template.replace("<<prompt>>", only["task"]))

    return ask


def chat(dataset: Rows, shots: int) -> Callable[[Sample], Dialogue]:
    """Chat mode: instruction, tools, example dialogues, and for every step all that was said before it."""
    template = with_tools(dataset, "chat_prompt_template.txt")
    message = dataset.text("chat_message_prompt.txt")

    def ask(sample: Sample) -> Dialogue:
        said, answers = template, []
        for each in json.loads(sample.row["steps"]):
            said += message.replace("<<task>>", each["task"])
            answer = yield request(said)
            if not isinstance(answer, Generated):
                raise TypeError(f"expected a text, found {type(answer).__name__}")
            answers.append(answer)
            said += agent.clean(answer.text, "chat") + "\n"
        return together(answers)

    return ask


def together(answers: Sequence[Generated]) -> Generated:
    """What is scored of a dialogue: the JSON list of its replies."""
    finish: Literal["end", "length"] = "length" if any(each.finish == "length" for each in answers) else "end"
    return Generated(
        text=json.dumps([each.text for each in answers], ensure_ascii=False),
        finish=finish,
        prompt_tokens=sum(each.prompt_tokens for each in answers),
        new_tokens=sum(each.new_tokens for each in answers),
        cut_tokens=sum(each.cut_tokens for each in answers),
    )


TASK = Task(
    name="hf_agent",
    title="HuggingFace Agent",
    paper="https://huggingface.co/docs/transformers/v4.33.3/en/transformers_agents",
    data=DATA,
    samples=samples,
    checks=agent.CHECKS,
    measures=(
        Measure(name="tool selection", title="Tool Selection↑", reported="tool selection score"),
        Measure(name="tool used", title="Tool Used↑", reported="tool used score"),
        Measure(name="code", title="Code↑", reported="code score"),
    ),
    splits=("run", "chat"),
    together=True,
    protocols=(
        Protocol(
            name="run",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="transformers",
            build=run,
            about="run mode: one reply for a task",
            sessions=True,
            split="run",
        ),
        Protocol(
            name="chat",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="transformers",
            build=chat,
            about="chat mode: a dialogue of one to four tasks",
            sessions=True,
            split="chat",
        ),
    ),
)
