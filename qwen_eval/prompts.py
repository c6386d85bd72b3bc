"""How prompts become text: exemplars, options, chat turns.

Two renderings of a conversation are fixed text here; every other one is the model's own chat template.
"""

from collections.abc import Sequence

from qwen_eval.task import Chat, LeftCut, Prompt, Row, Turn

__all__ = [
    "DEFAULT_SYSTEM",
    "LETTERS",
    "OPENCOMPASS_CUT",
    "as_text",
    "chat",
    "chatml",
    "evalplus_chat",
    "lettered",
    "opencompass_chat",
    "opencompass_chatml",
]

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn of Qwen's chat scripts."""

LETTERS = ("A", "B", "C", "D")

OPENCOMPASS_CUT = LeftCut(over=1536, keep=1536)
"""The left cut of OpenCompass' generation in 2023: a window of 2,048 tokens less 512 new ones."""


def lettered(row: Row, letters: Sequence[str] = LETTERS) -> str:
    """Return the options of a multiple-choice row, one a line: `A. …`, no newline at the end."""
    return "\n".join(f"{letter}. {row[letter]}" for letter in letters)


def chat(text: str) -> Chat:
    """Return one user turn after the default system turn: the prompt of Qwen's chat scripts."""
    return Chat((Turn("system", DEFAULT_SYSTEM), Turn("user", text)))


def evalplus_chat(problem: str) -> Chat:
    """Return EvalPlus' instruction around a problem in a fence; its prefilled beginning of the reply is left out."""
    asked = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    return Chat((Turn("user", f"{asked}\n```\n{problem.strip()}\n```\n"),))


def opencompass_chat(rounds: Sequence[tuple[str, str]], text: str) -> Chat:
    """Return few-shot (user, assistant) rounds and a last user turn, in OpenCompass' form: no system turn."""
    shots = [turn for user, assistant in rounds for turn in (Turn("user", user), Turn("assistant", assistant))]
    return Chat((*shots, Turn("user", text)), form="opencompass")


def as_text(prompt: Prompt) -> str:
    """Render a prompt where there is no model: ChatML, declared tools as one line of JSON before it."""
    if isinstance(prompt, str):
        return prompt
    tools = f"tools: {prompt.tools}\n" if prompt.tools else ""
    return f"{tools}{(opencompass_chatml if prompt.form == 'opencompass' else chatml)(prompt.turns)}{prompt.begun}"


def chatml(turns: Sequence[Turn]) -> str:
    """Render ChatML up to the point where the assistant speaks (Qwen README, "ChatML")."""
    said = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    return f"{said}<|im_start|>assistant\n"


def opencompass_chatml(turns: Sequence[Turn]) -> str:
    """Render the ChatML of OpenCompass' 2023 Qwen meta template: every turn *begins* with a newline, also the first."""
    said = "".join(f"\n<|im_start|>{turn.role}\n{turn.content}<|im_end|>" for turn in turns)
    return f"{said}\n<|im_start|>assistant\n"
