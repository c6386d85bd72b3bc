"""Computer algebra with a time limit: equality by sympy, and math-verify, in a process of their own.

Both libraries read text that a model wrote, and some texts keep them busy for hours or fill the memory. Their own time
limits use an alarm signal, which only the main thread of a process may set. So one worker process does the work for
all threads of this one: five seconds of processor time an item (a busy machine does not change a score), a minute of
wall time after which the worker is killed and started anew, four gigabytes of memory. No answer in time is "not equal".
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any, Final

__all__ = ["difference_is_zero", "verify"]

CPU_SECONDS: Final = 5.0
WALL_SECONDS: Final = 60.0
START_SECONDS: Final = 300.0
MEMORY_BYTES: Final = 4 * 2**30


@lru_cache(maxsize=100_000)
def difference_is_zero(one: str, other: str) -> bool:
    """Return whether sympy reads both as LaTeX and simplifies their difference to 0 (lm-eval's minerva_math).

    False where either cannot be read as one expression, and where five seconds of processor time do not suffice.
    """
    answer = _worker.ask("difference", one, other)
    return bool(answer and answer["equal"])


@lru_cache(maxsize=100_000)
def verify(gold: str, output: str) -> tuple[bool, str | None]:
    """Return math-verify's verdict on a whole output, and what it read there as the answer (None: nothing)."""
    answer = _worker.ask("verify", gold, output)
    return (bool(answer["equal"]), answer["read"]) if answer else (False, None)


# ------------------------------------------------------------------------------------------------- in this process


class _Worker:
    """The worker process, started when it is first needed; one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, kind: str, one: str, other: str) -> dict[str, Any] | None:
        """Return the worker's answer, None when it had to be killed."""
        question = json.dumps([kind, one, other]).encode() + b"\n"
        with self.lock:
            for _ in range(2):  # a worker that died since the last question is replaced once
                process = self.process or self.start()
                assert process.stdin is not None
                try:
                    process.stdin.write(question)
                    process.stdin.flush()
                except OSError:
                    self.stop()
                    continue
                try:
                    line = self.read(process, WALL_SECONDS)
                except BaseException:  # interrupted: its answer must not be taken for the next question's
                    self.stop()
                    raise
                if line is None:
                    self.stop()
                    return None
                answer: dict[str, Any] = json.loads(line)
                return answer
        return None

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the worker and wait until its libraries are imported. Raises RuntimeError when it does not start."""
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen_eval.scorers.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which ends the worker itself
        )
        self.process = process
        if self.read(process, START_SECONDS) is None:
            self.stop()
            raise RuntimeError("the process for computer algebra (sympy, math-verify) does not start")
        return process

    def read(self, process: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
        """Return the next line, None when the process ends or the time is over."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() or None if ready else None

    def stop(self) -> None:
        """Kill the worker."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.communicate()


_worker = _Worker()
atexit.register(_worker.stop)


# --------------------------------------------------------------------------------------------- in the worker process


class _OutOfTime(BaseException):
    """Not an Exception: the libraries catch those."""


def _out_of_time(number: int, frame: object) -> None:
    raise _OutOfTime


def _difference(one: str, other: str) -> dict[str, Any]:
    import sympy
    from sympy.parsing.latex import parse_latex

    try:
        return {"equal": bool(sympy.simplify(parse_latex(one) - parse_latex(other)) == 0)}
    except Exception:  # whatever cannot be read, subtracted or simplified is not equal
        return {"equal": False}


def _verify(gold: str, output: str) -> dict[str, Any]:
    import math_verify

    try:
        said = math_verify.parse(output, parsing_timeout=None)
        wanted = math_verify.parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
        equal = bool(said and math_verify.verify(wanted, said, timeout_seconds=None))
        return {"equal": equal, "read": str(said[-1]) if said else None}
    except Exception:  # the library raises what sympy raises
        return {"equal": False, "read": None}


def _serve() -> None:
    """Answer questions line by line until the input ends."""
    import resource

    import math_verify
    from sympy.parsing.latex import parse_latex

    assert math_verify
    assert parse_latex("1") == 1  # it names a missing parser only when it is called
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _out_of_time)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the libraries print must not be read as an answer
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin:
        kind, one, other = json.loads(line)
        answer: dict[str, Any] = {"equal": False, "read": None}
        try:
            # The second figure fires again: the first exception may be swallowed in a destructor.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS, 0.5)
            answer = (_difference if kind == "difference" else _verify)(one, other)
            signal.setitimer(signal.ITIMER_PROF, 0)
        except _OutOfTime:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
