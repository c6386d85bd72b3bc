"""Samples → requests → answers → verdicts. One path for every task; it knows no benchmark.

A sample's dialogue is a generator that yields requests and receives answers; a sample that is asked several times has a
dialogue for each repeat. A model answers, or the sandbox where code is to be run, or a judge; none waits for another.
All dialogues are in flight at once; what the run folder already holds is replayed from there, so nothing that was
answered is asked twice. Only a deterministic run works in chunks, and asks again what is computed together with
something that is not answered yet.
"""

import itertools
import signal
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from qwen_eval.errors import Interrupted, StoreError
from qwen_eval.models.base import NO_COUNTS, Judging, Model
from qwen_eval.plan import Plan
from qwen_eval.results import RunFolder, StoredAnswer, checksum, request_hash
from qwen_eval.scoring import metrics, program_hash, record, submission
from qwen_eval.task import (
    Answer,
    Cell,
    Dialogue,
    Execute,
    Executed,
    Failed,
    Judge,
    Judged,
    Message,
    Observed,
    Request,
    Sample,
)

if TYPE_CHECKING:
    from qwen_eval.sandbox import Outcome, Program, Sandbox, Seen, Sessions, Step

__all__ = ["Helpers", "Stop", "answer_of", "program_of", "run", "step_of", "stop_on_signal"]

CHUNK = 256
"""Samples that a deterministic run asks together, with all their repeats. More of them fill batches better and share
more prefixes; but one that is not answered costs the whole chunk again. A run can only be resumed with the same number.
"""


TICKETS = itertools.count()
"""No ticket is given twice in a process: what one task leaves behind is not taken for an answer to the next."""

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


# ---------------------------------------------------------------------------------------------------------- programs


def program_of(request: Execute) -> "Program":
    """Return what the sandbox gets of a request."""
    from qwen_eval.sandbox import Program

    return Program(
        source=request.source,
        prompt=request.prompt,
        test=request.test,
        entry_point=request.entry_point,
        timeout=request.timeout,
    )


def executed(request: Execute, outcome: "Outcome") -> Executed | Failed:
    """Return the sandbox's outcome as an answer. Where the sandbox failed there is none, and never a zero."""
    if outcome.result.startswith("error"):
        return Failed(reason=outcome.result)
    return Executed(
        program=program_hash(request),
        passed=outcome.passed,
        result=outcome.result,
        judge=outcome.judge,
        official=outcome.official,
    )


def step_of(ticket: int, request: Cell) -> "Step":
    """Return what the sandbox gets of a step; every dialogue has a session of its own, named by its ticket."""
    from qwen_eval.sandbox import Step

    return Step(
        key=ticket,
        code=request.code,
        before=request.before,
        files=tuple((file.name, b64decode(file.content)) for file in request.files),
        timeout=request.timeout,
    )


def observed(request: Cell, seen: "Seen") -> Observed | Failed:
    """Return what a session said as an answer. Where the sandbox failed there is none."""
    if seen.end.startswith("failed"):
        return Failed(reason=seen.end)
    messages = tuple(Message(kind, text) for kind, text in seen.messages)
    return Observed(cell=request_hash(request), messages=messages, end=seen.end)


# ----------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """Who answers what is not for the model: programs, steps of sessions, the judge. None where nobody is needed."""

    sandbox: "Sandbox | None" = None
    sessions: "Sessions | None" = None
    judge: Judging | None = None


Asked: TypeAlias = Request | Execute | Cell | Judge
"""What a dialogue asks, of whomever."""


