"""All runs in one pandas frame, a row a sample, repeat and rule: samples.parquet or samples.csv.

The columns are those of `LoadedRun.samples`, after the run's own: model, fingerprint, task, protocol, split, mini.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_eval.export.source import Source

if TYPE_CHECKING:
    import pandas

__all__ = ["csv", "parquet"]


def csv(sources: Sequence[Source]) -> dict[str, bytes]:
    """Return samples.csv. Raises UsageError where no run has verdicts, as perplexity has none."""
    return {"samples.csv": _frame(sources).to_csv(index=False, lineterminator="\n").encode()}


def parquet(sources: Sequence[Source]) -> dict[str, bytes]:
    """Return samples.parquet. Raises UsageError where no run has verdicts, as perplexity has none."""
    content = io.BytesIO()
    _frame(sources).to_parquet(content, index=False)
    return {"samples.parquet": content.getvalue()}


def _frame(sources: Sequence[Source]) -> "pandas.DataFrame":
    import pandas

    if all("perplexity" in source.metrics for source in sources):
        sources[0].check_score()  # blocks have no verdicts: the table would be empty
    frames: list[pandas.DataFrame] = []
    for source in sources:
        metrics = source.metrics
        frame = source.run.samples()
        run = {
            "model": source.model,
            "fingerprint": metrics["model"]["fingerprint"],
            "task": metrics["task"],
            "protocol": metrics["protocol"],
            "split": metrics["split"],
            "mini": metrics["mini"],
        }
        for place, (name, value) in enumerate(run.items()):
            frame.insert(place, name, value)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)
