"""The harness' side of the sandbox: programs go in by number, outcomes come out as they finish.

One thread a worker. A thread hands the worker two socket ends, one for the process that runs the program and one for
the process that judges it, sends program and test into them, waits until the worker says that both are dead, and only
then reads the verdict. So a verdict is read once, from a socket that nothing of the program's ever held.
"""

import contextlib
import hmac
import os
import queue
import secrets
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import wire
from qwen_eval.sandbox.control import Control
from qwen_eval.sandbox.launch import launch
from qwen_eval.sandbox.program import Outcome, Program, read_test
from qwen_eval.sandbox.verdict import Report, from_official, from_split

__all__ = ["JUDGES", "Sandbox", "usable_processors"]

JUDGES: Final = ("split", "official")


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sandbox:
    """Runs programs nobody trusts. A context manager; `submit` any number, `collect` until it returns nothing."""

    def __init__(
        self, *, judge: str = "split", workers: int | None = None, unsafe: bool = False, container: str = ""
    ) -> None:
        """Say how programs are judged and isolated; nothing starts before `with`.

        `container` is an engine, "docker" or "podman:IMAGE", for machines that keep namespaces from ordinary users.
        `unsafe` gives up the walls: programs run with the caller's rights, files and network.
        """
        if judge not in JUDGES:
            raise UsageError(f"A judge is one of {', '.join(JUDGES)}, not {judge!r}.")
        if unsafe and container:
            raise UsageError("No isolation and a container exclude each other.")
        if workers is not None and workers < 1:
            raise UsageError(f"The sandbox needs at least one worker, not {workers}.")
        self._judge = judge
        self._count = workers or usable_processors()
        self._unsafe = unsafe
        self._container = container
        self._waiting: queue.Queue[tuple[int, Program] | None] = queue.Queue()
        self._ready: queue.Queue[tuple[int, Outcome]] = queue.Queue()
        self._in_flight = 0
        self._process: Any = None
        self._workers: list[_Worker] = []

    @property
    def mode(self) -> str:
        """How programs are isolated, for manifests: "namespaces", "docker", "podman" or "unsafe"."""
        return "unsafe" if self._unsafe else self._container.partition(":")[0] or "namespaces"

    def __enter__(self) -> Self:
        """Start the zygote and its workers; SandboxError when no isolation can be had."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._count)]
        try:
            self._process = launch([theirs for _, theirs in pairs], walls=not self._unsafe, engine=self._container)
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._workers = [_Worker(ours, self._waiting, self._ready, self._judge) for ours, _ in pairs]
        for one in self._workers:
            one.start()
        try:
            self._probe()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _probe(self) -> None:
        """Run a program that must pass: a kernel may allow the walls of the zygote and not those of a room."""
        self.submit(0, Program(source="def one():\n    return 1\n", test="assert one() == 1", entry_point="one"))
        [(_, outcome)] = self.collect()
        if not outcome.passed:
            raise SandboxError(f"No sandbox: a program that does nothing did not pass ({outcome.result}).")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process of the sandbox; what is in flight is dropped."""
        self._in_flight = 0
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for one in self._workers:
            one.stop()
            self._waiting.put(None)
        try:
            self._process.wait(timeout=5)
        except Exception:
            self._process.kill()  # the kernel then kills pid 1 of its namespace, and with it all others
            self._process.wait()
        for one in self._workers:
            one.join(timeout=5)

    def submit(self, ticket: int, program: Program) -> None:
        """Put a program in line; `ticket` comes back with its outcome."""
        self._in_flight += 1
        self._waiting.put((ticket, program))

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, Outcome]]:
        """Wait until outcomes are there, for `timeout` seconds at most (0 only looks), and return them.

        Empty when nothing is in flight, or nothing is ready in time.
        """
        if not self._in_flight:
            return []
        found: list[tuple[int, Outcome]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._ready.get(timeout=timeout) if timeout != 0 else self._ready.get_nowait())
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        self._in_flight -= len(found)
        return found


