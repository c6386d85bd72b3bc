"""What a sandbox for programs and one for sessions share: their beginning, their end, what is collected from them."""

import contextlib
import os
import queue
import socket
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from qwen_eval.errors import UsageError
from qwen_eval.sandbox.launch import launch

__all__ = ["Enclosed"]

Seen = TypeVar("Seen")


class Enclosed(Generic[Seen]):
    """Worker processes inside the zygote's walls, and what they have finished."""

    def __init__(self, *, workers: int | None, unsafe: bool, container: str) -> None:
        """Check how many run at a time (None: as many as there are processors) and how they are isolated."""
        if unsafe and container:
            raise UsageError("No isolation and a container exclude each other.")
        if workers is not None and workers < 1:
            raise UsageError(f"The sandbox needs at least one worker, not {workers}.")
        self._count = workers or _usable_processors()
        self._unsafe = unsafe
        self._container = container
        self._process: Any = None
        self._ready: queue.Queue[tuple[int, Seen]] = queue.Queue()
        self._in_flight = 0

    @property
    def mode(self) -> str:
        """How it is isolated, for manifests: "namespaces", "docker", "podman" or "unsafe"."""
        return "unsafe" if self._unsafe else self._container.partition(":")[0] or "namespaces"

    def _launch(self, workers: int, distributions: Sequence[str] = ()) -> list[socket.socket]:
        """Start the zygote with so many workers; return the socket to each. SandboxError: no isolation can be had."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
        try:
            self._process = launch(
                [theirs for _, theirs in pairs],
                walls=not self._unsafe,
                engine=self._container,
                distributions=distributions,
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [ours for ours, _ in pairs]

    def _end(self) -> None:
        """Wait until the zygote has ended, which it does when nobody is at the workers' sockets any more."""
        try:
            self._process.wait(timeout=5)
        except Exception:
            self._process.kill()  # the kernel then kills pid 1 of its namespace, and with it all others
            self._process.wait()

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, Seen]]:
        """Wait until something is finished, for `timeout` seconds at most (0 only looks), and return all that is.

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


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
