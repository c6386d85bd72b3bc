"""What hostile programs need around them, and how one sees that nothing came of them.

`Scene` puts up what `programs.py` names in braces: a secret file in a made-up home, a process to be killed, listeners on
the loopback addresses. `run` judges rows through the command, each followed by an honest one, and `harms` looks afterwards.
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from programs import Row, fill

ROOT = Path(__file__).resolve().parent.parent.parent
HONEST = {
    "task_id": "honest",
    "program": "def add(a, b):\n    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


class Scene:
    """The surroundings of one run. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canary = secrets.token_hex(16)
        self.seen: dict[str, int] = {}
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True)
        for name in (".bashrc", ".profile", ".pythonrc", ".ssh/id_test"):
            (home / name).write_text(f"# {name}\n")
        secret = home / "secret"
        secret.write_text(self.canary)
        secret.chmod(0o600)
        name = f"victim{secrets.token_hex(3)}"
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", name])
        self.listeners = {kind: self._listen(kind) for kind in ("tcp", "udp", "unix", "abstract")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        site = sysconfig.get_path("purelib")
        self.values = {
            "CANARY": self.canary,
            "CANARY_FILE": str(self.folder / "canary"),
            "SECRET_FILE": str(secret),
            "HOME": str(home),
            "PORT": self.listeners["tcp"],
            "UDP_PORT": self.listeners["udp"],
            "UNIX_SOCKET": self.listeners["unix"],
            "ABSTRACT": self.listeners["abstract"],
            "PORT2": str(port),
            "VICTIM_PID": str(self.victim.pid),
            "VICTIM_NAME": name,
            "HOSTNAME": socket.gethostname(),
            "SITE": site,
            "STDLIB": sysconfig.get_path("stdlib"),
            "REPO": str(ROOT),
            "INPUT_FILE": str(self.folder / "in.jsonl"),
            "OUTPUT_FILE": str(self.folder / "out.jsonl"),
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.victim.kill()
        self.victim.wait()
        for one in self._sockets:
            one.close()

    def _listen(self, kind: str) -> str:
        """Put up a counting listener; return where it is."""
        where: Any = ("127.0.0.1", 0)
        family = socket.AF_INET
        if kind == "unix":
            family, where = socket.AF_UNIX, str(self.folder / "listener")
        elif kind == "abstract":
            family, where = socket.AF_UNIX, f"\0qwen-eval-{secrets.token_hex(4)}"
        one = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        one.bind(where)
        if kind != "udp":
            one.listen()
        self._sockets.append(one)
        self.seen[kind] = 0
        threading.Thread(target=self._count, args=(one, kind), daemon=True).start()
        place = one.getsockname()
        return str(place[1]) if family == socket.AF_INET else str(where).removeprefix("\0")

    def _count(self, one: socket.socket, kind: str) -> None:
        while True:
            try:
                if kind == "udp":
                    one.recvfrom(100)
                else:
                    one.accept()[0].close()
            except OSError:
                return
            self.seen[kind] += 1

    def filled(self, row: Row, mark: str) -> Row:
        """A row, and its harm, with this scene's values."""

        def put(value: Any) -> Any:
            if isinstance(value, str):
                return fill(value, {**self.values, "MARK": mark})
            return [put(one) for one in value] if isinstance(value, list) else value

        texts = {key: put(value) for key, value in row.items() if key != "harm"}
        return texts | {"harm": {key: put(value) for key, value in row.get("harm", {}).items()}, "mark": mark}


class Run:
    """One call of the command, and what the machine was like meanwhile."""

    def __init__(self, scene: Scene, given: Sequence[Row], *, judge: str = "split", workers: int = 2) -> None:
        self.given = list(given)
        source, target = Path(scene.values["INPUT_FILE"]), Path(scene.values["OUTPUT_FILE"])
        target.unlink(missing_ok=True)
        with source.open("w", encoding="utf-8") as file:
            for row in self.given:
                text = {key: value for key, value in row.items() if key not in ("harm", "mark")}
                file.write(json.dumps(text) + "\n" + json.dumps(HONEST) + "\n")
        self.files = _states(self.given)
        for row in self.given:
            Path(f"/tmp/{row['mark']}-tmp").write_text("")
        command = [sys.executable, "-m", "qwen_eval", "sandbox", "--input", str(source), "--output", str(target)]
        command += ["--judge", judge, "--workers", str(workers)]
        self.memory, self.disk, began = 0, 0, time.monotonic()
        memory, disk = _memory(), _disk()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": scene.values["HOME"], "QWEN_EVAL_CANARY": scene.canary},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(process.stdout.read() if process.stdout else ""))
        reader.start()
        while process.poll() is None:
            self.memory, self.disk = max(self.memory, _memory() - memory), max(self.disk, disk - _disk())
            time.sleep(0.02)
        self.seconds = time.monotonic() - began
        reader.join(10)
        if process.stdout:
            process.stdout.close()
        self.said = "".join(said)
        self.code = process.returncode
        self.lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
        self.outcomes = [json.loads(line) for line in self.lines]
        for row in self.given:
            Path(f"/tmp/{row['mark']}-tmp").unlink(missing_ok=True)


def _memory() -> int:
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available) >> 20


def _disk() -> int:
    return sum(shutil.disk_usage(place).free for place in ("/", "/dev/shm")) >> 20


def _states(given: Sequence[Row]) -> dict[str, str]:
    """A word for each file that must stay as it is."""
    paths = {path for row in given for path in row["harm"].get("unchanged", [])}
    for row in given:
        paths |= set(glob.glob(row["harm"].get("unchanged_glob", ""))[:300])
    found = {}
    for path in paths - {row for row in paths if row.endswith("in.jsonl")}:
        status = os.stat(path)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        found[path] = f"{digest} {status.st_mode} {status.st_mtime_ns}"
    return found


def harms(scene: Scene, run: Run) -> list[str]:
    """Everything that a run did and should not have done, in words."""
    found: list[str] = []
    expected = [name for row in run.given for name in (row["task_id"], "honest")]
    if [one["task_id"] for one in run.outcomes] != expected:
        return [f"verdicts: {len(run.outcomes)} of {len(expected)}, exit {run.code}: {run.said[-500:]}"]
    for row, verdict, honest in zip(run.given, run.outcomes[::2], run.outcomes[1::2], strict=True):
        if verdict["passed"] or verdict["result"].startswith("error"):
            found.append(f"{row['task_id']}: {verdict}")
        if not honest["passed"]:
            found.append(f"after {row['task_id']}: {honest}")
        found += [f"{row['task_id']}: {one}" for one in _harm(scene, run, row)]
    if _states(run.given) != run.files:
        found.append("a file of the host was changed")
    if scene.canary in run.said or scene.canary in "".join(run.lines):
        found.append("the canary came out")
    found += [f"something reached the {kind} listener" for kind, count in scene.seen.items() if count]
    if scene.victim.poll() is not None or psutil.Process(scene.victim.pid).status() == psutil.STATUS_STOPPED:
        found.append("the victim is dead or stopped")
    return found


def _harm(scene: Scene, run: Run, row: Row) -> list[str]:
    """The harm of one row."""
    harm = row["harm"]
    time.sleep(harm.get("after_s", 0))
    paths = harm.get("file", [])
    found = [f"{path} exists" for path in ([paths] if isinstance(paths, str) else paths) if os.path.lexists(path)]
    if "process" in harm and (alive := processes_named(row["mark"])):
        found.append(f"left processes {alive}")
    if run.memory > harm.get("memory_mb", 10**9):
        found.append(f"took {run.memory} MB")
    if run.disk > harm.get("disk_mb", 10**9):
        found.append(f"took {run.disk} MB of disk")
    if run.seconds > harm.get("wall_s", 10**9) + 5:
        found.append(f"took {run.seconds:.0f} s")
    if "hostname" in harm and socket.gethostname() != scene.values["HOSTNAME"]:
        found.append("changed the host's name")
    if "sysv" in harm and any(
        len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()) > 1 for kind in ("shm", "sem", "msg")
    ):
        found.append("left System V objects")
    if "keyring" in harm and Path("/proc/keys").exists() and row["mark"] in Path("/proc/keys").read_text():
        found.append("left a key")
    if "core" in harm and glob.glob(str(ROOT / "core*")):
        found.append("left a core file")
    return found


def processes_named(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["name", "cmdline", "pid"]):
        words = [process.info["name"] or "", *(process.info["cmdline"] or [])]
        if any(mark in word for word in words) and process.info["pid"] != os.getpid():
            found.append(" ".join(words)[:100])
    return found


def ends(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait until a condition holds, and say whether it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def living(found: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return those of some processes that are still there; any may go while it is looked at."""
    there = []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                there.append(process)
    return there
