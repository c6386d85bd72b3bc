"""Two finished runs of the same items, sample by sample: what `compare --baseline` shows and the gate decides on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_eval.errors import IncompleteError, UsageError
from qwen_eval.results import NOT_THE_MODELS, read_metrics, read_records, value_of
from qwen_eval.stats import Difference, difference

__all__ = ["Flip", "Pair", "check", "find_runs", "pair", "pairs", "run_key", "sample_scores"]

SAME = ("task", "protocol", "split", "shots", "mini", "dataset", "prompts", "published_truncation", "sampling")
"""What two runs must have in common for their answers to stand beside each other, fields within fields included."""
SAME_WHERE_BOTH = ("judge_model",)
"""What must not differ where both runs have it: judges differ by more than models do."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample whose score changed. Scores are means over its repeats; answers are those of the first that changed."""

    sample: str
    group: str
    target: str
    baseline: float
    candidate: float
    was: str
    now: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs over the same samples. `rule` says whose verdicts are compared."""

    baseline: Mapping[str, Any]  # metrics of both runs
    candidate: Mapping[str, Any]
    rule: str
    samples: tuple[str, ...]
    scores: tuple[tuple[float, ...], tuple[float, ...]]  # of every sample, in each run
    flips: tuple[Flip, ...]
    identical: bool  # every output is the same, to the letter
    clusters: tuple[str, ...] | None = None
    steps: tuple[int, ...] = ()  # of every sample, how many scored steps it is the mean of; () where all are one

    @property
    def name(self) -> str:
        """The spelling in tables: `gsm8k@qwen`."""
        return f"{self.baseline['task']}@{self.baseline['protocol']}{' (mini)' if self.baseline['mini'] else ''}"

    @property
    def means(self) -> tuple[float, float]:
        """Both scores over these samples."""
        before, after = (self.baseline["rules"][self.rule], self.candidate["rules"][self.rule])
        return before["score"], after["score"]

    @cached_property
    def difference(self) -> Difference:
        """The paired difference of the two scores."""
        macro = self.baseline.get("average") == "macro"
        by_steps = [steps / sum(self.steps) for steps in self.steps] or None
        return difference(*self.scores, weights=self._weights if macro else by_steps, clusters=self.clusters)

    @property
    def repeats(self) -> int:
        """How often both runs asked every item."""
        return int(min(self.baseline.get("repeats", 1), self.candidate.get("repeats", 1)))

    @property
    def drawn_error(self) -> float:
        """The part of the difference's squared error that comes from drawing answers; 0 where items were asked once.

        An item whose answers are right with probability p, asked r times, adds p (1 - p) / (r - 1), by its own mean.
        """
        counts = [run.get("repeats", 1) for run in (self.baseline, self.candidate)]
        if min(counts) < 2:
            return 0.0
        parts = (p * (1 - p) / (r - 1) for r, scores in zip(counts, self.scores, strict=True) for p in scores)
        return float(sum(parts)) / len(self.samples) ** 2

    @property
    def _weights(self) -> list[float]:
        """The weight of each sample in a mean over groups."""
        groups = [each.partition("/")[0] for each in self.samples]
        sizes = Counter(groups)
        return [1 / (len(sizes) * sizes[group]) for group in groups]


def pair(baseline: Path, candidate: Path, *, rule: str | None = None, cluster: bool = False) -> Pair:
    """Read two run folders; with `cluster` the samples of a subject count as alike.

    Raises UsageError where they are not over the same samples, naming the field that differs, StoreError where one is
    damaged, IncompleteError where one has no score.
    """
    before, after = read_metrics(baseline), read_metrics(candidate)
    for path, metrics in ((baseline, before), (candidate, after)):
        if "perplexity" in metrics:
            raise UsageError(
                f"{path}: expected runs whose samples are right or wrong, found perplexity.\n"
                "Next: give one `run` command all models or --settings; its table sets them side by side."
            )
        if metrics["score"] is None:
            raise IncompleteError(
                f"{path}: this run has no score ({metrics.get('errors', 0):,} errors).\n"
                "Next: the same `run` command again asks what is missing."
            )
    check(baseline, before, candidate, after)
    shared = [name for name in before["rules"] if name in after["rules"]]
    chosen = rule or before["rule"]
    if chosen not in shared:
        raise UsageError(f"Expected a rule that both runs have, found {chosen!r}. They share: {', '.join(shared)}.")
    old, new = _by_sample(baseline), _by_sample(candidate)
    if old.keys() != new.keys():
        lone = sorted(old.keys() ^ new.keys())
        raise UsageError(
            f"{candidate}: expected the {len(old):,} samples of {baseline}, found {len(new):,} ({lone[0]} is in one "
            "only).\nNext: run both with the same --limit."
        )
    return _paired(before, after, chosen, old, new, cluster=cluster)


def check(
    baseline: Path,
    before: Mapping[str, Any],
    candidate: Path,
    after: Mapping[str, Any],
    fields: Sequence[str] = (*SAME, *SAME_WHERE_BOTH),
) -> None:
    """Refuse runs that asked different things: UsageError. What is not known of an imported run cannot differ."""
    for field in fields:
        for name, was, now in _differing(field, before.get(field), after.get(field)):
            unknown = (was is None and before.get("imported")) or (now is None and after.get("imported"))
            if not unknown and not (field in SAME_WHERE_BOTH and None in (before.get(field), after.get(field))):
                raise UsageError(
                    f"{candidate}: expected {name} {_short(was)} as in {baseline}, found {_short(now)}.\n"
                    "Next: run both alike; only runs over the same data and prompts can be compared."
                )


def _differing(name: str, was: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted({*was, *now})
        return [found for key in keys for found in _differing(f"{name}.{key}", was.get(key), now.get(key))]
    return [(name, was, now)] if was != now else []


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]


def _by_sample(run: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(run):
        found.setdefault(str(record["doc_id"]), []).append(record)
    return found


def _paired(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    rule: str,
    old: Mapping[str, Sequence[Mapping[str, Any]]],
    new: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    cluster: bool,
) -> Pair:
    # A rule may say nothing of some samples.
    old = {sample: records for sample, records in old.items() if _scored(records, rule) and _scored(new[sample], rule)}
    if not old:
        raise UsageError(f"Expected samples that rule {rule!r} scores in both runs, found none.")
    scores = tuple(tuple(_score(records, rule) for records in run.values()) for run in (old, _in_order(new, old)))
    steps = tuple(int(records[0]["verdicts"][rule].get("steps", 1)) for records in old.values())
    flips = [
        _flip(sample, old[sample], new[sample], rule, was, now)
        for sample, was, now in zip(old, *scores, strict=True)
        if was != now
    ]
    return Pair(
        baseline=before,
        candidate=after,
        rule=rule,
        samples=tuple(old),
        scores=(scores[0], scores[1]),
        flips=tuple(flips),
        identical=all(_outputs(old[sample]) == _outputs(new[sample]) for sample in old),
        clusters=tuple(str(records[0].get("group") or sample) for sample, records in old.items()) if cluster else None,
        steps=steps if len(set(steps)) > 1 else (),
    )


def sample_scores(run: Path, rule: str) -> dict[str, float]:
    """Return the score of every sample of a run by one of its rules, the mean over its repeats."""
    return {sample: _score(records, rule) for sample, records in _by_sample(run).items() if _scored(records, rule)}


def _in_order(records: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, Any]:
    return {sample: records[sample] for sample in order}


def _score(records: Sequence[Mapping[str, Any]], rule: str) -> float:
    values = [value_of(verdict) for record in records for verdict in _of(record, rule)]
    return sum(values) / len(values)


def _of(record: Mapping[str, Any], rule: str) -> list[Mapping[str, Any]]:
    """A rule's verdict on a record, none where it says nothing of the sample."""
    return [record["verdicts"][rule]] if rule in record["verdicts"] else []


