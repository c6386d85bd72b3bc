"""From answers to verdicts, and from verdicts to metrics. The same code for a run and for rescoring."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwen_eval.scorers.choice import most_likely
from qwen_eval.stats import wilson
from qwen_eval.task import Answer, Chosen, Generated, Protocol, Sample, Task, Verdict

__all__ = ["metrics", "record", "rules_of", "verdicts"]


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
    task: Task, sample: Sample, answer: Answer, answers: Sequence[Answer], *, doc_hash: str, prompt_hash: str
) -> dict[str, Any]:
    """Return one line of records.jsonl: the sample, every answer of its dialogue, every rule's verdict on the last."""
    return {
        "doc_id": sample.id,
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

    Scores are fractions. Where a sample ended in an error there is no score at all, only counts: what is left is
    another set of samples.
    """
    headline = protocol.rule

    def proportion(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
        part = _proportion(records, rule)
        return part | {"score": None, "low": None, "high": None} if errors else part

    rules = {rule: proportion(records, rule) for rule in rules_of(task, protocol) if records}
    groups = {group: proportion(members, headline) for group, members in _by_group(records).items() if group}
    categories = {
        category: proportion([each for each in records if each["group"] in subjects], headline)
        for category, subjects in task.categories.items()
        if any(each["group"] in subjects for each in records)
    }
    macro = sum(group["score"] for group in groups.values()) / len(groups) if groups and not errors else None
    score = macro if task.average == "macro" else rules[headline]["score"] if records else None
    return {
        "rule": headline,
        "score": score,
        "average": task.average,
        "macro": macro,
        "n": len(records),
        "errors": errors,
        "unparsed": sum(each["verdicts"][headline]["extracted"] is None for each in records),
        "truncated": sum(_finish(each) == "length" for each in records),
        "empty": sum(_is_empty(each) for each in records),
        "cut": sum(any(output.get("cut_tokens") for output in each["outputs"]) for each in records),
        "rules": rules,
        "groups": groups,
        "categories": categories,
    }


def _proportion(records: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
    correct = sum(each["verdicts"][rule]["correct"] for each in records)
    low, high = wilson(correct, len(records))
    return {"correct": correct, "n": len(records), "score": correct / len(records), "low": low, "high": high}


def _by_group(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in records:
        groups.setdefault(each["group"], []).append(each)
    return dict(sorted(groups.items()))


def _finish(record: Mapping[str, Any]) -> str | None:
    finish: str | None = record["outputs"][-1].get("finish")
    return finish


def _is_empty(record: Mapping[str, Any]) -> bool:
    text = record["outputs"][-1].get("text")
    return text is not None and not text.strip()
