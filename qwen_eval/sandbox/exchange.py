"""The two ends of the line between a judge and a program: who asks, who answers, and what stays where it is.

The judge asks (operation, object, arguments …). The program answers ("ok", value …) or ("raise", …), or first asks back
where an argument was one of the judge's functions; and while it serves that, the judge may ask again. So both ends wait
the same way: serve what is asked until the answer comes. A message begins with a byte: "q" the judge asks, "a" the
program answers, "c" the program calls one of the judge's functions, "r" what came of it.
"""

import builtins
import functools
import itertools
import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from qwen_eval.sandbox import classes, plain, reading, stage, wire
from qwen_eval.sandbox.remote import OPERATIONS, Remote, number_of
from qwen_eval.sandbox.shared import MOST_HELD, Copies, can_change

__all__ = ["Ended", "JudgeEnd", "ProgramEnd", "Unsplittable"]

_FUNCTIONS: Final = (
    *(types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial),
    *(types.MethodDescriptorType, types.MethodWrapperType, types.WrapperDescriptorType),
)
_SIMPLE: Final = (str, int, float, bool, bytes, type(None))
# What an object is asked for as if it were data, and what it may answer differently after.
_STEADY: Final = frozenset(("bool", "complex", "float", "getitem", "index", "int", "len", "repr", "round", "str"))
_CHANGING: Final = frozenset(("await", "call", "delattr", "delitem", "enter", "exit", "setattr", "setitem"))


class Ended(BaseException):
    """The program is gone or has answered nonsense. No Exception, so that a test does not take it for the program's."""


class Unsplittable(BaseException):
    """The test does something with the program that only works in its own process."""


