"""The run folder: one model x one task@protocol x one dataset. Append-only answers, everything else derived from them.

    manifest.json   what was run, written first, atomically
    answers.jsonl   append-only, one line a request, checksummed. The only file that cannot be rebuilt
    records.jsonl   one line a sample and repeat: gold, outputs, the verdict of every rule; derived, in sample order
    submission.json what a leaderboard takes, for a whole run of a split whose answers it keeps; derived
    images/         what the model's code drew, one PNG each, to be looked at; derived
    metrics.json    derived, sorted, no clock in it: the same bytes for the same outputs; written last
    timing.json     what a clock or the machine decides, one entry a session

A torn last line (a killed writer) is dropped and asked again; a damaged line before it is refused with its number.
"""

import errno
import gc
import hashlib
import json
import os
import re
import shlex
import shutil
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qwen_eval.errors import StoreError, UsageError
from qwen_eval.task import (
    Answer,
    Cell,
    Chosen,
    Execute,
    Executed,
    Generated,
    Judge,
    Judged,
    Measured,
    Message,
    Observed,
    Perplexity,
    Request,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "DAMAGED",
    "DERIVED",
    "NOT_THE_MODELS",
    "RunFolder",
    "StoredAnswer",
    "locked",
    "output_of",
    "read_answers",
    "read_manifest",
    "read_metrics",
    "read_records",
    "request_hash",
    "scored_text",
    "unwritable",
    "value_of",
    "write_bytes",
    "write_json",
]

DERIVED = ("metrics.json", "submission.json", "records.jsonl")
"""What the answers decide. metrics.json goes first: a folder without it is no finished run."""
DAMAGED = (ValueError, KeyError, TypeError, StopIteration, RecursionError)
"""What reading a line raises where it is not one of ours."""

KINDS: dict[str, type[Answer]] = {
    "generated": Generated,
    "chosen": Chosen,
    "measured": Measured,
    "executed": Executed,
    "observed": Observed,
    "judged": Judged,
}
NOT_THE_MODELS = frozenset({"program", "cell", "judged"})
"""What the outputs in a record carry that are a sandbox' or a judge's."""
LATER: Mapping[str, Any] = {"sampling": None, "own_penalty": False, "tools": "", "begun": ""}
"""Fields that requests and prompts did not always have: at these values they are left out of the hash, so that a run
from before them is resumed and compared."""
MAY_GROW = ("samples", "repeats")
"""The manifest fields that a later session may raise: how many samples are in the run, how often each is asked. With
--deterministic none: what is computed together follows from both."""
JUDGE = "judge_model"
"""The manifest field that a later session may add where there was none: the judge is then asked what it was not. One
that has not said a word may be named otherwise, or left out."""
NO_CHANGE = ("model.name",)
"""A renamed checkpoint is the same model: its fingerprint says which one it is."""
EARLIER: Mapping[str, Any] = {"sampling": None, "repeats": 1, "deterministic": False}
"""What holds for a run that was written before its manifest had these fields."""


def canonical(value: object) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, Unicode as it is."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def checksum(value: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sealed(content: dict[str, Any]) -> str:
    """Return a line for a JSON-lines file: the content and its checksum, with the newline."""
    return canonical({**content, "sum": checksum(content)}) + "\n"


