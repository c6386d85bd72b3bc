"""From answers to verdicts, and from verdicts to metrics. The same code for a run and for rescoring."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from qwen_eval.results import checksum, output_of, request_hash, value_of
from qwen_eval.scorers.choice import most_likely
from qwen_eval.scorers.perplexity import by_length
from qwen_eval.stats import effective_size, effective_size_of_repeats, interval, pass_at_k, wilson
from qwen_eval.task import (
    Answer,
    Cell,
    Chosen,
    Execute,
    Executed,
    Generated,
    Judged,
    Observed,
    Protocol,
    Sample,
    Task,
    Verdict,
)

__all__ = [
    "PASS_AT",
    "NotRun",
    "metrics",
    "program_hash",
    "record",
    "rule_names",
    "rules_of",
    "stored",
    "submission",
    "verdict",
    "verdicts",
]

_Ran = TypeVar("_Ran", Executed, Observed)

PASS_AT = (1, 10, 100)
"""The k of pass@k, as far as there are so many repeats."""


class NotRun(Exception):
    """A rule needs to know what became of a program or step that has not been run."""


def rule_names(task: Task) -> list[str]:
    """Return the rules that read a task's text outputs, in the order of the tables."""
    return [*task.rules, *task.programs, *task.checks]


def rules_of(task: Task, protocol: Protocol) -> list[str]:
    """Return the rules that score this protocol's outputs, the headline first."""
    if protocol.rule == "choice":
        return ["choice"]
    return [protocol.rule, *(name for name in rule_names(task) if name != protocol.rule)]


def program_hash(program: Execute) -> str:
    """Return the hash that tells a sample's programs apart: source, and the name of the test.

    Without the test itself, which may be too large to stand in a record.
    """
    return checksum([program.source, program.tests])


def verdict(task: Task, rule: str, sample: Sample, text: str, answers: Sequence[Answer]) -> Verdict | None:
    """Return the verdict of one rule on an output, None where it says nothing of this sample.

    `answers` are all of the dialogue, with those to what the rules asked behind it. Raises NotRun where a program or
    step that the rule needs has not been run.
    """
    if rule in task.rules:
        return task.rules[rule](text, sample)
    if rule in task.programs:
        program = task.programs[rule](text, sample)
        ran = {each.program: each for each in answers if isinstance(each, Executed)}
        return Verdict(_found(ran, program_hash(program)).passed, program.source)
    check = task.checks[rule]
    request = check.request(text, sample, _of_dialogue(task, text, sample, answers))
    if request is None:
        return check.verdict(text, sample, None)
    asked = request_hash(request)
    if isinstance(request, Cell):
        seen = {each.cell: each for each in answers if isinstance(each, Observed)}
        return check.verdict(text, sample, _found(seen, asked))
    found = [each for each in answers if isinstance(each, Judged) and each.judged == asked]
    return check.verdict(text, sample, found[-1]) if found else None


def _found(answers: Mapping[str, _Ran], asked: str) -> _Ran:
    if asked not in answers:
        raise NotRun(asked)
    return answers[asked]


def _of_dialogue(task: Task, text: str, sample: Sample, answers: Sequence[Answer]) -> Sequence[Answer]:
    """Return the answers that belong to the dialogue itself: without those to what the rules asked behind it."""
    requests = [check.request(text, sample, ()) for check in task.checks.values()]
    cells = {request_hash(request) for request in requests if isinstance(request, Cell)}
    end = len(answers)
    while end:
        last = answers[end - 1]
        if not (isinstance(last, Judged | Executed) or (isinstance(last, Observed) and last.cell in cells)):
            break
        end -= 1
    return answers[:end]


def verdicts(task: Task, sample: Sample, answer: Answer, answers: Sequence[Answer] = ()) -> dict[str, Verdict]:
    """Return the verdict of every rule that reads this kind of answer and applies; `answers` are all of a dialogue."""
    if isinstance(answer, Chosen):
        return {"choice": most_likely(answer.logprobs, sample.gold, task.letters)}
    if isinstance(answer, Generated):
        found = {rule: verdict(task, rule, sample, answer.text, answers) for rule in rule_names(task)}
        return {rule: each for rule, each in found.items() if each is not None}
    return {}


