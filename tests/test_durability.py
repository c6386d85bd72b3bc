"""Runs outlast what befalls them: kill -9, torn and damaged files, full disks, second writers, folders to read only."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_runner import SAMPLING, bytes_of, finish, plan_of, script, two_turns

from qwen_eval import results
from qwen_eval.commands.repair import repair_run
from qwen_eval.errors import StoreError
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.plan import Plan
from qwen_eval.results import DERIVED, read_answers, read_records
from qwen_eval.task import Answer, Failed, Generate, Generated, Request

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "50"))
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan() -> Plan:
    """Two turns, two repeats, six samples: 24 answers."""
    return replace(plan_of("gsm8k", "qwen-chat", limit=6, sampling=SAMPLING, repeats=2), ask=two_turns)


@pytest.fixture
def whole(plan: Plan, tmp_path: Path) -> Path:
    """A finished run that nothing befell."""
    finish(plan, tmp_path / "whole")
    return tmp_path / "whole"


def copy(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.parent / name))


def lines_of(run: Path) -> list[bytes]:
    return (run / "answers.jsonl").read_bytes().splitlines(keepends=True)


def content_of(run: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.iterdir()}


# ------------------------------------------------------------------------------------------------------------ kill -9


def kills(*words: str) -> dict[str, int]:
    """Run tests/kills.py; return its counts."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kills.py"), *words],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "https_proxy": "http://127.0.0.1:9",
            "TOKENIZERS_PARALLELISM": "false",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


def test_a_run_killed_at_random_moments_ends_like_one_that_was_left_alone(tmp_path: Path) -> None:
    counts = kills(str(tmp_path), str(KILLS))
    assert counts["kills"] == KILLS
    assert counts["killed between"] > KILLS / 4
    # What was asked and not yet written when the kill came: a batch of four at most.
    assert 0 <= counts["asked"] - counts["answered"] <= 4 * KILLS


