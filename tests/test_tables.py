"""Tables: what stands in them, in every format."""

import csv
import io
import json
from typing import Any

import pytest

from qwen_eval.report.tables import results


def part(correct: int, n: int) -> dict[str, Any]:
    return {"correct": correct, "n": n, "score": correct / n, "low": 0.1, "high": 0.9}


METRICS: dict[str, Any] = {
    "task": "mmlu",
    "protocol": "qwen-chat",
    "mini": True,
    "model": {"name": "toy_model", "dtype": "float32"},
    "split": "val",
    "shots": 0,
    "n": 8,
    "rule": "qwen-chat",
    "score": 0.375,
    "low": 0.1,
    "high": 0.9,
    "average": "micro",
    "micro": part(3, 8),
    "macro": part(1, 4),
    "bad_golds": 0,
    "unparsed": 1,
    "truncated": 2,
    "empty": 3,
    "errors": 0,
    "rules": {"qwen-chat": part(3, 8), "first-capital": part(1, 8)},
    "groups": {"anatomy": part(1, 4), "virology": part(2, 4)},
    "categories": {"STEM": part(1, 4), "Other": part(2, 4)},
}


def test_a_text_table_names_the_model_once_and_everything_else_in_its_row() -> None:
    text = results([METRICS])
    assert text.startswith("toy_model, float32\n")
    row = next(line for line in text.splitlines() if line.startswith("mmlu@qwen-chat (mini)"))
    assert row.split()[2:] == ["val", "0", "8", "qwen-chat", "37.5", "10.0", "to", "90.0", "1", "2", "3", "0"]
    assert "first-capital" in text
    averages = [line.split()[-5:] for line in text.splitlines() if "Mean over" in line]
    assert averages == [["4", "25.0", "10.0", "to", "90.0"], ["8", "37.5", "10.0", "to", "90.0"]]


def test_wrong_golds_are_counted_below_the_tables() -> None:
    assert "mmlu@qwen-chat (mini): 2 of the 8 golds are known to be wrong" in results([{**METRICS, "bad_golds": 2}])
    assert "known to be wrong" not in results([METRICS])


@pytest.mark.parametrize(
    ("by", "there", "not_there"),
    [("task", "qwen-chat", "STEM"), ("category", "STEM", "anatomy"), ("subject", "anatomy", "STEM")],
)
def test_breakdowns(by: str, there: str, not_there: str) -> None:
    text = results([METRICS], by=by)
    assert there in text
    assert not_there not in text


def test_a_withheld_score_is_a_dash() -> None:
    nothing = {"correct": 3, "n": 8, "score": None, "low": None, "high": None}
    withheld = {**METRICS, "score": None, "low": None, "high": None, "errors": 2, "rules": {"qwen-chat": nothing}}
    text = results([withheld], by="task")
    row = next(line for line in text.splitlines() if line.startswith("mmlu@qwen-chat (mini)"))
    assert row.split()[2:] == ["val", "0", "8", "qwen-chat", "-", "-", "1", "2", "3", "2"]


def test_markdown_and_latex_carry_the_model_in_the_row() -> None:
    assert "| mmlu@qwen-chat (mini) | toy_model" in results([METRICS], format="md")
    assert "toy\\_model" in results([METRICS], format="latex")


def test_csv_has_one_line_a_number() -> None:
    rows = list(csv.DictReader(io.StringIO(results([METRICS], format="csv"))))
    assert [(row["part"], row["name"], row["rule"]) for row in rows] == [
        ("all", "", "qwen-chat"),
        ("all", "", "first-capital"),
        ("category", "STEM", "qwen-chat"),
        ("category", "Other", "qwen-chat"),
        ("subject", "anatomy", "qwen-chat"),
        ("subject", "virology", "qwen-chat"),
    ]
    assert float(rows[0]["score"]) == 0.375


def test_code_that_was_run_without_a_sandbox_is_marked() -> None:
    assert "mmlu@qwen-chat (mini) (unsafe)" in results([{**METRICS, "sandbox": {"mode": "unsafe", "judge": "split"}}])
    assert "unsafe" not in results([{**METRICS, "sandbox": {"mode": "namespaces", "judge": "split"}}])


def test_pass_at_k_of_repeated_code_tasks() -> None:
    once = {**METRICS, "pass_at": {"1": {"score": 0.375, "low": 0.1, "high": 0.9}}}
    assert "pass@" not in results([once])
    assert "pass@" not in results([once], format="csv")
    ten = {"10": {"score": 0.5, "low": 0.2, "high": 0.8}}
    often = {**METRICS, "repeats": 12, "pass_at": once["pass_at"] | ten}
    lines = [line.split()[-5:] for line in results([often], by="task").split("\n\n")[-1].splitlines()]
    assert lines[0] == ["k", "pass@k", "95", "%", "interval"]
    assert lines[2:] == [["1", "37.5", "10.0", "to", "90.0"], ["10", "50.0", "20.0", "to", "80.0"]]
    rows = list(csv.DictReader(io.StringIO(results([often], format="csv"))))
    assert [(row["name"], row["score"], row["low"], row["correct"]) for row in rows if "pass@" in row["name"]] == [
        ("pass@10", "0.5", "0.2", "")
    ]


def test_repeats_stand_beside_the_number_of_items() -> None:
    repeated = {**METRICS, "repeats": 10}
    row = next(line for line in results([repeated]).splitlines() if line.startswith("mmlu@qwen-chat (mini)"))
    assert row.split()[2:8] == ["val", "0", "8", "x", "10", "qwen-chat"]
    averages = [line.split()[-7:-4] for line in results([repeated]).splitlines() if "Mean over" in line]
    assert averages == [["4", "x", "10"], ["8", "x", "10"]]
    rows = list(csv.DictReader(io.StringIO(results([repeated, METRICS], format="csv"))))
    assert [(row["n"], row["repeats"]) for row in rows] == [
        *[("8", "10")] * 2, *[("4", "10")] * 4, *[("8", "1")] * 2, *[("4", "1")] * 4
    ]  # fmt: skip
    assert list(rows[0])[-1] == "repeats"


def test_json_is_the_metrics() -> None:
    assert json.loads(results([METRICS], format="json")) == [METRICS]
