"""The restricted Python of the HuggingFace Agent benchmark (Transformers 4.30 to 4.33, `transformers.tools`).

The text of this module is sent into a session of the sandbox, so it needs nothing but the standard library. It compiles
and executes nothing that a model wrote: it walks the syntax tree and knows assignments, calls of the tools and of six
builtins, constants, lists, dictionaries, f-strings, names, subscripts, `if` with one comparison, and `for`. The tools
are stubs that say what they would have done.

A program's value is that of its last statement that has one. At a construct outside the language the program stops and
keeps the value so far; where Python itself would raise, it has none. Every node and every value costs work, and a
program that has spent `WORK` has no value either.
"""

import ast
import difflib
import io
import json
import operator
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["TOOLS", "WORK", "evaluate", "report"]

WORK = 2_000_000
"""What a program may spend, in steps of about a microsecond: one for a node of its tree, one for each 16 bytes of what
is built or compared, 20 for a character of its text, and more for what is looked up by a wrong name."""


class Unsupported(Exception):
    """A construct outside the language."""


class Exhausted(Exception):
    """A program has spent its work."""


# ------------------------------------------------------------------------------------------------------------- tools


def _about(what: str, value: Any) -> Any:
    """Return a value that speaks of a sound or an image, as the values of stubs that make one do. Raises for others."""
    if what not in value:
        raise ValueError(f"{value}: expected this to be of a kind with '{what}' in it")
    return value


TOOLS: dict[str, Callable[..., str]] = {
    "text_classifier": lambda text, labels: f"This is the classification of {text} along {labels}.",
    "translator": lambda text, src_lang, tgt_lang: f"This is the translation of {text} from {src_lang} to {tgt_lang}.",
    "text_reader": lambda text: f"This is actually a sound reading {text}.",
    "summarizer": lambda text: f"This is a summary of {text}.",
    "transcriber": lambda audio: f"This is the transcribed text from {_about('sound', audio)}.",
    "image_generator": lambda prompt: f"This is actually an image representing {prompt}.",
    "image_captioner": lambda image: f"This is a description of {_about('image', image)}.",
    "image_transformer": lambda image, prompt: (
        f"This is a transformation of {_about('image', image)} according to {prompt}."
    ),
    "text_qa": lambda text, question: f"This is the answer to {question} from {text}.",
    "text_downloader": lambda url: f"This is the content of {url}.",
    "image_qa": lambda image, question: f"This is the answer to {question} from {_about('image', image)}.",
    "video_generator": lambda prompt, seconds=2: f"A video of {prompt}",
    "document_qa": lambda image, question: f"This is the answer to {question} from the document {image}.",
    "image_segmenter": lambda image, prompt: f"This is the mask of {prompt} in {image}",
}
"""The 14 tools as stubs: parameters and sentences are the published ones, so that values can be compared."""


def _print(*values: Any, file: Any = None, **options: Any) -> None:
    """`print` as far as it can raise; nobody reads it."""
    print(*values, file=io.StringIO() if file is None else file, **options)


BUILTINS: dict[str, Callable[..., Any]] = {
    "print": _print,
    "range": range,
    "float": float,
    "int": int,
    "bool": bool,
    "str": str,
}

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


# ------------------------------------------------------------------------------------------------------- interpreter


