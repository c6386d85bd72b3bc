"""Samples → requests → answers → verdicts. One path for every task; it knows no benchmark.

A sample's dialogue is a generator that yields requests and receives answers; a sample that is asked several times has a
dialogue for each repeat. All dialogues are in flight at once; what the run folder already holds is replayed from there,
so nothing that was answered is asked twice. Only a deterministic run works in chunks, and asks again what is computed
together with something that is not answered yet.
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
from qwen_eval.task import Answer, Choose, Dialogue, Failed, Generate, Protocol, Request, Sample, Sampling, Task

__all__ = ["Plan", "Stop", "make_plan", "run", "stop_on_signal"]

CHUNK = 256
"""Samples that a deterministic run asks together, with all their repeats. More of them fill batches better and share
more prefixes; but one that is not answered costs the whole chunk again. A run can only be resumed with the same number.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be run: the samples of one task@protocol, and how each is asked.

    `total` counts the samples of the whole split; `prompts` is a hash over the first requests of all of them, so it
    does not depend on the limit, nor on sampling. Each sample is asked `repeats` times. `sampling` holds the seed of
    the run, from which `with_sampling` derives one for every answer; None is greedy. A `deterministic` run asks in
    chunks of `CHUNK` samples.
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
    sampling: Sampling | None = None
    repeats: int = 1
    deterministic: bool = False

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

    def repeated(self) -> list[tuple[Sample, int]]:
        """Return every planned sample with the number (from 0) of each of its repeats, in order."""
        return [(sample, repeat) for sample in self.samples for repeat in range(self.repeats)]

    def with_sampling(self, request: Request, sample: Sample, repeat: int, turn: int) -> Request:
        """Return a request as it is put to the model: what is generated carries the sampling, with a seed of its own.

        The seed follows from the run's seed and the answer's place alone, so no batch, order, limit or interruption
        changes what is drawn.
        """
        if self.sampling is None or not isinstance(request, Generate):
            return request
        seed = int(checksum([self.sampling.seed, sample.id, repeat, turn]), 16)
        return replace(request, sampling=replace(self.sampling, seed=seed))

    def manifest(self) -> dict[str, Any]:
        """Return what identifies this run apart from the model and the seed."""
        drawn = self.sampling
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
            "sampling": drawn and {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k},
            "repeats": self.repeats,
            "deterministic": self.deterministic,
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
    sampling: Sampling | None = None,
    repeats: int = 1,
    deterministic: bool = False,
) -> Plan:
    """Read the data, build every prompt, choose the samples. Raises UsageError for a split or shots that do not exist.

    `limit` is a number of samples, or a share of them when it is a float. Where samples have groups (subjects), a limit
    spreads over them: in equal numbers where the score is a mean over groups, in proportion to their sizes where it is
    one over items. A larger limit always contains a smaller. Where the first request does not generate, there is
    nothing to sample: such a plan is without `sampling` and asks once.
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
    generates = any(isinstance(next(ask(sample)), Generate) for sample in samples[:1])
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
        sampling=sampling if generates else None,
        repeats=repeats if generates else 1,
        deterministic=deterministic,
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
    """One repeat of a sample in flight: its dialogue, the answers it has received, two hashes.

    They are those of its first request, without sampling, and of its open one.
    """

    sample: Sample
    repeat: int
    dialogue: Dialogue
    prompt_hash: str = ""
    asked: str = ""
    answers: list[Answer] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, int]:
        """What there is one dialogue of: sample, repeat."""
        return self.sample.id, self.repeat

    @property
    def key(self) -> tuple[str, int, int]:
        """Where the answer to the open request is stored: sample, turn, repeat."""
        return self.sample.id, len(self.answers), self.repeat


@dataclass
class _Session:
    """One call of `run`: what is in flight, what is done, what failed.

    `anew` is whether everything is put to the model, also what is stored; the stored answer then is still the one that
    counts.
    """

    plan: Plan
    model: Model
    folder: RunFolder
    bar: Any
    anew: bool = False
    running: dict[int, _Running] = field(default_factory=dict)
    records: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)
    answered: int = 0
    reused: int = 0
    asked_again: int = 0
    tokens: int = 0

    def report(self, tokens: int) -> None:
        """Show that the model is at work between two answers."""
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.tokens:,} tokens", refresh=False)
            self.bar.update(0)

    def begin(self, chunk: Sequence[tuple[int, Sample, int]]) -> None:
        """Begin the dialogues of a chunk: tickets, samples, repeats."""
        self.anew = self.plan.deterministic and not all(self.is_stored(sample, repeat) for _, sample, repeat in chunk)
        if self.anew:
            self.model.forget()
        for ticket, sample, repeat in chunk:
            self.advance(ticket, _Running(sample, repeat, self.plan.ask(sample)), None)

    def is_stored(self, sample: Sample, repeat: int) -> bool:
        """Return whether a dialogue can be replayed to its end."""
        each = _Running(sample, repeat, self.plan.ask(sample))
        try:
            _, stored = self.look_up(each, next(each.dialogue))
            while stored is not None:
                each.answers.append(stored.answer)
                _, stored = self.look_up(each, each.dialogue.send(stored.answer))
        except StopIteration:
            return True
        return False

    def look_up(self, each: _Running, request: Request) -> tuple[Request, StoredAnswer | None]:
        """Return a dialogue's next request as the model gets it, and its stored answer. Raises StoreError."""
        each.prompt_hash = each.prompt_hash or request_hash(request)
        request = self.plan.with_sampling(request, each.sample, each.repeat, len(each.answers))
        each.asked = request_hash(request)
        stored = self.folder.answers.get(each.key)
        if stored is not None and stored.request != each.asked:
            raise StoreError(
                f"{self.folder.path}: the stored answer of sample {each.sample.id} belongs to another prompt.\n"
                "Next: choose another --output-dir, or start over with --overwrite."
            )
        return request, stored

    def advance(self, ticket: int, each: _Running, answer: Answer | None) -> None:
        """Send a dialogue its answer (None: begin), replay what is stored, then submit or score."""
        while True:
            try:
                request = each.dialogue.send(answer) if answer is not None else next(each.dialogue)
            except StopIteration as end:
                self.finish(ticket, each, end.value)
                return
            request, stored = self.look_up(each, request)
            if stored is None or self.anew:
                self.running[ticket] = each
                self.model.submit(ticket, request)
                return
            answer = stored.answer
            each.answers.append(answer)
            self.reused += 1

    def finish(self, ticket: int, each: _Running, answer: Answer) -> None:
        """Score a sample whose dialogue is over."""
        self.running.pop(ticket, None)
        self.records[each.place] = record(
            self.plan.task,
            each.sample,
            answer,
            each.answers,
            repeat=each.repeat,
            doc_hash=checksum(dict(each.sample.row)),
            prompt_hash=each.prompt_hash,
        )
        if self.bar is not None:
            self.bar.update(1)

    def collect(self) -> None:
        """Take the answers that are ready, write them down, and only then go on with their dialogues.

        Where an answer is stored already, the new one is dropped, whatever it says.
        """
        new: list[StoredAnswer] = []
        answered: list[tuple[int, Answer]] = []
        for ticket, answer in self.model.collect():
            each = self.running[ticket]
            if stored := self.folder.answers.get(each.key):
                self.asked_again += 1
                answered.append((ticket, stored.answer))
            elif isinstance(answer, Failed):
                self.failures[each.place] = answer.reason
                del self.running[ticket]
            else:
                new.append(StoredAnswer(each.sample.id, len(each.answers), each.asked, answer, each.repeat))
                answered.append((ticket, answer))
        self.folder.append(new)
        self.answered += len(new)
        for ticket, answer in answered:
            each = self.running[ticket]
            each.answers.append(answer)
            self.advance(ticket, each, answer)


