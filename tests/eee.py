"""What Every Eval Ever's schema 0.3.0 demands, as facts read in its package (PyPI every-eval-ever 0.3.0), and a checker.

Only what our files have is here; a field that is not here is a mistake. The package itself needs Python 3.12 and much
else, so it is no dependency; its own validator was run on our files by hand (ARCHITECTURE.md, "Layouts of others").
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NUMBER = (int, float)


@dataclass(frozen=True)
class Thing:
    """An object: its fields with their forms, which of them must be there."""

    required: dict[str, Any]
    optional: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class One:
    """One of several values."""

    of: tuple[object, ...]


@dataclass(frozen=True)
class ListOf:
    form: Any
    least: int = 0


@dataclass(frozen=True)
class Pattern:
    text: str


class Texts:
    """An object whose values are all text."""


DATASET = {
    "hf_dataset": Thing(
        {"dataset_name": str, "source_type": One(("hf_dataset",))},
        {"hf_repo": str, "hf_split": str, "samples_number": int, "additional_details": Texts},
    ),
    "url": Thing(
        {"dataset_name": str, "source_type": One(("url",)), "url": ListOf(str, 1)}, {"additional_details": Texts}
    ),
    "other": Thing({"dataset_name": str, "source_type": One(("other",))}, {"additional_details": Texts}),
}

RESULT = Thing(
    {
        "evaluation_name": str,
        "source_data": DATASET,
        "metric_config": Thing(
            # A continuous score must say its range.
            {"lower_is_better": bool, "score_type": One(("continuous",)), "min_score": NUMBER, "max_score": NUMBER},
            {
                "evaluation_description": str,
                "metric_id": str,
                "metric_name": str,
                "metric_kind": str,
                "metric_unit": str,
                "metric_parameters": dict,
                "additional_details": Texts,
            },
        ),
        "score_details": Thing(
            {"score": NUMBER},
            {
                "uncertainty": Thing(
                    {},
                    {
                        "confidence_interval": Thing(
                            {"lower": NUMBER, "upper": NUMBER}, {"confidence_level": NUMBER, "method": str}
                        ),
                        "num_samples": int,
                    },
                )
            },
        ),
    },
    {
        "evaluation_result_id": str,
        "evaluation_timestamp": str,
        "generation_config": Thing(
            {},
            {
                "generation_args": Thing(
                    {}, {"temperature": NUMBER, "top_p": NUMBER, "top_k": NUMBER, "max_tokens": int}
                ),
                "additional_details": Texts,
            },
        ),
    },
)

AGGREGATE = Thing(
    {
        "schema_version": One(("0.3.0",)),
        "evaluation_id": str,
        "retrieved_timestamp": Pattern(r"\d+(\.\d+)?"),
        "source_metadata": Thing(
            {
                "source_type": One(("documentation", "evaluation_run")),
                "source_organization_name": str,
                "evaluator_relationship": One(("first_party", "third_party", "collaborative", "other")),
            },
            {"source_name": str},
        ),
        "eval_library": Thing({"name": str, "version": str}),
        "model_info": Thing(
            {
                "name": str,
                "id": Pattern(r"[^/]+/[^/]+"),
                "additional_details": Thing(
                    {
                        "deployment_type": One(("self_deployed", "externally_managed", "unknown")),
                        "model_availability": One(("open_weights", "closed_weights", "unknown")),
                    },
                    {"fingerprint": str, "dtype": str, "device": str},
                ),
            },
            {"developer": str, "inference_engine": Thing({}, {"name": str, "version": str})},
        ),
        "evaluation_results": ListOf(RESULT, 1),
    },
    {
        "evaluation_timestamp": str,
        "detailed_evaluation_results": Thing(
            {
                "format": One(("jsonl",)),
                "file_path": Pattern(
                    r"data/[^/]+/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
                    r"_samples\.jsonl"
                ),
            },
            {"hash_algorithm": One(("sha256", "md5")), "checksum": str, "total_rows": int},
        ),
    },
)

INSTANCE = Thing(
    {
        "schema_version": One(("0.3.0",)),
        "evaluation_id": str,
        "model_id": str,
        "evaluation_name": str,
        "sample_id": str,
        "interaction_type": One(("single_turn",)),
        "input": Thing(
            {"raw": str, "reference": ListOf(str)},
            {"formatted": (str, type(None)), "choices": (list, type(None))},
        ),
        # Of a single turn there is an output and there are no messages.
        "output": Thing({"raw": ListOf(str)}),
        "answer_attribution": ListOf(
            Thing(
                {
                    "turn_idx": int,
                    "source": str,
                    "extracted_value": str,
                    "extraction_method": str,
                    "is_terminal": bool,
                }
            )
        ),
        "evaluation": Thing({"score": NUMBER, "is_correct": bool}),
    },
    {
        "evaluation_result_id": str,
        "sample_hash": str,
        "messages": type(None),
        "token_usage": (dict, type(None)),
        "metadata": Texts,
    },
)


def faults(value: Any, form: Any, place: str = "") -> Iterator[str]:
    """Yield what is wrong with a value, in words, with its place."""
    if isinstance(form, Thing):
        if not isinstance(value, dict):
            yield f"{place}: no object"
            return
        known = form.required | form.optional
        yield from (f"{place}.{name}: missing" for name in form.required if name not in value)
        yield from (f"{place}.{name}: not in the schema" for name in value if name not in known)
        for name in value:
            if name in known:
                yield from faults(value[name], known[name], f"{place}.{name}")
    elif isinstance(form, ListOf):
        if not isinstance(value, list) or len(value) < form.least:
            yield f"{place}: no list, or too short"
            return
        for number, each in enumerate(value):
            yield from faults(each, form.form, f"{place}[{number}]")
    elif isinstance(form, One):
        if value not in form.of:
            yield f"{place}: {value!r}"
    elif isinstance(form, Pattern):
        if not isinstance(value, str) or not re.fullmatch(form.text, value):
            yield f"{place}: {value!r}"
    elif isinstance(form, dict):
        yield from faults(value, form[value["source_type"]], place)
    elif form is Texts:
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            yield f"{place}: values that are no text"
    elif not isinstance(value, form) or (isinstance(value, bool) and form is not bool):
        yield f"{place}: {value!r} is no {form}"
