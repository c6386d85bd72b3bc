"""Long-context perplexity from the command to the table: on tiny models, with documents written on the spot."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_eval import registry
from qwen_eval.data import documents_dataset, find_dataset
from qwen_eval.errors import DataError, UsageError
from qwen_eval.plan import make_plan
from qwen_eval.registry import Entry
from qwen_eval.report.perplexity import parts
from qwen_eval.report.plots import check_plot, plot_perplexity
from qwen_eval.report.tables import results
from qwen_eval.results import request_hash
from qwen_eval.task import Perplexity

Cli = Callable[..., tuple[int, str, str]]
PLACE = "Ann has 3 apples and buys 4 more. He pays 12 dollars for 3 pens, and the sun is hot today. "


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for at in range(4):
        (folder / f"{at}.txt").write_text(f"{at}. {PLACE * 30}\n")
    (folder / "picture.png").write_bytes(b"\x89")
    return folder


def of_run(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of the runs under a folder, by setting."""
    found = [json.loads(file.read_text()) for file in folder.rglob("metrics.json")]
    return {each["model"].get("rope", "plain"): each for each in found}


def test_every_setting_is_a_run_of_its_own_and_all_coincide_up_to_the_training_length(
    cli: Cli, tiny_checkpoint: Callable[..., Path], documents: Path, tmp_path: Path
) -> None:
    words = ("run", "--task", "perplexity", "--model", str(tiny_checkpoint("qwen")), "--documents", str(documents))
    settings = "plain,dynamic_ntk,dynamic_ntk+logn,dynamic_ntk+logn+window"
    words += ("--lengths", "32,64,256", "--blocks", "5", "--settings", settings)
    code, out, err = cli(*words, "--plot", str(tmp_path / "plot.png"))
    assert code == 0, err
    runs = of_run(tmp_path / "results")
    assert sorted(runs) == sorted(settings.split(","))
    values = {name: [part["perplexity"] for _, part in parts(run)] for name, run in runs.items()}
    for length in (0, 1):
        assert len({each[length] for each in values.values()}) == 1, "32 and 64, the training length"
    assert len({each[2] for each in values.values()}) == 4, "256: four techniques"
    assert [part["blocks"] for part in runs["plain"]["perplexity"].values()] == [5, 5, 5]
    assert "window: the schedule is this project's own" in out
    model = runs["plain"]["model"]["name"]
    assert all(f"{model}, {name} " in out for name in runs), "the setting tells them apart, no fingerprint"
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    for name, each in values.items():
        assert f"{each[0]:.0f} ± " in out, name
    # Nothing is asked twice; more blocks extend a run, other lengths are another one.
    code, _, err = cli(*words[:-1], "plain", "--blocks", "6")
    assert code == 0, err
    assert "15 answer(s) taken from" in err
    code, _, err = cli(*words[:-1], "plain", "--lengths", "32,64")
    assert code == 2
    assert "lengths was [32, 64, 256] and is now [32, 64]" in err


