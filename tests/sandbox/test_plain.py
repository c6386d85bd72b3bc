"""What crosses the wall between program and judge: unchanged in value, type, sharing and order; and nothing else does."""

import collections
import contextlib
import datetime
import decimal
import fractions
import math
import pathlib
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.sandbox.plain import DEEPEST, TooDeep, Writer
from qwen_eval.sandbox.reading import Malformed, Reader


def refuse(*_: object) -> object:
    raise TypeError("not plain")


def across(value: object, seen: list[object] | None = None) -> Any:
    writer = Writer(refuse, seen)
    writer.value(value)
    return Reader(writer.data, refuse, seen).whole()


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all through, NaN equal to NaN, -0.0 not to 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
)
HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.decimals(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(HASHABLE, inner) | st.sets(HASHABLE)
    | st.lists(inner).map(collections.deque),
    max_leaves=40,
)  # fmt: skip


@given(VALUES)
def test_plain_values_cross_unchanged(value: object) -> None:
    assert same(across(value), value)


@given(
    st.one_of(
        st.lists(st.floats(), min_size=8),
        st.lists(st.integers(), min_size=8),
        st.lists(st.sampled_from(["red", "green", "", "ü\udc80"]), min_size=8),
        st.lists(st.text(max_size=2), min_size=8),
        st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers()] * n), min_size=8)),
        st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.sampled_from("abc")] * n), min_size=8)),
        st.lists(st.lists(st.floats(), max_size=3).map(tuple), min_size=8),
        st.lists(st.tuples(st.booleans()), min_size=8),
    ),
    st.sampled_from([list, tuple, collections.deque]),
)
def test_blocks_cross_like_values_one_by_one(values: list[Any], kind: type) -> None:
    assert same(across(kind(values)), kind(values))


def test_a_quarter_million_tuples_of_few_strings_take_a_byte_a_string() -> None:
    value = [("Red", "Green", "Blue", "Red")] * 250_000
    writer = Writer(refuse)
    writer.value(value)
    assert len(writer.data) < 1_000_100
    assert Reader(writer.data, refuse).whole() == value


@pytest.mark.parametrize(
    "value",
    [
        fractions.Fraction(1, 3),
        decimal.Decimal("1.10"),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
        datetime.time(1, 2, fold=1),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("abca"),
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], maxlen=2),
        range(3, 100, 7),
        slice(1, None, 2),
        uuid.UUID(int=5),
        pathlib.PurePosixPath("/a/b"),
        int,
        len,
        str.upper,
        math.sin,
        ...,
        NotImplemented,
        np.float32(1.5),
        np.int8(-3),
        np.bool_(True),
        np.datetime64("2024-02-29"),
    ],
)
def test_further_kinds_cross(value: object) -> None:
    found = across(value)
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.zeros((0, 3), dtype="f4"),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([True, False]),
        np.array([1, "a", None, [2]], dtype=object),
        np.array(7.0),
    ],
)
def test_arrays_cross_with_shape_and_type(array: Any) -> None:
    found = across([array, array])
    assert found[0] is found[1]
    assert found[0].dtype == array.dtype
    assert found[0].shape == array.shape
    assert found[0].tolist() == array.tolist()
    assert found[0].flags.writeable


def test_sharing_and_cycles_cross() -> None:
    inner: list[object] = [1]
    found = across([inner, inner, {"k": inner}, (inner,)])
    assert found[0] is found[1] is found[2]["k"] is found[3][0]
    inner.append(inner)
    found = across(inner)
    assert found[1] is found


def test_containers_that_the_other_side_has_cross_as_their_number() -> None:
    held: list[object] = [[1], {"a": 2}]
    found = across((held[1], held[0]), held)
    assert found[0] is held[1]
    assert found[1] is held[0]


def test_nan_stays_the_one_object_that_containers_compare_by_identity() -> None:
    assert across([math.nan]) == [math.nan]
    assert across([math.nan] * 20) == [math.nan] * 20


def test_what_is_too_deep_is_refused_and_not_a_crash() -> None:
    value: list[Any] = []
    for _ in range(DEEPEST + 10):
        value = [value]
    with pytest.raises((TooDeep, RecursionError)):
        across(value)


@pytest.mark.parametrize("value", [open, eval, exec, object(), type("Mine", (int,), {})(3), lambda: 0, iter([1])])
def test_what_is_not_plain_is_left_to_the_two_ends(value: object) -> None:
    with pytest.raises(TypeError, match="not plain"):
        Writer(refuse).value(value)


# -------------------------------------------------------------------------------------------------- made-up messages


def no_such_tag(reader: Reader, tag: bytes) -> object:
    raise Malformed("no such tag")


def read(data: bytes) -> None:
    """Whatever a program sends: a value, or Malformed. Nothing else, and nothing of the program's is called."""
    with contextlib.suppress(Malformed):
        Reader(data, no_such_tag).whole()


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_malformed(data: bytes) -> None:
    read(data)


@given(VALUES, st.data())
def test_damaged_messages_are_a_value_or_malformed(value: object, data: st.DataObject) -> None:
    writer = Writer(refuse)
    writer.value(value)
    message = bytearray(writer.data)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255))
    read(bytes(message[: data.draw(st.integers(0, len(message)))]))
    read(bytes(message))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"s\xff\xff\xff\xff\xff\xff\x7f",  # a string longer than all memory
        b"l\xff\xff\xff\xff\x0f-",  # a list of billions of items, none of which is there
        b"l\x01v\xff\xff\xff\xff\xff\xff\x7f\x00-",  # tuples of a made-up width
        b"l\x08s\x01\x01a\x00\x00\x00\x00\x00\x00\x00\x01",  # the second of one string
        b"R\x00",  # a container that was never there
        b"G\x04open",  # a function that is no plain one
        b"G\x0dbuiltins.open",
        b"p\x0fsubprocess.PopenN",
        b"A\x01O\x01-i\x01\x01\x08" + bytes(8),  # an array of addresses
        b"D" + b"s\x01a" + b"\x00-",  # a factory that cannot be called
        b"N" + b"N",  # more than a value
        b"l\x01-" * 5000 + b"N",  # lists inside lists
    ],
)
def test_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        Reader(message, no_such_tag).whole()
