"""Containers that both sides of the wall have: what has changed in them, and putting changes in.

A list that the test hands to the program exists twice, once on each side. Whoever answers says what has changed in his
copy since both were alike. Most copies are forgotten with the answer; one that the program keeps (in a generator, a
closure, a global) stays known on both sides, so that a later change is seen as well, as it would be in one process.
"""

import collections
from collections.abc import Sequence
from typing import Any, Final

from qwen_eval.sandbox import classes

__all__ = ["MOST_HELD", "Copies", "can_change", "contents"]

MOST_HELD: Final = 2000
_LISTS: Final = (list, set, collections.deque)
_MAPPINGS: Final = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)


def contents(value: Any) -> Any:
    """Return what of a container can change in place, as data of its own; None for one that cannot change."""
    kind = type(value)
    if kind in _LISTS:
        return list(value)
    if kind in _MAPPINGS:
        return [one for pair in value.items() for one in pair]
    if kind is bytearray:
        return bytes(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return value.copy()
    if kind in (tuple, frozenset) or value is None:
        return None
    return classes.state_of(value)


def can_change(value: Any) -> bool:
    """Return whether `contents` can become another."""
    return value is not None and type(value) not in (tuple, frozenset)


def _differs(before: Any, now: Any) -> bool:
    """Compare two contents by identity of what they hold: quick, and it asks no object of the program's."""
    if isinstance(before, dict):
        return list(before) != list(now) or _differs(list(before.values()), list(now.values()))
    if isinstance(before, list):
        return len(before) != len(now) or any(one is not other for one, other in zip(before, now, strict=True))
    if isinstance(before, bytes):
        return before != bytes(now)
    return bool(before.shape != now.shape or before.dtype != now.dtype or before.tobytes() != now.tobytes())


def _replace(value: Any, new: Any) -> None:
    """Put contents from the other side into this side's container; TypeError or ValueError if they do not fit."""
    kind = type(value)
    if kind in (list, bytearray):
        if type(new) not in (list, bytes):
            raise TypeError("no contents of a list")
        value[:] = new
    elif kind in (set, collections.deque):
        value.clear()
        for one in new:
            value.append(one) if kind is collections.deque else value.add(one)
    elif kind in _MAPPINGS:
        pairs = [(new[index], new[index + 1]) for index in range(0, len(new), 2)]
        value.clear()
        for key, one in pairs:
            value[key] = one
    elif kind.__module__ == "numpy":
        if value.dtype != new.dtype or value.size != new.size:
            # Converting would ask objects of the program's, resizing pulls memory from under views.
            raise TypeError("no contents of an array")
        value.shape = new.shape
        value[...] = new
    elif isinstance(new, dict):
        classes.set_state(value, new)
    else:
        raise TypeError("no attributes of an instance")


class Copies:
    """This side's copies of containers, in an order both sides agree on, and what they held when both were alike."""

    def __init__(self, values: Sequence[Any] = ()) -> None:
        self.values: list[Any] = []
        self._before: list[Any] = []
        self.add(values)

    def add(self, values: Sequence[Any]) -> None:
        """Take up further containers."""
        self.values += values
        self._before += map(contents, values)

    def changes(self) -> list[Any]:
        """Return [number, contents, number, contents …] of what has changed, and take it as known to the other side."""
        found: list[Any] = []
        for number, before in enumerate(self._before):
            if before is not None:
                now = contents(self.values[number])
                if _differs(before, now):
                    found += [number, now]
                    self._before[number] = now
        return found

    def apply(self, changes: Sequence[Any]) -> None:
        """Put the other side's changes in."""
        for index in range(0, len(changes), 2):
            number = changes[index]
            if type(number) is not int or not 0 <= number < len(self.values) or not can_change(self.values[number]):
                raise ValueError("a change of what cannot change")
            _replace(self.values[number], changes[index + 1])
            self._before[number] = contents(self.values[number])