class _Program:
    """A program that is being walked: the functions it may call, its variables, the work it has left."""

    def __init__(self, code: str, state: dict[str, Any]) -> None:
        # A tool is known where its name occurs in the text, as published: identifiers are normalised, the text is not.
        self.functions = BUILTINS | {name: tool for name, tool in TOOLS.items() if name in code}
        self.state = state
        self.work = WORK
        self.spend(20 * len(code))

    def spend(self, amount: int) -> None:
        self.work -= amount
        if self.work < 0:
            raise Exhausted

    def weigh(self, values: Iterable[Any]) -> None:
        """Spend what it costs to write or compare values, before that is done."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            self.spend(1 + sys.getsizeof(value) // 16)
            if isinstance(value, list):
                waiting += value
            elif isinstance(value, dict):
                waiting += [*value.keys(), *value.values()]

    def value(self, node: ast.AST | None) -> Any:
        """Return the value of a node of the tree, statements included."""
        self.spend(1)
        match node:
            case ast.Constant():
                return node.value
            case ast.Expr() | ast.FormattedValue():  # conversions and formats are ignored, as published
                return self.value(node.value)
            case ast.Name():
                return self.closest(node.id, self.state)
            case ast.Call():
                return self.call(node)
            case ast.Assign():
                return self.assign(node)
            case ast.JoinedStr():
                parts = [self.value(part) for part in node.values]
                self.weigh(parts)
                return "".join(str(part) for part in parts)
            case ast.List():
                items = [self.value(item) for item in node.elts]
                self.weigh(items)
                return items
            case ast.Dict():
                keys = [self.value(key) for key in node.keys]
                values = [self.value(value) for value in node.values]
                self.weigh([*keys, *values])
                return dict(zip(keys, values, strict=True))
            case ast.Subscript():
                return self.subscript(node)
            case ast.If():
                return self.block(node.body if self.condition(node.test) else node.orelse)
            case ast.For():
                return self.loop(node)
            case _:
                raise Unsupported(type(node).__name__)

    def block(self, statements: Iterable[ast.stmt]) -> Any:
        """Return the value of the last statement that has one."""
        values = [value for statement in statements if (value := self.value(statement)) is not None]
        return values[-1] if values else None

    def loop(self, node: ast.For) -> Any:
        result = None
        for item in self.value(node.iter):
            self.spend(1)
            self.bind(node.target, item)
            value = self.block(node.body)
            result = result if value is None else value
        return result

    def assign(self, node: ast.Assign) -> Any:
        """Bind one name; several (`a = b = …`) share out a value of as many parts, which Python would not do."""
        value = self.value(node.value)
        if len(node.targets) == 1:
            self.bind(node.targets[0], value)
            return value
        if len(value) != len(node.targets):
            raise Unsupported(f"{len(node.targets)} names for {len(value)} values")
        for target, part in zip(node.targets, value, strict=True):
            self.bind(target, part)
        return value

    def bind(self, target: ast.expr, value: Any) -> None:
        if not isinstance(target, ast.Name):
            raise TypeError(f"expected a name to assign to, found {type(target).__name__}")
        self.state[target.id] = value

    def call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in self.functions:
            raise Unsupported("a call of something else than the tools")
        positional = [self.value(argument) for argument in node.args]
        named: dict[Any, Any] = {keyword.arg: self.value(keyword.value) for keyword in node.keywords}
        self.weigh([*positional, *named.values()])
        return self.functions[node.func.id](*positional, **named)

    def condition(self, test: ast.expr) -> Any:
        if not isinstance(test, ast.Compare):
            raise TypeError(f"expected a comparison, found {type(test).__name__}")
        if len(test.ops) > 1:
            raise Unsupported("a chain of comparisons")
        left, right = self.value(test.left), self.value(test.comparators[0])
        self.weigh([left, right])
        if isinstance(test.ops[0], ast.In | ast.NotIn):
            self.search(left, right)
        return COMPARISONS[type(test.ops[0])](left, right)

    def search(self, item: Any, container: Any) -> None:
        """Spend what it costs to look for an item: a range is counted through for anything but a whole number."""
        if isinstance(container, range) and not isinstance(item, int):
            self.spend(len(container))

    def subscript(self, node: ast.Subscript) -> Any:
        index, container = self.value(node.slice), self.value(node.value)
        if isinstance(container, list):
            return container[int(index)]
        self.weigh([index, container])
        self.search(index, container)
        if index in container:
            return container[index]
        if isinstance(index, str) and isinstance(container, dict):
            return self.closest(index, container)
        raise Unsupported(f"no {index} in {container}")

    def closest(self, name: str, values: dict[Any, Any]) -> Any:
        """Return what a name stands for, or the name that is spelt most like it."""
        if name in values:
            return values[name]
        self.spend(sum(20 + len(name) * len(key) // 4 for key in values))
        near = difflib.get_close_matches(name, list(values))
        if not near:
            raise Unsupported(f"{name} is not defined")
        return values[near[0]]


def evaluate(code: str, state: dict[str, Any]) -> Any:
    """Return the value of a program, None where it has none. `state` holds the variables, and is updated."""
    result = None
    try:
        program = _Program(code, state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(code).body
        for statement in statements:
            value = program.value(statement)
            result = result if value is None else value
    except Unsupported:
        return result
    except Exception:  # whatever Python raises for what the model wrote, and Exhausted
        return None
    return result


# ------------------------------------------------------------------------------------------------------------ report


def report(dialogue: str) -> str:
    """Run the programs of a dialogue, one after the other in one state, and return what came of them.

    Takes a JSON list of steps: `inputs` (variables that are set before it), `code` (null: none was found), `answers`
    (the reference solutions; the n-th of every step share a state). Returns a JSON list: `value` (as text), `answers`
    (theirs), and for each of these whether the value is `equal` to it, or a dictionary that is `holding` it.
    """
    steps = json.loads(dialogue)
    state: dict[str, Any] = {}
    references: list[dict[str, Any]] = [{} for _ in range(max(len(step["answers"]) for step in steps))]
    found = []
    for step in steps:
        for each in (state, *references):
            each |= step["inputs"]
        value = None if step["code"] is None else evaluate(step["code"], state)
        wanted = [evaluate(answer, own) for answer, own in zip(step["answers"], references, strict=False)]
        held = list(value.values()) if isinstance(value, dict) else []
        found.append(
            {
                "value": _shown(value),
                "answers": [_shown(each) for each in wanted],
                "equal": [value in [each] for each in wanted],
                "holding": [each in held for each in wanted],
            }
        )
    return json.dumps(found)


def _shown(value: Any) -> str | None:
    """Return the beginning of a value's text; None for no value."""
    try:
        return None if value is None else str(value)[:2000]
    except (ValueError, RecursionError):  # a number with too many digits, too many lists in lists
        return f"({type(value).__name__})"
