"""How the tests of the engine ask, and what the reference engine answers at batch 1."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.task import Answer, Chosen, Failed, Generated, Measured, Request

SHOTS = "Ann has 3 apples and buys 4 more. She has 7.\n\nHe pays 12 dollars for 3 pens. One costs 4.\n\n"
DEEPER = (
    SHOTS + "Nine boxes hold 8 cups each. How many cups are there in all of the boxes together, if two are empty?\n"
)
TEXTS = [
    SHOTS + "x",
    DEEPER + "A",
    DEEPER + "B",
    SHOTS + "A train leaves at 9.",
    "Alone, with nothing shared.",
    "x",
    SHOTS,
]
OUT = Failed(reason="out of memory at batch size 1")


def packed(folder: Path, **settings: Any) -> PackedModel:
    """The engine, its weights not yet loaded."""
    return PackedModel(Checkpoint("tiny", folder), device="cpu", **settings)


def collected(model: ReferenceModel) -> dict[int, Answer | Failed]:
    """All answers that a model has to give, by ticket; none comes twice."""
    answers: dict[int, Answer | Failed] = {}
    while arrived := model.collect():
        assert len(dict(arrived)) == len(arrived)
        assert not answers.keys() & dict(arrived).keys()
        answers |= dict(arrived)
    return answers


def answers_of(model: ReferenceModel, requests: Sequence[Request]) -> list[Answer | Failed]:
    """What a model answers, in the order of the requests: each of them once, nothing else."""
    for ticket, request in enumerate(requests):
        model.submit(ticket, request)
    answers = collected(model)
    assert sorted(answers) == list(range(len(requests)))
    return [answers[ticket] for ticket in range(len(requests))]


_known: dict[tuple[Path, Request], Answer | Failed] = {}


def expected(folder: Path, requests: Sequence[Request]) -> list[Answer | Failed]:
    """What the reference engine answers to each request alone. Remembered: it is the slow one."""
    missing = [request for request in dict.fromkeys(requests) if (folder, request) not in _known]
    if missing:
        model = ReferenceModel(Checkpoint("tiny", folder), device="cpu", batch_size=1)
        _known.update(zip([(folder, request) for request in missing], answers_of(model, missing), strict=True))
    return [_known[folder, request] for request in requests]


def agree(got: Iterable[Answer | Failed], wanted: Iterable[Answer | Failed]) -> None:
    """The same texts, and the same numbers but for rounding."""
    for one, other in zip(got, wanted, strict=True):
        if isinstance(other, Chosen):
            assert isinstance(one, Chosen)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert (one.prompt_tokens, one.cut_tokens) == (other.prompt_tokens, other.cut_tokens)
        elif isinstance(other, Measured):
            assert isinstance(one, Measured)
            assert one.nll == pytest.approx(other.nll, abs=1e-3)
            assert (one.tokens, one.bytes) == (other.tokens, other.bytes)
        else:
            assert one == other


def compare(folder: Path, requests: list[Request], *, batch_size: int | None) -> Mapping[str, int | float | str]:
    """Ask both engines; the answers must be the same. Returns the engine's counters."""
    model = packed(folder, batch_size=batch_size)
    agree(answers_of(model, requests), expected(folder, requests))
    return model.counters()


def new_tokens(answers: Iterable[Answer | Failed]) -> int:
    """How many tokens were generated for these answers."""
    return sum(answer.new_tokens for answer in answers if isinstance(answer, Generated))


def counted(model: ReferenceModel) -> dict[str, int | float | str]:
    """What a model has counted, without what a clock or the machine's memory decides."""
    measured = ("load_seconds", "peak_memory_bytes", "peak_memory_answering_bytes")
    return {name: value for name, value in model.counters().items() if name not in measured}