def _deep(write: Callable[[], Any]) -> Any:
    """Call with room for nested containers on the interpreter's stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 4 * plain.DEEPEST))
    try:
        return write()
    finally:
        sys.setrecursionlimit(before)


class JudgeEnd:
    """The judge's end: asks, and believes nothing but that an answer is an answer."""

    def __init__(self, line: socket.socket) -> None:
        self.named = False  # the test names a class of the program
        self.objects = False  # the test asks for attributes that only objects of classes have
        self.shared: dict[str, Any] = {}  # classes of the prompt, which the program has as well
        self.exceptions: dict[str, type[BaseException]] = {}  # classes the test may catch, by name
        self.unsplittable = ""
        self.ended = ""
        self.stops = False  # the test speaks of StopIteration
        self.imports: list[BaseException] = []  # what the program has raised as an ImportError
        self._line = line
        self._reading = False  # in an answer, which may not ask for more
        self._nested = False  # the program has sent containers, of which it may make deep ones
        self._odd = False  # the program has sent what a test may turn into anything
        self._coroutines: dict[int, tuple[Any, Remote]] = {}
        self._steady: dict[tuple[Any, ...], Any] = {}  # what objects have said of themselves
        self._stand_ins: dict[int, Remote] = {}
        self._functions: list[Callable[..., Any]] = []
        self._held = Copies()  # what the program keeps of what it was given

    def ask(self, operation: str, *arguments: object) -> Any:
        """Have the program do something; return what it returned, raise what it raised.

        What stands for data is data: the same float however often it is asked, unless the test is about objects.
        """
        if operation in _CHANGING:
            self._steady.clear()
        if operation == "iter" and not (self.named or self.objects):
            return self._items(arguments[0])
        if operation not in _STEADY or self.named or self.objects:
            return self._ask(operation, arguments)
        key = (operation, *((type(one), one) for one in arguments))
        try:
            hash(key)
        except TypeError:
            return self._ask(operation, arguments)
        if key not in self._steady:
            self._steady[key] = self._ask(operation, arguments)
        return self._steady[key]

    def _items(self, value: object) -> Any:
        """Iterate over an object: a second time over what came the first time, unless it is an iterator itself."""
        key = ("iter", id(value))
        if key not in self._steady:
            found = self._ask("iter", (value,))
            if found is value or not isinstance(found, Remote):
                return found
            self._steady[key] = [], found
        known, more = self._steady[key]

        def again() -> Iterator[Any]:
            for index in itertools.count():
                if index == len(known):
                    try:
                        known.append(next(more))
                    except StopIteration:
                        return
                yield known[index]

        return again()

    def _ask(self, operation: str, arguments: tuple[object, ...]) -> Any:
        """Send a question and wait for the answer.

        StopIteration is an answer to `next` only: raised by a call it would end the test's own loops over `map` early.
        """
        if self._reading:
            raise self._end("the program's answer asks for more than was sent")
        writer = plain.Writer(self._give, self._held.values)
        try:
            _deep(lambda: writer.value((operation, arguments, self._held.changes())))
        except plain.TooDeep as error:
            raise self._end(str(error)) if self._nested else self.cannot_split(str(error)) from None
        self._send(b"q", writer)
        try:
            return self.answer(writer.kept)
        except StopIteration as error:
            if operation == "next" or self.stops:
                raise
            raise RuntimeError("the program raised StopIteration") from error

    def answer(self, kept: list[Any]) -> Any:
        """Wait for the answer to a question with the containers `kept`, serving what the program asks meanwhile."""
        while True:
            try:
                message = wire.receive(self._line)
                asked = message[:1] == b"c"
                self._reading = True
                reader = reading.Reader(message[1:], self._take, None if asked else kept)
                what, *parts = reader.whole()
                self._odd = self._odd or reader.odd
                self._nested = self._nested or asked or reader.deepest > 2 or len(reader.seen) > len(kept) + 3
                if asked:
                    self._methods(reader.seen)
                    number, arguments, named = parts
                    self._reading = False
                    self._serve(self._functions[number], arguments, named)
                    continue
                changes, retained = parts[-2:]
                Copies(kept).apply(changes)
                self._methods(reader.seen)
                self._held.add([kept[number] for number in retained])
                if what == "ok":
                    return parts[0]
                error = self._exception(*parts[:-2])
            except (wire.BrokenWire, reading.Malformed) as broken:
                raise self._end(f"the program broke off: {broken}") from None
            except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as broken:
                raise self._end(f"the program sent what is no answer: {broken}") from None
            finally:
                self._reading = False
            if isinstance(error, ImportError):
                self.imports.append(error)
            raise error

    def _methods(self, values: list[Any]) -> None:
        """Refuse an instance of the prompt's with an attribute in place of a method: methods are the prompt's."""
        if self.shared and any(classes.hides_method(one, self._functions) for one in values):
            raise ValueError("an attribute in place of a method")

    def _end(self, why: str) -> Ended:
        self.ended = self.ended or stage.one_line(why)
        return Ended(why)

    def cannot_split(self, why: str) -> Unsplittable:
        """Note for good that the test needs the program's own process; return what to raise."""
        self.unsplittable = self.unsplittable or why
        return Unsplittable(why)

    def _send(self, kind: bytes, writer: plain.Writer) -> None:
        if self.ended:
            raise Ended(self.ended)
        try:
            wire.send(self._line, kind + writer.data)
        except wire.BrokenWire as broken:
            raise self._end(f"the program broke off: {broken}") from None

    def _exception(
        self, names: list[str], base: str, arguments: tuple[Any, ...], text: str, state: dict[str, Any]
    ) -> BaseException:
        """Rebuild an exception: of a class the test knows, else of a new one that adds to the built-in class."""
        built_in = getattr(builtins, base)
        if not (isinstance(built_in, type) and issubclass(built_in, BaseException)):
            raise ValueError("not an exception")
        kind = next((self.exceptions[name] for name in names if name in self.exceptions), built_in)
        if kind is built_in and names:
            kind = type(names[0], (built_in,), {})
        try:
            made = kind.__new__(kind, *arguments)
            if kind is built_in:
                made.__init__(*arguments)  # type: ignore[misc]
            made.args = tuple(arguments)
        except Exception:
            made = built_in.__new__(built_in)
            made.args = (str(text),)
        if kind is not built_in:
            made.__dict__.update(state)
        return made

    def _give(self, writer: plain.Writer, value: object) -> None:
        """Write what is not plain: a stand-in as its number, a function as one to be called back."""
        if isinstance(value, Remote):
            writer.tag(b"H")
            writer.size(number_of(value))
        elif id(value) in self._coroutines:
            self._give(writer, self._coroutines[id(value)][1])
        elif classes.write_shared(writer, value, self.shared):
            return
        elif isinstance(value, _FUNCTIONS):
            self._lend(writer, b"J", value)
        elif isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
            self._lend(writer, b"K", value.__next__)
        elif type(value).__module__ == "judge":
            raise self.cannot_split(f"the test hands over a {type(value).__name__}")
        elif not classes.write_structure(writer, value):
            why = f"the test hands over a {type(value).__name__}"
            raise self._end(why) if self._odd else self.cannot_split(why)

    def _lend(self, writer: plain.Writer, tag: bytes, function: Callable[..., Any]) -> None:
        words = (getattr(function, name, None) for name in ("__name__", "__doc__"))
        writer.tag(tag)
        writer.size(len(self._functions))
        for word in words:
            writer.text(word if isinstance(word, str) else "")
        self._functions.append(function)

    def _take(self, reader: reading.Reader, tag: bytes) -> Any:
        """Read what is not plain."""
        if tag == b"H":
            number = reader.size()
            if number not in self._stand_ins:
                self._stand_ins[number] = Remote(self, number)
            return self._stand_ins[number]
        if tag == b"W":
            stand_in = reader.value()
            if not isinstance(stand_in, Remote):
                raise reading.Malformed("a coroutine that is no object of the program's")

            async def coroutine() -> Any:
                return self.ask("await", stand_in)

            made = coroutine()
            self._coroutines[id(made)] = made, stand_in
            return made
        if tag == b"J":
            return self._functions[reader.size()]
        if tag in (b"I", b"E"):
            return classes.read_shared(reader, tag, self.shared)
        return classes.read_structure(reader, tag)

    def _serve(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Call one of the judge's functions for the program."""
        writer = plain.Writer(self._give)
        try:
            value = function(*arguments, **named)
        except Exception as error:
            caught = describe(error)
            _deep(lambda: writer.value(("raise", *caught)))
        else:
            _deep(lambda: writer.value(("ok", value)))
        self._send(b"r", writer)


def describe(error: BaseException) -> tuple[list[str], str, tuple[Any, ...], str, dict[str, Any]]:
    """Return an exception as data: names of its own classes, its built-in class, arguments, text, attributes."""
    mro = type(error).__mro__
    own = [kind.__name__ for kind in mro if getattr(builtins, kind.__name__, None) is not kind]
    base = next(kind.__name__ for kind in mro if getattr(builtins, kind.__name__, None) is kind)
    # A syntax error says what it is only by its text; its arguments alone would say None.
    words = (_text(error),) if isinstance(error, SyntaxError) else error.args
    arguments = tuple(one if type(one) in _SIMPLE else _text(one) for one in words)
    state = {name: one for name, one in classes.state_of(error).items() if type(one) in _SIMPLE}
    return own, base, arguments, _text(error), state


def _text(value: object) -> str:
    try:
        return "".join(str(value)[:10_000])
    except BaseException:
        return ""


class ProgramEnd:
    """The program's end: answers. Nothing here is trusted by the judge, and nothing here has to be."""

    def __init__(self, line: socket.socket, names: dict[str, Any]) -> None:
        self._line = line
        self._names = names
        self._shared: Mapping[str, Any] = {}
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._lent: dict[int, int] = {}  # id of a judge's function as the program sees it: its number
        self._borrowed: list[Any] = []  # keeps these alive, so that an id stays theirs
        self._held = Copies()

    def loaded(self, error: BaseException | None) -> None:
        """Say that the program has been executed, or what it raised."""
        self._answer(lambda: None, [], error)

    def wait(self) -> Any:
        """Serve the judge until it answers this side's own question, or hangs up: then BrokenWire."""
        while True:
            message = wire.receive(self._line)
            reader = reading.Reader(message[1:], self._take, self._held.values if message[:1] == b"q" else None)
            if message[:1] == b"r":
                return reader.whole()
            operation, arguments, changes = reader.whole()
            self._held.apply(changes)
            self._answer(lambda: self._do(operation, arguments), reader.seen)  # noqa: B023  (called before it returns)

    def _do(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        if operation == "name":
            if arguments[0] not in self._names:
                raise NameError(f"name {arguments[0]!r} is not defined")
            return self._names[arguments[0]]
        if operation == "share":
            self._shared = {name: self._names[name] for name in arguments if isinstance(self._names.get(name), type)}
            return None
        return OPERATIONS[operation](*arguments)

    def _answer(self, do: Callable[[], Any], seen: list[Any], error: BaseException | None = None) -> None:
        """Do what was asked; say what came of it, what changed, and which of the containers are still in use."""
        copies = Copies(seen)
        known = len(self._held.values)
        counts = [sys.getrefcount(seen[number]) for number in range(len(seen))]  # written as below, to count alike
        data = self._outcome(do, copies, error)
        new = [number for number in range(known, len(seen)) if can_change(seen[number])]
        retained = [number for number in new if sys.getrefcount(seen[number]) > counts[number]]
        retained = retained[: max(0, MOST_HELD - known)]
        self._held.add([seen[number] for number in retained])
        tail = plain.Writer(self._give)
        tail.value(retained)
        wire.send(self._line, b"a" + data[:-1] + tail.data)

    def _outcome(self, do: Callable[[], Any], copies: Copies, error: BaseException | None) -> bytearray:
        """Return the answer as bytes, with a None at its end to be replaced by what is retained."""
        writer = plain.Writer(self._give, copies.values)
        try:
            if error is not None:
                raise error
            value = do()
            _deep(lambda: writer.value(("ok", value, copies.changes(), None)))
            if len(writer.data) > wire.LONGEST - 4096:
                raise ValueError("the result is too large")
        except wire.BrokenWire:
            raise
        except BaseException as caught:
            words = describe(caught)
            writer = plain.Writer(self._give, copies.values)
            changes = copies.changes()
            _deep(lambda: writer.value(("raise", *words, changes, None)))
        return writer.data

    def _give(self, writer: plain.Writer, value: object) -> None:
        """Write what is not plain: data of known classes, else a number for an object that stays here."""
        if id(value) in self._lent:
            writer.tag(b"J")
            writer.size(self._lent[id(value)])
        elif not classes.write_shared(writer, value, self._shared) and not classes.write_structure(writer, value):
            if isinstance(value, types.CoroutineType):
                writer.tag(b"W")
            if id(value) not in self._numbers:
                self._numbers[id(value)] = len(self._objects)
                self._objects.append(value)
            writer.tag(b"H")
            writer.size(self._numbers[id(value)])

    def _take(self, reader: reading.Reader, tag: bytes) -> Any:
        if tag == b"H":
            return self._objects[reader.size()]
        if tag in (b"J", b"K"):
            made = self._borrow(reader.size(), reader.text(), reader.text())
            return _pulling(made) if tag == b"K" else made
        if tag in (b"I", b"E"):
            return classes.read_shared(reader, tag, self._shared)
        return classes.read_structure(reader, tag)

    def _borrow(self, number: int, name: str, text: str) -> Callable[..., Any]:
        """Return a function that calls the judge's."""

        def function(*arguments: Any, **named: Any) -> Any:
            writer = plain.Writer(self._give)
            _deep(lambda: writer.value(("call", number, arguments, named)))
            wire.send(self._line, b"c" + writer.data)
            what, *parts = self.wait()
            if what == "ok":
                return parts[0]
            _, base, words, said, _ = parts
            raise getattr(builtins, base, Exception)(*(words or (said,)))

        function.__name__ = function.__qualname__ = name
        function.__doc__ = text or None
        self._lent[id(function)] = number
        self._borrowed.append(function)
        return function


def _pulling(function: Callable[[], Any]) -> Iterator[Any]:
    while True:
        try:
            yield function()
        except StopIteration:
            return
