"""Rules that read an option letter from an output: MMLU, C-Eval, CMMLU.

Each rule is a function `(output, gold, options) -> Verdict`: `gold` is a letter, `options` maps letters to their texts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from qwen_eval.task import Verdict

__all__ = ["first_capital", "most_likely", "qwen_mmlu"]

_CHAT_ENDS: Final = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")

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


def qwen_mmlu(output: str, gold: str, options: Mapping[str, str]) -> Verdict:
    """Qwen's MMLU chat rule (evaluate_chat_mmlu.py), six steps; every output gets a letter.

    1. Option texts become their letters, longest first, whatever the case. 2. "answer is X", "choose X". 3. "X is
    correct". 4. The reply starts with a letter. 5. The first letter that stands alone. 6. The closest option text
    (thefuzz, default weighted ratio). "The answer is not C, it is B" reads as C: parity keeps it.
    """
    text = _reply(output)
    for letter, option in sorted(options.items(), key=lambda item: len(item[1]), reverse=True):
        text = re.sub(re.escape(option.rstrip(".")), letter, text, flags=re.IGNORECASE)
    for pattern in (_ANSWER_IS, _IS_CORRECT, _STARTS_WITH, _STANDS_ALONE):
        found = pattern.search(text)
        if found:
            return Verdict(found[1] == gold, found[1])
    letter = _closest_option(text, options)
    return Verdict(letter == gold, letter)


def first_capital(output: str, gold: str) -> Verdict:
    """OpenCompass' `first_capital_postprocess`: the first upper-case character, any letter ("The answer is B" is T)."""
    letter = next(filter(str.isupper, _reply(output)), None)
    return Verdict(letter == gold, letter)


def most_likely(logprobs: Sequence[float], gold: str, letters: Sequence[str]) -> Verdict:
    """The option with the highest log-probability; ties go to the earlier letter."""
    letter = letters[max(range(len(letters)), key=lambda index: (logprobs[index], -index))]
    return Verdict(letter == gold, letter)


def _reply(output: str) -> str:
    """Return the assistant's turn: cut at the first ChatML marker, without surrounding whitespace."""
    for end in _CHAT_ENDS:
        output = output.split(end, 1)[0]
    return output.strip()


def _closest_option(text: str, options: Mapping[str, str]) -> str:
    import logging

    from thefuzz import process

    # A reply without any letter or digit makes thefuzz warn and take the first option; so does the published script.
    logging.getLogger("thefuzz.process").setLevel(logging.ERROR)
    best: str = process.extractOne(text, list(options.values()))[0]
    return next(letter for letter, option in options.items() if option == best)
