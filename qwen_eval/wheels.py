"""Packages that are fetched for the data in them: by the user's own pip, from the user's own index, never installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from qwen_eval.errors import MissingError

__all__ = ["PipError", "fetch_wheel"]


class PipError(MissingError):
    """Pip could not fetch a package; the message is what pip says."""


def fetch_wheel(requirement: str, *, into: Path, watch: Callable[[int], None] = lambda size: None) -> None:
    """Put the wheel of `requirement` (`name==version`) at `into`, whole or not at all; its folder must exist.

    `watch` is called several times a second with the bytes that are there. Raises PipError.
    """
    scratch = Path(mkdtemp(prefix="pip-", dir=into.parent))
    temporary, log = scratch / "temporary", scratch / "log.txt"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--dest={scratch}", requirement]
    # pip downloads into its folder for temporary files first. With that one here, its size can be watched, a small
    # system-wide one does not fill up, and a killed pip leaves nothing behind for good.
    environment = os.environ | {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while pip.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(timeout=0.2)
                watch(_bytes_below(temporary))
        finally:
            pip.kill()
            pip.wait()
    found = list(scratch.glob("*.whl"))
    if pip.returncode != 0 or len(found) != 1:
        reason = _last_words(log.read_text(encoding="utf-8", errors="replace"))
        shutil.rmtree(scratch)
        raise PipError(reason)
    os.replace(found[0], into)
    watch(into.stat().st_size)
    shutil.rmtree(scratch)


def _bytes_below(folder: Path) -> int:
    """Return the bytes of all files below `folder`, which another process may be changing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.path.getsize(os.path.join(parent, name))
    return total


def _last_words(output: str) -> str:
    """Return the line of pip's output that tells most: the last error, else the last line that is no notice."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    plain = [line for line in lines if not line.startswith(("WARNING:", "[notice]"))]
    return (errors or plain or lines or ["nothing"])[-1][:300]