def stored(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as records and lines hold it: what only some rules give is left out where it is not given."""
    found: dict[str, Any] = {"extracted": verdict.extracted, "correct": verdict.correct}
    if verdict.value is not None:
        found["value"] = verdict.value
    if verdict.steps != 1:
        found["steps"] = verdict.steps
    if verdict.measures:
        found["measures"] = {name: list(values) for name, values in verdict.measures.items()}
    return found


def record(
    task: Task,
    sample: Sample,
    answer: Answer,
    answers: Sequence[Answer],
    *,
    repeat: int,
    doc_hash: str,
    prompt_hash: str,
) -> dict[str, Any]:
    """Return one line of records.jsonl: the sample, every answer of its dialogue, every rule's verdict on the output.

    The output is the last text of the dialogue; where it is another (a whole transcript), it stands under "scored".
    """
    said = next((each for each in reversed(answers) if isinstance(each, Generated)), None)
    composed = {"scored": answer.text} if isinstance(answer, Generated) and said and said.text != answer.text else {}
    return {
        "doc_id": sample.id,
        "repeat": repeat,
        "group": sample.group,
        "doc": {name: value for name, value in sample.row.items() if name not in task.unrecorded},
        "target": sample.gold,
        "doc_hash": doc_hash,
        "prompt_hash": prompt_hash,
        "outputs": [_shown(each) for each in answers],
        **composed,
        "verdicts": {name: stored(each) for name, each in verdicts(task, sample, answer, answers).items()},
    }


def _shown(answer: Answer) -> dict[str, Any]:
    """Return an answer as records hold it: of an image only its hash, the image itself is in answers.jsonl."""
    found = asdict(answer)
    if isinstance(answer, Observed):
        found["messages"] = [
            {"kind": each.kind, "text": f"sha256:{checksum(each.text)}" if each.kind == "image" else each.text}
            for each in answer.messages
        ]
    return found


def metrics(task: Task, protocol: Protocol, records: Sequence[Mapping[str, Any]], *, errors: int) -> dict[str, Any]:
    """Return the aggregate of a run's records: score of every rule with its 95 % interval, counts, groups, categories.

    `n`, `ungraded` and `bad_golds` count items; all other counts are of answers, `repeats` of them an item. The score
    of an item is the mean over its repeats. Scores are fractions; the protocol says whether they are means over items
    (micro) or over groups (macro), and the other one of the whole stands beside it. Where a sample ended in an error,
    or its gold is not known, there is no score at all, only counts: what is left is another set of samples. A code task
    has its `pass_at` k beside the score, which is pass@1. A rule that does not apply to every sample counts those it
    applies to; `measures` are the other numbers it gives, each over the steps that it is about. Perplexity is no score
    between 0 and 1: it stands apart, by length.
    """
    items = list(_by("doc_id", records).values())
    ungraded = sum(not each[0]["target"] for each in items)
    nothing = {"score": None, "low": None, "high": None}

    def part(members: Sequence[Mapping[str, Any]], rule: str, average: str) -> dict[str, Any]:
        members = [each for each in members if rule in each["verdicts"]]
        if not members:
            return {"correct": 0, "n": 0, **nothing}
        found = _macro(members, rule) if average == "macro" else _micro(members, rule)
        measures = _measures(task, members, rule)
        if errors or ungraded:
            found |= nothing
            measures = {name: each | nothing for name, each in measures.items()}
        return found | ({"measures": measures} if measures else {})

    headline, average = protocol.rule, protocol.average
    rules = {rule: part(records, rule, average) for rule in rules_of(task, protocol) if records}
    whole = rules.get(headline, nothing)
    return {
        "rule": headline,
        "score": whole["score"],
        "low": whole["low"],
        "high": whole["high"],
        "average": average,
        "micro": part(records, headline, "micro") if records else None,
        "macro": part(records, headline, "macro") if any(each["group"] for each in records) else None,
        "n": len(items),
        "repeats": max(map(len, items), default=1),
        "errors": errors,
        "ungraded": ungraded,
        "bad_golds": sum(each[0]["doc_id"] in task.bad_golds for each in items),
        "unparsed": sum(each["verdicts"].get(headline, {}).get("extracted") is None for each in records),
        "truncated": sum(_finish(each) == "length" for each in records),
        "empty": sum(_is_empty(each) for each in records),
        "cut": sum(any(output.get("cut_tokens") for output in each["outputs"]) for each in records),
        "rules": rules,
        **({"perplexity": {} if errors else by_length(records)} if headline == "perplexity" else {}),
        **({"measures": [asdict(each) for each in task.measures]} if task.measures else {}),
        **({"pass_at": _pass_at(items, headline, withheld=bool(errors or ungraded))} if task.programs else {}),
        "groups": {
            group: part(members, headline, "micro") for group, members in _by("group", records).items() if group
        },
        "categories": {
            category: part(members, headline, average)
            for category, subjects in task.categories.items()
            if (members := [each for each in records if each["group"] in subjects])
        },
    }


def submission(task: Task, protocol: Protocol, records: Sequence[Mapping[str, Any]]) -> object | None:
    """Return what a leaderboard takes, of the first repeat; None for a task without one."""
    if task.submission is None:
        return None
    first = [each for each in records if not each.get("repeat")]
    return task.submission({each["doc_id"]: each["verdicts"][protocol.rule]["extracted"] for each in first})


def _micro(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
    """The mean over items."""
    return {**_counts(records, rule), **_estimate(_values(records, rule))}


def _macro(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
    """The unweighted mean over groups."""
    groups = [_mean(_values(members, rule)) for members in _by("group", records).values()]
    score = sum(mean for mean, _ in groups) / len(groups)
    low, high = wilson(score, effective_size([size for _, size in groups]))
    return {**_counts(records, rule), "score": score, "low": low, "high": high}


def _counts(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, int]:
    """How many answers are correct, of how many items."""
    right = sum(each["verdicts"][rule]["correct"] for each in records)
    return {"correct": right, "n": len({each["doc_id"] for each in records})}


_Item = list[tuple[float, ...]]
"""One item: for each of its repeats the values of its scored steps."""


def _values(records: Sequence[Mapping[str, Any]], rule: str) -> list[_Item]:
    """The scores of every item. One that is the mean of several steps stands for as many."""
    return [
        [(value_of(verdict),) * verdict.get("steps", 1) for each in item for verdict in [each["verdicts"][rule]]]
        for item in _by("doc_id", records).values()
    ]


def _measures(task: Task, records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, dict[str, Any]]:
    """The further numbers of a rule by name, each over the items that have it; `n` counts their steps, once an item."""
    items: dict[str, list[_Item]] = {measure.name: [] for measure in task.measures}
    weights = {measure.name: measure.weights for measure in task.measures}
    steps = Counter[str]()
    for item in _by("doc_id", records).values():
        found: dict[str, _Item] = {}
        for each in item:
            for name, values in each["verdicts"][rule].get("measures", {}).items():
                found.setdefault(name, []).append(tuple(values))
        for name, values in found.items():
            steps[name] += len(values[0])
            times = weights.get(name, {}).get(item[0]["group"], 1)
            items.setdefault(name, []).append([each * times for each in values])
    return {name: {"n": steps[name], **_estimate(each)} for name, each in items.items() if each}


def _estimate(items: Sequence[_Item]) -> dict[str, float]:
    """Return a mean with its interval: that of counts where every item is one step, right or wrong, asked once."""
    score, size = _mean(items)
    single = all(len(item) == 1 and len(item[0]) == 1 and item[0][0] in (0, 1) for item in items)
    low, high = interval(round(score * len(items)), len(items)) if single else wilson(score, size)
    return {"score": score, "low": low, "high": high}


def _mean(items: Sequence[_Item]) -> tuple[float, float]:
    """Return the mean over all steps, and how many items asked once it is worth.

    The steps of an item are a cluster, taken as wholly alike: items that weigh differently are worth fewer (Kish 1965,
    section 8.2). Values between 0 and 1 vary less than right and wrong do with the same mean, so the interval of counts
    is never too narrow for them.
    """
    weights = [sum(map(len, item)) / len(item) for item in items]
    values = [value for item in items for each in item for value in each]
    means = [sum(map(sum, item)) / sum(map(len, item)) for item in items]
    size = effective_size_of_repeats(means, max(map(len, items)))
    uneven = sum(weights) ** 2 / sum(weight**2 for weight in weights) / len(items)
    return math.fsum(values) / len(values), size * uneven


def _pass_at(
    items: Sequence[Sequence[Mapping[str, Any]]], rule: str, *, withheld: bool
) -> dict[str, dict[str, float | None]]:
    """Return pass@k and its interval, for every k up to the number of repeats that all items have."""
    counts = [(len(item), sum(each["verdicts"][rule]["correct"] for each in item)) for item in items]
    fewest = min((total for total, _ in counts), default=0)
    return {
        str(k): dict(zip(("score", "low", "high"), (None,) * 3 if withheld else pass_at_k(counts, k), strict=True))
        for k in PASS_AT
        if k <= fewest
    }


def _by(field: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in records:
        found.setdefault(each[field], []).append(each)
    return dict(sorted(found.items()))


def _finish(record: Mapping[str, Any]) -> str | None:
    finish: str | None = output_of(record).get("finish")
    return finish


def _is_empty(record: Mapping[str, Any]) -> bool:
    text = output_of(record).get("text")
    return text is not None and not text.strip()
