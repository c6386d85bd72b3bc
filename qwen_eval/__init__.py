"""qwen_eval: the published prompts, the published scoring rules, and how sure a score is.

`run`, `compare`, `gate` and `load_run` are what the command line does (`qwen_eval/api.py`); they are imported when
first used, so that `import qwen_eval` costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_eval.api import LoadedRun, compare, gate, load_run, run

__all__ = ["LoadedRun", "__version__", "compare", "gate", "load_run", "run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        from qwen_eval import api

        return getattr(api, name)
    raise AttributeError(f"module 'qwen_eval' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
