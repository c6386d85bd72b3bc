"""Honest programs, however awkward, pass; and the result says which judge decided."""

from pathlib import Path

import programs
import pytest
from suite import Run, Scene

ROWS = programs.honest()
FAMILIES = sorted({row["task_id"].split("/")[0] for row in ROWS})


@pytest.mark.parametrize("judge", ["split", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_honest_programs_pass(family: str, judge: str, tmp_path: Path) -> None:
    members = [row for row in ROWS if row["task_id"].startswith(f"{family}/")]
    with Scene(tmp_path) as scene:
        run = Run(scene, [scene.filled(row, f"h{number}") for number, row in enumerate(members)], judge=judge)
    assert [one for one in run.outcomes if not one["passed"]] == []
    assert len(run.outcomes) == 2 * len(members)
