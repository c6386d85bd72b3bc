"""Replies made from BFCL's reference answers: the accepted values as calls, and calls as a model would write them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwen_eval.scorers.functions import Call

__all__ = ["as_native", "as_prompted", "languages_literal", "reference"]


def reference(
    functions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], category: str
) -> list[Call]:
    """The first accepted value of every argument; what may only be left out is left out."""
    declared = {function["name"]: function["parameters"]["properties"] for function in functions}
    return [
        Call(name, dict(_arguments(declared[name], accepted, category.rpartition("_")[2])))
        for answer in answers
        for name, accepted in answer.items()
    ]


def _arguments(
    declared: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]], language: str
) -> Iterator[tuple[str, Any]]:
    for name, values in accepted.items():
        values = [value for value in values if value != ""]
        if values and name in declared:
            value = _plain(values[0])
            literal = language in ("java", "javascript")
            yield name, languages_literal(value, declared[name], language) if literal else value


def _plain(value: Any) -> Any:
    """A value of a reference as one of a reply: under every key of an object stand the accepted ones."""
    if isinstance(value, dict):
        choices = {key: each if isinstance(each, list) else [each] for key, each in value.items()}
        wanted = {key: [each for each in listed if each != ""] for key, listed in choices.items()}
        return {key: listed[0] for key, listed in wanted.items() if listed}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def languages_literal(value: Any, declared: Mapping[str, Any], language: str) -> str:
    """A value as source text of Java or JavaScript."""
    kind = declared["type"]
    if kind in ("Array", "ArrayList") and isinstance(value, list):
        inner = declared["items"]["type"]
        marks = {"String": '"', "char": "'"}.get(inner, "") if kind == "ArrayList" else ""
        listed = ", ".join(f"{marks}{_scalar(each, inner)}{marks}" for each in value)
        return f"new {inner}[]{{{listed}}}" if kind == "Array" else f"new ArrayList<>(Arrays.asList({listed}))"
    if kind == "HashMap" and isinstance(value, dict):
        puts = " ".join(f'put("{key}", {json.dumps(each)});' for key, each in value.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    if language == "javascript" and isinstance(value, list | dict):
        return json.dumps(value)
    return _scalar(value, kind)


def _scalar(value: Any, kind: str) -> str:
    suffix = {"long": "L", "float": "f", "Bigint": "n"}.get(kind, "") if not isinstance(value, str) else ""
    return str(value).lower() if isinstance(value, bool) else f"{value}{suffix if kind != 'float' else ''}"


def as_native(calls: Sequence[Call]) -> str:
    """Blocks of the models' own form, with names as they are declared natively."""
    blocks = [{"name": call.name.replace(".", "_"), "arguments": call.arguments} for call in calls]
    return "\n".join(f"<tool_call>\n{json.dumps(block, ensure_ascii=False)}\n</tool_call>" for block in blocks)


def as_prompted(calls: Sequence[Call]) -> str:
    """A list of Python calls."""
    written = [
        f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})" for call in calls
    ]
    return f"[{', '.join(written)}]"
