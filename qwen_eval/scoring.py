"""From answers to verdicts, and from verdicts to metrics. The same code for a run and for rescoring."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwen_eval.scorers.choice import most_likely
from qwen_eval.stats import effective_size, effective_size_of_repeats, wilson
from qwen_eval.task import Answer, Chosen, Generated, Protocol, Sample, Task, Verdict

__all__ = ["metrics", "record", "rules_of", "submission", "verdicts"]


def rules_of(task: Task, protocol: Protocol) -> list[str]:
    """Return the rules that score this protocol's outputs, the headline first."""
    if protocol.rule == "choice":
        return ["choice"]
    return [protocol.rule, *(name for name in task.rules if name != protocol.rule)]


def verdicts(task: Task, sample: Sample, answer: Answer) -> dict[str, Verdict]:
    """Return the verdict of every rule that can read this kind of answer."""
    if isinstance(answer, Chosen):
        return {"choice": most_likely(answer.logprobs, sample.gold, task.letters)}
    if isinstance(answer, Generated):
        return {name: rule(answer.text, sample) for name, rule in task.rules.items()}
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
        "doc": dict(sample.row),
        "target": sample.gold,
        "doc_hash": doc_hash,
        "prompt_hash": prompt_hash,
        "outputs": [asdict(each) for each in answers],
        "verdicts": {name: asdict(verdict) for name, verdict in verdicts(task, sample, answer).items()},
    }


def metrics(task: Task, protocol: Protocol, records: Sequence[Mapping[str, Any]], *, errors: int) -> dict[str, Any]:
    """Return the aggregate of a run's records: score of every rule with its 95 % interval, counts, groups, categories.

    `n`, `ungraded` and `bad_golds` count items; all other counts are of answers, `repeats` of them an item. The score
    of an item is the mean over its repeats. Scores are fractions; the protocol says whether they are means over items
    (micro) or over groups (macro), and the other one of the whole stands beside it. Where a sample ended in an error,
    or its gold is not known, there is no score at all, only counts: what is left is another set of samples.
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
    score, size, counts = _mean(records, rule)
    low, high = wilson(score, size)
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


def _by(field: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in records:
        found.setdefault(each[field], []).append(each)
    return dict(sorted(found.items()))


def _finish(record: Mapping[str, Any]) -> str | None:
    finish: str | None = record["outputs"][-1].get("finish")
    return finish


def _is_empty(record: Mapping[str, Any]) -> bool:
    text = record["outputs"][-1].get("text")
    return text is not None and not text.strip()
