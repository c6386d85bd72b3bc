"""Hostile programs: none is called passed, none harms anything, and the honest program after each passes."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import programs
import pytest
from programs import Row
from suite import Run, Scene, harms

# What is measured about one program needs a call of the command to itself.
ALONE = {"wall_s", "memory_mb", "disk_mb", "after_s", "rows", "no_listener_on", "process"}


def groups() -> Iterator[tuple[str, list[Row]]]:
    """Rows that can share a call of the command: those of a family, but for pairs and what is measured alone."""
    machine = os.uname().machine
    hostile = [row for row in programs.hostile() if row.get("arch", machine) == machine]

    def key(row: Row) -> str:
        if "pair" in row:
            return f"pair {row['pair']}"
        return row["task_id"] if ALONE & set(row.get("harm", {})) else row["task_id"].split("/")[0]

    for name, members in itertools.groupby(sorted(hostile, key=key), key):
        yield name, list(members)


GROUPS = dict(groups())


@pytest.mark.parametrize("name", GROUPS)
def test_no_hostile_program_passes_or_does_harm(name: str, tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        assert _harms(scene, GROUPS[name], workers=1 if name.startswith("pair") else 2) == []


def _harms(scene: Scene, given: Sequence[Row], *, workers: int) -> list[str]:
    mark = "both" + scene.canary[:6]
    filled = [
        scene.filled(row, mark if "pair" in row else f"m{number}{scene.canary[:6]}") for number, row in enumerate(given)
    ]
    return harms(scene, Run(scene, filled, workers=workers))
