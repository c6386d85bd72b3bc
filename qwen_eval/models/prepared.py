"""Folders in the cache that take long to make: made by one process while others wait, and whole or not there at all."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_eval.errors import ModelError

__all__ = ["SOURCE_FILE", "Source", "prepared_folder"]

SOURCE_FILE = "qwen_eval_source.json"
"""The file in a finished folder that says where it came from."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a converted folder came from; written into it as `qwen_eval_source.json`."""

    name: str
    sha256: str
    """Digest of the GGUF file."""
    packages: tuple[str, ...] = ()
    note: str
    conversion: int
    """Version of the conversion; a folder of another version is made again."""


def prepared_folder(target: Path, *, source: Source, build: Callable[[Path], None]) -> Path:
    """Return `target` once it is a finished folder for `source`; one process builds it, all others wait.

    `build` gets a work folder beside the target and writes the checkpoint into its subfolder `converted`. What else
    it leaves in the work folder stays for the next try, and is deleted after success.
    """
    work = target.with_name(f".{target.name}.work")
    if _is_finished(target, source=source) and not work.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target):
            if not _is_finished(target, source=source):
                _refuse_foreign_folder(target)
                work.mkdir(exist_ok=True)
                _delete(work / "converted")
                try:
                    build(work)
                    _publish(work, target=target, source=source)
                finally:
                    _delete(work / "converted")
                    with suppress(OSError):
                        work.rmdir()  # goes only when it is empty
            shutil.rmtree(work, ignore_errors=True)  # what cannot be deleted yet is tried again at the next call
    except OSError as error:
        raise ModelError(f"Cannot prepare {source.name} in {target.parent}: {error}") from error
    return target


def _is_finished(folder: Path, *, source: Source) -> bool:
    """Return whether `folder` was converted from `source` by this version of the conversion, and has lost nothing."""
    try:
        found = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in found["files"].items())
        return whole and (found["sha256"], found["conversion"]) == (source.sha256, source.conversion)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


@contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Hold the lock of `target`. It is the system's lock on an open file, so a killed process frees it."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is preparing {target.name}; waiting for it.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_foreign_folder(target: Path) -> None:
    if target.exists() and not (target / SOURCE_FILE).is_file():
        raise ModelError(
            f"{target} is in the way: expected a folder made by qwen_eval, found no {SOURCE_FILE} in it.\n"
            "Move it elsewhere; a checkpoint of your own is given with --model and its path."
        )


def _publish(work: Path, *, target: Path, source: Source) -> None:
    """Sign the folder `converted` in `work` with its source and give it the name `target`, in one step."""
    converted = work / "converted"
    files = {file.name: file.stat().st_size for file in sorted(converted.iterdir())}
    content = json.dumps(asdict(source) | {"files": files}, indent=2)
    (converted / SOURCE_FILE).write_text(content + "\n", encoding="utf-8")
    if target.exists():
        _delete(work / "older")
        os.replace(target, work / "older")
    os.replace(converted, target)


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
