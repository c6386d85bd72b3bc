"""Values of Java and JavaScript that come as source text, read by their declared type.

What is no literal of its type stays the text it is. The readings are the leaderboard's, with what they miss: a comma
inside a string ends it, a nested object ends at the first closing brace.
"""

import re
from typing import Any, Final

__all__ = ["JAVASCRIPT_TYPES", "JAVA_TYPES", "PYTHON_TYPES", "java", "javascript"]

PYTHON_TYPES: Final[dict[str, type]] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
JAVA_TYPES: Final[dict[str, type]] = {
    "byte": int,
    "short": int,
    "integer": int,
    "long": int,
    "float": float,
    "double": float,
    "boolean": bool,
    "char": str,
    "String": str,
    "Array": list,
    "ArrayList": list,
    "HashMap": dict,
    "any": str,
}
JAVASCRIPT_TYPES: Final[dict[str, type]] = {
    "String": str,
    "integer": int,
    "float": float,
    "Bigint": int,
    "Boolean": bool,
    "dict": dict,
    "array": list,
    "any": str,
}

_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER: Final = re.compile(r"-?\d+$")
_LONG: Final = re.compile(r"(-?\d+)[lL]$")
_DOUBLE: Final = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")
_FLOAT: Final = re.compile(r"(-?\d+(\.\d+)?([eE][+-]?\d+)?)[fF]$")
_DECIMAL: Final = re.compile(r"-?\d+(\.\d+)?$")
_BIGINT: Final = re.compile(r"(-?\d+)n\Z")


def _guessed(text: str) -> Any:
    """A number where Python reads one, else the text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


# -------------------------------------------------------------------------------------------------------------- Java


def java(text: str, kind: str, inner: str = "") -> Any:
    """Return the Java literal `text` of the declared type `kind`; `inner` is the type of a list's elements.

    Raises KeyError for a type that it does not know.
    """
    match kind:
        case "byte" | "short" | "integer":
            return int(text) if _INTEGER.match(text) else text
        case "long":
            return int(found[1]) if (found := _LONG.match(text)) else text
        case "float":
            return float(found[1]) if (found := _FLOAT.match(text)) else text
        case "double":
            return float(text) if _DOUBLE.match(text) else text
        case "boolean":
            return _BOOLEANS.get(text, text)
        case "Array":
            return _java_array(text, inner)
        case "ArrayList":
            return _java_list(text, inner)
        case "HashMap":
            return _java_map(text)
        case "char" | "String" | "any":
            return text
    raise KeyError(kind)


_ARRAY: Final = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_AS_LIST: Final = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_ADDED: Final = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", re.DOTALL)
_NEW_LIST: Final = re.compile(r"new\s+ArrayList<\w*>\(\)")
_NEW_MAP: Final = re.compile(r"new\s+HashMap<.*?>\s*\(\)")
_FILLED_MAP: Final = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{", re.DOTALL)


def _java_array(text: str, inner: str) -> Any:
    found = _ARRAY.search(text)
    return [java(each.strip(), inner) for each in found[1].split(",") if each.strip()] if found else text


def _java_list(text: str, inner: str) -> Any:
    if found := _AS_LIST.search(text):
        return [_java_element(each.strip(), inner) for each in found[1].split(",")]
    if "}}" in text and (found := _ADDED.search(text)):
        return [_java_element(each.strip(), inner) for each in re.findall(r"add\((.+?)\)", found[1])]
    return [] if _NEW_LIST.search(text) else text


def _java_element(text: str, inner: str) -> Any:
    """Strings and characters of a list lose their quotes, whatever stands there; those of an array keep them."""
    return text[1:-1] if inner in ("char", "String") else java(text, inner)


def _java_map(text: str) -> Any:
    found = _FILLED_MAP.search(text)
    end = text.find("}", found.end()) if found else -1
    if found and end >= 0:
        return {
            key: _java_value(value.strip())
            for key, value in re.findall(r'put\("(.*?)",\s*(.*?)\)', text[found.end() : end])
        }
    return {} if _NEW_MAP.search(text) else text


def _java_value(text: str) -> Any:
    """A value of a map, whose type is not declared."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if found := _LONG.match(text):
        return int(found[1])
    if found := _FLOAT.match(text):
        return float(found[1])
    return _guessed(text)


