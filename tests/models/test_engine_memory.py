"""Memory runs out, anywhere: what was computed together is computed in smaller portions, and the answers are the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from engines import DEEPER, OUT, SHOTS, TEXTS, agree, answers_of, collected, expected, new_tokens, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.packed import Prefix, Prompts, Slab, Step
from qwen_eval.models.transformers.prefixes import PrefixTree
from qwen_eval.task import Answer, Choose, Failed, Generate, Generated, Perplexity, Request, Sampling

MIXED: list[Request] = [
    *(Generate(prompt=text, max_new_tokens=4 + 7 * (at % 3)) for at, text in enumerate(TEXTS)),
    *(
        Generate(prompt=TEXTS[1], max_new_tokens=9, sampling=Sampling(temperature=0.8, top_p=0.9, seed=seed))
        for seed in range(4)
    ),
    *(Choose(prompt=text, options=(" A", " B")) for text in TEXTS[:4]),
    *(Choose(prompt=text, options=("a", " a long way to go")) for text in TEXTS[1:3]),
    Perplexity(text=" ".join(TEXTS), block=70),
]
GENERATED = [request for request in MIXED if isinstance(request, Generate)]


def alone(model: PackedModel, asked: Prompts | Step, ids: Sequence[int]) -> bool:
    """Whether a pass over prompts or a step is for one request: where memory runs out for it, that one fails."""
    if isinstance(asked, Step):
        return len(ids) == 1
    return model._tried == 1 and not model._running


@contextmanager
def raising(
    when: Callable[[PackedModel, Prompts | Step, Sequence[int]], str],
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory."),
    *,
    texts: Callable[[PackedModel], str] | None = None,
) -> Iterator[None]:
    """Passes raise "before" or "after" they really compute, where `when` says so; `texts` for those of perplexity."""
    real, real_nll = PackedModel._forward_packed, PackedModel._block_nll
    measuring = False

    def forward(self: PackedModel, asked: Any, *, ids: Sequence[int], **more: Any) -> torch.Tensor:
        found = texts(self) if measuring and texts else when(self, asked, ids)
        if found == "before":
            raise error()
        logits = real(self, asked, ids=ids, **more)
        if found == "after":
            raise error()
        return logits

    def block_nll(self: PackedModel, block: list[int]) -> float:
        nonlocal measuring
        measuring = True
        try:
            return real_nll(self, block)
        finally:
            measuring = False

    with patch.object(PackedModel, "_forward_packed", forward), patch.object(PackedModel, "_block_nll", block_nll):
        yield


def consistent(model: PackedModel, answers: Sequence[Answer | Failed], raised: int) -> None:
    """Nothing is held any more, and every token was counted once, however often it was computed."""
    counters = model.counters()
    assert counters["out_of_memory"] == raised
    assert counters["new_tokens"] == new_tokens(answers)
    assert int(counters["decode_slots"]) - int(counters["wasted_slots"]) == counters["decoded_tokens"]
    assert not model._running
    assert all(node.users == 0 and node.keys for node in model._tree._nodes())


# ---------------------------------------------------------------------------------------------- somewhere, sometimes


moments = st.lists(st.sampled_from(["", "", "before", "after"]), min_size=1, max_size=40)
FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(plan=moments, batch_size=st.sampled_from([None, 2, 5]), picked=st.sets(st.integers(0, len(MIXED) - 1)))
def test_nothing_is_lost_and_nothing_changes_when_memory_runs_out(
    kind: str, tiny_checkpoint: Callable[..., Path], plan: list[str], batch_size: int | None, picked: set[int]
) -> None:
    """At any pass that is not as small as it can be."""
    folder = tiny_checkpoint(kind)
    requests = [MIXED[at] for at in sorted(picked)]
    left, raised = iter(plan), 0

    def when(model: PackedModel, asked: Prompts | Step, ids: Sequence[int]) -> str:
        nonlocal raised
        found = next(left, "")
        if alone(model, asked, ids):
            return ""
        raised += bool(found)
        return found

    def texts(model: PackedModel) -> str:
        nonlocal raised
        found = next(left, "") if model._chunk > 1 else ""
        raised += bool(found)
        return found

    model = packed(folder, batch_size=batch_size)
    with raising(when, texts=texts):
        answers = answers_of(model, requests)
    agree(answers, expected(folder, requests))
    consistent(model, answers, raised)


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(moments, st.sampled_from([None, 1, 3]))
def test_a_request_fails_only_when_memory_ran_out_for_it_alone(
    tiny_checkpoint: Callable[..., Path], plan: list[str], batch_size: int | None
) -> None:
    folder = tiny_checkpoint("qwen2")
    left, failing, raised = iter(plan), 0, 0

    def when(model: PackedModel, asked: Prompts | Step, ids: Sequence[int]) -> str:
        nonlocal failing, raised
        found = next(left, "")
        raised += bool(found)
        failing += bool(found) and alone(model, asked, ids)
        return found

    model = packed(folder, batch_size=batch_size)
    with raising(when, texts=lambda model: ""):
        answers = answers_of(model, MIXED)
    wanted = expected(folder, MIXED)
    agree(answers, [OUT if answer == OUT else other for answer, other in zip(answers, wanted, strict=True)])
    assert answers.count(OUT) == failing
    assert model.counters()["out_of_memory"] == raised


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 1), st.sampled_from([None, 3]))
def test_a_pass_that_ends_in_a_middle_layer_leaves_nothing_half_written(
    tiny_checkpoint: Callable[..., Path], calls: list[int], layer: int, batch_size: int | None
) -> None:
    """Slab and prefixes then hold the keys of some layers and not of others."""
    folder = tiny_checkpoint("qwen2")
    count = raised = 0

    def torn(real: Any) -> Any:
        def attend(self: Any, at: int, *args: Any) -> torch.Tensor:
            nonlocal count, raised
            found: torch.Tensor = real(self, at, *args)
            if at == layer:
                count += 1
                rows = len(self.lengths) if isinstance(self, Step) else sum(p.row is not None for p in self.pieces)
                if count in calls and rows > 1:
                    raised += 1
                    raise torch.OutOfMemoryError("in the middle")
            return found

        return attend

    model = packed(folder, batch_size=batch_size)
    with patch.object(Step, "attend", torn(Step.attend)), patch.object(Prompts, "attend", torn(Prompts.attend)):
        answers = answers_of(model, MIXED)
    agree(answers, expected(folder, MIXED))
    consistent(model, answers, raised)


@pytest.mark.parametrize("failing", [1, 3, 7, 8, 9, 13, 16, 17, 25])
@pytest.mark.parametrize("later", [Generate, Choose])
def test_memory_that_runs_out_while_a_prefix_is_cut_loses_nothing(
    later: type[Request], failing: int, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Two parts of one are copies of it, which need memory too: at the first prompt or a later one, at any layer.

    And all the time, a row attends to the prefix that is cut.
    """
    folder = tiny_checkpoint("qwen2")
    first: list[Request] = [
        Generate(prompt=f"{DEEPER}P", max_new_tokens=3),
        Generate(prompt=f"{DEEPER}Q", max_new_tokens=30),
    ]
    texts = [f"{DEEPER[:at]}?" for at in (60, 80, 100, 120, 140, 180)]
    requests = [
        *first,
        *(
            Generate(prompt=text, max_new_tokens=9) if later is Generate else Choose(prompt=text, options=("a", "b"))
            for text in texts
        ),
    ]
    model = packed(folder)
    for ticket, request in enumerate(first):
        model.submit(ticket, request)
    answers = dict(model.collect())
    assert list(answers) == [0]
    find, clone = PrefixTree.find, torch.Tensor.clone
    finding = False
    calls = 0

    def searched(self: PrefixTree, tokens: Sequence[int], stretch: float) -> Prefix:
        nonlocal finding
        finding = True
        try:
            return find(self, tokens, stretch)
        finally:
            finding = False

    def copied(self: torch.Tensor, **more: Any) -> torch.Tensor:
        nonlocal calls
        calls += finding
        if finding and calls == failing:
            raise torch.OutOfMemoryError("no memory for a copy")
        return clone(self, **more)

    for ticket, request in enumerate(requests[2:], start=2):
        model.submit(ticket, request)
    with patch.object(PrefixTree, "find", searched), patch.object(torch.Tensor, "clone", copied):
        answers |= collected(model)
    assert sorted(answers) == list(range(len(requests)))
    agree([answers[at] for at in range(len(requests))], expected(folder, requests))
    assert calls >= failing


