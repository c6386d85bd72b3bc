"""What `profile` measures: exactly so many tokens, the median of warm runs, memory of a process of its own."""

import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_eval import profile
from qwen_eval.errors import DeviceError, ModelError
from qwen_eval.models.transformers.checkpoint import locate
from qwen_eval.profile import Job, Measurement, measure, measure_apart
from qwen_eval.report.profiles import place, profile_table, published_rows
from qwen_eval.reported import every, reported
from qwen_eval.task import Generate

Cli = Callable[..., tuple[int, str, str]]
Opened = list[Any]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The models that were measured."""
    models: Opened = []
    real = profile._opened

    def keep(job: Job) -> Any:
        models.append(real(job))
        return models[-1]

    monkeypatch.setattr(profile, "_opened", keep)
    return models


def job(folder: Path, **settings: Any) -> Job:
    return Job(checkpoint=locate(str(folder)), device="cpu", **{"context": 1, "new": 4, **settings})


def made_up(**settings: Any) -> Measurement:
    given = {
        "model": "toy",
        "fingerprint": "0" * 16,
        "precision": "bfloat16",
        "engine": "packed",
        "context": 1,
        "new": 101,
        "piece": "我",
        "beyond_window": False,
        "seconds": (2.0, 9.0, 2.5),
        "processor_seconds": (2.0, 2.0, 2.0),
        "prefill_seconds": (0.5, 0.4, 7.0),
        "load_seconds": 1.0,
        "peak_memory_bytes": 3 << 30,
        "peak_memory_answering_bytes": 2 << 30,
        "environment": {"processor": "made up", "load_average": 0.5},
    }
    return Measurement(**{**given, **settings})


# ------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("engine", ["auto", "reference", "transformers"])
def test_exactly_so_many_tokens_are_generated_also_where_the_model_would_end(
    engine: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, opened: Opened
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "ends"))
    greedy = _greedy(folder, 30)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": greedy[4]}))
    assert len(_greedy(folder, 30)) <= 5, "asked as usual, it ends early"
    found = measure(job(folder, engine=engine, new=30))
    (model,) = opened
    # A warm-up of 16 tokens, then three times all of them, and one alone.
    assert model.counters()["new_tokens"] == 16 + 3 * (30 + 1)
    assert found.new == 30
    assert [len(values) for values in (found.seconds, found.prefill_seconds, found.processor_seconds)] == [3, 3, 3]
    assert min(found.seconds) > 0
    assert found.engine == {"auto": "packed"}.get(engine, engine)
    assert found.environment["attention"] == ("qwen_eval_packed" if engine == "auto" else "sdpa")


def _greedy(folder: Path, limit: int) -> list[int]:
    from qwen_eval.models.transformers.reference import ReferenceModel

    model = ReferenceModel(locate(str(folder)), device="cpu")
    rows: list[Any] = []
    finished = model._finished
    model._finished = lambda row: (rows.append(row), finished(row))[1]  # type: ignore[method-assign,func-returns-value]
    model.submit(0, Generate(prompt=profile._context(model, 1)[1], max_new_tokens=limit))
    model.collect()
    new: list[int] = rows[-1].new
    return new


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_context_is_read_anew_every_time(engine: str, tiny_checkpoint: Callable[..., Path], opened: Opened) -> None:
    measure(job(tiny_checkpoint("qwen2"), engine=engine, context=300, new=3))
    (model,) = opened
    reads = 1 + 3 + 3
    assert model.counters()["computed_tokens"] == reads * 300 + (1 + 3) * 2
    assert model.counters()["prompt_tokens"] == reads * 300


def test_a_context_has_its_number_of_tokens_also_behind_a_token_that_begins_every_text(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, processors

    from qwen_eval.models.transformers.reference import ReferenceModel

    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "begun"))
    for begins in (False, True):
        if begins:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
            )
            tokenizer.save(str(folder / "tokenizer.json"))
        model = ReferenceModel(locate(str(folder)), device="cpu")
        for tokens in (1, 2, 3, 50):
            _, text = profile._context(model, tokens)
            ids = model.prompt_tokens(Generate(prompt=text))
            assert len(ids) == tokens
            assert (ids[0] == 0) is begins
            assert len(set(ids[1:])) <= 1
    model.prompt_tokens = lambda request: (1, 2) * 99  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="expected a tokenizer for which"):
        profile._context(model, 5)


def test_lengths_beyond_the_window_are_measured_and_marked(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2", window=64)
    assert not measure(job(folder, context=60, new=4)).beyond_window
    found = measure(job(folder, context=60, new=20))
    assert (found.beyond_window, found.new) == (True, 20)
    assert "beyond the model's window" in profile_table([found])


def test_the_peak_of_memory_is_that_of_the_model_alone(tiny_checkpoint: Callable[..., Path]) -> None:
    small = measure_apart(job(tiny_checkpoint("llama")))
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    folder = tiny_checkpoint("llama", **sizes)
    weights = (folder / "model.safetensors").stat().st_size
    large = measure_apart(job(folder))
    assert large.peak_memory_answering_bytes - small.peak_memory_answering_bytes > 0.8 * weights
    assert large.peak_memory_bytes - small.peak_memory_bytes > 0.8 * weights
    assert large.peak_memory_bytes >= large.peak_memory_answering_bytes
    assert large.reserved_memory_bytes is large.joules is None


def die(_: Job) -> Measurement:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_process_that_is_killed_is_an_error_in_plain_lines(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "measure", die)
    with pytest.raises(DeviceError, match=r"1 \+ 4 tokens: the process that measured was killed"):
        measure_apart(job(tiny_checkpoint("llama")))


def test_the_energy_of_all_gpus_is_counted_while_tokens_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    counters = {b"GPU-a": 1000.0, b"GPU-b": 5000.0}  # millijoules
    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    nvml.nvmlDeviceGetTotalEnergyConsumption = counters.__getitem__
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(profile, "_gpus", lambda model: [0, 1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: types.SimpleNamespace(uuid="ab"[gpu]))
    meter = profile._Meter(model=None)  # type: ignore[arg-type]
    for more in (2000, 4000):
        with meter:
            counters[b"GPU-a"] += more
            counters[b"GPU-b"] += 500
        counters[b"GPU-a"] += 99999  # in between, and not counted
    assert meter.joules == [2.5, 4.5]
    assert made_up(joules=(2.5, 4.5, 3.0), new=10).joules_a_token == 0.3

    def refuse(handle: bytes) -> float:
        raise nvml.NVMLError

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    meter = profile._Meter(model=None)  # type: ignore[arg-type]
    with meter:
        pass
    assert meter.joules == []


# ---------------------------------------------------------------------------------------------------------- tables


def test_what_follows_from_the_seconds() -> None:
    found = made_up()
    assert found.speed == 101 / 2.5
    assert found.prefill == 0.5
    assert found.decode_speed == 100 / 2.0
    assert found.processor_speed == 101 / 2
    assert made_up(environment={"gpus": "1 x made up"}).processor_speed is None
    assert made_up(new=1, prefill_seconds=(2.0, 9.0, 2.5)).decode_speed is None
    assert found.joules_a_token is None


def test_the_record_has_every_field_and_what_follows() -> None:
    record = json.loads(json.dumps(made_up().record()))
    assert set(record) == {
        *Measurement.__dataclass_fields__,
        *("speed", "prefill", "decode_speed", "processor_speed", "joules_a_token"),
    }
    assert record["seconds"] == [2.0, 9.0, 2.5]
    assert (record["speed"], record["decode_speed"]) == (40.4, 50.0)


def test_the_table_shows_what_was_measured_and_leaves_out_what_nobody_could() -> None:
    table = profile_table([made_up(), made_up(precision="int4 (bitsandbytes)", engine="transformers")], format="md")
    head, _, first, second = table.splitlines()[:4]
    assert "Joules/token" not in head
    assert "Reserved" not in head
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        *("toy", "bfloat16", "packed", "1", "101", "40.40", "0.500", "50.00", "50.50", "3.00", "2.00")
    ]
    assert "int4 (bitsandbytes)" in second
    assert "the context is 我 repeated" in table
    assert "the resident set of the process" in table
    assert "processor made up" in table
    gpu = made_up(reserved_memory_bytes=4 << 30, joules=(202.0,) * 3, environment={"gpus": "2 x made up"})
    table = profile_table([gpu])
    assert "Joules/token" in table
    assert "2.00" in table
    assert "allocated on all GPUs" in table
    for form in ("text", "latex", "csv"):
        assert "toy" in profile_table([made_up(), gpu], format=form)


def test_published_numbers_stand_beside_the_same_lengths_only() -> None:
    measured = [made_up(new=2048), made_up(context=2048, new=1)]
    rows = published_rows(reported("Qwen-7B-Chat"), measured)
    assert {(row["context"], row["new"]) for row in rows} == {(1, 2048), (2048, 1)}
    (november,) = [row for row in rows if row["source"] == "Qwen README, Nov 2023" and row["precision"] == "Int4"]
    assert (november["speed"], november["memory"]) == ("50.09", "8.21")
    first = [row for row in rows if row["source"] == "Qwen README_CN, Sept 2023" and row["precision"] == "BF16"]
    assert [(row["context"], row.get("speed"), row.get("memory")) for row in first] == [
        (1, "30.34", None),
        (2048, None, "17.66"),
    ]
    table = profile_table(measured, rows)
    assert "Qwen-7B-Chat, reported" in table
    assert "Qwen README, Nov 2023: A100-80G batch 1, flash-attn 2" in table
    assert not published_rows(reported("Qwen-7B-Chat"), [made_up(new=7)])


def test_every_published_speed_and_memory_with_a_length_is_understood() -> None:
    rows = [row for row in every() if row.benchmark in ("Inference speed", "GPU memory")]
    strange = {row.metric for row in rows if place(row) is None}
    assert strange == {"tokens/s with flash-attn", "tokens/s without flash-attn"}
    assert {place(row) for row in rows} - {None} == {
        *((1, new, what) for new in (2048, 8192) for what in ("speed", "memory")),
        (2048, 1, "memory"),
    }


# --------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: quick, and whose memory it is does not matter."""
    monkeypatch.setattr(profile, "measure_apart", measure)


