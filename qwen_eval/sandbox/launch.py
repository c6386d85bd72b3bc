"""Starts the zygote, and says in plain lines what to do where no isolation can be had."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qwen_eval.errors import MissingError
from qwen_eval.sandbox import kernel, syscalls, wire

__all__ = ["SandboxError", "launch"]

ZYGOTE: Final = Path(__file__).with_name("zygote.py")
PATIENCE: Final = 120.0  # seconds for the interpreter to start, on whatever machine
UNSAFE: Final = "or --unsafe-exec, which runs model-written code with your rights and marks the result."


class SandboxError(MissingError):
    """No isolation can be had on this machine."""


def launch(controls: list[socket.socket], *, walls: bool) -> subprocess.Popen[bytes]:
    """Start the zygote with one worker a control socket; return when it is ready. SandboxError says why it is not."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"The sandbox needs Linux; this is {sys.platform}.\nNext: use a Linux machine or container.")
    if walls and kernel.MACHINE not in syscalls.ARCHITECTURES:
        known = " and ".join(syscalls.ARCHITECTURES)
        raise SandboxError(
            f"The sandbox knows the system calls of {known}, not of {kernel.MACHINE}.\nNext: {UNSAFE[3:]}"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    package = str(ZYGOTE.parents[2])
    command = [sys.executable, "-I", "-X", "utf8", str(ZYGOTE), package, str(theirs.fileno())]
    with ours:
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the harness, which ends the sandbox in order
            )
        try:
            hello = {"walls": walls}
            wire.send_job(ours, hello, [control.fileno() for control in controls])
            ours.settimeout(PATIENCE)
            answer = wire.receive_json(ours)
        except wire.BrokenWire:
            answer = {"stage": "start", "error": f"{sys.executable} -I ended without a word"}
        except BaseException:
            process.kill()
            process.wait()
            raise
    if not answer.get("ready"):
        process.kill()
        process.wait()
        raise SandboxError(_explain(answer))
    return process


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _explain(answer: Mapping[str, Any]) -> str:
    """Say what is missing, by what the machine says of itself."""
    first = f"No sandbox: {answer.get('error')} ({answer.get('stage')})."
    container = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and os.geteuid() != 0:
        why = "Ubuntu's AppArmor keeps user namespaces from ordinary programs."
        what = "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, a profile (SANDBOX.md),"
    elif _read("/proc/sys/kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        why = "This machine keeps user namespaces from ordinary users."
        what = "`sudo sysctl kernel.unprivileged_userns_clone=1`,"
    elif _read("/proc/sys/user/max_user_namespaces") == "0":
        why = "This machine allows no user namespaces."
        what = "`sudo sysctl user.max_user_namespaces=10000`,"
    elif container:
        why = "This container may not make namespaces."
        what = "start it with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined` (SANDBOX.md),"
    else:
        why = "The kernel refused what the sandbox is made of."
        what = "SANDBOX.md says what it needs;"
    return f"{first}\n{why}\nNext: {what} {UNSAFE}"
