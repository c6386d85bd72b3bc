"""The rules of the HuggingFace Agent benchmark: from replies to programs, and from what these did to three scores.

Scores of a step, as in `transformers.tools.evaluate_agent`: *tool selection* compares the tools that the explanation
names in back-quotes with those of the reference solution, *tool used* those whose name occurs in the code; a quarter is
lost for each that is missing or too many. *Code* is 1 where the program's value is that of a reference solution, 0.75
where it is a dictionary that holds it, else 0.3, even for a program that failed. The rule `strict` is the same without
the 0.3.

Programs are never run here: a rule asks the sandbox for one step of a session that has our interpreter
(`agent_interpreter.py`) walk all programs of a dialogue, in one state.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_eval.scorers import agent_interpreter
from qwen_eval.task import Answer, Cell, Check, Judged, Observed, Sample, Verdict

__all__ = ["CHECKS", "MEASURES", "STOPS", "Program", "clean", "programs", "read_chat", "read_run", "renamed"]

STOPS = {"run": ("Task:",), "chat": ("Human:", "=====")}
"""What a reply loses where it ends with it, by mode. Nothing stops at it (Qwen's adapter)."""

MEASURES = ("tool selection", "tool used", "code")
"""The three scores, by name."""

SPEAKERS = {"Human:": "_HUMAN_:", "Assistant:": "_ASSISTANT_:"}


@dataclass(frozen=True)
class Program:
    """What a reply says and does. `code` is None where the published scorer would have raised and ended the run."""

    explanation: str
    code: str | None


# ----------------------------------------------------------------------------------------------------------- replies


def renamed(text: str) -> str:
    """Return a text with the names of the speakers as Qwen's adapter writes them: they were reserved words once."""
    for name, other in SPEAKERS.items():
        text = text.replace(name, other)
    return text


def clean(reply: str, mode: str) -> str:
    """Return a reply as Qwen's adapter hands it on: stripped, without a stop string at its end, speakers named back."""
    reply = reply.strip()
    for stop in STOPS[mode]:
        reply = reply.removesuffix(renamed(stop))
    for name, other in SPEAKERS.items():
        reply = reply.replace(other, name)
    return reply


def read_run(reply: str) -> Program:
    """Find the program of run mode: what follows `Answer:`, which must stand there once, without its fence."""
    explanation, *rest = f"I will use the following {reply}".split("Answer:")
    if len(rest) != 1:
        return Program(explanation.strip(), None)
    lines = rest[0].strip().split("\n")
    if lines[0] in ("```", "```py", "```python"):
        lines = lines[1:]
    if not lines:  # a fence and nothing else
        return Program(explanation.strip(), None)
    if lines[-1] == "```":
        lines = lines[:-1]
    return Program(explanation.strip(), "\n".join(lines))


def read_chat(reply: str) -> Program:
    """Find the program of chat mode: the lines between the first two that begin with a fence."""
    lines = reply.split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    begin = fences[0] if fences else len(lines)
    explanation = "\n".join(lines[:begin]).strip()
    if len(fences) < 2:
        return Program(explanation, None)
    return Program(explanation, "\n".join(lines[begin + 1 : fences[1]]).strip())


def programs(output: str, sample: Sample) -> list[Program]:
    """Return the program of every step. The output of a dialogue is the JSON list of its replies.

    Another text is taken for the reply to the first step; a step without a reply has no program.
    """
    mode, steps = sample.row["mode"], len(json.loads(sample.row["steps"]))
    replies = _replies(output) if mode == "chat" else [output]
    read = read_chat if mode == "chat" else read_run
    return [read(clean(reply, mode)) for reply in [*replies, *[""] * steps][:steps]]


def _replies(output: str) -> list[str]:
    try:
        found: Any = json.loads(output)
    except (ValueError, RecursionError):
        return [output]
    return found if isinstance(found, list) and all(isinstance(reply, str) for reply in found) else [output]


# ------------------------------------------------------------------------------------------------------------- scores


def ask(output: str, sample: Sample, answers: Sequence[Answer]) -> Cell:
    """Return the step of a session that walks all programs of an output, and the reference solutions beside them."""
    steps = [
        {"inputs": step["inputs"], "code": program.code, "answers": step["answers"]}
        for step, program in zip(json.loads(sample.row["steps"]), programs(output, sample), strict=True)
    ]
    source = inspect.getsource(agent_interpreter)
    return Cell(code=f"{source}\n\nprint(report({json.dumps(steps)!r}))\n")


def verdict(floor: float) -> Callable[[str, Sample, Observed | Judged | None], Verdict | None]:
    """Return the rule whose code score is at least `floor`."""

    def judge(output: str, sample: Sample, answer: Observed | Judged | None) -> Verdict | None:
        if not isinstance(answer, Observed):
            return None
        found = programs(output, sample)
        steps = json.loads(sample.row["steps"])
        values = _values(answer, len(steps))
        scores = [
            _scores(program, step["answers"], value, floor)
            for program, step, value in zip(found, steps, values, strict=True)
        ]
        codes = [score[2] for score in scores]
        known = [program.code for program in found if program.code is not None]
        return Verdict(
            correct=all(code == 1 for code in codes),
            extracted="\n\n".join(known) if len(known) == len(found) else None,
            value=sum(codes) / len(codes),
            steps=len(codes),
            measures={name: tuple(score[place] for score in scores) for place, name in enumerate(MEASURES)},
        )

    return judge


def _values(answer: Observed, steps: int) -> list[dict[str, Any]]:
    """Return what came of every program: nothing, where the session did not come to its end."""
    if answer.end != "ok":
        return [{"equal": [], "holding": []}] * steps
    said = "".join(message.text for message in answer.messages if message.kind == "stdout")
    found: list[dict[str, Any]] = json.loads(said)
    return found


def _scores(
    program: Program, answers: Sequence[str], value: dict[str, list[bool]], floor: float
) -> tuple[float, float, float]:
    """Return the three scores of a step. Of several reference solutions the one that was met names the tools."""
    equal, holding = value["equal"], value["holding"]
    met = next((number for flags in (holding, equal) for number, flag in enumerate(flags) if flag), 0)
    expected = _tools(answers[met])
    selected = {name for name in agent_interpreter.TOOLS if f"`{name}`" in program.explanation}
    used = 0.0 if program.code is None else _agreement(_tools(program.code), expected)
    code = 1.0 if any(equal) else 0.75 if any(holding) else floor
    return _agreement(selected, expected), used, code


def _tools(code: str) -> set[str]:
    """Return the tools whose names occur in a code, also in the middle of a word."""
    return {name for name in agent_interpreter.TOOLS if name in code}


def _agreement(found: set[str], expected: set[str]) -> float:
    return max(0.0, 1.0 - 0.25 * len(found ^ expected))


CHECKS = {"transformers": Check(request=ask, verdict=verdict(0.3)), "strict": Check(request=ask, verdict=verdict(0.0))}
"""The published rule, and the one without its floor."""