def _scored(records: Sequence[Mapping[str, Any]], rule: str) -> bool:
    return all(_of(record, rule) for record in records)


def _outputs(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a model said, without what only machines decide: text where there is any, else the choice."""
    return [
        [output.get("text", record["verdicts"]) for output in record["outputs"] if not output.keys() & NOT_THE_MODELS]
        for record in records
    ]


def _flip(
    sample: str,
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    rule: str,
    was: float,
    now: float,
) -> Flip:
    verdicts = [(one["verdicts"][rule], other["verdicts"][rule]) for one, other in zip(old, new, strict=False)]
    first = next((both for both in verdicts if value_of(both[0]) != value_of(both[1])), verdicts[0])
    return Flip(
        sample=sample,
        group=str(old[0].get("group", "")),
        target=str(old[0]["target"]),
        baseline=was,
        candidate=now,
        was=str(first[0]["extracted"]),
        now=str(first[1]["extracted"]),
    )


# ------------------------------------------------------------------------------------------------------------- folders


def find_runs(path: Path, *, missing_ok: bool = False) -> list[Path]:
    """Return the finished run folders at or beneath a path, sorted; UsageError where there is none."""
    own = path / "metrics.json"
    found = [own] if own.is_file() else sorted(path.rglob("metrics.json"))
    if not found and not missing_ok:
        raise UsageError(
            f"{path}: expected a folder with finished runs (metrics.json), found none.\n"
            "Next: give a run folder, or the folder that `run` wrote to (results)."
        )
    return [file.parent for file in found]


def pairs(
    baseline: Path, candidate: Path, *, rule: str | None = None, cluster: bool = False
) -> tuple[list[Pair], list[str]]:
    """Pair the runs beneath two folders by task, protocol and split.

    Return the pairs, in the order of the baseline's folders, and the names of the baseline's runs that the candidate
    lacks. Raises what `pair` raises, and UsageError where one side holds several models' runs of one task.
    """
    ours, theirs = _by_task(baseline), _by_task(candidate)
    found = [pair(path, theirs[key], rule=rule, cluster=cluster) for key, path in ours.items() if key in theirs]
    return found, ["@".join(key[:2]) for key in ours if key not in theirs]


def run_key(metrics: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    """What there is one run of in a model's folder."""
    return metrics["task"], metrics["protocol"], metrics["split"], metrics["mini"]


def _by_task(path: Path) -> dict[tuple[str, str, str, bool], Path]:
    found: dict[tuple[str, str, str, bool], Path] = {}
    for run in find_runs(path):
        key = run_key(read_metrics(run))
        if key in found:
            raise UsageError(
                f"{path}: expected one run of {key[0]}@{key[1]}, found {found[key]} and {run}.\n"
                "Next: give the folder of one model."
            )
        found[key] = run
    return found