@pytest.mark.usefixtures("here")
def test_several_models_lengths_and_engines_in_one_table(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    one, other = str(tiny_checkpoint("qwen2")), str(tiny_checkpoint("llama"))
    words = ["profile", one, other, "--context", "1,20", "--new", "5", "--engine", "auto,transformers"]
    code, out, err = cli(*words, "--plot", "bars.png", "--reported", "Qwen-7B-Chat")
    assert code == 0, err
    assert "8 of 8: " in err
    assert "nothing is published for these lengths" in err
    assert len([line for line in out.splitlines() if " packed " in line]) == 4
    assert len([line for line in out.splitlines() if " transformers " in line]) >= 4
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    files = sorted((tmp_path / "results" / "profile").rglob("*.json"))
    assert len(files) == 8
    assert {json.loads(file.read_text())["context"] for file in files} == {1, 20}
    assert cli("compare", "--reported", "Qwen-7B", "results")[0] == 2, "they are no runs"


@pytest.mark.usefixtures("here")
def test_json_for_programs_and_precisions_as_models(cli: Cli, tiny_checkpoint: Callable[..., Path]) -> None:
    words = ["--context=1", "--new=2", "--format=json", "--precision=fp32,bf16"]
    code, out, err = cli("profile", str(tiny_checkpoint("qwen2")), *words)
    assert code == 0, err
    full, half = json.loads(out)
    assert (full["precision"], half["precision"]) == ("float32", "bfloat16")
    assert full["fingerprint"] != half["fingerprint"]


@pytest.mark.usefixtures("here")
def test_what_fails_for_one_model_keeps_nothing_from_the_others(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"nothing")
    code, out, err = cli("profile", str(broken), "nowhere/", str(tiny_checkpoint("llama")), "--new=2")
    assert code == 3
    assert "cannot be loaded" in err
    assert "expected a checkpoint folder" in err
    assert "llama" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--context", "0"], 2, "--context 0: expected numbers of tokens from 1"),
        (["--new", "1,x"], 2, "--new x: expected numbers of tokens"),
        (["--engine", "transformer"], 2, "Did you mean 'transformers'?"),
        (["--precision", "int5"], 2, "--precision int5: expected fp32, bf16, fp16, int8, int4."),
        (["--repeats", "2"], 2, "--repeats"),
        (["--plot", "bars.doc"], 2, "expected a name that ends in .png, .svg, .pdf"),
        (["--reported", "Qwen-8B"], 2, "No published scores of 'Qwen-8B'"),
        (["--device", "cuda:9"], 3, "--device cuda:9: this machine has"),
        (["--hub", "elsewhere"], 2, "huggingface"),
    ],
)
@pytest.mark.usefixtures("here")
def test_mistakes_end_in_plain_lines(
    cli: Cli, tiny_checkpoint: Callable[..., Path], words: list[str], code: int, said: str
) -> None:
    ended, out, err = cli("profile", str(tiny_checkpoint("qwen2")), "--new=1", *words)
    assert (ended, out) == (code, "")
    assert said in err


@pytest.mark.parametrize("engine", ["auto", "reference", "transformers"])
@pytest.mark.parametrize("trusted", [True, False])
def test_code_of_a_checkpoint_is_trusted_where_that_is_said(
    trusted: bool, engine: str, cli: Cli, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []

    def open_only(job: Job) -> Measurement:
        models.append(profile._opened(job))
        raise ModelError("enough")

    monkeypatch.setattr(profile, "measure_apart", open_only)
    words = ["--trust-remote-code"] if trusted else []
    assert cli("profile", str(tiny_checkpoint("qwen2")), "--new=1", f"--engine={engine}", *words)[0] == 3
    assert [model.trusted for model in models] == [trusted]
