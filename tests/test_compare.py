"""Runs beside published scores: what is judged, what is not, and how it is shown."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.cli import main
from qwen_eval.report.comparison import Line, Run, lines, table
from qwen_eval.reported import Reported, notes, reported

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Call `compare` in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen_eval", "compare", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return int(end.value.code or 0), out, err

    return call


def part(score: float | None, n: int, reach: float = 0.02) -> dict[str, Any]:
    low, high = (None, None) if score is None else (score - reach, score + reach)
    return {"score": score, "low": low, "high": high, "n": n}


def metrics_of(task: str = "gsm8k", protocol: str = "qwen", **changed: Any) -> dict[str, Any]:
    """What `run` writes, as far as a comparison reads it."""
    score = changed.pop("score", 0.517)
    n = changed.pop("n", 1319)
    return {
        "task": task,
        "protocol": protocol,
        "rule": "qwen",
        "split": "test",
        "shots": 8,
        "mini": False,
        "average": "micro",
        "errors": 0,
        "rules": {"qwen": part(score, n)},
        "groups": {},
        "categories": {},
        "model": {"name": "my_model", "dtype": "bfloat16"},
        **part(score, n),
        **changed,
    }


def write(folder: Path, **metrics: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics_of(**metrics)), encoding="utf-8")
    return folder


def row_of(value: str = "51.7", **changed: str) -> Reported:
    fields = dict.fromkeys(Reported.__dataclass_fields__, "") | {
        "model": "Toy",
        "task": "gsm8k",
        "metric": "accuracy",
        "split": "test",
        "shots": "8",
        "protocol": "gsm8k@qwen",
        "protocol_evidence": "stated",
        "value": value,
        "source": "a document",
    }
    return Reported(**{**fields, **changed})


def judged(row: Reported, **changed: Any) -> Line:
    (line,) = lines([Run(metrics=metrics_of(**changed), chat=False, total=1319)], [row])
    return line


# ------------------------------------------------------------------------------------------------------ what is judged


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("51.7", "within noise"),
        ("50.0", "within noise"),
        ("49.95", "within noise"),
        ("49.94", "higher"),
        ("49.9", "higher"),
        ("50", "within noise"),
        ("49", "higher"),
        ("0.0", "higher"),
        ("53.45", "within noise"),
        ("53.46", "lower"),
        ("53.5", "lower"),
        ("53", "within noise"),
        ("54", "lower"),
        ("100.0", "lower"),
    ],
)
def test_a_value_that_reaches_the_interval_with_half_its_last_digit_is_within_noise(value: str, verdict: str) -> None:
    assert judged(row_of(value), low=0.49955, high=0.53445).verdict == verdict


def test_an_end_of_the_interval_that_only_rounding_misses_is_within_noise() -> None:
    assert judged(row_of("58.2"), score=0.59, low=0.5825, high=0.6).verdict == "within noise"
    assert judged(row_of("58.2"), score=0.59, low=0.58251, high=0.6).verdict == "higher"


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"protocol": "gsm8k@opencompass"}, "other protocol"),
        ({"protocol": "", "protocol_evidence": "-"}, "other protocol"),
        ({"shots": "4"}, "other shots (run: 8)"),
        ({"shots": ""}, "shots not published"),
        ({"split": "val"}, "other split (val)"),
        ({"split": ""}, "split not published"),
        ({"metric": "accuracy (macro)"}, "other average (macro)"),
        ({"metric": "accuracy (micro)"}, "within noise"),
        ({"protocol": "", "shots": "0", "split": "val"}, "other protocol, other shots (run: 8), other split (val)"),
    ],
)
def test_only_the_same_measurement_is_judged_and_the_difference_is_shown_all_the_same(
    changed: dict[str, str], verdict: str
) -> None:
    line = judged(row_of("50.7", **changed))
    assert line.verdict == verdict
    assert line.difference == pytest.approx(1.0)


def test_a_withheld_score_is_not_judged() -> None:
    line = judged(row_of(), score=None, errors=2)
    assert (line.verdict, line.difference) == ("no score", None)
    assert " -  " in table([line], {})
    assert judged(row_of(), score=None, errors=1319, rules={}).verdict == "no score"


def test_the_interval_of_the_headline_rule_stands_in_where_the_headline_has_none() -> None:
    metrics = metrics_of()
    without = {name: value for name, value in metrics.items() if name not in ("low", "high")}
    (line,) = lines([Run(metrics=without, chat=None, total=None)], [row_of()])
    assert (line.low, line.high) == (pytest.approx(49.7), pytest.approx(53.7))


def test_rows_of_the_same_task_and_kind_are_shown_and_no_others() -> None:
    rows = [
        row_of("1", kind="base"),
        row_of("2", kind="chat"),
        row_of("3"),
        row_of("4", task="mmlu"),
        row_of("5", metric="Rouge-L"),
        row_of("6", part="STEM"),
    ]
    for chat, expected in ((False, ["1", "3"]), (True, ["2", "3"]), (None, ["1", "2", "3"])):
        found = lines([Run(metrics=metrics_of(), chat=chat, total=None)], rows)
        assert [line.reported.value for line in found if line.reported] == expected


def test_categories_stand_beside_reported_categories_where_both_exist() -> None:
    metrics = metrics_of(task="mmlu", shots=5, n=14042)
    metrics["categories"] = {"STEM": part(0.5, 3153), "Social Sciences": part(0.6, 3077), "Other": part(0.7, 3107)}
    common = {"task": "mmlu", "protocol": "mmlu@qwen", "shots": "5"}
    rows = [row_of("58.2", **common), row_of("50.2", part="STEM", **common)]
    rows += [row_of("68.6", part="Social Science", **common), row_of("1.0", part="Hard", **common)]
    run = Run(metrics=metrics, chat=False, total=14042)
    assert [line.category for line in lines([run], rows)] == [""]
    found = lines([run], rows, by="category")
    assert [(line.category, line.n, line.verdict) for line in found] == [
        ("", 14042, "lower"),
        ("STEM", 3153, "within noise"),
        ("Social Sciences", 3077, "lower"),
    ]


# ------------------------------------------------------------------------------------------------------ how it is shown


def test_a_text_table(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "results" / "my_model-1" / "gsm8k@qwen")
    code, out, err = cli("--reported", "Qwen-7B", "results")
    assert (code, err) == (0, "")
    matrix, out = out.split("\n\n", 1)
    assert [line.split()[1:] for line in matrix.splitlines()[-2:]] == [
        ["51.7", "(49.7-53.7)", "*"],
        ["reported", "51.7", "*"],
    ]
    assert out.startswith("Measured: my_model\nReported: Qwen-7B\n")
    first, second = (line for line in out.splitlines() if "README" in line and "OpenCompass" not in line)
    cells = "gsm8k@qwen 1,319 51.7 49.7 to 53.7 51.7 8 BF16 Qwen README_CN, Sept 2023 +0.0 within noise"
    assert " ".join(first.split()) == cells
    # What a line repeats of the run above it is left out, what is reported never.
    assert second.split()[:3] == ["51.7", "8", "BF16"]
    assert "none of ours" in out
    assert "\n[1] Measured by OpenCompass in 2024" in out


def test_footnotes_are_numbered_once_and_stand_under_the_table(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r" / "gsm8k@qwen-chat", protocol="qwen-chat", shots=0, score=0.6)
    code, out, _ = cli("--reported", "Qwen-14B-Chat", "--reported", "Qwen-7B-Chat", "r")
    assert code == 0
    assert "61.0 [1]" in out
    assert "60.1 [1]" in out
    assert "41.1 [3]" in out
    footnotes = [line for line in out.splitlines() if line.startswith("[")]
    assert footnotes[0] == f"[1] {notes()['gsm8k-14b-chat']}"
    assert footnotes[2] == f"[3] {notes()['original-7b-chat']}"
    assert [line.partition(" ")[0] for line in footnotes] == ["[1]", "[2]", "[3]"]
    assert {"14B-Chat", "7B-Chat"} <= {word.removeprefix("Qwen-") for word in out.split()}


def test_every_conflicting_value_is_shown(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r", protocol="qwen")
    _, out, _ = cli("--reported", "Qwen-1.8B", "r")
    assert "32.3 [" in out
    assert "21.2 [" in out


def test_inferred_protocols_say_so(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r", protocol="qwen-chat", shots=0)
    _, out, _ = cli("--reported", "Qwen-7B-Chat", "r")
    (row,) = (line for line in out.splitlines() if "Table 12" in line)
    assert "inferred" in row


def test_markdown_and_latex_carry_both_models_and_the_footnotes(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r")
    code, out, _ = cli("--reported", "Qwen-1.8B", "--format", "md", "r")
    assert code == 0
    assert "| Reported model" in out
    assert out.count("| gsm8k@qwen") == 3
    assert "\n\n[1] " in out
    code, out, _ = cli("--reported", "Qwen-1.8B", "--format", "latex", "r")
    assert code == 0
    assert "my\\_model" in out
    assert "\\end{tabular}\n\n[1] " in out
    escaped = table([judged(row_of(note="a"))], {"a": "5 % of {x}_1 ~ \\"}, format="latex")
    assert escaped.endswith(r"[1] 5 \% of \{x\}\_1 \textasciitilde{} \textbackslash{}")


def test_csv_and_json_are_for_programs(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r" / "1", n=100)
    write(tmp_path / "r" / "2", task="unknown")
    code, out, _ = cli("--reported", "Qwen-1.8B", "--format", "csv", "r")
    assert code == 0
    first, second, _, last = csv.DictReader(io.StringIO(out))
    assert (first["measured"], first["low"], first["high"]) == ("51.7", "49.7", "53.7")
    assert (first["reported"], first["difference"], first["verdict"]) == ("32.3", "19.4", "higher")
    assert (first["n"], first["total"]) == ("100", "1319")
    assert first["note"] == second["note"] == notes()["qwen-1.8b-checkpoint"]
    assert (last["reported"], last["total"], last["verdict"]) == ("", "", "nothing reported")
    _, out, _ = cli("--reported", "Qwen-1.8B", "--format", "json", "r")
    found = json.loads(out)
    assert [each["reported_source"] for each in found][:2] == ["Qwen README, Nov 2023", "Qwen report, Table 2"]
    assert found[0]["reported_protocol_evidence"] == "stated"
    assert found[-1]["reported"] is None


def test_a_limited_run_says_of_how_many(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r", n=100)
    _, out, _ = cli("--reported", "Qwen-7B", "r")
    assert "100 of 1,319" in out


def test_where_nothing_is_reported_a_line_says_so(cli: Cli, tmp_path: Path) -> None:
    # Qwen-7B is a base model: it has no score of a chat protocol.
    write(tmp_path / "r", protocol="qwen-chat", shots=0)
    code, out, _ = cli("--reported", "Qwen-7B", "r")
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith("gsm8k@qwen-chat"))
    assert row.endswith("reported for base only")
    assert "-  " in row


def test_all_runs_beneath_a_folder_sorted_and_each_once(cli: Cli, tmp_path: Path) -> None:
    for name in ("b/gsm8k@qwen", "a/mmlu@qwen", "a/gsm8k@qwen"):
        task = name.partition("/")[2].partition("@")[0]
        write(tmp_path / "r" / name, task=task, model={"name": name[0]})
    code, out, _ = cli("--reported", "Qwen-72B-Chat", "--format", "csv", "r", "r/a", "r/b/gsm8k@qwen")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["model"], row["task"]) for row in rows] == [("a", "gsm8k"), ("a", "mmlu"), ("b", "gsm8k")]


def test_a_real_run_of_the_reported_model_is_judged_by_its_own_metrics(cli: Cli, tmp_path: Path) -> None:
    """The metrics that `scoring.metrics` writes are the ones a comparison reads."""
    from qwen_eval import registry
    from qwen_eval.scoring import metrics

    task = registry.load("gsm8k", registry.find()).task
    protocol = registry.protocol(task, "qwen")
    verdict = {"correct": True, "extracted": "5"}
    records = [
        {
            "doc_id": str(number),
            "group": "",
            "target": "5",
            "outputs": [{"text": "5", "finish": "end"}],
            "verdicts": dict.fromkeys(task.rules, verdict if number < 517 else {**verdict, "correct": False}),
        }
        for number in range(1000)
    ]
    scores = metrics(task, protocol, records, errors=0)
    manifest = {"task": "gsm8k", "protocol": "qwen", "split": "test", "shots": 8, "mini": False, "model": {"name": "m"}}
    (tmp_path / "metrics.json").write_text(json.dumps({**manifest, **scores}))
    code, out, err = cli("--reported", "Qwen-7B", str(tmp_path))
    assert code == 0, err
    assert "51.7        48.6 to 54.8     51.7" in out
    assert "within noise" in out


def test_the_list_of_models(cli: Cli) -> None:
    code, out, _ = cli("--reported", "list")
    assert code == 0
    names = [line.rpartition(" ")[0].strip() for line in out.splitlines()]
    assert len(names) > 80
    assert "Qwen-7B (original)" in names
    assert all(reported(name) for name in names)


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_runs_on_the_small_sets_are_named_and_left_out(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "r" / "gsm8k@qwen-mini", mini=True)
    code, out, err = cli("--reported", "Qwen-7B", "r")
    assert (code, out) == (2, "")
    assert "gsm8k@qwen-mini: run on the small set, which has no published scores; left out." in err
    assert "found runs on the small sets only" in err
    write(tmp_path / "r" / "gsm8k@qwen")
    code, out, err = cli("--reported", "Qwen-7B", "r")
    assert code == 0
    assert len(err.strip().splitlines()) == 1
    assert "within noise" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["."], "expected a folder with finished runs"),
        (["--show-flips", "."], "--show-flips needs --baseline"),
        (["--cluster", "."], "--cluster needs --baseline"),
        (["--baseline", "x", "--by", "subject", "."], "it goes with neither --reported nor --by"),
        (["--baseline", "nowhere", "."], "nowhere: expected a folder with finished runs"),
        (["--reported", "Qwen-7B"], "found none: results"),
        (["--reported", "Qwen-7B", "nowhere"], "found none: nowhere"),
        (["--reported", "Qwen-7B", "."], "Expected a folder with finished runs"),
        (["--reported", "Qwen-7BB", "."], "Did you mean 'Qwen-7B'?"),
        (["--reported", "Qwen-7B", "--by", "subject", "."], "--by"),
    ],
    ids=" ".join,
)
def test_a_mistake_ends_in_plain_lines_and_exit_code_2(cli: Cli, words: list[str], says: str) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps(metrics_of(n="many")),
        json.dumps(metrics_of(shots=None)),
        json.dumps({**metrics_of(), "score": "high"}),
        json.dumps(metrics_of(model={})),
        json.dumps(metrics_of(rules={"qwen": {"score": 1.0}})),
        json.dumps(metrics_of(categories={"STEM": 3})),
    ],
)
def test_damaged_metrics_end_in_exit_code_5(cli: Cli, tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    code, _, err = cli("--reported", "Qwen-7B", ".")
    assert code == 5, err
    assert "metrics.json: expected the metrics of a finished run" in err


def test_help_says_what_a_verdict_means(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert "taken as fixed; its own sampling error on the same items is not known" in " ".join(out.split())


def test_looking_for_a_model_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['qwen_eval', 'compare', '--reported', 'list']\n"
        "from qwen_eval.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
