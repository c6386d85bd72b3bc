"""The engine where its sizes are others: on a GPU, with little memory, with long texts. The answers stay the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import DEEPER, SHOTS, TEXTS, agree, answers_of, counted, expected, packed

from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.packed import Step
from qwen_eval.prompts import chat
from qwen_eval.task import Choose, Generate, LeftCut, Perplexity, Request

KINDS = ["qwen2", "gemma3_text", "mistral", "qwen3_moe"]
MIXED: list[Request] = [
    *(Generate(prompt=text, max_new_tokens=8 + 9 * (at % 3)) for at, text in enumerate(TEXTS)),
    *(Generate(prompt=chat(text), max_new_tokens=12, stops=("e", "th")) for text in TEXTS[:2]),
    *(Choose(prompt=text, options=(" A", " B")) for text in TEXTS),
    *(Choose(prompt=text, options=("a", " twelve", " a long way to go")) for text in TEXTS[1:5]),
    Choose(prompt=chat(DEEPER), options=("A", "B"), cut=LeftCut(over=20, keep=17)),
    Perplexity(text=" ".join(TEXTS), block=90),
]
HUGE = 1 << 20


PLACES = {"BLOCK": "packed", "LONGEST_PIECE": "packing", "LONG": "engine", "PASS_TOKENS": "engine"}


def pieced(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Set sizes that the engine works with; a number stands for every kind of device."""
    for name, size in sizes.items():
        value = size if name == "LONGEST_PIECE" else {"cpu": size, "cuda": size}
        monkeypatch.setattr(f"qwen_eval.models.transformers.{PLACES[name]}.{name}", value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"BLOCK": 64},
        {"BLOCK": 512},
        {"BLOCK": 512, "PASS_TOKENS": HUGE, "LONG": 2048},
        {"LONGEST_PIECE": 8},
        {"LONGEST_PIECE": 8, "BLOCK": 64, "LONG": 12},
        {"PASS_TOKENS": 1},
        {"PASS_TOKENS": 1, "LONG": 1},
    ],
    ids=lambda sizes: "-".join(f"{name}={size}" for name, size in sizes.items()),
)
def test_no_size_of_a_pass_changes_an_answer(
    kind: str, sizes: dict[str, int], tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(kind)
    pieced(monkeypatch, **sizes)
    agree(answers_of(packed(folder), MIXED), expected(folder, MIXED))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, 20, 70])
