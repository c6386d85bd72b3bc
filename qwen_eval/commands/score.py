"""`python -m qwen_eval score`: apply a task's rules to outputs that exist already. No model.

Where a rule has code run, that of a file is run in the sandbox; what became of a run's is in its answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from qwen_eval import registry
from qwen_eval.commands.options import data_dir, include_path, option, sandbox_options
from qwen_eval.data import Dataset, find_dataset, mini_dataset
from qwen_eval.errors import DataError, IncompleteError, StoreError, UsageError, did_you_mean
from qwen_eval.results import checksum, value_of
from qwen_eval.scoring import NotRun, rule_names, stored, verdict
from qwen_eval.task import Answer, Cell, Execute, Failed, Sample, Task, Verdict

__all__ = ["score"]


@dataclass(frozen=True)
class Output:
    """One output: what its lines carry (id, repeat), its text, its sample, the answers of its dialogue."""

    place: dict[str, Any]
    text: str
    sample: Sample
    answers: list[Answer] = field(default_factory=list)


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
@option(
    "--split",
    metavar="NAME",
    help="Where the ids of a FILE are looked up. Default: the protocol's, else every split in turn.",
)
@sandbox_options
@data_dir
@include_path
def score(
    *,
    task: str,
    rule: Sequence[str],
    source: Path,
    target: Path,
    split: str | None,
    judge: str,
    container: str,
    unsafe_exec: bool,
    data_dir: Path | None,
    include_path: Sequence[Path],
) -> None:
    """Score outputs: a line {"id", "rule", "extracted", "correct"} for every output and rule, in input order.

    For a run that asked every item several times, a line also carries its "repeat". For a code task "extracted" is the
    program, which is run in the sandbox. For code, tools and agents "gold" has no say: the item decides.
    """
    from tqdm import tqdm

    name, protocol = registry.split_name(task)
    entry = registry.load(name, registry.find(include_path))
    if protocol:
        registry.protocol(entry.task, protocol)
    rules = _rules(entry.task, [each for names in rule for each in names.split(",")])
    if target.resolve() == source.resolve():
        raise UsageError(f"--output {target}: expected another file than --input.")
    if source.is_dir():
        outputs = list(_of_run(entry, source, data_dir))
    else:
        own = registry.protocol(entry.task, protocol).split if protocol else ""
        outputs = list(_of_file(entry, source, data_dir, split or own or None))
        _run_code(entry.task, rules, outputs, judge=judge, walls={"container": container, "unsafe": unsafe_exec})
    found = [
        (output, each, _verdict(entry.task, each, output))
        for output in tqdm(outputs, desc=name, unit="output", delay=2)
        for each in rules
    ]
    if not found:
        raise DataError(f"{source}: expected outputs to score, found none.")
    verdicts = [(output, each, verdict) for output, each, verdict in found if verdict is not None]
    _write(target, [(output.place, each, verdict) for output, each, verdict in verdicts])
    for each in rules:
        of_rule = [(output.sample.group, verdict) for output, rule_name, verdict in verdicts if rule_name == each]
        if not of_rule:
            click.echo(f"{name}, {each}: says nothing of these outputs.", err=True)
            continue
        click.echo(f"{name}, {each}: {_summary(entry.task, of_rule)}", err=True)


def _summary(task: Task, found: Sequence[tuple[str, Verdict]]) -> str:
    """Say what a rule made of all outputs: how many are right, the score where that is another, the measures.

    A verdict stands with its sample's group.
    """
    verdicts = [verdict for _, verdict in found]
    right, count = sum(each.correct for each in verdicts), len(verdicts)
    words = [f"{right:,} of {count:,} correct ({100 * right / count:.1f} %)"]
    if any(each.value is not None for each in verdicts):
        steps = sum(each.steps for each in verdicts)
        score = sum(value_of(stored(each)) * each.steps for each in verdicts) / steps
        words.append(f"score {100 * score:.1f} %")
    for measure in task.measures:
        values = [
            (value, measure.weights.get(group, 1))
            for group, each in found
            for value in each.measures.get(measure.name, ())
        ]
        if values:
            mean = measure.scale * sum(value * times for value, times in values) / sum(times for _, times in values)
            words.append(f"{measure.name} {mean:.1f} %" if measure.scale == 100 else f"{measure.name} {mean:.3f}")
    return ", ".join(words)


def _write(target: Path, verdicts: Sequence[tuple[dict[str, Any], str, Verdict]]) -> None:
    """Write the verdicts whole or not at all; a device or a pipe is written directly."""
    import jsonlines

    direct = target.exists() and not target.is_file()
    partial = target if direct else target.with_name(f".{target.name}.partial")
    try:
        with jsonlines.open(partial, "w") as out:
            for place, rule, verdict in verdicts:
                out.write({**place, "rule": rule, **stored(verdict)})
        if not direct:
            partial.replace(target)
    except OSError as error:
        raise UsageError(f"--output {target}: cannot be written ({error.strerror}).") from None


def _verdict(task: Task, rule: str, output: Output) -> Verdict | None:
    try:
        return verdict(task, rule, output.sample, output.text, output.answers)
    except NotRun:
        raise StoreError(
            f"{output.place['id']}: the code that rule {rule} finds in this output has not been run.\n"
            "Next: the same `run` command again runs it; no model is asked."
        ) from None


def _run_code(
    task: Task, rules: Sequence[str], outputs: Sequence[Output], *, judge: str, walls: Mapping[str, Any]
) -> None:
    """Run every distinct program and step that a rule finds in an output, and keep what became of it.

    Raises SandboxError, and IncompleteError where the sandbox failed.
    """
    from tqdm import tqdm

    from qwen_eval import sandbox
    from qwen_eval.runner import answer_of, program_of, step_of

    wanted = [
        (output, request)
        for output in outputs
        for request in dict.fromkeys(_code(task, rule, output) for rule in rules)
        if request is not None
    ]
    kinds = {type(request) for _, request in wanted}
    with ExitStack() as stack, tqdm(total=len(wanted), desc=task.name, unit="program", delay=2) as bar:
        programs = stack.enter_context(sandbox.Sandbox(judge=judge, **walls)) if Execute in kinds else None
        sessions = stack.enter_context(sandbox.Sessions(**walls)) if Cell in kinds else None
        for ticket, (_, request) in enumerate(wanted):
            if isinstance(request, Execute) and programs:
                programs.submit(ticket, program_of(request))
            elif isinstance(request, Cell) and sessions:
                sessions.submit(ticket, step_of(ticket, request))
        for box in (programs, sessions):
            while box and (outcomes := box.collect()):
                for ticket, outcome in outcomes:
                    output, request = wanted[ticket]
                    answer = answer_of(request, outcome)
                    if isinstance(answer, Failed):
                        raise IncompleteError(f"{output.place['id']}: its code could not be run ({answer.reason}).")
                    output.answers.append(answer)
                    bar.update(1)
                    if sessions:
                        sessions.close(ticket)


def _code(task: Task, rule: str, output: Output) -> Execute | Cell | None:
    """Return what a rule has run of an output, None for nothing."""
    if rule in task.programs:
        return task.programs[rule](output.text, output.sample)
    found = task.checks[rule].request(output.text, output.sample, ()) if rule in task.checks else None
    return found if isinstance(found, Cell) else None


def _rules(task: Task, wanted: Sequence[str]) -> list[str]:
    known = rule_names(task)
    if not known:
        raise UsageError(f"{task.name} has no text outputs to score.")
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"Unknown rule '{name}' of {task.name}.{did_you_mean(name, known)}\n"
                f"{task.name} has: {', '.join(known)}."
            )
    return list(dict.fromkeys(wanted)) or known


def _of_run(entry: registry.Entry, run: Path, data_dir: Path | None) -> Iterator[Output]:
    """Yield the output of every record of a finished run, with the repeat where there are several.

    The records hold the items it was run on, so no data is needed, but where a check needs a column that they lack.
    """
    from qwen_eval.results import read_answers, read_metrics, read_records, scored_text

    task, metrics = entry.task, read_metrics(run)
    if metrics["task"] != task.name:
        raise UsageError(f"{run}: expected a run of {task.name}, found one of {metrics['task']}.")
    repeated = metrics.get("repeats", 1) > 1
    answers: dict[tuple[str, int], list[Answer]] = {}
    if (run / "answers.jsonl").is_file():  # an imported run has none
        for each in sorted(read_answers(run / "answers.jsonl")[0], key=lambda answer: answer.turn):
            answers.setdefault((each.sample, each.repeat), []).append(each.answer)
    whole = _items_of_run(entry, metrics, data_dir) if task.checks and task.unrecorded else {}
    for number, record in enumerate(read_records(run), 1):
        try:
            text = scored_text(record)
            sample = Sample(record["doc_id"], record["doc"], record["target"], record["group"])
            place = {"id": sample.id} | ({"repeat": record["repeat"]} if repeated else {})
        except (KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{run / 'records.jsonl'}, line {number}: expected a record, found another object."
            ) from None
        if whole:
            sample = whole.get(sample.id, sample)
            if checksum(dict(sample.row)) != record["doc_hash"]:
                raise DataError(
                    f"{run}: item {sample.id} is not in this copy of the data as it was run.\n"
                    "Next: give the data that it was run on with --data-dir."
                )
        if text is None:
            raise UsageError(f"{run}: this run compared log-probabilities; it has no text outputs to score.")
        yield Output(place, text, sample, answers.get((sample.id, record.get("repeat", 0)), []))


def _items_of_run(entry: registry.Entry, metrics: Mapping[str, Any], data_dir: Path | None) -> dict[str, Sample]:
    """Return the items of a run's split, whole, from the data that it was run on. Raises DataError."""
    spec = entry.task.data
    if metrics["mini"]:
        dataset = mini_dataset(spec, entry.folder)
    else:
        dataset = find_dataset(spec, tasks=entry.folder, data_dir=data_dir, allow_mini=False, say=_say)
    return {sample.id: sample for sample in entry.task.samples(dataset, metrics["split"])}


