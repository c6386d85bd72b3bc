"""ReAct transcripts, read (Yao et al. 2023, "ReAct: synergizing reasoning and acting in language models"):

    Thought: … ⏎Action: weather⏎Action Input: {"city": "杭州"}⏎Observation: …

    first_action(text), last_action(text)     which tool is called, and the text that it is given
    read_json5(text), normalised(text)        that text as data, and written in one way
    listed_tools(prompt)                      the names that an action may have

The readers of actions are published ones with their quirks: a reply is only text to them, whatever it means.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["LONGEST", "Action", "first_action", "last_action", "listed_tools", "normalised", "read_json5", "written"]

LONGEST: Final = 10_000
"""Characters of the longest input that is read: many times what 512 new tokens hold, and 0.3 s of json5 at worst."""


@dataclass(frozen=True)
class Action:
    """A tool's name and the text of its input, both without surrounding whitespace."""

    name: str
    argument_text: str


def first_action(text: str) -> Action:
    """Return what Qwen's plugin script reads: cut at the first occurrence of each marker, wherever in a line.

    The name stands between `Action:` and `Action Input:`, the input between that and `Observation:`, or the end of the
    text. Where markers are missing, or stand in another order, it is whatever is cut out then; nothing is an error.
    """
    text += "\n"  # without `Observation:` the last character is cut off
    action, argument, observation = (text.find(marker) for marker in ("Action:", "Action Input:", "Observation:"))
    return Action(
        text[action + len("Action:") : argument].strip(), text[argument + len("Action Input:") : observation].strip()
    )


def last_action(text: str) -> Action | None:
    """Return the last action that a transcript ends in, as Qwen's agents read it; None where it ends in none.

    Markers count at the beginning of a line that is not the first. The input goes to the last `Observation:`, or to
    the end where that is missing.
    """
    action, argument = text.rfind("\nAction:"), text.rfind("\nAction Input:")
    if not 0 <= action < argument:
        return None
    observation = text.rfind("\nObservation:")
    end = observation if observation > argument else len(text)
    return Action(
        text[action + len("\nAction:") : argument].strip(), text[argument + len("\nAction Input:") : end].strip()
    )


def listed_tools(prompt: str) -> tuple[str, ...]:
    """Return the names that a ReAct prompt lists for its actions; () where it lists none."""
    found = re.search(r"\nAction: the action to take, should be one of \[([^\n]*)\]\n", prompt)
    return tuple(name.strip() for name in found[1].split(",")) if found else ()


def read_json5(text: str, *, whole: bool = True) -> Any:
    """Return what a JSON5 text says, or what it begins with where it need not be the `whole`.

    Raises ValueError where it is none, nested too deeply or too long.
    """
    import json5

    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST:,} characters, found {len(text):,}")
    try:
        return json5.loads(text, consume_trailing=whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def normalised(text: str) -> str:
    """Return a tool's input as JSON with sorted keys, Chinese as it is; "" where it cannot be read."""
    try:
        return written(read_json5(text))
    except ValueError:
        return ""


def written(arguments: Any) -> str:
    """Return data as JSON with sorted keys, Chinese as it is. Raises ValueError for an integer that is too long."""
    return json.dumps(arguments, ensure_ascii=False, sort_keys=True)
