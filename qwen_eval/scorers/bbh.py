"""Rules that read an answer from a chain of thought: BIG-Bench Hard.

Each rule is a function `(output, gold, multiple_choice) -> Verdict`: `gold` is the target as in the data (`(B)`,
`True`, `valid`, a list of words), `multiple_choice` says of which kind the subtask is. Two rules are published ones,
kept with their quirks; `corrected` is this project's own. Every rule first cuts the output at its own stop strings.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final

from qwen_eval.scorers.text import CHAT_ENDS, cut
from qwen_eval.task import Verdict

__all__ = ["RULES", "corrected", "lm_eval", "opencompass"]


def opencompass(output: str, gold: str, multiple_choice: bool) -> Verdict:
    """OpenCompass of September 2023: what follows the *first* "answer is ".

    Multiple choice: the first capital letter after an opening bracket, else the first capital letter, else the text;
    the gold goes through the same. Free form: the first line without one final full stop, equal to the target to the
    letter. An early "the answer is" in the chain of thought decides.
    """
    if multiple_choice:
        said = _option(output)
        return Verdict(said == _option(gold), said)
    said = _after_cue(output).split("\n")[0]
    said = said.removesuffix(".")
    return Verdict(said == gold, said)


def _after_cue(text: str) -> str:
    parts = text.split("answer is ")
    return parts[1].strip() if len(parts) > 1 else text


def _option(text: str) -> str:
    text = _after_cue(text)
    found = re.search(r"\(([A-Z])", text) or re.search(r"([A-Z])", text)
    return found[1] if found else text


def lm_eval(output: str, gold: str, multiple_choice: bool) -> Verdict:
    """lm-evaluation-harness `bbh_cot_fewshot`: what follows the first "the answer is " on its line.

    The line's last character is dropped, full stop or not. The output ends at `</s>`, a capital Q or a blank line.
    Equality of strings.
    """
    found = re.findall(r"(?<=the answer is )(.*)(?=.)", cut(output, "</s>", "Q", "\n\n"))
    said = found[0].strip() if found else None
    return Verdict(said == gold, said)


# -------------------------------------------------------------------------------------------------- the corrected rule

_CUE: Final = re.compile(r"\banswer(?:\s+is|\s*[:：])\s*[:：]?|答案\s*(?:是|为|[:：])\s*[:：]?", re.IGNORECASE)
# A letter that stands alone; the words "I" and "A" are letters only before punctuation or at the end.
_BARE_LETTER: Final = re.compile(r"(?<![A-Za-z'])([B-HJ-Z](?![A-Za-z'])|[AI](?=[).:,]|\s*$))")
_WORDS: Final = ("yes", "no", "true", "false", "valid", "invalid")
REACH: Final = 1000
"""How far behind its cue an answer may reach, in characters."""


def corrected(output: str, gold: str, multiple_choice: bool) -> Verdict:
    """This project's rule: what follows the *last* "answer is" (or `answer:`, 答案是), to the end of its line.

    The output ends at an end-of-turn marker or at an invented `Q:`. Emphasis, quotes, a final full stop and the case of
    yes, no, True, False, valid, invalid do not matter; numbers are compared as numbers, lists of words and brackets
    without their spacing. Without a cue the last line that is not empty counts.
    """
    text = re.split(r"\n[ \t]*(?:Q|Question|Problem)[ \t]*:", cut(output, *CHAT_ENDS, "</s>").strip())[0]
    said = _clean(_cued(text))
    if multiple_choice:
        letter = _letter(said)
        wanted = _letter(gold) if re.fullmatch(r"\([A-Z]\)", gold) else None
        if letter is not None and wanted is not None:
            return Verdict(letter == wanted, f"({letter})")
        return Verdict(_plain(said) == _plain(gold), said or None)
    return Verdict(bool(said) and _free_form(said, gold), said or None)


def _cued(text: str) -> str:
    for cue in reversed(list(_CUE.finditer(text))):  # a reply that breaks off behind its last cue has earlier ones
        lines = _lines(text[cue.end() :][:REACH])
        if lines:
            return lines[0]
    return next(reversed(_lines(text.rstrip()[-REACH:])), "")


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip(" \t*_`.。")]


def _clean(said: str) -> str:
    said = unicodedata.normalize("NFKC", re.sub(r"\*\*|__|`", "", said)).strip()
    said = re.sub(r"\\(?:boxed|text)\{([^{}]*)\}", r"\1", re.sub(r"\\(?:boxed|text)\{([^{}]*)\}", r"\1", said))
    said = said.strip("$ ").rstrip(".。").strip("$ ").strip("\"'“”")
    return said.rstrip(".。").strip()


def _letter(said: str) -> str | None:
    bracketed, bare = re.search(r"\(([A-Z])\)", said), _BARE_LETTER.search(said)
    if bare and bracketed and bare.start() == 0:
        return bare[1]  # "A, and (B) is not"
    found = bracketed or bare
    return found[1] if found else None


def _free_form(said: str, gold: str) -> bool:
    if gold.lower() in _WORDS:
        word = re.match(r"[A-Za-z]+", said)
        return word is not None and word[0].lower() == gold.lower()
    if re.fullmatch(r"-?\d{1,30}", gold):
        number = re.fullmatch(r"(?:.*=)?\s*\+?([-−]?(?:\d{1,3}(?:,\d{3})+|\d+))(?:\.0+)?(?:[^\d.].*)?", said)
        if number and re.match(r",\d|\s+(?:or|and)\s+\d", said[number.end(1) :]):
            return False  # "1,2" and "7 or 8" are two numbers
        return number is not None and int(number[1].replace(",", "").replace("−", "-")) == int(gold)
    return _plain(said) == _plain(gold)


def _plain(text: str) -> str:
    """Without commas and spacing between words; without any spacing where there are only brackets."""
    text = " ".join(text.replace(",", " ").split())
    return text.replace(" ", "") if re.fullmatch(r"[\[\](){}<> ]*", text) else text


RULES: Final[Mapping[str, Callable[[str, str, bool], Verdict]]] = {
    "corrected": corrected,
    "opencompass": opencompass,
    "lm-eval": lm_eval,
}
"""Every rule of BBH, spelled as in the tables."""
