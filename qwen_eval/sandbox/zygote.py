"""The first process of the sandbox, started by the harness with exec, an empty environment and one socket.

exec and not fork: a forked child would hold the harness' whole memory (model keys, tests, paths) and its environment,
which /proc shows to everybody inside. Three steps, each a function below:

1. the *launcher* (outside) makes new user, pid, mount, network, ipc and uts namespaces,
2. its child, pid 1 of them, builds the root, imports what programs usually import, and forks the workers,
3. each *worker* takes a network namespace of its own and runs programs (`worker.py`).

When the harness closes its sockets, or dies, the workers end, then pid 1, and with pid 1 everything inside.
"""

import sys

if __name__ == "__main__":
    # -P keeps this script's folder off the path. The entry goes away again before anything runs.
    sys.path.insert(0, sys.argv[1])

import contextlib
import gc
import importlib
import os
import signal
import socket
import tempfile
import traceback
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qwen_eval.sandbox import enclosure, kernel, room, session_worker, stage, syscalls, wire, worker

# What programs of coding benchmarks import; each is imported once here instead of once a program.
# Not random or threading: what they do after every fork costs more than importing them where they are used.
WARM: Final = (
    *("bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools"),
    *("_hashlib", "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "string", "typing"),
)
NOBODY: Final = 65534  # what root becomes outside, so that even a way out of the namespaces ends as nobody


def _say(boot: socket.socket, **what: Any) -> None:
    with contextlib.suppress(wire.BrokenWire):
        wire.send_json(boot, what)


def _map_users(pid: int) -> int | None:
    """Map the user inside to one outside, for the process `pid`; return the number it must still change to."""
    root = os.geteuid() == 0
    for outside_user, outside_group in [(NOBODY, NOBODY)] * root + [(os.geteuid(), os.getegid())]:
        try:
            with open(f"/proc/{pid}/uid_map", "w", encoding="ascii") as file:
                file.write(f"{enclosure.USER} {outside_user} 1")
        except OSError:
            continue  # root of a container may not know nobody
        if not root:
            with open(f"/proc/{pid}/setgroups", "w", encoding="ascii") as file:
                file.write("deny")
        with open(f"/proc/{pid}/gid_map", "w", encoding="ascii") as file:
            file.write(f"{enclosure.USER} {outside_group} 1")
        return enclosure.USER if outside_user != os.geteuid() else None
    raise PermissionError("no user can be mapped into a user namespace")


def _make_namespaces() -> int | None:
    """Move this process into new namespaces.

    A helper that stays outside maps the users: inside nobody has the right to.
    """
    launcher = os.getpid()
    ours, theirs = socket.socketpair()
    helper = os.fork()
    if helper == 0:
        ours.close()
        answer = "?"
        try:
            if theirs.recv(1):
                answer = str(_map_users(launcher))
        except OSError as error:
            answer = f"? {error}"
        theirs.sendall(answer.encode())
        os._exit(0)
    theirs.close()
    if os.geteuid() == 0:
        os.setgroups([])
    flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
    try:
        kernel.unshare(flags | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
        ours.sendall(b"1")
        answer = ours.recv(1 << 12).decode()
    finally:
        ours.close()
        os.waitpid(helper, 0)
    if answer.startswith("?"):
        raise PermissionError(f"no user can be mapped into a user namespace {answer}")
    return None if answer == "None" else int(answer)


def _warm() -> None:
    for name in WARM:
        importlib.import_module(name)
    _freeze()


def _warm_session(session: Any, *, walls: bool) -> None:
    """Make the shell that sessions start with, in a place that can be written to and is gone afterwards."""
    if walls:
        enclosure.mount_own()
        session.warm(os.path.dirname(enclosure.HOME))
        os.chdir("/")
        kernel.detach("/tmp")
        kernel.detach("/proc")
    else:
        with tempfile.TemporaryDirectory(prefix="qwen_eval-") as folder:
            session.warm(folder)
    _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()  # what is here stays; collections in programs need not touch (and so copy) its pages


def _worker(control: socket.socket, others: list[socket.socket], settings: room.Settings) -> None:
    """Body of a worker process."""
    for other in others:
        if other is not control:
            other.close()
    if settings.walls:
        kernel.die_with_parent(signal.SIGKILL)
        kernel.unshare(kernel.CLONE_NEWNET)  # abstract sockets are shared within a network namespace
        settings = replace(settings, home=os.open("/proc/self/ns/pid", os.O_RDONLY))
    kind = worker.Worker if settings.session is None else session_worker.SessionWorker
    kind(control, settings).serve()


def _fork_worker(index: int, controls: list[socket.socket], settings: room.Settings) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _worker(controls[index], controls, settings)
        finally:
            os._exit(0)
    return pid


def _kill_orphans(workers: Container[int]) -> None:
    """Kill what a worker that was killed has left: the kernel makes its rooms children of pid 1."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
            if parent == os.getpid() and int(name) not in workers:
                os.kill(int(name), signal.SIGKILL)


def _inside(boot: socket.socket, hello: dict[str, Any], controls: list[socket.socket], become: int | None) -> None:
    """Pid 1: build the root, warm up, keep the workers running until the harness closes their sockets."""
    walls = bool(hello["walls"])
    session = importlib.import_module("qwen_eval.sandbox.session") if hello["distributions"] else None
    if walls:
        enclosure.build_root(become, hello["distributions"])
        kernel.die_with_parent(signal.SIGKILL)  # after the change of user, which would undo it
        kernel.set_host_name("sandbox")
        Path("/proc/self/oom_score_adj").write_text(
            "1000", encoding="ascii"
        )  # on a machine without memory, this goes first
        with contextlib.suppress(OSError):
            kernel.unshare(kernel.CLONE_NEWCGROUP)  # only hides the name of the harness' control group
    sys.path.remove(sys.argv[1])
    stage.furnish(enclosure.HOME)
    if session is not None:
        _warm_session(session, walls=walls)
    else:
        _warm()
    limits = enclosure.Limits()
    settings = room.Settings(
        limits=limits,
        process_limits=enclosure.process_limits(limits, walls=walls),
        walls=walls,
        instructions=syscalls.filter_for(kernel.MACHINE) if walls else b"",
        session=session.run if session is not None else None,
    )
    _say(boot, ready=True)
    boot.close()
    running = {_fork_worker(index, controls, settings): index for index in range(len(controls))}
    while running:
        pid, status = os.wait()
        index = running.pop(pid, None)
        if walls and status != 0:
            _kill_orphans(running)
        if (
            index is not None and status != 0
        ):  # killed, by a machine without memory for instance: the harness tries again
            with contextlib.suppress(wire.BrokenWire):
                wire.send_job(controls[index], {"end": "lost"}, [])
                running[_fork_worker(index, controls, settings)] = index


def _boot(where: str) -> socket.socket:
    """Return the socket to the harness: a descriptor, or in a container a path to call."""
    if where.isdigit():
        return socket.socket(fileno=int(where))
    boot = socket.socket(socket.AF_UNIX)
    boot.connect(where)
    return boot


def main() -> None:
    """Read the harness' greeting, make the namespaces, hand over to pid 1 and wait for it."""
    boot = _boot(sys.argv[2])
    hello, descriptors = wire.receive_job(boot)
    controls = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    stage = "namespaces"
    try:
        become = _make_namespaces() if hello["walls"] else None
        stage = "root"
        pid = os.fork()
        if pid == 0:
            _inside(boot, hello, controls, become)
            os._exit(0)
    except BaseException as error:
        _say(boot, stage=stage, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        os._exit(1)
    boot.close()
    for control in controls:
        control.close()
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
