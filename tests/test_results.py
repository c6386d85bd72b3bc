"""The run folder: nothing answered is lost, asked twice, or taken for something it is not."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval.errors import StoreError, UsageError
from qwen_eval.results import RunFolder, StoredAnswer, read_answers, read_records, request_hash, sealed
from qwen_eval.task import Answer, Choose, Chosen, Execute, Executed, Generate, Generated, LeftCut, Measured, Sampling

MANIFEST: dict[str, Any] = {"task": "toy", "samples": 4, "model": {"name": "m", "fingerprint": "f"}}


def generated(text: str = "18") -> Generated:
    return Generated(text=text, finish="end", prompt_tokens=3, new_tokens=1)


def stored(sample: str, answer: Answer | None = None, turn: int = 0, repeat: int = 0) -> StoredAnswer:
    return StoredAnswer(sample, turn, "hash", answer or generated(), repeat)


answers = st.one_of(
    st.builds(generated, st.text()),
    st.builds(
        lambda values: Chosen(logprobs=tuple(values), prompt_tokens=1),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    ),
    st.just(Measured(nll=(1.5, 2.5), tokens=(3, 3), bytes=(10, 11))),
    st.builds(
        Executed,
        program=st.text(),
        passed=st.booleans(),
        result=st.sampled_from(["passed", "failed: AssertionError", "timed out"]),
        judge=st.sampled_from(["split", "official"]),
        official=st.none() | st.booleans(),
    ),
)


@given(answers, st.text(), st.integers(0, 9))
def test_every_answer_comes_back_as_it_was(answer: Answer, sample: str, repeat: int) -> None:
    entry = stored(sample, answer, repeat=repeat)
    assert StoredAnswer.parse(entry.line().strip().encode("utf-8", "surrogatepass")) == entry


def test_a_line_without_a_repeat_is_of_the_only_one() -> None:
    answer = {"text": "18", "finish": "end", "prompt_tokens": 3, "new_tokens": 1, "cut_tokens": 0}
    line = sealed({"sample": "7", "turn": 1, "request": "hash", "generated": answer})
    assert StoredAnswer.parse(line.strip().encode("utf-8")) == stored("7", turn=1, repeat=0)


def test_the_hash_of_a_greedy_request_is_that_of_versions_without_sampling() -> None:
    greedy = Generate(prompt="p", stops=("a",), cut=LeftCut(3, 2))
    assert request_hash(greedy) == "907c482cda5451c2"
    assert request_hash(Choose(prompt="p", options=("A", "B"))) == "97da94b916653d34"
    drawn = [
        Generate(prompt="p", stops=("a",), cut=LeftCut(3, 2), sampling=Sampling(temperature=1, seed=seed))
        for seed in (0, 1)
    ]
    assert len({request_hash(request) for request in (greedy, *drawn)}) == 3


def test_a_program_is_asked_for_by_everything_that_decides_its_result() -> None:
    program = Execute(source="x = 1", test="assert x", entry_point="x")
    changes: list[dict[str, Any]] = [{"source": "x = 2"}, {"test": ""}, {"entry_point": "y"}, {"timeout": 2.0}]
    others = [replace(program, **change) for change in (*changes, {"prompt": "p"}, {"tests": "plus"})]
    assert len({request_hash(each) for each in (program, *others)}) == 7


def test_answers_are_there_after_reopening(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", MANIFEST) as folder:
        folder.append([stored("0"), stored("1")])
        folder.append([stored("0", turn=1), stored("0", repeat=2)])
    with RunFolder(tmp_path / "run", MANIFEST) as folder:
        assert list(folder.answers) == [("0", 0, 0), ("1", 0, 0), ("0", 1, 0), ("0", 0, 2)]


@settings(max_examples=60)
@given(cut=st.integers(0, 400))
def test_a_torn_last_line_is_dropped_wherever_it_is_torn(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("run")
    with RunFolder(path, MANIFEST) as folder:
        folder.append([stored("0"), stored("1", generated("ein Ü"))])
    file = path / "answers.jsonl"
    content = file.read_bytes()
    whole = content[: max(0, len(content) - cut)]
    file.write_bytes(whole)
    with RunFolder(path, MANIFEST) as folder:
        assert len(folder.answers) == whole.count(b"\n")
        folder.append([stored("2")])
    assert [entry.sample for entry in read_answers(file)[0]][-1] == "2"


@pytest.mark.parametrize(
    "damage", [lambda line: line.replace(b"18", b"19"), lambda line: line[:20], lambda line: b"[]"]
)
def test_a_damaged_line_before_the_last_is_refused_with_its_number(tmp_path: Path, damage: Any) -> None:
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.append([stored("0"), stored("1"), stored("2")])
    file = tmp_path / "answers.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = damage(lines[1])
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(StoreError, match="line 2"), RunFolder(tmp_path, MANIFEST):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, MANIFEST),
        pytest.raises(StoreError, match="another process"),
        RunFolder(tmp_path, MANIFEST),
    ):
        pass


def test_another_run_is_refused_and_the_field_named(tmp_path: Path) -> None:
    with RunFolder(tmp_path, MANIFEST):
        pass
    other = {**MANIFEST, "model": {"name": "m", "fingerprint": "g"}}
    with pytest.raises(UsageError, match=r"model.fingerprint was 'f' and is now 'g'"), RunFolder(tmp_path, other):
        pass
    with RunFolder(tmp_path, other, overwrite=True) as folder:
        assert not folder.answers


def test_a_run_may_grow_but_not_shrink(tmp_path: Path) -> None:
    with RunFolder(tmp_path, MANIFEST):
        pass
    with RunFolder(tmp_path, {**MANIFEST, "samples": 8}):
        pass
    with pytest.raises(UsageError, match="samples was 8"), RunFolder(tmp_path, MANIFEST):
        pass


def test_a_run_may_be_repeated_more_often_but_not_less_often(tmp_path: Path) -> None:
    for repeats in (2, 5):
        with RunFolder(tmp_path, {**MANIFEST, "repeats": repeats}):
            pass
    with pytest.raises(UsageError, match="repeats was 5"), RunFolder(tmp_path, {**MANIFEST, "repeats": 2}):
        pass


@pytest.mark.parametrize("field", ["samples", "repeats"])
def test_a_deterministic_run_does_not_grow(tmp_path: Path, field: str) -> None:
    manifest = {**MANIFEST, "repeats": 4, "deterministic": True}
    with RunFolder(tmp_path, manifest):
        pass
    with pytest.raises(UsageError, match=f"{field} was 4 and is now 8"), RunFolder(tmp_path, {**manifest, field: 8}):
        pass


def test_a_run_of_a_version_without_sampling_goes_on_greedily_only(tmp_path: Path) -> None:
    now = {"sampling": None, "repeats": 1, "deterministic": False}
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.write_derived([], {"n": 0, "task": "toy"})
    with RunFolder(tmp_path, {**MANIFEST, **now}):
        assert (tmp_path / "metrics.json").exists()
    for name, value in (("sampling", {"temperature": 1.0}), ("deterministic", True)):
        with pytest.raises(UsageError, match=f"{name} was"), RunFolder(tmp_path, {**MANIFEST, **now, name: value}):
            pass


def test_a_full_disk_keeps_every_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.append([stored("0")])

        def full(file: int, content: bytes) -> int:
            real(file, bytes(content)[:30])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="No space left on device"):
            folder.append([stored("1")])
        monkeypatch.setattr(os, "write", real)
    assert [entry.sample for entry in read_answers(tmp_path / "answers.jsonl")[0]] == ["0"]
    assert (tmp_path / "answers.jsonl").read_bytes().endswith(b"\n")


def test_answers_without_a_manifest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text(stored("0").line())
    with pytest.raises(StoreError, match=r"manifest\.json: missing"), RunFolder(tmp_path, MANIFEST):
        pass


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="expected a JSON object"), RunFolder(tmp_path, MANIFEST):
        pass


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [lines[0].replace(b"18", b"42"), *lines[1:]], "line 1"),
        (lambda lines: [lines[0], b'{"a":1}', lines[2]], "line 2"),
        (lambda lines: [lines[0], b"\xff", lines[2]], "line 2"),
        (lambda lines: [*lines[:2], lines[2][:-20]], "line 3"),
        (lambda lines: lines[:2], "expected 3 records, found 2"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, damage: Any, says: str) -> None:
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.write_derived([{"doc_id": str(number), "text": "18"} for number in range(3)], {"n": 3, "task": "toy"})
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"\n".join(damage(file.read_bytes().split(b"\n")[:-1])) + b"\n")
    with pytest.raises(StoreError, match=says):
        read_records(tmp_path)


@pytest.mark.parametrize(("errors", "lines"), [(0, 6), (1, 5)])
def test_there_is_a_record_a_repeat_but_for_those_that_failed(tmp_path: Path, errors: int, lines: int) -> None:
    metrics = {"n": 3, "task": "toy", "samples": 3, "repeats": 2, "errors": errors}
    records = [{"doc_id": str(number // 2), "repeat": number % 2} for number in range(lines)]
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.write_derived(records, metrics)
        assert read_records(tmp_path) == records
        folder.write_derived(records[:-1], metrics)
    with pytest.raises(StoreError, match=f"expected {lines} records, found {lines - 1}"):
        read_records(tmp_path)


def test_growing_a_run_drops_what_was_derived_from_the_smaller_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path, MANIFEST) as folder:
        folder.write_derived([], {"n": 0})
    with RunFolder(tmp_path, {**MANIFEST, "samples": 8}):
        pass
    with pytest.raises(StoreError, match="finish the run"):
        read_records(tmp_path)


def test_a_folder_that_cannot_be_written_is_no_bug_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **settings: object) -> int:
        raise PermissionError(13, "Permission denied", "answers.jsonl")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="Permission denied"), RunFolder(tmp_path / "run", MANIFEST):
        pass


def test_derived_files_are_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        with RunFolder(tmp_path / name, MANIFEST) as folder:
            folder.write_derived([{"b": 1, "a": 2}], {"score": 0.5, "rule": "r"})
        written.append([(tmp_path / name / file).read_bytes() for file in ("records.jsonl", "metrics.json")])
    assert written[0] == written[1]
    assert json.loads(written[0][0]).items() >= {"a": 2, "b": 1}.items()
