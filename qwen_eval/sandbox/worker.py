"""One worker: runs one program at a time, a candidate process and a judge beside it, and ends both.

It lives inside the zygote's walls and is what every program is forked from, so it must never hold a text: the program
goes from the harness straight to the candidate process and the test straight to the judge, over sockets the worker only
passes on. What it does itself: have rooms ready, watch what the trees use, kill.
"""

import os
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_eval.sandbox.enclosure import Limits
from qwen_eval.sandbox.room import ENDED_EARLY, Room, Settings
from qwen_eval.sandbox.wire import BrokenWire, receive_job, send_job

__all__ = ["Run", "Worker"]

_LOOK: Final = 0.025  # seconds between two looks; most programs have ended before the first


@dataclass(kw_only=True)
class Run:
    """A program in progress, or one step of a session."""

    rooms: dict[str, Room]
    limits: Limits
    deadline: float  # of the clock on the wall, far beyond what any honest program needs
    rest_limit: float  # seconds in which no process of either room does anything
    rested: float = 0.0
    looked: float = field(default_factory=time.monotonic)

    def reached(self) -> str | None:
        """Look at every room's tree; return the limit that one of them has reached, or None."""
        now = time.monotonic()
        resting = True
        for name, room in self.rooms.items():
            before, usage = room.usage, room.look()
            if usage is None:
                continue
            resting = resting and usage.resting and before is not None and usage.cpu == before.cpu
            if usage.cpu > room.cpu_limit:
                return f"{name} cpu"
            if usage.memory > self.limits.memory:
                return f"{name} memory"
            if usage.tasks > self.limits.processes:
                return f"{name} processes"
        self.rested += now - self.looked if resting else 0.0
        self.looked = now
        return "rest" if self.rested > self.rest_limit else "wall" if now > self.deadline else None


class Worker:
    """Takes jobs from a control socket until the harness closes it."""

    most_dying = 4  # rooms that may still be ending when the next job is taken

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._spare: dict[str, Room] = {}
        self._dying: list[Room] = []
        self._numpy = False

    def serve(self) -> None:
        """Run programs until the harness is gone."""
        try:
            while True:
                job, descriptors = receive_job(self._control)
                report = self._do(job, [socket.socket(fileno=descriptor) for descriptor in descriptors])
                send_job(self._control, report | {"number": job["number"]}, [])
                self._bury()
        except BrokenWire:
            self._close(self._idle())

    def _idle(self) -> list[Room]:
        """The rooms in which nothing runs."""
        return list(self._spare.values())

    def _close(self, rooms: Iterable[Room]) -> None:
        """End with the harness. Behind walls the kernel does as much when pid 1 ends."""
        for room in rooms:
            room.kill()
            self._dying.append(room)
        for room in self._dying:
            room.bury(wait=True)

    def _import_numpy(self) -> None:
        """Import numpy once for all programs to come, when the first one speaks of it.

        Not installed is no error here.
        """
        self._numpy = True
        # Threads would not survive a fork.
        os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        try:
            import numpy  # noqa: F401  (to have it warm)
        except ImportError:
            return
        for room in self._spare.values():
            room.kill()
            self._dying.append(room)
        self._spare.clear()

    def _take(self, name: str) -> Room:
        return self._spare.pop(name) if name in self._spare else self._room(name)

    def _room(self, name: str) -> Room:
        return Room(self._settings, private=name == "candidate")

    def _do(self, job: dict[str, Any], sockets: list[socket.socket]) -> dict[str, Any]:
        """Run one program to its end and report how it ended."""
        if job["numpy"] and not self._numpy:
            self._import_numpy()
        timeout = float(job["timeout"])
        program, verdict = sockets
        roles: list[tuple[str, str, list[socket.socket], float]]
        if job["judge"] == "official":
            roles = [("candidate", "official", [program, verdict], timeout)]
        else:
            asked, asking = socket.socketpair()
            sockets += [asked, asking]
            roles = [("candidate", "candidate", [program, asked], timeout)]
            roles.append(("judge", "judge", [verdict, asking], 20 + 10 * timeout))
        rooms = {name: self._take(name) for name, *_ in roles}
        setup = [rooms[name].begin(role, given, limit) for name, role, given, limit in roles]
        for one in sockets:
            one.close()
        now = time.monotonic()
        run = Run(rooms=rooms, limits=self._settings.limits, deadline=now + 60 + 20 * timeout, rest_limit=12 + timeout)
        for name in rooms:
            self._spare[name] = self._room(name)  # for the next program, while this one runs
        judge = rooms.get("judge")
        end = "setup" if any(setup) else self._wait(run, judge.line if judge else rooms["candidate"].ended)
        if end == "":
            end = "early" if judge is None or judge.line.recv(64) in (ENDED_EARLY, b"") else "done"
        report = self._finish(run, early=end == "early")
        return report | {"end": end, "setup": "; ".join(filter(None, setup))}

    def _wait(self, run: Run, sign: socket.socket | int) -> str:
        """Wait until `sign` can be read, or for a limit; return which limit, or ""."""
        poll = select.poll()
        poll.register(sign, select.POLLIN)
        poll.register(self._control, 0)  # only that the harness is gone
        while True:
            events = poll.poll(_LOOK * 1000)
            if any(descriptor == self._control.fileno() for descriptor, _ in events):
                self._close([*run.rooms.values(), *self._spare.values()])
                os._exit(0)
            if events:
                return ""
            reached = run.reached()
            if reached is not None:
                return reached

    def _finish(self, run: Run, *, early: bool) -> dict[str, Any]:
        """Kill what is left of a program, and say how what had ended by itself did so."""
        report: dict[str, Any] = {}
        for name, room in run.rooms.items():
            ended = room.wait(2.0 if early else 0.0)
            room.kill()
            self._dying.append(room)
            if ended:
                self._dying.pop()
                status, cpu = room.bury(wait=True) or (0, 0.0)
                report[name] = {"status": status, "cpu": cpu}
        return report

    def _bury(self) -> None:
        """Collect the dead. The kernel takes its time over namespaces, so the last few are left to the next time."""
        self._dying = [room for room in self._dying if room.bury(wait=False) is None]
        while len(self._dying) > self.most_dying:
            self._dying.pop(0).bury(wait=True)
