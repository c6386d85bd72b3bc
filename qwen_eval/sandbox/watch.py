"""What a program's process tree has used: CPU seconds, memory, processes, and whether any of it is doing anything.

Read from outside through the /proc of the program's own pid namespace, in which its processes and no others appear.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Tree", "Usage"]

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
# Lines of status and of smaps_rollup; what a program has had swapped out is memory too.
_RESIDENT: Final = (b"RssAnon:", b"RssShmem:", b"VmSwap:", b"HugetlbPages:")
_SHARED: Final = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:", b"Private_Hugetlb:")
_STOPPED: Final = frozenset(b"TtZX")
_RESTING: Final = frozenset(b"STZXtIP")  # sleeping, stopped, dead. Running and waiting for a disk are not rest


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One look at a tree. CPU in seconds, memory in bytes, tasks with threads."""

    cpu: float
    memory: int
    tasks: int
    resting: bool


def _read(path: str, folder: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 1 << 14)
    finally:
        os.close(descriptor)


def _fields(stat: bytes) -> list[bytes]:
    """Split /proc/…/stat after the name, which may hold anything: state is 0, utime 11 … cstime 14, num_threads 17."""
    return stat[stat.rindex(b")") + 2 :].split()


class Tree:
    """A process tree, by the pid of its first process as its parent sees it."""

    def __init__(self, pid: int, *, memory: int, space: str) -> None:
        """Open the tree's /proc; `space` says which of the processes in it belong to the tree.

        "own": all, it is the /proc of a pid namespace of the tree's own. "session": those of its session, where there
        are no walls. "one": the process itself. `memory` is the limit: below it a quick count is enough, in which what
        forks share is counted for each of them.
        """
        self._memory = memory
        self._pid, self._space = pid, space
        path = f"/proc/{pid}/root/proc" if space == "own" else "/proc"
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._own: dict[str, tuple[bytes, float]] = {}  # of each process its start and its own seconds, when last seen
        self._gone = 0.0  # seconds of processes that have ended
        self._most = 0.0  # what ended children used may vanish from the sum when nobody waits for them

    def close(self) -> None:
        """Let go of the tree's /proc, which would otherwise keep the namespace alive."""
        os.close(self._folder)

    def look(self) -> Usage:
        """Read the tree's usage now."""
        cpu, memory, tasks, resting, seen = 0.0, 0, 0, True, []
        own: dict[str, tuple[bytes, float]] = {}
        for name, fields in self._members():
            try:
                own[name] = fields[19], sum(map(int, fields[11:13])) * _TICK
                memory += self._kilobytes(f"{name}/status", _RESIDENT) << 10
                threads = int(fields[17])
                resting = resting and fields[0][0] in _RESTING and (threads == 1 or self._threads_rest(name))
            except (OSError, ValueError, IndexError):
                continue  # it ended while it was looked at
            cpu += sum(map(int, fields[11:15])) * _TICK
            tasks += threads
            seen.append(name)
        if memory > self._memory:
            memory = sum(self._share(name) for name in seen)
        self._gone += sum(used for name, (start, used) in self._own.items() if own.get(name, (b"",))[0] != start)
        self._own = own
        self._most = max(self._most, cpu, self._gone + sum(used for _, used in own.values()))
        return Usage(cpu=self._most, memory=memory, tasks=tasks, resting=resting)

    def _members(self) -> Iterator[tuple[str, list[bytes]]]:
        """Yield the name of every process of the tree, and its fields."""
        for name in [str(self._pid)] if self._space == "one" else os.listdir(self._folder):
            if name.isdigit():
                try:
                    fields = _fields(_read(f"{name}/stat", self._folder))
                    if self._space != "session" or int(fields[3]) == self._pid:
                        yield name, fields
                except (OSError, ValueError, IndexError):
                    continue  # it ended while it was looked at

    def stop(self) -> bool:
        """Stop every process of the tree; return False where some are not to be stopped, as they always make others."""
        for pause in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            moving = [name for name, fields in self._members() if fields[0][0] not in _STOPPED]
            if not moving:
                return True
            self._signal(moving, signal.SIGSTOP)
            time.sleep(pause)
        return False

    def resume(self) -> None:
        """Let every process of the tree go on."""
        self._signal([name for name, _ in self._members()], signal.SIGCONT)

    def _signal(self, names: list[str], number: signal.Signals) -> None:
        """Send a signal to processes that are known by their numbers in a namespace of their own."""
        for name in names:
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._folder)
            except OSError:
                continue
            try:
                signal.pidfd_send_signal(descriptor, number)
            except OSError:
                continue  # it has ended
            finally:
                os.close(descriptor)

    def _kilobytes(self, path: str, names: tuple[bytes, ...]) -> int:
        """Add up lines like `RssAnon:  123 kB`. Files do not count: the kernel can drop them."""
        lines = _read(path, self._folder).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(names))

    def _share(self, name: str) -> int:
        """A process' memory with a page that n processes share counted as 1/n; slower to read."""
        try:
            return self._kilobytes(f"{name}/smaps_rollup", _SHARED) << 10
        except OSError:
            return 0

    def _threads_rest(self, name: str) -> bool:
        folder = os.open(f"{name}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._folder)
        try:
            threads = os.listdir(folder)
            return all(_fields(_read(f"{thread}/stat", folder))[0][0] in _RESTING for thread in threads)
        finally:
            os.close(folder)
