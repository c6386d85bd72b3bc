"""Finds tasks by file name, imports one when it is asked for. There is no list of tasks anywhere.

A task is a file `NAME.py` with a `TASK`; its data pins and its small set are in `_data` and `_mini` beside it.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_eval.errors import UsageError, did_you_mean
from qwen_eval.paths import tasks_root
from qwen_eval.task import Protocol, Task

__all__ = ["Entry", "default_protocol", "find", "load", "protocol", "split_name"]


@dataclass(frozen=True)
class Entry:
    """A task and the folder it was found in."""

    task: Task
    folder: Path


def find(include: Sequence[Path] = ()) -> dict[str, Path]:
    """Return every task file by task name, sorted. A folder given by the user wins over the project's own."""
    files: dict[str, Path] = {}
    for folder in (tasks_root(), *include):
        if not folder.is_dir():
            raise UsageError(f"--include-path {folder}: expected a folder of task files, found none.")
        files |= {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return dict(sorted(files.items()))


def load(name: str, files: Mapping[str, Path]) -> Entry:
    """Import the task called `name`. Raises UsageError for an unknown name or a file that declares no task."""
    if name not in files:
        raise UsageError(
            f"Unknown task '{name}'.{did_you_mean(name, files)}\nNext: `python -m qwen_eval tasks` lists all of them."
        )
    path = files[name]
    module_name = f"qwen_eval_task_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: expected a Python file, found none.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, TypeError, ValueError, NameError) as error:
        raise UsageError(f"{path}: this task file cannot be imported ({type(error).__name__}: {error}).") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task) or task.name != name:
        raise UsageError(f"{path}: expected `TASK = Task(name='{name}', …)`, found {type(task).__name__}.")
    return Entry(task, path.parent)


def split_name(name: str) -> tuple[str, str | None]:
    """Split `gsm8k@qwen` into task and protocol; the protocol is None where none is named."""
    task, at, chosen = name.strip().partition("@")
    if not task or (at and not chosen):
        raise UsageError(f"Expected TASK or TASK@PROTOCOL (for example gsm8k@qwen), found '{name}'.")
    return task, chosen or None


def protocol(task: Task, name: str) -> Protocol:
    """Return the protocol called `name`. Raises UsageError for an unknown one."""
    for found in task.protocols:
        if found.name == name:
            return found
    names = [found.name for found in task.protocols]
    raise UsageError(
        f"Unknown protocol '{name}' of {task.name}.{did_you_mean(name, names)}\n{task.name} has: {', '.join(names)}."
    )


def default_protocol(task: Task, *, chat: bool) -> Protocol:
    """Return the default for chat models (the second) or base models (the first).

    A task that has conversations only has one default, whatever the model.
    """
    chat = chat or all(protocol.chat for protocol in task.protocols)
    return task.protocols[1 if chat and len(task.protocols) > 1 else 0]
