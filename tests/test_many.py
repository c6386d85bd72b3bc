"""Several models on several tasks in one command: each loaded once, results as they come, one failure apart."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_runner import bytes_of, plan_of, script

from qwen_eval.errors import MissingError, ModelError, SandboxError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.report.tables import results
from qwen_eval.results import RunFolder
from qwen_eval.runner import Stop, run
from qwen_eval.task import Answer, Failed, Generate, Request

Cli = Callable[..., tuple[int, str, str]]
Asked = dict[str, list[str]]


class Named(ScriptedModel):
    """A scripted model with a name; what it does is written into `log`."""

    def __init__(self, name: str, answer: Callable[[Request], Answer | Failed], log: list[str]) -> None:
        super().__init__(answer, chat=True)
        fingerprint = f"{name.encode().hex():0<16}"[:16]
        self.identity = self.identity.__class__(**{**vars(self.identity), "name": name, "fingerprint": fingerprint})
        self.log = log
        log.append(f"opened {name}")

    def unload(self) -> None:
        super().unload()
        self.log.append(f"unloaded {self.identity.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scripted models behind the command line; returns what they do. By name: missing, broken, failing, buggy."""
    done: list[str] = []

    def engine(name: str, **settings: Any) -> Named:
        if name == "missing":
            raise ModelError("--model missing: expected a checkpoint folder, found nothing there.")

        def answer(request: Request) -> Answer | Failed:
            done.append(f"asked {name} {'gsm8k' if isinstance(request, Generate) else 'mmlu'}")
            if name == "broken":
                raise ModelError("broken: this checkpoint cannot be loaded.")
            if name == "buggy" and isinstance(request, Generate):
                raise RuntimeError("unexpected")
            return Failed(reason="too long") if name == "failing" else script(request)

        return Named(name, answer, done)

    monkeypatch.setattr("qwen_eval.commands.run.open_engine", engine)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return done


WORDS = ("run", "--task", "gsm8k@qwen-chat,mmlu@qwen", "--limit", "4")


def runs(folder: Path) -> set[str]:
    return {f"{file.parent.parent.name[:-9]} {file.parent.name[:4]}" for file in folder.rglob("metrics.json")}


@pytest.mark.parametrize("words", [["--model", "one,two"], ["--model", "one", "-m", "two"], ["-m", "one, two,one"]])
def test_models_are_run_one_after_the_other_and_stand_in_one_table(
    cli: Cli, log: list[str], tmp_path: Path, words: list[str]
) -> None:
    code, out, err = cli(*WORDS, *words)
    assert code == 0, err
    assert log == [
        "opened one",
        "opened two",
        *(["asked one gsm8k"] * 4 + ["asked one mmlu"] * 4 + ["unloaded one"]),
        *(["asked two gsm8k"] * 4 + ["asked two mmlu"] * 4 + ["unloaded two"]),
    ]
    assert runs(tmp_path) == {"one gsm8", "one mmlu", "two gsm8", "two mmlu"}
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["Task", "Model"]
    assert [line.split()[2] for line in lines[1:5]] == ["one", "one", "two", "two"]
    log.clear()
    assert cli(*WORDS, *words)[:2] == (0, out)
    assert not any(line.startswith("asked") for line in log)


def test_every_table_of_several_models_names_the_model(cli: Cli, log: list[str]) -> None:
    code, out, _ = cli(*WORDS, "--model", "one,two", "--format", "md", "--by", "subject")
    assert code == 0
    heads = [line for line in out.splitlines() if "Task" in line]
    assert len(heads) == 4
    assert all("| Model" in head for head in heads)
    assert all(" Model " not in line for line in cli(*WORDS, "--model", "one")[1].splitlines())


def test_a_task_that_is_named_in_two_ways_is_run_once(cli: Cli, log: list[str]) -> None:
    code, out, err = cli(
        "run", "--task", "mmlu,mmlu@qwen-chat,mmlu@qwen", "--chat", "--limit", "4", "-m", "one", "--format", "json"
    )
    assert code == 0, err
    assert log.count("asked one mmlu") + log.count("asked one gsm8k") == 8
    assert [run["protocol"] for run in json.loads(out)] == ["qwen-chat", "qwen"]


