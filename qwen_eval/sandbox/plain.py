"""Plain data as bytes: what may cross between a program and its judge, with type, sharing and cycles.

Not pickle, which runs what it reads, and not JSON, which turns tuples into lists. A value is a tag of one byte and what
belongs to it; a container met again is a number. What is not plain is handed to `outside`, and only in that do the two
sides of the wall differ (`exchange.py`). This file writes; `reading.py` reads.
"""

import array
import builtins
import collections
import datetime
import decimal
import fractions
import itertools
import math
import operator
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

__all__ = ["DATE", "DEEPEST", "FAMILIES", "FROM_TEXT", "KNOWN", "TIME", "TooDeep", "Writer"]

DEEPEST: Final = 4000  # containers inside containers
_LEAVES: Final = frozenset((type(None), bool, int, float, complex, str, bytes))
_MANY: Final = 8  # items from which on a block is worth its check
# Classes of the standard library that can be made again from their text.
FROM_TEXT: Final = frozenset(
    (
        *("uuid.UUID", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath"),
        *("ipaddress.IPv4Address", "ipaddress.IPv6Address", "ipaddress.IPv4Network", "ipaddress.IPv6Network"),
        *("ipaddress.IPv4Interface", "ipaddress.IPv6Interface"),
    )
)
FAMILIES: Final = "biufcSUmM"  # numpy dtypes that hold no objects


class TooDeep(Exception):
    """A value with more containers inside each other than `DEEPEST`."""


_HARMFUL: Final = frozenset(
    ("eval", "exec", "compile", "open", "input", "breakpoint", "help", "exit", "quit", "globals", "locals", "vars")
)


def _known() -> dict[str, object]:
    """Return what both sides have under the same name and may pass by it: types and functions that only compute."""
    found: dict[str, object] = {}
    for module in (builtins, math, operator):
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in _HARMFUL and callable(value):
                found.setdefault(f"{module.__name__}.{name}", value)
    for kind in (str, list, dict, set, tuple, int, float, bytes):
        for name, value in vars(kind).items():
            if not name.startswith("_") and callable(value) and not isinstance(value, (classmethod, staticmethod)):
                found[f"{kind.__name__}.{name}"] = getattr(kind, name)
    for container in (collections.deque, collections.Counter, collections.OrderedDict, collections.defaultdict):
        found[f"collections.{container.__name__}"] = container
    found["decimal.Decimal"] = decimal.Decimal
    found["fractions.Fraction"] = fractions.Fraction
    found["types.NoneType"] = type(None)
    return found


KNOWN: Final = _known()
_NAMES: Final = {id(value): name for name, value in reversed(KNOWN.items())}


class _Flat:
    """The items of all of some tuples, one after the other; to be gone through more than once, and never a list."""

    def __init__(self, tuples: Iterable[tuple[Any, ...]]) -> None:
        self._tuples = tuples

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._tuples)


