"""Isolation and judging for code that a model wrote. Knows nothing of benchmarks. What it promises: `SANDBOX.md`.

The names are found when they are asked for: the processes inside the sandbox import parts of this package as well, and
every module they do not have makes every program start faster.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_eval.sandbox.host import Sandbox
    from qwen_eval.sandbox.program import Outcome, Program
    from qwen_eval.sandbox.sessions import Seen, Sessions, Step

__all__ = ["Outcome", "Program", "Sandbox", "Seen", "Sessions", "Step"]

_HOMES = {"Outcome": "program", "Program": "program", "Sandbox": "host"}
_HOMES |= dict.fromkeys(("Seen", "Sessions", "Step"), "sessions")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