# -------------------------------------------------------------------------------------------------------- JavaScript


def javascript(text: str, kind: str, inner: str = "") -> Any:
    """Return the JavaScript literal `text` of the declared type `kind`; `inner` is the type of an array's elements.

    Raises KeyError for a type that it does not know.
    """
    match kind:
        case "String":
            return text[1:-1] if _is_quoted(text) else text
        case "integer":
            return int(text) if _INTEGER.match(text) else text
        case "float":
            return float(text) if _DECIMAL.match(text) else text
        case "Bigint":
            return int(found[1]) if (found := _BIGINT.match(text)) else text
        case "Boolean":
            return _BOOLEANS.get(text, text)
        case "dict":
            return _javascript_object(text.strip())
        case "array":
            return _javascript_array(text.strip(), inner)
        case "any":
            return text
    raise KeyError(kind)


_FLAT: Final = re.compile(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)")
_OBJECT: Final = re.compile(r"\{(.*?)\}")
_PAIR: Final = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def _is_quoted(text: str) -> bool:
    return any(text.startswith(mark) and text.endswith(mark) for mark in "'\"")


def _javascript_value(text: str) -> Any:
    """A value whose type is not declared."""
    text = text.strip()
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    return text[1:-1] if _is_quoted(text) else _guessed(text)


def _javascript_array(text: str, inner: str) -> Any:
    end = _end_of_arrays(text)
    if end:
        rows = re.findall(r"\[(.*?)\]", text[:end])
        rows[0] = rows[0].strip().removeprefix("[")
        return [[_javascript_value(each) for each in row.strip().split(",")] for row in rows]
    found = _FLAT.match(text)
    if not found:
        return text
    listed = (found[1] if found[1] is not None else found[2]).strip()
    elements = [each.strip() for each in listed.split(",")] if listed else []
    try:
        return [javascript(each, inner) if inner else _javascript_value(each) for each in elements]
    except (KeyError, ValueError):
        return text


def _end_of_arrays(text: str) -> int:
    """Return where an array of arrays (or `new Array` of arrays) at the beginning of a text ends, 0 where none does.

    It ends with the first closing bracket right behind a `]` that is reached in steps from `[` to `], [`, each within a
    line. A regular expression for this takes exponential time on what does not end well, so it is found from the back.
    """
    begin = re.match(r"\[\s*\[|new\s+Array\(\s*\[", text)
    if not begin:
        return 0
    closing = ")" if text.startswith("new") else "]"
    nearest = end = 0  # the first `]` behind which it goes on well, and where the whole ends then

    def reached(start: int) -> bool:
        return bool(end) and "\n" not in text[start:nearest]

    for place in reversed([place for place, letter in enumerate(text) if letter == "]"]):
        behind = re.compile(r"\s*(?:(,\s*\[)|(.))?").match(text, place + 1)
        if behind and behind[2] == closing:
            nearest, end = place, behind.end()
        elif behind and behind[1] and reached(behind.end()):
            nearest = place
    return end if reached(begin.end()) else 0


def _javascript_object(text: str) -> Any:
    if text == "{}":
        return {}
    found = _OBJECT.match(text)
    if not found:
        return text
    # Without a colon to find, the pattern would look for one from every place on.
    pairs = _PAIR.findall(found[1]) if ":" in found[1].lstrip(":") else []
    return {key.strip().strip("'\""): _javascript_property(value.strip()) for key, value in pairs}


def _javascript_property(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, "")
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _javascript_value(text.strip("'\""))
