"""Computer algebra in a process of its own: right answers, and a time limit that holds in threads too."""

import os
import signal
import threading
import time

import pytest

from qwen_eval.scorers import symbolic

# Sympy would be at this for very long: a power tower, to be expanded and compared.
ENDLESS = "(a+b+c+d+e+f+g+h)^{40}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from another test."""
    symbolic.difference_is_zero.cache_clear()
    symbolic.verify.cache_clear()


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("x+1", "x+2", False),
        ("[2,5)", "[2,5)", False),  # sympy reads no intervals, and there is no shortcut for equal texts
        ("\\frac{", "\\frac{", False),
        ("", "", False),
    ],
)
def test_difference(one: str, other: str, equal: bool) -> None:
    assert symbolic.difference_is_zero(one, other) is equal


@pytest.mark.parametrize(
    ("gold", "output", "equal", "read"),
    [
        ("\\frac{1}{2}", "So it is $0.5$.", True, "\\frac{1}{2}"),
        ("[2,5)", "The answer is $[2,5)$", True, "[2,5)"),
        ("3", "no number at all", False, None),
        ("3", "", False, None),
    ],
)
def test_verify(gold: str, output: str, equal: bool, read: str | None) -> None:
    assert symbolic.verify(gold, output) == (equal, read)


def test_the_time_limit_holds_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads each ask something endless and something easy; the easy answers are right and nothing hangs."""
    monkeypatch.setattr(symbolic, "WALL_SECONDS", 2.0)
    found: dict[int, tuple[bool, bool]] = {}

    def ask(number: int) -> None:
        endless = symbolic.difference_is_zero(f"{ENDLESS}+{number}", f"{ENDLESS.replace('40', '41')}")
        found[number] = (endless, symbolic.difference_is_zero(f"x+{number}", f"{number}+x"))

    begun = time.monotonic()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {0: (False, True), 1: (False, True)}
    assert time.monotonic() - begun < 50


def test_the_processor_time_limit_of_the_worker_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker gives up after five seconds of its own, without being killed: the same process answers on."""
    symbolic.difference_is_zero("1", "1")
    before = symbolic._worker.process
    assert symbolic.difference_is_zero(ENDLESS, f"{ENDLESS}+1") is False
    assert symbolic.difference_is_zero("2", "2")
    assert symbolic._worker.process is before


def test_a_worker_that_dies_is_replaced() -> None:
    assert symbolic.difference_is_zero("1", "1")
    process = symbolic._worker.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert symbolic.difference_is_zero("2", "2")
    assert symbolic._worker.process is not process
