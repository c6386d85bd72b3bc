"""One room and the process in it, as the worker sees them; and the body of that process until its role begins.

Rooms are made before they are needed: making one takes longer than running most programs in it. A room learns what it
is for from a message on its line, with the sockets it needs, so that a room made ahead knows of no program and no test.
"""

import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qwen_eval.sandbox import candidate, judge, kernel, official
from qwen_eval.sandbox.enclosure import Limits, enter_room
from qwen_eval.sandbox.watch import Tree, Usage
from qwen_eval.sandbox.wire import BrokenWire, receive_job, send_job

__all__ = ["DONE", "ENDED_EARLY", "Room", "Settings"]

READY: Final = "ok"
DONE: Final = b"done"  # a judge has sent its verdict
ENDED_EARLY: Final = b"gone"  # so it has, and the program was gone before the end


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all rooms of a worker have in common."""

    limits: Limits
    process_limits: list[tuple[int, int]]
    walls: bool
    instructions: bytes  # the seccomp filter
    home: int = -1  # the worker's own pid namespace
    session: Callable[[socket.socket, socket.socket], None] | None = None  # what runs sessions, where the zygote has it


class Room:
    """A room with a process in it, from its making to its end."""

    def __init__(self, settings: Settings, *, private: bool) -> None:
        """Fork a process into a room of its own. It waits there for `begin`. A program's room is `private`."""
        self._settings = settings
        self._space = ("own" if private else "one") if settings.walls else "session"
        self.cpu_limit = 0.0
        self.usage: Usage | None = None
        self.held = 0  # bytes of memory, files included, when it was last stopped
        self._tree: Tree | None = None
        self._folder = None if settings.walls else _make_folder()
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if settings.walls:
            kernel.unshare(kernel.CLONE_NEWPID)  # for the next child; this process stays where it is
        self.pid = os.fork()
        if self.pid == 0:
            _live(theirs, settings, private, self._folder)
        theirs.close()
        if settings.walls:
            kernel.enter_namespace(settings.home, kernel.CLONE_NEWPID)  # or the next child could not have a new one
        self.ended = os.pidfd_open(self.pid)  # readable when the process has ended

    def begin(self, role: str, sockets: list[socket.socket], cpu_limit: float) -> str:
        """Wait until the room is made and give its process a role; return "" or why there is no room."""
        self.cpu_limit = cpu_limit
        try:
            said = self.line.recv(1 << 12).decode(errors="replace")
            if said == READY:
                send_job(self.line, {"role": role, "cpu": int(cpu_limit) + 2}, [one.fileno() for one in sockets])
                return ""
        except (OSError, BrokenWire) as error:
            said = str(error)
        return said or "its first process died"

    def look(self) -> Usage | None:
        """Update and return what the room's processes use; None when they have ended."""
        try:
            self.usage = self._opened().look()
        except OSError:
            self.usage = None
        return self.usage

    def _opened(self) -> Tree:
        if self._tree is None:
            self._tree = Tree(self.pid, memory=self._settings.limits.memory, space=self._space)
        return self._tree

    def interrupt(self) -> None:
        """Send the first process what Ctrl-C sends."""
        os.kill(self.pid, signal.SIGINT)

    def hold(self) -> bool:
        """Stop every process of the room until `release`; return whether that was possible."""
        try:
            stopped = self._opened().stop()
            self.held = _written(self.pid) if self._settings.walls else 0
        except OSError:
            return False
        usage = self.look()
        self.held += usage.memory if usage is not None else 0
        return stopped and usage is not None

    def release(self) -> None:
        """Let the room's processes go on."""
        try:
            self._opened().resume()
        except OSError:
            return  # it has ended, which whoever waits for it will see

    def wait(self, seconds: float) -> bool:
        """Wait until the first process has ended, at most so long; return whether it has."""
        return bool(select.select([self.ended], [], [], seconds)[0])

    def kill(self) -> None:
        """Kill every process of the room."""
        if self._settings.walls:
            os.kill(self.pid, signal.SIGKILL)  # the first process of a pid namespace takes all others with it
        else:
            os.killpg(self.pid, signal.SIGKILL)
        self.line.close()
        if self._tree is not None:
            self._tree.close()

    def bury(self, *, wait: bool) -> tuple[int, float] | None:
        """Take an ended process out of the table; return exit status and CPU seconds, None while it is still dying."""
        pid, status, used = os.wait4(self.pid, 0 if wait else os.WNOHANG)
        if pid == 0:
            return None
        os.close(self.ended)
        if self._folder is not None:
            _remove_folder(self._folder)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def _written(pid: int) -> int:
    """Bytes of the files in a room, which are memory as well."""
    status = os.statvfs(f"/proc/{pid}/root/tmp")
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _make_folder() -> str:
    import tempfile  # only without walls; each module that is not there makes every fork faster

    return tempfile.mkdtemp(prefix="qwen_eval-")


def _remove_folder(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _live(line: socket.socket, settings: Settings, private: bool, folder: str | None) -> None:
    """All of a room's first process, which never returns from here."""
    try:
        os.setsid()  # a signal to one's process group passes through namespaces
        _close_all_but(line.fileno())
        _own_null()
        enter_room(settings.process_limits, settings.instructions, private=private, folder=folder)
        kernel.die_with_parent(signal.SIGKILL)
        line.send(READY.encode())
        job, descriptors = receive_job(line)
        resource.setrlimit(resource.RLIMIT_CPU, (job["cpu"], job["cpu"]))
        _play(job, [socket.socket(fileno=descriptor) for descriptor in descriptors], line, settings)
    except BaseException as error:
        _complain(line, error)
    finally:
        os._exit(1)


def _play(job: dict[str, Any], sockets: list[socket.socket], line: socket.socket, settings: Settings) -> None:
    if job["role"] == "judge":
        early = judge.run(*sockets)
        line.send(ENDED_EARLY if early else DONE)
        os._exit(0)
    if job["role"] == "session" and settings.session is not None:
        settings.session(sockets[0], line)
        os._exit(0)
    line.close()  # what runs from here on is not ours
    if job["role"] == "official":
        official.run(*sockets)
    else:
        candidate.run(*sockets)
    os._exit(0)


def _complain(line: socket.socket, error: BaseException) -> None:
    try:
        line.send(f"{type(error).__name__}: {error}".encode()[:4000])
    except OSError:
        return


def _close_all_but(kept: int) -> None:
    if kept > 3:  # os.closerange(3, 3) would close all
        os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 20)


def _own_null() -> None:
    """Open the standard streams anew: locks and flags of what is shared with other rooms would outlive this one."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)
