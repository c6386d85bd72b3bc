"""The Hugging Face hub's `.eval_results/*.yaml`: what a model repository says of its scores, one file a run.

An entry has the benchmark's dataset and task id, the headline score in percent, the date and how it was measured. Only
a whole run on the official data of a hub dataset becomes one: it stands on a leaderboard.
"""

from collections.abc import Sequence
from typing import Any

from qwen_eval.errors import UsageError
from qwen_eval.export.source import Source, safe

__all__ = ["files"]


def files(sources: Sequence[Source]) -> dict[str, bytes]:
    """Return a YAML file a run, by name. Raises IncompleteError; UsageError for a run that is no leaderboard's."""
    import yaml

    found: dict[str, bytes] = {}
    for source in sources:
        source.check_score()
        name = f"{source.model_folder}/.eval_results/{safe(source.name.replace('@', '-'))}.yaml"
        if name in found:
            raise UsageError(
                f"{source.run.path}: {source.name} of {source.model} is here twice, and would be one file.\n"
                "Next: export the two into separate --output folders."
            )
        found[name] = yaml.safe_dump([_entry(source)], sort_keys=False, allow_unicode=True).encode()
    return found


def _entry(source: Source) -> dict[str, Any]:
    metrics, task = source.metrics, source.task
    if task is None or task.data.hub is None:
        raise UsageError(
            f"{source.run.path}: expected a task whose dataset is on the hub, found {metrics['task']}.\n"
            "Next: leave this run out, or use another --format."
        )
    split = task.data.splits[metrics["split"]]
    official = metrics["dataset"]["fingerprints"].get(metrics["split"]) == split.fingerprint
    if not official or metrics["n"] != split.rows:
        raise UsageError(
            f"{source.run.path}: expected a run on all {split.rows:,} official items, found {metrics['n']:,}"
            f"{'' if official else ' of other data'}.\nNext: leave this run out, or use another --format."
        )
    return {
        "dataset": {"id": task.data.hub.id, "task_id": task.name},
        "value": round(100 * metrics["score"], 2),
        "date": source.time.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "notes": (
            f"{source.name}, {metrics['shots']}-shot, rule {metrics['rule']}, {metrics['average']} average, "
            f"95 % interval {100 * metrics['low']:.1f} to {100 * metrics['high']:.1f}, "
            f"{'imported from lm_eval' if 'imported' in metrics else 'qwen_eval'} "
            f"{metrics['versions'].get('lm_eval' if 'imported' in metrics else 'qwen_eval')}"
        ),
    }
