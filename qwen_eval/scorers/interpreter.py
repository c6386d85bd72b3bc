"""Transcripts of a code interpreter, read: the code of their actions, and the figures that their observations show.

    code_of(argument_text)      the code in the input of an action
    snippets(transcript)        the code of every action, in order
    figures(transcript)         the figures that observations show, and whether one came without an error

A transcript is what the assistant said of its turn, with what the session answered after every `Observation:`. The
readers are published ones (Qwen-Agent, `benchmark/`), with their quirks.
"""

import re
from dataclasses import dataclass
from typing import Final

from qwen_eval.scorers.react import read_json5

__all__ = ["Figures", "code_of", "failed", "figures", "snippets", "with_call"]

_INPUT: Final = "\nAction Input:"
_OBSERVATION: Final = "\nObservation:"
_THOUGHT: Final = "\nThought:"
_FIGURE: Final = re.compile(r"!\[fig-(\d{3,})\]\(fig-\1\.png\)")


def code_of(argument_text: str) -> str:
    """Return the code in an action's input: the first fenced block, else what stands between the first two backticks,
    else the field `code` of a JSON5 object, else everything.

    A fence needs a line of its own to open and something to close it. Where it has none, its first two backticks are
    the first two there are, so the code is empty.
    """
    fence = argument_text.find("```")
    line = argument_text.find("\n", fence + 3) if fence >= 0 else -1
    close = argument_text.find("```", line + 2) if line >= 0 else -1
    if close >= 0:
        return argument_text[line + 1 : close]
    if argument_text.count("`") >= 2:
        return argument_text.split("`", 2)[1]
    return _field(argument_text)


def _field(text: str) -> str:
    """Return the field `code` of a JSON5 object; the text itself where it is none, or the field no text."""
    if not text.lstrip().startswith(("{", "/")):  # a comment may stand before the object
        return text
    try:
        code = read_json5(text)["code"]
    except (ValueError, TypeError, KeyError, IndexError):
        return text
    return code if isinstance(code, str) else text


def snippets(transcript: str) -> list[str]:
    """Return the code of every action of a transcript, in order; none from an empty input on.

    What follows an input is searched between its first two occurrences, as published: one that was said before hides
    what came in between or after it.
    """
    found: list[str] = []
    while argument_text := _first_input(transcript):
        found.append(code_of(argument_text))
        transcript = transcript.split(argument_text, 2)[1]
    return found


def _first_input(text: str) -> str:
    """Return the first action's input, to the observation or the end of the text, stripped; "" where there is none."""
    begin = text.find(_INPUT)
    if begin < 0:
        return ""
    end = text.find(_OBSERVATION, begin)
    return text[begin + len(_INPUT) : end if end >= 0 else len(text)].strip()


def with_call(code: str) -> str:
    """Return code with a call of `solution()` behind it where it defines such a function."""
    return f"{code}\nsolution()\n" if "def solution()" in code else code


def failed(observation: str) -> bool:
    """Return whether an observation tells of an error: by two words, whoever wrote them."""
    return "error:" in observation or "Traceback" in observation


@dataclass(frozen=True)
class Figures:
    """The numbers of the figures that a transcript shows, and whether one of them stands before any error."""

    numbers: tuple[int, ...]
    clean: bool


def figures(transcript: str) -> Figures:
    """Return the figures that the observations of a transcript show.

    Only observations count: a reply can write the name of a figure that was never drawn. A figure is clean where its
    observation tells of no error up to it; what follows it does not matter.
    """
    numbers: list[int] = []
    clean = False
    for part in transcript.split(_OBSERVATION)[1:]:
        observation = part.partition(_THOUGHT)[0]
        for found in _FIGURE.finditer(observation):
            numbers.append(int(found[1]))
            clean = clean or not failed(observation[: found.end()])
    return Figures(tuple(dict.fromkeys(numbers)), clean)
