"""Rules that read one number from an output: GSM8K and its relatives.

Each rule is a function `(output, gold) -> Verdict`, where `gold` is the reference solution that ends in `#### 18`, or
the number alone. Eight rules are published ones, kept with all their quirks so that reported figures can be reproduced;
`corrected` is this project's own. Every rule first cuts the output at its own stop strings, so that any rule can score
an output that was generated under another protocol. Where the published code raises, the item counts as wrong.
"""

import ast
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Final

from qwen_eval.scorers.text import CHAT_ENDS, cut
from qwen_eval.task import Verdict

__all__ = [
    "RULES",
    "corrected",
    "interpreter",
    "lm_eval_cot_strict",
    "lm_eval_flexible",
    "lm_eval_strict",
    "opencompass_2023",
    "opencompass_2024",
    "qwen",
    "qwen_chat",
]

Number = int | float

_LM_EVAL_ENDS: Final = ("</s>", "<|im_end|>")


def qwen(output: str, gold: str) -> Verdict:
    """Qwen's base rule (evaluate_gsm8k.py): the last run of digits, as an integer; no sign, point or comma.

    The digit class is Unicode: full-width digits match and then fail to evaluate, which makes the item invalid.
    The gold is the first `#### (-?[0-9.,]+)` without commas; negative golds are out of reach.
    """
    output = cut(output, "<|endoftext|>", "\n\n\n", "\n\n", "Question:")
    runs = re.findall(r"\d+", output)
    said = _evaluate(runs[-1]) if runs else None
    reference = re.search(r"#### (-?[0-9.,]+)", _with_mark(gold))
    wanted = _evaluate(reference[1].replace(",", "")) if reference else None
    return Verdict(said is not None and said == wanted, None if said is None else str(said))


def qwen_chat(output: str, gold: str) -> Verdict:
    """Qwen's chat rule (evaluate_chat_gsm8k.py, October 2023): the last signed, comma-grouped or decimal number.

    Both sides go through the same pattern; equal within 1e-4. `007` cannot be evaluated and is wrong.
    """
    said = _last_signed_number(cut(output, *CHAT_ENDS).strip())
    wanted = _last_signed_number(gold)
    correct = said is not None and wanted is not None and _is_close(_evaluate(wanted), _evaluate(said))
    return Verdict(correct, said)


def opencompass_2023(output: str, gold: str) -> Verdict:
    """OpenCompass, `gsm8k_gen_1d7fe4` of September 2023: all digits of the last space-separated word that has one.

    The output ends at the first blank line. Line breaks do not separate words, so numbers on lines of their own run
    together; `12.50` reads as 1250. The gold is what follows `#### `, without commas; equality of strings.
    """
    words = cut(output, "\n\n").split(" ")
    word = next((word for word in reversed(words) if any(map(str.isdigit, word))), "")
    said = "".join(filter(str.isdigit, word))
    return Verdict(said == _opencompass_gold(gold), said or None)


def opencompass_2024(output: str, gold: str) -> Verdict:
    """OpenCompass, 2024: the last `-?\\d+(\\.\\d+)?` before an invented `Question:`; equal within 1e-6."""
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", cut(output, "Question:"))
    said = numbers[-1] if numbers else None
    wanted = _opencompass_gold(gold)
    if said is None or wanted is None:
        return Verdict(False, said)
    try:
        correct = said == wanted or abs(float(said) - int(wanted)) < 1e-6
    except (ValueError, OverflowError):
        correct = False
    return Verdict(correct, said)


def lm_eval_strict(output: str, gold: str) -> Verdict:
    """lm-evaluation-harness `gsm8k`, strict-match: the first `#### (-?[0-9.,]+)`."""
    return _lm_eval(r"#### (\-?[0-9\.\,]+)", 0, cut(output, "Question:", *_LM_EVAL_ENDS), gold)


def lm_eval_flexible(output: str, gold: str) -> Verdict:
    """lm-evaluation-harness `gsm8k`, flexible-extract: the last number-like run, also of `$`, `.` and `,` alone."""
    return _lm_eval(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, cut(output, "Question:", *_LM_EVAL_ENDS), gold)


def lm_eval_cot_strict(output: str, gold: str) -> Verdict:
    """lm-evaluation-harness `gsm8k_cot`, strict-match: the first `The answer is (-?[0-9.,]+).`

    The last dot of the pattern is any character, so `160` before a newline reads as 16.
    """
    return _lm_eval(r"The answer is (\-?[0-9\.\,]+).", 0, cut(output, "Q:", *_LM_EVAL_ENDS), gold)