class Writer:
    """Turns values into bytes."""

    def __init__(self, outside: "Callable[[Writer, object], None]", kept: list[object] | None = None) -> None:
        """Take over containers that the other side has already (`kept`), in their order."""
        self.data = bytearray()
        self.kept: list[object] = list(kept or ())  # keeps them alive, so that an id stays theirs
        self._seen = {id(value): index for index, value in enumerate(self.kept)}
        self._outside = outside
        self._depth = 0

    def value(self, value: object) -> None:
        """Write a value."""
        write = _WRITERS.get(type(value))
        if write is not None:
            write(self, value)
        elif id(value) in _NAMES:
            self.tag(b"G")
            self.text(_NAMES[id(value)])
        elif not self._library(value) and not self._numpy(value):
            self._outside(self, value)

    def tag(self, tag: bytes) -> None:
        """Write a tag."""
        self.data += tag

    def size(self, size: int) -> None:
        """Write a size: seven bits a byte, the lowest first."""
        while size > 127:
            self.data.append(size & 127 | 128)
            size >>= 7
        self.data.append(size)

    def raw(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes with their size."""
        self.size(len(data))
        self.data += data

    def text(self, text: str) -> None:
        """Write a string, lone surrogates included."""
        self.raw(text.encode("utf-8", "surrogatepass"))

    def met(self, value: object) -> bool:
        """Write the number of a container met before; otherwise give it one and return False."""
        number = self._seen.get(id(value))
        if number is None:
            self.remember(value)
            return False
        self.tag(b"R")
        self.size(number)
        return True

    def remember(self, value: object) -> None:
        """Give a container the next number."""
        self._seen[id(value)] = len(self.kept)
        self.kept.append(value)

    def items(self, count: int, values: Any) -> None:
        """Write `count` values."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise TooDeep(f"more than {DEEPEST} containers inside each other")
        self.size(count)
        if not self._block(count, values):
            self.tag(b"-")
            for value in values:
                self.value(value)
        self._depth -= 1

    def _block(self, count: int, values: Any) -> bool:
        """Write many values of one type at once: large inputs and results are mostly such lists."""
        kinds = set(map(type, values)) if count >= _MANY else set()
        if kinds == {str}:
            return self._strings(count, values)
        if kinds == {tuple}:
            return self._tuples(count, values)
        if kinds == {float}:
            self.data += b"d" + array.array("d", values).tobytes()
            return True
        if kinds == {int}:
            try:
                self.data += b"q" + array.array("q", values).tobytes()
            except OverflowError:
                pass
            else:
                return True
        return False

    def _strings(self, count: int, values: Any) -> bool:
        """Write strings of which few are different as those, and a byte for each that says which it is."""
        numbers = dict(zip(dict.fromkeys(values), range(257), strict=False))
        if len(numbers) > min(256, count // 2):
            return False
        self.tag(b"s")
        self.size(len(numbers))
        for text in numbers:
            self.text(text)
        self.data += bytes(map(numbers.__getitem__, values))
        return True

    def _tuples(self, count: int, values: Any) -> bool:
        """Write tuples of one length, and with items of one plain type, by that length and all of the items."""
        width = len(next(iter(values)))
        flat = _Flat(values)
        if not width or set(map(len, values)) != {width} or set(map(type, flat)) not in ({str}, {float}, {int}):
            return False
        self.tag(b"v")
        self.size(width)
        self.items(width * count, flat)
        return True

    def frozen(self, tag: bytes, value: Any) -> None:
        """Write a tuple or frozenset, which gets its number at its end: it is only made when its items are there."""
        number = self._seen.get(id(value))
        if number is not None:
            self.tag(b"R")
            self.size(number)
        elif _LEAVES.issuperset(map(type, value)):  # needs no number: there is nothing in it to meet again
            self.tag(tag.lower())
            self.items(len(value), value)
        else:
            self.tag(tag)
            self.items(len(value), value)
            self.remember(value)

    def pairs(self, value: Any) -> None:
        """Write a dictionary's keys and values in their order."""
        flat = [one for pair in dict.items(value) for one in pair]
        self.items(len(flat), flat)

    def _library(self, value: object) -> bool:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in FROM_TEXT or getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind:
            return False
        self.tag(b"p")
        self.text(name)
        self.text(str(value))
        return True

    def _numpy(self, value: Any) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return False
        if type(value) is numpy.ndarray:
            if value.dtype.kind in FAMILIES:
                if not self.met(value):
                    self.tag(b"A")
                    self.text(value.dtype.str)
                    self.items(value.ndim, value.shape)
                    self.raw(value.tobytes())
                return True
            if value.dtype == object:
                if not self.met(value):
                    self.tag(b"Y")
                    self.items(value.ndim, value.shape)
                    self.items(value.size, value.ravel().tolist())
                return True
        elif isinstance(value, numpy.generic) and value.dtype.kind in FAMILIES:
            self.tag(b"a")
            self.text(value.dtype.str)
            self.raw(value.tobytes())
            return True
        return False


def _constant(tag: bytes) -> Callable[[Writer, Any], None]:
    return lambda writer, value: writer.tag(tag)


def _bool(writer: Writer, value: bool) -> None:
    writer.tag(b"T" if value else b"F")


def _int(writer: Writer, value: int) -> None:
    writer.tag(b"i")
    writer.raw(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _float(writer: Writer, value: float) -> None:
    writer.data += b"f" + struct.pack("<d", value)


def _complex(writer: Writer, value: complex) -> None:
    writer.data += b"c" + struct.pack("<dd", value.real, value.imag)


def _str(writer: Writer, value: str) -> None:
    writer.tag(b"s")
    writer.text(value)


def _bytes(writer: Writer, value: bytes) -> None:
    writer.tag(b"b")
    writer.raw(value)


def _bytearray(writer: Writer, value: bytearray) -> None:
    if not writer.met(value):
        writer.tag(b"B")
        writer.raw(value)


def _growing(tag: bytes) -> Callable[[Writer, Any], None]:
    def write(writer: Writer, value: Any) -> None:
        if not writer.met(value):
            writer.tag(tag)
            writer.items(len(value), value)

    return write


def _mapping(tag: bytes) -> Callable[[Writer, Any], None]:
    def write(writer: Writer, value: Any) -> None:
        if not writer.met(value):
            writer.tag(tag)
            if tag == b"D":
                writer.value(value.default_factory)
            writer.pairs(value)

    return write


def _deque(writer: Writer, value: "collections.deque[Any]") -> None:
    if not writer.met(value):
        writer.tag(b"q")
        writer.value(value.maxlen)
        writer.items(len(value), value)


def _parts(tag: bytes, *names: str) -> Callable[[Writer, Any], None]:
    """A value that is made again from some of its attributes."""

    def write(writer: Writer, value: Any) -> None:
        writer.tag(tag)
        for name in names:
            writer.value(getattr(value, name))

    return write


def _decimal(writer: Writer, value: decimal.Decimal) -> None:
    writer.tag(b"M")
    writer.text(str(value))


def _zone(writer: Writer, value: datetime.timezone) -> None:
    writer.tag(b"5")
    writer.value(value.utcoffset(None))


def _view(tag: bytes) -> Callable[[Writer, Any], None]:
    def write(writer: Writer, value: Any) -> None:
        writer.tag(tag)
        if tag == b"m":
            writer.items(2 * len(value), [one for pair in value for one in pair])
        else:
            writer.items(len(value), value)

    return write


DATE: Final = ("year", "month", "day")
TIME: Final = ("hour", "minute", "second", "microsecond", "tzinfo", "fold")
_WRITERS: Final[dict[type, Callable[[Writer, Any], None]]] = {
    type(None): _constant(b"N"),
    type(...): _constant(b"."),
    type(NotImplemented): _constant(b"!"),
    bool: _bool,
    int: _int,
    float: _float,
    complex: _complex,
    str: _str,
    bytes: _bytes,
    bytearray: _bytearray,
    list: _growing(b"l"),
    set: _growing(b"S"),
    tuple: lambda writer, value: writer.frozen(b"V", value),
    frozenset: lambda writer, value: writer.frozen(b"Z", value),
    dict: _mapping(b"d"),
    collections.OrderedDict: _mapping(b"o"),
    collections.Counter: _mapping(b"C"),
    collections.defaultdict: _mapping(b"D"),
    collections.deque: _deque,
    range: _parts(b"r", "start", "stop", "step"),
    slice: _parts(b"x", "start", "stop", "step"),
    type({}.keys()): _view(b"k"),
    type({}.values()): _view(b"w"),
    type({}.items()): _view(b"m"),
    decimal.Decimal: _decimal,
    fractions.Fraction: _parts(b"Q", "numerator", "denominator"),
    datetime.date: _parts(b"1", *DATE),
    datetime.time: _parts(b"2", *TIME),
    datetime.datetime: _parts(b"3", *DATE, *TIME),
    datetime.timedelta: _parts(b"4", "days", "seconds", "microseconds"),
    datetime.timezone: _zone,
}