def unsealed(line: bytes) -> dict[str, Any]:
    """Return what a sealed line holds, in UTF-8 and without its newline. Raises ValueError when it is not whole."""
    content = json.loads(line.decode("utf-8", "surrogatepass"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    found = content.pop("sum", None)
    # Without the checksum, the line itself is the text it was taken of; writing that text anew takes twice as long.
    hashed = line.replace(f',"sum":"{found}"'.encode("utf-8", "surrogatepass"), b"", 1)
    if hashlib.sha256(hashed).hexdigest()[:16] != found and checksum(content) != found:
        raise ValueError("the checksum does not fit")
    return content


def request_hash(request: Request | Execute | Cell | Judge) -> str:
    """Return the hash of everything that is asked: prompt, options, stops, limits, sampling, program, test, kind."""
    asked = _without_defaults(asdict(request))
    if isinstance(request, Perplexity):
        # Texts of megabytes that many requests share are read once.
        asked["text"] = _text_hash(request.text)
    if isinstance(asked.get("prompt"), dict):
        asked["prompt"] = _without_defaults(asked["prompt"])
    return checksum({"kind": type(request).__name__, **asked})


def _without_defaults(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name not in LATER or value != LATER[name]}


@lru_cache(maxsize=4)
def _text_hash(text: str | tuple[str, ...]) -> str:
    return checksum(text)


@dataclass(frozen=True)
class StoredAnswer:
    """One answered request: the sample's id, the turn of its dialogue and its repeat (both from 0), the request's hash.

    A line without a repeat is of a version that asked every sample once.
    """

    sample: str
    turn: int
    request: str
    answer: Answer
    repeat: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """What there is one answer of: sample, turn, repeat."""
        return self.sample, self.turn, self.repeat

    def line(self) -> str:
        """Return the line of answers.jsonl, with its checksum and newline."""
        kind = next(name for name, cls in KINDS.items() if isinstance(self.answer, cls))
        place = {"sample": self.sample, "turn": self.turn, "repeat": self.repeat}
        return sealed({**place, "request": self.request, kind: asdict(self.answer)})

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line back, without its newline. Raises one of `DAMAGED` when it is not whole."""
        content = unsealed(line)
        kind = next(name for name in KINDS if name in content)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content[kind].items()
        }
        if kind == "observed":
            fields["messages"] = tuple(Message(**message) for message in fields["messages"])
        answer = KINDS[kind](**fields)
        return cls(content["sample"], content["turn"], content["request"], answer, content.get("repeat", 0))


class RunFolder:
    """A run folder opened for writing; a context manager that holds the lock.

    Entering it creates the folder or checks that it holds the same run (a larger `samples` or `repeats` extends it),
    and reads the answers it has. Raises StoreError (damaged, locked), UsageError (another run, cannot be written).
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Name the folder and what is to be run in it; nothing is touched before `with`."""
        self.path = path
        self.manifest = dict(manifest)
        self.overwrite = overwrite
        self.answers: dict[tuple[str, int, int], StoredAnswer] = {}

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._lock = locked(self.path)
        try:
            self._begin()
        except OSError as error:
            self._lock.release()
            raise unwritable(Path(error.filename or self.path), error) from None
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._lock.release()

    def append(self, answers: Iterable[StoredAnswer]) -> None:
        """Write answers and make them durable. On a full disk the file ends at its last whole line; StoreError."""
        stored = list(answers)
        before = os.fstat(self._file).st_size
        content = "".join(answer.line() for answer in stored).encode("utf-8", "surrogatepass")
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                written = os.fstat(self._file).st_size - before
                os.ftruncate(self._file, before + content.rfind(b"\n", 0, written) + 1)
            raise StoreError(
                f"{self.path / 'answers.jsonl'}: cannot be written ({error.strerror}). Every whole line before that is "
                "kept.\nNext: make room, then run the same command again; it resumes."
            ) from None
        self.answers |= {answer.key: answer for answer in stored}

    def write_derived(
        self, records: Iterable[dict[str, Any]], metrics: Mapping[str, Any], *, submission: object | None = None
    ) -> None:
        """Write records.jsonl, the leaderboard's submission.json where there is one, and, last, metrics.json."""
        lines = "".join(sealed(record) for record in records)
        write_bytes(self.path / "records.jsonl", lines.encode("utf-8", "surrogatepass"))
        self._write_images()
        if submission is not None:
            write_json(self.path / "submission.json", submission)
        write_json(self.path / "metrics.json", metrics)

    def _write_images(self) -> None:
        """Write the images of all sessions anew, numbered over a sample's steps in their order."""
        folder = self.path / "images"
        drawn: dict[str, list[str]] = {}
        for key in sorted(self.answers):
            answer = self.answers[key].answer
            if isinstance(answer, Observed):
                name = re.sub(r"[^\w.-]", "-", key[0]) + (f"-repeat-{key[2]}" if key[2] else "")
                drawn.setdefault(name, []).extend(each.text for each in answer.messages if each.kind == "image")
        try:
            shutil.rmtree(folder, ignore_errors=True)
            if any(drawn.values()):
                folder.mkdir()
            for name, images in drawn.items():
                for number, image in enumerate(images, 1):
                    (folder / f"{name}-fig-{number:03d}.png").write_bytes(b64decode(image))
        except OSError as error:
            raise unwritable(folder, error) from None

    def add_timing(self, session: Mapping[str, Any]) -> None:
        """Append one session to timing.json. A damaged file is begun anew: nothing follows from it."""
        file = self.path / "timing.json"
        try:
            sessions = json.loads(file.read_text(encoding="utf-8"))["sessions"]
        except (OSError, *DAMAGED):
            sessions = []
        write_json(file, {"sessions": [*(sessions if isinstance(sessions, list) else []), session]})

    def _begin(self) -> None:
        if self.overwrite:
            # The manifest last: killed in between, what is left is still this run.
            for file in sorted(self.path.iterdir(), key=lambda file: file.name == "manifest.json"):
                if file.name != ".lock":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
        file = self.path / "answers.jsonl"
        whole = 0
        if file.exists() and (self.path / "manifest.json").exists():
            stored, whole = read_answers(file)
            self.answers = {answer.key: answer for answer in stored}
        grows = self._grows()
        if grows:
            # What was derived from the smaller run is not its result any more.
            for name in DERIVED:
                (self.path / name).unlink(missing_ok=True)
        write_json(self.path / "manifest.json", self.manifest)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, whole)

    def _is_judged(self) -> bool:
        # Of what has no picture nobody was asked: that word is empty.
        return any(isinstance(stored.answer, Judged) and stored.answer.text for stored in self.answers.values())

    def _grows(self) -> bool:
        """Return whether the folder holds a smaller run. Raises UsageError for another one, StoreError for damage."""
        before = read_manifest(self.path)
        if before is None:
            return False
        may_grow = () if self.manifest.get("deterministic") else MAY_GROW
        differences = [
            difference
            for difference in _differences({**EARLIER, **before}, {**EARLIER, **self.manifest})
            if difference[0] not in NO_CHANGE
        ]
        changed = [
            (name, was, now)
            for name, was, now in differences
            if not (name in may_grow and isinstance(was, int) and isinstance(now, int) and now >= was)
            and not (name.partition(".")[0] == JUDGE and (was is None or not self._is_judged()))
        ]
        if changed:
            # The hash of the prompts follows from other fields, and only a deterministic run holds a batch size; they
            # are named first only where nothing else differs.
            name, was, now = min(changed, key=lambda change: change[0] in ("prompts", "batch_size"))
            was, now = (each.get("name", each) if isinstance(each, dict) else each for each in (was, now))
            others = ", ".join(other for other, _, _ in changed if other != name)
            raise UsageError(
                f"{self.path} holds another run: {name} was {was!r} and is now {now!r}"
                f"{f' (also changed: {others})' if others else ''}.\n"
                "Next: repeat the earlier command, or choose another --output-dir, or start over with --overwrite."
            )
        return bool(differences)


def locked(run: Path) -> "BaseFileLock":
    """Return the lock of a run folder, held. Raises StoreError where another process holds it.

    It is the system's lock on an open file, so a killed process frees it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{run}: another process is writing this run.\nNext: wait for it, or use another --output-dir."
        ) from None
    except OSError as error:
        raise unwritable(run, error) from None
    return lock


def read_manifest(run: Path) -> dict[str, Any] | None:
    """Return the manifest of a run folder, None where nothing has begun. Raises StoreError where it is damaged."""
    file = run / "manifest.json"
    if not file.exists():
        if (run / "answers.jsonl").exists():
            raise StoreError(
                f"{file}: missing beside answers.jsonl, so nobody can say what these answers are.\n"
                "Next: restore the file from a copy, or start over with --overwrite."
            )
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{file}: expected a JSON object, found something else ({error}).\n"
            "Next: restore the file from a copy, or start over with --overwrite."
        ) from None
    return manifest


def read_answers(file: Path) -> tuple[list[StoredAnswer], int]:
    """Return the answers of a file and the length in bytes of its whole lines; a torn last line is left out."""
    content = file.read_bytes()
    lines = content.split(b"\n")
    torn = lines.pop()
    answers = []
    with _uncollected():
        for number, line in enumerate(lines, 1):
            try:
                answers.append(StoredAnswer.parse(line))
            except DAMAGED as error:
                raise StoreError(
                    f"{file}, line {number}: this answer is damaged ({error or 'not an answer'}).\n"
                    f"Next: `python -m qwen_eval repair {shlex.quote(str(file.parent))}` moves damaged lines aside; "
                    "then the same `run` command asks only what is missing."
                ) from None
    return answers, len(content) - len(torn)


def read_metrics(run: Path) -> dict[str, Any]:
    """Return the metrics of a finished run, its manifest among them. Raises StoreError where there are none."""
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if {"n", "task"} <= metrics.keys() and (run / "records.jsonl").is_file():
            return dict(metrics)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise StoreError(
        f"{run}: expected a finished run with records.jsonl and metrics.json, found none.\n"
        "Next: finish the run: the same `run` command again writes both anew from the answers."
    )


def read_records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a finished run. Raises StoreError for a missing, damaged or incomplete file."""
    file, metrics = run / "records.jsonl", read_metrics(run)
    # A repeat that ended in an error has no record, while its item may still count in `n` through its other repeats.
    expected = metrics.get("samples", metrics["n"]) * metrics.get("repeats", 1) - metrics.get("errors", 0)
    lines = file.read_bytes().split(b"\n")
    records = []
    with _uncollected():
        for number, line in enumerate(lines[: -1 if not lines[-1] else None], 1):
            try:
                records.append(unsealed(line))
            except (ValueError, RecursionError) as error:
                raise StoreError(
                    f"{file}, line {number}: this record is damaged ({error}).\n"
                    "Next: the same `run` command again writes the records anew from the answers."
                ) from None
    if len(records) != expected:
        raise StoreError(
            f"{file}: expected {expected:,} records, found {len(records):,}.\n"
            "Next: the same `run` command again writes the records anew from the answers."
        )
    return records


def output_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the last output of a record that is the model's, {} where there is none."""
    outputs = record["outputs"]
    return next((output for output in reversed(outputs) if not output.keys() & NOT_THE_MODELS), {})


def scored_text(record: Mapping[str, Any]) -> str | None:
    """Return the text of a record that the rules read: the last output, or what a dialogue made of all of them."""
    text: str | None = record.get("scored", output_of(record).get("text"))
    return text


def value_of(verdict: Mapping[str, Any]) -> float:
    """Return the score that a stored verdict gives its item, from 0 to 1."""
    return float(verdict.get("value", verdict["correct"]))


def write_json(file: Path, value: object) -> None:
    """Write JSON for people and programs (sorted, indented), atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    write_bytes(file, text.encode("utf-8", "surrogatepass"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically: whole under its name, or not at all. Raises what `unwritable` returns."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise unwritable(file, error) from None


def unwritable(path: Path, error: OSError) -> StoreError | UsageError:
    """Return the error for a path that cannot be written: a disk that is full or fails, or a wrong path or right."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return StoreError(
            f"{path}: cannot be written ({error.strerror}). What was answered is kept.\n"
            "Next: make room, then run the same command again; it resumes."
        )
    return UsageError(
        f"{path}: expected a path that can be written ({error.strerror}).\n"
        "Next: give write permission, or choose another --output-dir."
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector out while much is read: going through all of it again and again takes as long."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _differences(before: Any, now: Any, name: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now
