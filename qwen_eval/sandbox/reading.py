"""The other half of `plain.py`: bytes back into values, trusting nothing.

The bytes come from a program that may have written them itself. Sizes are checked against what is there, classes are
made again from a short list of names, nothing is called that could run code of the program's.
"""

import array
import collections
import datetime
import decimal
import fractions
import importlib
import math
import operator
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from qwen_eval.sandbox.plain import DATE, DEEPEST, FAMILIES, FROM_TEXT, KNOWN, TIME

__all__ = ["Malformed", "Reader"]


class Malformed(Exception):
    """Bytes that no writer wrote."""


class Reader:
    """Turns bytes back into values; `Malformed` for bytes that no writer wrote."""

    def __init__(
        self, data: bytes | bytearray, outside: "Callable[[Reader, bytes], object]", seen: list[object] | None = None
    ) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._depth = 0
        self.deepest = 0
        self.odd = False  # there was more than ordinary data in it
        self._outside = outside
        self.seen: list[Any] = list(seen or ())

    def whole(self) -> Any:
        """Read one value that is all there is."""
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(before, 4 * DEEPEST))
        try:
            value = self.value()
        except Malformed:
            raise
        except Exception as error:  # whatever a made-up message brings about, it is the message's fault
            raise Malformed(f"{type(error).__name__}: {error}") from None
        finally:
            sys.setrecursionlimit(before)
        if self._at != len(self._data):
            raise Malformed("more than a value")
        return value

    def value(self) -> Any:
        """Read a value."""
        tag = bytes(self.take(1))
        if tag not in _ORDINARY:
            self.odd = True
        read = _READERS.get(tag)
        return read(self) if read is not None else self._outside(self, tag)

    def take(self, size: int) -> memoryview:
        """Read that many bytes."""
        end = self._at + size
        if end > len(self._data):
            raise Malformed("it ends too early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def size(self) -> int:
        """Read a size, which no honest one exceeds what is left by much: an item has a byte at least."""
        size = shift = 0
        while True:
            byte = self.take(1)[0]
            size |= (byte & 127) << shift
            if byte < 128:
                return size
            shift += 7
            if shift > 56:
                raise Malformed("a size beyond all sizes")

    def raw(self) -> bytes:
        """Read bytes with their size."""
        return bytes(self.take(self.size()))

    def text(self) -> str:
        """Read a string."""
        return str(self.take(self.size()), "utf-8", "surrogatepass")

    def remember(self, value: Any) -> Any:
        """Give a container the next number."""
        self.seen.append(value)
        return value

    def items(self) -> list[Any]:
        """Read a number of values."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise Malformed("too many containers inside each other")
        self.deepest = max(self.deepest, self._depth)
        count = self.size()
        if count > len(self._data) - self._at:
            raise Malformed("more items than bytes")
        block = bytes(self.take(1))
        if block == b"-":
            value = self.value
            found = [value() for _ in range(count)]
        elif block in (b"d", b"q"):
            numbers = array.array(block.decode())
            numbers.frombytes(self.take(8 * count))
            found = numbers.tolist()
            if any(map(operator.ne, found, found)):
                found = [value if value == value else math.nan for value in found]  # as _read_float
        elif block == b"s":
            texts = [self.text() for _ in range(self.size())]
            found = list(map(texts.__getitem__, self.take(count)))
        elif block == b"v":
            width = self.size()
            each = iter(self.items())
            found = list(zip(*[each] * width, strict=True))
            if len(found) != count:
                raise Malformed("tuples of another length")
        else:
            raise Malformed("items of no known kind")
        self._depth -= 1
        return found

    def pairs(self, into: Any) -> Any:
        """Read keys and values into a dictionary, in their order."""
        flat = self.items()
        for index in range(0, len(flat), 2):
            into[flat[index]] = flat[index + 1]
        return into


def _read_list(reader: Reader) -> list[Any]:
    made: list[Any] = reader.remember([])
    made += reader.items()
    return made


def _read_set(reader: Reader) -> set[Any]:
    made: set[Any] = reader.remember(set())
    made.update(reader.items())
    return made


def _read_default(reader: Reader) -> Any:
    made: collections.defaultdict[Any, Any] = reader.remember(collections.defaultdict())
    factory = reader.value()
    if factory is not None and not callable(factory):
        raise Malformed("a factory that cannot be called")
    reader.pairs(made)
    made.default_factory = factory
    return made


def _read_deque(reader: Reader) -> Any:
    place = len(reader.seen)
    reader.remember(None)  # the largest length is part of its making; a deque that contains itself is not worth more
    made: collections.deque[Any] = collections.deque(maxlen=reader.value())
    reader.seen[place] = made
    made.extend(reader.items())
    return made


def _read_range(reader: Reader) -> range:
    return range(reader.value(), reader.value(), reader.value())


def _read_items_view(reader: Reader) -> Any:
    return reader.pairs({}).items()


def _read_time(reader: Reader) -> datetime.time:
    hour, minute, second, microsecond, zone, fold = (reader.value() for _ in TIME)
    return datetime.time(hour, minute, second, microsecond, zone, fold=fold)


def _read_datetime(reader: Reader) -> datetime.datetime:
    *parts, fold = (reader.value() for _ in (*DATE, *TIME))
    return datetime.datetime(*parts, fold=fold)


def _read_library(reader: Reader) -> Any:
    name, text = reader.text(), reader.text()
    if name not in FROM_TEXT:
        raise Malformed("a class that is not made from text")
    module, _, kind = name.partition(".")
    return getattr(importlib.import_module(module), kind)(text)


def _read_float(reader: Reader) -> float:
    value: float = struct.unpack("<d", reader.take(8))[0]
    return math.nan if value != value else value  # the one object the test's own NaN is, as containers go by identity


def _read_array(reader: Reader) -> Any:
    import numpy

    place = len(reader.seen)
    reader.remember(None)
    kind = _dtype(reader)
    shape = reader.items()
    made = numpy.frombuffer(bytearray(reader.raw()), dtype=kind).reshape(shape)
    if kind.kind == "b":
        made = made.view("u1") != 0  # a truth value may be no other byte than 0 and 1
    reader.seen[place] = made
    return made


def _read_object_array(reader: Reader) -> Any:
    import numpy

    place = len(reader.seen)
    reader.remember(None)
    shape, values = reader.items(), reader.items()
    made = numpy.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # one by one: numpy would look into sequences
        made[index] = value
    reader.seen[place] = made = made.reshape(shape)
    return made


def _read_scalar(reader: Reader) -> Any:
    import numpy

    kind = _dtype(reader)
    return numpy.frombuffer(reader.raw(), dtype=kind, count=1)[0]


def _dtype(reader: Reader) -> Any:
    import numpy

    kind = numpy.dtype(reader.text())
    if kind.kind not in FAMILIES:
        raise Malformed("an array of objects as bytes")
    return kind


# Data of which nothing can be made by an attribute or an item that cannot be sent back.
_ORDINARY: Final = frozenset(bytes([one]) for one in b"NTFifcsbBRlSvVzZdCDqHWJIEPUX")
_READERS: Final[dict[bytes, Callable[[Reader], Any]]] = {
    b"N": lambda reader: None,
    b".": lambda reader: ...,
    b"!": lambda reader: NotImplemented,
    b"T": lambda reader: True,
    b"F": lambda reader: False,
    b"i": lambda reader: int.from_bytes(reader.take(reader.size()), "little", signed=True),
    b"f": _read_float,
    b"c": lambda reader: complex(*struct.unpack("<dd", reader.take(16))),
    b"s": Reader.text,
    b"b": Reader.raw,
    b"B": lambda reader: reader.remember(bytearray(reader.raw())),
    b"R": lambda reader: reader.seen[reader.size()],
    b"l": _read_list,
    b"S": _read_set,
    b"v": lambda reader: tuple(reader.items()),
    b"z": lambda reader: frozenset(reader.items()),
    b"V": lambda reader: reader.remember(tuple(reader.items())),
    b"Z": lambda reader: reader.remember(frozenset(reader.items())),
    b"d": lambda reader: reader.pairs(reader.remember({})),
    b"o": lambda reader: reader.pairs(reader.remember(collections.OrderedDict())),
    b"C": lambda reader: reader.pairs(reader.remember(collections.Counter())),
    b"D": _read_default,
    b"q": _read_deque,
    b"r": _read_range,
    b"x": lambda reader: slice(reader.value(), reader.value(), reader.value()),
    b"k": lambda reader: dict.fromkeys(reader.items()).keys(),
    b"w": lambda reader: dict(enumerate(reader.items())).values(),
    b"m": _read_items_view,
    b"M": lambda reader: decimal.Decimal(reader.text()),
    b"Q": lambda reader: fractions.Fraction(reader.value(), reader.value()),
    b"1": lambda reader: datetime.date(reader.value(), reader.value(), reader.value()),
    b"2": _read_time,
    b"3": _read_datetime,
    b"4": lambda reader: datetime.timedelta(reader.value(), reader.value(), reader.value()),
    b"5": lambda reader: datetime.timezone(reader.value()),
    b"p": _read_library,
    b"G": lambda reader: KNOWN[reader.text()],
    b"A": _read_array,
    b"Y": _read_object_array,
    b"a": _read_scalar,
}
