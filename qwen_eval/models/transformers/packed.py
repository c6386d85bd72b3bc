"""Attention over [shared prefix | own tokens], through the attention interface that transformers lets one register.

A packed pass is one sequence, [1, tokens], made of pieces of many requests: no padding, and logits only where they are
wanted. To the dense layers it is a plain sequence; only attention knows which tokens belong together. The keys and
values of a shared prefix stand in one `Prefix`, however many rows attend to it; those of running rows in a `Slab`.

The softmax over several blocks of keys is exact: each block's scores are taken relative to the largest so far, and
sums and values of the earlier blocks are scaled to it (Milakov & Gimelshein 2018, "Online normalizer calculation for
softmax", algorithm 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["ATTENTION", "Piece", "Plan", "Prefix", "Slab", "register"]

ATTENTION = "qwen_eval_packed"
"""The name under which the attention function is registered."""


class Prefix:
    """Keys and values of `tokens`, which follow another prefix: per layer [key-value heads, tokens, head size]."""

    def __init__(self, parent: "Prefix | None", tokens: int) -> None:
        self.parent = parent
        self.start: int = parent.end if parent else 0
        self.end: int = self.start + tokens
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def chain(self) -> "list[Prefix]":
        """Return this prefix and all before it, the first one first."""
        before = self.parent.chain() if self.parent else []
        return [*before, self]


class Slab:
    """Keys and values of the running rows: per layer [rows, key-value heads, capacity, head size].

    The rows in use are the first ones, so that all of them are one view.
    """

    STEP = 128

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens a row."""
        if tokens <= self.capacity:
            return
        more = -(-tokens // self.STEP) * self.STEP - self.capacity
        for store in (self.keys, self.values):
            for layer, held in store.items():
                room = held.new_zeros(held.shape[0], held.shape[1], more, held.shape[3])
                store[layer] = torch.cat([held, room], dim=2)
        self.capacity += more

    def of(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a layer, made when they are first needed; `like` is [heads, tokens, head size]."""
        if layer not in self.keys:
            shape = (self.rows, like.shape[0], self.capacity, like.shape[2])
            self.keys[layer], self.values[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def move(self, source: int, target: int) -> None:
        """Put one row's tokens in another's place."""
        for store in (self.keys, self.values):
            for held in store.values():
                held[target] = held[source]


@dataclass(frozen=True)
class Piece:
    """`count` consecutive tokens of a pass, from `start` on: they attend to `prefix` and, causally, to each other.

    Their keys and values are kept in `into` (a prefix that others attend to) or in `row` of the slab, or not at all.
    Pieces are worked off in order, so a later one may attend to what an earlier one of the same pass was kept in.
    """

    start: int
    count: int
    prefix: Prefix | None
    into: Prefix | None = None
    row: int | None = None


@dataclass
class Plan:
    """What a packed pass holds: pieces of prompts, or one new token for each of the slab's first rows.

    `lengths`, [rows], are the tokens that each of these rows already has in the slab; `groups` are prefixes and the
    rows, [members], that attend to them.
    """

    slab: Slab | None = None
    pieces: list[Piece] = field(default_factory=list)
    lengths: torch.Tensor | None = None
    groups: Sequence[tuple[Prefix, torch.Tensor]] = ()


def register() -> None:
    """Make `ATTENTION` known to transformers. Its mask is None: attention reads the plan instead."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **more: None)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    scaling: float,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return [1, tokens, heads, head size] for query, key and value of [1, heads, tokens, head size]."""
    heads, tokens, size = query.shape[1:]
    layer = module.layer_idx
    out = query.new_empty(tokens, heads, size)
    for piece in plan.pieces:
        at = slice(piece.start, piece.start + piece.count)
        _keep(piece, layer, plan.slab, key[0, :, at], value[0, :, at])
        out[at] = _prompt(piece, layer, query[:, :, at], key[0, :, at], value[0, :, at], scaling, sliding_window)
    if plan.lengths is not None:
        out[:] = _decode(plan, layer, query[0], key[0], value[0], scaling, sliding_window)
    return out[None], None


def _keep(piece: Piece, layer: int, slab: Slab | None, key: torch.Tensor, value: torch.Tensor) -> None:
    if piece.into is not None:
        piece.into.keys[layer], piece.into.values[layer] = key.clone(), value.clone()
    if piece.row is not None and slab is not None:
        keys, values = slab.of(layer, key)
        keys[piece.row, :, : piece.count], values[piece.row, :, : piece.count] = key, value


def _prompt(
    piece: Piece,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """A piece of a prompt: one call of torch's attention over its prefix and itself."""
    chain = piece.prefix.chain() if piece.prefix else []
    keys = torch.cat([*(node.keys[layer] for node in chain), key], dim=1)
    values = torch.cat([*(node.values[layer] for node in chain), value], dim=1)
    before = keys.shape[1] - piece.count
    mask = torch.ones(piece.count, keys.shape[1], dtype=torch.bool, device=query.device).tril(before)
    if window is not None:
        mask = mask.triu(before - window + 1)
    result = torch.nn.functional.scaled_dot_product_attention(
        query, keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != keys.shape[0]
    )
    return result[0].transpose(0, 1)


def _decode(
    plan: Plan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """One new token a row: its own tokens in the slab for all rows at once, each prefix for its rows as one product."""
    assert plan.slab is not None
    assert plan.lengths is not None
    lengths, heads, size = plan.lengths, key.shape[0], key.shape[2]
    rows = len(lengths)
    shared = query.shape[0] // heads
    keys, values = plan.slab.of(layer, key)
    index = torch.arange(rows, device=query.device)
    keys[index, :, lengths], values[index, :, lengths] = key.transpose(0, 1), value.transpose(0, 1)
    width = int(lengths.max()) + 1
    asked = query.transpose(0, 1).reshape(rows, heads, shared, size) * scaling
    scores = (asked @ keys[:rows, :, :width].transpose(-1, -2)).float()
    columns = torch.arange(width, device=query.device)
    hidden = columns > lengths[:, None]
    if window is not None:
        hidden |= columns <= lengths[:, None] - window
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    result = (weights.to(value.dtype) @ values[:rows, :, :width]).float()
    for prefix, members in plan.groups:
        chosen = asked[members].transpose(0, 1).reshape(heads, -1, size)
        position = prefix.end + lengths[members]
        for node in prefix.chain():
            block = (chosen @ node.keys[layer].transpose(-1, -2)).float()
            block = block.reshape(heads, len(members), shared, -1).transpose(0, 1)
            if window is not None:
                far = torch.arange(node.start, node.end, device=query.device) <= position[:, None] - window
                block = block.masked_fill(far[:, None, None], float("-inf"))
            peak = torch.maximum(block.amax(-1, keepdim=True), top[members])
            fade = (top[members] - peak).exp()
            weights = (block - peak).exp()
            read = weights.transpose(0, 1).reshape(heads, len(members) * shared, -1).to(value.dtype)
            read = (read @ node.values[layer]).float().reshape(heads, len(members), shared, size).transpose(0, 1)
            result[members] = result[members] * fade + read
            total[members] = total[members] * fade + weights.sum(-1, keepdim=True)
            top[members] = peak
    return (result / total).to(query.dtype).reshape(rows, -1, size)
