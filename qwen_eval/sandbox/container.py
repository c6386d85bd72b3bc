"""The zygote inside a container, where this machine keeps namespaces from ordinary users but lets them use an engine.

The container is no wall of ours: inside it the zygote builds the same walls as elsewhere, by the right to make
namespaces that the engine gives it. The image only lends its empty file system; Python and this package are the
harness' own, mounted read-only.
"""

import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import enclosure

__all__ = ["ENGINES", "start"]

IMAGE: Final = "debian:stable-slim"
# Nothing of the user's is imported, and sets are in the same order in every process.
INTERPRETER: Final = (sys.executable, "-s", "-P", "-X", "utf8")
ENVIRONMENT: Final = {"PYTHONHASHSEED": "0"}
PATIENCE: Final = 600.0  # seconds: the engine may have to fetch the image
_UNMASK: Final = {"docker": "systempaths=unconfined", "podman": "unmask=ALL", "runsc": "systempaths=unconfined"}
ENGINES: Final = tuple(_UNMASK)


def start(container: str, zygote: Path, distributions: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the zygote in a container ("docker", "podman:IMAGE"); return the engine's process and the socket to it.

    `distributions` are installed packages that have to be there.
    """
    engine, _, image = container.partition(":")
    if engine not in _UNMASK:
        raise UsageError(f"A container engine is one of {', '.join(ENGINES)}, not {engine!r}.")
    with tempfile.TemporaryDirectory(prefix="qwen_eval-") as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/boot")
        server.listen(1)
        with open(f"{folder}/said", "wb") as said:
            try:
                process = subprocess.Popen(
                    [*_run(engine, folder, distributions), image or IMAGE, *_zygote(zygote, f"{folder}/boot")],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxError(f"No sandbox: {engine} cannot be started ({error.strerror}).") from None
        try:
            return process, _accept(server, process, Path(folder, "said"), engine)
        except BaseException:
            process.kill()
            process.wait()
            raise


def _program(engine: str) -> str:
    """The command of an engine: gVisor's runsc is a runtime of Docker's."""
    return "docker" if engine == "runsc" else engine


def _accept(server: socket.socket, process: subprocess.Popen[bytes], said: Path, engine: str) -> socket.socket:
    """Wait for the zygote to call."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if select.select([server], [], [], 0.1)[0]:
            return server.accept()[0]
        if process.poll() is not None:
            break
    lines = said.read_text(errors="replace").strip().splitlines()
    raise SandboxError(
        f"No sandbox: {engine} started no container ({lines[-1][:300] if lines else 'it said nothing'})."
    )


def _zygote(zygote: Path, boot: str) -> list[str]:
    """The command inside. A virtual environment's interpreter is a link, and the environment is not one's own there."""
    return [*INTERPRETER, str(zygote), str(zygote.parents[2]), boot]


def _run(engine: str, folder: str, distributions: Sequence[str]) -> list[str]:
    """The engine's command up to the image."""
    words = [_program(engine), "run", "--rm", "--network", "none", "--cap-add", "SYS_ADMIN"]
    words += [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
    words += ["--runtime", "runsc"] if engine == "runsc" else []
    for option in ("seccomp=unconfined", "apparmor=unconfined", "label=disable", _UNMASK[engine]):
        words += ["--security-opt", option]  # what the zygote does, these forbid; it forbids the programs more
    return words + [f"--volume={place}" for place in [f"{folder}:{folder}", *_mounts(distributions)]]


def _mounts(distributions: Sequence[str]) -> list[str]:
    """What the zygote needs of this machine, read-only: the system's libraries, Python, this package."""
    package = Path(__file__).parents[1]
    places = [path for path in enclosure.sources(distributions) if not path.startswith("/dev/")]
    places += [sys.prefix, sys.base_prefix, str(package)]
    return [f"{place}:{place}:ro" for place in dict.fromkeys(places) if place != "/usr"]
