"""Attention over prefixes and own tokens: against one query at a time over all that it may see, in float64."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers import packed
from qwen_eval.models.transformers.packed import Piece, Prefix, Prompts, Slab, Step

LAYER, SIZE = 3, 4


@dataclass(frozen=True)
class Shape:
    """How many heads ask, and how many have keys; the window, the seed of all numbers."""

    heads: int
    shared: int
    window: int | None
    seed: int

    def numbers(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


shapes = st.builds(
    lambda shared, times, window, seed: Shape(shared * times, shared, window, seed),
    st.integers(1, 3),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(0, 999),
)


def naive(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None
) -> torch.Tensor:
    """What one query at the end of its keys reads: query [heads, size], keys and values [shared heads, tokens, size]."""
    query, keys, values = query.double(), keys.double(), values.double()
    count = keys.shape[1]
    times = query.shape[0] // keys.shape[0]
    out = torch.zeros_like(query)
    for head in range(query.shape[0]):
        seen = [at for at in range(count) if window is None or at > count - 1 - window]
        scores = torch.stack([scaling * torch.dot(query[head], keys[head // times, at]) for at in seen])
        out[head] = scores.softmax(0) @ values[head // times, seen]
    return out


def all_of(node: Prefix) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys and values of a prefix and all before it."""
    chain: list[Prefix] = []
    at: Prefix | None = node
    while at is not None:
        if at.tokens:
            chain.insert(0, at)
        at = at.parent
    if not chain:
        return None
    return torch.cat([part.keys[LAYER] for part in chain], 1), torch.cat([part.values[LAYER] for part in chain], 1)


def joined(node: Prefix, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = all_of(node)
    return (key, value) if before is None else (torch.cat([before[0], key], 1), torch.cat([before[1], value], 1))


def prefix_of(parent: Prefix | None, count: int, shape: Shape, numbers: torch.Generator, dtype: torch.dtype) -> Prefix:
    node = Prefix(parent, list(range(count)))
    if count:
        node.keys[LAYER] = torch.randn(shape.shared, count, SIZE, generator=numbers).to(dtype)
        node.values[LAYER] = torch.randn(shape.shared, count, SIZE, generator=numbers).to(dtype)
    return node


@contextmanager
def block(most: int) -> Iterator[None]:
    with patch.object(packed, "BLOCK", {"cpu": most}):
        yield


# ------------------------------------------------------------------------------------------------------------- prompts


@dataclass
class Plan:
    """Prefixes as (parent, tokens), pieces as (prefix, tokens, where they are kept)."""

    prefixes: list[tuple[int, int]] = field(default_factory=list)
    pieces: list[tuple[int, int, str]] = field(default_factory=list)


plans = st.builds(
    Plan,
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4),
    st.lists(
        # A piece often follows the prefix of the one before it: then they are attended together.
        st.tuples(st.integers(0, 4), st.integers(1, 9), st.sampled_from(["nowhere", "row", "prefix"])),
        min_size=1,
        max_size=7,
    ),
)