class _Worker(threading.Thread):
    """The harness' end of one worker process."""

    def __init__(
        self,
        control: socket.socket,
        waiting: "queue.Queue[tuple[int, Program] | None]",
        ready: "queue.Queue[tuple[int, Outcome]]",
        judge: str,
    ) -> None:
        super().__init__(name="sandbox", daemon=True)
        self._control = Control(control)
        self._waiting = waiting
        self._ready = ready
        self._judge = judge

    def stop(self) -> None:
        """Hang up: the worker process ends, and with it what it runs."""
        self._control.hang_up()

    def run(self) -> None:
        while (item := self._waiting.get()) is not None:
            ticket, program = item
            try:
                outcome = self._outcome(program)
            except Exception as error:  # a thread that ends would leave its caller waiting for ever
                outcome = Outcome(passed=False, result=f"error: {type(error).__name__}: {error}", judge=self._judge)
            self._ready.put((ticket, outcome))
        self._control.close()

    def _outcome(self, program: Program) -> Outcome:
        """Judge a program, by both judges where the official one is asked for or the other cannot."""
        split = self._split(program)
        if self._judge == "split" and split is not None:
            return Outcome(passed=split == "passed", result=split, judge="split")
        official = self._official(program)
        other = None if split is None or split.startswith("error") else split == "passed"
        return Outcome(passed=official == "passed", result=official, judge="official", official=other)

    def _split(self, program: Program) -> str | None:
        """The split judge's result, None where the test cannot be split from the program."""
        read = read_test(program.test)
        if not program.entry_point or read.reaches_in:
            return None
        test: dict[str, Any] = {"prompt": program.prompt, "test": program.test, "entry": program.entry_point}
        test |= {"check": read.check, "names": read.names}
        report = self._run("split", program, [{"source": program.source}], [test])
        return from_split(report, program.timeout)

    def _official(self, program: Program) -> str:
        """The official judge's result."""
        text = f"{program.source}\n{program.test}\n"
        if read_test(program.test).check:
            text += f"check({program.entry_point})"
        token = secrets.token_hex(32)
        report = self._run("official", program, [{"text": text, "shown": program.source}, token], [])
        said = report.verdict.get("token") if report.verdict else None
        held = isinstance(said, str) and hmac.compare_digest(said.encode("utf-8", "replace"), token.encode())
        return from_official(report, program.timeout, held=held)

    def _run(self, judge: str, program: Program, to_program: list[object], to_judge: list[object]) -> Report:
        """Run a program once; a second time when its worker was lost with it."""
        report = self._run_once(judge, program, to_program, to_judge)
        return self._run_once(judge, program, to_program, to_judge) if report.end == "lost" else report

    def _run_once(self, judge: str, program: Program, to_program: list[object], to_judge: list[object]) -> Report:
        numpy = "numpy" in program.source or "numpy" in program.test
        job = {"judge": judge, "timeout": program.timeout, "numpy": numpy}
        source, their_source = socket.socketpair()
        verdict, their_verdict = socket.socketpair()
        with source, verdict:
            with their_source, their_verdict:
                try:
                    self._control.send(job, [their_source.fileno(), their_verdict.fileno()])
                except wire.BrokenWire:
                    return Report(end="broken")
            with contextlib.suppress(wire.BrokenWire):  # whoever does not read it has ended, and the report says why
                for message in to_program:
                    wire.send_json(source, message)
            with contextlib.suppress(wire.BrokenWire):
                for message in to_judge:
                    wire.send_json(verdict, message)
            said = None
            while said is None:
                try:
                    said = self._control.receive()
                except wire.BrokenWire:
                    return Report(end="broken")
            return Report.of(said, _verdict(verdict))


def _verdict(wire_end: socket.socket) -> dict[str, Any] | None:
    """Read what the judge said, now that it is dead. From the official judge's process this may be anything."""
    wire_end.setblocking(False)
    try:
        said = wire.receive_json(wire_end, most=1 << 16)
    except (wire.BrokenWire, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
