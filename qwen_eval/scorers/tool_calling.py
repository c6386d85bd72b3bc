"""Rules that score one call of a tool: Qwen's Chinese plugin benchmark.

    qwen        as published: what stands where in the text of a ReAct transcript
    native      this project's own: a function call in the models' own form
    corrected   this project's own: what the reply does, in whichever of the two forms

All score the outputs of every protocol by the same measures. The golden transcript is always read as ReAct.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from qwen_eval.scorers.functions import after_reasoning, tool_calls
from qwen_eval.scorers.react import LONGEST, first_action, listed_tools, normalised, read_json5, written
from qwen_eval.scorers.text import CHAT_ENDS, cut
from qwen_eval.task import Rule, Sample, Verdict
from qwen_eval.vocabulary import vocabulary

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["RULES", "Said", "corrected", "native", "prepare", "published", "qwen_tokens", "rouge_l", "rules"]

Tokens: TypeAlias = Callable[[str], Sequence[str]]
"""How a tokenizer cuts a text: its tokens, each decoded."""

NATIVE: Final = "<tool_call>"


@dataclass(frozen=True)
class Said:
    """What a reply calls: whether anything, which tool ("" for none), and its input as JSON ("" where unreadable)."""

    called: bool
    name: str
    arguments: str


# ---------------------------------------------------------------------------------------------------- reading a reply


def published(output: str, listed: Sequence[str] = ()) -> Said:
    """Return what the published script reads: a call is a line that begins with `Action: `, but not the first one.

    Name and input are cut out wherever their markers stand, call or not.
    """
    action = first_action(output)
    return Said("\nAction: " in output, action.name, normalised(action.argument_text))


def native(output: str, listed: Sequence[str] = ()) -> Said:
    """Return what a native reply calls: `<tool_call>` behind its reasoning is a call, its form that of the models."""
    return _native(output, lenient=False)


def _native(output: str, *, lenient: bool) -> Said:
    calls = tool_calls(output, lenient=lenient)
    called = bool(calls) or NATIVE in after_reasoning(output)
    if not calls:
        return Said(called, "", "")
    try:
        return Said(called, calls[0].name.strip(), written(calls[0].arguments))
    except ValueError:
        return Said(called, calls[0].name.strip(), "")


_HEAD: Final = re.compile(
    r"(?:^[ \t>*#_`]*(Thought|Action|Observation|Final Answer|Question)|(Action Input))[*_`]*[ \t]*[:：][*_`]*",
    re.IGNORECASE | re.MULTILINE,
)
_AROUND_NAMES: Final = " \t`*_\"'[]<>()【】《》「」“”‘’.。,，"
_NO_TOOL: Final = ("", "none", "null", "n/a", "na", "no", "no action", "无", "无需", "不需要", "没有")


def corrected(output: str, listed: Sequence[str] = ()) -> Said:
    """Return what a reply does: its first whole action, a line `Action:` with an `Action Input:` behind it.

    The first line counts like any other, and so do full-width colons, emphasis, and quotes around the name. Reasoning
    before `</think>` is not read, nor what follows a final answer, an end-of-turn marker or an invented next question.
    Of the input the JSON object counts that it begins with, in a fence or not. An action that names no tool ("None")
    is none; one that names a listed tool and breaks off calls something, but no tool. A reply with `<tool_call>` before
    any action is a native one: its calls may be spaced otherwise, and stand bare where nothing is ReAct.
    """
    text = cut(after_reasoning(output), *CHAT_ENDS)
    parts = _parts(text)
    before, found, _ = text.partition(NATIVE)
    if not parts or (found and not any(head == "action" for head, _ in _parts(before))):
        return _native(text, lenient=True)
    broken = False
    for (head, said), (following, argument) in zip(parts, [*parts[1:], ("", "")], strict=True):
        if head == "final answer":
            break
        name = (said.strip().split("\n")[0]).strip(_AROUND_NAMES)
        if head != "action" or name.casefold() in _NO_TOOL:
            continue
        if following == "action input":
            return Said(True, name, _object(argument))
        broken = broken or name.casefold() in [each.casefold() for each in listed]
    return Said(broken, "", "")


def _parts(text: str) -> list[tuple[str, str]]:
    """The parts of a transcript, each with its marker, up to an invented next question."""
    heads = list(_HEAD.finditer(text))
    borders = [*(head.start() for head in heads), len(text)]
    parts = [
        ((head[1] or head[2]).lower(), text[head.end() : end]) for head, end in zip(heads, borders[1:], strict=True)
    ]
    again = [index for index, (head, _) in enumerate(parts) if head == "question" and index]
    return parts[: again[0]] if again else parts


def _object(argument: str) -> str:
    bare = re.sub(r"^\s*`{1,3}[A-Za-z0-9]*\s*", "", argument).strip()
    try:
        return written(read_json5(bare[:LONGEST], whole=False)) if bare.startswith("{") else ""
    except ValueError:
        return ""


# ------------------------------------------------------------------------------------------------- comparing with gold


def rouge_l(reference: str, candidate: str, tokens: Tokens) -> float:
    """Return Rouge-L F1 (Lin 2004, "ROUGE", section 3) over a tokenizer's tokens, split once more at white space.

    An empty text has no overlap with anything.
    """
    scorer = _scorer()
    score = scorer.score(" ".join(tokens(reference)), " ".join(tokens(candidate)))["rougeL"].fmeasure
    return float(score)


class _AtWhiteSpace:
    """What rouge-score takes for a tokenizer; its own keeps nothing but Latin letters and digits."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_AtWhiteSpace())


