"""kill -9 at random moments: a run is killed, resumed, killed again until it is finished; then the next run begins.

    python tests/kills.py FOLDER KILLS [CHECKPOINT]

Without a checkpoint a scripted model answers. One process imports everything and forks every session, so that a session
costs milliseconds and the kills fall on the run, not on imports. After every kill: each line that was whole is still
there, and nothing that was stored was asked. At the end of a run its results are the bytes of one that was left alone.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from test_runner import SAMPLING, plan_of, script, two_turns

from qwen_eval.cli import main
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.results import RunFolder, read_answers, request_hash
from qwen_eval.runner import Stop, run
from qwen_eval.task import Answer, Failed, Request

BATCH = 4
Session = Callable[[Path, Path], None]


def scripted() -> Session:
    """A session of GSM8K's small set: two turns, two repeats, a scripted model that writes down what it is asked."""
    plan = replace(plan_of("gsm8k", "qwen-chat", sampling=SAMPLING, repeats=2), ask=two_turns)

    def session(folder: Path, asked: Path) -> None:
        log = os.open(asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def answer(request: Request) -> Answer | Failed:
            os.write(log, f"{request_hash(request)}\n".encode())
            time.sleep(0.001)
            return script(request)

        model = ScriptedModel(answer, batch=BATCH)
        with RunFolder(folder / "run", plan.manifest() | {"model": {"name": "scripted"}}) as opened:
            run(plan, model, opened, stop=Stop(), say=lambda line: None)

    # Once here: what is imported on the way is imported, and no kill falls on it.
    with TemporaryDirectory() as folder:
        session(Path(folder), Path(folder) / "asked.txt")
    return session


def real(checkpoint: str) -> Session:
    """A session of the command line with a checkpoint."""
    from qwen_eval.models.transformers import engine, reference

    submit = engine.PackedModel.submit

    def session(folder: Path, asked: Path) -> None:
        log = os.open(asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def listens(model: reference.ReferenceModel, ticket: int, request: Request) -> None:
            os.write(log, f"{request_hash(request)}\n".encode())
            submit(model, ticket, request)

        engine.PackedModel.submit = listens  # type: ignore[method-assign, assignment]
        os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        words = ["run", "--task", "gsm8k@qwen-chat", "--limit", "4", "--batch-size", "2", "--model", checkpoint]
        sys.argv = ["qwen_eval", *words, "--output-dir", str(folder)]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError((folder / "said.txt").read_text()) from None

    return session


def live(session: Callable[[], None], seconds: float | None = None) -> bool:
    """Run a session in a process of its own, killed after some seconds; return whether it came to its end."""
    child = os.fork()
    if not child:
        try:
            session()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert status == 0, f"a session failed with exit status {os.waitstatus_to_exitcode(status)}"
    return True


def stored(folder: Path) -> tuple[bytes, list[str]]:
    """Return the whole lines of a run's answers and the hashes of what was asked for them."""
    files = list(folder.rglob("answers.jsonl"))
    if not files:
        return b"", []
    answers, whole = read_answers(files[0])
    return files[0].read_bytes()[:whole], [answer.request for answer in answers]


def results(folder: Path) -> list[bytes]:
    (records,) = folder.rglob("records.jsonl")
    return [records.read_bytes(), records.with_name("metrics.json").read_bytes()]


def stress(session: Session, folder: Path, kills: int) -> Counter[str]:
    """Kill sessions so many times, at moments drawn anew at every call; return counts. Raises AssertionError."""
    asked = folder / "asked.txt"
    (folder / "alone").mkdir(parents=True)
    begun = time.time()
    live(partial(session, folder / "alone", asked))
    lasts = time.time() - begun
    (manifest,) = (folder / "alone").rglob("manifest.json")
    opened = manifest.stat().st_mtime - begun
    wanted = results(folder / "alone")
    total = len(stored(folder / "alone")[1])
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        counts["runs"] += 1
        own = folder / str(counts["runs"])
        own.mkdir()
        ended = False
        while not ended:
            lines, known = stored(own)
            asked.unlink(missing_ok=True)
            last = counts["kills"] == kills
            # Most kills fall where there is something to lose: after the run folder was opened.
            moment = random.uniform(random.choice((0, opened, opened, opened)), lasts)
            ended = live(partial(session, own, asked), None if last else moment)
            now = asked.read_text().split() if asked.exists() else []
            assert not set(now) & set(known), "something that was answered was asked again"
            assert stored(own)[0].startswith(lines), "something that was answered is lost"
            counts["asked"] += len(now)
            counts["kills"] += not ended
            if not ended:
                part = len(stored(own)[1])
                counts[
                    f"killed {'before the first' if not part else 'after the last' if part == total else 'between'}"
                ] += 1
        found = stored(own)[1]
        assert len(found) == len(set(found)) == total
        assert results(own) == wanted, "the results are not those of a run that was left alone"
        counts["answered"] += total
    return counts


if __name__ == "__main__":
    with_model = real(sys.argv[3]) if len(sys.argv) > 3 else scripted()
    print(json.dumps(stress(with_model, Path(sys.argv[1]), int(sys.argv[2]))))
