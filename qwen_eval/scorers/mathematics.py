"""Rules that read a mathematical answer from an output and compare it with the gold answer: MATH.

Each rule is a function `(output, gold) -> Verdict`, where `gold` is the reference answer (the content of the solution's
last `\\boxed{}`) or a whole solution that carries one. Four rules are published ones, kept with all their quirks;
`corrected` is this project's own and `math_verify` is the library of that name. Every rule first cuts the output at its
own stop strings. Where the published code raises, its own fallback is used.

LaTeX is compared as text here. What needs computer algebra is asked of `symbolic.py`, which runs it in a process of its
own with a time limit.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from qwen_eval.scorers import symbolic
from qwen_eval.scorers.latex import same_answer
from qwen_eval.scorers.text import CHAT_ENDS, cut
from qwen_eval.task import Verdict

__all__ = [
    "RULES",
    "boxed",
    "corrected",
    "is_equiv",
    "lm_eval_hendrycks",
    "lm_eval_minerva",
    "math_verify",
    "opencompass_2023",
    "opencompass_2024",
]


def opencompass_2023(output: str, gold: str) -> Verdict:
    """OpenCompass `math_gen_265cce` of September 2023: the first piece between full stops that says "final answer".

    Else the first piece of all. Splitting at full stops cuts decimals: no gold such as 0.5 can be scored right, and
    `\\left(` turns into `<(` on the way. Equality by `is_equiv`.
    """
    said = _opencompass_normal(_piece(output, r"final answer"))
    return Verdict(is_equiv(said, _answer(gold)), said)


def opencompass_2024(output: str, gold: str) -> Verdict:
    """OpenCompass `math_4shot_base_gen_db136b` of 2024: the last `\\boxed{}` as it is (no `\\fbox{}`), else as in 2023.

    "answer is" counts beside "final answer". The output ends at an invented `Problem`. Equality is more lenient than in
    2023: text, units, `$`, `%` and `\\cdot` are dropped, and normalised forms are compared too.
    """
    output = cut(output, "Problem")
    said = _unwrapped(boxed(output) or "") if "\\boxed" in output else ""
    if not said:
        said = _opencompass_normal(_piece(output, r"final answer|answer is"), year=2024)
    return Verdict(_is_equiv_2024(said, _answer(gold)), said)


def lm_eval_minerva(output: str, gold: str) -> Verdict:
    """lm-evaluation-harness `minerva_math`, exact_match: the text between "Final Answer: The final answer is" and
    "I hope it is correct." (Lewkowycz et al. 2022, appendix D), and equality by sympy within five seconds.

    The closing sentence is appended without a space where it is missing, but the pattern wants one: a reply without it
    is invalid. What sympy cannot read as one expression (an interval, a matrix) is never right.
    """
    output = cut(output, "Problem:")
    found = re.search(
        r"Final Answer: The final answer is(.*?). I hope it is correct.", f"{output}I hope it is correct."
    )
    if not found:
        return Verdict(False, None)
    said = _minerva_normal(found[1].strip())
    return Verdict(symbolic.difference_is_zero(said, _minerva_normal(_answer(gold))), said)


def lm_eval_hendrycks(output: str, gold: str) -> Verdict:
    """lm-evaluation-harness `hendrycks_math`: what stands between the first and the last `$`, else all of it."""
    output = cut(output, "Problem:")
    first, last = output.find("$"), output.rfind("$")
    said = output[first + 1 : last] if first < last else output
    return Verdict(is_equiv(said, _answer(gold)), said)


def math_verify(output: str, gold: str) -> Verdict:
    """math-verify (Hugging Face): parses answers from both sides and compares them symbolically, within five seconds.

    A looser rule than the published ones: equal values count, however they are written. No answer in time is wrong.
    """
    output = cut(output, "Problem:", *CHAT_ENDS)
    return Verdict(*symbolic.verify(_answer(gold), output))


# -------------------------------------------------------------------------------------------------- the corrected rule

_CUE: Final = re.compile(
    r"(?:final\s+)?answer(?:\s+(?:to|of|for)\s[^.\n]{0,80}?)?\s*(?:\b(?:is|equals|would be|will be)\b\s*[:：]?|[:：=])"
    r"|(?:答案|结果)\s*(?:就是|应该是|应为|是|为|等于|[:：])\s*[:：]?",
    re.IGNORECASE,
)
_NEXT_PROBLEM: Final = re.compile(
    r"(?<=\n)(?:[ \t#*]{0,8}(?:Problem|Question|问题|题目)\s?\d*[ \t*]{0,4}[:：]|#{1,4} (?:Problem|Question) \d)"
)
_SENTENCE_END: Final = re.compile(r"\n|\.(?=\s*\$?\s*$)|\.\$?(?=\s)|。|\. ?I hope it is correct")
_NUMBER: Final = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")
_FORMULA: Final = re.compile(r"\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]|\$\$?((?:\\.|[^$\\]){1,300}+)\$", re.DOTALL)
REACH: Final = 500
"""How far behind its cue an answer may reach, in characters: a looping output is not read over and over."""


def corrected(output: str, gold: str) -> Verdict:
    """This project's rule: the last `\\boxed{}`, else what follows the last "the answer is", else the last formula.

    Else the last number. The output ends at an end-of-turn marker or at an invented next problem. Full-width forms and
    Chinese phrasing (答案是) are read. Equality by `latex.same_answer`: typography, units, order of fractions and
    decimals do not matter, the value does.
    """
    output = cut(output, *CHAT_ENDS, "</s>")
    text = output.lstrip()
    invented = _NEXT_PROBLEM.search(text)
    text = text[: invented.start()] if invented else text
    said = _last_box(text) or _cued(text) or _last_formula(text) or _last_number(text)
    return Verdict(said is not None and same_answer(said, _answer(gold)), said)


def _last_box(text: str) -> str | None:
    """The content of the last box that closes, among the last four: a truncated reply may open one more."""
    for _ in range(4):
        found = boxed(text)
        start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
        if found is not None or start < 0:
            return found
        text = text[:start]
    return None


def _cued(text: str) -> str | None:
    for cue in reversed(list(_CUE.finditer(text))):
        rest = text[cue.end() : cue.end() + REACH].lstrip(" \t\n:：*")
        formula = _FORMULA.match(rest)
        if formula:
            tail = re.match(r"\s*(\\?%|percent)", rest[formula.end() :])
            return _inside(formula) + (tail[1] if tail else "")
        if rest.startswith("$"):  # a formula that a truncated reply does not close
            continue
        said = _SENTENCE_END.split(rest, maxsplit=1)[0].strip().strip("*").rstrip(".").strip()
        if said:
            return said
    return None


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _last_formula(text: str) -> str | None:
    formulas = list(_FORMULA.finditer(text[-8 * REACH :]))
    return _inside(formulas[-1]) if formulas else None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


# ----------------------------------------------------------------------------------------------------------- extraction


def boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{…}` (of the last `\\fbox{…}` where there is none), braces balanced.

    None where there is none, where a brace never closes, or where no brace follows directly.
    """
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
    opening = re.match(r"\\(?:boxed|fbox)\{", text[start : start + 8]) if start >= 0 else None
    if not opening:
        return None
    depth = 0
    inside = start + opening.end()
    for index in range(inside - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[inside:index]
    return None


def _answer(gold: str) -> str:
    """The reference answer: a solution's last box, or the gold itself where it carries none."""
    found = boxed(gold)
    return gold if found is None else found


def _piece(text: str, cue: str) -> str:
    """The first piece between full stops that carries the cue, in any case; else the first piece."""
    pieces = text.split(".")
    return next((piece for piece in pieces if re.search(cue, piece.lower())), pieces[0])


def _unwrapped(text: str) -> str:
    """One pair of doubled braces around the whole is dropped."""
    found = re.match(r"^\{(.*)\}$", text)
    return found[1] if found else text


# -------------------------------------------------------------------------------------------------------- normalisation

_REPLACED: Final = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_DROPPED: Final = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip


def _minerva_normal(answer: str) -> str:
    """The normalisation of Lewkowycz et al. 2022, appendix D, as lm-evaluation-harness carries it."""
    answer = _without_words(answer.split("=")[-1])
    answer = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", answer)
    return _tidied(_unwrap_commands(answer))


def _opencompass_normal(answer: str, *, year: int = 2023) -> str:
    """OpenCompass' variant: `\\le` becomes `<`, line breaks go, and what follows "final answer is" is kept."""
    answer = _without_words(answer, ("\\le", "<"))
    for gone in ("\n", "\r", "\f"):
        answer = answer.replace(gone, "")
    if year == 2024:
        answer = re.sub(r"(\\text\{)\((.*?)\)(\})", r"\2", answer)
    answer = _unwrap_commands(answer)
    answer = _last_match(r"finalansweris(.*)", answer)
    if year == 2024:
        answer = _last_match(r"answer?is:?(.*)", answer)
    answer = _last_match(r"oxed\{(.*?)\}", answer)
    answer = _last_match(r"\$(.*?)\$", answer).strip()
    if "rac" in answer and "\\frac" not in answer:
        answer = answer.replace("rac", "\\frac")
    return _tidied(answer)


def _without_words(answer: str, *more: tuple[str, str]) -> str:
    for before, after in (*_REPLACED, *more):
        answer = answer.replace(before, after)
    for word in _DROPPED:
        answer = answer.replace(word, "")
    return answer


def _unwrap_commands(answer: str) -> str:
    # Behind the last closing brace nothing can match; to look there from every opening one would take very long.
    closed = answer.rfind("}") + 1
    answer, rest = answer[:closed], answer[closed:]
    for command in ("text", "textbf", "overline"):
        answer = re.sub(rf"(\\{command}\{{)(.*?)(\}})", r"\2", answer)
    return re.sub(r"(\\boxed\{)(.*)(\})", r"\2", answer) + rest


def _last_match(pattern: str, text: str) -> str:
    found: list[str] = re.findall(pattern, text)
    return found[-1] if found else text


def _tidied(answer: str) -> str:
    """`\\frac12` and `\\sqrt2` get braces, `$` goes, and so do the commas of `1,000` (and of `1,2,3`)."""
    answer = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", answer)
    answer = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", answer)
    answer = answer.replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


# ------------------------------------------------------------------------------------------------------------- equality


class _Unreadable(ValueError):
    """Where the published code raises."""


def is_equiv(said: str, gold: str) -> bool:
    """Hendrycks et al. 2021, `is_equiv`: equality of strings after stripping; of the raw ones where stripping fails."""
    try:
        return _stripped(said) == _stripped(gold)
    except _Unreadable:
        return said == gold


def _stripped(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    before_unit, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise _Unreadable("two units")
    text = before_unit.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = _right_side(f"0{text}" if text[0] == "." else text)
    head, *roots = text.split("\\sqrt")
    if not all(roots):
        raise _Unreadable("a root of nothing")
    text = head + "".join(f"\\sqrt{root}" if root[0] == "{" else f"\\sqrt{{{root[0]}}}{root[1:]}" for root in roots)
    text = _braced_fractions(text.replace(" ", ""), strict=True)
    return _slashed("\\frac{1}{2}" if text == "0.5" else text)


def _right_side(text: str) -> str:
    """`x = 5` is 5: of one equation with at most two characters on its left, the right side."""
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _braced_fractions(text: str, *, strict: bool) -> str:
    """`\\frac12` and `\\frac1{72}` get their braces; a fraction that ends too early leaves the text as it is."""
    head, *fractions = text.split("\\frac")
    done = head
    for fraction in fractions:
        if strict and not fraction:
            raise _Unreadable("a fraction of nothing")
        if fraction[:1] == "{":
            done += f"\\frac{fraction}"
        elif len(fraction) < 2:
            return text
        elif fraction[1] == "{":
            done += f"\\frac{{{fraction[0]}}}{fraction[1:]}"
        else:
            done += f"\\frac{{{fraction[0]}}}{{{fraction[1]}}}{fraction[2:]}"
    return done


def _slashed(text: str) -> str:
    """`3/4` of two integers becomes a fraction; with anything else around a single slash the published code raises."""
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        over, under = int(sides[0]), int(sides[1])
    except ValueError:
        raise _Unreadable("no integers around a slash") from None
    return f"\\frac{{{over}}}{{{under}}}" if text == f"{over}/{under}" else text


def _is_equiv_2024(said: str, gold: str) -> bool:
    """OpenCompass, `MATHEvaluator` version v2: stripped, stripped and normalised, normalised, raw; any one suffices."""
    try:
        one, other = _stripped_2024(said), _stripped_2024(gold)
        if one == other or _opencompass_normal(one, year=2024) == _opencompass_normal(other, year=2024):
            return True
    except _Unreadable:
        pass
    return _opencompass_normal(said, year=2024) == _opencompass_normal(gold, year=2024) or said == gold


def _stripped_2024(text: str) -> str:
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "").replace("\\ ", "")
    text = text.replace("\\\\", "\\").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = text.replace("\\text", "").replace("x\\in", "").replace("\\%", "").replace("%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.").replace("\\cdot", "").replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("+\\inity", "\\infty").replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox{.*?}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(?<!\d)(\d+)\.0+([^\d])", r"\1\2", text)
    text = re.sub(r"(?<!\d)(\d+)\.0+$", r"\1", text)
    if not text:
        return text
    text = _right_side(f"0{text}" if text[0] == "." else text)
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text)
    return _slashed(_braced_fractions(text.replace(" ", ""), strict=False))


RULES: Final[Mapping[str, Callable[[str, str], Verdict]]] = {
    "corrected": corrected,
    "opencompass-2023": opencompass_2023,
    "opencompass-2024": opencompass_2024,
    "lm-eval-minerva": lm_eval_minerva,
    "lm-eval-hendrycks": lm_eval_hendrycks,
    "math-verify": math_verify,
}
"""Every rule of MATH, spelled as in the tables."""