def test_a_run_of_a_real_model_killed_at_random_moments_ends_like_one_that_was_left_alone(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    some = max(3, KILLS // 25)
    assert kills(str(tmp_path), str(some), str(tiny_checkpoint("qwen2")))["kills"] == some


def test_killed_before_the_first_answer_a_run_begins_anew(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(plan, tmp_path / "run")
    finish(plan, tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_overwriting_killed_between_two_files_leaves_a_run(
    plan: Plan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(whole)
    names = [file for file in os.listdir(whole) if file != ".lock"]
    unlink = Path.unlink
    for after in range(len(names)):
        run = copy(whole, f"after {after}")
        left = after

        def killed(file: Path, missing_ok: bool = False) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            unlink(file, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                finish(plan, run, overwrite=True)
        finish(plan, run)
        assert bytes_of(run) == expected


# ----------------------------------------------------------------------------------------------------- torn last lines


def test_a_last_line_torn_at_any_byte_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_of("gsm8k", "qwen-chat", limit=2)
    finish(plan, tmp_path / "whole")
    content = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    run = copy(tmp_path / "whole", "run")
    for length in range(len(content)):
        (run / "answers.jsonl").write_bytes(content[:length])
        _, model = finish(plan, run)
        assert model.asked == 2 - content[:length].count(b"\n")
        assert (run / "answers.jsonl").read_bytes() == content
        assert bytes_of(run) == bytes_of(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("room", [0, 1, 200, 700, 1100, 3000, 4444])
def test_a_full_disk_stops_at_the_last_whole_line_and_goes_on_where_it_stopped(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write, left = os.write, room

    def full(file: int, content: bytes) -> int:
        nonlocal left
        if not left:
            with open("/dev/full", "wb", buffering=0) as device:
                return device.write(content)
        written = write(file, bytes(content)[:left])
        left -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="No space left on device") as raised:
            finish(plan, tmp_path / "run", batch=6)
    assert len(str(raised.value).splitlines()) <= 3
    lines = lines_of(tmp_path / "run")
    assert sum(map(len, lines)) <= room
    assert all(line.endswith(b"\n") for line in lines)
    assert sum(map(len, lines)) + 400 > room, "a whole line was thrown away"
    _, model = finish(plan, tmp_path / "run")
    assert model.asked == 24 - len(lines)
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own; the test is skipped, in words, where it may not be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


Asked = list[Request]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A scripted chat model behind the command line, with long answers; returns what it is asked."""
    listed: Asked = []

    def answer(request: Request) -> Answer | Failed:
        listed.append(request)
        answered = script(request)
        return replace(answered, text=answered.text * 80) if isinstance(answered, Generated) else answered

    monkeypatch.setattr(
        "qwen_eval.commands.run.open_engine", lambda model, **settings: ScriptedModel(answer, batch=3, chat=True)
    )
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return listed


WORDS = ("run", "--task", "gsm8k@qwen-chat", "--output-dir")


def folder_of(output: Path) -> Path:
    (run,) = output.glob("*/*@*")
    return run


def test_a_really_full_disk(cli: Cli, asked: Asked, tmp_path: Path) -> None:
    assert cli(*WORDS, str(tmp_path / "alone"))[0] == 0
    total = len(asked)
    with small_disk(tmp_path / "disk", 48) as disk:
        (disk / "filler").write_bytes(bytes(12288))
        asked.clear()
        code, _, err = cli(*WORDS, str(disk))
        assert code == 5, err
        assert err.count("Error: ") == 1
        assert "No space left on device" in err
        assert "Next: make room, then run the same command again; it resumes." in err
        kept, whole = read_answers(folder_of(disk) / "answers.jsonl")
        assert 0 < len(kept) < total
        assert whole == (folder_of(disk) / "answers.jsonl").stat().st_size
        assert not (folder_of(disk) / "metrics.json").exists()
        # Still full: the same, and nothing is lost.
        assert cli(*WORDS, str(disk))[0] == 5
        assert read_answers(folder_of(disk) / "answers.jsonl")[0][: len(kept)] == kept
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        kept, _ = read_answers(folder_of(disk) / "answers.jsonl")
        asked.clear()
        code, _, err = cli(*WORDS, str(disk))
        assert code == 0, err
        assert len(asked) == total - len(kept)
        assert bytes_of(folder_of(disk)) == bytes_of(folder_of(tmp_path / "alone"))
        assert not list(disk.rglob("*.partial"))


@pytest.mark.parametrize("name", ["manifest.json", "records.jsonl", "metrics.json", "timing.json"])
def test_a_disk_that_is_full_for_another_file_of_a_run(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replaced = Path.replace

    def full(partial: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replaced(partial, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StoreError, match=rf"{name}: cannot be written \(No space left on device\)"):
            finish(plan, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.partial"))
    _, model = finish(plan, tmp_path / "run")
    assert model.asked == (24 if name == "manifest.json" else 0)
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


# ------------------------------------------------------------------------------------------- writers, rights, folders


@contextmanager
def writer(run: Path) -> Iterator[None]:
    """Another process that writes a run."""
    code = (
        f"import filelock; lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire(); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.kill()


def test_a_second_writer_exits_5_and_a_killed_one_is_in_nobodys_way(cli: Cli, asked: Asked, tmp_path: Path) -> None:
    assert cli(*WORDS, str(tmp_path), "--limit", "3")[0] == 0
    run = folder_of(tmp_path)
    before = content_of(run)
    with writer(run):
        for words in ([*WORDS, str(tmp_path)], [*WORDS, str(tmp_path), "--overwrite"], ["repair", str(run)]):
            code, _, err = cli(*words)
            assert code == 5, err
            assert "another process is writing this run" in err
            assert content_of(run) == before
    assert cli(*WORDS, str(tmp_path))[0] == 0


def test_a_folder_to_read_only_can_be_read_and_is_refused_for_writing(whole: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to run something as another user")
    # Imported before the rights are given away: the interpreter may lie where nobody else can read.
    code = (
        "import os, sys, pathlib, filelock, json\n"
        "from qwen_eval.results import RunFolder, read_records\n"
        "from qwen_eval.commands import repair, score, compare\n"
        "from qwen_eval.errors import QwenEvalError\n"
        "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "run = pathlib.Path('run')\n"
        "manifest = json.loads((run / 'manifest.json').read_text())\n"
        "print(len(read_records(run)))\n"
        "for opened in (lambda: RunFolder(run, manifest).__enter__(), lambda: repair.repair_run(run),\n"
        "               lambda: RunFolder(run / 'below', manifest).__enter__()):\n"
        "    try: opened(); print('opened')\n"
        "    except QwenEvalError as error: print(error.exit_code, str(error).count('\\n'), error, sep='|')\n"
    )
    place = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        shutil.copytree(whole, place / "run")
        for each in (place, place / "run"):
            each.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code, str(place)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "12"
    assert said[1::2] == ["2|1|run: expected a path that can be written (Permission denied)."] * 2 + [
        "2|1|run/below: expected a path that can be written (Permission denied)."
    ]
    assert said[2::2] == ["Next: give write permission, or choose another --output-dir."] * 3


# --------------------------------------------------------------------------------------------------- damage and repair


def flipped(lines: list[bytes]) -> None:
    lines[4] = lines[4].replace(b"answer", b"anSwer", 1)


def cut(lines: list[bytes]) -> None:
    lines[4] = lines[4][:50] + b"\n"


def joined(lines: list[bytes]) -> None:
    lines[4:6] = [lines[4][:-1] + b" " + lines[5]]


def split(lines: list[bytes]) -> None:
    lines[4] = lines[4][:60] + b"\n" + lines[4][61:]


def blank(lines: list[bytes]) -> None:
    lines[4] = b"\n"


def zeroed(lines: list[bytes]) -> None:
    lines[4:7] = [bytes(len(b"".join(lines[4:7])) - 1) + b"\n"]


def not_utf8(lines: list[bytes]) -> None:
    lines[4] = lines[4][:20] + b"\xff\xfe" + lines[4][22:]


def nested(lines: list[bytes]) -> None:
    lines[4] = b"[" * 100_000 + b"\n"


def another(lines: list[bytes]) -> None:
    lines[4] = results.sealed({"a": 1}).encode()


@pytest.mark.parametrize(
    ("damage", "missing", "moved"),
    [
        (flipped, 1, (5,)),
        (cut, 1, (5,)),
        (joined, 2, (5,)),
        (split, 1, (5, 6)),
        (blank, 1, (5,)),
        (zeroed, 3, (5,)),
        (not_utf8, 1, (5,)),
        (nested, 1, (5,)),
        (another, 1, (5,)),
    ],
)
def test_damaged_lines_are_refused_then_moved_aside_and_only_they_are_asked_again(
    plan: Plan, whole: Path, damage: Callable[[list[bytes]], None], missing: int, moved: Sequence[int]
) -> None:
    run = copy(whole, "run")
    lines = lines_of(run)
    before = set(lines)
    damage(lines)
    damaged = b"".join(lines)
    (run / "answers.jsonl").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"answers\.jsonl, line 5: this answer is damaged") as refused:
        finish(plan, run)
    assert f"`python -m qwen_eval repair {run}`" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    assert (run / "answers.jsonl").read_bytes() == damaged, "it was changed before it was repaired"
    done = repair_run(run)
    assert done.moved == tuple(moved)
    assert set(done.removed) == set(DERIVED) - {"submission.json"}
    assert not any((run / name).exists() for name in DERIVED)
    kept = lines_of(run)
    assert set(kept) < before
    assert len(kept) == 24 - missing == done.kept
    aside = (run / "answers.damaged.jsonl").read_bytes()
    split_damaged = damaged.split(b"\n")
    assert aside == b"".join(split_damaged[number - 1] + b"\n" for number in moved)
    _, model = finish(plan, run)
    assert model.asked == missing
    assert bytes_of(run) == bytes_of(whole)
    assert (run / "answers.damaged.jsonl").read_bytes() == aside
    assert repair_run(run) == type(done)(24, (), ())


def test_repairing_twice_keeps_what_was_moved_before_and_a_torn_line_goes_along(plan: Plan, whole: Path) -> None:
    run = copy(whole, "run")
    for expected in ((5,), (5, 24)):
        lines = lines_of(run)
        flipped(lines)
        (run / "answers.jsonl").write_bytes(b"".join(lines)[: None if len(expected) == 1 else -7])
        assert repair_run(run).moved == expected
        finish(plan, run)
    assert (run / "answers.damaged.jsonl").read_bytes().count(b"\n") == 3
    assert bytes_of(run) == bytes_of(whole)


def test_a_repair_killed_at_any_write_can_be_done_again(
    plan: Plan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = Path.replace
    for after in range(2):
        run = copy(whole, f"after {after}")
        lines = lines_of(run)
        flipped(lines)
        (run / "answers.jsonl").write_bytes(b"".join(lines))
        left = after

        def killed(partial: Path, target: Path) -> Path:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return replaced(partial, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                repair_run(run)
        assert repair_run(run).moved == (5,)
        _, model = finish(plan, run)
        assert model.asked == 1
        assert bytes_of(run) == bytes_of(whole)


def test_a_lost_first_turn_that_is_answered_otherwise_now_has_its_next_turn_asked_again(
    plan: Plan, whole: Path
) -> None:
    run = copy(whole, "run")
    lines = [line for line in lines_of(run) if not (b'"sample":"0"' in line and b'"turn":0' in line)]
    assert len(lines) == 22
    (run / "answers.jsonl").write_bytes(b"".join(lines))

    def otherwise(request: Request) -> Answer | Failed:
        assert isinstance(request, Generate)
        return Generated(text=f"Other {len(str(request))}", finish="end", prompt_tokens=1, new_tokens=1)

    _, model = finish(plan, run, script=otherwise)
    assert model.asked == 4
    before = bytes_of(run)
    _, model = finish(plan, run)
    assert model.asked == 0, "the later of two answers to the same turn is the one that counts"
    assert bytes_of(run) == before


def test_repair_on_the_command_line(cli: Cli, asked: Asked, tmp_path: Path) -> None:
    words = [*WORDS, str(tmp_path)]
    assert cli(*words)[0] == 0
    run = folder_of(tmp_path)
    before, results_before = content_of(run), bytes_of(run)
    code, out, _ = cli("repair", str(run))
    assert (code, out) == (0, f"{run}: nothing is damaged (24 answers); nothing was changed.\n")
    assert content_of(run) == before
    lines = lines_of(run)
    for number in (2, 9):
        lines[number - 1] = lines[number - 1][:-9] + b"\n"
    (run / "answers.jsonl").write_bytes(b"".join(lines))
    code, _, err = cli(*words)
    assert code == 5
    assert "answers.jsonl, line 2: this answer is damaged" in err
    code, out, err = cli("repair", str(run))
    assert code == 0, err
    assert out == (
        f"{run / 'answers.jsonl'}: moved to answers.damaged.jsonl: line 2, 9\n"
        f"{run}: kept 22 whole answers; removed metrics.json, records.jsonl.\n"
        "Next: the same `run` command again asks only what is missing.\n"
    )
    asked.clear()
    assert cli(*words)[0] == 0
    assert len(asked) == 2
    assert bytes_of(run) == results_before


@pytest.mark.parametrize("made", ["nothing", "empty", "file", "model"])
def test_what_is_no_run_folder_is_not_repaired_and_not_touched(cli: Cli, tmp_path: Path, made: str) -> None:
    place = tmp_path / "place"
    if made == "file":
        place.write_text("x")
    elif made != "nothing":
        place.mkdir()
    if made == "model":
        (place / "config.json").write_text("{}")
    listed = sorted(tmp_path.rglob("*"))
    code, _, err = cli("repair", str(place))
    assert code == 2
    assert "expected a run folder, found no manifest.json in it" in err
    assert sorted(tmp_path.rglob("*")) == listed


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_is_refused_and_cannot_be_repaired(plan: Plan, whole: Path, content: bytes | None) -> None:
    run = copy(whole, "run")
    (run / "manifest.json").unlink() if content is None else (run / "manifest.json").write_bytes(content)
    before = content_of(run)
    for opened in (lambda: finish(plan, run), lambda: repair_run(run)):
        with pytest.raises(StoreError, match=r"manifest\.json.*\nNext: restore the file from a copy, or start over"):
            opened()
    assert content_of(run) == before
    finish(plan, run, overwrite=True)
    assert bytes_of(run) == bytes_of(whole)


@pytest.mark.parametrize("name", ["records.jsonl", "metrics.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_damaged_results_are_refused_and_written_anew_from_the_answers(
    plan: Plan, whole: Path, name: str, content: bytes | None
) -> None:
    for repaired in (False, True):
        run = copy(whole, f"run {repaired}")
        (run / name).unlink() if content is None else (run / name).write_bytes(content)
        with pytest.raises(StoreError, match=r"(?s)Next: .*the same `run` command again") as refused:
            read_records(run)
        assert len(str(refused.value).splitlines()) <= 3
        if repaired:
            assert repair_run(run).moved == ()
            healthy = name == "metrics.json" and content is None
            assert (run / "records.jsonl").exists() is healthy, "an unfinished run is no damaged one"
        _, model = finish(plan, run)
        assert model.asked == 0
        assert bytes_of(run) == bytes_of(whole)


@pytest.mark.parametrize("content", ["{", "[]", '{"sessions": 5}', '{"sessions": {"a": 1}}', "[" * 100_000])
def test_a_damaged_timing_is_begun_anew(plan: Plan, whole: Path, content: str) -> None:
    (whole / "timing.json").write_text(content)
    finish(plan, whole)
    (session,) = json.loads((whole / "timing.json").read_text())["sessions"]
    assert session["reused"] == 24


def test_files_of_earlier_versions_can_be_read(tmp_path: Path) -> None:
    line = results.sealed({"sample": "é\ud800", "turn": 0, "request": "h", "generated": {"text": 'a,"sum":"b"'}})
    content = json.loads(line)
    spaced = json.dumps(content, sort_keys=False)
    for each in (line, spaced):
        assert results.unsealed(each.strip().encode("utf-8", "surrogatepass")) == {
            name: value for name, value in content.items() if name != "sum"
        }
    for wrong in (line.replace(content["sum"], "0" * 16), line.replace(f',"sum":"{content["sum"]}"', ""), "[]", "5"):
        with pytest.raises(ValueError, match=r"does not fit|not an object"):
            results.unsealed(wrong.strip().encode("utf-8", "surrogatepass"))


def test_an_unwritable_output_folder_says_which_kind_it_is(cli: Cli, asked: Asked, monkeypatch: Any) -> None:
    for number, expected in ((errno.ENOSPC, 5), (errno.EACCES, 2)):

        def refuse(*args: object, number: int = number, **settings: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", refuse)
            code, _, err = cli(*WORDS, "out")
        assert code == expected
        assert os.strerror(number) in err
        assert not asked