def test_the_numbers_follow_from_the_records(
    cli: Cli, tiny_checkpoint: Callable[..., Path], documents: Path, tmp_path: Path
) -> None:
    words = ("run", "--task", "perplexity@blocks", "--model", str(tiny_checkpoint("qwen2")), "--documents")
    assert cli(*words, str(documents), "--lengths", "50,100", "--blocks", "3")[0] == 0
    (run,) = of_run(tmp_path / "results").values()
    (file,) = (tmp_path / "results").rglob("records.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["doc_id"] for each in records] == ["50/0", "50/2", "50/4", "100/0", "100/1", "100/2"]
    outputs = [each["outputs"][0] for each in records if each["group"] == "50"]
    nats, tokens, size = (sum(output[name][0] for output in outputs) for name in ("nll", "tokens", "bytes"))
    assert tokens == 3 * 49
    assert run["perplexity"]["50"]["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert run["perplexity"]["50"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert run["score"] is None
    assert run["dataset"]["fingerprints"]["test"]
    table = list(csv.DictReader(io.StringIO(results([run], format="csv"))))
    assert [row["name"] for row in table] == ["50", "100"]
    assert float(table[0]["perplexity"]) == run["perplexity"]["50"]["perplexity"]


def test_lengths_that_no_text_is_long_enough_for_are_left_out_and_said(
    cli: Cli, tiny_checkpoint: Callable[..., Path], documents: Path, tmp_path: Path
) -> None:
    words = ("run", "--task", "perplexity", "--model", str(tiny_checkpoint("qwen2")), "--documents", str(documents))
    code, out, err = cli(*words, "--lengths", "64,100000", "--blocks", "2")
    assert code == 0, err
    (run,) = of_run(tmp_path / "results").values()
    assert list(run["perplexity"]) == ["64"]
    assert run["perplexity"]["64"]["blocks"] == 1, "the second one would begin where the second long one does"
    assert "100000" not in out
    assert "the documents are too short for a block of 100,000 tokens." in err
    assert "block of 64" not in err


def test_documents_without_a_block_of_any_length_are_refused_and_keep_nothing_from_another_task(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("Short")
    words = ("--model", str(tiny_checkpoint("qwen2")), "--documents", "short", "--lengths", "64,128", "--blocks", "2")
    code, out, err = cli("run", "--task", "perplexity", *words, "--plot", "plot.png")
    assert (code, out) == (3, "")
    assert "expected documents of 64 tokens or more, found fewer" in err
    assert not [*(tmp_path / "results").rglob("*.json*"), *tmp_path.glob("plot.png")]
    code, out, err = cli("run", "--task", "perplexity,mmlu@qwen", *words, "--limit", "2")
    assert code == 3
    assert "mmlu@qwen" in out


def test_no_more_blocks_are_listed_than_the_bytes_of_the_text_can_hold(
    entries: dict[str, Entry], documents: Path
) -> None:
    task = entries["perplexity"].task
    assert task.at_lengths is not None
    dataset = documents_dataset(task.data, documents)
    size = sum(len(row["text"]) + 3 for row in dataset.rows("test"))
    ids = [sample.id for sample in task.at_lengths((64, 128, 10**6), 10**9)(dataset, "test")]
    assert ids == ["64/0", "128/0", "1000000/0"], "the first of each length says which texts these are"
    ids = [sample.id for sample in task.at_lengths((64, 128), 10**9)(dataset, "test")]
    assert ids[-1] == f"128/{size // 128 - 1}"
    assert ids == [sample.id for sample in task.at_lengths((64, 128), size)(dataset, "test")]
    few = [sample.id for sample in task.at_lengths((64, 128), 3)(dataset, "test")]
    assert few == ["64/0", "64/2", "64/4", "128/0", "128/1", "128/2"]


def test_the_small_set_runs_and_shows(cli: Cli, tiny_checkpoint: Callable[..., Path]) -> None:
    words = ("run", "--task", "perplexity", "--model", str(tiny_checkpoint("qwen2")), "--lengths", "64,128")
    code, out, err = cli(*words, "--blocks", "1", https_proxy="http://127.0.0.1:9")
    assert code == 0, err
    assert "Perplexity" in out
    assert "its scores are marked (mini)" in err
    code, out, err = cli("tasks", "show", "perplexity@blocks", "--sample", "1024/0")
    assert code == 0, err


def test_the_real_documents_are_the_pinned_ones(entries: dict[str, Entry], real_data: Path) -> None:
    entry = entries["perplexity"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    assert len(dataset.rows("test")) == 37
    assert not dataset.warnings


def test_folders_of_text_files_are_told_apart_by_what_is_in_them(
    entries: dict[str, Entry], documents: Path, tmp_path: Path
) -> None:
    import lzma

    spec = entries["perplexity"].task.data
    found = documents_dataset(spec, documents)
    assert [row["file"] for row in found.rows("test")] == ["0.txt", "1.txt", "2.txt", "3.txt"]
    first = found.fingerprints["test"]
    assert not found.warnings
    (documents / "2.txt.xz").write_bytes(lzma.compress((documents / "2.txt").read_bytes()))
    (documents / "2.txt").unlink()
    packed = documents_dataset(spec, documents)
    assert packed.rows("test")[2]["text"] == found.rows("test")[2]["text"]
    (documents / "3.txt").write_text("another one")
    other = documents_dataset(spec, documents)
    other.rows("test")
    assert other.fingerprints["test"] != first
    with pytest.raises(DataError, match=r"--documents .*: expected a folder with text files"):
        documents_dataset(spec, tmp_path / "none")


def test_blocks_of_every_length_begin_at_the_same_places(entries: dict[str, Entry], documents: Path) -> None:
    task = entries["perplexity"].task
    dataset = documents_dataset(task.data, documents)
    plan = make_plan(task, registry.protocol(task, "blocks"), dataset, lengths=(256, 64, 128), blocks=3)
    starts: dict[int, list[int]] = {}
    hashes = set()
    for _, request in plan.first_requests():
        assert isinstance(request, Perplexity)
        assert request.index is not None
        starts.setdefault(request.block, []).append(request.block * request.index)
        hashes.add(request_hash(request))
    assert starts == {64: [0, 256, 512], 128: [0, 256, 512], 256: [0, 256, 512]}
    assert len(hashes) == 9
    more = make_plan(task, registry.protocol(task, "blocks"), dataset, lengths=(64, 128, 256), blocks=9)
    assert more.prompts == plan.prompts
    assert make_plan(task, registry.protocol(task, "blocks"), dataset, lengths=(64,)).prompts != plan.prompts


@pytest.mark.parametrize(
    "words",
    [("--lengths", "1024,x"), ("--lengths", "1"), ("--settings", "ntk"), ("--settings", " , "), ("--blocks", "0")],
)
def test_what_makes_no_sense_is_said_before_anything_runs(cli: Cli, words: tuple[str, str]) -> None:
    code, _, err = cli("run", "--task", "perplexity", "--model", "none", *words)
    assert code == 2
    assert words[0] in err
    assert "found ''" not in err


def test_flags_for_lengths_need_a_task_that_is_measured_by_length(cli: Cli) -> None:
    for words in (("--blocks", "3"), ("--lengths", "64"), ("--plot", "plot.png"), ("--documents", ".")):
        code, _, err = cli("run", "--task", "gsm8k", "--model", "none", *words, https_proxy="http://127.0.0.1:9")
        assert code == 2
        assert f"{words[0]}: expected perplexity among the tasks" in err


def test_perplexity_is_not_gated_or_exported_as_if_it_were_a_score(
    cli: Cli, tiny_checkpoint: Callable[..., Path], documents: Path
) -> None:
    words = ("run", "--task", "perplexity", "--model", str(tiny_checkpoint("qwen2")), "--documents", str(documents))
    words += ("--lengths", "32", "--blocks", "1")
    for folder in ("one", "two"):
        assert cli(*words, "--output-dir", folder)[0] == 0
    code, _, err = cli("gate", "--baseline", "one", "--candidate", "two")
    assert code == 2
    assert "found perplexity" in err
    for layout in ("lm-eval", "eee", "hf", "csv", "parquet"):
        code, _, err = cli("export", "one", "--format", layout)
        assert code == 2, layout
        assert "expected a run with a score from 0 to 1, found perplexity" in err
    assert cli("run", "--task", "mmlu@qwen", *words[3:5], "--limit", "2", "--output-dir", "one")[0] == 0
    code, _, err = cli("export", "one", "--format", "csv")
    assert code == 0, err
    code, out, _ = cli(*words, "--dry-run")
    assert code == 0
    assert "points" not in out


def test_a_plot_needs_a_name_that_says_its_format_and_a_folder(tmp_path: Path) -> None:
    for file in (tmp_path / "plot.txt", tmp_path / "none" / "plot.png"):
        with pytest.raises(UsageError, match="--plot"):
            check_plot(file)


def test_the_same_runs_give_the_same_plot(tmp_path: Path) -> None:
    part = {"standard_error": 0.1, "bits_per_byte": 1.0, "blocks": 5, "tokens": 5, "bytes": 5}
    runs = [
        {
            "model": {"name": "m", "rope": rope},
            "perplexity": {"64": part | {"perplexity": 4.0}, "128": part | {"perplexity": top}},
        }
        for rope, top in (("plain", 900.0), ("yarn", 3.9))
    ]
    for name in ("one.svg", "two.svg"):
        plot_perplexity(runs, tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert "Perplexity" in one or "<svg" in one
    assert len(one) == len(two)


@pytest.mark.parametrize("top", [None, 1e300])
def test_a_perplexity_that_no_float_holds_is_shown_stored_and_left_out_of_the_plot(
    top: float | None, tmp_path: Path
) -> None:
    part = {"standard_error": None, "bits_per_byte": 2000.0, "blocks": 2, "tokens": 126, "bytes": 130}
    run = {
        "task": "perplexity",
        "rule": "perplexity",
        "model": {"name": "m", "rope": "plain"},
        "perplexity": {"64": part | {"perplexity": top}, "128": part | {"perplexity": 4.0}},
    }
    assert plot_perplexity([run], tmp_path / "plot.svg")
    assert ("> 1e308" in results([run])) is (top is None)
    table = list(csv.DictReader(io.StringIO(results([run], format="csv"))))
    assert table[0]["bits_per_byte"] == "2000.0"
    none = {**run, "perplexity": {"64": part | {"perplexity": None}}}
    assert not plot_perplexity([none], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


@pytest.mark.parametrize(("factor", "exits"), [(float("nan"), 4), (1e5, 0)])
def test_broken_weights_have_no_perplexity_and_huge_ones_one_beyond_all_floats(
    factor: float, exits: int, cli: Cli, tiny_checkpoint: Callable[..., Path], documents: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint("qwen"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = ("run", "--task", "perplexity", "--model", str(folder), "--documents", str(documents))
    code, out, err = cli(*words, "--lengths", "64", "--blocks", "2", "--plot", str(tmp_path / "plot.png"))
    assert code == exits, err
    (file,) = (tmp_path / "results").rglob("metrics.json")
    metrics = json.loads(file.read_text(), parse_constant=pytest.fail)
    if exits:
        assert "the model's output is not a number" in err
        assert (metrics["errors"], metrics["perplexity"]) == (2, {})
    else:
        assert "> 1e308" in out
        assert "Plot: none" in err
        assert metrics["perplexity"]["64"]["perplexity"] is None