def test_a_row_that_waits_again_goes_on_where_it_was(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [Generate(prompt=f"{DEEPER}{letter}", max_new_tokens=30) for letter in "PQRSTUVW"]
    steps = 0
    joined: list[list[int]] = []
    real = PackedModel._join

    def join(model: PackedModel) -> Any:
        found = real(model)
        joined.append(sorted(len(each.row.new) for each in found))
        return found

    def when(model: PackedModel, asked: Prompts | Step, ids: Sequence[int]) -> str:
        nonlocal steps
        steps += isinstance(asked, Step)
        return "before" if isinstance(asked, Step) and steps in (11, 12) else ""

    model = packed(folder)
    with raising(when), patch.object(PackedModel, "_join", join):
        answers = answers_of(model, requests)
    agree(answers, expected(folder, requests))
    # Eight rows made one token with their prompts and ten in steps, then six had to wait with eleven each: their next
    # token comes with these.
    assert joined[0] == [1] * 8
    assert sorted(length for some in joined[1:] for length in some) == [12] * 6
    consistent(model, answers, 2)
    assert model.counters()["wasted_slots"] == 8 + 4
    assert model.counters()["prompt_tokens"] == sum(len(model.prompt_tokens(request)) for request in requests)


# ------------------------------------------------------------------------------------------------------------- always


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: 9"),
    lambda: MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(("batch_size", "phase"), [(None, "before"), (3, "after")])
def test_without_any_memory_every_request_fails_and_the_run_ends(
    error: Callable[[], Exception], batch_size: int | None, phase: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    requests = [*MIXED, Perplexity(text=TEXTS[1], block=20), Perplexity(text=TEXTS[1], block=30)]
    model = packed(tiny_checkpoint("qwen2"), batch_size=batch_size)
    with raising(lambda *args: phase, error):
        assert answers_of(model, requests) == [OUT] * len(requests)
    assert model.collect() == []


def test_without_memory_for_a_step_every_row_fails_after_its_first_token(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [*GENERATED, Generate(prompt=SHOTS, max_new_tokens=1)]
    model = packed(folder)
    with raising(lambda model, asked, ids: "before" if isinstance(asked, Step) else ""):
        answers = answers_of(model, requests)
    assert answers[:-1] == [OUT] * len(GENERATED)
    agree(answers[-1:], expected(folder, requests[-1:]))


def test_what_fails_leaves_the_next_requests_a_working_engine(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    model = packed(folder)
    with raising(lambda *args: "before"):
        answers_of(model, MIXED)
    agree(answers_of(model, MIXED), expected(folder, MIXED))


@pytest.mark.parametrize("request_", [GENERATED[0], MIXED[-1], Choose(prompt="x", options=("a", "b"))])
@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), KeyboardInterrupt(), ValueError("no")])
def test_any_other_error_is_not_taken_for_a_lack_of_memory(
    request_: Request, error: BaseException, tiny_checkpoint: Callable[..., Path]
) -> None:
    model = packed(tiny_checkpoint("qwen2"))
    model.submit(0, request_)
    with patch.object(PackedModel, "_forward_packed", side_effect=error), pytest.raises(type(error)) as found:
        model.collect()
    assert found.value is error


@pytest.mark.parametrize("kind", [Generate, Choose])
@pytest.mark.parametrize("layer", [0, 1])
def test_after_an_interruption_the_same_model_goes_on(
    kind: type[Request], layer: int, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Control-C in the middle of a pass over prompts: those who were to join wait again."""
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, batch_size=2)
    requests = [request for request in MIXED if isinstance(request, kind)]
    for ticket, request in enumerate(requests):
        model.submit(ticket, request)
    answers: dict[int, Answer | Failed] = {}
    real = Prompts.attend
    passes = interrupted = 0

    def attend(self: Prompts, at: int, *args: Any) -> torch.Tensor:
        nonlocal passes
        found = real(self, at, *args)
        passes += at == layer
        if at == layer and passes in (1, 2, 4):
            raise KeyboardInterrupt
        return found

    with patch.object(Prompts, "attend", attend):
        while True:
            try:
                found = dict(model.collect())
            except KeyboardInterrupt:
                interrupted += 1
            else:
                answers |= found
                if not found:
                    break
    assert interrupted == 3
    agree([answers[at] for at in range(len(requests))], expected(folder, requests))


# --------------------------------------------------------------------------------------------- what fits is answered


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_request_that_does_not_fit_does_not_fail_another_with_the_same_prompt(
    batch_size: int | None, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint("qwen2")
    long = " a long way to go" * 40
    requests: list[Request] = [
        Choose(prompt=DEEPER, options=("a", long)),
        Choose(prompt=DEEPER, options=("a", "b")),
        Choose(prompt=SHOTS, options=("a", "b")),
    ]
    limit = len(packed(folder).prompt_tokens(requests[1])) + 20
    with raising(lambda model, asked, ids: "before" if len(ids) > limit else ""):
        answers = answers_of(packed(folder, batch_size=batch_size), requests)
    assert answers[0] == OUT
    agree(answers[1:], expected(folder, requests[1:]))


@contextmanager
def room_for(numbers: int) -> Iterator[None]:
    """Zeros for the slab can be had up to so many numbers in one tensor, as on a device that has no more."""
    real = torch.Tensor.new_zeros

    def limited(self: torch.Tensor, *shape: Any, **more: Any) -> torch.Tensor:
        if prod(shape[0] if isinstance(shape[0], tuple) else shape) > numbers:
            raise torch.OutOfMemoryError("no memory left")
        return real(self, *shape, **more)

    with patch.object(torch.Tensor, "new_zeros", limited):
        yield


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_fewer_rows_run_where_the_slab_has_no_room_for_more(rows: int, tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [
        Generate(prompt=f"{text}{letter}", max_new_tokens=12) for text in TEXTS[:5] for letter in "PQ"
    ]
    with room_for(rows * 2 * Slab.STEP * 8):
        answers = answers_of(packed(folder), requests)
    agree(answers, expected(folder, requests))


LONG_BETWEEN: list[Request] = [
    Generate(prompt="Alone at first", max_new_tokens=12),
    Generate(prompt="Ann has" + " 5 pens" * 30, max_new_tokens=12),
    Generate(prompt="Nine boxes", max_new_tokens=12),
    Generate(prompt="x", max_new_tokens=12),
]


def test_a_long_row_that_has_room_alone_runs_alone(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    with room_for(3 * 2 * Slab.STEP * 8):
        answers = answers_of(packed(folder), LONG_BETWEEN)
    agree(answers, expected(folder, LONG_BETWEEN))


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_row_too_long_for_the_slab_fails_alone(batch_size: int | None, tiny_checkpoint: Callable[..., Path]) -> None:
    """Those before it were answered, and those after it are."""
    folder = tiny_checkpoint("qwen2")
    with room_for(2 * Slab.STEP * 8):
        answers = answers_of(packed(folder, batch_size=batch_size), LONG_BETWEEN)
    wanted = expected(folder, LONG_BETWEEN)
    agree(answers, [wanted[0], OUT, *wanted[2:]])


def test_giving_memory_back_needs_none(tiny_checkpoint: Callable[..., Path]) -> None:
    """When memory has run out, a copy of half the slab may not fit either."""
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [Generate(prompt=f"{DEEPER}{letter}", max_new_tokens=20) for letter in "PQRSTUVW"]
    steps = 0
    real = torch.Tensor.clone
    tight = False

    def when(model: PackedModel, asked: Prompts | Step, ids: Sequence[int]) -> str:
        nonlocal steps, tight
        steps += isinstance(asked, Step)
        tight = steps == 6
        return "before" if tight else ""

    def clone(self: torch.Tensor, **more: Any) -> torch.Tensor:
        # Prefixes that wait for their rows take little; a slab does not.
        if tight and self.dim() == 4:
            raise torch.OutOfMemoryError("not even that")
        return real(self, **more)

    with raising(when), patch.object(torch.Tensor, "clone", clone):
        answers = answers_of(packed(folder), requests)
    agree(answers, expected(folder, requests))


def test_weights_that_do_not_fit_are_an_error_not_another_model(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving them to the device is where memory runs out first: the model is loaded, and not yet the engine's."""
    import transformers

    model = packed(tiny_checkpoint("qwen2"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "to", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("weights"))
    )
    try:
        answers = answers_of(model, [GENERATED[0], Choose(prompt=DEEPER, options=("a", "b"))])
    except Exception:
        return
    assert all(isinstance(answer, Failed) for answer in answers)


@pytest.mark.parametrize("greedy", [True, False])
def test_memory_that_runs_out_while_a_token_is_chosen_changes_nothing(
    greedy: bool, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Sorting a vocabulary needs memory too."""
    from qwen_eval.models.transformers import sampling

    folder = tiny_checkpoint("qwen2")
    requests = [request for request in GENERATED if (request.sampling is None) == greedy]
    real = sampling.next_tokens
    calls = 0

    def next_tokens(logits: torch.Tensor, *more: Any) -> list[int]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and len(logits) > 1:
            raise torch.OutOfMemoryError("while sorting")
        return real(logits, *more)

    model = packed(folder)
    with patch.object(sampling, "next_tokens", next_tokens):
        answers = answers_of(model, requests)
    agree(answers, expected(folder, requests))
    assert model.counters()["out_of_memory"] != 0
    assert all(isinstance(answer, Generated) for answer in answers)
