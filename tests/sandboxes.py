"""A sandbox that runs nothing: what becomes of a program is decided by its text."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace, TracebackType
from typing import Self

from qwen_eval.sandbox import Outcome, Program, Seen, Step
from qwen_eval.task import Failed, Judge


def by_hash(program: Program) -> str:
    """A result that depends on the program and its test alone."""
    number = int(hashlib.sha256(f"{program.source}{program.test}".encode()).hexdigest(), 16)
    return ("passed", "failed: AssertionError", "timed out")[number % 3]


class FakeSandbox:
    """Answers at most `batch` programs at a time, the last one that came first; counts them."""

    mode = "fake"

    def __init__(self, script: Callable[[Program], str] = by_hash, *, batch: int = 3) -> None:
        self.script = script
        self.batch = batch
        self.programs: list[Program] = []
        self.waited: list[float | None] = []
        self._queue: deque[tuple[int, Program]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def submit(self, ticket: int, program: Program) -> None:
        self._queue.append((ticket, program))
        self.programs.append(program)

    def collect(self, timeout: float | None = None) -> Sequence[tuple[int, Outcome]]:
        self.waited.append(timeout)
        ready = [self._queue.pop() for _ in range(min(self.batch, len(self._queue)))]
        return [
            (ticket, Outcome(passed=(result := self.script(program)) == "passed", result=result, judge="split"))
            for ticket, program in ready
        ]


class FakeSessions:
    """Sessions that run nothing: what a step says follows from it and the steps before. The last one comes first."""

    mode = "fake"

    def __init__(self, script: Callable[[Step], Seen], *, batch: int = 3) -> None:
        self.script = script
        self.batch = batch
        self.steps: list[Step] = []
        self.closed: list[int] = []
        self._queue: deque[tuple[int, Step]] = deque()

    def submit(self, ticket: int, step: Step) -> None:
        self._queue.append((ticket, step))
        self.steps.append(step)

    def collect(self, timeout: float | None = None) -> Sequence[tuple[int, Seen]]:
        ready = [self._queue.pop() for _ in range(min(self.batch, len(self._queue)))]
        return [(ticket, self.script(step)) for ticket, step in ready]

    def close(self, key: int) -> None:
        self.closed.append(key)


class FakeJudge:
    """A judge whose word follows from what it is shown."""

    identity = SimpleNamespace(name="judge", fingerprint="1" * 16)

    def __init__(self, script: Callable[[Judge], str | Failed]) -> None:
        self.script = script
        self.asked: list[Judge] = []
        self._queue: deque[tuple[int, Judge]] = deque()

    def submit(self, ticket: int, request: Judge) -> None:
        self._queue.append((ticket, request))
        self.asked.append(request)

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, str | Failed]]:
        return [(ticket, self.script(request)) for ticket, request in [self._queue.pop()]] if self._queue else []
