"""The engine against the reference engine at batch 1: the same tokens, the same numbers, each prefix computed once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engines import DEEPER, SHOTS, TEXTS, answers_of, compare, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.engine import KINDS as SUPPORTED
from qwen_eval.models.transformers.engine import open_model, supports
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.prompts import chat
from qwen_eval.task import Answer, Choose, Failed, Generate, Generated, LeftCut, Perplexity, Request

KINDS = ["qwen2", "llama", "qwen3", "gemma3_text", "mistral"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, None])
def test_generation_is_that_of_the_reference(
    kind: str, batch_size: int | None, tiny_checkpoint: Callable[..., Path]
) -> None:
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=12 + 5 * at) for at, text in enumerate(TEXTS)]
    requests += [Generate(prompt=chat(text), max_new_tokens=30) for text in TEXTS[:3]]
    requests += [Generate(prompt=text, max_new_tokens=40, stops=("e", "th")) for text in TEXTS]
    compare(tiny_checkpoint(kind), requests, batch_size=batch_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_options_are_those_of_the_reference(
    kind: str, batch_size: int | None, tiny_checkpoint: Callable[..., Path]
) -> None:
    requests: list[Request] = [Choose(prompt=text, options=(" A", " B")) for text in TEXTS]
    requests += [Choose(prompt=text, options=("a", " twelve", " a long way to go", "")[:3]) for text in TEXTS]
    requests += [Choose(prompt=chat(TEXTS[1]), options=("A", "B"), cut=LeftCut(over=20, keep=17))]
    compare(tiny_checkpoint(kind), requests, batch_size=batch_size)


@pytest.mark.parametrize("kind", KINDS)
def test_long_prompts_beside_short_ones(
    kind: str, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long own part is a prefix of its own; the slab then holds new tokens only."""
    monkeypatch.setattr("qwen_eval.models.transformers.engine.LONG", {"cpu": 12, "cuda": 12})
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=20 + at) for at, text in enumerate(TEXTS)]
    requests += [Generate(prompt=f"{text} And he pays 12 dollars for 3 pens too.", max_new_tokens=9) for text in TEXTS]
    compare(tiny_checkpoint(kind), requests, batch_size=3)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_every_kind_of_model_it_says_it_knows(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """Sliding windows, experts, partial or interleaved rotation: what a kind does must survive packing."""
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=40) for text in TEXTS]
    requests += [Choose(prompt=text, options=("a", " twelve")) for text in TEXTS]
    requests += [Perplexity(text=" ".join(TEXTS), block=90)]
    compare(tiny_checkpoint(kind), requests, batch_size=3)


def test_everything_at_once(tiny_checkpoint: Callable[..., Path]) -> None:
    requests: list[Request] = [
        Perplexity(text=" ".join(TEXTS), block=40),
        Generate(prompt=TEXTS[0], max_new_tokens=9),
        Choose(prompt=TEXTS[1], options=("a", "b")),
        Generate(prompt="x " * 5000, max_new_tokens=9),
        Choose(prompt="x " * 5000, options=("a", "b")),
        Perplexity(text=TEXTS[0], block=5000),
    ]
    compare(tiny_checkpoint("qwen2"), requests, batch_size=4)


words = st.sampled_from(["Ann ", "has ", "3 ", "apples ", SHOTS, DEEPER])
prompts = st.lists(st.lists(words, min_size=1, max_size=4).map("".join), min_size=1, max_size=7)


@settings(max_examples=18, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts, st.integers(1, 4), st.randoms(use_true_random=False), st.sampled_from(KINDS))
def test_no_order_batch_or_sharing_changes_an_answer(
    tiny_checkpoint: Callable[..., Path], texts: list[str], batch_size: int, draw: object, kind: str
) -> None:
    requests: list[Request] = [
        request
        for at, text in enumerate(texts)
        for request in (
            Generate(prompt=text, max_new_tokens=1 + 7 * (at % 3)),
            Choose(prompt=text, options=("a", " has")),
        )
    ]
    draw.shuffle(requests)  # type: ignore[attr-defined]
    compare(tiny_checkpoint(kind), requests, batch_size=batch_size)


def test_requests_that_come_while_others_run_join_them(tiny_checkpoint: Callable[..., Path]) -> None:
    """The next turns of a dialogue: submitted when the first answers are there."""
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, batch_size=2)
    first: list[Request] = [Generate(prompt=text, max_new_tokens=4 + 9 * at) for at, text in enumerate(TEXTS)]
    for ticket, request in enumerate(first):
        model.submit(ticket, request)
    answers: dict[int, Answer | Failed] = {}
    follow: dict[int, Request] = {}
    while arrived := model.collect():
        for ticket, answer in arrived:
            answers[ticket] = answer
            if ticket < 100 and isinstance(answer, Generated):
                follow[ticket + 100] = Generate(prompt=TEXTS[ticket] + answer.text, max_new_tokens=6)
                model.submit(ticket + 100, follow[ticket + 100])
    expected = answers_of(
        ReferenceModel(Checkpoint("tiny", folder), device="cpu", batch_size=1), [*first, *follow.values()]
    )
    assert [answers[ticket] for ticket in (*range(len(first)), *follow)] == expected


def test_a_shared_prefix_is_computed_once(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    model = packed(folder)
    requests: list[Request] = [Choose(prompt=f"{DEEPER}{letter}", options=("a", "b")) for letter in "PQRSTUVW"]
    lengths = [len(model.prompt_tokens(request)) for request in requests]
    shared = len(model.prompt_tokens(Choose(prompt=DEEPER, options=("a",))))
    answers_of(model, requests)
    counters = model.counters()
    assert counters["prompt_tokens"] == sum(lengths)
    assert counters["computed_tokens"] == shared + sum(length - shared for length in lengths)


def test_no_row_is_computed_after_its_end(tiny_checkpoint: Callable[..., Path]) -> None:
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=3 + 11 * (at % 4)) for at, text in enumerate(TEXTS)]
    counters = compare(tiny_checkpoint("llama"), requests, batch_size=3)
    # The first token of a row comes with its prompt; every slot after it makes one more.
    assert counters["decode_slots"] == int(counters["new_tokens"]) - len(requests)


def test_kinds_of_models_it_is_not_known_to_be_right_for_are_refused() -> None:
    import transformers

    assert supports("qwen2", transformers.Qwen2Config())
    assert supports("qwen2_moe", transformers.Qwen2MoeConfig())
    assert not supports("qwen2_moe", transformers.Qwen2MoeConfig(use_sliding_window=True))
    assert not supports("gpt2", transformers.GPT2Config())
    assert not supports("gemma2", transformers.Gemma2Config())
    # One length decides the frequencies of all that is computed together.
    assert not supports("qwen2", transformers.Qwen2Config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))


def test_what_the_engine_does_not_know_is_answered_by_the_reference_with_one_line(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint("tiny", tiny_checkpoint("qwen2"))
    said: list[str] = []
    assert open_model(checkpoint, device="cpu", say=said.append).identity.engine == "packed"
    assert open_model(checkpoint, engine="reference", device="cpu", say=said.append).identity.engine == "reference"
    assert not said
    monkeypatch.setattr("qwen_eval.models.transformers.engine.supports", lambda kind, config: False)
    assert open_model(checkpoint, device="cpu", say=said.append).identity.engine == "reference"
    assert len(said) == 1
    assert "kind qwen2" in said[0]
