"""`python -m qwen_eval compare`: finished runs beside published scores."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from qwen_eval import registry
from qwen_eval.commands.options import option, output_format
from qwen_eval.errors import StoreError, UsageError
from qwen_eval.report.comparison import Line, Run, lines, table
from qwen_eval.reported import models, notes, reported

__all__ = ["beside", "compare"]

NEEDED: dict[str, type] = {
    "task": str,
    "protocol": str,
    "split": str,
    "shots": int,
    "mini": bool,
    "n": int,
    "rule": str,
    "rules": dict,
    "categories": dict,
    "model": dict,
}
"""What a comparison reads of metrics.json, and of which type it is."""


@click.command()
@option(
    "--reported",
    "names",
    multiple=True,
    metavar="MODEL",
    help="A model with published scores; may be repeated. `list` names all of them.",
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="PATH…")
@option(
    "--by",
    type=click.Choice(("task", "category")),
    default="task",
    show_default=True,
    help="Also set categories beside published ones.",
)
@output_format
def compare(*, names: Sequence[str], paths: Sequence[Path], by: str, format: str) -> None:
    """Set finished runs beside the published scores of a model. PATH: a run folder, a model's folder, or all results.

    A run stands beside every number of its task that is reported for its kind of model, base or chat. A difference is
    judged where task, protocol, shots and split are the same. The published number is taken as fixed; its own sampling
    error on the same items is not known.
    """
    if "list" in names:
        for name, count in models().items():
            click.echo(f"{name:<28}{count:>4}")
        return
    click.echo(table(beside(paths, names, by=by), notes(), format=format))


def beside(paths: Sequence[Path], names: Sequence[str], *, by: str = "task") -> list[Line]:
    """Return the finished runs beneath the paths beside the published scores; what the command prints as a table."""
    if not names:
        raise UsageError(
            "Expected --reported MODEL: whose published scores the runs are set beside.\n"
            "Next: `python -m qwen_eval compare --reported list` names every model that has some."
        )
    rows = [row for name in dict.fromkeys(names) for row in reported(name)]
    runs = [_with_task(metrics) for metrics in _comparable(paths or [Path("results")])]
    return lines(runs, rows, by=by)


def _comparable(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the metrics of every finished run beneath the paths, without those on the small sets, which are named."""
    files = list(dict.fromkeys(file for path in paths for file in _found(path)))
    if not files:
        where = ", ".join(map(str, paths)) or "no path"
        raise UsageError(
            f"Expected a folder with finished runs (metrics.json), found none: {where}.\n"
            "Next: give a run folder, or the folder that `run` wrote to (results)."
        )
    comparable = []
    for file in files:
        metrics = _read(file)
        if metrics["mini"]:
            click.echo(f"{file.parent}: run on the small set, which has no published scores; left out.", err=True)
        else:
            comparable.append(metrics)
    if not comparable:
        raise UsageError("Expected a run on the real data, found runs on the small sets only.")
    return comparable


def _found(path: Path) -> Iterator[Path]:
    """Yield the metrics.json of a run folder, or of every run beneath a folder, sorted by path."""
    own = path / "metrics.json"
    yield from [own] if own.is_file() else sorted(path.rglob("metrics.json"))


def _read(file: Path) -> dict[str, Any]:
    """Return the metrics of a run. Raises StoreError where they are damaged."""
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        wrong = [name for name, kind in NEEDED.items() if not isinstance(metrics[name], kind)]
        parts = [metrics, *metrics["rules"].values(), *metrics["categories"].values()]
        scores = [part.get(name) for part in parts for name in ("score", "low", "high")]
        if wrong or not all(score is None or isinstance(score, int | float) for score in scores):
            raise ValueError(f"{', '.join(wrong) or 'score'} of another type")
        if not all(isinstance(part["n"], int) for part in parts) or not isinstance(metrics["model"]["name"], str):
            raise ValueError("n or model of another type")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{file}: expected the metrics of a finished run, found something else ({type(error).__name__}: {error}).\n"
            "Next: the same `run` command again writes them anew from the answers."
        ) from None
    return dict(metrics)


def _with_task(metrics: dict[str, Any]) -> Run:
    """Add what the task file knows of a run: whether its protocol is for chat models, and the items of the split."""
    files = registry.find()
    if metrics["task"] not in files:
        return Run(metrics=metrics, chat=None, total=None)
    task = registry.load(metrics["task"], files).task
    split = task.data.splits.get(metrics["split"])
    return Run(
        metrics=metrics,
        chat=next((each.chat for each in task.protocols if each.name == metrics["protocol"]), None),
        total=split.rows if split else None,
    )
