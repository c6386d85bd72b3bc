"""What the judge has of an object that stays in the program's process: a name for it, through which it can be used.

The program answers what it is asked, and its answers are compared by the judge, with the judge's own operators. So a
stand-in passes on calls, attributes, items, iteration and conversion, all of which bring back data or further stand-
ins. It passes on no comparison and no arithmetic: `stand_in == expected` would hand the expected value to the program
and believe its yes. The exception are tests that are written for objects: they name a class of the program, or use an
attribute no plain data has. Operators then are the program's between its own objects, and never between one of them and
the judge's data.

Names with two underscores are not passed on: numpy would follow an `__array_interface__` into the judge's own memory.
"""

import collections
import datetime
import decimal
import fractions
import operator
import re
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

__all__ = ["OPERATIONS", "Remote", "number_of"]


_SAFE: Final = frozenset(("__name__", "__qualname__", "__doc__", "__annotations__", "__defaults__", "__kwdefaults__"))
# Attributes that plain data has too: asking for them does not show that a test is written for objects.
_PLAIN: Final = _SAFE.union(
    *map(dir, (str, bytes, bytearray, list, tuple, dict, set, frozenset, int, float, complex, range, type, slice)),
    *map(dir, (collections.deque, collections.Counter, collections.OrderedDict, collections.defaultdict)),
    *map(dir, (decimal.Decimal, fractions.Fraction, datetime.datetime, datetime.timedelta, BaseException)),
    *map(dir, (re.compile(""), re.match("", ""), types.FunctionType, types.GeneratorType)),
    (
        "shape",
        "dtype",
        "size",
        "ndim",
        "T",
        "tolist",
        "all",
        "any",
        "sum",
        "mean",
        "item",
        "astype",
        "flatten",
        "reshape",
    ),
)


class Asks(Protocol):
    """The judge's end of the line to the program."""

    named: bool
    objects: bool

    def ask(self, operation: str, *arguments: object) -> Any:
        """Have the program do something and return its answer."""

    def cannot_split(self, why: str) -> BaseException:
        """Note for good that the test needs the program's own process; return what to raise."""


def _enter(value: Any) -> Any:
    return type(value).__enter__(value)


def _exit(value: Any, error: BaseException | None) -> Any:
    return bool(type(value).__exit__(value, type(error) if error else None, error, None))


def _await(value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


# Operators between objects of the program's, for tests that are written for objects.
_OPERATORS: Final = {
    **{name: getattr(operator, name) for name in ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "matmul", "mod")},
    **{name: getattr(operator, name) for name in ("truediv", "floordiv", "pow", "neg", "pos", "abs", "invert")},
    **{name: getattr(operator, name) for name in ("and_", "or_", "xor", "lshift", "rshift")},
}
# What the program's side does for each operation.
OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "call": lambda target, arguments, named: target(*arguments, **named),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "len": len,
    "iter": iter,
    "next": next,
    "reversed": reversed,
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "round": round,
    "str": str,
    "repr": repr,
    "enter": _enter,
    "exit": _exit,
    "await": _await,
    "type": lambda target: type(target).__name__,
    "contains": operator.contains,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "is_class": lambda target: isinstance(target, type),
    **{f"operator.{name}": function for name, function in _OPERATORS.items()},
}


class Remote:
    """An object in the program's process."""

    __slots__ = ("__link", "__number")

    def __init__(self, link: Asks, number: int) -> None:
        object.__setattr__(self, "_Remote__link", link)
        object.__setattr__(self, "_Remote__number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _SAFE:
            raise AttributeError(f"the judge does not ask a program's object for {name}")
        if name not in _PLAIN:
            self.__link.objects = True
        return self.__link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self.__link.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__link.ask("delattr", self, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it where it is."""
        return self.__link.ask("call", self, arguments, named)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        named = error if type(error).__module__ == "builtins" or error is None else Exception(str(error))
        forgiven = self.__link.ask("exit", self, named) is True
        return forgiven and not isinstance(error, AssertionError)  # those are the test's

    def __contains__(self, item: object) -> bool:
        if self.__link.objects or self.__link.named:
            return self.__link.ask("contains", self, item) is True
        return any(item is one or item == one for one in self)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and self.__link.ask("isinstance", value, self) is True

    def __subclasscheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and self.__link.ask("issubclass", value, self) is True

    def __mro_entries__(self, bases: object) -> Any:
        """What Python asks a base that is no class: the test says `class Mine(candidate)`."""
        raise self.__link.cannot_split("the test derives a class from one of the program's")

    def __copy__(self) -> "Remote":
        return self

    def __deepcopy__(self, memo: object) -> "Remote":
        return self

    if TYPE_CHECKING:  # made below, with the others

        def __iter__(self) -> Iterator[Any]: ...

    __hash__ = object.__hash__


def number_of(stand_in: Remote) -> int:
    """Return the number under which the program knows an object."""
    number: int = object.__getattribute__(stand_in, "_Remote__number")
    return number


def _asking(operation: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: object) -> Any:
        link: Asks = object.__getattribute__(self, "_Remote__link")
        return link.ask(operation, self, *arguments)

    return method


def _if_named(operation: str, *, swapped: bool = False) -> Callable[..., Any]:
    def method(self: Remote, *others: object) -> Any:
        link: Asks = object.__getattribute__(self, "_Remote__link")
        if not (link.named or link.objects) or not all(isinstance(other, Remote) for other in others):
            return NotImplemented  # data is compared here, by the judge
        return link.ask(f"operator.{operation}", *((*others, self) if swapped else (self, *others)))

    return method


setattr(Remote, "__doc__", property(lambda self: Remote.__getattr__(self, "__doc__")))  # noqa: B010  (not the class's own)
for _name in ("getitem", "setitem", "delitem", "len", "iter", "next", "reversed", "bool", "int", "float", "complex"):
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name in ("index", "round", "str", "repr", "enter"):
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name in _OPERATORS:
    _bare = _name.rstrip("_")
    setattr(Remote, f"__{_bare}__", _if_named(_name))
    if _name in (
        "add",
        "sub",
        "mul",
        "matmul",
        "mod",
        "truediv",
        "floordiv",
        "pow",
        "and_",
        "or_",
        "xor",
        "lshift",
        "rshift",
    ):
        setattr(Remote, f"__r{_bare}__", _if_named(_name, swapped=True))
