"""Whether two answers in LaTeX, or in plain text, say the same: the equality of MATH's `corrected` rule.

Text and exact arithmetic only. What needs computer algebra ("is (x+1)^2 the same as x^2+2x+1?") is math-verify's rule.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

__all__ = ["same_answer"]

LONGEST: Final = 2000
"""Answers of more characters are compared as they are."""

_SPELLINGS: Final = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\leq(?:slant)?(?![a-zA-Z])|≤", r"\\le "),
        (r"\\geq(?:slant)?(?![a-zA-Z])|≥", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|≠", r"\\ne "),
        (r"\\(?:times|cdot)(?![a-zA-Z])|[×·⋅]", r"\\cdot "),
        (r"\\(?:dots|cdots|ldots)(?![a-zA-Z])|…", r"\\ldots "),
        (r"∞", r"\\infty "),
        (r"\\emptyset(?![a-zA-Z])|∅", r"\\varnothing "),
        (r"π", r"\\pi "),
        (r"√(\w+)?", r"\\sqrt{\1}"),
        (r"[−–﹣‐‑]", "-"),
        (r"(\\(?:begin|end))\{[bB]?matrix\}", r"\1{pmatrix}"),
        (r"\\\$|\$|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\^\s*\{?\s*\\circ\s*\}?|°|\\?%|\\degree(?![a-zA-Z])", ""),  # 90^\circ, 50\%
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,!]", ""),  # thin spaces stand inside numbers, wider ones between things
        (r"(?<!\\)\\[;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:displaystyle|textstyle)(?![a-zA-Z])", " "),
        (r"\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+", ", "),
    )
)
_WORDS: Final = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}"
_UNIT: Final = re.compile(
    rf"(?<=[\d}}.)])(?:\s*{_WORDS}|\s*(?:[ckm]m|kg|mph|ft|km/h|(?:square|cubic) [a-z]+)\b)(?:\^\{{?\d\}}?)?\s*$"
)
_THOUSANDS: Final = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_PLAIN_NUMBER: Final = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_REMARK: Final = re.compile(
    rf"((?:{_PLAIN_NUMBER}|[-+]?\\frac\{{\d+\}}\{{\d+\}})(?:/\d+)?)"
    r"(?:\s*[,;]?\s+|\s*(?=[(（，；\u4e00-\u9fff]))(?!more|less|plus|minus|times|to\b|am\b|pm\b|[ap]\.m|[万亿千百])"
    r"(?:(?:since|because|as|so)\b.*|(?:[a-zA-Z]{3}|(?:if|in|is|by|we)\b|[(（，；\u4e00-\u9fff])[^\d]*)",
    re.DOTALL,
)
_FRACTION: Final = re.compile(
    r"([-+]?)(?:(\d+)(?: | ?(?=\\frac)))?(?:\\frac\{([-+]?[\d.]+)\}\{([-+]?[\d.]+)\}|(\d+)/(\d+))"
)


def same_answer(said: str, gold: str) -> bool:
    """Return whether two answers are the same text or the same number, apart from typography, units and `x =`.

    Tuples, intervals and matrices are compared element by element; sets, unions and lists without brackets in any
    order. Of an equation only the right side counts where the gold is none, and a remark after a number does not count
    where the gold is a number. `10,100` may be one number or two; `10, 100` is two.
    """
    if said == gold:
        return True
    if max(len(said), len(gold)) > LONGEST:
        return False
    if "=" not in gold:
        said = _end_of_chain(said)
    for thousands in (True, False):
        one, other = _canonical(said, thousands), _canonical(gold, thousands)
        if _number(other) is not None:
            one = _REMARK.sub(r"\1", one, count=1) if _REMARK.fullmatch(one) else one
        if _same(_tight(one), _tight(other)):
            return True
    return False


def _end_of_chain(text: str) -> str:
    """The right side of `x = 2 \\cdot 12 = 24`; lists of equations and `x+1=5` stay what they are."""
    *left, right = text.split("=")
    if re.search(r",|\b(?:and|or)\b|[或和]", text):
        return text
    for side in left:
        plain = re.sub(r"\\[a-zA-Z]+", "", side).strip()
        if re.search(r"[a-zA-Z]", plain) and not re.fullmatch(r"[a-zA-Z](?:_?\w|\([a-z]\))?", plain):
            return text
    return right


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    numbers = _number(one), _number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    for split, ordered in ((_rows, True), (_members, False), (_elements, True), (_listed, False)):
        parts, other_parts = split(one), split(other)
        if parts and other_parts:
            return len(parts) == len(other_parts) and _all_same(parts, other_parts, ordered)
    return _slashed(one) == _slashed(other)


def _all_same(parts: Sequence[str], other_parts: Sequence[str], ordered: bool) -> bool:
    if ordered:
        return all(_same(*pair) for pair in zip(parts, other_parts, strict=True))
    left = list(other_parts)
    for part in parts:
        match = next((each for each in left if _same(_value(part), _value(each))), None)
        if match is None:
            return False
        left.remove(match)
    return True


# ------------------------------------------------------------------------------------------------------------ spelling


def _canonical(text: str, thousands: bool) -> str:
    """One spelling of commands; no dollar signs, sizes, degrees or units; numbers without thousands commas."""
    text = unicodedata.normalize("NFKC", text).strip().strip("*").strip()
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    if thousands:
        text = _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text)
    text = _UNIT.sub("", text).strip() or text
    return re.sub(_WORDS, r"\1", text).strip().rstrip(".")


def _tight(text: str) -> str:
    """No spaces but between digits, braces around the arguments of fractions and roots only, no `x =`."""
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\{([^{}]*)\}(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(?<![\d}.])\.(?=\d)", "0.", text)
    text = _value(re.sub(r"^\{([^{}]*)\}$", r"\1", text))
    if re.fullmatch(r"\(?[A-Za-z]\)?", text):
        return text.strip("()")
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) and not text.isupper() else text


def _value(text: str) -> str:
    """The right side of `x=5` and `f(x)=5`."""
    name, equals, value = text.partition("=")
    return value if equals and "=" not in value and re.fullmatch(r"\\?[a-zA-Z]+(?:\([a-z]\))?", name) else text


def _slashed(text: str) -> str:
    r"""`\frac{x}{2}` as `x/2`, `\frac{x+1}{2}` as `(x+1)/2`."""

    def slash(found: re.Match[str]) -> str:
        over, under = (part if re.fullmatch(r"\\?\w+", part) else f"({part})" for part in found.groups())
        return f"{over}/{under}"

    braces = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
    return re.sub(rf"\\frac{braces}{braces}", slash, text).replace("(\\sqrt", "\\sqrt").replace("})/", "}/")


# --------------------------------------------------------------------------------------------------------------- parts


def _number(text: str) -> Fraction | None:
    """The exact value of an integer, a decimal, a/b, a fraction or a mixed number."""
    if len(text) > 200:
        return None
    if re.fullmatch(_PLAIN_NUMBER, text):
        return Fraction(text)
    found = _FRACTION.fullmatch(text)
    over, under = ((found[3] or found[5]), (found[4] or found[6])) if found else ("", "")
    if not (found and re.fullmatch(_PLAIN_NUMBER, over) and re.fullmatch(_PLAIN_NUMBER, under) and Fraction(under)):
        return None
    value = Fraction(over) / Fraction(under) + int(found[2] or 0)
    return -value if found[1] == "-" else value


def _rows(text: str) -> list[str]:
    """The cells of a matrix, and its shape as a last part."""
    found = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text, re.DOTALL)
    if not found:
        return []
    rows = [row.split("&") for row in found[1].removesuffix("\\\\").split("\\\\")]
    return [*(cell for row in rows for cell in row), "x".join(str(len(row)) for row in rows)]


def _members(text: str) -> list[str]:
    """The members of a set, or the parts of a union."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return _between_commas(text[2:-2])
    return text.split("\\cup") if "\\cup" in text else []


def _elements(text: str) -> list[str]:
    """The elements of a tuple or an interval, and its brackets as a last part."""
    bracketed = text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(_between_commas(text)) == 1
    parts = _between_commas(text[1:-1]) if bracketed else []
    return [*parts, text[0] + text[-1]] if len(parts) > 1 else []


def _listed(text: str) -> list[str]:
    """The items of a list without brackets."""
    parts = _between_commas(text)
    return parts if len(parts) > 1 else []


def _between_commas(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]
