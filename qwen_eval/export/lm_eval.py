"""lm-evaluation-harness' own layout (0.4.13): results_<time>.json, and samples_<task>_<time>.jsonl for every task.

What it calls a filter is a rule of ours. Where the data has subjects, each is a task of its own (`mmlu_anatomy@qwen`)
in a group (`mmlu@qwen`), and `doc_id` counts within it, as there. Where an item was asked several times, `resps` has
all texts and the metric is their mean. Runs of one model share one results file.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_eval.errors import UsageError
from qwen_eval.export.source import Source, generation_arguments, json_bytes, text_of
from qwen_eval.results import output_of, scored_text, value_of
from qwen_eval.task import Choose, Generate

__all__ = ["files"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One task in their sense: a run, or one subject of it. `items` are the records of each sample, its repeats."""

    source: Source
    name: str
    group: str
    items: Sequence[Sequence[Record]]

    @property
    def rules(self) -> list[str]:
        """The rules of the run that score every item of this part, the headline first."""
        every = [
            rule
            for rule in self.source.metrics["rules"]
            if all(rule in record["verdicts"] for item in self.items for record in item)
        ]
        return sorted(every, key=lambda rule: rule != self.source.metrics["rule"])

    @property
    def metric(self) -> str:
        """Their name of the metric."""
        if self.source.task is not None and self.source.task.programs:
            return "pass@1"
        return "acc" if self.source.metrics["rule"] == "choice" else "exact_match"

    def key(self, rule: str) -> str:
        """Metric and filter as they are joined in results."""
        return f"{self.metric},{filter_of(rule)}"


def files(sources: Sequence[Source]) -> dict[str, bytes]:
    """Return results and samples of the runs, by name. Raises IncompleteError; UsageError where two are one file."""
    found: dict[str, bytes] = {}
    for folder in dict.fromkeys(source.model_folder for source in sources):
        found |= {f"{folder}/{name}": content for name, content in _of_model(folder, sources).items()}
    return found


def filter_of(rule: str) -> str:
    """Their name of a rule: log-probabilities are compared without a filter."""
    return "none" if rule == "choice" else rule


def _of_model(folder: str, sources: Sequence[Source]) -> dict[str, bytes]:
    own = [source for source in sources if source.model_folder == folder]
    time = max(source.time for source in own)
    stamp = time.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
    results: dict[str, Any] = {
        name: {}
        for name in (
            "results",
            "groups",
            "group_subtasks",
            "configs",
            "versions",
            "n-shot",
            "higher_is_better",
            "n-samples",
        )
    }
    found: dict[str, bytes] = {}
    hashes = {}
    for source in own:
        source.check_score()
        if source.name in results["results"]:
            raise UsageError(
                f"{source.run.path}: {source.name} of {source.model} is here twice, and would be one file.\n"
                "Next: export the two into separate --output folders."
            )
        parts = _parts(source)
        for part in parts:
            lines = [line for rule in part.rules for line in _samples(part, rule)]
            found[f"samples_{part.name}_{stamp}.jsonl"] = b"".join(json_bytes(line) + b"\n" for line in lines)
            hashes[part.name] = _hash(
                "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
            )
            _add(results, part)
        if len(parts) > 1 or parts[0].group:
            _add_group(results, source, parts)
    if not results["groups"]:
        del results["groups"]
    first = own[0].metrics
    results |= {
        "config": {
            "model": "qwen_eval",
            "model_args": {"pretrained": own[0].model, "dtype": first["model"]["dtype"]},
            "model_dtype": first["model"]["dtype"],
            "model_sha": first["model"]["fingerprint"],
            "batch_size": str(first.get("batch_size", "auto")),
            "device": first["model"]["device"],
            "limit": None,
            "gen_kwargs": {},
            "random_seed": first.get("seed"),
        },
        "git_hash": None,
        "date": time.timestamp(),
        "task_hashes": hashes,
        "model_source": "qwen_eval",
        "model_name": own[0].model,
        "model_name_sanitized": folder,
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": first["model"].get("chat_template"),
        "total_evaluation_time_seconds": str(round(sum(source.seconds for source in own), 3)),
        "qwen_eval_version": first["versions"].get("qwen_eval"),
        "transformers_version": first["versions"].get("transformers"),
    }
    return {f"results_{stamp}.json": json_bytes(results, indent=2), **found}


