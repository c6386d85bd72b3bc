"""`python -m qwen_eval profile`: how fast models generate and what memory that takes, as published tables have it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_eval.commands.evaluate import Failures, say
from qwen_eval.commands.opening import located
from qwen_eval.commands.options import config_file, model_options, named, option, output_dir, output_format
from qwen_eval.commands.run import check_writable
from qwen_eval.errors import MissingError, UsageError, did_you_mean

if TYPE_CHECKING:
    from qwen_eval.profile import Job, Measurement

__all__ = ["profile"]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@option(
    "--context",
    multiple=True,
    metavar="N,…",
    help="Tokens of context. Without this and --new: 1 + 2048, 1 + 8192 and 2048 + 1, as published.",
)
@option("--new", multiple=True, metavar="N,…", help="New tokens; every context with each of them.")
@option(
    "--engine",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="NAME,…",
    help="auto: what `run` uses; reference; transformers: its plain `generate`.",
)
@model_options
@option(
    "--repeats",
    type=click.IntRange(min=3),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs after the warm-up; their median is shown.",
)
@option(
    "--reported",
    multiple=True,
    metavar="NAME,…",
    help="Published numbers of these models beside, where there are some for the same lengths.",
)
@option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw bars into a .png, .svg or .pdf.")
@output_dir
@config_file
@output_format
def profile(
    *,
    models: Sequence[str],
    context: Sequence[str],
    new: Sequence[str],
    precision: Sequence[str],
    engine: Sequence[str],
    adapter: Path | None,
    hub: str,
    device: str,
    trust_remote_code: bool,
    repeats: int,
    reported: Sequence[str],
    plot: Path | None,
    output_dir: Path,
    config: Path | None,
    format: str,
) -> None:
    """Measure speed and peak memory: a context, then exactly so many new tokens, batch 1, greedily.

    Every measurement is a process of its own. What fails for one model keeps nothing from the others.
    """
    from qwen_eval.report.plots import check_plot, plot_profile
    from qwen_eval.report.profiles import profile_table, published_rows
    from qwen_eval.reported import reported as published_of

    lengths = _lengths(context, new)
    published = [row for name in named(reported) for row in published_of(name)]
    if plot:
        check_plot(plot)
    engines = _engines(engine)
    check_writable(output_dir)
    failures = Failures()
    jobs: list[Job] = []
    precisions: list[str | None] = list(named(precision))
    checkpoints = list(itertools.product(dict.fromkeys(models), precisions or [None]))
    for model, loaded_as in checkpoints:
        with failures.apart(model, MissingError, alone=len(checkpoints) == 1):
            found = located(model, hub=hub, adapter=adapter, precision=loaded_as)
            jobs += _jobs(found, engines, lengths, device=device, repeats=repeats, trusted=trust_remote_code)
    measured: list[Measurement] = []
    for number, job in enumerate(jobs, 1):
        name = f"{job.checkpoint.name}, {job.context:,} + {job.new:,} tokens, engine {job.engine}"
        say(f"{number} of {len(jobs)}: {name}")
        with failures.apart(name, MissingError, alone=len(jobs) == 1):
            measured.append(_measured(job, output_dir))
    if measured:
        beside = published_rows(published, measured)
        if published and not beside:
            say("--reported: nothing is published for these lengths.")
        click.echo(profile_table(measured, beside, format=format))
        if plot:
            plot_profile(measured, plot)
            say(f"Drawn: {plot}")
    failures.end()


def _lengths(context: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of context and new tokens: the published ones where nothing is said."""
    from qwen_eval.profile import PUBLISHED

    if not named(context) and not named(new):
        return list(PUBLISHED)
    numbers: dict[str, list[int]] = {}
    for flag, given in (("--context", named(context) or ["1"]), ("--new", named(new) or ["2048"])):
        for value in given:
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"{flag} {value}: expected numbers of tokens from 1, such as 1,2048.")
        numbers[flag] = [int(value) for value in given]
    return list(itertools.product(numbers["--context"], numbers["--new"]))


def _engines(given: Sequence[str]) -> list[str]:
    from qwen_eval.profile import ENGINES

    for name in named(given):
        if name not in ENGINES:
            raise UsageError(f"--engine {name}: expected {', '.join(ENGINES)}.{did_you_mean(name, ENGINES)}")
    return named(given)


def _jobs(checkpoint: Any, engines: Sequence[str], lengths: Sequence[tuple[int, int]], **settings: Any) -> list["Job"]:
    from qwen_eval.profile import Job

    return [
        Job(checkpoint=checkpoint, engine=engine, context=context, new=new, **settings)
        for engine in engines
        for context, new in lengths
    ]


def _measured(job: "Job", output_dir: Path) -> "Measurement":
    """Measure, and write what was found."""
    from qwen_eval.profile import measure_apart
    from qwen_eval.results import write_json

    found = measure_apart(job)
    folder = output_dir / "profile" / _safe(f"{found.model}-{found.fingerprint[:8]}")
    where = str(found.environment.get("gpus", found.environment.get("processor", "")))
    file = folder / _safe(f"{found.precision}-{found.engine}-{found.context}-{found.new}-{where}.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, found.record())
    return found


def _safe(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() or letter in "._-" else " " for letter in name).split())
