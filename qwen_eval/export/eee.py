"""Every Eval Ever, schema 0.3.0 (https://github.com/evaleval/every_eval_ever): the datastore's own folders.

    data/<task>/<developer>/<model>/<uuid>.json           a run: every rule is a result, with its interval
    data/<task>/<developer>/<model>/<uuid>_samples.jsonl  a line a sample, repeat and rule

The UUID follows from the run, so the same run has the same name. Who ran it, and in what relation to the model, a run
does not know: those two fields say "unknown" and "other".
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_eval.export.source import Source, json_bytes, safe, text_of
from qwen_eval.matching import question_of
from qwen_eval.results import canonical, output_of, scored_text, value_of
from qwen_eval.task import Sample

__all__ = ["VERSION", "files"]

VERSION = "0.3.0"


def files(sources: Sequence[Source]) -> dict[str, bytes]:
    """Return the two files of every run, by name. Raises IncompleteError, UsageError for perplexity."""
    found: dict[str, bytes] = {}
    for source in sources:
        source.check_score()
        model = _model_id(source)
        developer, _, name = model.partition("/")
        identity = canonical([source.metrics, source.time.isoformat()])
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
        benchmark = f"{source.metrics['task']}{'-mini' if source.metrics['mini'] else ''}"
        stem = f"data/{benchmark}/{safe(developer)}/{safe(name)}/{uuid.UUID(bytes=digest[:16], version=4)}"
        evaluation = f"{source.name}/{model.replace('/', '_')}/{source.time.timestamp()}"
        lines = _instances(source, evaluation, model)
        samples = b"".join(json_bytes(line) + b"\n" for line in lines)
        aggregate = _aggregate(source, evaluation, model) | {
            "detailed_evaluation_results": {
                "format": "jsonl",
                "file_path": f"{stem}_samples.jsonl",
                "hash_algorithm": "sha256",
                "checksum": hashlib.sha256(samples).hexdigest(),
                "total_rows": len(lines),
            }
        }
        found |= {f"{stem}.json": json_bytes(aggregate, indent=2) + b"\n", f"{stem}_samples.jsonl": samples}
    return found


def _model_id(source: Source) -> str:
    """The model in the form developer/name; what is in no repository is of the developer "local"."""
    name = source.model
    return name if name.count("/") == 1 and not name.startswith((".", "/")) else f"local/{safe(name)}"


def _result_id(source: Source, rule: str) -> str:
    return f"{source.name}/{rule}"


def _aggregate(source: Source, evaluation: str, model: str) -> dict[str, Any]:
    metrics = source.metrics
    of = metrics["model"]
    imported = "imported" in metrics
    known = model.partition("/")[0] != "local"
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation,
        "evaluation_timestamp": source.time.isoformat(),
        "retrieved_timestamp": str(source.time.timestamp()),
        "source_metadata": {
            "source_name": "qwen_eval",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "lm_eval" if imported else "qwen_eval",
            "version": str(metrics["versions"].get("lm_eval" if imported else "qwen_eval") or "unknown"),
        },
        "model_info": {
            "name": source.model,
            "id": model,
            "developer": model.partition("/")[0],
            "inference_engine": {"name": str(of["engine"])},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if known else "unknown",
                "fingerprint": str(of["fingerprint"]),
                "dtype": str(of["dtype"]),
                "device": str(of["device"]),
            },
        },
        "evaluation_results": [_result(source, rule, part) for rule, part in metrics["rules"].items()],
    }


def _result(source: Source, rule: str, part: Mapping[str, Any]) -> dict[str, Any]:
    metrics = source.metrics
    code = source.task is not None and bool(source.task.programs)
    drawn = metrics.get("sampling") or {"temperature": 0.0}
    asked = next(iter(source.requests.values()), None)
    limit = getattr(asked, "max_new_tokens", None)
    return {
        "evaluation_result_id": _result_id(source, rule),
        "evaluation_name": source.name,
        "source_data": _data(source),
        "evaluation_timestamp": source.time.isoformat(),
        "metric_config": {
            "evaluation_description": (
                f"{metrics['task']}, protocol {metrics['protocol']}, {metrics['shots']} exemplars, rule {rule}, "
                f"{metrics['average']} average"
            ),
            "metric_id": "pass_at_k" if code else "accuracy",
            "metric_name": "pass@1" if code else "Accuracy",
            "metric_kind": "pass_rate" if code else "accuracy",
            "metric_unit": "proportion",
            "metric_parameters": {"rule": rule, "average": metrics["average"], **({"k": 1} if code else {})},
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
            "additional_details": {"headline": str(rule == metrics["rule"]).lower()},
        },
        "score_details": {
            "score": part["score"],
            "uncertainty": {
                "confidence_interval": {
                    "lower": part["low"],
                    "upper": part["high"],
                    "confidence_level": 0.95,
                    "method": "wilson",
                },
                "num_samples": part["n"],
            },
        },
        "generation_config": {
            "generation_args": {
                **({} if metrics["rule"] == "choice" else drawn),
                **({"max_tokens": limit} if limit else {}),
            },
            "additional_details": {
                "shots": str(metrics["shots"]),
                "repeats": str(metrics.get("repeats", 1)),
                "prompts": str(metrics["prompts"] or "unknown"),
            },
        },
    }


def _data(source: Source) -> dict[str, Any]:
    """Where the data comes from: the hub where it is there, else its home page; the small set is nobody else's."""
    metrics = source.metrics
    details = {"additional_details": {"fingerprints": canonical(metrics["dataset"]["fingerprints"])}}
    name = metrics["dataset"]["name"]
    spec = source.task.data if source.task else None
    if metrics["mini"] or spec is None:
        return {"dataset_name": f"{name} (mini)" if metrics["mini"] else name, "source_type": "other", **details}
    if spec.hub:
        found = {"hf_repo": spec.hub.id, "hf_split": metrics["split"], "samples_number": metrics["n"]}
        return {"dataset_name": name, "source_type": "hf_dataset", **found, **details}
    return {"dataset_name": name, "source_type": "url", "url": [spec.homepage], **details}


