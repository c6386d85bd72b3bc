"""`python -m qwen_eval score`: apply a task's rules to outputs that exist already. No model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from qwen_eval import registry
from qwen_eval.commands.options import data_dir, include_path, option
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import DataError, StoreError, UsageError, did_you_mean
from qwen_eval.task import Sample, Task, Verdict

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
    """Score outputs: a line {"id", "rule", "extracted", "correct"} for every output and rule, in input order.

    For a run that asked every item several times, a line also carries its "repeat".
    """
    from tqdm import tqdm

    name, protocol = registry.split_name(task)
    entry = registry.load(name, registry.find(include_path))
    if protocol:
        registry.protocol(entry.task, protocol)
    rules = _rules(entry.task, [each for names in rule for each in names.split(",")])
    if target.resolve() == source.resolve():
        raise UsageError(f"--output {target}: expected another file than --input.")
    outputs = list(_of_run(entry.task, source) if source.is_dir() else _of_file(entry, source, data_dir))
    verdicts = [
        (place, each, entry.task.rules[each](output, sample))
        for place, output, sample in tqdm(outputs, desc=name, unit="output", delay=2)
        for each in rules
    ]
    if not verdicts:
        raise DataError(f"{source}: expected outputs to score, found none.")
    _write(target, verdicts)
    count = len(verdicts) // len(rules)
    for each in rules:
        right = sum(verdict.correct for _, rule_name, verdict in verdicts if rule_name == each)
        click.echo(f"{name}, {each}: {right:,} of {count:,} correct ({100 * right / count:.1f} %)", err=True)


def _write(target: Path, verdicts: Sequence[tuple[dict[str, Any], str, Verdict]]) -> None:
    """Write the verdicts whole or not at all; a device or a pipe is written directly."""
    import jsonlines

    direct = target.exists() and not target.is_file()
    partial = target if direct else target.with_name(f".{target.name}.partial")
    try:
        with jsonlines.open(partial, "w") as out:
            for place, rule, verdict in verdicts:
                out.write({**place, "rule": rule, "extracted": verdict.extracted, "correct": verdict.correct})
        if not direct:
            partial.replace(target)
    except OSError as error:
        raise UsageError(f"--output {target}: cannot be written ({error.strerror}).") from None


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


def _of_run(task: Task, run: Path) -> Iterator[tuple[dict[str, Any], str, Sample]]:
    """Yield id (and repeat, where there are several), output and sample of every record of a finished run.

    The records hold the items it was run on, so no data is needed.
    """
    from qwen_eval.results import read_metrics, read_records

    metrics = read_metrics(run)
    if metrics["task"] != task.name:
        raise UsageError(f"{run}: expected a run of {task.name}, found one of {metrics['task']}.")
    repeated = metrics.get("repeats", 1) > 1
    for number, record in enumerate(read_records(run), 1):
        try:
            text = record["outputs"][-1].get("text")
            sample = Sample(record["doc_id"], record["doc"], record["target"], record["group"])
            place = {"id": sample.id} | ({"repeat": record["repeat"]} if repeated else {})
        except (KeyError, IndexError):
            raise StoreError(
                f"{run / 'records.jsonl'}, line {number}: expected a record, found another object."
            ) from None
        if text is None:
            raise UsageError(f"{run}: this run compared log-probabilities; it has no text outputs to score.")
        yield place, text, sample


def _of_file(entry: registry.Entry, file: Path, data_dir: Path | None) -> Iterator[tuple[dict[str, Any], str, Sample]]:
    """Yield id, output and sample of every line of a JSON-lines file."""
    import json

    from qwen_eval.readers import read_text

    samples = _Samples(entry, data_dir)
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: expected one JSON object, found something else ({error}).") from None
        identified = isinstance(row, dict) and isinstance(row.get("id"), str | int)
        if not identified or not isinstance(row.get("output"), str):
            raise DataError(f'{where}: expected {{"id": …, "output": "text"}}, found {line[:80]}')
        yield {"id": row["id"]}, row["output"], samples.of(row, where)


class _Samples:
    """Finds a row's sample by its id, reading the dataset only when it is needed and split by split."""

    def __init__(self, entry: registry.Entry, data_dir: Path | None) -> None:
        self.entry = entry
        self.data_dir = data_dir
        self.known: dict[str, Sample] = {}
        self.unread = list(entry.task.data.splits if entry.task.letters else entry.task.splits)
        self.dataset: Dataset | None = None

    def of(self, row: dict[str, Any], where: str) -> Sample:
        """Return the sample, with the row's own gold where it has one. Raises DataError for a bad id or gold."""
        identifier, gold = str(row["id"]), row.get("gold")
        letters = self.entry.task.letters
        if gold is not None:
            if not isinstance(gold, str | int | float) or not str(gold).strip() or (letters and gold not in letters):
                wanted = f"one of {', '.join(letters)}" if letters else "text or a number"
                raise DataError(f"{where}: expected {wanted} as gold, found {gold!r}.")
            if not letters:
                # A rule over numbers or text needs nothing of the sample but its gold.
                return Sample(identifier, {}, str(gold))
        while identifier not in self.known and self.unread:
            self._read(self.unread.pop(0))
        if identifier not in self.known:
            origin = self.dataset.origin if self.dataset else ""
            raise DataError(
                f"{where}: id '{identifier}' is no sample of {self.entry.task.name} ({origin}).\n"
                f"Next: give ids like '{next(iter(self.known), '')}', as in the doc_id of records.jsonl."
            )
        sample = self.known[identifier] if gold is None else replace(self.known[identifier], gold=str(gold))
        if not sample.gold:
            raise DataError(
                f"{where}: the answer of '{identifier}' is not in this copy of the data; give it as \"gold\"."
            )
        return sample

    def _read(self, split: str) -> None:
        if self.dataset is None:
            # Never the small set: its ids are also ids of the real data, with other golds.
            self.dataset = find_dataset(
                self.entry.task.data, tasks=self.entry.folder, data_dir=self.data_dir, allow_mini=False, say=_say
            )
        self.known |= {sample.id: sample for sample in self.entry.task.samples(self.dataset, split)}
        for warning in self.dataset.warnings:
            _say(f"Warning: {warning}")


def _say(line: str) -> None:
    click.echo(line, err=True)
