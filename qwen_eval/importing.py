"""Runs of lm-evaluation-harness as run folders of ours: records, metrics and a manifest, marked as imported.

Its metrics become rules (`lm-eval:exact_match,strict-match`). A document that is found in our data by its texts gets
the sample's id and gold, and our own rules read its output too, so that a run of ours has the same ids and the same
rules; another keeps its number, as `<their task>/<doc_id>`, and has their metrics only. Where every prompt is, to the
byte, that of a protocol of ours, the run is one of that protocol, with its headline rule; else the first of their
metrics is it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qwen_eval import registry
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import DataError, UsageError
from qwen_eval.lm_eval import Log, Logged
from qwen_eval.matching import Matcher
from qwen_eval.plan import make_plan
from qwen_eval.registry import Entry
from qwen_eval.results import checksum, sealed, write_bytes, write_json
from qwen_eval.scoring import metrics, stored, verdicts
from qwen_eval.task import Answer, Chosen, Generated, Protocol, Sample, Task, Verdict

__all__ = ["Imported", "import_runs"]

PREFIX = "lm-eval:"


@dataclass(frozen=True)
class Imported:
    """What became of a run: its folder, its metrics, and how many of its samples were found in our data."""

    folder: Path
    metrics: Mapping[str, Any]
    matched: int
    samples: int


@dataclass(frozen=True)
class _Found:
    """Our samples of a run's documents, by file and number, and where they are from."""

    samples: Mapping[tuple[Path, int], Sample]
    order: Mapping[str, int]
    split: str
    dataset: Dataset | None


def import_runs(
    logs: Sequence[Log],
    *,
    output_dir: Path,
    task: str | None = None,
    split: str | None = None,
    data_dir: Path | None = None,
    include: Sequence[Path] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[Imported]:
    """Write a run folder for every run in the logs; the files of one group (57 subjects) are one run.

    `task` is ours, where their name does not tell, also with the protocol, where their prompts do not. Raises
    UsageError for a name that tells nothing, or a folder that holds another run.
    """
    files = registry.find(include)
    given, named = registry.split_name(task) if task else (None, None)
    runs: dict[tuple[Path, str, str, str], list[Log]] = {}
    for log in logs:
        name = given or _task_of(log, files)
        entry = registry.load(name, files)
        runs.setdefault((log.file.parent, log.time, name, _base(log, entry)), []).append(log)
    done = []
    for (_, _, name, base), own in runs.items():
        entry = registry.load(name, files)
        found = _match(own, entry, split, data_dir, say)
        protocol = registry.protocol(entry.task, named) if named else _protocol(own, entry, found)
        done.append(_write(own, entry, base, protocol, found, output_dir, overwrite, say))
    return done


# ------------------------------------------------------------------------------------------------- which task of ours


def _task_of(log: Log, files: Mapping[str, Path]) -> str:
    """The task of ours that their name contains: the one it begins with, else the longest."""
    parts = "_" + re.sub(r"\W", "_", log.task.lower()) + "_"
    inside = [name for name in files if f"_{name}_" in parts]
    if not inside:
        raise UsageError(
            f"{log.file}: expected a task of ours in the name '{log.task}', found none.\n"
            "Next: name it with --task; `python -m qwen_eval tasks` lists all of them."
        )
    return max(inside, key=lambda name: (parts.startswith(f"_{name}_"), len(name)))


def _base(log: Log, entry: Entry) -> str:
    """Their name of the whole: the group that the task is in, or the name without the subject."""
    parents = {child: group for group, children in log.results.get("group_subtasks", {}).items() for child in children}
    name = log.task
    while name in parents and entry.task.name in parents[name]:
        name = parents.pop(name)
    if name == log.task and _subject(log, entry):
        name = name[: -len(_subject(log, entry))].rstrip("_-")
    return name


def _subject(log: Log, entry: Entry) -> str:
    """The subject that their name ends in, "" where it does not."""
    ends = [group for group in entry.task.data.groups if re.search(rf"[_-]{re.escape(group)}$", log.task)]
    return max(ends, key=len, default="")


# ----------------------------------------------------------------------------------------------------------- matching


def _match(
    logs: Sequence[Log], entry: Entry, split: str | None, data_dir: Path | None, say: Callable[[str], None]
) -> _Found:
    """Find the documents in the split that has most of them."""
    known = (split,) if split else entry.task.splits
    if split and split not in entry.task.splits:
        raise UsageError(f"--split {split}: {entry.task.name} is evaluated on {' or '.join(entry.task.splits)}.")
    best = _Found({}, {}, known[0], None)
    try:
        dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=data_dir, say=say)
    except DataError as error:
        say(str(error))
        return best
    total = sum(len(log.documents) for log in logs)
    for name in known:
        samples = entry.task.samples(dataset, name)
        matcher = Matcher(samples)
        found = {
            (log.file, document.number): sample
            for log in logs
            for document in log.documents
            if (sample := matcher.find(document.doc, group=_group(log, document, entry), number=document.number))
        }
        if len(found) > len(best.samples):
            best = _Found(found, {sample.id: place for place, sample in enumerate(samples)}, name, dataset)
        if len(found) == total:
            break
    return best