def _instances(source: Source, evaluation: str, model: str) -> list[dict[str, Any]]:
    return [
        _instance(source, evaluation, model, record, rule)
        for record in source.run.records()
        for rule in source.metrics["rules"]
        if rule in record["verdicts"]  # one may say nothing of a sample
    ]


def _instance(source: Source, evaluation: str, model: str, record: Mapping[str, Any], rule: str) -> dict[str, Any]:
    output = output_of(record)
    verdict = record["verdicts"][rule]
    request = source.requests.get(record["doc_id"])
    raw = question_of(record["doc"]) or canonical(record["doc"])
    letters = source.task.letters if source.task else ()
    sample = Sample(record["doc_id"], record["doc"], record["target"], record["group"])
    counts = {"input_tokens": output.get("prompt_tokens"), "output_tokens": output.get("new_tokens", 0)}
    hashed = hashlib.sha256((raw + sample.gold).encode("utf-8", "replace")).hexdigest()
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation,
        "model_id": model,
        "evaluation_name": source.name,
        "evaluation_result_id": _result_id(source, rule),
        "sample_id": sample.id,
        "sample_hash": hashed,
        "interaction_type": "single_turn",
        "input": {
            "raw": raw,
            "formatted": text_of(request.prompt) if request is not None and hasattr(request, "prompt") else None,
            "reference": [sample.gold],
            "choices": [sample.row[letter] for letter in letters if letter in sample.row] or None,
        },
        # Of an item whose options were compared the output is the letter; the log-probabilities are in the metadata.
        "output": {"raw": [scored_text(record) if "text" in output else verdict["extracted"] or ""]},
        "messages": None,
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": verdict["extracted"],
                "extraction_method": rule,
                "is_terminal": True,
            }
        ]
        if verdict["extracted"] is not None
        else [],
        "evaluation": {"score": value_of(verdict), "is_correct": verdict["correct"]},
        "token_usage": counts | {"total_tokens": sum(counts.values())} if counts["input_tokens"] is not None else None,
        "metadata": {
            "repeat": str(record["repeat"]),
            "group": sample.group,
            "prompt_hash": str(record["prompt_hash"]),
            **({"logprobs": canonical(output["logprobs"])} if "logprobs" in output else {}),
        },
    }
