"""The published scores: every row is well-formed, and no two numbers disagree without a footnote."""

import csv
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from qwen_eval import registry
from qwen_eval.errors import UsageError
from qwen_eval.paths import reported_root
from qwen_eval.registry import Entry
from qwen_eval.reported import THEMES, Reported, every, models, notes, reported

ROOT = Path(__file__).resolve().parent.parent
ROWS = every()
ONE_SETTING = {"mmlu", "ceval", "cmmlu", "gsm8k", "math", "bbh", "humaneval", "mbpp"}


def raw(name: str) -> list[dict[str, str]]:
    with (reported_root() / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def conflict_notes() -> set[str]:
    return {row["id"] for row in raw("notes") if row["kind"] == "conflict"}


def conflicts() -> dict[tuple[str, ...], list[tuple[Reported, Reported]]]:
    """Pairs of numbers for one thing that differ. What a document leaves open fits anything."""
    groups = defaultdict(list)
    for row in ROWS:
        one_setting = row.task in ONE_SETTING and row.setting != "ReAct"  # with a code interpreter it is another thing
        task = row.task if one_setting else row.benchmark
        setting = "" if one_setting else row.setting
        metric = row.metric.partition(" (m")[0]
        groups[(row.model, task, metric, row.part, row.shots, row.precision, setting)].append(row)
    found: dict[tuple[str, ...], list[tuple[Reported, Reported]]] = defaultdict(list)
    for key, members in groups.items():
        for one, other in combinations(members, 2):
            same = all(a == b or not a or not b for a, b in ((one.kind, other.kind), (one.split, other.split)))
            if same and one.value != other.value and one.number != other.number:
                found[key].append((one, other))
    return found


def test_nothing_is_lost() -> None:
    assert {theme: len(raw(theme)) for theme in THEMES} == {
        "accuracy": 932,
        "agents": 277,
        "perplexity": 61,
        "profile": 287,
    }
    assert len(ROWS) == 1557
    assert len(set(ROWS)) == len(ROWS)


@pytest.mark.parametrize("theme", [*THEMES, "notes"])
def test_the_files_are_plain(theme: str) -> None:
    content = (reported_root() / f"{theme}.csv").read_bytes().decode("utf-8")
    assert "\r" not in content
    header, *rows = csv.reader(content.splitlines())
    assert header == (list(Reported.__dataclass_fields__) if theme != "notes" else ["id", "kind", "text"])
    assert all(len(row) == len(header) for row in rows)
    assert all(cell == cell.strip() for row in rows for cell in row)


def test_every_row_is_well_formed() -> None:
    for row in ROWS:
        assert all((row.model, row.benchmark, row.metric, row.source)), row
        assert row.shots == "" or row.shots.isdecimal(), row
        assert row.kind in ("", "base", "chat"), row
        assert row.split in ("", "test", "val", "test-500", "sanitized"), row
        assert row.precision.partition(" (")[0] in ("", "BF16", "Int8", "Int4", "NF4"), row
        assert row.protocol_evidence in (("stated", "inferred") if row.protocol else ("-",)), row
        assert set(row.notes) <= set(notes()), row
        assert len(set(row.notes)) == len(row.notes), row
        if row.value == "OOM":
            assert row.notes == ("out-of-memory",)
        else:
            assert 0 <= row.number <= (100 if row.is_share else 10_000), row


def test_every_footnote_is_used_and_stands_in_the_readme() -> None:
    assert {note for row in ROWS for note in row.notes} == set(notes())
    readme = (reported_root() / "README.md").read_text(encoding="utf-8")
    for identifier, text in notes().items():
        assert f"| `{identifier}` |" in readme
        assert text in readme
    for source in {row.source.partition(", Table")[0] for row in ROWS}:
        assert f"| {source}" in readme


def test_every_protocol_is_one_of_ours_and_of_the_kind_it_was_run_as(entries: dict[str, Entry]) -> None:
    for name in {row.protocol for row in ROWS if row.protocol}:
        task, _ = registry.split_name(name)
        assert {row.task for row in ROWS if row.protocol == name} == {task}
        if task in entries:
            known = entries[task].task
            protocol = registry.protocol(known, name.partition("@")[2])
            kinds = {row.kind for row in ROWS if row.protocol == name and row.kind}  # StarCoder is of neither
            assert kinds == {"chat" if protocol.chat else "base"}
            assert {row.split for row in ROWS if row.protocol == name} <= {"", *known.data.splits}
        else:
            raise AssertionError(f"{name}: no task of ours")


def test_every_task_named_is_one_of_ours(entries: dict[str, Entry]) -> None:
    assert {row.task for row in ROWS if row.task} <= set(entries)


def test_numbers_that_disagree_have_a_footnote_in_common() -> None:
    about = conflict_notes()
    found = conflicts()
    assert len(found) == 59
    for pairs in found.values():
        for one, other in pairs:
            assert {*one.notes} & {*other.notes} & about, (one, other)


def test_every_footnote_on_a_conflict_stands_at_numbers_that_disagree() -> None:
    for note in conflict_notes():
        values: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for row in ROWS:
            if note in row.notes:
                values[(row.model, row.benchmark.partition(" (")[0], row.metric.partition(" (m")[0])].add(row.value)
        assert values
        assert all(len(each) > 1 for each in values.values()), note


@pytest.mark.parametrize(
    ("model", "task", "shots", "values"),
    [
        ("Qwen-7B", "gsm8k", "8", {"51.7"}),
        ("Qwen-1.8B", "gsm8k", "8", {"32.3", "21.2"}),
        ("Qwen-14B-Chat", "gsm8k", "0", {"61.0", "60.1", "60.0", "59.8", "58.4"}),
        ("Qwen-7B-Chat", "mmlu", "0", {"53.9", "52.6", "55.8", "55.4", "55.1"}),
        ("Qwen-7B (original)", "ceval", "5", {"59.6", "60.8"}),
        ("Qwen-72B", "bbh", "3", {"67.7"}),
    ],
)
def test_known_numbers(model: str, task: str, shots: str, values: set[str]) -> None:
    found = {row.value for row in reported(model) if (row.task, row.shots, row.part) == (task, shots, "")}
    assert found == values


def test_a_model_is_found_in_any_case_and_an_unknown_one_is_named() -> None:
    assert reported("qwen-7b") == reported("Qwen/Qwen-7B") == reported("QWEN_7B") == reported("Qwen-7B")
    assert all(row.model == "Qwen-7B" for row in reported("Qwen-7B"))
    assert sum(models().values()) == len(ROWS)
    with pytest.raises(UsageError, match=r"Did you mean 'Qwen-7B-Chat'\?\nNext: .*--reported list"):
        reported("Qwen-7B-Chatt")


def test_half_a_unit_of_the_last_digit() -> None:
    (row, *_) = reported("Qwen-7B")
    assert row.half_unit == 0.05
    assert {value: Reported(**{**vars(row), "value": value}).half_unit for value in ("84", "84.0", "54.36")} == {
        "84": 0.5,
        "84.0": 0.05,
        "54.36": 0.005,
    }


def test_the_wheel_carries_the_data() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"qwen_eval._reported" = "results/reported"' in settings
    assert reported_root() == ROOT / "results" / "reported"
