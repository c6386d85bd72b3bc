"""Finished runs as folders, made of verdicts alone: for what compares runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_eval.results import sealed
from qwen_eval.stats import wilson


def write_run(
    path: Path,
    correct: Sequence[bool | Sequence[bool]],
    *,
    subjects: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    **fields: Any,
) -> Path:
    """Write a run of these verdicts (a sequence for each sample that was asked several times); return its folder."""
    path.mkdir(parents=True)
    repeats = [[each] if isinstance(each, bool) else list(each) for each in correct]
    shares = [sum(each) / len(each) for each in repeats]
    score = sum(shares) / len(shares)
    low, high = wilson(score, len(shares))
    part = {"correct": sum(map(sum, repeats)), "n": len(shares), "score": score, "low": low, "high": high}
    metrics: dict[str, Any] = {
        **{"task": "toy", "protocol": "plain", "split": "test", "shots": 0, "mini": False, "rule": "last-number"},
        **{"dataset": {"name": "toy", "fingerprints": {"test": "0123456789abcdef"}}, "prompts": "abcdef0123456789"},
        **{"published_truncation": False, "sampling": None, "repeats": len(repeats[0]), "samples": len(shares)},
        **{"errors": 0, "unparsed": 0, "truncated": 0, "empty": 0, "bad_golds": 0, "average": "micro"},
        **{"model": {"name": path.parent.name, "dtype": "float32", "fingerprint": "f" * 16}, "categories": {}},
        **{"groups": {}, "micro": part, "macro": part},
        **part,
        **fields,
    }
    rule = metrics["rule"]
    metrics.setdefault("rules", {rule: {**part, "score": metrics["score"]}})
    lines = []
    for number, answers in enumerate(repeats):
        group = subjects[number] if subjects else ""
        for repeat, right in enumerate(answers):
            text = texts[number] if texts else f"{path} {number} {repeat}"
            verdict = {"correct": right, "extracted": "5" if right else "6"}
            lines.append(_record(f"{group}/{number}" if group else str(number), repeat, group, text, {rule: verdict}))
    (path / "records.jsonl").write_text("".join(map(sealed, lines)), encoding="utf-8")
    for name in ("metrics.json", "manifest.json"):
        (path / name).write_text(json.dumps(metrics), encoding="utf-8")
    return path


def _record(sample: str, repeat: int, group: str, text: str, verdicts: Mapping[str, Any]) -> dict[str, Any]:
    outputs = [{"text": text, "finish": "end", "prompt_tokens": 1, "new_tokens": 1}]
    place = {"doc_id": sample, "repeat": repeat, "group": group, "target": "5"}
    return {**place, "doc": {}, "outputs": outputs, "verdicts": dict(verdicts)}


def verdicts(n: int, *, wins: int = 0, losses: int = 0, right: float = 0.5) -> tuple[list[bool], list[bool]]:
    """Verdicts of a baseline and a candidate that differ on so many samples."""
    ties = n - wins - losses
    both = [index < right * ties for index in range(ties)]
    return [False] * wins + [True] * losses + both, [True] * wins + [False] * losses + both
