"""Several answers to one prompt, each drawn by its own seed: the prompt is computed once, whatever runs beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engines import DEEPER, SHOTS, agree, answers_of, expected, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.task import Generate, Generated, Request, Sampling

PROMPT = DEEPER + "A train leaves at 9."


def samples(count: int, prompt: str = PROMPT, *, tokens: int = 12, top_p: float = 0.95) -> list[Request]:
    return [
        Generate(
            prompt=prompt,
            max_new_tokens=tokens + 3 * (seed % 3),
            stops=("e",) if seed % 2 else (),
            sampling=Sampling(temperature=0.7, top_p=top_p, top_k=0 if seed % 5 else 20, seed=seed),
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("batch_size", [1, 3, 7, None])
def test_the_prompt_of_several_samples_is_computed_once(
    kind: str, batch_size: int | None, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Also where fewer rows run than there are samples."""
    folder = tiny_checkpoint(kind)
    requests = samples(9)
    model = packed(folder, batch_size=batch_size)
    agree(answers_of(model, requests), expected(folder, requests))
    counters = model.counters()
    prompt = len(model.prompt_tokens(requests[0]))
    assert counters["computed_tokens"] == prompt + int(counters["decode_slots"])
    assert counters["batches"] == 1
    assert counters["prompt_tokens"] == 9 * prompt


def test_samples_that_memory_keeps_apart_still_share_their_prompt(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests = samples(9)
    model = packed(folder)
    model._weights()
    model._row_tokens = 3 * (len(model.prompt_tokens(requests[0])) + 20)
    agree(answers_of(model, requests), expected(folder, requests))
    counters = model.counters()
    assert counters["computed_tokens"] == len(model.prompt_tokens(requests[0])) + int(counters["decode_slots"])


def test_a_sample_asked_alone_is_the_same(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests = samples(6)
    together = answers_of(packed(folder), requests)
    assert together == [answers_of(packed(folder), [request])[0] for request in requests]
    assert len({answer.text for answer in together if isinstance(answer, Generated)}) > 3


def test_the_same_seed_draws_the_same_answer(tiny_checkpoint: Callable[..., Path]) -> None:
    one, *others = answers_of(packed(tiny_checkpoint("qwen2")), [samples(3)[2]] * 4)
    assert all(other == one for other in others)


@settings(max_examples=18, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from([PROMPT, DEEPER, SHOTS, "x", SHOTS + "x"]), st.integers(0, 3)), min_size=1, max_size=9
    ),
    st.integers(1, 5),
    st.booleans(),
)
def test_samples_of_many_prompts_beside_greedy_answers(
    tiny_checkpoint: Callable[..., Path], asked: list[tuple[str, int]], batch_size: int, late: bool
) -> None:
    """A seed of 0 stands for the greedy answer; `late` ones come when the first are there."""
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [
        samples(4, text, tokens=5)[seed] if seed else Generate(prompt=text, max_new_tokens=6) for text, seed in asked
    ]
    model = packed(folder, batch_size=batch_size)
    if late:
        half = len(requests) // 2
        answers = answers_of(model, requests[:half]) + answers_of(model, requests[half:])
    else:
        answers = answers_of(model, requests)
    agree(answers, expected(folder, requests))


def test_a_prompt_asked_again_later_is_not_computed_again(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    model = packed(folder)
    requests = samples(4)
    answers_of(model, requests[:2])
    before = model.counters()
    agree(answers_of(model, requests[2:]), expected(folder, requests[2:]))
    after = model.counters()
    assert int(after["computed_tokens"]) - int(before["computed_tokens"]) == int(after["decode_slots"]) - int(
        before["decode_slots"]
    )
