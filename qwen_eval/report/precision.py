"""One model in several precisions: what it scores, how fast it is asked, and what memory that takes, in one table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_eval.report.tables import draw

if TYPE_CHECKING:
    from qwen_eval.loaded import LoadedRun

__all__ = ["effect_table", "tokens_a_second"]


def effect_table(runs: Sequence["LoadedRun"], *, format: str = "text") -> str:
    """Return a row a model and precision: scores in percent with their interval, tokens a second, peak of memory.

    Tokens are those of prompts and answers, seconds those of the sessions that answered, without loading the weights;
    memory is the most of any of them while it answered, and with loading: allocated on all GPUs, or resident in the
    process.
    """
    rows: dict[str, list[LoadedRun]] = {}
    for run in runs:
        rows.setdefault(run.metrics["model"]["name"], []).append(run)
    columns = dict.fromkeys(_column(run.metrics) for run in runs)
    table = []
    for name, mine in rows.items():
        scores = {_column(run.metrics): _score(run.metrics) for run in mine}
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


def _column(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['task']}@{metrics['protocol']}{' (mini)' if metrics['mini'] else ''}"


def _score(metrics: Mapping[str, Any]) -> str:
    if metrics["score"] is None:
        return "-"
    reach = "" if metrics.get("low") is None else f" ({100 * metrics['low']:.1f} to {100 * metrics['high']:.1f})"
    return f"{100 * metrics['score']:.1f}{reach}"
