"""What the layouts share: a run with its task file, its time and its prompts. The same run gives the same of each."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_eval import registry
from qwen_eval.data import find_dataset, mini_dataset
from qwen_eval.errors import DataError, IncompleteError, UsageError
from qwen_eval.loaded import LoadedRun
from qwen_eval.plan import Plan, make_plan
from qwen_eval.task import Generate, Prompt, Request, Task

__all__ = ["Source", "generation_arguments", "json_bytes", "safe", "text_of"]


@dataclass(frozen=True)
class Source:
    """A run to be exported. `data_dir` and `include` are where its data and its task file may be."""

    run: LoadedRun
    data_dir: Path | None = None
    include: Sequence[Path] = ()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The run's metrics, its manifest among them."""
        return self.run.metrics

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.metrics["model"]["name"])

    @property
    def model_folder(self) -> str:
        """The model as a folder name, as in our own results: name and fingerprint."""
        return f"{safe(self.model)}-{self.metrics['model']['fingerprint'][:8]}"

    @property
    def name(self) -> str:
        """The task as a name: `gsm8k@qwen`, with the split where it is not the usual one, and `-mini`."""
        metrics, task = self.metrics, self.task
        usual = task is None or metrics["split"] == task.splits[0]
        split = "" if usual else f"-{metrics['split']}"
        return f"{metrics['task']}@{metrics['protocol']}{split}{'-mini' if metrics['mini'] else ''}"

    @cached_property
    def task(self) -> Task | None:
        """The task file of the run, None where it is not here."""
        files = registry.find(self.include)
        return registry.load(self.metrics["task"], files).task if self.metrics["task"] in files else None

    @cached_property
    def time(self) -> datetime:
        """When the run ended: the time of its metrics.json, which is written last."""
        return datetime.fromtimestamp((self.run.path / "metrics.json").stat().st_mtime_ns // 1000 / 1e6, UTC)

    @property
    def seconds(self) -> float:
        """How long the run took, over all sessions; 0 where timing.json does not say."""
        try:
            return float(sum(session["wall_seconds"] for session in self.run.sessions))
        except (KeyError, TypeError):
            return 0.0

    @cached_property
    def plan(self) -> Plan | None:
        """The plan of the whole split, built anew; None where data or protocol are not here or give other prompts."""
        files = registry.find(self.include)
        if self.task is None:
            return None
        entry = registry.load(self.task.name, files)
        protocol = next((each for each in self.task.protocols if each.name == self.metrics["protocol"]), None)
        if protocol is None:
            return None
        try:
            if self.metrics["mini"]:
                dataset = mini_dataset(entry.task.data, entry.folder)
            else:
                dataset = find_dataset(
                    entry.task.data, tasks=entry.folder, data_dir=self.data_dir, allow_mini=False, network=False
                )
            plan = make_plan(
                self.task,
                protocol,
                dataset,
                split=self.metrics["split"],
                shots=self.metrics["shots"],
                published_truncation=self.metrics.get("published_truncation", False),
            )
        except (DataError, UsageError):
            return None
        return plan if plan.prompts == self.metrics["prompts"] else None

    @cached_property
    def requests(self) -> Mapping[str, Request]:
        """The first request of every sample, by its id; empty where the prompts cannot be built anew."""
        return {sample.id: request for sample, request in self.plan.first_requests()} if self.plan else {}

    @cached_property
    def columns(self) -> Mapping[str, Sequence[str]]:
        """The columns of every sample in the order of the data, by its id; empty where that is not here."""
        return {sample.id: list(sample.row) for sample in self.plan.samples} if self.plan else {}

    def check_score(self) -> None:
        """Raise IncompleteError where there is no score to publish, UsageError where there is never one."""
        if "perplexity" in self.metrics:
            raise UsageError(
                f"{self.run.path}: expected a run with a score from 0 to 1, found perplexity, which no layout has a "
                "place for.\nNext: leave this run out. The `run` command with --format csv prints a line a length; "
                "records.jsonl has the blocks."
            )
        if self.run.score is None:
            raise IncompleteError(
                f"{self.run.path}: expected a run with a score, found none ({self.metrics['errors']} sample(s) ended "
                f"in an error, {self.metrics['ungraded']} without a known answer).\n"
                "Next: run it again, or export its samples with --format csv."
            )


def text_of(prompt: Prompt) -> str:
    """Return a prompt as text: a conversation as the JSON list of its messages."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([{"role": turn.role, "content": turn.content} for turn in prompt.turns], ensure_ascii=False)


def generation_arguments(request: Request, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return stops, limit and sampling of a request in lm-evaluation-harness' words."""
    if not isinstance(request, Generate):
        return {}
    drawn = metrics.get("sampling") or {}
    return {
        "until": list(request.stops),
        "max_gen_toks": request.max_new_tokens,
        "do_sample": bool(drawn),
        "temperature": drawn.get("temperature", 0.0),
        **{name: drawn[name] for name in ("top_p", "top_k") if name in drawn},
    }


def safe(name: str) -> str:
    """Return a name as one part of a path."""
    return re.sub(r"[^\w.@-]", "-", name)


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    """Return JSON as UTF-8; a character that UTF-8 cannot hold (half a pair) becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "replace")
