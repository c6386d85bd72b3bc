"""Rules that read an option letter from an output: MMLU, C-Eval, CMMLU.

The chat rules are functions `(output, gold, row) -> Verdict`: `gold` is a letter, `row` has the texts of the options
under their letters (and, for C-Eval, the question).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from qwen_eval.scorers.text import reply
from qwen_eval.task import Verdict

__all__ = ["first_capital", "most_likely", "qwen_ceval", "qwen_mmlu"]

LETTERS: Final = ("A", "B", "C", "D")

_NOT: Final = r"(?:n't|not)"
_ANSWER_IS: Final = re.compile(
    rf"(?:[Cc]hoose|(?:[Aa]nswer|[Cc]hoice)(?![^ABCD]{{0,20}}?{_NOT})[^ABCD]{{0,10}}?\b(?:|is|:|be)\b)"
    r"[^ABCD]{0,20}?\b([ABCD])\b"
)
_IS_CORRECT: Final = re.compile(
    rf"\b([ABCD])\b(?![^ABCD]{{0,8}}?{_NOT}[^ABCD]{{0,5}}?(?:correct|right))[^ABCD]{{0,10}}?\b(?:correct|right)\b"
)
_STARTS_WITH: Final = re.compile(r"^([ABCD])(?:[.,:]|$)")
_STANDS_ALONE: Final = re.compile(r"(?<![a-zA-Z])([ABCD])(?![a-zA-Z=])")


def qwen_mmlu(output: str, gold: str, row: Mapping[str, str]) -> Verdict:
    """Qwen's MMLU chat rule (evaluate_chat_mmlu.py), six steps; every output gets a letter.

    1. Option texts become their letters, longest first, whatever the case. 2. "answer is X", "choose X". 3. "X is
    correct". 4. The reply starts with a letter. 5. The first letter that stands alone. 6. The closest option text
    (thefuzz, default weighted ratio). "The answer is not C, it is B" reads as C: parity keeps it.
    """
    text = reply(output)
    for letter in _longest_first(row):
        text = re.sub(re.escape(row[letter].rstrip(".")), letter, text, flags=re.IGNORECASE)
    letter = _first_match(text, (_ANSWER_IS, _IS_CORRECT, _STARTS_WITH, _STANDS_ALONE)) or _closest_option(text, row)
    return Verdict(letter == gold, letter)


_NEGATED: Final = r"(?:不|非)"
_IS: Final = r"(?:是|选|为|：|:|】)"
_ANSWER_IS_CHINESE: Final = re.compile(
    rf"(?:选(?:择|定)?[：:]?\s*|(?:答案|选项)(?![^ABCD]{{0,10}}?{_NEGATED}[^ABCD]{{0,10}}?{_IS})[^ABCD]{{0,10}}?{_IS}"
    r"[^ABCD]{0,10}?)([ABCD])(?:选项)?(?:[)）。.，,．、ABCD：:]|$)"
)
_RIGHT: Final = r"(?:正确|对[的，。：]|符合)"
_IS_CORRECT_CHINESE: Final = re.compile(
    rf"([ABCD])(?:选?项)?(?![^ABCD]{{0,4}}?{_NEGATED}[^ABCD]{{0,4}}?{_RIGHT})[^ABCD]{{0,4}}?{_RIGHT}"
)
_STARTS_WITH_CHINESE: Final = re.compile(r"^[(（]?([ABCD])(?:[。)）.，,．：:]|$)")


def qwen_ceval(output: str, gold: str, row: Mapping[str, str]) -> Verdict:
    """Qwen's C-Eval chat rule (evaluate_chat_ceval.py, final version), also used for CMMLU; every output gets a letter.

    1. The question, where the reply repeats it: what stands before its blank becomes 答案是, what stands after it goes
    (of the last sentence; each only when longer than four characters). 2. Option texts become their letters, longest
    first. 3. 选X, 答案是X. 4. X正确. 5. The reply starts with a letter. 6. The first letter that stands alone. 7. The
    closest option text. "答案不是D，而是B" reads as D: parity keeps it.
    """
    text = reply(output)
    blanked = row["question"].rstrip("。").split("。")[-1].split("_")
    if len(blanked[0].strip()) > 4:
        text = text.replace(blanked[0], "答案是")
    if len(blanked[-1].strip()) > 4:
        text = text.replace(blanked[-1], "")
    for letter in _longest_first(row):
        text = text.replace(row[letter].rstrip("。"), letter)
    patterns = (_ANSWER_IS_CHINESE, _IS_CORRECT_CHINESE, _STARTS_WITH_CHINESE, _STANDS_ALONE)
    letter = _first_match(text, patterns) or _closest_option(text, row)
    return Verdict(letter == gold, letter)


def first_capital(output: str, gold: str) -> Verdict:
    """OpenCompass' `first_capital_postprocess`: the first upper-case character, any letter ("The answer is B" is T)."""
    letter = next(filter(str.isupper, reply(output)), None)
    return Verdict(letter == gold, letter)


def most_likely(logprobs: Sequence[float], gold: str, letters: Sequence[str]) -> Verdict:
    """The option with the highest log-probability; ties go to the earlier letter."""
    letter = letters[max(range(len(letters)), key=lambda index: (logprobs[index], -index))]
    return Verdict(letter == gold, letter)


def _longest_first(row: Mapping[str, str]) -> list[str]:
    return sorted(LETTERS, key=lambda letter: len(row[letter]), reverse=True)


def _first_match(text: str, patterns: Sequence[re.Pattern[str]]) -> str | None:
    """The letter that the first pattern with a match reads."""
    return next((found[1] for pattern in patterns if (found := pattern.search(text))), None)


def _closest_option(text: str, row: Mapping[str, str]) -> str:
    import logging

    from thefuzz import process

    # A reply without any letter or digit makes thefuzz warn and take the first option; so does the published script.
    logging.getLogger("thefuzz.process").setLevel(logging.ERROR)
    best: str = process.extractOne(text, [row[letter] for letter in LETTERS])[0]
    return next(letter for letter in LETTERS if row[letter] == best)
