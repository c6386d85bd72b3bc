"""`python -m qwen_eval gate`: stop a checkpoint that is worse than its baseline, and only such a one."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from qwen_eval.commands.compare import comparable, with_task
from qwen_eval.commands.options import data_dir, option, output_format
from qwen_eval.errors import UsageError, did_you_mean
from qwen_eval.gating import ON_INCONCLUSIVE, Policy, Report, Unpaired, decide, decide_unpaired, read_policy
from qwen_eval.paired import Pair, find_runs, pairs, run_key
from qwen_eval.report.comparison import lines
from qwen_eval.report.verdict import changed, flips, junit, markdown, record, text
from qwen_eval.reported import reported as published
from qwen_eval.results import read_metrics, write_bytes, write_json

__all__ = ["gate", "judge", "run_missing"]


@click.command()
@option("--baseline", type=click.Path(path_type=Path), metavar="DIR", help="Runs to be held against.")
@option(
    "--reported",
    metavar="MODEL",
    help="Published scores to be held against instead; `compare --reported list` names the models.",
)
@option(
    "--candidate",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Runs of the checkpoint in question.",
)
@option("--run", "model", metavar="MODEL", help="Run this model first on what the candidate's folder lacks.")
@option("--policy", "file", type=click.Path(path_type=Path), metavar="FILE", help="What is allowed, as YAML.")
@option("--max-drop", type=click.FloatRange(0, 100), metavar="POINTS", help="Allowed drop of a task.  [default: 1.0]")
@option("--on-inconclusive", type=click.Choice(ON_INCONCLUSIVE), help="Exit 6, 0 or 1 then.  [default: report]")
@option("--show-flips", is_flag=True, help="Also list samples that changed.")
@option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where gate.{xml,md,json} go.  [default: --candidate]",
)
@data_dir
@output_format
@click.pass_context
def gate(
    ctx: click.Context,
    *,
    baseline: Path | None,
    reported: str | None,
    candidate: Path,
    model: str | None,
    file: Path | None,
    max_drop: float | None,
    on_inconclusive: str | None,
    show_flips: bool,
    output: Path | None,
    data_dir: Path | None,
    format: str,
) -> None:
    """Decide for every task of the baseline whether the candidate is worse than allowed.

    \b
    exit 0  PASS          the whole interval of the paired difference is inside what is allowed, on every critical task
    exit 1  REGRESSION    the whole interval is beyond it, on some critical task
    exit 6  INCONCLUSIVE  neither; the table says how many items would decide

    DIR is a run folder or a model's folder. Writes gate.xml (JUnit), gate.md and gate.json, and appends gate.md to
    $GITHUB_STEP_SUMMARY where that is set.
    """
    policy = _policy(file, max_drop, on_inconclusive)
    if model and baseline:
        run_missing(model, baseline, candidate, data_dir)
    report, found = judge(candidate, baseline=baseline, reported=reported, policy=policy)
    against = str(baseline) if baseline else f"{reported} as published"
    content = record(report, baseline=against, candidate=str(candidate), unpaired=baseline is None)
    _write(output or candidate, content)
    if format == "json":
        every = {"flips": {each.name: [asdict(flip) for flip in changed(each)] for each in found}} if show_flips else {}
        click.echo(json.dumps(content | every, ensure_ascii=False, indent=1))
    else:
        click.echo(text(content, format=format))
        for each in found if show_flips and format != "csv" else ():
            click.echo(f"\n{flips(each, most=20, format=format)}")
    ctx.exit(report.exit_code)


def judge(
    candidate: Path, *, baseline: Path | None, reported: str | None, policy: Policy
) -> tuple[Report, Sequence[Pair]]:
    """Decide on a candidate beside a baseline's runs or published scores, one of the two; return the pairs as well."""
    if (baseline is None) == (reported is None):
        raise UsageError("Expected --baseline DIR or --reported MODEL, one of the two.")
    if baseline is None:
        return _unpaired(str(reported), candidate, policy), ()
    found, missing = pairs(baseline, candidate)
    _known_tasks(policy, found, missing)
    return decide(found, missing, policy), found


def run_missing(model: str, baseline: Path, candidate: Path, data_dir: Path | None) -> None:
    """Run a model on what the baseline was run on and the candidate's folder lacks, asked in the same way."""
    from qwen_eval.api import Settings, run

    there = {run_key(metrics) for metrics in map(read_metrics, find_runs(candidate, missing_ok=True))}
    for metrics in map(read_metrics, find_runs(baseline)):
        if run_key(metrics) in there:
            continue
        settings: Settings = {"limit": metrics["samples"], "split": metrics["split"], "shots": metrics["shots"]}
        settings |= {"repeats": metrics.get("repeats", 1), "seed": metrics.get("seed", 0), "output_dir": candidate}
        settings |= {"published_truncation": metrics.get("published_truncation", False), "data_dir": data_dir}
        drawn = metrics.get("sampling")
        if drawn:
            settings |= {name: drawn[name] for name in ("temperature", "top_p", "top_k")}  # type: ignore[typeddict-item]
        if "sandbox" in metrics:
            settings["judge"] = metrics["sandbox"]["judge"]
        run(task=f"{metrics['task']}@{metrics['protocol']}", model=model, **settings)


def _policy(file: Path | None, max_drop: float | None, on_inconclusive: str | None) -> Policy:
    """Read the policy; the command line wins over its general part."""
    policy = read_policy(file) if file else Policy()
    if max_drop is not None:
        policy = replace(policy, default=replace(policy.default, max_drop=max_drop / 100, relative=False))
    return replace(policy, on_inconclusive=on_inconclusive) if on_inconclusive else policy


def _known_tasks(policy: Policy, found: Sequence[Pair], missing: Sequence[str]) -> None:
    """A policy for a task that nobody ran is mostly a spelling mistake."""
    names = {f"{each.baseline['task']}@{each.baseline['protocol']}" for each in found} | set(missing)
    names |= {name.partition("@")[0] for name in names}
    for name in policy.tasks:
        if name not in names:
            click.echo(f"The policy's {name} is no task of the baseline.{did_you_mean(name, names)}", err=True)


def _unpaired(name: str, candidate: Path, policy: Policy) -> Report:
    """Set runs beside the published scores that are the same measurement; the others are named."""
    found: dict[str, Unpaired] = {}
    for line in lines([with_task(metrics) for metrics in comparable([candidate])], published(name)):
        if line.reported is None or line.score is None or line.differs:
            click.echo(f"{line.run.name}: {line.verdict}; left out.", err=True)
            continue
        found.setdefault(
            line.run.name,
            Unpaired(
                task=line.run.metrics["task"],
                protocol=line.run.metrics["protocol"],
                n=line.n,
                score=line.score / 100,
                published=line.reported.number / 100,
            ),
        )
    if not found:
        raise UsageError(f"{candidate}: expected a run that {name} has a published score for, found none.")
    return decide_unpaired(list(found.values()), policy)


def _write(folder: Path, found: dict[str, Any]) -> None:
    """Write the three files, and the summary of a GitHub step."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be made ({error.strerror}).") from None
    write_bytes(folder / "gate.xml", junit(found).encode())
    write_bytes(folder / "gate.md", markdown(found).encode())
    write_json(folder / "gate.json", found)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with open(summary, "a", encoding="utf-8") as stream:
                stream.write(markdown(found))
        except OSError as error:
            click.echo(f"$GITHUB_STEP_SUMMARY ({summary}): cannot be written ({error.strerror}).", err=True)
