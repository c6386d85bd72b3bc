"""`python -m qwen_eval export`: finished runs in the layouts of other tools. No model."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from qwen_eval.commands.options import data_dir, include_path, option
from qwen_eval.errors import UsageError

__all__ = ["export"]

FORMATS = ("lm-eval", "eee", "hf", "parquet", "csv")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option("--format", type=click.Choice(FORMATS), help="The layout. Required.")
@option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("export"),
    show_default=True,
    metavar="DIR",
    help="Where the files go; files of the same name are replaced.",
)
@data_dir
@include_path
def export(
    *, runs: Sequence[Path], format: str | None, output: Path, data_dir: Path | None, include_path: Sequence[Path]
) -> None:
    """Write finished runs in another tool's layout. RUN: a run folder, or a folder with runs beneath it.

    lm-eval: results and samples of lm-evaluation-harness. eee: Every Eval Ever 0.3.0. hf: .eval_results of a model
    repository. parquet, csv: a row a sample, repeat and rule. The time in names and files is that of the run, so the
    same run gives the same bytes. Prompts are not in a run: they are built anew from the data, where it is here.
    """
    if format is None:
        # click would list the choices on a line each.
        raise UsageError(f"Expected --format: one of {', '.join(FORMATS)}.")
    from qwen_eval.export import eee, frame, hub, lm_eval
    from qwen_eval.export.source import Source
    from qwen_eval.loaded import load_run

    layout = {"lm-eval": lm_eval.files, "eee": eee.files, "hf": hub.files, "parquet": frame.parquet, "csv": frame.csv}
    sources = [Source(load_run(folder), data_dir, include_path) for folder in _folders(runs)]
    found = layout[format](sources)
    for source in sources:
        if format in ("lm-eval", "eee") and not source.requests:
            missing = "its prompts cannot be built anew from the data, so the files have none."
            click.echo(f"{source.run.path}: {missing}", err=True)
    for name, content in found.items():
        _write(output / name, content)
    click.echo(f"{len(sources)} run(s), {len(found)} file(s): {output}", err=True)


def _folders(paths: Sequence[Path]) -> list[Path]:
    """Every run folder at or beneath the paths, each once."""
    found = [file.parent for path in paths for file in _metrics_of(path)]
    if not found:
        raise UsageError(
            f"Expected a folder with finished runs (metrics.json), found none: {', '.join(map(str, paths))}.\n"
            "Next: give a run folder, or the folder that `run` wrote to (results)."
        )
    return list({folder.resolve(): folder for folder in found}.values())


def _metrics_of(path: Path) -> list[Path]:
    own = path / "metrics.json"
    return [own] if own.is_file() else sorted(path.rglob("metrics.json"))


def _write(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError as error:
        raise UsageError(f"--output {file}: cannot be written ({error.strerror}).") from None