@dataclass
class _Running:
    """One repeat of a sample in flight: its dialogue, the answers it has received, two hashes.

    They are those of its first request, without sampling, and of its open one. `fresh` is whether some answer came in
    this session.
    """

    sample: Sample
    repeat: int
    dialogue: Dialogue
    prompt_hash: str = ""
    asked: str = ""
    answers: list[Answer] = field(default_factory=list)
    fresh: bool = False

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

    `running` has every dialogue that waits for an answer; those in `elsewhere` wait for one of the helpers. `anew` is
    whether everything is put to the model, also what is stored; the stored answer then is still the one that counts.
    """

    plan: Plan
    model: Model
    folder: RunFolder
    bar: Any
    stop: Stop
    helpers: Helpers = field(default_factory=Helpers)
    anew: bool = False
    running: dict[int, _Running] = field(default_factory=dict)
    elsewhere: dict[int, Execute | Cell | Judge] = field(default_factory=dict)
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

    def look_up(self, each: _Running, request: Asked) -> tuple[Asked, StoredAnswer | None]:
        """Return a dialogue's next request as it is put, and its stored answer. Raises StoreError.

        What a rule asks and was not asked at this place (the rule has changed since) is asked again. So is what
        followed another answer than the one that came now, in place of a lost one.
        """
        each.prompt_hash = each.prompt_hash or request_hash(request)
        request = self.plan.with_sampling(request, each.sample, each.repeat, len(each.answers))
        each.asked = request_hash(request)
        stored = self.folder.answers.get(each.key)
        if stored is not None and stored.request != each.asked:
            if not isinstance(request, Request) or each.fresh:
                return request, None
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
            # What a program does is independent of what runs beside it: it is never run anew.
            if stored is None or (self.anew and isinstance(request, Request)):
                self.running[ticket] = each
                self.put(ticket, request)
                return
            answer = stored.answer
            each.answers.append(answer)
            self.reused += 1

    def put(self, ticket: int, request: Asked) -> None:
        """Put a request to whoever answers it; after a stop to nobody."""
        if self.stop.asked:
            return
        sandbox, sessions, judge = self.helpers.sandbox, self.helpers.sessions, self.helpers.judge
        if isinstance(request, Request):
            self.model.submit(ticket, request)
            return
        self.elsewhere[ticket] = request
        if isinstance(request, Execute) and sandbox is not None:
            sandbox.submit(ticket, program_of(request))
        elif isinstance(request, Cell) and sessions is not None:
            sessions.submit(ticket, step_of(ticket, request))
        elif isinstance(request, Judge) and judge is not None:
            judge.submit(ticket, request)
        else:
            raise TypeError(f"{self.plan.name}: expected somebody to answer {type(request).__name__}, found none")

    def ready(self) -> Iterator[tuple[int, Answer | Failed]]:
        """Yield what is answered. The helpers are waited for only where the model has nothing to do."""
        model_works = len(self.running) > len(self.elsewhere)
        if model_works:
            yield from self.model.collect()
        kinds = {type(request) for request in self.elsewhere.values()}
        # Never for long: a step may take half a minute, and a user who asks to stop is heard in between.
        patience = 0 if model_works else 0.25 / len(kinds)
        helpers = self.helpers
        for helper, kind in (
            (helpers.sandbox, Execute),
            (helpers.sessions, Cell),
            (helpers.judge, Judge),
        ):
            if helper is None or kind not in kinds:
                continue
            yield from self.said(helper, patience)

    def said(self, helper: "Sandbox | Sessions | Judging", patience: float) -> Iterator[tuple[int, Answer | Failed]]:
        """Yield what a helper has answered within so many seconds."""
        for ticket, said in helper.collect(timeout=patience):
            if ticket in self.elsewhere:
                yield ticket, answer_of(self.elsewhere.pop(ticket), said)

    def finish(self, ticket: int, each: _Running, answer: Answer) -> None:
        """Score a sample whose dialogue is over."""
        self.running.pop(ticket, None)
        if self.helpers.sessions is not None:
            self.helpers.sessions.close(ticket)
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

    def collect(self, ready: Iterable[tuple[int, Answer | Failed]]) -> None:
        """Take the answers that are ready, write them down, and only then go on with their dialogues.

        Where an answer is stored already, the new one is dropped, whatever it says.
        """
        new: list[StoredAnswer] = []
        answered: list[tuple[int, Answer]] = []
        for ticket, answer in ready:
            if ticket not in self.running:
                continue  # asked for an earlier task that broke off
            each = self.running[ticket]
            stored = self.folder.answers.get(each.key)
            if stored is not None and stored.request == each.asked:
                self.asked_again += 1
                answered.append((ticket, stored.answer))
            elif isinstance(answer, Failed):
                self.failures[each.place] = answer.reason
                del self.running[ticket]
                if self.helpers.sessions is not None:
                    self.helpers.sessions.close(ticket)
            else:
                each.fresh = True
                new.append(StoredAnswer(each.sample.id, len(each.answers), each.asked, answer, each.repeat))
                answered.append((ticket, answer))
        self.folder.append(new)
        self.answered += len(new)
        for ticket, answer in answered:
            each = self.running[ticket]
            each.answers.append(answer)
            self.advance(ticket, each, answer)

    def end(self) -> None:
        """Take what servers are at when the user stops: it is paid for."""
        while self.model.withdraw():
            self.collect(self.model.collect())
        while self.helpers.judge is not None and self.helpers.judge.withdraw():
            self.collect(self.said(self.helpers.judge, 0.25))


def answer_of(request: Execute | Cell | Judge, said: Any) -> Answer | Failed:
    """Return what a helper said as an answer."""
    if isinstance(said, Failed):
        return said
    if isinstance(request, Execute):
        return executed(request, said)
    if isinstance(request, Cell):
        return observed(request, said)
    return Judged(judged=request_hash(request), text=said)


def run(
    plan: Plan,
    model: Model,
    folder: RunFolder,
    *,
    stop: Stop,
    helpers: Helpers | None = None,
    bar: Any = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run what is not answered yet, write records and metrics, and return the metrics.

    `folder` is open, and so are the `helpers` that the task needs; `bar` is a tqdm bar or None. Raises Interrupted
    after a stop; what is answered is kept.
    """
    begun = time.monotonic()
    before = model.counters()
    session = _Session(plan, model, folder, bar, stop, helpers or Helpers())
    model.on_progress(session.report)
    if folder.answers:
        say(f"{plan.name}: {len(folder.answers):,} answer(s) taken from {folder.path}")
    for chunk in _chunks(plan):
        session.begin(chunk)
        while session.running and not stop.asked:
            session.collect(session.ready())
        if stop.asked:
            session.end()
            break
    folder.add_timing(
        {
            "answered": session.answered,
            "reused": session.reused,
            "asked_again": session.asked_again,
            "wall_seconds": round(time.monotonic() - begun, 3),
            **_since(before, model.counters()),
        }
    )
    total = len(plan.samples) * plan.repeats
    if len(session.records) + len(session.failures) < total:
        kind = "samples" if plan.repeats == 1 else "dialogues"
        raise Interrupted(f"{plan.name}: stopped with {len(session.records):,} of {total:,} {kind} done.")
    return _write_results(session, say)


def _since(before: Mapping[str, int | float | str], now: Mapping[str, int | float | str]) -> dict[str, Any]:
    """Return what a model counted in between; what is no count (NO_COUNTS) stays as it is now."""
    counted = dict(now)
    for name, value in now.items():
        earlier = before.get(name, 0)
        if name not in NO_COUNTS and not isinstance(value, str) and not isinstance(earlier, str):
            counted[name] = round(value - earlier, 3)
    return counted


def _chunks(plan: Plan) -> Iterator[list[tuple[int, Sample, int]]]:
    """Yield what is in flight at once, as tickets, samples and repeats: everything, or a deterministic run's chunks."""
    places = [(next(TICKETS), sample, repeat) for sample, repeat in plan.repeated()]
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
