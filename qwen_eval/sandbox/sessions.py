"""Python sessions in the sandbox: steps of dialogues go in by number, what was to be seen comes out as they finish.

A session is a process that lives for one dialogue, behind the same walls as a program. Any of them may be ended at any
time to make room, because a step says all that decides its result: a session that is gone is made again by running the
steps before. So there are a few seats, each with at most one live session, and thousands of dialogues that share them.
"""

import contextlib
import json
import queue
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import messages, wire
from qwen_eval.sandbox.control import Control
from qwen_eval.sandbox.host import usable_processors
from qwen_eval.sandbox.launch import launch

__all__ = ["DISTRIBUTIONS", "Seen", "Sessions", "Step"]

# What a session can import besides the standard library and numpy, with all that these require.
DISTRIBUTIONS: Final = ("ipython", "matplotlib", "numpy", "pandas", "scipy", "seaborn", "sympy")
MOST_LIVE: Final = 48
MEMORY_SHARE: Final = 4  # idle sessions hold at most one part in so many of the memory that was free at the start
STARTING: Final = 60.0  # processor seconds for a session to begin, its files included
_ENDS: Final = {
    "session cpu": "timed out",
    "rest": "timed out",
    "wall": "timed out",
    "session memory": "memory",
    "session processes": "died",
    "gone": "died",
}
_FAILED: Final = {
    "lost": "failed: the sandbox' worker was killed twice (out of memory?)",
    "broken": "failed: the sandbox has ended",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a dialogue, and all that decides its result."""

    key: int  # names the dialogue; its session is kept between its steps where there is room
    code: str  # untrusted
    before: tuple[str, ...] = ()  # the codes of the steps before, oldest first
    files: tuple[tuple[str, bytes], ...] = ()  # names and contents of what lies in the working folder at the beginning
    timeout: float = 30.0  # processor seconds, of each step

    def __post_init__(self) -> None:
        for name, _ in self.files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"a file of a session has a plain name, not {name!r}")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was to be seen of a step, in order: pairs of a kind and a text.

    Kinds are "stdout", "stderr", "execute_result", "error" (a traceback) and "image" (a PNG in base64). `end` is "ok",
    "error" (an exception), "timed out", "memory", "died" (the process has ended), or "failed: …": the sandbox could not
    run it, and it is no result. After "timed out" the session may live on, after "memory" and "died" it does not.
    """

    messages: tuple[tuple[str, str], ...]
    end: str


class Sessions:
    """Runs steps nobody trusts. A context manager; `submit` any number, `collect` until it returns nothing."""

    def __init__(
        self, *, workers: int | None = None, unsafe: bool = False, container: str = "", live: int | None = None
    ) -> None:
        """Say how many steps run at a time and how many sessions are alive; the rest is as for `Sandbox`."""
        if unsafe and container:
            raise UsageError("No isolation and a container exclude each other.")
        if workers is not None and workers < 1:
            raise UsageError(f"The sandbox needs at least one worker, not {workers}.")
        if live is not None and not 1 <= live <= wire.MOST_DESCRIPTORS:
            raise UsageError(f"Between 1 and {wire.MOST_DESCRIPTORS} sessions can be alive, not {live}.")
        count = workers or usable_processors()
        self._live = live or min(max(MOST_LIVE, count), wire.MOST_DESCRIPTORS)
        self._count = min(count, self._live)
        self._unsafe = unsafe
        self._container = container
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._seats: list[_Seat] = []
        self._idle: list[_Seat] = []  # the one that was used last is last
        self._waiting: deque[tuple[int, Step]] = deque()
        self._leaving: deque[_Seat] = deque()  # seats whose dialogue is over
        self._change = threading.Condition()
        self._closed = False
        self._memory = 0
        self._ready: queue.Queue[tuple[int, Seen]] = queue.Queue()
        self._in_flight = 0

    @property
    def mode(self) -> str:
        """How sessions are isolated, for manifests: "namespaces", "docker", "podman" or "unsafe"."""
        return "unsafe" if self._unsafe else self._container.partition(":")[0] or "namespaces"

    def __enter__(self) -> Self:
        """Start the zygote and its workers; SandboxError when no isolation can be had."""
        import psutil

        self._memory = psutil.virtual_memory().available // MEMORY_SHARE
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._live)]
        try:
            self._process = launch(
                [theirs for _, theirs in pairs],
                walls=not self._unsafe,
                engine=self._container,
                distributions=DISTRIBUTIONS,
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._seats = [_Seat(ours) for ours, _ in pairs]
        self._idle = list(self._seats)
        self._threads = [threading.Thread(target=self._work, name="session", daemon=True) for _ in range(self._count)]
        for one in self._threads:
            one.start()
        try:
            self._probe()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _probe(self) -> None:
        """Run a step that must succeed: a kernel may allow the walls of the zygote and not those of a room."""
        self.submit(0, Step(key=-1, code="print(1)"))
        [(_, seen)] = self.collect()
        self.close(-1)
        if seen != Seen(messages=(("stdout", "1\n"),), end="ok"):
            raise SandboxError(f"No sandbox: a step that prints 1 did not ({seen.end}).")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process of the sandbox; what is in flight is dropped."""
        self._in_flight = 0
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()
        for seat in self._seats:
            seat.control.hang_up()
        try:
            self._process.wait(timeout=5)
        except Exception:
            self._process.kill()  # the kernel then kills pid 1 of its namespace, and with it all others
            self._process.wait()
        for one in self._threads:
            one.join(timeout=5)
        for seat in self._seats:
            seat.close()

    def submit(self, ticket: int, step: Step) -> None:
        """Put a step in line; `ticket` comes back with what was seen."""
        self._in_flight += 1
        with self._change:
            self._waiting.append((ticket, step))
            self._change.notify()

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, Seen]]:
        """Wait until steps are finished, for `timeout` seconds at most (0 only looks), and return what was seen.

        Empty when nothing is in flight, or nothing is ready in time.
        """
        if not self._in_flight:
            return []
        found: list[tuple[int, Seen]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._ready.get(timeout=timeout) if timeout != 0 else self._ready.get_nowait())
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        self._in_flight -= len(found)
        return found

    def close(self, key: int) -> None:
        """End the session of a dialogue, if it is alive; a step of it that is running comes to its end first."""
        with self._change:
            for seat in self._seats:
                if seat.key == key:
                    seat.over = True
                    if seat in self._idle:
                        self._leave(seat)

    def _leave(self, seat: "_Seat") -> None:
        self._idle.remove(seat)
        self._leaving.append(seat)
        self._change.notify()

    def _work(self) -> None:
        """Body of a thread: one step after another."""
        while True:
            with self._change:
                while not (self._waiting or self._leaving or self._closed):
                    self._change.wait()
                if self._closed:
                    return
                job = None if self._leaving else self._choose()
                seat = self._leaving.popleft() if job is None else job[2]
            if job is None:
                seat.end()
            else:
                ticket, step, _ = job
                try:
                    seen = seat.run(step)
                except Exception as error:  # a thread that ends would leave its caller waiting for ever
                    seen = Seen(messages=(), end=f"failed: {type(error).__name__}: {error}")
                    seat.key = None
                self._ready.put((ticket, seen))
            with self._change:
                self._idle.append(seat)
                self._make_room()

    def _choose(self) -> tuple[int, Step, "_Seat"]:
        """Take the first step whose session is alive and idle, else the oldest; and the seat for it."""
        alive = {seat.key: seat for seat in self._idle if seat.key is not None}
        place, seat = 0, None
        for number, (_, step) in enumerate(self._waiting):
            if step.key in alive:
                place, seat = number, alive[step.key]
                break
        ticket, step = self._waiting[place]
        del self._waiting[place]
        if seat is None:
            seat = next((one for one in self._idle if one.key is None), self._idle[0])
        self._idle.remove(seat)
        return ticket, step, seat

    def _make_room(self) -> None:
        """End the dialogues that are over, and idle sessions while all of them hold too much memory."""
        over = [seat for seat in self._idle if seat.over]
        held = sum(seat.memory for seat in self._idle)
        for seat in [one for one in self._idle if one.memory and not one.over]:
            if held <= self._memory:
                break
            held -= seat.memory
            over.append(seat)
        for seat in over:
            self._leave(seat)


class _Seat:
    """The harness' end of one worker process, and what is known of its session."""

    def __init__(self, wire_end: socket.socket) -> None:
        self.control = Control(wire_end)
        self.key: int | None = None
        self.over = False  # nobody needs the session any more
        self.memory = 0
        self._done: tuple[str, ...] = ()
        self._files: tuple[tuple[str, bytes], ...] = ()
        self._wire: socket.socket | None = None

    def end(self) -> None:
        """End the session."""
        self._forget()
        self._do({"do": "end"}, b"")

    def close(self) -> None:
        """Close the sockets."""
        self._forget()
        self.control.close()

    def _forget(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire, self.key, self.over, self.memory = None, None, False, 0

    def run(self, step: Step) -> Seen:
        """Run a step, in a new session where this seat's is another; once more where the worker was lost with it."""
        end, seen = self._attempt(step)
        return self._attempt(step)[1] if end in ("lost", "none") else seen

    def _attempt(self, step: Step) -> tuple[str, Seen]:
        """Run a step; return how the worker's last job ended as well."""
        if self._wire is None or (self.key, self._done, self._files) != (step.key, step.before, step.files):
            end, seen = self._begin(step)
            if self._wire is None:
                why = seen.end if seen.end.startswith("failed: ") else f"failed: the session did not begin ({end})"
                return end, Seen(messages=(), end=why)
            for code in step.before:
                end, seen = self._step(code, step.timeout)
                if self._wire is None:  # it ended here when it ran first, too
                    return end, Seen(messages=(), end="died" if seen.end in ("ok", "error") else seen.end)
        return self._step(step.code, step.timeout)

    def _begin(self, step: Step) -> tuple[str, Seen]:
        """Make a new session with the item's files in it."""
        self._forget()
        self._wire, theirs = socket.socketpair()
        self._wire.setblocking(False)
        self.key, self._done, self._files = step.key, (), step.files
        parts = [json.dumps([name for name, _ in step.files]).encode(), *(content for _, content in step.files)]
        with theirs:
            return self._do({"do": "begin", "timeout": STARTING}, wire.framed(*parts), [theirs.fileno()])

    def _step(self, code: str, timeout: float) -> tuple[str, Seen]:
        """Run one step in the live session."""
        self._done += (code,)
        return self._do({"do": "step", "timeout": timeout}, wire.framed(code.encode("utf-8", "surrogatepass")))

    def _do(self, job: dict[str, Any], sent: bytes, descriptors: Sequence[int] = ()) -> tuple[str, Seen]:
        """Have the worker do a job; return how it ended, and what the session said meanwhile."""
        try:
            self.control.send(job, list(descriptors))
            data, report = self._exchange(sent)
        except wire.BrokenWire:
            data, report = bytearray(), {"end": "broken"}
        end = str(report["end"])
        found, said = messages.read(data)
        if end in _FAILED or end == "setup":
            seen = Seen(messages=(), end=_FAILED.get(end) or f"failed: no room for the session: {report['setup']}")
        else:
            seen = Seen(messages=tuple(found), end=_ENDS.get(end) or said or "died")
        alive = bool(report.get("alive"))
        if not alive or (end == "done" and said is None):
            self._forget()
            self.over = alive  # the process is there, but has lost its tongue
        else:
            self.memory = int(report["memory"])
        return end, seen

    def _exchange(self, sent: bytes) -> tuple[bytearray, dict[str, Any]]:
        """Send bytes to the session and collect what it says, until the worker reports.

        All at once: a session may neither read nor say anything, or say it is done without having read. One that says
        too much is cut off.
        """
        session, data, rest = self._wire, bytearray(), memoryview(sent)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if session is not None:
            poll.register(session, select.POLLIN | select.POLLOUT)
        while True:
            ready = dict(poll.poll())
            if session is not None and session.fileno() in ready:
                try:
                    rest = _talk(session, data, rest, hears=bool(ready[session.fileno()] & ~select.POLLOUT))
                except ConnectionError:
                    poll.unregister(session)
                    session.close()
                    session = None
                else:
                    poll.modify(session, select.POLLIN | (select.POLLOUT if rest else 0))
            elif self.control.fileno() in ready and (report := self.control.receive()) is not None:
                return data, report


def _talk(session: socket.socket, data: bytearray, rest: memoryview, *, hears: bool) -> memoryview:
    """Read and send what is possible at once; return what is still to be sent. ConnectionError at the end."""
    with contextlib.suppress(BlockingIOError):
        if hears:
            piece = session.recv(1 << 20)
            data += piece
            if not piece or len(data) > messages.MOST_BYTES:
                raise ConnectionError
        if rest:
            return rest[session.send(rest[: 1 << 20]) :]
    return rest
