"""One worker for sessions: holds at most one live session, runs its steps, and ends it.

A worker each, so that two sessions share not even a network namespace. Between steps every process of the session is
stopped: what a step leaves running gets no time that belongs to none.
"""

import socket
import time
from typing import Any, Final

from qwen_eval.sandbox.room import Room, Settings
from qwen_eval.sandbox.worker import Run, Worker

__all__ = ["SessionWorker"]

LIFE: Final = 86400.0  # processor seconds of all steps of a session: for the kernel's own limit, behind the watch
GRACE: Final = 2.0  # processor seconds a step has to end in after it was interrupted
GRACE_WALL: Final = 5.0
_INTERRUPTED: Final = ("session cpu", "rest", "wall")


class SessionWorker(Worker):
    """Takes jobs of three kinds: a new session (with the socket to it), a step, and the end."""

    most_dying = 0

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        super().__init__(control, settings)
        self._session: Room | None = None

    def _idle(self) -> list[Room]:
        return [self._session] if self._session is not None else []

    def _do(self, job: dict[str, Any], sockets: list[socket.socket]) -> dict[str, Any]:
        """Do one job; report how it ended and whether the session is alive."""
        setup, end = "", ""
        if job["do"] != "step":
            self._end()
        if job["do"] == "begin":
            self._session = Room(self._settings, private=True)
            setup = self._session.begin("session", sockets, LIFE)
        for one in sockets:
            one.close()
        if setup:
            self._end()
            end = "setup"
        elif self._session is not None:
            end = self._step(self._session, float(job["timeout"]))
        elif job["do"] == "step":
            end = "none"
        session = self._session
        return {"end": end, "setup": setup, "alive": session is not None, "memory": session.held if session else 0}

    def _step(self, room: Room, timeout: float) -> str:
        """Wait for the end of a step, interrupt it at its limit, and stop the session until the next one.

        Returns "done", "gone" (the process has ended or cannot say that the step has) or the limit that was reached.
        """
        usage = room.look()
        room.cpu_limit = (usage.cpu if usage is not None else 0.0) + timeout
        room.release()
        limits, now = self._settings.limits, time.monotonic()
        run = Run(rooms={"session": room}, limits=limits, deadline=now + 60 + 20 * timeout, rest_limit=12 + timeout)
        reached = self._wait(run, room.line)
        done = reached == "" and room.line.recv(64) == b"done"
        if reached in _INTERRUPTED:
            room.interrupt()
            room.cpu_limit = (room.usage.cpu if room.usage is not None else 0.0) + GRACE
            run.deadline, run.rest_limit = time.monotonic() + GRACE_WALL, GRACE_WALL
            run.rested = 0.0
            done = self._wait(run, room.line) == "" and room.line.recv(64) == b"done"
        if not done or not room.hold():
            self._end()
        elif not reached and room.usage is not None and room.usage.cpu > room.cpu_limit:
            reached = "session cpu"  # which nobody saw in time: where many processes run, the watch has to wait as well
        return reached or ("done" if done else "gone")

    def _end(self) -> None:
        if self._session is not None:
            self._session.kill()
            self._dying.append(self._session)
            self._session = None
