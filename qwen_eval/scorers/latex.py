"""Whether two answers in LaTeX, or in plain text, say the same: the equality of MATH's `corrected` rule.

Text and exact arithmetic only. What needs computer algebra ("is (x+1)^2 the same as x^2+2x+1?") is math-verify's rule.
"""

import re
import unicodedata
from fractions import Fraction
from typing import Final

__all__ = ["same_answer"]

_SPACING: Final = re.compile(r"\\[,;:!> ]|~|\\q?quad(?![a-zA-Z])|\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])")
_SIZES: Final = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?")
_SYNONYMS: Final = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])|≤"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])|≥"), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|≠"), r"\\ne "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])|[×·⋅]"), r"\\cdot "),
    (re.compile(r"\\(?:dots|cdots|ldots)(?![a-zA-Z])|…"), r"\\ldots "),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"√"), r"\\sqrt"),
    (re.compile(r"[−–﹣‐‑]"), "-"),
    (re.compile(r"\{,\}"), ","),
)
_WORDS: Final = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_UNIT_AFTER_NUMBER: Final = re.compile(
    r"(?<=[\d}.)])(?:\s*\\(?:text|textbf|textrm|mbox|mathrm)\s*\{[^{}]*\}"
    r"|\s+[a-zA-Z]{2}[a-zA-Z. ]*|\s*(?:[ckm]?m|k?g|ft|in|mph)\b)(?:\^\{?\d\}?)?\s*$"
)
_DEGREES_AND_PERCENT: Final = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\?%|\\degree(?![a-zA-Z])")
_THOUSANDS: Final = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_NUMBER: Final = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_FRACTION: Final = re.compile(r"([-+]?)(\d*)\\frac\{([-+]?[\d.]+)\}\{([-+]?[\d.]+)\}")
LONGEST: Final = 2000
"""Answers of more characters are compared as they are."""


def same_answer(said: str, gold: str) -> bool:
    """Return whether two answers are the same text or the same number, apart from typography, units and `x =`.

    Tuples, intervals and matrices of the same brackets are compared element by element; a list without brackets
    in any order.
    """
    if said == gold:
        return True
    if max(len(said), len(gold)) > LONGEST:
        return False
    return _same(_canonical(said), _canonical(gold))


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    numbers = _number(one), _number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    brackets, parts = _split(one)
    other_brackets, other_parts = _split(other)
    if len(parts) != len(other_parts) or len(parts) < 2 or brackets != other_brackets:
        return False
    if brackets:
        return all(_same(*pair) for pair in zip(parts, other_parts, strict=True))
    left = list(other_parts)
    for part in parts:
        match = next((each for each in left if _same(part, each)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _canonical(text: str) -> str:
    """One spelling: no spaces, dollar signs, sizes or units; braces around the arguments of fractions and roots."""
    text = unicodedata.normalize("NFKC", text).strip().strip("*")
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip())
    for pattern, spelling in _SYNONYMS:
        text = pattern.sub(spelling, text)
    text = _SIZES.sub("", text.replace("\\$", "").replace("$", ""))
    text = _SPACING.sub(" ", text).replace("\\\\", "\\") if "\\begin" not in text else text
    text = _DEGREES_AND_PERCENT.sub("", text)
    text = _UNIT_AFTER_NUMBER.sub("", text) or text
    text = _WORDS.sub(r"\1", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    text = _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\{([^{}]*)\}(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d}.])\.(?=\d)", "0.", text)
    name, equals, value = text.partition("=")
    if equals and "=" not in value and re.fullmatch(r"\\?[a-zA-Z]+(?:\([a-z]\))?", name):
        text = value
    if re.fullmatch(r"\(?[A-Za-z]\)?", text):
        return text.strip("()")
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def _number(text: str) -> Fraction | None:
    """The exact value of an integer, a decimal, a/b, a fraction or a mixed number."""
    if len(text) > 200:
        return None
    over, slash, under = text.partition("/")
    if _NUMBER.fullmatch(over) and (not slash or _NUMBER.fullmatch(under)):
        return _quotient(over, under if slash else "1")
    mixed = _FRACTION.fullmatch(text)
    if not mixed or not (_NUMBER.fullmatch(mixed[3]) and _NUMBER.fullmatch(mixed[4])):
        return None
    value = _quotient(mixed[3], mixed[4])
    if value is None:
        return None
    value += int(mixed[2] or 0)
    return -value if mixed[1] == "-" else value


def _quotient(over: str, under: str) -> Fraction | None:
    divisor = Fraction(under)
    return Fraction(over) / divisor if divisor else None


def _split(text: str) -> tuple[str, list[str]]:
    """The outer brackets ("" where there are none) and the parts between commas that stand at the top."""
    brackets = ""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", ")"), ("(", "]"), ("[", "]")):
        if text.startswith(opening) and text.endswith(closing):
            brackets = opening + closing
            text = text[len(opening) : -len(closing)]
            break
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return brackets, [*parts, text[start:]]
