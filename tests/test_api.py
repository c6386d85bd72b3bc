"""The Python interface: typed, lazy, and the same code as the command line."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import verdicts, write_run

import qwen_eval
from qwen_eval import api, compare, gate, load_run, run
from qwen_eval.commands.run import run as run_command
from qwen_eval.errors import DataError, StoreError, UsageError
from qwen_eval.gating import Allowance, Policy
from qwen_eval.reported import models

ROOT = Path(__file__).resolve().parent.parent
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_importing_the_package_is_cheap_and_its_names_are_there() -> None:
    code = (
        "import sys, qwen_eval\n"
        "assert {'run', 'compare', 'gate', 'load_run'} <= set(dir(qwen_eval))\n"
        "ours = {name for name in sys.modules if name.startswith('qwen_eval')}\n"
        "sys.exit(0 if ours == {'qwen_eval'} and not {'click', 'torch', 'pandas'} & set(sys.modules) else str(ours))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert qwen_eval.run is api.run
    assert set(qwen_eval.__all__) == {"LoadedRun", "__version__", "compare", "gate", "load_run", "run"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qwen_eval.nothing  # noqa: B018


def test_using_the_interface_imports_no_model_library() -> None:
    code = (
        "import sys\nfrom qwen_eval import run\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_flag_of_the_command_is_a_setting() -> None:
    flags = {parameter.name for parameter in run_command.params}
    of_the_command_only = {"task", "model", "config", "dry_run", "format", "by"}
    assert set(api.Settings.__annotations__) == flags - of_the_command_only
    for parameter in run_command.params:
        if parameter.name in ("overwrite", "deterministic", "no_mini", "unsafe_exec", "published_truncation"):
            for value in (True, False):
                (word,) = api._words(str(parameter.name), value)
                assert word in (*parameter.opts, *parameter.secondary_opts)
                assert (word in parameter.opts) is value


def test_a_call_writes_what_the_command_writes_and_prints_no_table(
    cli: Cli, scripted: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = run(
        task=["gsm8k@qwen-chat", "mmlu@qwen"], model="toy", limit=4, output_dir=tmp_path / "called", batch_size="auto"
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert "(mini) and are not comparable" in err
    code, _, err = cli("run", "--task", "gsm8k@qwen-chat,mmlu@qwen", "--model", "toy", "--limit", "4")
    assert code == 0, err
    for loaded in (first, second):
        (said,) = (tmp_path / "results").glob(f"*/{loaded.path.name}")
        for file in ("manifest.json", "answers.jsonl", "records.jsonl", "metrics.json"):
            assert (loaded.path / file).read_bytes() == (said / file).read_bytes()
    assert (first.metrics["task"], second.metrics["task"]) == ("gsm8k", "mmlu")


def test_settings_reach_the_run_and_defaults_are_the_commands(scripted: dict[str, object], tmp_path: Path) -> None:
    (loaded,) = run(task="gsm8k", model="toy", limit=0.1, temperature=0.7, repeats=2, seed=3, base=True, overwrite=True)
    expected = {"engine": "auto", "dtype": "auto", "device": "auto", "batch_size": None, "deterministic": False}
    expected |= {"verify": False, "precision": None, "adapter": None, "hub": "huggingface"}
    assert scripted == expected | {"setting": None, "trusted": False}
    assert loaded.path.parent.parent == Path("results")
    assert loaded.manifest["protocol"] == "qwen"
    assert loaded.manifest["sampling"] == {"temperature": 0.7, "top_p": 1.0, "top_k": 0}
    assert (loaded.metrics["n"], loaded.metrics["repeats"], loaded.manifest["seed"]) == (3, 2, 3)


def test_an_environment_variable_counts_as_on_the_command_line(
    scripted: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_EVAL_LIMIT", "2")
    assert run(task="gsm8k", model="toy")[0].metrics["n"] == 2
    assert run(task="gsm8k", model="toy", limit=3)[0].metrics["n"] == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit": 0}, "expected at least 1 sample"),
        ({"limit": "many"}, "expected a number of samples"),
        ({"batch_size": -1}, "expected a number from 1"),
        ({"engine": "fast"}, "'fast' is not one of"),
        ({"repeats": 2}, "--temperature above 0"),
        ({"chat": True, "base": True}, "expected one of them, found both"),
        ({"task": "gsm9k"}, "Did you mean 'gsm8k'"),
        ({"split": "dev"}, "--split dev"),
    ],
)
def test_a_setting_that_cannot_work_is_a_usage_error(
    scripted: dict[str, object], settings: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        run(**{"task": "gsm8k", "model": "toy", **settings})  # type: ignore[arg-type]


def test_a_setting_that_does_not_exist_is_a_type_error(scripted: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="no setting 'limits'"):
        run(task="gsm8k", limits=3)  # type: ignore[call-arg]
    with pytest.raises(DataError, match="the data was not found"):
        run(task="gsm8k", model="toy", no_mini=True)


def test_a_run_works_beside_the_main_thread(scripted: dict[str, object]) -> None:
    done: list[float | None] = []
    thread = threading.Thread(target=lambda: done.append(run(task="gsm8k", model="toy", limit=2)[0].score))
    thread.start()
    thread.join()
    assert len(done) == 1


def test_a_loaded_run_has_its_files_and_a_row_a_sample_repeat_and_rule(
    scripted: dict[str, object], tmp_path: Path
) -> None:
    (made,) = run(task="gsm8k@qwen-chat", model="toy", limit=5, temperature=1.0, repeats=2)
    loaded = load_run(str(made.path))
    assert loaded.metrics == json.loads((made.path / "metrics.json").read_text())
    assert loaded.manifest == json.loads((made.path / "manifest.json").read_text())
    assert loaded.score == loaded.metrics["score"]
    records = loaded.records()
    frame = loaded.samples()
    rules = loaded.metrics["rules"]
    assert len(frame) == len(records) * len(rules) == 5 * 2 * len(rules)
    assert not frame.duplicated(["sample", "repeat", "rule"]).any()
    for rule, part in rules.items():
        own = frame[frame["rule"] == rule]
        assert own["correct"].mean() == part["score"]
        assert own["headline"].all() == (rule == loaded.metrics["rule"])
    assert list(frame["output"].unique()) == list(dict.fromkeys(each["outputs"][0]["text"] for each in records))
    wide = frame.pivot(index=["sample", "repeat"], columns="rule", values="correct")
    assert wide.shape == (10, len(rules))


def test_a_loaded_run_of_log_probabilities_shows_them(scripted: dict[str, object]) -> None:
    (loaded,) = run(task="mmlu@qwen", model="toy", limit=3)
    frame, records = loaded.samples(), loaded.records()
    assert [json.loads(output) for output in frame["output"]] == [each["outputs"][0]["logprobs"] for each in records]
    assert set(frame["rule"]) == {"choice"}
    assert set(frame["group"]) == {each["group"] for each in records}
    assert frame["new_tokens"].isna().all()


def test_what_is_no_finished_run_is_refused(scripted: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a finished run"):
        load_run(tmp_path)
    (made,) = run(task="gsm8k", model="toy", limit=2)
    (made.path / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match="expected what was run, found something else"):
        load_run(made.path)


def test_comparing_gives_the_lines_of_the_command(cli: Cli, scripted: dict[str, object], tmp_path: Path) -> None:
    (made,) = run(task="gsm8k@qwen-chat", model="toy", limit=4)
    with pytest.raises(UsageError, match="found runs on the small sets only"):
        compare(made, reported="Qwen-7B")
    # As if it had been run on the real data.
    metrics = made.path / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"mini": true', '"mini": false'))
    model = next(iter(models()))
    lines = compare(made, reported=model)
    assert lines == compare(made.path, reported=[model]) == compare(reported=model)
    assert lines[0].run.metrics["task"] == "gsm8k"
    code, out, err = cli("compare", "--reported", model, "--format", "json")
    assert code == 0, err
    assert len(json.loads(out)) == len(lines)
    for both in ({}, {"reported": model, "baseline": made}):
        with pytest.raises(UsageError, match="one of the two"):
            compare(made, **both)  # type: ignore[call-overload]


def test_comparing_with_a_baseline_gives_the_pairs_of_the_command(
    cli: Cli, scripted: dict[str, object], tmp_path: Path
) -> None:
    settings: dict[str, object] = {"task": "gsm8k@qwen-chat", "model": "toy", "limit": 8, "temperature": 1.0}
    (old,) = run(**settings, output_dir="old")  # type: ignore[arg-type]
    (new,) = run(**settings, seed=1, output_dir="new")  # type: ignore[arg-type]
    (pair,) = compare(new, baseline=old)
    assert pair.means == (old.score, new.score)
    code, out, err = cli("compare", "--baseline", "old", "new", "--format", "json")
    assert code == 0, err
    assert json.loads(out)[0]["difference"] == pair.difference.value


def test_gate_decides_as_the_command_does_and_writes_nothing(cli: Cli) -> None:
    before, after = verdicts(1500, wins=10, losses=60)
    old, new = write_run(Path("old/toy@plain"), before), write_run(Path("new/toy@plain"), after)
    report = gate("new", baseline="old")
    assert (report.outcome, report.exit_code) == ("REGRESSION", 1)
    assert not list(Path("new").rglob("gate.*"))
    assert cli("gate", "--baseline", "old", "--candidate", "new")[0] == 1
    assert json.loads(Path("new/gate.json").read_text())["tasks"][0]["p"] == report.decisions[0].p
    assert gate(new, baseline=old, policy=Policy(default=Allowance(max_drop=0.1))).outcome == "PASS"
    Path("gate.yaml").write_text("default: {max_drop: 10}")
    assert gate(load_run(new), baseline=load_run(old), policy="gate.yaml").outcome == "PASS"
    with pytest.raises(UsageError, match="one of the two"):
        gate("new")


def test_the_gate_runs_what_is_missing_first(cli: Cli, scripted: dict[str, object]) -> None:
    code, _, err = cli(
        "run", "--task", "gsm8k@qwen-chat,mmlu@qwen", "--limit", "6", "--output-dir", "old", "--seed", "3"
    )
    assert code == 0, err
    assert cli("run", "--task", "gsm8k@qwen-chat", "--limit", "6", "--output-dir", "new", "--seed", "3")[0] == 0
    finished = sorted(Path("new").rglob("metrics.json"))
    before = finished[0].read_bytes()
    code, out, err = cli("gate", "--baseline", "old", "--candidate", "new", "--run", "any")
    assert code == 0, err
    assert out.count("every output is the same") == 2
    assert len(list(Path("new").rglob("metrics.json"))) == 2
    assert finished[0].read_bytes() == before
    assert {json.loads(path.read_text())["samples"] for path in Path("new").rglob("metrics.json")} == {6}
