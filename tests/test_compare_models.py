"""Models beside each other, and runs sample by sample, as `compare` prints them."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import verdicts, write_run

Command = Callable[..., subprocess.CompletedProcess[str]]


def part(score: float, n: int) -> dict[str, Any]:
    return {"correct": round(score * n), "n": n, "score": score, "low": score - 0.05, "high": score + 0.05}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three models; the second was not run on `other`, the third has the first one's name."""
    subjects = {"groups": {"a": part(0.5, 50), "b": part(0.7, 50)}, "categories": {"All of it": part(0.6, 100)}}
    for model, name, fingerprint, right in (
        ("one", "one", "1" * 16, 60),
        ("two", "two", "2" * 16, 55),
        ("three", "one", "3" * 16, 40),
    ):
        answers = [number < right for number in range(100)]
        identity = {"name": name, "dtype": "float32", "fingerprint": fingerprint}
        write_run(tmp_path / "results" / model / "toy@plain", answers, model=identity, **subjects)
        if model != "two":
            more = {"task": "other", "protocol": "chat", "shots": 5, "model": identity}
            write_run(tmp_path / "results" / model / "other@chat", answers[:50], **more)
    return tmp_path / "results"


def test_models_are_rows_and_benchmarks_columns(results: Path, command: Command) -> None:
    done = command("compare", "results")
    assert done.returncode == 0, done.stderr
    head, rows = done.stdout.split("-----", 1)
    for word in ("toy", "other", "@plain", "@chat", "0-shot", "5-shot", "test, n 100", "test, n 50"):
        assert word in head
    [one, three, two] = rows.splitlines()[1:]
    assert one.startswith("one (11111111)")
    assert "60.0 (50.2-69.1) *" in one
    assert three.startswith("one (33333333)")
    assert "*" not in three.replace("80.0 (67.0-88.8)", "")
    assert two.split() == ["two", "-", "55.0", "(45.2-64.4)"]


def test_every_format(results: Path, command: Command) -> None:
    said = {
        name: command("compare", "results", "--format", name).stdout for name in ("md", "latex", "html", "csv", "json")
    }
    assert "| **60.0 (50.2-69.1)** |" in " ".join(said["md"].split())
    assert "toy<br>@plain<br>0-shot<br>test, n 100" in said["md"]
    assert r"\textbf{60.0 (50.2--69.1)}" in said["latex"]
    assert "toy, @plain, 0-shot" in said["latex"]
    assert "<b>60.0 (50.2-69.1)</b>" in said["html"]
    assert "<th>" in said["html"]
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    assert len(rows) == len(json.loads(said["json"])) == 5
    assert {(row["model"], row["task"], float(row["score"])) for row in rows} >= {("two", "toy", 55.0)}


def test_published_models_are_rows_too(tmp_path: Path, command: Command) -> None:
    fields: dict[str, Any] = {"task": "gsm8k", "protocol": "qwen", "shots": 8, "rule": "qwen"}
    write_run(tmp_path / "results" / "mine" / "gsm8k@qwen", [number % 10 < 4 for number in range(1319)], **fields)
    done = command("compare", "results", "--reported", "Qwen-7B", "--reported", "Qwen-1.8B")
    lines = done.stdout.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["mine", "Qwen-7B,", "Qwen-1.8B,"]
    assert lines[-2].endswith("*")
    assert "51.7" in lines[-2]
    assert "32.3" in lines[-1]


def test_subjects_categories_and_samples(results: Path, command: Command) -> None:
    text = command("compare", "results", "--by", "subject").stdout
    rows = [line.split() for line in text.splitlines() if line.startswith(("a ", "b ", "all "))]
    assert [row[:2] for row in rows] == [["a", "50"], ["b", "50"], ["all", "100"]]
    assert rows[2].count("*") == 1
    assert "All of it" in command("compare", "results", "--by", "category", "--format", "md").stdout
    [row] = [
        each
        for each in json.loads(command("compare", "results", "--by", "subject", "--format", "json").stdout)
        if (each["model"], each["part"]) == ("two", "b")
    ]
    assert (row["score"], row["low"]) == (70.0, 65.0)
    lines = command("compare", "results", "--by", "sample").stdout.splitlines()
    sample = next(line.split() for line in lines if line.startswith("57 "))
    assert sample == ["57", "1", "0", "0"]


def test_runs_over_other_data_are_refused(results: Path, command: Command) -> None:
    file = results / "two" / "toy@plain" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompts": "0" * 16}))
    done = command("compare", "results")
    assert done.returncode == 2
    assert 'expected prompts "abcdef0123456789"' in done.stderr
    assert 'found "0000000000000000"' in done.stderr


def test_sample_by_sample(tmp_path: Path, command: Command) -> None:
    before, after = verdicts(1000, wins=20, losses=50)
    write_run(tmp_path / "old" / "toy@plain", before)
    write_run(tmp_path / "old" / "lone@plain", before, task="lone")
    write_run(tmp_path / "new" / "toy@plain", after)
    done = command("compare", "new", "--baseline", "old", "--show-flips")
    assert done.returncode == 0, done.stderr
    assert "not run on lone@plain" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("toy@plain"))
    assert row.split()[2:6] == ["1,000", "51.5", "48.5", "-3.00"]
    assert "20, 50, 930" in row
    assert "70 of 1,000 samples changed" in done.stdout
    assert "… and 50 more" in done.stdout
    [record] = json.loads(command("compare", "new", "--baseline", "old", "--show-flips", "--format", "json").stdout)
    assert (record["wins"], record["losses"], len(record["flips"])) == (20, 50, 70)
    assert record["low"] < record["difference"] < record["high"] < 0
    assert record["p"] < 0.001
    assert command("compare", "new/toy@plain", "--baseline", "old/lone@plain").returncode == 2


def test_clusters_and_several_tasks(tmp_path: Path, command: Command) -> None:
    before, after = verdicts(400, wins=20, losses=50)
    groups = [f"g{number // 10}" for number in range(400)]
    for task in ("a", "b"):
        write_run(tmp_path / "old" / f"{task}@plain", before, task=task, subjects=groups)
        write_run(tmp_path / "new" / f"{task}@plain", after, task=task, subjects=groups)
    plain, clustered = (
        json.loads(command("compare", "new", "--baseline", "old", "--format", "json", *more).stdout)[0]
        for more in ((), ("--cluster",))
    )
    assert plain["difference"] == pytest.approx(clustered["difference"])
    assert clustered["high"] - clustered["low"] > 1.5 * (plain["high"] - plain["low"])
    text = command("compare", "new", "--baseline", "old").stdout
    assert "Mean over these: -7.50" in text
    assert len(command("compare", "new", "--baseline", "old", "--format", "csv").stdout.splitlines()) == 3
