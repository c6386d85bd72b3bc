"""Function calls in a reply, as models write them where a chat template declares tools.

Qwen2.5 and Qwen3 write every call as a JSON object between `<tool_call>` lines; what an endpoint returns as
`tool_calls` reaches the rules in the same form. So one reading serves both.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Call", "after_reasoning", "tool_calls"]


@dataclass(frozen=True)
class Call:
    """One call: the function's name, and its arguments by name, as Python values."""

    name: str
    arguments: Mapping[str, Any]


def after_reasoning(text: str) -> str:
    """Return what follows the reasoning of a model that thinks aloud: all of it where there is no `</think>`."""
    return text.rpartition("</think>")[2].lstrip("\n") if "</think>" in text else text


_BLOCK: Final = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def tool_calls(text: str, *, lenient: bool = False) -> list[Call]:
    """Return the calls of a reply in order; calls that it only reasons about do not count.

    The strict reading is that of the models' own format: blocks of `<tool_call>`, a newline, a JSON object with `name`
    and `arguments`, a newline, `</tool_call>`. Blocks that are no JSON are passed over; a block that is JSON but no
    call spoils the reply: there is no call then.

    The lenient one takes every JSON object with `name` and `arguments` or `parameters`, wherever it stands: in blocks
    spaced otherwise, in fences, in lists, bare. Arguments may be the JSON text of an object, and a call may be the
    `function` of another object, as in the messages of endpoints.
    """
    text = after_reasoning(text)
    if lenient:
        return [call for found in _objects(text) for call in _lenient(found)]
    blocks = [_loads(block) for block in _BLOCK.findall(text)]
    calls = [_strict(block) for block in blocks if block is not _UNREADABLE]
    return [call for call in calls if call] if all(calls) else []


_UNREADABLE: Final = object()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _strict(found: Any) -> Call | None:
    if not isinstance(found, dict) or not isinstance(found.get("arguments"), dict):
        return None
    name = found.get("name", [])
    # A name that is a number or null is a call to a function that nobody declared; a list or an object is none.
    return None if isinstance(name, list | dict) else Call(name if isinstance(name, str) else "", found["arguments"])


def _lenient(found: Mapping[str, Any]) -> Iterator[Call]:
    inner = found.get("function")
    if isinstance(inner, dict):
        yield from _lenient(inner)
        return
    for call in found.get("tool_calls") or () if isinstance(found.get("tool_calls"), list) else ():
        if isinstance(call, dict):
            yield from _lenient(call)
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if isinstance(name, str) and isinstance(arguments, dict):
        yield Call(name, arguments)


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects in a text, outermost only, in order."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
            yield found
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
