"""From what the worker reports and the judge said to the one word that counts: a pure function for each judge."""

from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Report", "from_official", "from_split"]

_LIMITS = {
    "candidate memory": "failed: it used more memory than a program may",
    "candidate processes": "failed: it started more processes than a program may",
    "judge memory": "failed: what it returned filled the judge's memory",
    "judge processes": "failed: the judge started more processes than it may",
    "judge cpu": "failed: checking what it returned took too long",
    "candidate cpu": "timed out",
    "rest": "timed out",
    "wall": "timed out",
}
_BROKEN = {
    "lost": "error: the sandbox' worker was killed twice (out of memory?)",
    "broken": "error: the sandbox has ended",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a run ended (see `worker.py`), and what was read from the judge after it."""

    end: str
    setup: str = ""  # why a room could not be made
    status: int | None = None  # the program's exit status, None when it was running at the end
    judge_status: int | None = None
    cpu: float = 0.0  # seconds, of the program's first process and the children it waited for
    verdict: dict[str, Any] | None = None

    @classmethod
    def of(cls, said: dict[str, Any], verdict: dict[str, Any] | None) -> Self:
        """Read a worker's report."""
        candidate, judge = said.get("candidate", {}), said.get("judge", {})
        return cls(
            end=said["end"],
            setup=said.get("setup", ""),
            status=candidate.get("status"),
            judge_status=judge.get("status"),
            cpu=candidate.get("cpu", 0.0),
            verdict=verdict,
        )


def _unjudged(report: Report, timeout: float) -> str | None:
    """Return the result where no judge had a say: a limit, or a failure that is not the program's."""
    if report.end in _BROKEN:
        return _BROKEN[report.end]
    if report.end in _LIMITS:
        return _LIMITS[report.end]
    if report.setup:
        return f"error: no room for the program: {report.setup}"
    if report.status == -9 and report.cpu > timeout:
        return "timed out"  # the kernel's own limit was first
    return None


def from_split(report: Report, timeout: float) -> str | None:
    """Return the result by the split judge; None where it could not split the test from the program."""
    said = report.verdict
    if said is not None and said.get("passed") is True:
        return "passed"
    early = _unjudged(report, timeout)
    if early is not None:
        return early
    if said is None:
        return f"failed: the judge ended over what the program returned (status {report.judge_status})"
    if "unsplittable" in said:
        return None
    if "error" in said:
        return f"error: {said['error']}"
    return f"failed: {said['detail']}"


def from_official(report: Report, timeout: float, *, held: bool) -> str:
    """Return the result by the official judge; `held` says that the token came back."""
    early = _unjudged(report, timeout)
    if early is not None:
        return early
    if held:
        return "passed"
    detail = report.verdict.get("detail") if report.verdict else None
    if isinstance(detail, str):
        return f"failed: {' '.join(detail[:400].split())}"
    return f"failed: it ended before its test did (status {report.status})"
