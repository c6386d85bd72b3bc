"""Whose answers these are: the fingerprint follows everything that decides them, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.errors import ModelError
from qwen_eval.models.transformers import checkpoint
from qwen_eval.models.transformers.checkpoint import fingerprint, locate
from qwen_eval.task import Choose, Generate, Perplexity

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint with everything that one can have beside its weights."""
    made = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "checkpoint"))
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "quantize_config.json",
        "hf_quant_config.json",
        "merges.txt",
        "vocab.json",
        "tokenizer.model",
        "qwen.tiktoken",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "modeling_own.py",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "shards/part-1.safetensors",
    ):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("{}")
    index = {"weight_map": {"a": "shards/part-1.safetensors", "b": "gone.safetensors"}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def test_an_edit_of_any_file_that_decides_answers_is_another_model(folder: Path) -> None:
    before = fingerprint(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= {f.name for f in files}
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint(folder) != before, file.name
        file.unlink()
        if file.name != "model.safetensors":
            assert fingerprint(folder) != before, f"{file.name} removed"
        file.write_bytes(content)
        assert fingerprint(folder) == before, file.name


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "gptq", "bits": 8}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
    ],
)
def test_a_quantisation_in_the_configuration_is_another_model(folder: Path, settings: dict[str, Any]) -> None:
    before = fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    assert fingerprint(folder) != before


def test_a_name_a_place_and_words_beside_it_make_no_other_model(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    folder = folder.rename(tmp_path / "renamed")
    for name in ("README.md", "trainer_state.json", "optimizer.bin", "training_args.bin", "logo.png"):
        (folder / name).write_text("words")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("older")
    assert fingerprint(folder) == before
    (tmp_path / "link").symlink_to(folder)
    assert fingerprint(tmp_path / "link") == before


def test_weights_in_the_older_format_count_where_they_are_the_weights(tmp_path: Path) -> None:
    tmp_path.joinpath("config.json").write_text("{}")
    tmp_path.joinpath("adapter_model.safetensors").write_text("adapter")
    prints = set()
    for content in ("one", "two"):
        tmp_path.joinpath("pytorch_model.bin").write_text(content)
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 2
    tmp_path.joinpath("model.safetensors").write_text("weights")
    before = fingerprint(tmp_path)
    tmp_path.joinpath("pytorch_model.bin").write_text("not read any more")
    assert fingerprint(tmp_path) == before


def edit_in_secret(file: Path) -> None:
    """Change a byte; size and time of modification stay."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)[0]
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_an_edit_that_keeps_size_and_time_is_seen(folder: Path) -> None:
    before = fingerprint(folder)
    edit_in_secret(folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_a_file_is_read_once_and_again_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder)
    memory = json.loads(checkpoint._Digests(verify=False).file.read_text())
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *args: pytest.fail("read again"))
        assert fingerprint(folder) == before
    # A memory that is wrong, as where a file system hides a change from us.
    wrong = {key: "0" * 64 if "model.safetensors|" in key else value for key, value in memory.items()}
    checkpoint._Digests(verify=False).file.write_text(json.dumps(wrong))
    assert fingerprint(folder) != before
    assert fingerprint(folder, verify=True) == before
    assert fingerprint(folder) == before, "what was found out is remembered"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "null"])
def test_a_damaged_memory_of_digests_only_costs_time(folder: Path, content: str) -> None:
    before = fingerprint(folder)
    checkpoint._Digests(verify=False).file.write_text(content)
    assert fingerprint(folder) == before


def test_an_adapter_that_would_be_left_out_in_silence_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"has an adapter \(adapter_config.json\); expected the package peft"):
        locate(str(folder))
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: object())
    assert locate(str(folder)).folder == folder


def test_a_checkpoint_that_changes_before_it_is_loaded_answers_nothing(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from engines import packed

    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "checkpoint"))
    model = packed(folder)
    edit_in_secret(folder / "model.safetensors")
    model.submit(0, Generate(prompt="x", max_new_tokens=2))
    with pytest.raises(ModelError, match="expected the checkpoint that this run began with, found it changed"):
        model.collect()


def test_an_unloaded_model_has_let_go_of_what_was_queued_and_answers_the_same_when_it_is_loaded_again(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    from engines import packed

    requests = [
        *(Generate(prompt=text, max_new_tokens=9) for text in "xyz"),
        Choose(prompt="x", options=(" A", " B")),
        Perplexity(text="x" * 99, block=8),
    ]
    model = packed(tiny_checkpoint("qwen2"), batch_size=2)
    for ticket, request in enumerate(requests):
        model.submit(ticket, request)
    answers = dict(model.collect()) | dict(model.collect())
    assert 0 < len(answers) < len(requests)
    model.submit(9, requests[0])
    model.unload()
    assert model.collect() == []
    for ticket in answers:
        model.submit(ticket, requests[ticket])
    again: dict[int, object] = {}
    while len(again) < len(answers):
        again |= dict(model.collect())
    assert again == answers


WORDS = ("run", "--task", "mmlu@qwen", "--limit", "3", "--model")


def test_a_renamed_checkpoint_is_asked_nothing_again_and_an_edited_one_everything(
    cli: Cli, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "first")
    assert cli(*WORDS, "first")[0] == 0
    (tmp_path / "first").rename(tmp_path / "second")
    code, out, err = cli(*WORDS, "second")
    assert code == 0, err
    assert out.startswith("second, ")
    assert "3 answer(s) taken from" in err
    (file,) = (tmp_path / "results").rglob("timing.json")
    assert [each["answered"] for each in json.loads(file.read_text())["sessions"]] == [3, 0]
    edit_in_secret(tmp_path / "second" / "model.safetensors")
    code, _, err = cli(*WORDS, "second", "--verify-model")
    assert code == 0, err
    assert "taken from" not in err
    assert len(list((tmp_path / "results").rglob("answers.jsonl"))) == 2


def test_verify_model_reads_every_file(
    cli: Cli, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    read: list[str] = []
    digest = checkpoint.hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr("hashlib.file_digest", counted)
    counts = []
    for more in ([], [], ["--verify-model"]):
        read.clear()
        assert cli(*WORDS, str(tiny_checkpoint("qwen2")), "--dry-run", *more)[0] == 0
        counts.append("model.safetensors" in read)
    assert counts == [True, False, True]
