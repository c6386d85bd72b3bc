"""`python -m qwen_eval repair`: make a damaged run folder one that `run` can go on with."""

from dataclasses import dataclass
from pathlib import Path

import click

from qwen_eval.errors import StoreError, UsageError
from qwen_eval.results import DAMAGED, DERIVED, StoredAnswer, locked, read_manifest, read_records, write_bytes

__all__ = ["Repaired", "repair", "repair_run"]

ASIDE = "answers.damaged.jsonl"
"""Where damaged lines go, as they are."""


@dataclass(frozen=True)
class Repaired:
    """What was done to a run folder: the answers kept, the numbers of the lines moved aside, the files removed."""

    kept: int
    moved: tuple[int, ...]
    removed: tuple[str, ...]


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def repair(*, run: Path) -> None:
    """Move damaged answers of a run folder aside, so that the same `run` command asks only what is missing.

    Damaged lines of answers.jsonl go to answers.damaged.jsonl, every whole line stays. What was derived from the
    answers is removed where anything is damaged; `run` writes it anew.
    """
    done = repair_run(run)
    if not done.moved and not done.removed:
        click.echo(f"{run}: nothing is damaged ({done.kept:,} answers); nothing was changed.")
        return
    if done.moved:
        click.echo(f"{run / 'answers.jsonl'}: moved to {ASIDE}: line {_numbers(done.moved)}")
    removed = f"; removed {', '.join(done.removed)}" if done.removed else ""
    click.echo(f"{run}: kept {done.kept:,} whole answers{removed}.")
    click.echo("Next: the same `run` command again asks only what is missing.")


def repair_run(run: Path) -> Repaired:
    """Repair a run folder. Raises UsageError where it is none, StoreError where it is being written or cannot be saved.

    Killed at any moment, it leaves a folder that can be repaired again.
    """
    if not any((run / name).is_file() for name in ("manifest.json", "answers.jsonl")):
        raise UsageError(
            f"{run}: expected a run folder, found no manifest.json in it.\n"
            "Next: give the folder that `run` named, like results/MODEL/TASK@PROTOCOL."
        )
    with locked(run):
        read_manifest(run)
        file = run / "answers.jsonl"
        whole, damaged = _sorted_lines(file.read_bytes() if file.exists() else b"")
        if not damaged and not _is_derived_damaged(run):
            return Repaired(len(whole), (), ())
        if damaged:
            aside = run / ASIDE
            earlier = aside.read_bytes() if aside.exists() else b""
            write_bytes(aside, earlier + _joined(list(damaged.values())))
        removed = tuple(name for name in DERIVED if (run / name).exists())
        for name in removed:
            (run / name).unlink()
        if damaged:
            write_bytes(file, _joined(whole))
        return Repaired(len(whole), tuple(damaged), removed)


def _sorted_lines(content: bytes) -> tuple[list[bytes], dict[int, bytes]]:
    """Return the whole lines, and the damaged ones by number. A torn last line is no damage: `run` drops it."""
    whole: list[bytes] = []
    damaged: dict[int, bytes] = {}
    lines = content.split(b"\n")
    torn = lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            StoredAnswer.parse(line)
            whole.append(line)
        except DAMAGED:
            damaged[number] = line
    if damaged and torn:
        damaged[len(lines) + 1] = torn
    return whole, damaged


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _is_derived_damaged(run: Path) -> bool:
    """Return whether there are metrics, the last file to be written, and yet no finished run."""
    if not (run / "metrics.json").exists():
        return False
    try:
        read_records(run)
    except StoreError:
        return True
    return False


def _numbers(numbers: tuple[int, ...]) -> str:
    """Return line numbers for people: the first twenty of them."""
    more = f" and {len(numbers) - 20:,} more" if len(numbers) > 20 else ""
    return ", ".join(map(str, numbers[:20])) + more
