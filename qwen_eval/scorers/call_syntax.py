"""Function calls written as source code: Python, Java and JavaScript, as prompts of the BFCL ask for them.

A reply is a list `[name(argument=value), …]`; brackets and a fence around it may be missing. What cannot be read is no
call: all three functions then return an empty list. Nothing of a reply is run.

Python values become Python values. Those of Java and JavaScript stay source text (strings without their quotes): what
they mean depends on the declared type, see `literals`.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from qwen_eval.scorers.functions import Call

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

__all__ = ["java_calls", "javascript_calls", "python_calls"]


class _Unreadable(ValueError):
    """The text is no list of calls."""


def _bracketed(text: str) -> str:
    text = text.strip("`\n ")
    return f"{'' if text.startswith('[') else '['}{text}{'' if text.endswith(']') else ']'}"


# ------------------------------------------------------------------------------------------------------------ Python


def python_calls(text: str) -> list[Call]:
    """Return the calls of a list of Python calls; positional arguments are dropped, as by the leaderboard's reader."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of "\d", and of `~True`; both are read
            body = ast.parse(_bracketed(text), mode="eval").body
            return [_python_call(each) for each in body.elts] if isinstance(body, ast.List) else []
    # What the parser and arithmetic on written numbers raise; a deep nesting ends in one of the last two.
    except (ArithmeticError, SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        return []


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise _Unreadable
    # `**values` has no name, and no declared argument is called "".
    return Call(_dotted(node.func), {each.arg or "": _value(each.value) for each in node.keywords})


def _dotted(function: ast.expr) -> str:
    names: list[str] = []
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        names.append(function.id)
    return ".".join(reversed(names))


def _value(node: ast.expr | None) -> Any:
    """Return what an argument's expression says. A bare name is its own text; so is a call without named arguments."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=ast.Constant(value=int() | float() | complex() as number)):
            return -number  # whatever the operator: the leaderboard reads `+5` as -5 and `not True` as -1
        case ast.List(elts=elements):
            return [_value(each) for each in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(each) for each in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.BinOp():
            return _computed(node)
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            call = _python_call(node)
            return {call.name: call.arguments}
        case ast.Subscript():
            return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise _Unreadable


_BINARY: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_UNARY: Final[Mapping[type[ast.unaryop], Callable[[Any], Any]]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_MOST_BITS: Final = 10_000
_MOST_ITEMS: Final = 100_000


def _computed(node: ast.expr) -> Any:
    """Return the value of arithmetic on literals: numbers, and joined or repeated texts and lists, of modest size.

    The leaderboard hands such an expression to Python's `eval`; names and calls in it are not followed here.
    """
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [_computed(each) for each in elements]
        case ast.Tuple(elts=elements):
            return tuple(_computed(each) for each in elements)
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_computed(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            first, second = _computed(left), _computed(right)
            _require_modest(sign, first, second)
            return _BINARY[type(sign)](first, second)
    raise _Unreadable


def _require_modest(sign: ast.operator, first: Any, second: Any) -> None:
    """Refuse what would take a long time or much memory: `9**9**9`, `"a" * 10**9`."""
    numbers = isinstance(first, int | float | complex) and isinstance(second, int | float | complex)
    if isinstance(first, int) and isinstance(second, int):
        growth = {ast.Pow: first.bit_length() * abs(second), ast.LShift: first.bit_length() + second}
        if growth.get(type(sign), first.bit_length() + second.bit_length()) > _MOST_BITS:
            raise _Unreadable
    elif isinstance(sign, ast.Mult) and not numbers:
        sized, times = (second, first) if isinstance(first, int) else (first, second)
        if isinstance(times, int) and len(sized) * times > _MOST_ITEMS:
            raise _Unreadable
    elif isinstance(sign, ast.Mod) and not numbers:  # "%999999999d" % 1
        raise _Unreadable


# ----------------------------------------------------------------------------------------------- Java and JavaScript


def java_calls(text: str) -> list[Call]:
    """Return the first call of a Java expression; what is positional makes an argument without a name."""
    source = _bracketed(text)[1:-1]
    try:
        found = _first_invocation(_tree("java", source), source)
    except (_Unreadable, RecursionError, UnicodeEncodeError):
        return []
    return [found] if found else []


def javascript_calls(text: str) -> list[Call]:
    """Return the first call that is a statement of its own in a JavaScript program."""
    source = _bracketed(text)[1:-1]
    try:
        root = _tree("javascript", source)
        statements = [each for each in root.children if each.type == "expression_statement"]
        calls = [each for statement in statements for each in statement.children if each.type == "call_expression"]
        return [_javascript_call(calls[0])] if calls else []
    except (_Unreadable, UnicodeEncodeError):
        return []


@cache
def _parser(language: str) -> "Parser":
    import tree_sitter

    grammar = import_module(f"tree_sitter_{language}")
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


def _tree(language: str, source: str) -> "Node":
    """Return the syntax tree. A missing bracket or semicolon at the end is forgiven, other errors are not."""
    root = _parser(language).parse(source.encode()).root_node
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.type == "ERROR":
            raise _Unreadable
        if node.has_error:
            waiting += node.children
    return root


def _child(node: "Node", name: str) -> "Node":
    found = node.child_by_field_name(name)
    if found is None:
        raise _Unreadable
    return found


def _sides(assignment: "Node") -> tuple["Node", "Node"]:
    """The first and third child: the two sides, unless a comment stands between them."""
    if len(assignment.children) < 3:
        raise _Unreadable
    return assignment.children[0], assignment.children[2]


def _arguments(pairs: list[tuple[str, str]]) -> dict[str, str]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _Unreadable
    return dict(pairs)


def _cut(node: "Node", source: str) -> str:
    """The text of a node. Offsets of bytes are used as those of characters, as the leaderboard's reader does: behind a
    character that is not ASCII every text is shifted.
    """
    return source[node.start_byte : node.end_byte]


def _first_invocation(node: "Node", source: str) -> Call | None:
    if node.type == "method_invocation":
        name, of = _cut(_child(node, "name"), source), node.child_by_field_name("object")
        arguments = _child(node, "arguments")
        return Call(f"{_cut(of, source)}.{name}" if of else name, _java_arguments(arguments, source))
    return next((found for child in node.children if (found := _first_invocation(child, source))), None)


def _java_arguments(node: "Node", source: str) -> dict[str, str]:
    pairs = []
    for child in node.children:
        if child.type == "assignment_expression":
            left, right = _sides(child)
            pairs.append((_cut(left, source), _java_text(right, source, within=False)))
        elif child.type in ("identifier", "class_literal"):
            pairs.append(("", _cut(child, source)))
    return _arguments(pairs)


def _java_text(node: "Node", source: str, *, within: bool = True) -> str:
    """Return an expression's text without spaces between its tokens; a literal that is all of it loses its quotes."""
    if node.type in ("string_literal", "character_literal"):
        return _cut(node, source) if within else _cut(node, source)[1:-1]
    if node.type in ("identifier", "class_literal", "type_identifier", "method_invocation") or not node.children:
        return _cut(node, source)
    if node.type == "array_creation_expression":
        return f"new {_java_text(_child(node, 'type'), source)}[]{_java_text(_child(node, 'value'), source)}"
    if node.type == "object_creation_expression":
        # The body of an anonymous class is lost: `new HashMap<>() {{ put("a", 1); }}` is an empty map.
        given = [each for each in _child(node, "arguments").children if each.type not in (",", "(", ")")]
        listed = ", ".join(_java_text(each, source) for each in given)
        return f"new {_java_text(_child(node, 'type'), source)}({listed})"
    return "".join(_java_text(child, source) for child in node.children)


def _javascript_call(node: "Node") -> Call:
    pairs = []
    for child in node.children[1].children:
        if child.type == "assignment_expression":
            left, right = (_text(side) for side in _sides(child))
            quoted = right[:1] in ("'", '"') and right[-1:] == right[:1]
            pairs.append((left, right[1:-1] if quoted else right))
        elif child.type in ("identifier", "true"):
            pairs.append(("", _text(child)))
    return Call(_text(node.children[0]), _arguments(pairs))


def _text(node: "Node") -> str:
    return (node.text or b"").decode()
