"""`python -m qwen_eval score`: apply a task's rules to outputs that exist already. No model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from qwen_eval import registry
from qwen_eval.commands.options import data_dir, include_path, option
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import DataError, UsageError, did_you_mean
from qwen_eval.task import Sample, Task

__all__ = ["score"]


@click.command()
@option("--task", "-t", required=True, metavar="TASK", help="The task whose rules are applied.")
@option("--rule", multiple=True, metavar="NAME", help="A rule; may be repeated. Default: every rule of the task.")
@option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|RUN",
    help='JSON lines {"id", "output", "gold" (optional)}, or a run folder.',
)
@option("--output", "target", required=True, type=click.Path(path_type=Path), metavar="FILE")
@data_dir
@include_path
def score(
    *,
    task: str,
    rule: Sequence[str],
    source: Path,
    target: Path,
    data_dir: Path | None,
    include_path: Sequence[Path],
) -> None:
    """Score outputs: a line {"id", "rule", "extracted", "correct"} for every output and rule, in input order."""
    import jsonlines

    name, _ = registry.split_name(task)
    entry = registry.load(name, registry.find(include_path))
    rules = _rules(entry.task, rule)
    samples = _Samples(entry, data_dir)
    right = dict.fromkeys(rules, 0)
    count = 0
    try:
        with jsonlines.open(target, "w") as out:
            for where, row in _outputs(source):
                sample = samples.of(row, where)
                count += 1
                for each in rules:
                    verdict = entry.task.rules[each](row["output"], sample)
                    right[each] += verdict.correct
                    out.write(
                        {"id": row["id"], "rule": each, "extracted": verdict.extracted, "correct": verdict.correct}
                    )
    except OSError as error:
        raise UsageError(f"--output {target}: cannot be written ({error.strerror}).") from None
    for each in rules:
        share = f" ({100 * right[each] / count:.1f} %)" if count else ""
        click.echo(f"{name}, {each}: {right[each]:,} of {count:,} correct{share}", err=True)


def _rules(task: Task, wanted: Sequence[str]) -> list[str]:
    if not task.rules:
        raise UsageError(f"{task.name} has no text outputs to score.")
    for name in wanted:
        if name not in task.rules:
            raise UsageError(
                f"Unknown rule '{name}' of {task.name}.{did_you_mean(name, task.rules)}\n"
                f"{task.name} has: {', '.join(task.rules)}."
            )
    return list(dict.fromkeys(wanted)) or list(task.rules)


def _outputs(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where a row stands, and the row; a run folder gives its text outputs."""
    import json

    from qwen_eval.readers import read_text
    from qwen_eval.results import read_records

    if source.is_dir():
        for number, record in enumerate(read_records(source), 1):
            last = record["outputs"][-1]
            if "text" not in last:
                raise UsageError(f"{source}: this run compared log-probabilities; it has no text outputs to score.")
            yield f"{source}, record {number}", {"id": record["doc_id"], "output": last["text"]}
        return
    lines = read_text(source).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: expected one JSON object, found something else ({error}).") from None
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("output"), str):
            raise DataError(f'{where}: expected {{"id": …, "output": "text"}}, found {line[:80]}')
        yield where, row


class _Samples:
    """Finds a row's sample by its id, reading the dataset only when it is needed and split by split."""

    def __init__(self, entry: registry.Entry, data_dir: Path | None) -> None:
        self.entry = entry
        self.data_dir = data_dir
        self.known: dict[str, Sample] = {}
        self.unread = list(entry.task.data.splits) if len(entry.task.data.groups) else [entry.task.protocols[0].split]
        self.dataset: Dataset | None = None

    def of(self, row: dict[str, Any], where: str) -> Sample:
        """Return the sample with the row's own gold where it has one. Raises DataError for an unknown id."""
        identifier, gold = str(row["id"]), row.get("gold")
        if gold is not None and not self.entry.task.letters:
            # A rule over numbers or text needs nothing of the sample but its gold.
            return Sample(identifier, {}, str(gold))
        while identifier not in self.known and self.unread:
            self._read(self.unread.pop(0))
        if identifier not in self.known:
            origin = self.dataset.origin if self.dataset else ""
            raise DataError(f"{where}: id '{identifier}' is no sample of {self.entry.task.name} ({origin}).")
        sample = self.known[identifier]
        return sample if gold is None else replace(sample, gold=str(gold))

    def _read(self, split: str) -> None:
        if self.dataset is None:
            self.dataset = find_dataset(self.entry.task.data, tasks=self.entry.folder, data_dir=self.data_dir, say=_say)
        self.known |= {sample.id: sample for sample in self.entry.task.samples(self.dataset, split)}
        for warning in self.dataset.warnings:
            _say(f"Warning: {warning}")


def _say(line: str) -> None:
    click.echo(line, err=True)
