"""Starts the zygote, and says in plain lines what to do where no isolation can be had."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qwen_eval.errors import SandboxError
from qwen_eval.sandbox import container, kernel, syscalls, wire

__all__ = ["launch"]

ZYGOTE: Final = Path(__file__).with_name("zygote.py")
PATIENCE: Final = 120.0  # seconds for the interpreter to start, on whatever machine
UNSAFE: Final = "--unsafe-exec, which runs model-written code with your rights and marks the result."


def launch(
    controls: list[socket.socket], *, walls: bool, engine: str, distributions: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start the zygote with one worker a control socket; return when it is ready. SandboxError says why it is not.

    `engine` is "", or the container engine to start it in: "docker", "docker:IMAGE".
    With `distributions` the workers are for sessions, in which these packages and what they require can be imported.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"The sandbox needs Linux; this is {sys.platform}.\nNext: use a Linux machine or container.")
    if walls and kernel.MACHINE not in syscalls.ARCHITECTURES:
        known = " and ".join(syscalls.ARCHITECTURES)
        raise SandboxError(f"The sandbox knows the system calls of {known}, not of {kernel.MACHINE}.\nNext: {UNSAFE}")
    process, boot = container.start(engine, ZYGOTE, distributions) if engine else _start()
    try:
        with boot:
            hello = {"walls": walls, "distributions": list(distributions)}
            wire.send_job(boot, hello, [control.fileno() for control in controls])
            boot.settimeout(PATIENCE)
            answer = wire.receive_json(boot)
    except wire.BrokenWire:
        answer = {"stage": "start", "error": f"{sys.executable} ended without a word"}
    except BaseException:
        process.kill()
        process.wait()
        raise
    if not answer.get("ready"):
        process.kill()
        process.wait()
        raise SandboxError(_explain(answer))
    return process


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the zygote on this machine; return it and the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            [*container.INTERPRETER, str(ZYGOTE), str(ZYGOTE.parents[2]), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=container.ENVIRONMENT,
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the harness, which ends the sandbox in order
        )
    return process, ours


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _explain(answer: Mapping[str, Any]) -> str:
    """Say what is missing, by what the machine says of itself."""
    first = f"No sandbox: {answer.get('error')} ({answer.get('stage')})."
    if str(answer.get("error")).startswith("ModuleNotFoundError"):
        return (
            f"{first}\nSessions need libraries that this Python does not have.\nNext: pip install ipython seaborn sympy"
        )
    contained = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and os.geteuid() != 0:
        why = "Ubuntu's AppArmor keeps user namespaces from ordinary programs."
        what = (
            "a profile (SANDBOX.md), `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, --container docker,"
        )
    elif _read("/proc/sys/kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        why = "This machine keeps user namespaces from ordinary users."
        what = "`sudo sysctl kernel.unprivileged_userns_clone=1`, --container docker,"
    elif _read("/proc/sys/user/max_user_namespaces") == "0":
        why = "This machine allows no user namespaces."
        what = "`sudo sysctl user.max_user_namespaces=10000`,"
    elif contained:
        why = "This container may not make namespaces."
        what = "start it with the options that SANDBOX.md names,"
    else:
        why = "The kernel refused what the sandbox is made of."
        what = "SANDBOX.md says what it needs; else --container docker,"
    return f"{first}\n{why}\nNext: {what} or {UNSAFE}"
