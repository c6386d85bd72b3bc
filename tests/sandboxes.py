"""A sandbox that runs nothing: what becomes of a program is decided by its text."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from qwen_eval.sandbox import Outcome, Program


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
