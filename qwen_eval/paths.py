"""Where things are on this machine: what ships with the project (tasks, published scores), and the user's cache."""

import os
from pathlib import Path

__all__ = ["home", "reported_root", "tasks_root"]


def home() -> Path:
    """Return the cache folder: `QWEN_EVAL_HOME`, else `qwen_eval` under the user's cache folder.

    It holds fetched datasets, converted starter models and the digests of local checkpoints.
    """
    configured = os.environ.get("QWEN_EVAL_HOME")
    if configured:
        return Path(configured).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("qwen_eval", appauthor=False)


def tasks_root() -> Path:
    """Return the folder of the project's own task files.

    In a wheel they are `qwen_eval/_tasks`; in a checkout they are `tasks` beside the package.
    """
    return _shipped("_tasks", "tasks")


def reported_root() -> Path:
    """Return the folder of the published scores.

    In a wheel it is `qwen_eval/_reported`; in a checkout it is `results/reported` beside the package.
    """
    return _shipped("_reported", "results/reported")


def _shipped(packaged: str, beside: str) -> Path:
    package = Path(__file__).resolve().parent
    return package / packaged if (package / packaged).is_dir() else package.parent / beside
