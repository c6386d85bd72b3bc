"""The rules of the Berkeley Function-Calling Leaderboard: does a reply call the right functions with right arguments?

Patil et al. 2025, "The Berkeley Function Calling Leaderboard (BFCL)", section on abstract-syntax-tree evaluation. The
functions are not run. A reference answer lists, for every argument, the values that are accepted; "" among them says
that the argument may be left out. Verdicts are those of the leaderboard's checker, where that raises an exception the
answer is wrong.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qwen_eval.scorers import literals
from qwen_eval.scorers.call_syntax import java_calls, javascript_calls, python_calls
from qwen_eval.scorers.functions import Call, after_reasoning, tool_calls
from qwen_eval.scorers.text import CHAT_ENDS, cut
from qwen_eval.task import Sample, Verdict

__all__ = ["RULES", "escaped", "right"]

_READERS: Final[Mapping[str, Callable[[str], list[Call]]]] = {"java": java_calls, "javascript": javascript_calls}


def _language(category: str) -> str:
    language = category.rpartition("_")[2]
    return language if language in _READERS else "python"


def escaped(name: str) -> str:
    """Return a function's name as it is declared natively: endpoints do not allow dots."""
    return name.replace(".", "_")


# ----------------------------------------------------------------------------------------------------------- the rules


def native(output: str, sample: Sample) -> Verdict:
    """The calls are those that the model's own format has."""
    return _verdict(tool_calls(output), sample, named=escaped)


def prompted(output: str, sample: Sample) -> Verdict:
    """The reply is a list of calls in the syntax of Python, or of the category's language."""
    read = _READERS.get(_language(sample.group), python_calls)
    return _verdict(read(_said(output)), sample)


_FENCE: Final = re.compile(r"```[a-zA-Z_]*\n(.*?)```", re.DOTALL)


def lenient(output: str, sample: Sample) -> Verdict:
    """The calls are read wherever they stand, natively or in a language's syntax; dots in names are underscores too."""
    said = _said(output)
    calls = tool_calls(output, lenient=True)
    read = _READERS.get(_language(sample.group), python_calls)
    for part in (said, *_FENCE.findall(said), said[said.find("[") : said.rfind("]") + 1]):
        calls = calls or (read(part) if part.strip() else [])
    renamed = [Call(escaped(call.name), call.arguments) for call in calls]
    return _verdict(renamed, sample, named=escaped)


RULES: Final[Mapping[str, Callable[[str, Sample], Verdict]]] = {
    "native": native,
    "prompted": prompted,
    "lenient": lenient,
}


def _said(output: str) -> str:
    return after_reasoning(cut(output, *CHAT_ENDS))


def _verdict(calls: Sequence[Call], sample: Sample, *, named: Callable[[str], str] = str) -> Verdict:
    if "relevance" in sample.group:
        wanted = "irrelevance" not in sample.group
        return Verdict(bool(calls) == wanted, _written(calls) if calls or not wanted else None)
    functions, answers = json.loads(sample.row["function"]), json.loads(sample.gold)
    correct = right(calls, functions, answers, category=sample.group, named=named)
    return Verdict(correct, _written(calls) if calls else None)


def _written(calls: Sequence[Call]) -> str:
    """The calls as text, for records."""
    try:
        shown = [f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})" for call in calls]
    except RecursionError:
        shown = ["…"]
    return f"[{', '.join(shown)}]"


# --------------------------------------------------------------------------------------------------------- the checker


def right(
    calls: Sequence[Call],
    functions: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    *,
    category: str,
    named: Callable[[str], str] = str,
) -> bool:
    """Return whether the calls are those of the reference, each once, in any order.

    `functions` are the declarations of the item, `answers` its reference: objects with one key each, the name of a
    declared function, and under it the accepted values of every argument. `named` is what declaring does to a name.
    """
    if len(calls) != len(answers):
        return False
    left = list(calls)
    try:
        for answer in answers:
            function = _declared(functions, next(iter(answer)), category)
            accepted = next(iter(answer.values()))
            fitting = (
                call
                for call in left
                if call.name == named(function["name"]) and _fits(call.arguments, function, accepted, category)
            )
            found = next(fitting, None)
            if found is None:
                return False
            left = [call for call in left if call is not found]
    # What the published checker raises on values it does not expect: a number for a list of objects, a huge integer.
    except (AttributeError, KeyError, OverflowError, RecursionError, StopIteration, TypeError, ValueError):
        return False
    return True


