"""The command line as a user meets it: what works, and that every mistake ends in plain lines and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_eval.cli import main
from qwen_eval.errors import UsageError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat_model(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint("qwen2"))


# ---------------------------------------------------------------------------------------------------- what works


def test_a_run_prints_a_table_and_again_repeats_nothing(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    words = ["run", "--task", "gsm8k,mmlu@qwen", "--model", chat_model, "--limit", "3", "--batch-size", "2"]
    code, out, err = cli(*words)
    assert code == 0, err
    assert "gsm8k@qwen-chat (mini)" in out
    assert "is a chat model" in err
    assert "(mini) and are not comparable" in err
    answers = sorted((tmp_path / "results").rglob("answers.jsonl"))
    assert len(answers) == 2
    before = [file.read_bytes() for file in answers]
    code, again, err = cli(*words)
    assert (code, again) == (0, out)
    assert "3 answer(s) taken from" in err
    assert [file.read_bytes() for file in answers] == before


@pytest.mark.parametrize("form", ["md", "csv", "json", "latex"])
def test_every_table_format(cli: Cli, chat_model: str, form: str) -> None:
    code, out, _ = cli("run", "--task", "mmlu@qwen", "--model", chat_model, "--limit", "4", "--format", form)
    assert code == 0
    if form == "json":
        (metrics,) = json.loads(out)
        assert metrics["n"] == 4
        assert metrics["mini"] is True
    elif form == "csv":
        assert out.startswith(
            "model,task,split,shots,average,part,name,rule,correct,n,score,low,high,headline,unparsed"
        )
    else:
        assert {"md": "| mmlu@qwen (mini)", "latex": "\\begin{tabular}"}[form] in out


def test_flags_come_from_the_command_line_the_environment_and_a_file(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"task: [gsm8k@qwen]\nmodel: {chat_model}\nlimit: 5\nshots: 2\n")
    code, out, err = cli("run", "--config", "run.yaml", "--dry_run", "--batch_size", "3", QWEN_EVAL_LIMIT="4")
    assert code == 0, err
    assert "4 of 24" in out  # the environment wins over the file
    assert "2" in out.splitlines()[2].split()
    code, out, _ = cli("run", "--config", "run.yaml", "--dry-run", "--limit", "0.5")
    assert "12 of 24" in out  # the command line wins over both


def test_a_dry_run_says_what_would_run_and_runs_nothing(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    code, out, _ = cli("run", "--task", "gsm8k@qwen,mmlu@qwen", "--model", chat_model, "--dry-run")
    assert code == 0
    for column in ("Prompt tokens", "Sharing prefixes", "Detectable difference"):
        assert column in out
    assert not (tmp_path / "results").exists()


def test_the_list_of_tasks(cli: Cli) -> None:
    code, out, _ = cli("tasks")
    assert code == 0
    for word in ("gsm8k", "1,319 rows", "MIT", "qwen-chat-4shot", "mmlu", "14,042 rows", "raw.githubusercontent.com"):
        assert word in out


def test_splits_are_shown_where_the_user_may_choose_one(cli: Cli) -> None:
    assert "splits: val, test (--split)" in cli("tasks", "show", "ceval")[1]
    assert "--split" not in cli("tasks", "show", "hf_agent")[1]


def test_a_raw_prompt_is_exactly_its_bytes(cli: Cli, tmp_path: Path) -> None:
    golden = json.loads((Path(__file__).parent / "tasks" / "golden_mini.json").read_text(encoding="utf-8"))
    for name in ("gsm8k@qwen", "gsm8k@opencompass-chat", "mmlu@qwen-chat"):
        identifier, text = next(iter(golden[name].items()))
        code, out, _ = cli("tasks", "show", name, "--sample", identifier, "--raw")
        assert code == 0
        assert out == text.rpartition("\n--- ")[0]


def test_scoring_without_a_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"id": 7, "output": "The answer is 5", "gold": "#### 5"}\n{"id": "0", "output": "", "gold": 5}\n'
    )
    code, _, err = cli(
        "score",
        "--task",
        "gsm8k",
        "--rule",
        "qwen",
        "--rule",
        "corrected",
        "--input",
        "in.jsonl",
        "--output",
        "out.jsonl",
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[:2] == [
        {"id": 7, "rule": "qwen", "extracted": "5", "correct": True},
        {"id": 7, "rule": "corrected", "extracted": "5", "correct": True},
    ]
    assert rows[2] == {"id": "0", "rule": "qwen", "extracted": None, "correct": False}


def test_scoring_a_run_folder_gives_the_verdicts_of_the_run(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    cli("run", "--task", "mmlu@qwen-chat", "--model", chat_model, "--limit", "4")
    (folder,) = (tmp_path / "results").glob("*/*")
    code, _, err = cli("score", "--task", "mmlu", "--input", str(folder), "--output", "out.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for record in records:
        for row in rows:
            if row["id"] == record["doc_id"]:
                assert record["verdicts"][row["rule"]] == {"correct": row["correct"], "extracted": row["extracted"]}


def test_repeats_are_run_shown_and_scored_again(cli: Cli, scripted: dict[str, object], tmp_path: Path) -> None:
    words = ["run", "--task", "gsm8k@qwen-chat,mmlu@qwen", "--limit", "6", "--temperature", "0.8", "--repeats", "5"]
    code, out, err = cli(*words, QWEN_EVAL_TOP_P="0.9")
    assert code == 0, err
    assert "mmlu@qwen (mini) generates no text: asked once, without sampling." in err
    assert "gsm8k@qwen-chat (mini) generates" not in err
    assert "6 x 5" in out
    (folder,) = (tmp_path / "results").glob("*/gsm8k*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["sampling"] == {"temperature": 0.8, "top_p": 0.9, "top_k": 0}
    assert (metrics["n"], metrics["repeats"], metrics["seed"], metrics["deterministic"]) == (6, 5, 0, False)
    code, _, err = cli("score", "--task", "gsm8k", "--input", str(folder), "--output", "out.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for rule, part in metrics["rules"].items():
        of_rule = [row for row in rows if row["rule"] == rule]
        assert len({(row["id"], row["repeat"]) for row in of_rule}) == len(of_rule) == 30
        assert sum(row["correct"] for row in of_rule) / 30 == part["score"]
        assert f"gsm8k, {rule}: {part['correct']} of 30 correct" in err
    code, _, err = cli(*words[:-1], "6", "--seed", "1")
    assert code == 2
    assert "holds another run: seed was 0 and is now 1" in err
    code, out, err = cli(*words, "--dry-run")
    assert code == 0, err
    assert "6 of 24 x 5" in out


def test_a_deterministic_run_is_no_other_run_and_keeps_its_batches(
    cli: Cli, scripted: dict[str, object], tmp_path: Path
) -> None:
    words = ["run", "--task", "gsm8k", "--limit", "3", "--deterministic", "--batch-size", "4"]
    code, _, err = cli(*words)
    assert code == 0, err
    assert scripted["deterministic"] is True
    for other, says in (
        (words[:-3], "deterministic was True and is now False"),
        ([*words[:-1], "5"], "batch_size was 4 and is now 5"),
        ([*words, "--limit", "6"], "samples was 3 and is now 6"),
    ):
        code, _, err = cli(*other)
        assert code == 2, err
        assert says in err


def test_the_engine_is_told_to_be_deterministic(cli: Cli, chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def engine(checkpoint: object, **settings: object) -> None:
        asked.update(settings)
        raise UsageError("enough")

    monkeypatch.setattr("qwen_eval.models.transformers.engine.open_model", engine)
    for words, expected in (([], False), (["--deterministic"], True)):
        assert cli("run", "--task", "gsm8k", "--model", chat_model, *words)[0] == 2
        assert asked["deterministic"] is expected


def test_a_mini_run_is_scored_by_its_own_golds_whatever_data_is_there(
    cli: Cli, chat_model: str, tmp_path: Path, real_data: Path
) -> None:
    cli("run", "--task", "gsm8k@qwen-chat", "--model", chat_model, "--limit", "4")
    (folder,) = (tmp_path / "results").glob("*/*")
    for number, more in enumerate(([], ["--data-dir", str(real_data)])):
        code, _, err = cli("score", "--task", "gsm8k", "--input", str(folder), "--output", f"{number}.jsonl", *more)
        assert code == 0, err
    assert (tmp_path / "0.jsonl").read_text() == (tmp_path / "1.jsonl").read_text()


def test_scoring_never_takes_the_small_set_for_the_real_data_and_spares_old_output(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "0", "output": "5"}\n')
    (tmp_path / "out.jsonl").write_text("old\n")
    code, _, err = cli(
        "score", "--task", "gsm8k", "--input", "in.jsonl", "--output", "out.jsonl", https_proxy="http://127.0.0.1:9"
    )
    assert code == 3
    assert "the data was not found" in err
    assert (tmp_path / "out.jsonl").read_text() == "old\n"


@pytest.mark.parametrize("gold", ['{"a": 1}', '""', "[]"])
def test_a_gold_that_is_none_is_named_by_line(cli: Cli, tmp_path: Path, gold: str) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"id": "0", "output": "5", "gold": {gold}}}\n')
    code, _, err = cli("score", "--task", "gsm8k", "--input", "in.jsonl", "--output", "out.jsonl")
    assert code == 3
    assert "in.jsonl, line 1: expected text or a number as gold" in err


def test_tasks_may_be_repeated_and_a_nearer_source_wins(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"base: true\nmodel: {chat_model}\nlimit: 2\ndry-run: true\n")
    words = ["run", "--config", "run.yaml", "--task", "gsm8k", "--task", "mmlu,gsm8k"]
    code, out, err = cli(*words)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["gsm8k@qwen", "mmlu@qwen"]
    code, out, err = cli(*words, "--chat")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["gsm8k@qwen-chat", "mmlu@qwen-chat"]


def test_the_worked_example_of_the_contributors_guide(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tmp_path / "own" / "_mini" / "sums").mkdir(parents=True)
    (tmp_path / "own" / "sums.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    rows = [json.dumps({"question": f"{number}+1?", "answer": str(number + 1)}) for number in range(20)]
    (tmp_path / "own" / "_mini" / "sums" / "test.jsonl").write_text("\n".join(rows) + "\n")
    code, out, err = cli("run", "--task", "sums", "--model", chat_model, "--include-path", "own")
    assert code == 0, err
    assert "sums@plain (mini)" in out
    code, out, _ = cli("tasks", "--include-path", "own")
    assert "Sums, 1,000 rows" in out


def test_verifying_a_data_folder(cli: Cli, real_data: Path, tmp_path: Path) -> None:
    code, out, err = cli("data", "verify", str(real_data))
    assert code == 0, err
    assert "171 files, all official" in out
    (tmp_path / "d" / "gsm8k").mkdir(parents=True)
    (tmp_path / "d" / "gsm8k" / "test.jsonl").write_text("{}\n")
    code, out, err = cli("data", "verify", "d")
    assert code == 3
    assert "expected SHA-256" in err
    assert "train.jsonl: missing" in err


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "--task", "gsmk8"], 2, "Did you mean 'gsm8k'"),
        (["run", "--task", "gsm8k@qwen-chta"], 2, "Did you mean 'qwen-chat'"),
        (["run", "--task", "gsm8k@"], 2, "Expected TASK or TASK@PROTOCOL"),
        (["run"], 2, "Missing option '--task'"),
        (["run", "--task", "gsm8k", "--model", "./no/such/model"], 3, "found nothing there"),
        (["run", "--task", "gsm8k", "--model", "starter:smollm3"], 2, "smollm2-135m-instruct"),
        (["run", "--task", "gsm8k", "--limit", "0"], 2, "expected at least 1 sample"),
        (["run", "--task", "gsm8k", "--limit", "1.5"], 2, "up to 1.0"),
        (["run", "--task", "gsm8k", "--limit", "many"], 2, "found 'many'"),
        (["run", "--task", "gsm8k", "--shots", "-1"], 2, "--shots"),
        (["run", "--task", "gsm8k", "--batch-size", "0"], 2, "--batch-size"),
        (["run", "--task", "gsm8k", "--dtype", "float33"], 2, "Did you mean 'float32'"),
        (["run", "--task", "gsm8k", "--chat", "--base"], 2, "found both"),
        (["run", "--task", "gsm8k", "--no-mini"], 3, "the data was not found"),
        (["run", "--task", "gsm8k", "--data-dir", "nowhere"], 3, "expected a folder, found none"),
        (["run", "--task", "gsm8k", "--output-dir", "/proc/nothing"], 2, "can be written"),
        (["run", "--task", "gsm8k", "--config", "nowhere.yaml"], 2, "cannot be read"),
        (["run", "--task", "gsm8k", "--include-path", "nowhere"], 2, "expected a folder of task files"),
        (["run", "--task", "gsm8k", "--modle", "x"], 2, "--model"),
        (["rnu"], 2, "No such command"),
        (["tasks", "show", "gsm8k@qwen", "--sample", "99"], 2, "expected a number below 24"),
        (["tasks", "show", "gsm8k@qwen", "--raw"], 2, "expected --sample"),
        (["data", "fetch", "gsmk8"], 2, "Did you mean 'gsm8k'"),
        (["data", "fetch", "gsm8k"], 3, "cannot be reached"),
        (["data", "verify", "nowhere"], 3, "expected a folder"),
        (["score", "--task", "gsm8k", "--rule", "qwne", "--input", "x", "--output", "y"], 2, "Did you mean 'qwen'"),
        (["score", "--task", "gsm8k", "--input", "nowhere", "--output", "y"], 3, "this file is missing"),
        (["score", "--task", "gsm8k@qwne", "--input", "x", "--output", "y"], 2, "Did you mean 'qwen'"),
        (["score", "--task", "gsm8k", "--input", "x", "--output", "./x"], 2, "another file than --input"),
        (["run", "--task", "gsm8k", "--model", ""], 2, "found nothing"),
        (["run", "--task", "gsm8k", "--limit", "٣"], 2, "found '٣'"),
        (["run", "--task", "gsm8k", "--temperature", "-1"], 2, "--temperature -1.0: expected 0"),
        (["run", "--task", "gsm8k", "--temperature", "nan"], 2, "--temperature nan: expected 0"),
        (["run", "--task", "gsm8k", "--temperature", "inf"], 2, "--temperature inf: expected 0"),
        (["run", "--task", "gsm8k", "--temperature", "1", "--top-p", "0"], 2, "--top-p 0.0: expected a share above 0"),
        (
            ["run", "--task", "gsm8k", "--temperature", "1", "--top-p", "1.1"],
            2,
            "--top-p 1.1: expected a share above 0",
        ),
        (
            ["run", "--task", "gsm8k", "--temperature", "1", "--top-p", "nan"],
            2,
            "--top-p nan: expected a share above 0",
        ),
        (
            ["run", "--task", "gsm8k", "--temperature", "1", "--top-k", "-1"],
            2,
            "'--top-k': -1 is not in the range x>=0",
        ),
        (["run", "--task", "gsm8k", "--temperature", "1", "--repeats", "0"], 2, "'--repeats': 0 is not in the range"),
        (["run", "--task", "gsm8k", "--repeats", "2"], 2, "--repeats 2: expected a --temperature above 0, found 0"),
        (["run", "--task", "gsm8k", "--top-p", "0.9"], 2, "greedy decoding gives the same answer every time"),
        (["run", "--task", "gsm8k", "--top-k", "5"], 2, "Next: add --temperature, or leave out --top-k"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_plain_lines_and_its_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    # Nothing here may reach out: the pinned source does not answer.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    found, _, err = cli(*words)
    assert found == code, err
    assert says in err
    assert len(err.strip().splitlines()) <= 6


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("limit: 3\n task: x\n", 2, "expected YAML"),
        ("limit: 3\nmodle: x\n", 2, "Did you mean 'model'"),
        ("- a\n", 1, "flag: value"),
        ("seed: {a: 1}\n", 1, "expected a value"),
    ],
)
def test_a_broken_configuration_is_named_by_line(cli: Cli, tmp_path: Path, content: str, line: int, says: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    code, _, err = cli("run", "--config", "run.yaml")
    assert code == 2
    assert f"run.yaml, line {line}:" in err
    assert says in err


def test_a_chat_protocol_needs_a_chat_template(cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint("qwen2"), bare)
    for file in bare.glob("chat_template*"):
        file.unlink()
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    code, _, err = cli("run", "--task", "gsm8k@qwen-chat", "--model", str(bare))
    assert code == 2
    assert "the model has no chat template" in err
    code, out, err = cli("run", "--task", "gsm8k", "--model", str(bare), "--limit", "1")
    assert code == 0, err
    assert "gsm8k@qwen " in out


def test_samples_that_cannot_be_asked_leave_no_score_and_exit_4(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    small = str(tiny_checkpoint("qwen2", window=64))
    code, out, err = cli("run", "--task", "gsm8k@qwen", "--model", small, "--limit", "2")
    assert code == 4
    assert "no headline score" in err
    assert "sample 0: the prompt has" in err
    assert (
        next(line for line in out.splitlines() if line.startswith("gsm8k@qwen")).split()[-1] == "2"
    )  # errors, in the table
    (file,) = (tmp_path / "results").rglob("metrics.json")
    assert json.loads(file.read_text())["score"] is None
    code, out, _ = cli("run", "--task", "gsm8k@qwen", "--model", small, "--limit", "2", "--format", "csv")
    assert code == 4
    assert ",qwen,0,0,,,,True," in out


def test_a_damaged_answer_is_refused_with_file_and_line(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    words = ["run", "--task", "gsm8k", "--model", chat_model, "--limit", "3"]
    cli(*words)
    (file,) = (tmp_path / "results").rglob("answers.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"turn":0', b'"turn":1', 1))
    code, _, err = cli(*words)
    assert code == 5
    assert "answers.jsonl, line 1: this answer is damaged" in err
    code, _, _ = cli(*words, "--overwrite")
    assert code == 0


def test_a_damaged_record_is_refused_with_file_and_line(cli: Cli, chat_model: str, tmp_path: Path) -> None:
    cli("run", "--task", "gsm8k", "--model", chat_model, "--limit", "3")
    (file,) = (tmp_path / "results").rglob("records.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:50] + "\n" + lines[2])
    code, _, err = cli("score", "--task", "gsm8k", "--input", str(file.parent), "--output", "out.jsonl")
    assert code == 5
    assert "records.jsonl, line 2: this record is damaged" in err


def test_another_run_in_the_same_folder_is_refused(cli: Cli, chat_model: str) -> None:
    cli("run", "--task", "gsm8k@qwen", "--model", chat_model, "--limit", "2")
    code, _, err = cli("run", "--task", "gsm8k@qwen", "--model", chat_model, "--limit", "2", "--shots", "3")
    assert code == 2
    assert "was 8 and is now 3" in err


def test_damaged_scoring_input_is_named_by_line(cli: Cli, tmp_path: Path) -> None:
    for content, says in (
        ('{"id": 1, "output": "5", "gold": 5}\n{"id": \n', "line 2"),
        ('{"id": 1}\n', "line 1"),
    ):
        (tmp_path / "in.jsonl").write_text(content)
        code, _, err = cli("score", "--task", "gsm8k", "--input", "in.jsonl", "--output", "out.jsonl")
        assert code == 3
        assert says in err


def test_a_run_of_another_task_is_not_scored(cli: Cli, tmp_path: Path, chat_model: str) -> None:
    assert cli("run", "--task", "gsm8k@qwen-chat", "--model", chat_model, "--limit", "1")[0] == 0
    (run,) = (tmp_path / "results").glob("*/*")
    code, _, err = cli("score", "--task", "math", "--input", str(run), "--output", "out.jsonl")
    assert code == 2
    assert "expected a run of math, found one of gsm8k" in err


def test_an_id_that_is_no_sample_is_named(cli: Cli, tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1318, "output": ""}\n{"id": 1319, "output": ""}\n')
    code, _, err = cli(
        "score", "--task", "gsm8k", "--input", "in.jsonl", "--output", "out.jsonl", "--data-dir", str(real_data)
    )
    assert code == 3
    assert "in.jsonl, line 2: id '1319' is no sample of gsm8k" in err


def test_a_bug_of_ours_says_so_and_shows_its_traceback_on_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr("qwen_eval.registry.find", broken)
    code, _, err = cli("tasks")
    assert code == 70
    assert "a bug of ours (RuntimeError: unexpected)" in err
    monkeypatch.setattr(sys, "argv", ["qwen_eval", "tasks", "--debug"])
    with pytest.raises(RuntimeError):
        main()


def test_ctrl_c_keeps_what_is_answered_and_says_how_to_resume(chat_model: str, tmp_path: Path) -> None:
    words = ["run", "--task", "gsm8k", "--model", chat_model, "--batch-size", "1"]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_eval", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "https_proxy": "http://127.0.0.1:9"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        file.stat().st_size for file in (tmp_path / "results").rglob("answers.jsonl")
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Stopping with the next answers" in err
    assert f"Next: resume with  python -m qwen_eval {' '.join(words)}" in err
    (file,) = (tmp_path / "results").rglob("answers.jsonl")
    done = file.read_text().count("\n")
    assert 1 <= done < 24
    assert not (file.parent / "metrics.json").exists()