_INTERPRETER_NUMBER: Final = re.compile(
    r"(?<=[\s$%#{])[+-]?(?=\S)(?:0|[1-9](?:\d*|\d{0,2}(?:,\d{3})*))?(?:\.\d*[1-9])?(?=[\s.,}]|$)"
)


def interpreter(output: str, gold: str) -> Verdict:
    """Qwen-Agent's code-interpreter rule: the last number after whitespace or one of `$ % # {`, on both sides.

    Newlines become the two characters `\\n` first, so a number on a line of its own is not seen; a match may be empty,
    which hides the answer. `20,800` reads as 20 on both sides.
    """
    said, wanted = (_interpreter_number(text) for text in (output, _with_mark(gold)))
    said_value = None if said is None else _evaluate(said)
    correct = said_value is not None and wanted is not None and said_value == _evaluate(wanted)
    return Verdict(correct, said or None)


# -------------------------------------------------------------------------------------------------- the corrected rule

_ENDS: Final = (*CHAT_ENDS, "<|eot_id|>", "</s>")
_NEXT_QUESTION: Final = re.compile(
    r"(?<=\n)[ \t#*]{0,8}(?:Question|Problem|Q|Human|User|问题|题目)\s?\d*[ \t*]{0,4}[:：]"
)
_BOXED: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")
_CUE: Final = re.compile(
    r"####"
    r"|\banswer(?:\s+(?:to|of|for)\s[^.\n]{0,80}?)?\s*(?:\b(?:is|equals|would be|will be)\b\s*[:：]?|[:：=])"
    r"|(?:答案|结果)\s*(?:(?:就是|应该是|应为|是|为|等于)\s*[:：]?|[:：])",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-+])?(?:[$€£¥]\s?)?(?P<inner>(?<=[$€£¥])[-+])?"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<under>\d{1,15}(?![\d.,]*\d)))?"
    r"(?:[eE](?P<power>[-+]?\d{1,2})(?![\w.]))?"
    r"(?:\s?(?P<unit>百万|[万亿]|million\b|billion\b))?"
)
REACH: Final = 500
"""How far behind its cue or its opening brace an answer may stand, in characters.

Without a bound a looping output would be read over and over."""
_LARGE_UNITS: Final = {"万": 10**4, "百万": 10**6, "亿": 10**8, "million": 10**6, "billion": 10**9}


def corrected(output: str, gold: str) -> Verdict:
    """This project's rule: the number in the last `\\boxed{}`, else after the last "the answer is", else the last one.

    Signs, thousands commas, decimals, fractions, currency signs, units, LaTeX, full-width digits and Chinese phrasing
    are read; numbers are compared exactly, as fractions. The output ends at an end-of-turn marker or at an invented
    next question. "The answer is" may also be `answer:`, `####`, 答案是 or 答案：; where a chain of equations follows,
    its last right-hand side counts.
    """
    text = _plain(_before_next_question(cut(output, *_ENDS)))
    said = _boxed_number(text)
    if said is None:
        said = _cued_number(text)
    if said is None:
        said = _number_at(text, last=True)
    wanted = _number_at(_plain(gold.rpartition("####")[2]), last=True)
    return Verdict(said is not None and said == wanted, None if said is None else _shown(said))


def _before_next_question(text: str) -> str:
    start = len(text) - len(text.lstrip())
    found = _NEXT_QUESTION.search(text, start + 1)
    return text[: found.start()] if found else text


