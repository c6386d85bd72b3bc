"""`python -m qwen_eval compare`: finished runs beside each other, beside published scores, or sample by sample."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qwen_eval import registry
from qwen_eval.commands.options import option
from qwen_eval.errors import StoreError, UsageError
from qwen_eval.paired import Pair, check, find_runs, pairs, sample_scores
from qwen_eval.report.comparison import Line, Run, lines, table
from qwen_eval.report.models import by_part, by_sample, matrix
from qwen_eval.report.tables import FORMATS
from qwen_eval.report.verdict import changed, differences, flips
from qwen_eval.reported import models, notes, reported

__all__ = ["beside", "comparable", "compare", "with_task"]

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
@option("--baseline", type=click.Path(path_type=Path), metavar="DIR", help="Compare sample by sample with these runs.")
@option("--show-flips", is_flag=True, help="With --baseline: the samples that changed.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="PATH…")
@option(
    "--by",
    type=click.Choice(("task", "category", "subject", "sample")),
    default="task",
    show_default=True,
    help="What stands in a row.",
)
@option(
    "--cluster",
    is_flag=True,
    help="With --baseline: the samples of a subject are alike (paraphrases), so subjects are what is counted.",
)
@option("--format", type=click.Choice((*FORMATS, "html")), default="text", show_default=True, help="How it is printed.")
def compare(
    *,
    names: Sequence[str],
    baseline: Path | None,
    show_flips: bool,
    paths: Sequence[Path],
    by: str,
    cluster: bool,
    format: str,
) -> None:
    """Set finished runs beside each other. PATH: run folders, models' folders, or all results (the default).

    \b
    compare results                      models x benchmarks, with 95 % intervals
    compare results --reported Qwen-7B   and beside what is published of a model
    compare NEW --baseline OLD           sample by sample: the difference, its interval, who won

    With --reported a run stands beside every number of its task and its kind of model, base or chat. A difference is
    judged where task, protocol, shots and split are the same. The published number is taken as fixed; its own sampling
    error on the same items is not known.
    """
    if "list" in names:
        for name, count in models().items():
            click.echo(f"{name:<28}{count:>4}")
        return
    where = paths or [Path("results")]
    if baseline is not None:
        if names or by != "task":
            raise UsageError("--baseline compares samples: it goes with neither --reported nor --by.")
        click.echo(_against(baseline, where, show_flips=show_flips, cluster=cluster, format=format))
        return
    if show_flips or cluster:
        raise UsageError(
            f"--{'show-flips' if show_flips else 'cluster'} needs --baseline DIR: the runs to compare with."
        )
    click.echo(_beside(where, names, by, format))


def _beside(paths: Sequence[Path], names: Sequence[str], by: str, format: str) -> str:
    """Return the tables of models, and with published models the lines that judge them."""
    rows = [row for name in dict.fromkeys(names) for row in reported(name)]
    if not rows:
        folders = list(dict.fromkeys(run for path in paths for run in find_runs(path)))
        found = [_read(folder / "metrics.json") for folder in folders]
        _alike(folders, found)
        if by == "sample":
            scores = [sample_scores(folder, each["rule"]) for folder, each in zip(folders, found, strict=True)]
            return by_sample(found, scores, format=format)
        if by in ("category", "subject"):
            return by_part(found, "categories" if by == "category" else "groups", format=format)
        return matrix(found, (), format=format)
    if by in ("subject", "sample"):
        raise UsageError(f"--by {by}: published scores are of tasks and categories.")
    runs = [with_task(metrics) for metrics in comparable(paths)]
    judged = lines(runs, rows, by=by)
    if format in ("csv", "json"):
        return table(judged, notes(), format=format)
    above = matrix([run.metrics for run in runs], judged, format=format)
    return above if format == "html" else f"{above}\n\n{table(judged, notes(), format=format)}"


def beside(paths: Sequence[Path], names: Sequence[str], *, by: str = "task") -> list[Line]:
    """Return the finished runs beneath the paths beside the published scores; for `qwen_eval.compare`."""
    rows = [row for name in dict.fromkeys(names) for row in reported(name)]
    return lines([with_task(metrics) for metrics in comparable(paths)], rows, by=by)


def _alike(folders: Sequence[Path], found: Sequence[dict[str, Any]]) -> None:
    """Refuse to set runs of one benchmark beside each other that are over other data or prompts."""
    first: dict[tuple[Any, ...], int] = {}
    for number, each in enumerate(found):
        key = tuple(each[name] for name in ("task", "protocol", "split", "shots", "mini"))
        other = first.setdefault(key, number)
        check(folders[other], found[other], folders[number], each, ("dataset", "prompts"))


def _against(baseline: Path, paths: Sequence[Path], *, show_flips: bool, cluster: bool, format: str) -> str:
    """Return the paired comparison of every folder with the baseline."""
    found: list[Pair] = []
    for path in paths:
        some, missing = pairs(baseline, path, cluster=cluster)
        found += some
        if missing:
            click.echo(f"{path}: not run on {', '.join(missing)}.", err=True)
    if not found:
        raise UsageError(f"{baseline}: none of its tasks was run by {', '.join(map(str, paths))}.")
    if format == "json":
        return json.dumps([_pair_record(each, flips=show_flips) for each in found], ensure_ascii=False, indent=1)
    parts = [differences(found, format=format)]
    if show_flips and format != "csv":
        parts += [flips(each, most=20, format=format) for each in found]
    return "\n\n".join(parts)


def _pair_record(pair: Pair, *, flips: bool) -> dict[str, Any]:
    found = pair.difference
    low, high = found.interval()
    record = {
        "task": pair.name,
        "model": pair.candidate["model"]["name"],
        "rule": pair.rule,
        **{"n": found.n, "wins": found.wins, "losses": found.losses, "ties": found.ties},
        **dict(zip(("baseline", "candidate"), pair.means, strict=True)),
        **{"difference": found.value, "low": low, "high": high, "p": found.p},
    }
    return record | ({"flips": [asdict(flip) for flip in changed(pair)]} if flips else {})


def comparable(paths: Sequence[Path]) -> list[dict[str, Any]]:
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


def with_task(metrics: dict[str, Any]) -> Run:
    """Add what the task file knows of a run: whether its protocol is for chat models, and the items of the split."""
    files = registry.find()
    if metrics["task"] not in files:
        return Run(metrics=metrics, chat=None, total=None)
    task = registry.load(metrics["task"], files).task
    split = task.data.splits.get(metrics["split"])
    return Run(
        metrics=metrics,
        chat=next((each.chat for each in task.protocols if each.name == metrics["protocol"]), None),
        total=split.rows or None if split else None,
    )