def _declared(functions: Sequence[Mapping[str, Any]], name: str, category: str) -> Mapping[str, Any]:
    """The declaration that an answer is about: by its name, where an item is to have more than one function or call."""
    if "parallel" in category or "multiple" in category:
        return next(each for each in functions if each["name"] == name)
    return functions[0]


def _fits(
    arguments: Mapping[str, Any], function: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]], category: str
) -> bool:
    """Whether all that is required is there, nothing else, and every value is accepted."""
    parameters = function["parameters"]
    if any(name not in arguments for name in parameters["required"]):
        return False
    known = parameters["properties"].keys() & accepted.keys()
    return all(
        name in known and _accepts(value, parameters["properties"][name], accepted[name], _language(category))
        for name, value in arguments.items()
    ) and all(name in arguments or "" in values for name, values in accepted.items())


def _accepts(value: Any, declared: Mapping[str, Any], accepted: Sequence[Any], language: str) -> bool:
    """Whether a value has the declared type (or that of the accepted values) and is one of the accepted values."""
    types = _TYPES[language]
    kind, inner = declared["type"], None
    if kind in ("array", "tuple", "Array", "ArrayList"):
        inner = types[declared["items"]["type"]]
    expected = types[kind]
    if language in _LITERALS:
        if type(value) is not str:
            return False
        value = _LITERALS[language](value, kind, declared["items"]["type"] if inner else "")
    elif kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    elif kind == "float" and type(value) is int:
        value = float(value)
    actual, stated = type(value), _type_of(accepted)
    if actual is expected:
        if inner is not None and not any(_elements_fit(value, each, inner) for each in accepted):
            return False
    elif actual is not stated:
        return False
    # The accepted values have another type than the declared one where they stand for a variable: they are compared as
    # they are then.
    return _equal(value, accepted, kind=expected if stated in (None, expected) else None, inner=inner)


_TYPES: Final = {"python": literals.PYTHON_TYPES, "java": literals.JAVA_TYPES, "javascript": literals.JAVASCRIPT_TYPES}
_LITERALS: Final[Mapping[str, Callable[[str, str, str], Any]]] = {
    "java": literals.java,
    "javascript": literals.javascript,
}


def _type_of(accepted: Sequence[Any]) -> type | None:
    return next((type(each) for each in accepted if each != ""), None)


def _elements_fit(values: Sequence[Any], accepted: Any, inner: type) -> bool:
    """Whether elements have the declared type or that of the accepted ones. Any do where "" is accepted, or no list."""
    return type(accepted) is not list or all(type(each) in (inner, _type_of(accepted)) for each in values)


def _equal(value: Any, accepted: Sequence[Any], *, kind: type | None, inner: type | None) -> bool:
    if kind is str:
        return _plain(value) in [_plain(each) for each in accepted if type(each) is str]
    if kind is dict:
        return any(_object_equal(value, each) for each in accepted if each != "")
    if kind is list and inner is dict:
        return any(_objects_equal(value, each) for each in accepted)
    if kind is list:
        return list(map(_plain, value)) in [list(map(_plain, each)) for each in accepted]
    return value in accepted


def _objects_equal(values: Sequence[Any], accepted: Sequence[Any]) -> bool:
    return len(values) == len(accepted) and all(
        each != "" and _object_equal(value, each) for value, each in zip(values, accepted, strict=True)
    )


def _object_equal(value: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    """Objects are compared one level deep: what is nested in them has to be equal to the letter."""
    return all(
        key in accepted and _plain(each) in list(map(_plain, accepted[key])) for key, each in value.items()
    ) and all(key in value or "" in options for key, options in accepted.items())


def _plain(value: Any) -> Any:
    """A text without spaces and `,./-_*^`, in lower case, single quotes made double; another value as it is."""
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if type(value) is str else value
