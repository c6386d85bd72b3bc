"""What several rules share: where an output ends."""

from typing import Final

__all__ = ["CHAT_ENDS", "cut", "reply"]

CHAT_ENDS: Final = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
"""The end-of-turn markers of Qwen's chat models."""


def cut(text: str, *stops: str) -> str:
    """Return the text before the first occurrence of each stop, in turn."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def reply(output: str) -> str:
    """Return the assistant's turn: cut at the first ChatML marker, without surrounding whitespace."""
    return cut(output, *CHAT_ENDS).strip()