def _plain(text: str) -> str:
    """Undo typography: full-width forms, LaTeX spacing and fractions, emphasis, minus signs and thin spaces."""
    text = unicodedata.normalize("NFKC", re.sub(r"[²³]", "", text))
    text = re.sub(r"[−–﹣‐‑]", "-", text)
    text = re.sub(r"([=(]\s*)-\s+(?=[\d$])", r"\1-", text)  # elsewhere a dash before a space is a dash
    text = re.sub(r"\b(?:minus|negative)\s+(?=[\d$])|(?:负|零下)\s?(?=\d)", "-", text)
    text = re.sub(r"(?<![\d.,])(\d{1,9}) (\d{1,9})\s?/\s?(\d{1,9})(?![\d.,]*\d)", _improper, text)
    text = re.sub(r"(?<=[a-zA-Z])\s?\^\s?\{?[23]\}?", "", text)  # cm^2: the exponent is not the number
    text = re.sub(r"\\[dt]?frac\s*(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<!\d)(\d{1,9})\s*\\[dt]?frac\s*\{(\d{1,9})\}\s*\{(\d{1,9})\}", _improper, text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\{,\}|\\,|\\!|\\;|\\ ", lambda found: "," if found[0] == "{,}" else "", text)
    text = re.sub(r"\\\$", "$", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    return re.sub(r"\*\*|__|`", "", text)


def _improper(mixed: re.Match[str]) -> str:
    whole, over, under = map(int, mixed.groups())
    return f"{whole * under + over}/{under}"


def _boxed_number(text: str) -> Fraction | None:
    for found in reversed(list(_BOXED.finditer(text))):
        inside = text[found.end() : found.end() + REACH]
        depth = 1
        for end, letter in enumerate(inside):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if not depth:
                inside = inside[:end]
                break
        number = _number_at(_after_equals(inside), last=False)
        if number is not None:
            return number
    return None


def _cued_number(text: str) -> Fraction | None:
    for cue in reversed(list(_CUE.finditer(text))):
        rest = text[cue.end() : cue.end() + REACH].lstrip(" \t\n:：*")
        sentence = re.split(r"\n|[.。!?](?=\s|$)|[。！？]", rest, maxsplit=1)[0]
        sentence = re.sub(r"^-\s+(?=[\d$])", "-", sentence)
        number = _number_at(_after_equals(sentence), last=False)
        if number is not None:
            return number
    return None


def _after_equals(text: str) -> str:
    """The right side of a chain of equations; what follows a comma or "since" is no part of it."""
    chain = re.split(r"[,，;]\s|[，；]|\b(?:because|since|as)\b", text, maxsplit=1)[0]
    tail = chain.rpartition("=")[2]
    return tail if _NUMBER.search(tail) else chain if _NUMBER.search(chain) else text


def _number_at(text: str, *, last: bool) -> Fraction | None:
    found = _NUMBER.search(text)
    if found and last:
        found = list(_NUMBER.finditer(text))[-1]
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found["number"]) > 1000:
        return None
    value = Fraction(found["number"].replace(",", ""))
    if found["under"] and int(found["under"]):
        value /= int(found["under"])
    if found["power"]:
        value *= Fraction(10) ** int(found["power"])
    value *= _LARGE_UNITS.get(found["unit"] or "", 1)
    return -value if "-" in (found["sign"] or "") + (found["inner"] or "") else value


def _shown(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    decimal = f"{float(number):.12g}"
    return decimal if Fraction(decimal) == number else str(number)


# ------------------------------------------------------------------------------------------------------------- parts


def _with_mark(gold: str) -> str:
    return gold if "####" in gold else f"#### {gold}"


def _opencompass_gold(gold: str) -> str | None:
    parts = _with_mark(gold).split("#### ")
    return parts[1].replace(",", "") if len(parts) > 1 else None


def _evaluate(text: str) -> Number | None:
    """Read a number as Python's `eval` would: None for `007`, full-width digits, the empty string, a lone sign."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, int | float) else None


def _is_close(one: Number | None, other: Number | None) -> bool:
    try:
        return one is not None and other is not None and math.isclose(one, other, rel_tol=0, abs_tol=1e-4)
    except OverflowError:
        return False


_SIGNED_NUMBER: Final = re.compile(r"[+-]?(?=[0-9]|\.[0-9])(?:0|[1-9](?:\d{0,2}(?:,\d{3})*)|\d*)?(?:\.\d*)?(?=\D|$)")


def _last_signed_number(text: str) -> str | None:
    found = _SIGNED_NUMBER.findall(text)
    return found[-1].replace(",", "").replace("+", "").strip() if found else None


def _interpreter_number(text: str) -> str | None:
    found = _INTERPRETER_NUMBER.findall(text.strip(".").replace("\n", "\\n"))
    return found[-1].replace(",", "").replace("+", "") if found else None


def _lm_eval(pattern: str, which: int, output: str, gold: str) -> Verdict:
    """Extract as lm-evaluation-harness' regex filter does, and compare by its `exact_match` (commit 4e7e0d47f33b)."""
    found: list[str | tuple[str, ...]] = re.findall(pattern, output)
    said = None
    if found:
        match = found[which]
        groups = [match] if isinstance(match, str) else [group for group in match if group]
        said = groups[0].strip() if groups else None
    correct = _lm_eval_normal("[invalid]" if said is None else said) == _lm_eval_normal(gold)
    return Verdict(correct, said)


def _lm_eval_normal(text: str) -> str:
    for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


RULES: Final[Mapping[str, Callable[[str, str], Verdict]]] = {
    "corrected": corrected,
    "qwen": qwen,
    "qwen-chat": qwen_chat,
    "opencompass-2023": opencompass_2023,
    "opencompass-2024": opencompass_2024,
    "lm-eval-strict": lm_eval_strict,
    "lm-eval-flexible": lm_eval_flexible,
    "lm-eval-cot-strict": lm_eval_cot_strict,
    "interpreter": interpreter,
}
"""Every rule of GSM8K, spelled as in the tables."""