def _of_file(entry: registry.Entry, file: Path, data_dir: Path | None, split: str | None) -> Iterator[Output]:
    """Yield the output of every line of a JSON-lines file."""
    import json

    from qwen_eval.readers import read_text

    samples = _Samples(entry, data_dir, split)
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
        yield Output({"id": row["id"]}, row["output"], samples.of(row, where))


class _Samples:
    """Finds a row's sample by its id, reading the dataset only when it is needed and split by split."""

    def __init__(self, entry: registry.Entry, data_dir: Path | None, split: str | None) -> None:
        self.entry = entry
        self.data_dir = data_dir
        self.known: dict[str, Sample] = {}
        known = list(entry.task.data.splits if entry.task.letters else entry.task.splits)
        if split is not None and split not in known:
            raise UsageError(f"--split {split}: {entry.task.name} has {', '.join(known)}.{did_you_mean(split, known)}")
        self.unread = known if split is None else [split]
        self.dataset: Dataset | None = None
        self.whole = bool(entry.task.programs or entry.task.checks or entry.task.measures)

    def of(self, row: dict[str, Any], where: str) -> Sample:
        """Return the sample, with the row's own gold where it has one. Raises DataError for a bad id or gold."""
        identifier = str(row["id"])
        gold = None if self.whole else row.get("gold")
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
