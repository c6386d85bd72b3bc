"""What the code-interpreter tasks share: the prompt, and the dialogue of a model with a Python session.

The model writes `Action Input:` with code in it, the session runs the code, and what it said stands behind
`Observation:` when the model goes on (ReAct, Yao et al. 2023). The texts are Qwen-Agent's (`benchmark/`, 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from qwen_eval import prompts
from qwen_eval.scorers.interpreter import code_of, failed, with_call
from qwen_eval.scorers.react import last_action
from qwen_eval.task import Cell, Chat, Dialogue, File, Generate, Generated, Message, Observed, Turn

__all__ = ["PRELOAD", "Item", "converse", "item", "observation"]

TOOL: Final = prompts.Tool(
    name="code_interpreter",
    name_for_human="代码解释器",
    description="代码解释器，可用于执行Python代码。",
    parameters='[{"name": "code", "type": "string", "description": "待执行的代码"}]',
    ending="Enclose the code within triple backticks (`) at the beginning and end of the code.",
)
UPLOADED: Final = {"zh": "[上传文件{names}]", "en": "[Upload file {names}]"}
EMBEDDED: Final = "<|im_end|>\n<|im_start|>assistant\n"
"""What stands in a query between the question and a first step that the assistant has already made."""

STOP: Final = "Observation:"
SECONDS: Final = 30
LONGEST: Final = 4_000
"""Characters of what a step prints that the model gets to see: of a longer text the beginning and the end."""

PRELOAD: Final = """\
import json
import math
import re

import matplotlib
import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sympy import Eq, solve, symbols


def _set_theme(*style, _original=sns.set_theme, **styles):
    _original(*style, **styles)
    there = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
    known = ("SimHei", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "DejaVu Sans")
    plt.rcParams["font.sans-serif"] = [name for name in known if name in there]
    plt.rcParams["axes.unicode_minus"] = False


sns.set_theme = _set_theme
sns.set_theme()
"""
"""What runs before the first step. Every theme comes with a font that has Chinese characters, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a dialogue begins with: the user's turn, what the assistant has said of its own, and the session.

    `before` are the steps that have run by then, `files` those that lie in the session's folder.
    """

    asked: str
    begun: str = ""
    before: tuple[str, ...] = (PRELOAD,)
    files: tuple[File, ...] = ()


def item(query: str, *, files: Sequence[File] = (), language: str = "en") -> Item:
    """Return an item from its query: the names of its files come first, a step in the query has been made."""
    question, _, begun = query.partition(EMBEDDED)
    names = ", ".join(file.name for file in files)
    prefix = UPLOADED["zh" if language == "zh" else "en"].format(names=names) if files else ""
    asked = prompts.react((TOOL,), f"{prefix}{question if begun else question.rstrip()}")
    first = last_action(f"\n{begun}")
    before = (PRELOAD, runnable(first.argument_text)) if first else (PRELOAD,)
    return Item(asked=asked, begun=begun.rstrip(), before=before, files=tuple(files))


def runnable(argument_text: str) -> str:
    """Return what a session runs of an action's input."""
    return with_call(code_of(argument_text))


def converse(item: Item, *, limit: int) -> Dialogue:
    """The dialogue of an item: at most `limit` steps run; the answer is the whole transcript, observations included.

    It ends with a reply that calls nothing, with an observation that tells of an error, or with that of the last step.
    """
    turns = (Turn("system", prompts.DEFAULT_SYSTEM), Turn("user", item.asked))
    said: list[Generated] = []
    transcript, before, drawn = "", item.before, 0
    for _ in range(limit):
        chat = Chat(turns, begun=item.begun + transcript)
        # The published loop leaves the checkpoint's own repetition penalty in force.
        answer = yield Generate(prompt=chat, stops=(STOP,), own_penalty=True)
        if not isinstance(answer, Generated):
            raise TypeError(f"expected a text, found {answer}")
        said.append(answer)
        turn = put_back(answer)
        action = last_action(turn)
        transcript += turn if action is None else until_observation(turn)
        if action is None or not action.name:
            break
        code = runnable(action.argument_text)
        observed = yield Cell(code=code, before=before, files=item.files, timeout=SECONDS)
        if not isinstance(observed, Observed):
            raise TypeError(f"expected what a session said, found {observed}")
        seen = observation(observed, drawn)
        drawn += sum(message.kind == "image" for message in observed.messages)
        before += (code,)
        transcript += f"\nObservation: {seen}\nThought:"
        if failed(seen):
            break
    return replace(
        said[-1],
        text=transcript,
        prompt_tokens=sum(each.prompt_tokens for each in said),
        new_tokens=sum(each.new_tokens for each in said),
        cut_tokens=sum(each.cut_tokens for each in said),
    )


def put_back(answer: Generated) -> str:
    """Return a turn with the stop string that ended it: the published readers see it where it opens a line."""
    return f"{answer.text}{STOP}" if answer.finish == "stop" and answer.text.endswith("\n") else answer.text


def until_observation(turn: str) -> str:
    """Return a turn with an action up to the observation that it asks for."""
    end = turn.rfind("\nObservation:")
    return turn[:end] if end > turn.rfind("\nAction Input:") else turn.rstrip()


def observation(observed: Observed, drawn: int) -> str:
    """Return what the model gets to see of a step: a block a message; figures by number, `drawn` before them."""
    blocks: list[str] = []
    for message in _messages(observed):
        if message.kind == "image":
            drawn += 1
            blocks.append(f"![fig-{drawn:03}](fig-{drawn:03}.png)")
        elif message.text:
            blocks.append(f"{message.kind}:\n\n```\n{_shown(message)}\n```")
    return "\n\n".join(blocks)


def _messages(observed: Observed) -> tuple[Message, ...]:
    """Return what a step said; where it did not come to its own end, with a message that says so."""
    if observed.end == "timed out":
        kept = tuple(message for message in observed.messages if message.kind != "error")
        return (*kept, Message("error", f"Timeout. No response after {SECONDS} seconds."))
    if observed.end not in ("ok", "error"):
        return (*observed.messages, Message("error", f"The session was lost: {observed.end}."))
    return observed.messages


def _shown(message: Message) -> str:
    """Return the text of a message; of a very long one, unless it is an error, the beginning and the end."""
    text = message.text
    if len(text) <= LONGEST or message.kind == "error":
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half:,} characters are not shown) …\n{text[-half:]}"