def _protocol(logs: Sequence[Log], entry: Entry, found: _Found) -> Protocol | None:
    """The protocol of ours that all their prompts are of, to the byte; None where there is none."""
    theirs = {
        sample.id: document.prompt_hash
        for log in logs
        for document in log.documents
        if (sample := found.samples.get((log.file, document.number)))
    }
    if not found.dataset or len(theirs) < sum(len(log.documents) for log in logs):
        return None
    for protocol in entry.task.protocols:
        try:
            plan = make_plan(entry.task, protocol, found.dataset, split=found.split, shots=_shots(logs[0]))
        except (DataError, UsageError):
            continue
        prompts = {sample.id: getattr(request, "prompt", None) for sample, request in plan.first_requests()}
        if all(_hash(prompts[sample]) == digest for sample, digest in theirs.items()):
            return protocol
    return None


def _hash(prompt: object) -> str:
    """Their hash of a prompt, "" of a conversation: its text depends on the model's template."""
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest() if isinstance(prompt, str) else ""


def _shots(log: Log) -> int:
    return int(log.results.get("n-shot", {}).get(log.task) or 0)


def _group(log: Log, document: Logged, entry: Entry) -> str:
    """The subject of a document: its own column, or the end of their task's name; "" where neither is one of ours."""
    subject = document.doc.get("subject")
    return subject if subject in entry.task.data.groups else _subject(log, entry)


# ------------------------------------------------------------------------------------------------------------ writing


def _write(
    logs: Sequence[Log],
    entry: Entry,
    base: str,
    protocol: Protocol | None,
    found: _Found,
    output_dir: Path,
    overwrite: bool,
    say: Callable[[str], None],
) -> Imported:
    task, name = entry.task, protocol.name if protocol else f"imported-{_safe(base)}"
    places = [(log, document) for log in logs for document in log.documents]
    places.sort(key=lambda place: _order(place[0], place[1], found))
    rules = _their_rules(places, say)
    records = [_record(log, document, entry, found, rules) for log, document in places]
    own = [rule for rule in records[0]["verdicts"] if rule not in rules]
    common = [*rules, *(rule for rule in own if all(rule in record["verdicts"] for record in records))]
    headline = protocol.rule if protocol and protocol.rule in common else rules[0]
    manifest = _manifest(logs, entry, name, headline, found, records)
    result = {
        **_metrics(task, common, headline, protocol.average if protocol else "micro", records),
        **manifest,
        "failures": {},
    }
    split = "" if found.split == task.splits[0] else f"-{found.split}"
    model = manifest["model"]
    mini = "-mini" if manifest["mini"] else ""
    folder = output_dir / f"{_safe(model['name'])}-{model['fingerprint'][:8]}" / f"{task.name}@{name}{split}{mini}"
    _check(folder, manifest, overwrite)
    write_json(folder / "manifest.json", manifest)
    write_bytes(
        folder / "records.jsonl", "".join(sealed(record) for record in records).encode("utf-8", "surrogatepass")
    )
    write_json(folder / "metrics.json", result)
    return Imported(folder, result, len(found.samples), len(records))