def test_two_models_of_one_name_are_told_apart(cli: Cli, log: list[str], tmp_path: Path) -> None:
    assert cli("run", "--task", "mmlu@qwen", "--limit", "4", "--model", "one")[0] == 0
    (file,) = tmp_path.rglob("metrics.json")
    metrics = json.loads(file.read_text())
    other = {**metrics, "model": {**metrics["model"], "fingerprint": "abcdef0123456789"}}
    for form in ("md", "csv"):
        table = results([metrics, other], format=form)
        assert "one (6f6e6500)" in table
        assert "one (abcdef01)" in table
    assert "(6f6e6500)" not in results([metrics, metrics], format="md")


def test_two_settings_of_one_model_are_told_apart_by_their_names(cli: Cli, log: list[str], tmp_path: Path) -> None:
    assert cli("run", "--task", "mmlu@qwen", "--limit", "4", "--model", "one")[0] == 0
    (file,) = tmp_path.rglob("metrics.json")
    plain = json.loads(file.read_text())
    other = {**plain, "model": {**plain["model"], "rope": "dynamic_ntk", "fingerprint": "abcdef0123456789"}}
    for form in ("md", "csv"):
        table = results([plain, other], format=form)
        assert "one, plain" in table
        assert "one, dynamic_ntk" in table
        assert "abcdef01" not in table
    assert "one, " not in results([other], format="md")


def test_a_run_without_a_score_is_said_with_its_model_where_there_are_several(cli: Cli, log: list[str]) -> None:
    code, _, err = cli(*WORDS, "--model", "one,failing")
    assert code == 4
    assert "Error: gsm8k@qwen-chat (mini) on failing, mmlu@qwen (mini) on failing: some samples ended" in err
    assert "Error: gsm8k@qwen-chat (mini), mmlu@qwen (mini): some" in cli(*WORDS, "--model", "failing")[2]