def _parts(source: Source) -> list[Part]:
    """The run as their tasks: one, or one a subject where the data has subjects."""
    items: dict[str, list[Record]] = {}
    for record in source.run.records():
        items.setdefault(record["doc_id"], []).append(record)
    subjects = source.task is not None and bool(source.task.data.groups)
    groups = sorted({each[0]["group"] for each in items.values()}) if subjects else [""]
    task, at, protocol = source.name.partition("@")
    return [
        Part(
            source,
            f"{task}_{group}{at}{protocol}" if group else source.name,
            group,
            [each for each in items.values() if not subjects or each[0]["group"] == group],
        )
        for group in groups
    ]


def _samples(part: Part, rule: str) -> list[dict[str, Any]]:
    return [_sample(part, item, place, rule) for place, item in zip(_places(part.items), part.items, strict=True)]


def _places(items: Sequence[Sequence[Record]]) -> list[int]:
    """Their doc_id, a number: the one our id ends in, where that tells the samples apart, else the position."""
    ends = [re.search(r"(\d+)$", item[0]["doc_id"]) for item in items]
    numbers = [int(end[1]) for end in ends if end]
    return numbers if len(set(numbers)) == len(items) else list(range(len(items)))


def _sample(part: Part, item: Sequence[Record], place: int, rule: str) -> dict[str, Any]:
    first = item[0]
    doc = _in_order(part.source, first)
    arguments = _arguments(part.source, first)
    extracted = [record["verdicts"][rule]["extracted"] for record in item]
    return {
        "doc_id": place,
        "doc": doc,
        "target": first["target"],
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": value for place, value in enumerate(each)}
            for number, each in enumerate(arguments)
        },
        "resps": _resps(item),
        # One that found nothing is marked as their regular expressions mark it.
        "filtered_resps": _resps(item, flat=True)
        if rule == "choice"
        else ["[invalid]" if text is None else text for text in extracted],
        "filter": filter_of(rule),
        "metrics": [part.metric],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(arguments[0][0]),
        "target_hash": _hash(first["target"]),
        part.metric: _mean([value_of(record["verdicts"][rule]) for record in item]),
    }


def _in_order(source: Source, record: Record) -> dict[str, Any]:
    """The item with its columns in the order of the data, where that is here: theirs is hashed in it."""
    doc = record["doc"]
    known = source.columns.get(record["doc_id"], ())
    return {name: doc[name] for name in (*known, *doc) if name in doc}


def _arguments(source: Source, record: Record) -> list[tuple[Any, ...]]:
    """What was asked: a prompt with its settings, or with each option. Empty prompts where they are not known."""
    request = source.requests.get(record["doc_id"])
    if isinstance(request, Choose):
        return [(text_of(request.prompt), option) for option in request.options]
    if isinstance(request, Generate):
        return [(text_of(request.prompt), generation_arguments(request, source.metrics))]
    options = output_of(record).get("logprobs")
    return [("", "")] * len(options) if options else [("", {})]


def _resps(item: Sequence[Record], *, flat: bool = False) -> list[Any]:
    """Their responses: a list a request, in it one a repeat. Whether an option is the likeliest text is not known."""
    outputs = [output_of(record) for record in item]
    if "logprobs" in outputs[0]:
        options = [[str(logprob), "None"] for logprob in outputs[0]["logprobs"]]
        return options if flat else [[option] for option in options]
    return [[scored_text(record) or "" for record in item]]


