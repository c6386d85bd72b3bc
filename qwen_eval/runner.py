"""Samples → requests → answers → verdicts. One path for every task; it knows no benchmark.

A sample's dialogue is a generator that yields requests and receives answers. All dialogues are in flight at once; what
the run folder already holds is replayed from there, so nothing that was answered is asked twice.
"""

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from qwen_eval.data import Dataset
from qwen_eval.errors import Interrupted, StoreError, UsageError, did_you_mean
from qwen_eval.models.base import Model
from qwen_eval.results import RunFolder, StoredAnswer, checksum, request_hash
from qwen_eval.scoring import metrics, record, submission
from qwen_eval.task import Answer, Choose, Dialogue, Failed, Generate, Protocol, Request, Sample, Task

__all__ = ["Plan", "Stop", "make_plan", "run", "stop_on_signal"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be run: the samples of one task@protocol, and how each is asked.

    `total` counts the samples of the whole split; `prompts` is a hash over the first requests of all of them, so it
    does not depend on the limit.
    """

    task: Task
    protocol: Protocol
    split: str
    shots: int
    dataset: Dataset
    samples: Sequence[Sample]
    total: int
    prompts: str
    ask: Callable[[Sample], Dialogue]
    published_truncation: bool = False

    @property
    def name(self) -> str:
        """The spelling in messages: `gsm8k@qwen`, with ` (mini)` for the small shipped set."""
        return f"{self.task.name}@{self.protocol.name}{' (mini)' if self.dataset.mini else ''}"

    @property
    def folder(self) -> str:
        """The spelling in folder names: with the split where it is not the task's default."""
        split = "" if self.split == self.task.splits[0] else f"-{self.split}"
        return f"{self.task.name}@{self.protocol.name}{split}{'-mini' if self.dataset.mini else ''}"

    def first_requests(self) -> Iterator[tuple[Sample, Request]]:
        """Yield every planned sample with its first request."""
        for sample in self.samples:
            yield sample, next(self.ask(sample))

    def manifest(self) -> dict[str, Any]:
        """Return what identifies this run apart from the model."""
        return {
            "task": self.task.name,
            "protocol": self.protocol.name,
            "rule": self.protocol.rule,
            "split": self.split,
            "shots": self.shots,
            "samples": len(self.samples),
            "mini": self.dataset.mini,
            "dataset": {"name": self.task.data.name, "fingerprints": dict(self.dataset.fingerprints)},
            "prompts": self.prompts,
            "published_truncation": self.published_truncation,
        }


def make_plan(
    task: Task,
    protocol: Protocol,
    dataset: Dataset,
    *,
    split: str | None = None,
    shots: int | None = None,
    limit: int | float | None = None,
    published_truncation: bool = False,
) -> Plan:
    """Read the data, build every prompt, choose the samples. Raises UsageError for a split or shots that do not exist.

    `limit` is a number of samples, or a share of them when it is a float. Where samples have groups (subjects), a limit
    spreads over them: in equal numbers where the score is a mean over groups, in proportion to their sizes where it is
    one over items. A larger limit always contains a smaller.
    """
    split = task.splits[0] if split is None else split
    if split not in task.splits:
        meant = did_you_mean(split, task.splits)
        raise UsageError(f"--split {split}: {task.name} is evaluated on {' or '.join(task.splits)}.{meant}")
    count = protocol.shots if shots is None else shots
    if count not in protocol.shots_allowed:
        allowed = protocol.shots_allowed
        raise UsageError(
            f"--shots {count}: {task.name}@{protocol.name} is defined for "
            f"{allowed.start if len(allowed) == 1 else f'{allowed.start} to {allowed.stop - 1}'} exemplars."
        )
    samples = task.samples(dataset, split)
    build = protocol.build(dataset, count)
    cut = protocol.cut if published_truncation else None

    def ask(sample: Sample) -> Dialogue:
        asked = build(sample)
        if not isinstance(asked, Request):
            return asked
        return one_turn(replace(asked, cut=cut) if cut and isinstance(asked, Generate | Choose) else asked)

    prompts = checksum([[sample.id, request_hash(next(ask(sample)))] for sample in samples])
    chosen = _spread(samples, proportional=protocol.average == "micro")[: _limited(len(samples), limit)]
    order = {sample.id: index for index, sample in enumerate(samples)}
    return Plan(
        task=task,
        protocol=protocol,
        split=split,
        shots=count,
        dataset=dataset,
        samples=sorted(chosen, key=lambda sample: order[sample.id]),
        total=len(samples),
        prompts=prompts,
        ask=ask,
        published_truncation=published_truncation,
    )


def one_turn(request: Request) -> Dialogue:
    """The default dialogue: one request, its answer is what is scored."""
    answer = yield request
    return answer


def _limited(total: int, limit: int | float | None) -> int:
    if limit is None:
        return total
    return min(total, limit if isinstance(limit, int) else math.ceil(limit * total))


def _spread(samples: Sequence[Sample], *, proportional: bool) -> list[Sample]:
    """Order samples so that any beginning is spread over the groups, equally or in proportion to their sizes.

    Which groups come first is drawn by a hash of their names, so that a small part is no choice by alphabet or size.
    """
    sizes = Counter(sample.group for sample in samples)
    drawn = {group: int(checksum(group), 16) / 16**16 for group in sizes}
    seen: Counter[str] = Counter()
    rank = []
    for sample in samples:
        rank.append((seen[sample.group] + drawn[sample.group]) / (sizes[sample.group] if proportional else 1))
        seen[sample.group] += 1
    return [sample for _, sample in sorted(zip(rank, samples, strict=True), key=lambda pair: pair[0])]


# ---------------------------------------------------------------------------------------------------------- stopping


@dataclass
class Stop:
    """Whether the user asked to stop. `asked` is set by the first signal."""

    asked: bool = False


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[Stop]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop with the next answers; the second stops at once."""
    stop = Stop()

    def first(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        say("Stopping with the next answers; what is answered is kept. Press Ctrl-C again to stop at once.")

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------------------------------- running


@dataclass
class _Running:
    """A sample in flight: its dialogue, the answers it has received, the hashes of its first and its open request."""

    sample: Sample
    dialogue: Dialogue
    prompt_hash: str = ""
    asked: str = ""
    answers: list[Answer] = field(default_factory=list)


@dataclass
class _Session:
    """One call of `run`: what is in flight, what is done, what failed."""

    plan: Plan
    model: Model
    folder: RunFolder
    bar: Any
    running: dict[int, _Running] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    answered: int = 0
    reused: int = 0
    tokens: int = 0

    def report(self, tokens: int) -> None:
        """Show that the model is at work between two answers."""
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.tokens:,} tokens", refresh=False)
            self.bar.update(0)

    def advance(self, ticket: int, each: _Running, answer: Answer | None) -> None:
        """Send a dialogue its answer (None: begin), replay what is stored, then submit or score."""
        while True:
            try:
                request = each.dialogue.send(answer) if answer is not None else next(each.dialogue)
            except StopIteration as end:
                self.finish(ticket, each, end.value)
                return
            each.asked = request_hash(request)
            each.prompt_hash = each.prompt_hash or each.asked
            stored = self.folder.answers.get((each.sample.id, len(each.answers)))
            if stored is None:
                self.running[ticket] = each
                self.model.submit(ticket, request)
                return
            if stored.request != each.asked:
                raise StoreError(
                    f"{self.folder.path}: the stored answer of sample {each.sample.id} belongs to another prompt.\n"
                    "Next: choose another --output-dir, or start over with --overwrite."
                )
            answer = stored.answer
            each.answers.append(answer)
            self.reused += 1

    def finish(self, ticket: int, each: _Running, answer: Answer) -> None:
        """Score a sample whose dialogue is over."""
        self.running.pop(ticket, None)
        self.records[each.sample.id] = record(
            self.plan.task,
            each.sample,
            answer,
            each.answers,
            doc_hash=checksum(dict(each.sample.row)),
            prompt_hash=each.prompt_hash,
        )
        if self.bar is not None:
            self.bar.update(1)

    def collect(self) -> None:
        """Take the answers that are ready, write them down, and only then go on with their dialogues."""
        stored: list[tuple[int, StoredAnswer]] = []
        for ticket, answer in self.model.collect():
            each = self.running[ticket]
            if isinstance(answer, Failed):
                self.failures[each.sample.id] = answer.reason
                del self.running[ticket]
            else:
                stored.append((ticket, StoredAnswer(each.sample.id, len(each.answers), each.asked, answer)))
        self.folder.append(entry for _, entry in stored)
        self.answered += len(stored)
        for ticket, entry in stored:
            each = self.running[ticket]
            each.answers.append(entry.answer)
            self.advance(ticket, each, entry.answer)


def run(
    plan: Plan, model: Model, folder: RunFolder, *, stop: Stop, bar: Any = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run what is not answered yet, write records and metrics, and return the metrics.

    `folder` is open; `bar` is a tqdm bar or None. Raises Interrupted after a stop; what is answered is kept.
    """
    begun = time.monotonic()
    session = _Session(plan, model, folder, bar)
    model.on_progress(session.report)
    for ticket, sample in enumerate(plan.samples):
        session.advance(ticket, _Running(sample, plan.ask(sample)), None)
    if session.reused:
        say(f"{plan.name}: {session.reused:,} answer(s) taken from {folder.path}")
    while session.running and not stop.asked:
        session.collect()
    wall = round(time.monotonic() - begun, 3)
    folder.add_timing(
        {"answered": session.answered, "reused": session.reused, "wall_seconds": wall, **model.counters()}
    )
    if session.running:
        raise Interrupted(f"{plan.name}: stopped with {len(session.records):,} of {len(plan.samples):,} samples done.")
    for identifier, reason in list(session.failures.items())[:3]:
        say(f"{plan.name}, sample {identifier}: {reason}")
    records = [session.records[sample.id] for sample in plan.samples if sample.id in session.records]
    result = {
        **folder.manifest,
        **metrics(plan.task, plan.protocol, records, errors=len(session.failures)),
        "failures": session.failures,
    }
    whole = plan.split == "test" and len(records) == plan.total
    form = submission(plan.task, plan.protocol, records) if whole else None
    folder.write_derived(records, result, submission=form)
    return result
