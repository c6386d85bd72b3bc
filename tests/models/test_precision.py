"""Precisions: what quantised weights answer is near what the others do, and each precision is a model of its own."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import TEXTS, answers_of

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.loaded import LoadedRun, load_run
from qwen_eval.models.transformers import quantisation
from qwen_eval.models.transformers.checkpoint import DECISIVE, Checkpoint, identify, locate
from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.report.precision import effect_table, tokens_a_second
from qwen_eval.task import Generate, Generated, Perplexity

Cli = Callable[..., tuple[int, str, str]]
BLOCKS = {"hidden_size": 64, "intermediate_size": 128}
"""Sizes that weights of 4 bits can have: whole blocks of 64."""


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("llama", **BLOCKS)


def opened(folder: Path, precision: str | None) -> ReferenceModel:
    return ReferenceModel(locate(str(folder), precision=precision), device="cpu")


@pytest.mark.parametrize(("precision", "near"), [("int8", 0.02), ("int4", 0.15)])
def test_quantised_layers_compute_nearly_what_the_others_do(precision: str, near: float, folder: Path) -> None:
    import torch

    pytest.importorskip("bitsandbytes")
    model = opened(folder, precision)
    torch.manual_seed(0)
    values = torch.randn(10, 64)
    with torch.inference_mode():
        exact, found = (
            weights.model.layers[1].mlp.up_proj(values)
            for weights in (opened(folder, None)._weights(), model._weights())
        )
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < near
    assert type(model._weights().model.layers[1].mlp.up_proj).__module__.startswith("bitsandbytes")
    assert model.identity.dtype == f"{precision} (bitsandbytes)"
    assert not model.identity.exact
    assert "bitsandbytes" in model.identity.versions


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_engine_answers_with_quantised_weights(precision: str, folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found = locate(str(folder), precision=precision)
    requests = [*(Generate(prompt=text, max_new_tokens=6) for text in TEXTS), Perplexity(text=TEXTS[1] * 3, block=40)]
    answers = answers_of(PackedModel(found, device="cpu"), requests)
    assert all(isinstance(answer, Generated) and answer.new_tokens for answer in answers[:-1])
    assert not hasattr(answers[-1], "reason")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_precision_that_is_a_dtype_is_loaded_as_it(precision: str, dtype: str, folder: Path) -> None:
    model = opened(folder, precision)
    assert (model.dtype, model.identity.dtype, model.identity.exact) == (dtype, dtype, dtype == "float32")
    assert str(next(model._weights().parameters()).dtype) == f"torch.{dtype}"


def test_every_precision_is_another_model(folder: Path) -> None:
    names = [None, "fp32", "bf16", "fp16", "int8", "int4"]
    found = [locate(str(folder), precision=name) for name in names]
    assert len({identify(each) for each in found}) == len(names)
    assert [each.name.removeprefix(folder.name) for each in found] == ["", "-fp32", "-bf16", "-fp16", "-int8", "-int4"]
    with pytest.raises(UsageError, match=r"--precision int3: expected fp32, .*Did you mean 'int8'\?|'int4'\?"):
        locate(str(folder), precision="int3")


@pytest.mark.parametrize(
    ("method", "needed"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")]
)
def test_stored_quantised_weights_name_the_package_that_reads_them(
    method: str, needed: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Path(shutil.copytree(folder, tmp_path / "stored"))
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (stored / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantisation, "_is_installed", lambda module: False)
    with pytest.raises(ModelError, match=rf"stored by {method} needs .*\nNext: `pip install {needed}"):
        opened(stored, None)
    with pytest.raises(UsageError, match=rf"is stored quantised \({method}\) and is loaded as it is"):
        opened(stored, "int4")
    monkeypatch.setattr(quantisation, "_is_installed", lambda module: True)
    assert quantisation.precision_name(Checkpoint("x", stored), opened_config(stored), "float16") == f"int4 ({method})"


def opened_config(folder: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(folder)


def test_a_missing_package_is_named_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_is_installed", lambda module: module != "bitsandbytes")
    with pytest.raises(ModelError, match=r"--precision int8 needs bitsandbytes.*\nNext: `pip install bitsandbytes`"):
        opened(folder, "int8")
    opened(folder, "bf16")
    monkeypatch.undo()
    assert quantisation._is_installed("torch")
    assert not quantisation._is_installed("no_such_package.part")


def test_a_kernel_that_refuses_a_layer_is_met_when_the_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def refuse(*_: Any) -> None:
        raise RuntimeError("shape '[32, 0]' is invalid")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", refuse)
    with pytest.raises(ModelError, match=r"this checkpoint cannot be loaded \(RuntimeError: shape"):
        opened(folder, "int4").load()


# ------------------------------------------------------------------------------------------------------------- runs


def test_a_run_in_several_precisions_ends_in_one_table_of_scores_speed_and_memory(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    words = [
        "run",
        "--task",
        "mmlu@qwen,gsm8k@qwen",
        "--model",
        str(folder),
        "--limit",
        "4",
        "--precision",
        "fp32,int4",
    ]
    code, out, err = cli(*words)
    assert code == 0, err
    head, _, first, second = out.rstrip().splitlines()[-4:]
    for column in ("mmlu@qwen (mini)", "gsm8k@qwen (mini)", "Tokens/s", "Peak memory, GB", "With loading, GB"):
        assert column in head
    assert f"{folder.name}-fp32 float32" in " ".join(first.split())
    assert f"{folder.name}-int4 int4 (bitsandbytes)" in " ".join(second.split())
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("manifest.json")]
    assert sorted(each["model"]["dtype"] for each in manifests) == ["float32"] * 2 + ["int4 (bitsandbytes)"] * 2
    # Again: nothing is asked, and the same table follows from what is there.
    code, again, err = cli(*words)
    assert (code, again) == (0, out)
    code, out, _ = cli(*words, "--format", "json")
    assert len(json.loads(out)) == 4, "for programs: the scores alone"


def test_counts_in_timing_are_of_their_task_alone(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("run", "--task", "gsm8k@qwen,gsm8k@opencompass", "--model", str(folder), "--limit", "2")[0] == 0
    for file in (tmp_path / "results").rglob("answers.jsonl"):
        answers = [json.loads(line)["generated"] for line in file.read_text().splitlines()]
        (session,) = load_run(file.parent).sessions
        assert session["new_tokens"] == sum(each["new_tokens"] for each in answers)
        assert session["prompt_tokens"] == sum(each["prompt_tokens"] for each in answers)
        assert session["peak_memory_bytes"] >= session["peak_memory_answering_bytes"] > 50 << 20
    loading = [
        load_run(file.parent).sessions[0]["load_seconds"] for file in (tmp_path / "results").rglob("answers.jsonl")
    ]
    assert sorted(value > 0 for value in loading) == [False, True], "loaded once"


def test_speed_is_of_the_sessions_that_answered_and_without_loading() -> None:
    one = {"answered": 3, "wall_seconds": 12.0, "load_seconds": 2.0, "prompt_tokens": 80, "new_tokens": 20}
    idle = {**one, "answered": 0, "wall_seconds": 1000.0}
    assert tokens_a_second([one, idle]) == 10.0
    assert tokens_a_second([one, {**one, "wall_seconds": 42.0}]) == 200 / 50
    assert tokens_a_second([idle]) is None
    assert tokens_a_second([{"answered": 3, "wall_seconds": 1.0}]) is None, "a model that counts nothing"


def test_runs_without_counts_have_a_table_too(scripted_results: Path) -> None:
    runs = [load_run(file.parent) for file in sorted(scripted_results.rglob("metrics.json"))]
    table = effect_table(runs, format="md")
    assert table.splitlines()[2].count("| -") >= 3
    assert "gsm8k@lm-eval (mini)" in table


def test_perplexity_has_a_column_a_length_and_a_setting_a_row(scripted_results: Path) -> None:
    one = load_run(min(scripted_results.rglob("metrics.json")).parent)
    part = {"standard_error": 0.25, "bits_per_byte": 1.0, "blocks": 5, "tokens": 5, "bytes": 5}

    def run(rope: str | None, **perplexity: float) -> LoadedRun:
        lengths = {name[1:]: part | {"perplexity": value} for name, value in perplexity.items()}
        named = {"task": "perplexity", "protocol": "blocks", "mini": False, "score": None, "perplexity": lengths}
        return LoadedRun(one.path, {**one.metrics, **named, "model": {**one.metrics["model"], "rope": rope}}, {})

    table = effect_table([run(None, L1024=4.5, L64=8.5), run("yarn", L64=9)], format="md")
    head, _, plain, yarn = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head[2:4] == ["perplexity@blocks, 64", "perplexity@blocks, 1024"]
    assert (plain[0], *plain[2:4]) == (f"{one.metrics['model']['name']}, plain", "8.50 ± 0.25", "4.50 ± 0.25")
    assert (yarn[0], *yarn[2:4]) == (f"{one.metrics['model']['name']}, yarn", "9.00 ± 0.25", "-")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int5"], "--precision int5: expected fp32, bf16, fp16, int8, int4."),
        (["--precision", "bf16", "--dtype", "float32"], "expected one of them, found both"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(cli: Cli, folder: Path, words: list[str], said: str) -> None:
    code, out, err = cli("run", "--task", "mmlu@qwen", "--model", str(folder), "--limit", "4", *words)
    assert (code, out) == (2, "")
    assert said in err


# ------------------------------------------------------------------------------------------------------- ModelScope


def test_a_model_is_fetched_from_modelscope_where_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(model_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((model_id, allow_patterns))
        if model_id == "qwen/Nothing":
            raise RuntimeError("404\nNot found")
        return str(folder)

    module: Any = types.ModuleType("modelscope")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "modelscope", module)
    found = locate("qwen/Qwen-7B", hub="modelscope")
    assert (found.name, found.folder) == ("Qwen-7B", folder)
    assert asked == [("qwen/Qwen-7B", list(DECISIVE))]
    assert locate(str(folder), hub="modelscope").folder == folder, "a folder is a folder"
    assert len(asked) == 1
    with pytest.raises(ModelError, match=r"not to be had from ModelScope \(RuntimeError: 404\)"):
        locate("qwen/Nothing", hub="modelscope")


def test_modelscope_that_is_not_installed_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    code, _, err = cli("run", "--task", "mmlu@qwen", "--model", "qwen/Qwen-7B", "--hub", "modelscope")
    assert code == 3
    assert "expected the package modelscope, found none.\nNext: `pip install modelscope`." in err


@pytest.mark.parametrize("raised", ["AttributeError('module datasets has no x')", "RuntimeError('y')", "ValueError()"])
def test_modelscope_that_breaks_when_it_is_imported_is_named(
    raised: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "modelscope.py").write_text(f"raise {raised}\n")
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    code, _, err = cli("run", "--task", "mmlu@qwen", "--model", "qwen/Qwen-7B", "--hub", "modelscope")
    assert code == 3
    assert f"the package modelscope cannot be imported ({raised.partition('(')[0]}" in err
