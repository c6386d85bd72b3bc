"""One model in several precisions: what it scores, how fast it is asked, and what memory that takes, in one table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_eval.report.perplexity import by_length
from qwen_eval.report.tables import draw, told_apart

if TYPE_CHECKING:
    from qwen_eval.loaded import LoadedRun

__all__ = ["effect_table", "tokens_a_second"]


def effect_table(runs: Sequence["LoadedRun"], *, format: str = "text") -> str:
    """Return a row a model and precision: scores in percent with their interval, tokens a second, peak of memory.

    Perplexity has a column a length, with its standard error. Tokens are those of prompts and answers, seconds those of
    the sessions that answered, without loading the weights; memory is the most of any of them while it answered, and
    with loading: allocated on all GPUs, or resident in the process.
    """
    rows: dict[str, list[LoadedRun]] = {}
    for run, named in zip(runs, told_apart([run.metrics for run in runs]), strict=True):
        rows.setdefault(named["model"]["name"], []).append(run)
    columns = dict.fromkeys(column for run in runs for column in _cells(run.metrics))
    table = []
    for name, mine in rows.items():
        scores = {column: cell for run in mine for column, cell in _cells(run.metrics).items()}
        sessions = [session for run in mine for session in run.sessions]
        speed = tokens_a_second(sessions)
        table.append(
            {
                "Model": name,
                "Precision": mine[0].metrics["model"]["dtype"],
                **{column: scores.get(column, "-") for column in columns},
                "Tokens/s": "-" if speed is None else f"{speed:.1f}",
                "Peak memory, GB": _gigabytes(sessions, "peak_memory_answering_bytes"),
                "With loading, GB": _gigabytes(sessions, "peak_memory_bytes"),
            }
        )
    return draw(table, format)


def tokens_a_second(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """Return tokens of prompts and answers a second, over the sessions that answered something."""
    timed = [session for session in sessions if session.get("answered") and "prompt_tokens" in session]
    seconds = sum(session["wall_seconds"] - session.get("load_seconds", 0) for session in timed)
    tokens: float = sum(session["prompt_tokens"] + session["new_tokens"] for session in timed)
    return tokens / seconds if seconds > 0 else None


def _gigabytes(sessions: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the most that a session which answered something took, in units of 2^30 bytes."""
    peaks = [session[name] for session in sessions if session.get("answered") and name in session]
    return f"{max(peaks) / 2**30:.2f}" if peaks else "-"


def _cells(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run scores, by column: one, or one a length where it is measured by length."""
    name = f"{metrics['task']}@{metrics['protocol']}{' (mini)' if metrics['mini'] else ''}"
    if not metrics.get("perplexity"):
        return {name: _score(metrics)}
    (perplexity,), *_ = by_length([metrics])
    return {f"{name}, {length}": cell for length, cell in perplexity.items() if length.isdecimal()}


def _score(metrics: Mapping[str, Any]) -> str:
    if metrics["score"] is None:
        return "-"
    reach = "" if metrics.get("low") is None else f" ({100 * metrics['low']:.1f} to {100 * metrics['high']:.1f})"
    return f"{100 * metrics['score']:.1f}{reach}"