def attended(plan: Plan, shape: Shape, dtype: torch.dtype, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A pass over the plan's pieces, and what the naive way gives; checks what is kept."""
    numbers = shape.numbers()
    nodes = [Prefix(None, ())]
    for parent, count in plan.prefixes:
        nodes.append(prefix_of(nodes[parent % len(nodes)], count, shape, numbers, dtype))
    total = sum(count for _, count, _ in plan.pieces)
    query = torch.randn(shape.heads, total, SIZE, generator=numbers).to(dtype)
    key, value = (torch.randn(shape.shared, total, SIZE, generator=numbers).to(dtype) for _ in range(2))
    slab = Slab()
    slab.reserve(len(plan.pieces), 9)
    prompts = Prompts(slab)
    at = 0
    for row, (follows, count, where) in enumerate(plan.pieces):
        prefix = nodes[follows % len(nodes)]
        into = Prefix(prefix, list(range(count))) if where == "prefix" else None
        prompts.pieces.append(Piece(at, count, prefix, into, row if where == "row" else None))
        if into is not None:
            nodes.append(into)
        at += count
    with block(most):
        got = prompts.attend(LAYER, query, key, value, 0.7, shape.window)
    wanted = torch.empty(total, shape.heads, SIZE, dtype=torch.float64)
    for piece in prompts.pieces:
        end = piece.start + piece.count
        own_key, own_value = key[:, piece.start : end], value[:, piece.start : end]
        for place in range(piece.count):
            seen = joined(piece.prefix, own_key[:, : place + 1], own_value[:, : place + 1])
            wanted[piece.start + place] = naive(query[:, piece.start + place], *seen, 0.7, shape.window)
        if piece.into is not None:
            assert torch.equal(piece.into.keys[LAYER], own_key)
            assert torch.equal(piece.into.values[LAYER], own_value)
        if piece.row is not None:
            assert torch.equal(slab.keys[LAYER][piece.row, :, : piece.count], own_key)
            assert torch.equal(slab.values[LAYER][piece.row, :, : piece.count], own_value)
    return got, wanted


@pytest.mark.parametrize("most", [1, 64, 512])
@settings(max_examples=60, deadline=None)
@given(plan=plans, shape=shapes)
def test_every_token_of_a_prompt_sees_its_prefix_and_its_own_forerunners(most: int, plan: Plan, shape: Shape) -> None:
    got, wanted = attended(plan, shape, torch.float32, most)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-4)


def test_pieces_that_follow_the_same_prefix_are_attended_together_up_to_a_size() -> None:
    one, other = Prefix(None, ()), Prefix(None, [1])
    pieces = [Piece(0, 3, one), Piece(3, 4, one), Piece(7, 2, one), Piece(9, 1, other), Piece(10, 8, other)]
    assert [found.counts for found in packed._blocks(pieces, 7)] == [[3, 4], [2], [1], [8]]
    assert [found.counts for found in packed._blocks(pieces, 9)] == [[3, 4, 2], [1, 8]]
    assert [found.counts for found in packed._blocks(pieces, 1)] == [[3], [4], [2], [1], [8]]


@pytest.mark.parametrize("most", [1, 512])
def test_prompts_in_bfloat16(most: int) -> None:
    plan = Plan([(0, 9), (1, 5)], [(1, 7, "row"), (2, 5, "prefix"), (2, 3, "row"), (0, 9, "nowhere")])
    for seed in range(10):
        got, wanted = attended(plan, Shape(4, 2, 6, seed), torch.bfloat16, most)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), wanted, atol=0.03, rtol=0.03)


# ---------------------------------------------------------------------------------------------------------------- step