def run(
    plan: Plan, model: Model, folder: RunFolder, *, stop: Stop, bar: Any = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run what is not answered yet, write records and metrics, and return the metrics.

    `folder` is open; `bar` is a tqdm bar or None. Raises Interrupted after a stop; what is answered is kept.
    """
    begun = time.monotonic()
    session = _Session(plan, model, folder, bar)
    model.on_progress(session.report)
    if folder.answers:
        say(f"{plan.name}: {len(folder.answers):,} answer(s) taken from {folder.path}")
    for chunk in _chunks(plan):
        session.begin(chunk)
        while session.running and not stop.asked:
            session.collect()
        if stop.asked:
            break
    folder.add_timing(
        {
            "answered": session.answered,
            "reused": session.reused,
            "asked_again": session.asked_again,
            "wall_seconds": round(time.monotonic() - begun, 3),
            **model.counters(),
        }
    )
    total = len(plan.samples) * plan.repeats
    if len(session.records) + len(session.failures) < total:
        kind = "samples" if plan.repeats == 1 else "dialogues"
        raise Interrupted(f"{plan.name}: stopped with {len(session.records):,} of {total:,} {kind} done.")
    return _write_results(session, say)


def _chunks(plan: Plan) -> Iterator[list[tuple[int, Sample, int]]]:
    """Yield what is in flight at once, as tickets, samples and repeats: everything, or a deterministic run's chunks."""
    places = [(ticket, sample, repeat) for ticket, (sample, repeat) in enumerate(plan.repeated())]
    size = CHUNK * plan.repeats if plan.deterministic else len(places)
    for begin in range(0, len(places), max(1, size)):
        yield places[begin : begin + size]


def _write_results(session: _Session, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the records, metrics and submission of a session in which everything was asked; return the metrics."""
    plan, folder = session.plan, session.folder
    places = [(sample.id, repeat) for sample, repeat in plan.repeated()]
    failures = {
        sample if plan.repeats == 1 else f"{sample}, repeat {repeat}": reason
        for (sample, repeat), reason in session.failures.items()
    }
    for name, reason in list(failures.items())[:3]:
        say(f"{plan.name}, sample {name}: {reason}")
    records = [session.records[place] for place in places if place in session.records]
    result = {
        **metrics(plan.task, plan.protocol, records, errors=len(failures)),
        # After the metrics: where repeats ended in an error, the manifest knows how many were asked.
        **folder.manifest,
        "failures": failures,
    }
    whole = plan.split == "test" and len(records) == plan.total * plan.repeats
    form = submission(plan.task, plan.protocol, records) if whole else None
    folder.write_derived(records, result, submission=form)
    return result