def _metrics(
    task: Task,
    rules: Sequence[str],
    headline: str,
    average: Literal["micro", "macro"],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The metrics over the verdicts that the records have; no rule is called."""
    stand_in = replace(task, rules=dict.fromkeys(rules, _not_called), programs={})
    like = replace(task.protocols[0], rule=headline, average=average)
    # Log-probabilities have the rule "choice" alone in a run of ours; here their metrics stand beside it.
    beside = metrics(stand_in, replace(like, rule=rules[0]), records, errors=0)["rules"]
    return {**metrics(stand_in, like, records, errors=0), "rules": beside}


def _not_called(output: str, sample: Sample) -> Verdict:
    raise NotImplementedError("the verdicts of an imported run are in its records")


def _order(log: Log, document: Logged, found: _Found) -> tuple[int, str, int]:
    sample = found.samples.get((log.file, document.number))
    return (found.order[sample.id], "", 0) if sample else (len(found.order), log.task, document.number)


def _their_rules(places: Sequence[tuple[Log, Logged]], say: Callable[[str], None]) -> list[str]:
    """Their metrics that are right or wrong for every document, as rules. Raises UsageError where there is none."""
    names = list(dict.fromkeys(name for _, document in places for name in document.scores))
    rules = [name for name in names if all(document.scores.get(name) in (0, 1) for _, document in places)]
    for name in names:
        if name not in rules:
            say(f"{places[0][0].task}: metric {name} is not 0 or 1 for every sample; left out.")
    if not rules:
        raise UsageError(
            f"{places[0][0].file}: expected a metric that is 0 or 1 for every sample, found "
            f"{', '.join(names) or 'none'}.\nNext: import a task that is scored item by item."
        )
    return [f"{PREFIX}{name}" for name in rules]


def _record(log: Log, document: Logged, entry: Entry, found: _Found, rules: Sequence[str]) -> dict[str, Any]:
    """One line of records.jsonl."""
    task = entry.task
    sample = found.samples.get((log.file, document.number))
    row = sample.row if sample else document.doc
    their = {
        rule: {
            "correct": bool(document.scores[rule.removeprefix(PREFIX)]),
            "extracted": _extracted(document, rule.removeprefix(PREFIX), task.letters),
        }
        for rule in rules
    }
    outputs: list[dict[str, Any]] = [{"text": text} for text in document.texts]
    return {
        "doc_id": sample.id if sample else f"{log.task}/{document.number}",
        "repeat": 0,
        "group": sample.group if sample else _group(log, document, entry),
        "doc": {name: value for name, value in row.items() if name not in task.unrecorded},
        "target": (sample.gold if sample else "") or document.target,
        "doc_hash": checksum(dict(row)),
        "prompt_hash": document.prompt_hash,
        "outputs": outputs or [{"logprobs": list(document.logprobs)}],
        "verdicts": their | (_own(entry, sample, document) if sample else {}),
    }


def _extracted(document: Logged, name: str, letters: Sequence[str]) -> str | None:
    """What was read: what the filter left, or the likeliest option, by its letter where there are so many letters."""
    if not document.logprobs:
        return document.extracted[name]
    if not name.startswith("acc,"):
        return None
    place = max(range(len(document.logprobs)), key=document.logprobs.__getitem__)
    return letters[place] if len(letters) == len(document.logprobs) else str(place)


def _own(entry: Entry, sample: Sample, document: Logged) -> dict[str, Any]:
    """The verdicts of our rules. None where an item was asked several times, or a program would have to be run."""
    answer: Answer
    if len(document.texts) == 1 and not (entry.task.programs or entry.task.checks):
        answer = Generated(text=document.texts[0], finish="end", prompt_tokens=0, new_tokens=0)
    elif document.logprobs and len(document.logprobs) == len(entry.task.letters):
        answer = Chosen(logprobs=tuple(document.logprobs), prompt_tokens=0)
    else:
        return {}
    return {name: stored(each) for name, each in verdicts(entry.task, sample, answer).items()}


def _manifest(
    logs: Sequence[Log], entry: Entry, name: str, rule: str, found: _Found, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was run, as far as their results say. The fingerprint is of the model's name and arguments, not weights."""
    from qwen_eval import __version__

    first = logs[0]
    results, config = first.results, first.results.get("config", {})
    model = str(results.get("model_name") or first.file.parent.name)
    arguments = results.get("configs", {}).get(first.task, {}).get("generation_kwargs") or {}
    drawn = arguments.get("do_sample") and {
        "temperature": arguments.get("temperature", 1.0),
        "top_p": arguments.get("top_p", 1.0),
        "top_k": arguments.get("top_k", 0),
    }
    dataset = found.dataset
    fingerprints = {found.split: dataset.fingerprints[found.split]} if dataset else {}
    return {
        "task": entry.task.name,
        "protocol": name,
        "rule": rule,
        "split": found.split,
        "shots": _shots(first),
        "samples": len(records),
        "mini": dataset is not None and dataset.mini,
        "dataset": {"name": entry.task.data.name, "fingerprints": fingerprints},
        # Unknown: ours is a hash of all requests of the split, with their limits and stops.
        "prompts": None,
        "published_truncation": None,
        "sampling": drawn or None,
        "repeats": 1,
        "deterministic": False,
        "seed": config.get("random_seed"),
        "model": {
            "name": Path(model).name if model.startswith((".", "/")) else model,
            "fingerprint": checksum([model, config.get("model_args"), config.get("model_sha")]),
            "dtype": str(config.get("model_dtype", "unknown")).removeprefix("torch."),
            "device": str(config.get("device") or "unknown"),
            "engine": "lm-evaluation-harness",
            "chat_template": results.get("chat_template_sha"),
        },
        "batch_invariant": None,
        "versions": {
            "lm_eval": results.get("lm_eval_version"),
            "transformers": results.get("transformers_version"),
            "qwen_eval": __version__,
        },
        "imported": {
            "from": "lm-evaluation-harness",
            "files": {log.file.name: log.digest for log in logs},
            "matched": len(found.samples),
        },
    }


def _check(folder: Path, manifest: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder. Raises UsageError where it holds another run or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        before = None
    except OSError as error:
        raise UsageError(
            f"{folder}: expected a folder that can be written, found none ({error.strerror}).\n"
            "Next: choose another --output-dir."
        ) from None
    if before != manifest and not overwrite:
        raise UsageError(
            f"{folder} holds another import.\nNext: choose another --output-dir, or replace it with --overwrite."
        )


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)