def stepped(
    lengths: Sequence[int],
    follows: Sequence[int],
    tree: Sequence[tuple[int, int]],
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float32,
    loud: float = 1.0,
    scaling: float = 0.7,
    spare: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of rows with so many tokens of their own, which follow prefixes; and what the naive way gives."""
    numbers = shape.numbers()
    nodes = [Prefix(None, ())]
    for parent, count in tree:
        nodes.append(prefix_of(nodes[parent % len(nodes)], count, shape, numbers, dtype))
    rows = len(lengths)
    query = (loud * torch.randn(shape.heads, rows, SIZE, generator=numbers)).to(dtype)
    key, value = (torch.randn(shape.shared, rows, SIZE, generator=numbers).to(dtype) for _ in range(2))
    slab = Slab()
    slab.reserve(rows + spare, max(lengths) + 1)
    keys, values = slab.of(LAYER, key)
    # What earlier rows left behind the tokens of these must not be seen.
    keys.copy_(torch.randn(keys.shape, generator=numbers))
    values.copy_(torch.randn(values.shape, generator=numbers))
    before = keys.clone(), values.clone()
    members: dict[int, list[int]] = {}
    for row, each in enumerate(follows):
        members.setdefault(each % len(nodes), []).append(row)
    groups = [(nodes[each], rows) for each, rows in members.items() if nodes[each].end]
    got = Step(slab, lengths, groups).attend(LAYER, query, key, value, scaling, shape.window)
    wanted = torch.empty(rows, shape.heads, SIZE, dtype=torch.float64)
    for row, (length, each) in enumerate(zip(lengths, follows, strict=True)):
        own_key = torch.cat([before[0][row, :, :length], key[:, row : row + 1]], 1)
        own_value = torch.cat([before[1][row, :, :length], value[:, row : row + 1]], 1)
        seen = joined(nodes[each % len(nodes)], own_key, own_value)
        wanted[row] = naive(query[:, row], *seen, scaling, shape.window)
        # The new token is kept behind the row's others, and nothing else is touched.
        before[0][row, :, length], before[1][row, :, length] = key[:, row], value[:, row]
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])
    return got, wanted


rows_that_follow = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(
    rows_that_follow,
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4),
    shapes,
    st.sampled_from([1.0, 30.0]),
    st.integers(0, 2),
)
def test_every_row_of_a_step_sees_its_prefix_and_its_own_tokens(
    rows: list[tuple[int, int]], tree: list[tuple[int, int]], shape: Shape, loud: float, spare: int
) -> None:
    """`loud` queries make the softmax all but certain: scores far apart must not overflow."""
    lengths, follows = [length for length, _ in rows], [each for _, each in rows]
    got, wanted = stepped(lengths, follows, tree, shape, loud=loud, spare=spare)
    torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scaling", [0.5, 0.7, 128**-0.5])
def test_a_step_in_bfloat16_has_its_scores_in_float32(scaling: float) -> None:
    """Scores of about 100, rounded to bfloat16, are off by a quarter: weights would be off by as much.

    Nor may queries be rounded once more when they are scaled.
    """
    for seed in range(20):
        shape = Shape(4, 2, None, seed)
        got, wanted = stepped(
            [5, 0, 9],
            [1, 2, 0],
            [(0, 9), (1, 5)],
            shape,
            dtype=torch.bfloat16,
            loud=30 / scaling,
            scaling=scaling,
            spare=1,
        )
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), wanted, atol=0.03, rtol=0.02)


def test_what_a_step_shares_between_layers_is_made_once() -> None:
    """Layers with and without a window alternate in some models."""
    slab, root = Slab(), Prefix(None, ())
    shape = Shape(2, 1, None, 0)
    prefix = prefix_of(root, 9, shape, shape.numbers(), torch.float32)
    prefix.keys |= {4: prefix.keys[LAYER] * 2}
    prefix.values |= {4: prefix.values[LAYER] * 2}
    slab.reserve(2, 1)
    step = Step(slab, [0, 0], [(prefix, [0, 1])])
    numbers = shape.numbers()
    query = torch.randn(2, 2, SIZE, generator=numbers)
    key, value = (torch.randn(1, 2, SIZE, generator=numbers) for _ in range(2))
    for layer, window in ((LAYER, None), (4, 3), (LAYER, 3), (4, None)):
        got = step.attend(layer, query, key, value, 1.0, window)
        for row in range(2):
            keys = torch.cat([prefix.keys[layer], key[:, row : row + 1]], 1)
            values = torch.cat([prefix.values[layer], value[:, row : row + 1]], 1)
            wanted = naive(query[:, row], keys, values, 1.0, window)
            torch.testing.assert_close(got[row].double(), wanted, atol=1e-5, rtol=1e-4)
    assert len(step.shared) == 1


# ---------------------------------------------------------------------------------------------------------------- slab


LIKE = torch.zeros(2, 1, 3)


def written(slab: Slab, row: int, tokens: int, mark: float) -> None:
    for layer in (0, 1):
        keys, values = slab.of(layer, LIKE)
        keys[row, :, :tokens], values[row, :, :tokens] = mark + layer, -mark - layer


def holds(slab: Slab, row: int, tokens: int, mark: float) -> bool:
    return all(
        bool((slab.keys[layer][row, :, :tokens] == mark + layer).all())
        and bool((slab.values[layer][row, :, :tokens] == -mark - layer).all())
        for layer in (0, 1)
    )


slab_steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 300), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("shrink"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("interrupted"), st.integers(1, 400), st.integers(0, 3)),
    ),
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(slab_steps)
def test_rows_keep_their_tokens_when_others_join_and_leave_and_memory_runs_out(
    plan: list[tuple[str, int, int]],
) -> None:
    slab = Slab()
    rows: list[tuple[int, float]] = []
    for mark, (what, number, calls) in enumerate(plan, start=1):
        if what == "join":
            rows.append((number, float(10 * mark)))
            slab.reserve(len(rows), max(tokens for tokens, _ in rows))
            written(slab, len(rows) - 1, *rows[-1])
        elif what == "leave" and rows:
            at = number % len(rows)
            slab.move(len(rows) - 1, at)
            rows[at] = rows[-1]
            rows.pop()
        elif what == "shrink":
            rows = rows[:number]
            slab.shrink(len(rows))
        elif what == "interrupted" and rows:
            with running_out(calls), suppress(torch.OutOfMemoryError):
                slab.reserve(len(rows) + 5, number + 700)
        assert all(holds(slab, row, *each) for row, each in enumerate(rows))


@contextmanager
def running_out(calls: int) -> Iterator[None]:
    """Memory for so many tensors of zeros, then no more."""
    left, real = calls, torch.Tensor.new_zeros

    def limited(self: torch.Tensor, *shape: Any, **more: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError("no memory left")
        return real(self, *shape, **more)

    with patch.object(torch.Tensor, "new_zeros", limited):
        yield


@pytest.mark.parametrize("calls", range(4))
def test_making_room_goes_on_where_memory_ran_out(calls: int) -> None:
    slab = Slab()
    slab.reserve(2, 100)
    written(slab, 0, 100, 10)
    written(slab, 1, 90, 20)
    with running_out(calls), pytest.raises(torch.OutOfMemoryError):
        slab.reserve(4, 200)
    assert holds(slab, 0, 100, 10)
    assert holds(slab, 1, 90, 20)
    with running_out(4 - calls):
        slab.reserve(4, 200)
    assert all(held.shape == (4, 2, 256, 3) for store in (slab.keys, slab.values) for held in store.values())
    assert holds(slab, 0, 100, 10)
    assert holds(slab, 1, 90, 20)


def test_room_that_memory_ran_out_for_is_not_asked_for_again() -> None:
    """Fewer rows need less room: what a larger attempt wanted must not stick."""
    slab = Slab()
    slab.reserve(2, 100)
    written(slab, 0, 100, 10)
    with running_out(0), pytest.raises(torch.OutOfMemoryError):
        slab.reserve(64, 5000)
    slab.reserve(3, 100)
    assert all(held.shape[0] < 64 for held in slab.keys.values())
    assert all(held.shape[2] < 5000 for held in slab.keys.values())
    assert holds(slab, 0, 100, 10)


def test_room_is_made_in_steps_and_only_where_it_is_needed() -> None:
    slab = Slab()
    slab.reserve(2, 1)
    written(slab, 0, 1, 10)
    before = slab.keys[0]
    assert before.shape == (2, 2, Slab.STEP, 3)
    slab.reserve(2, Slab.STEP)
    assert slab.keys[0] is before
    slab.reserve(2, Slab.STEP + 1)
    assert slab.keys[0].shape == (2, 2, 2 * Slab.STEP, 3)
    slab.shrink(1)
    assert slab.keys[0].untyped_storage().nbytes() == slab.keys[0].numel() * slab.keys[0].itemsize
    assert slab.rows == 1