def test_the_environment_and_a_file_name_several_models(cli: Cli, log: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a b,c"
    folder.mkdir()
    for words, settings in (([], {"QWEN_EVAL_MODEL": f"{folder}"}), (["--config", "run.yaml"], {})):
        (tmp_path / "run.yaml").write_text(f"model: ['{folder}', one]\n")
        log.clear()
        assert cli(*WORDS, *words, **settings)[0] == 0
        assert log[0] == f"opened {folder}", "a folder that exists is not taken apart at its comma or space"
    log.clear()
    assert cli(*WORDS, QWEN_EVAL_MODEL="one,two")[0] == 0
    assert log[:2] == ["opened one", "opened two"]


def test_each_result_is_written_as_soon_as_it_exists(
    cli: Cli, log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    collect = ScriptedModel.collect
    monkeypatch.setattr(ScriptedModel, "collect", lambda self: [seen.append(runs(tmp_path)), collect(self)][1])
    assert cli(*WORDS, "--model", "one,two")[0] == 0
    assert seen == [set(), {"one gsm8"}, {"one gsm8", "one mmlu"}, {"one gsm8", "one mmlu", "two gsm8"}]


@pytest.mark.parametrize(
    ("models", "code", "there", "says"),
    [
        ("missing,one", 3, {"one gsm8", "one mmlu"}, "Error: missing: --model missing: expected a checkpoint"),
        ("broken,one", 3, {"one gsm8", "one mmlu"}, "Error: gsm8k@qwen-chat (mini) on broken: broken: this checkpoint"),
        ("one,failing", 4, {"one gsm8", "one mmlu", "failing gsm8", "failing mmlu"}, "ended in an error"),
        ("missing,failing", 4, {"failing gsm8", "failing mmlu"}, "not everything could be run; missing: missing."),
        ("buggy,one", 70, {"buggy mmlu", "one gsm8", "one mmlu"}, "a bug of ours (RuntimeError: unexpected)"),
        ("missing,buggy", 70, {"buggy mmlu"}, "missing: missing; gsm8k@qwen-chat (mini)."),
        ("missing", 3, set(), "Error: --model missing: expected"),
    ],
)
def test_what_fails_for_one_keeps_nothing_from_the_others_and_the_worst_exit_code_wins(
    cli: Cli, log: list[str], tmp_path: Path, models: str, code: int, there: set[str], says: str
) -> None:
    found, out, err = cli(*WORDS, "--model", models)
    assert found == code, err
    assert runs(tmp_path) == there
    assert says in err
    assert all(word in out for name in there for word in name.split())
    if "buggy" in models:
        assert log[log.index("asked buggy gsm8k") + 1] == "unloaded buggy"


def test_a_damaged_run_is_5_and_does_not_stop_the_next(cli: Cli, log: list[str], tmp_path: Path) -> None:
    assert cli(*WORDS, "--model", "one")[0] == 0
    (file,) = tmp_path.rglob("gsm8k*/answers.jsonl")
    file.write_bytes(b"x\n" + file.read_bytes())
    code, out, err = cli(*WORDS[:3], "--limit", "6", "--model", "one,missing")
    assert code == 5, err
    assert "gsm8k@qwen-chat (mini): " in err
    assert "line 1: this answer is damaged" in err
    assert "mmlu@qwen (mini)" in out
    assert log.count("asked one mmlu") == 6
    # What was never asked needs no unloading.
    assert log[-4:] == ["opened one", *["asked one mmlu"] * 2, "unloaded one"]


def test_what_a_broken_off_task_left_behind_is_no_answer_to_the_next(tmp_path: Path) -> None:
    calls = 0

    def breaks(request: Request) -> Answer | Failed:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RuntimeError("unexpected")
        return script(request)

    model = ScriptedModel(breaks)
    for plan in (plan_of("gsm8k", "qwen-chat"), plan_of("gsm8k", "qwen")):
        with suppress(RuntimeError), RunFolder(tmp_path / plan.folder, plan.manifest()) as folder:
            run(plan, model, folder, stop=Stop(), say=lambda line: None)
    # What was queued for the first was answered in the second, and let go.
    assert calls == 24 - 2 + 24
    with RunFolder(tmp_path / "alone", plan.manifest()) as folder:
        run(plan, ScriptedModel(script), folder, stop=Stop(), say=lambda line: None)
    assert bytes_of(tmp_path / plan.folder) == bytes_of(tmp_path / "alone")


def test_missing_data_of_one_task_keeps_nothing_from_the_others(
    cli: Cli, log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_eval import data

    find = data.find_dataset

    def finds(spec: Any, **settings: Any) -> Any:
        if spec.name == "gsm8k":
            raise MissingError("gsm8k: the data was not found.")
        return find(spec, **settings)

    monkeypatch.setattr(data, "find_dataset", finds)
    code, out, err = cli(*WORDS, "--model", "one,two")
    assert code == 3
    assert "Error: gsm8k: gsm8k: the data was not found." in err
    assert runs(tmp_path) == {"one mmlu", "two mmlu"}
    assert "mmlu@qwen (mini)" in out
    code, out, err = cli("run", "--task", "gsm8k@qwen,gsm8k@qwen-chat", "--model", "one")
    assert (code, out) == (3, "")


def test_a_mistake_in_the_command_is_said_before_anything_is_asked(cli: Cli, log: list[str], tmp_path: Path) -> None:
    code, _, err = cli(*WORDS, "--model", "one,two", "--shots", "8")
    assert code == 2
    assert "--shots 8" in err
    assert not any(line.startswith("asked") for line in log)


def test_a_dry_run_of_several_models(cli: Cli, log: list[str], tmp_path: Path) -> None:
    code, out, _ = cli(*WORDS, "--model", "one,two", "--dry-run")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[2:6]] == ["one", "one", "two", "two"]
    assert cli(*WORDS, "--model", "one,missing", "--dry-run")[0] == 3


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_weights_of_a_model_are_loaded_once_and_gone_before_those_of_the_next(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    import transformers

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "first")
    shutil.copytree(tiny_checkpoint("qwen3"), tmp_path / "second")
    loads: list[tuple[str, int]] = []
    alive: list[weakref.ref[Any]] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def counted(folder: Path, **settings: Any) -> Any:
        gc.collect()
        loads.append((Path(folder).name, sum(each() is not None for each in alive)))
        model = load(folder, **settings)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counted)
    words = ["run", "--task", "mmlu@qwen,mmlu@lm-eval", "--limit", "2", "--engine", engine]
    code, _, err = cli(*words, "--model", "first,second", "--format", "json")
    assert code == 0, err
    assert loads == [("first", 0), ("second", 0)]
    assert not any(each() for each in alive)
    assert len(list(tmp_path.rglob("metrics.json"))) == 4


def test_without_a_sandbox_only_the_code_tasks_are_not_asked(
    cli: Cli, log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: object) -> None:
        raise SandboxError("no walls here")

    monkeypatch.setattr("qwen_eval.sandbox.Sandbox", refuse)
    code, out, err = cli("run", "--task", "humaneval@standard,gsm8k@qwen-chat", "--limit", "2", "--model", "one")
    assert code == 3, err
    assert "Error: humaneval@standard: no walls here" in err
    assert log == ["opened one", "asked one gsm8k", "asked one gsm8k", "unloaded one"]
    assert "gsm8k@qwen-chat (mini)" in out