def test_prefixes_that_are_let_go_are_computed_again(
    kind: str, kept: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(kind)
    pieced(monkeypatch, PASS_TOKENS=1)
    model = packed(folder, batch_size=2)
    model._weights()
    model._tree.most = kept
    agree(answers_of(model, MIXED), expected(folder, MIXED))


def test_what_a_prefix_of_more_tokens_than_are_kept_costs(tiny_checkpoint: Callable[..., Path]) -> None:
    """With nothing kept, a pass shares within itself; the next pass begins anew."""
    requests: list[Request] = [Choose(prompt=f"{DEEPER}{letter}", options=("a", "b")) for letter in "PQRSTUVW"]
    spent = []
    for kept in (0, HUGE):
        model = packed(tiny_checkpoint("qwen2"), batch_size=2)
        model._weights()
        model._tree.most = kept
        answers_of(model, requests)
        spent.append(int(model.counters()["computed_tokens"]))
    shared = len(model.prompt_tokens(Choose(prompt=DEEPER, options=("a",))))
    assert spent == [4 * shared + 8, shared + 8]


# --------------------------------------------------------------------------------------------------- rows and memory


class Watched:
    """Sees what a model holds for its rows at every step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.needed: list[int] = []
        self.held: list[int] = []
        real = PackedModel._step

        def step(model: PackedModel) -> Any:
            running = model._running
            self.rows.append(len(running))
            # A row's own tokens when it reaches its limit; all rows have the room of the longest.
            self.needed.append(len(running) * max(each.most for each in running))
            found = real(model)
            # Prefixes that are in no tree are a row's own, or are there for the samples of one prompt.
            own = {id(each.prefix): each.prefix for each in running if each.prefix not in model._tree._nodes()}
            slab = model._slab.keys[0]
            self.held.append(slab.shape[0] * slab.shape[2] + sum(len(p.tokens) for p in own.values()))
            return found

        monkeypatch.setattr(PackedModel, "_step", step)


def generated(model: PackedModel, requests: Sequence[Request], row_tokens: int, folder: Path) -> None:
    model._weights()
    model._row_tokens = row_tokens
    agree(answers_of(model, requests), expected(folder, requests))


@pytest.mark.parametrize("fitting", [0, 1, 2, 5, 9])
def test_as_many_rows_run_as_have_room_should_all_reach_their_limits(
    fitting: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("qwen2")
    # One token of its own, and twenty that are generated: room for 21.
    requests: list[Request] = [Generate(prompt=f"{DEEPER}{letter}", max_new_tokens=20) for letter in "PQRSTUVW"]
    watched = Watched(monkeypatch)
    generated(packed(folder), requests, 21 * fitting + 20, folder)
    assert max(watched.rows) == min(max(1, fitting), len(requests))


@pytest.mark.parametrize("row_tokens", [1, 100, 250, 1000, HUGE])
def test_rows_of_all_lengths_stay_within_the_room_there_is(
    row_tokens: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [
        Generate(prompt=f"{text}{letter}", max_new_tokens=10 + 15 * (at % 3))
        for at, text in enumerate(TEXTS)
        for letter in "PQ"
    ]
    watched = Watched(monkeypatch)
    generated(packed(folder), requests, row_tokens, folder)
    assert all(rows == 1 or needed <= row_tokens for rows, needed in zip(watched.rows, watched.needed, strict=True))


def test_rows_with_long_prompts_of_their_own_count_with_all_they_hold(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long own part is a prefix of its own: memory of the row, though it is not in the slab."""
    folder = tiny_checkpoint("qwen2")
    pieced(monkeypatch, LONG=50)
    monkeypatch.setattr("qwen_eval.models.transformers.packed.Slab.STEP", 1)
    requests: list[Request] = [
        *(Generate(prompt=f"A{at}{at * 7}" + " 5 pens" * 60, max_new_tokens=12) for at in range(4)),
        *(Generate(prompt=f"B{at}", max_new_tokens=12) for at in range(20)),
    ]
    watched = Watched(monkeypatch)
    row_tokens = 4 * (12 + max(len(packed(folder).prompt_tokens(request)) for request in requests))
    generated(packed(folder), requests, row_tokens, folder)
    assert max(watched.held) <= row_tokens


@pytest.mark.parametrize(("long", "tokens"), [(4, 120), (1, 60)], ids=["alone", "beside short ones"])
def test_many_short_rows_after_few_long_ones_do_not_get_the_room_of_long_ones(
    long: int, tokens: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("qwen2")
    monkeypatch.setattr("qwen_eval.models.transformers.packed.Slab.STEP", 1)
    requests: list[Request] = [
        *(Generate(prompt=f"A{at}", max_new_tokens=tokens) for at in range(long)),
        *(Generate(prompt=f"B{at}", max_new_tokens=6 + at % 5) for at in range(40)),
    ]
    watched = Watched(monkeypatch)
    generated(packed(folder), requests, 250, folder)
    assert max(watched.held) <= 250


def test_more_rows_run_only_where_they_are_wanted(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user says wins: never more rows than that."""
    watched = Watched(monkeypatch)
    requests: list[Request] = [Generate(prompt=f"{SHOTS}{at}", max_new_tokens=6) for at in range(9)]
    folder = tiny_checkpoint("qwen2")
    agree(answers_of(packed(folder, batch_size=4), requests), expected(folder, requests))
    assert max(watched.rows) == 4


# ------------------------------------------------------------------------------------------------- what is computed


def test_subjects_whose_prompts_begin_with_the_same_few_words_are_each_computed_once(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    """ "The following are multiple choice questions about …": too little to share, and in no subject's way."""
    model = packed(tiny_checkpoint("qwen2"), batch_size=1)
    shots = [f"About {subject}: " + f"{subject} has 3 apples. " * 9 for subject in ("law", "art", "zoo")]
    requests: list[Request] = [
        Choose(prompt=f"{text}{letter}", options=("a", "b")) for text in shots for letter in "PQRSTUVW"
    ]
    answers_of(model, requests)
    shared = sum(len(model.prompt_tokens(Choose(prompt=text, options=("a",)))) for text in shots)
    assert model.counters()["computed_tokens"] <= shared + 2 * len(requests)


def test_a_prefix_that_rows_attend_to_through_their_own_parts_is_not_let_go(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept beyond use; but this is in use, so computing it again would only hold it twice."""
    pieced(monkeypatch, LONG=12)
    model = packed(tiny_checkpoint("qwen2"), batch_size=2)
    model._weights()
    model._tree.most = 0
    # Neither has the same limit, so that one of two rows always runs.
    requests: list[Request] = [
        Generate(prompt=f"{DEEPER}{letter} and so he pays 12 dollars for 3 pens", max_new_tokens=5 + 4 * at)
        for at, letter in enumerate("PQRSTU")
    ]
    answers = answers_of(model, requests)
    assert all(answer is not None for answer in answers)
    lengths = [len(model.prompt_tokens(request)) for request in requests]
    shared = len(model.prompt_tokens(Choose(prompt=DEEPER, options=("a",))))
    counters = model.counters()
    own = int(counters["computed_tokens"]) - int(counters["decode_slots"])
    assert own == shared + sum(length - shared for length in lengths)


def test_every_token_of_a_step_is_counted(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[bool, int]] = []
    reported: list[int] = []
    real = PackedModel._forward_packed

    def forward(model: PackedModel, asked: Any, *, ids: Any, **more: Any) -> Any:
        passes.append((isinstance(asked, Step), len(ids)))
        return real(model, asked, ids=ids, **more)

    monkeypatch.setattr(PackedModel, "_forward_packed", forward)
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, batch_size=3)
    model.on_progress(reported.append)
    answers = answers_of(model, MIXED)
    counters = counted(model)
    steps = [count for step, count in passes if step]
    made = sum(getattr(answer, "new_tokens", 0) for answer in answers)
    asked = sum(getattr(answer, "prompt_tokens", 0) for answer in answers) + 90 * len(getattr(answers[-1], "nll", ()))
    assert counters == {
        "prompt_tokens": asked,
        "computed_tokens": sum(count for _, count in passes),
        "new_tokens": made,
        # The first token of each answer comes with its prompt.
        "decode_slots": made - sum(isinstance(request, Generate) for request in MIXED),
        "decoded_tokens": sum(steps),
        "batches": len(passes) - len(steps),
        "out_of_memory": 0,
        "wasted_slots": 0,
        "batch_size": 3,
    }
    assert sum(reported) == counters["computed_tokens"]
    assert counters["decode_slots"] == sum(steps)