def _add(results: dict[str, Any], part: Part) -> None:
    """Enter a task into the results."""
    source = part.source
    metrics = source.metrics
    scores: dict[str, Any] = {}
    for rule in part.rules:
        values = [_mean([value_of(record["verdicts"][rule]) for record in item]) for item in part.items]
        scores |= {part.key(rule): _mean(values), _error_key(part, rule): _standard_error(values)}
    if not part.group:
        scores |= _pass_at(part) | _measured(part)
    results["results"][part.name] = {
        "name": part.name,
        "alias": part.group or part.name,
        "sample_len": len(part.items),
        **scores,
    }
    hub = source.task.data.hub if source.task else None
    results["configs"][part.name] = {
        "task": part.name,
        "dataset_path": hub.id if hub else metrics["dataset"]["name"],
        "dataset_name": hub.config if hub else None,
        "test_split": metrics["split"],
        "num_fewshot": metrics["shots"],
        "output_type": "multiple_choice" if metrics["rule"] == "choice" else "generate_until",
        "repeats": metrics.get("repeats", 1),
        "metric_list": [{"metric": part.metric, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": filter_of(rule)} for rule in part.rules],
        "metadata": {
            "protocol": metrics["protocol"],
            "headline": filter_of(metrics["rule"]),
            "dataset_fingerprints": metrics["dataset"]["fingerprints"],
            "prompts": metrics["prompts"],
            "mini": metrics["mini"],
        },
    }
    total = _total(part)
    results["n-samples"][part.name] = {"original": total, "effective": len(part.items)}
    _common(results, part.name, part)


def _add_group(results: dict[str, Any], source: Source, parts: Sequence[Part]) -> None:
    """Enter the whole of a run with subjects: its own score, by the protocol's average."""
    metrics, first = source.metrics, parts[0]
    scores: dict[str, Any] = {}
    for rule, whole in metrics["rules"].items():
        if not all(rule in part.rules for part in parts):
            continue
        values = [
            [_mean([value_of(record["verdicts"][rule]) for record in item]) for item in part.items] for part in parts
        ]
        errors = [_standard_error(each) for each in values]
        error: float | str = _standard_error([value for each in values for value in each])
        if metrics["average"] == "macro":
            known = [each for each in errors if isinstance(each, float)]
            error = math.sqrt(sum(each**2 for each in known)) / len(errors) if len(known) == len(errors) else "N/A"
        scores |= {first.key(rule): whole["score"], _error_key(first, rule): error}
    scores |= _measured(first)
    entry = {"name": source.name, "alias": source.name, "sample_len": metrics["n"], **scores}
    results["results"][source.name] = entry
    results["groups"][source.name] = entry
    results["group_subtasks"][source.name] = [part.name for part in parts]
    _common(results, source.name, first)


def _common(results: dict[str, Any], name: str, part: Part) -> None:
    results["versions"][name] = part.source.metrics["versions"].get("qwen_eval")
    results["n-shot"][name] = part.source.metrics["shots"]
    results["higher_is_better"][name] = {part.metric: True}


def _measured(part: Part) -> dict[str, Any]:
    """The numbers beside the scores of a run, by measure and rule."""
    return {
        f"{name.replace(' ', '_')},{filter_of(rule)}": measured["score"]
        for rule, whole in part.source.metrics["rules"].items()
        for name, measured in whole.get("measures", {}).items()
    }


def _pass_at(part: Part) -> dict[str, Any]:
    """pass@k beyond the first, of a code task whose items were asked several times."""
    rule = part.source.metrics["rule"]
    found = part.source.metrics.get("pass_at", {}).items()
    return {f"pass@{k},{filter_of(rule)}": score for k, score in found if k != "1"}


def _error_key(part: Part, rule: str) -> str:
    return f"{part.metric}_stderr,{filter_of(rule)}"


def _total(part: Part) -> int | None:
    """How many items the whole split has; None where the data is not here to say."""
    plan = part.source.plan
    return sum(sample.group == part.group or not part.group for sample in plan.samples) if plan else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float | str:
    """Their standard error of a mean: the sample's standard deviation over the root of n; "N/A" for a single value."""
    n = len(values)
    if n < 2:
        return "N/A"
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
