"""The harness' end of a worker's control socket: one job at a time, and the report that belongs to it."""

import contextlib
import socket
from typing import Any

from qwen_eval.sandbox import wire

__all__ = ["Control"]


class Control:
    """Sends jobs and reads reports.

    A worker can be killed at any time, by a machine without memory for instance. The zygote then says "lost" and puts
    another in its place, which may find the job in the socket that the dead one had not taken yet, and report on it. So
    jobs are numbered, and a report on one that nobody waits for any more is passed over.
    """

    def __init__(self, wire_end: socket.socket) -> None:
        self._wire = wire_end
        self._number = 0

    def fileno(self) -> int:
        """The descriptor of the socket, for `poll`."""
        return self._wire.fileno()

    def send(self, job: dict[str, Any], descriptors: list[int]) -> None:
        """Send a job; wire.BrokenWire when the sandbox has ended."""
        with contextlib.suppress(BlockingIOError):
            while self._wire.recv(1 << 16, socket.MSG_DONTWAIT):
                continue  # what came since the last report: that a worker was killed while it had nothing to do
        self._number += 1
        wire.send_job(self._wire, job | {"number": self._number}, descriptors)

    def receive(self) -> dict[str, Any] | None:
        """Read a report; None for one on an earlier job. wire.BrokenWire when the sandbox has ended."""
        report: dict[str, Any] = wire.receive_job(self._wire)[0]
        return report if report["end"] == "lost" or report["number"] == self._number else None

    def hang_up(self) -> None:
        """End the worker process, and with it what it runs."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()