def _comparable(arguments: str) -> str:
    """JSON text in which equal numbers are spelled alike and strings have no white space around them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, str):
            return value.strip()
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return written(plain(json.loads(arguments))) if arguments else ""


def _verdict(
    said: Said, gold: str, *, positive: bool, listed: Sequence[str], equal: Callable[[str, str], bool], tokens: Tokens
) -> Verdict:
    extracted = (f"{said.name} {said.arguments}".strip() or None) if said.called else "no call"
    if not positive:
        return Verdict(not said.called, extracted, measures={"false positive error": (float(said.called),)})
    action = first_action(gold)
    wanted = normalised(action.argument_text)
    name = said.name.lower()
    right = said.called and name == action.name.lower()
    valid = said.called and name in [each.lower() for each in listed] and said.arguments.startswith("{")
    measures = {
        "tool selection": right,
        "tool input": rouge_l(wanted, said.arguments, tokens) if said.arguments else 0,
        "valid call": valid,
        "argument exact match": right and bool(said.arguments) and equal(said.arguments, wanted),
    }
    return Verdict(right, extracted, measures={name: (float(value),) for name, value in measures.items()})


def qwen_tokens(text: str) -> Sequence[str]:
    """The tokens of Qwen's vocabulary."""
    return vocabulary().tokens(text)


def rules(tokens: Tokens) -> Mapping[str, Rule]:
    """Return every rule of tool calling, with Rouge-L over the tokens of a tokenizer.

    A sample's group is "positive" (the tool of its golden transcript is to be called) or "negative" (none is).
    """

    def rule(read: Callable[[str, Sequence[str]], Said], equal: Callable[[str, str], bool]) -> Rule:
        def score(output: str, sample: Sample) -> Verdict:
            listed = listed_tools(sample.row["prompt"])
            said = read(output, listed)
            positive = sample.group == "positive"
            return _verdict(said, sample.gold, positive=positive, listed=listed, equal=equal, tokens=tokens)

        return score

    return {
        "qwen": rule(published, lambda one, other: one == other),
        "native": rule(native, lambda one, other: one == other),
        "corrected": rule(corrected, lambda one, other: _comparable(one) == _comparable(other)),
    }


RULES: Final = rules(qwen_tokens)
"""Every rule, spelled as in the tables, over Qwen's vocabulary."""


def prepare() -> None:
    """Get the vocabulary, which is fetched the first time. Raises DataError where it cannot be had."""
    vocabulary()
