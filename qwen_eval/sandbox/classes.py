"""Values of classes: which cross the wall as data, and how they are rebuilt on the other side.

Three kinds cross, because rebuilding them runs nothing of the program's: named tuples (from their field names), values
of a class that adds to a built-in type (as an empty subclass of it: equality is the built-in's, whatever the class
says), and instances, enumeration members and exceptions of classes that both sides have from the trusted prompt.
"""

import builtins
import collections
import contextlib
import enum
import types
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_eval.sandbox import plain, reading

__all__ = [
    "hides_method",
    "nearest_builtin",
    "read_shared",
    "read_structure",
    "set_state",
    "state_of",
    "write_shared",
    "write_structure",
]

_EXACT: Final[dict[type, Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: lambda value: bytearray.__getitem__(value, slice(None)),
    list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
_METHODS: Final = (types.FunctionType, types.MethodType)
_rebuilt: dict[tuple[str, Any], type] = {}


def nearest_builtin(kind: type) -> type | None:
    """Return the built-in type a class adds to, None for one that starts from object."""
    return next((base for base in kind.__mro__ if base in _EXACT), None)


def write_structure(writer: plain.Writer, value: Any) -> bool:
    """Write a named tuple, an exception or a value of a class that adds to a built-in type; False when it is none."""
    kind = type(value)
    fields = getattr(kind, "_fields", None)
    if issubclass(kind, tuple) and isinstance(fields, tuple) and all(type(name) is str for name in fields):
        writer.tag(b"P")
        writer.text(kind.__name__)
        writer.value(tuple(fields))
        writer.value(_EXACT[tuple](value))
        return True
    if issubclass(kind, BaseException) and getattr(builtins, kind.__name__, None) is kind:
        writer.tag(b"X")
        writer.text(kind.__name__)
        writer.value(tuple(value.args))
        return True
    base = nearest_builtin(kind)
    if base is None or isinstance(value, enum.Enum):
        return False
    writer.tag(b"U")
    writer.text(kind.__name__)
    writer.value(_EXACT[base](value))
    return True


def read_structure(reader: reading.Reader, tag: bytes) -> Any:
    """Read what `write_structure` wrote; Malformed for anything else."""
    if tag not in (b"P", b"X", b"U"):
        raise reading.Malformed(f"no such tag {tag!r}")
    name = reader.text()
    if tag == b"P":
        fields, items = reader.value(), reader.value()
        key = (name, fields)
        if key not in _rebuilt:
            _rebuilt[key] = collections.namedtuple(name, fields)  # checks that all of them are names
        return tuple.__new__(_rebuilt[key], items) if len(items) == len(fields) else items
    inner = reader.value()
    if tag == b"X":
        kind = getattr(builtins, name)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise reading.Malformed("not an exception")
        return kind(*inner)
    base = type(inner)
    if base not in _EXACT:
        raise reading.Malformed("not a built-in type")
    if (name, base) not in _rebuilt:
        _rebuilt[name, base] = type(name, (base,), {})
    return _rebuilt[name, base](inner)


def state_of(value: Any) -> dict[str, Any]:
    """Return an instance's attributes, those in slots included, without asking its class."""
    state: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__"):
                try:
                    state[name] = object.__getattribute__(value, name)
                except AttributeError:
                    continue
    with contextlib.suppress(AttributeError):
        state.update(object.__getattribute__(value, "__dict__"))
    return state


def write_shared(writer: plain.Writer, value: Any, shared: Mapping[str, Any]) -> bool:
    """Write an instance or member of a class both sides have; False when it is none of a kind that can be rebuilt."""
    kind = type(value)
    if shared.get(kind.__name__) is not kind:
        return False
    if isinstance(value, enum.Enum):
        writer.tag(b"E")
        writer.text(kind.__name__)
        writer.text(value.name)
        return True
    if nearest_builtin(kind) is not None or issubclass(kind, (BaseException, type)):
        return False
    if not writer.met(value):
        writer.tag(b"I")
        writer.text(kind.__name__)
        writer.value(state_of(value))
    return True


def read_shared(reader: reading.Reader, tag: bytes, shared: Mapping[str, Any]) -> Any:
    """Read what `write_shared` wrote."""
    kind = shared[reader.text()]
    if tag == b"E":
        if not issubclass(kind, enum.Enum):
            raise reading.Malformed("a member of no enumeration")
        return kind[reader.text()]
    made = reader.remember(object.__new__(kind))
    set_state(made, reader.value())
    return made


def set_state(value: Any, state: dict[str, Any]) -> None:
    """Replace an instance's attributes without asking its class."""
    with contextlib.suppress(AttributeError):
        object.__getattribute__(value, "__dict__").clear()
    for name, one in state.items():
        object.__setattr__(value, name, one)


def hides_method(value: Any, but: Sequence[Any]) -> bool:
    """Say whether an instance of the prompt's has an attribute in place of a method; functions in `but` may be one."""
    kind = type(value)
    if kind.__module__ != "judge" or issubclass(kind, type):
        return False
    methods = [name for name in getattr(value, "__dict__", ()) if isinstance(getattr(kind, name, None), _METHODS)]
    fields = getattr(kind, "__dataclass_fields__", ())
    return any(name not in fields and not any(vars(value)[name] is one for one in but) for name in methods)
