"""From answers to verdicts, and from verdicts to metrics. The same code for a run and for rescoring."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwen_eval.results import checksum
from qwen_eval.scorers.choice import most_likely
from qwen_eval.stats import effective_size, effective_size_of_repeats, interval, pass_at_k, wilson
from qwen_eval.task import Answer, Chosen, Execute, Executed, Generated, Protocol, Sample, Task, Verdict

__all__ = [
    "PASS_AT",
    "metrics",
    "program_hash",
    "record",
    "rule_names",
    "rules_of",
    "submission",
    "verdict",
    "verdicts",
]

PASS_AT = (1, 10, 100)
"""The k of pass@k, as far as there are so many repeats."""


def rule_names(task: Task) -> list[str]:
    """Return the rules that read a task's text outputs, in the order of the tables."""
    return [*task.rules, *task.programs]


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


def verdict(task: Task, rule: str, sample: Sample, text: str, ran: Mapping[str, Executed]) -> Verdict:
    """Return the verdict of one rule on an output. `ran` has what became of its programs, by `program_hash`.

    Raises KeyError where the program that the rule finds has not been run.
    """
    if rule in task.rules:
        return task.rules[rule](text, sample)
    program = task.programs[rule](text, sample)
    return Verdict(ran[program_hash(program)].passed, program.source)


def verdicts(task: Task, sample: Sample, answer: Answer, answers: Sequence[Answer] = ()) -> dict[str, Verdict]:
    """Return the verdict of every rule that can read this kind of answer; `answers` are all of the dialogue."""
    if isinstance(answer, Chosen):
        return {"choice": most_likely(answer.logprobs, sample.gold, task.letters)}
    if isinstance(answer, Generated):
        ran = {each.program: each for each in answers if isinstance(each, Executed)}
        return {rule: verdict(task, rule, sample, answer.text, ran) for rule in rule_names(task)}
    return {}


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
    """Return one line of records.jsonl: the sample, every answer of its dialogue, every rule's verdict on the last."""
    return {
        "doc_id": sample.id,
        "repeat": repeat,
        "group": sample.group,
        "doc": {name: value for name, value in sample.row.items() if name not in task.unrecorded},
        "target": sample.gold,
        "doc_hash": doc_hash,
        "prompt_hash": prompt_hash,
        "outputs": [asdict(each) for each in answers],
        "verdicts": {name: asdict(each) for name, each in verdicts(task, sample, answer, answers).items()},
    }


def metrics(task: Task, protocol: Protocol, records: Sequence[Mapping[str, Any]], *, errors: int) -> dict[str, Any]:
    """Return the aggregate of a run's records: score of every rule with its 95 % interval, counts, groups, categories.

    `n`, `ungraded` and `bad_golds` count items; all other counts are of answers, `repeats` of them an item. The score
    of an item is the mean over its repeats. Scores are fractions; the protocol says whether they are means over items
    (micro) or over groups (macro), and the other one of the whole stands beside it. Where a sample ended in an error,
    or its gold is not known, there is no score at all, only counts: what is left is another set of samples. A code task
    has its `pass_at` k beside the score, which is pass@1.
    """
    items = list(_by("doc_id", records).values())
    ungraded = sum(not each[0]["target"] for each in items)
    withheld = bool(errors or ungraded)

    def part(members: Sequence[Mapping[str, Any]], rule: str, average: str) -> dict[str, Any]:
        found = _macro(members, rule) if average == "macro" else _micro(members, rule)
        return found | {"score": None, "low": None, "high": None} if withheld else found

    headline, average = protocol.rule, protocol.average
    rules = {rule: part(records, rule, average) for rule in rules_of(task, protocol) if records}
    whole = rules.get(headline, {"score": None, "low": None, "high": None})
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
        "unparsed": sum(each["verdicts"][headline]["extracted"] is None for each in records),
        "truncated": sum(_finish(each) == "length" for each in records),
        "empty": sum(_is_empty(each) for each in records),
        "cut": sum(any(output.get("cut_tokens") for output in each["outputs"]) for each in records),
        "rules": rules,
        **({"pass_at": _pass_at(items, headline, withheld=withheld)} if task.programs else {}),
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
    """The mean over items. Where each was asked once the interval is that of counts."""
    score, size, counts = _mean(records, rule)
    once = len(records) == counts["n"]
    low, high = interval(counts["correct"], counts["n"]) if once else wilson(score, size)
    return {**counts, "score": score, "low": low, "high": high}


def _macro(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
    """The unweighted mean over groups."""
    groups = [_mean(members, rule) for members in _by("group", records).values()]
    score = sum(mean for mean, _, _ in groups) / len(groups)
    low, high = wilson(score, effective_size([size for _, size, _ in groups]))
    _, _, counts = _mean(records, rule)
    return {**counts, "score": score, "low": low, "high": high}


def _mean(records: Sequence[Mapping[str, Any]], rule: str) -> tuple[float, float, dict[str, int]]:
    """Return the mean over items, their effective size, and how many answers are correct of how many items."""
    correct = [[each["verdicts"][rule]["correct"] for each in item] for item in _by("doc_id", records).values()]
    size = effective_size_of_repeats([sum(item) / len(item) for item in correct], max(map(len, correct)))
    total = sum(map(sum, correct))
    return total / len(records), size, {"correct": total, "n": len(correct)}


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


def _said(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last output that is a model's."""
    outputs: Sequence[Mapping[str, Any]] = record["outputs"]
    return next((output for output in reversed(outputs) if "program" not in output), {})


def _finish(record: Mapping[str, Any]) -> str | None:
    finish: str | None = _said(record).get("finish")
    return finish


def _is_empty(record: Mapping[str, Any]) -> bool:
    text = _said(record).get("text")
    return text is not None and not text.strip()
