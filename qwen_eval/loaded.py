"""A finished run, read back from its folder: scores, manifest, records, and a pandas frame of its verdicts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import StoreError
from qwen_eval.results import canonical, output_of, read_metrics, read_records, scored_text, value_of

if TYPE_CHECKING:
    import pandas

__all__ = ["LoadedRun", "load_run"]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run. `metrics` is what metrics.json holds, `manifest` what manifest.json does."""

    path: Path
    metrics: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def score(self) -> float | None:
        """The score of the headline rule, a fraction; None where it is withheld."""
        score: float | None = self.metrics["score"]
        return score

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Return what timing.json holds: one dict a session of the run; none where the file is damaged or gone."""
        try:
            found = json.loads((self.path / "timing.json").read_text(encoding="utf-8"))["sessions"]
            return [session for session in found if isinstance(session, dict)]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def records(self) -> list[dict[str, Any]]:
        """Return records.jsonl: one dict a sample and repeat. Raises StoreError for a damaged or incomplete file."""
        return read_records(self.path)

    def samples(self) -> "pandas.DataFrame":
        """Return the verdicts as a frame in long form: one row a sample, repeat and rule, in the order of the records.

        Columns: sample, repeat, group, rule, headline (whether it is the run's own rule), correct, value (what the
        sample counts, from 0 to 1: another than right or wrong for some rules), extracted (None where the rule read
        nothing), measures (further numbers by name, as JSON, where the rule gives some), target, output (the model's
        text, or its log-probabilities as JSON), finish, prompt_tokens, new_tokens (missing where the run does not know
        them), doc_hash, prompt_hash.
        A character that UTF-8 cannot hold (half a pair) is a question mark.
        `frame.pivot(index=["sample", "repeat"], columns="rule", values="correct")` has a column a rule.
        """
        import pandas

        rows = [row for record in self.records() for row in _rows(record, self.metrics["rule"])]
        counts = {"prompt_tokens": "Int64", "new_tokens": "Int64"}
        return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(counts)


COLUMNS = (
    "sample",
    "repeat",
    "group",
    "rule",
    "headline",
    "correct",
    "value",
    "extracted",
    "measures",
    "target",
    "output",
    "finish",
    "prompt_tokens",
    "new_tokens",
    "doc_hash",
    "prompt_hash",
)


def load_run(path: str | Path) -> LoadedRun:
    """Read a finished run from its folder. Raises StoreError where there is none, or where it is damaged."""
    folder = Path(path)
    metrics = read_metrics(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder / 'manifest.json'}: expected what was run, found something else ({error}).\n"
            "Next: the same `run` command again writes it anew."
        ) from None
    return LoadedRun(folder, metrics, manifest)


def _rows(record: Mapping[str, Any], headline: str) -> list[dict[str, Any]]:
    output = output_of(record)
    text = scored_text(record)
    common = {
        "sample": record["doc_id"],
        "repeat": record["repeat"],
        "group": record["group"],
        "target": _plain(record["target"]),
        "output": canonical(output["logprobs"]) if text is None and "logprobs" in output else _plain(text),
        "finish": output.get("finish"),
        "prompt_tokens": output.get("prompt_tokens"),
        "new_tokens": output.get("new_tokens"),
        "doc_hash": record["doc_hash"],
        "prompt_hash": record["prompt_hash"],
    }
    return [
        {
            **common,
            "rule": rule,
            "headline": rule == headline,
            "correct": verdict["correct"],
            "value": value_of(verdict),
            "extracted": _plain(verdict["extracted"]),
            "measures": canonical(verdict["measures"]) if "measures" in verdict else None,
        }
        for rule, verdict in record["verdicts"].items()
    ]


def _plain(text: str | None) -> str | None:
    return text and text.encode("utf-8", "replace").decode()
