"""Attention over [shared prefix | own tokens], through the attention interface that transformers lets one register.

A packed pass is one sequence, [1, tokens], made of pieces of many requests: no padding, and logits only where they are
wanted. To the dense layers it is a plain sequence; only attention knows which tokens belong together. The keys and
values of a shared prefix stand in one `Prefix`, however many rows attend to it; those of running rows in a `Slab`.

Two kinds of passes: `Prompts` (pieces of prompts of any length, through torch's own attention) and `Step` (one new
token for every running row). In a step the softmax over several blocks of keys is exact: each block's scores are taken
relative to the largest so far, and sums and values of the earlier blocks are scaled to it (Milakov & Gimelshein 2018,
"Online normalizer calculation for softmax", algorithm 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from qwen_eval.models.longcontext import narrower
from qwen_eval.models.transformers.machine import is_out_of_memory

__all__ = ["ATTENTION", "Pass", "Piece", "Prefix", "Prompts", "Slab", "Step", "register"]

ATTENTION = "qwen_eval_packed"
"""The name under which the attention function is registered."""
BLOCK = {"cpu": 1, "cuda": 512}
"""Pieces that follow the same prefix are attended together up to so many tokens, which is fewer calls and some scores
that are masked away. Measured on a CPU: a call for each piece is the faster way."""

MASKS = 2
"""Masks that a block keeps for the next layers: with windows of different sizes one for every layer would be too many.
"""


class Prefix:
    """Keys and values of `tokens`, which follow another prefix: per layer [key-value heads, tokens, head size].

    `start` tokens come before. `stretch` is that of the rotary embedding they were computed with. `children` continue
    it, by their first token; `users` counts the running rows that attend to it, directly or through what continues it,
    and `used` says when it was last found: a tree of prefixes decides by them what to keep.
    """

    def __init__(self, parent: "Prefix | None", tokens: Sequence[int], *, stretch: float = 1.0) -> None:
        self.parent = parent
        self.stretch: float = parent.stretch if parent else stretch
        self.tokens = tokens
        self.start: int = parent.end if parent else 0
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.children: dict[int, list[Prefix]] = {}
        self.users = 0
        self.used = 0

    @property
    def end(self) -> int:
        """How many tokens this prefix has with all before it."""
        return self.start + len(self.tokens)

    def chain(self) -> "list[Prefix]":
        """Return this prefix and all before it, the first one first, without those that have no tokens."""
        before = self.parent.chain() if self.parent else []
        return [*before, self] if self.tokens else before

    def count_users(self, more: int) -> None:
        """Say that so many rows more attend to it and to all before it."""
        for node in self.chain():
            node.users += more

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take over the keys and values of a layer."""
        self.keys[layer], self.values[layer] = key.clone(), value.clone()


class Slab:
    """Keys and values of the running rows: per layer [rows, key-value heads, tokens, head size].

    The rows in use are the first ones, so that all of them are one view.
    """

    STEP = 128

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = 0
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows of so many tokens. Where memory runs out on the way, a later call goes on."""
        rows, tokens = max(self.rows, rows), max(self.tokens, -(-tokens // self.STEP) * self.STEP)
        for store in (self.keys, self.values):
            for layer, held in store.items():
                if held.shape[0] < rows or held.shape[2] < tokens:
                    room = held.new_zeros(rows, held.shape[1], tokens, held.shape[3])
                    room[: held.shape[0], :, : held.shape[2]] = held[:rows, :, :tokens]
                    store[layer] = room
        self.rows, self.tokens = rows, tokens

    def of(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a layer, made when they are first needed; `like` is [heads, tokens, head size]."""
        if layer not in self.keys:
            shape = (self.rows, like.shape[0], self.tokens, like.shape[2])
            self.keys[layer], self.values[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def move(self, source: int, target: int) -> None:
        """Put one row's tokens in another's place."""
        for store in (self.keys, self.values):
            for held in store.values():
                held[target] = held[source]

    def clear(self, row: int) -> None:
        """Put zeros in a row's place."""
        for store in (self.keys, self.values):
            for held in store.values():
                held[row] = 0

    def shrink(self, rows: int) -> None:
        """Give back the memory of all but the first rows, as far as there is some to copy these."""
        self.rows = min(self.rows, rows)
        for store in (self.keys, self.values):
            for layer, held in store.items():
                try:
                    store[layer] = held[:rows].clone()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise


class Pass(Protocol):
    """What attention is told about a packed pass."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Return [tokens, heads, head size] for query, key and value of [heads, tokens, head size]."""


def register() -> None:
    """Make `ATTENTION` known to transformers. Its mask is None: attention reads the pass instead."""
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
    packed: Pass,
    scaling: float,
    sliding_window: int | None = None,
    query_scale: torch.Tensor | None = None,
    windows: Sequence[int | None] | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return [1, tokens, heads, head size] for query, key and value of [1, heads, tokens, head size].

    `query_scale`, [1, tokens], multiplies the queries (LogN); `windows` are those of the layers beside the model's own.
    """
    if query_scale is not None:
        query = query * query_scale[:, None, :, None].to(query)
    window = narrower(sliding_window, windows, module.layer_idx)
    return packed.attend(module.layer_idx, query[0], key[0], value[0], scaling, window)[None], None


# ------------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Piece:
    """`count` consecutive tokens of a pass, from `start` on: they attend to `prefix` and, causally, to each other.

    Their keys and values are kept in `into` (a prefix that others attend to, later or in the same pass) or in `row` of
    the slab, or not at all.
    """

    start: int
    count: int
    prefix: Prefix
    into: Prefix | None = None
    row: int | None = None


@dataclass
class Prompts:
    """A pass over pieces of prompts. Complete before the first layer is reached."""

    slab: Slab | None = None
    pieces: list[Piece] = field(default_factory=list)
    blocks: "list[_Block]" = field(default_factory=list)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Keep what is to be kept, then attend block by block."""
        for piece in self.pieces:
            at = slice(piece.start, piece.start + piece.count)
            if piece.into is not None:
                piece.into.keep(layer, key[:, at], value[:, at])
            if piece.row is not None and self.slab is not None:
                keys, values = self.slab.of(layer, key)
                keys[piece.row, :, : piece.count], values[piece.row, :, : piece.count] = key[:, at], value[:, at]
        self.blocks = self.blocks or _blocks(self.pieces, BLOCK.get(query.device.type, 1))
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for block in self.blocks:
            out[block.start : block.end] = block.attend(layer, query, key, value, scaling, window)
        return out


def _blocks(pieces: Iterable[Piece], most: int) -> "list[_Block]":
    """Group neighbours that follow the same prefix."""
    blocks: list[_Block] = []
    for piece in pieces:
        last = blocks[-1] if blocks else None
        if last and last.prefix is piece.prefix and piece.start + piece.count - last.start <= most:
            last.counts.append(piece.count)
        else:
            blocks.append(_Block(piece.start, [piece.count], piece.prefix))
    return blocks


@dataclass
class _Block:
    """Neighbouring pieces, of `counts` tokens, that follow the same prefix: one call of torch's attention."""

    start: int
    counts: list[int]
    prefix: Prefix
    masks: dict[tuple[int | None, torch.device, int], torch.Tensor] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + sum(self.counts)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Return [the block's tokens, heads, head size]."""
        query, key, value = (held[:, self.start : self.end] for held in (query, key, value))
        heads, count, size = query.shape
        # What is too far back for the first of these tokens is too far back for all.
        chain = [node for node in self.prefix.chain() if window is None or node.end > self.prefix.end - window + 1]
        attention = torch.nn.functional.scaled_dot_product_attention
        if not chain and len(self.counts) == 1 and (window is None or count <= window):
            shared = heads != key.shape[0]
            result = attention(query[None], key[None], value[None], is_causal=True, scale=scaling, enable_gqa=shared)
        else:
            keys = torch.cat([*(node.keys[layer] for node in chain), key], dim=1)
            values = torch.cat([*(node.values[layer] for node in chain), value], dim=1)
            # Heads that share keys and values become longer queries, so that these are not repeated.
            grouped = query.reshape(1, key.shape[0], -1, size)
            mask = self._mask(query, keys.shape[1], heads // key.shape[0], window)
            result = attention(grouped, keys[None], values[None], attn_mask=mask, scale=scaling)
        return result.reshape(heads, count, size).transpose(0, 1)

    def _mask(self, query: torch.Tensor, width: int, times: int, window: int | None) -> torch.Tensor:
        """Return what is added to the scores, [times x tokens, width]; all layers share it."""
        known = (window, query.device, times)
        if known not in self.masks:
            before, device = width - query.shape[1], query.device
            counts = torch.tensor(self.counts, device=device)
            piece = torch.repeat_interleave(counts, output_size=query.shape[1])
            place = torch.arange(before, width, device=device)
            # Every piece follows the prefix directly, wherever it stands in the block.
            position = place - (counts.cumsum(0) - counts)[piece]
            columns = torch.arange(before, device=device)
            prefix = torch.ones(len(place), before, dtype=torch.bool, device=device)
            own = (piece[:, None] == piece) & (place[:, None] >= place)
            if window is not None:
                prefix = columns > position[:, None] - window
                own &= place > place[:, None] - window
            hidden = ~torch.cat([prefix, own], dim=1)
            mask = torch.zeros(hidden.shape, dtype=query.dtype, device=device).masked_fill(hidden, float("-inf"))
            if len(self.masks) == MASKS:
                del self.masks[next(iter(self.masks))]
            self.masks[known] = mask.repeat(times, 1)
        return self.masks[known]


# ------------------------------------------------------------------------------------------------------------ decoding


@dataclass
class Step:
    """A pass over one new token for each of the slab's first rows.

    `lengths` are the tokens that each of these rows already has in the slab; `groups` are prefixes and the rows that
    attend to them.
    """

    slab: Slab
    lengths: Sequence[int]
    groups: Sequence[tuple[Prefix, Sequence[int]]]
    shared: dict[torch.device, "_Tensors"] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Each row's own tokens in the slab for all rows at once, each prefix for its rows as one product."""
        known = self.shared.get(query.device)
        if known is None:
            known = self.shared[query.device] = _Tensors(self, query.device)
        rows, heads, size = len(self.lengths), key.shape[0], key.shape[2]
        keys, values = self.slab.of(layer, key)
        keys[known.rows, :, known.lengths] = key.transpose(0, 1)
        values[known.rows, :, known.lengths] = value.transpose(0, 1)
        asked = query.transpose(0, 1).reshape(rows, heads, -1, size)
        scores = _product(asked, keys[:rows, :, : known.width].transpose(-1, -2)).mul_(scaling)
        scores = scores.masked_fill(known.hidden(window), float("-inf"))
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp_()
        total = weights.sum(-1, keepdim=True)
        result = _product(weights.to(value.dtype), values[:rows, :, : known.width])
        for prefix, members, count in known.groups:
            # One matrix for all members: their queries stand one after the other.
            chosen = asked[members].transpose(0, 1).reshape(heads, -1, size)
            peak, sums, read = top[members], total[members], result[members]
            for node in prefix.chain():
                scores = _product(chosen, node.keys[layer].transpose(-1, -2)).mul_(scaling)
                scores = scores.reshape(heads, count, -1, len(node.tokens)).transpose(0, 1)
                if window is not None:
                    scores = scores.masked_fill(known.far(node, prefix, members, window), float("-inf"))
                before, peak = peak, torch.maximum(scores.amax(-1, keepdim=True), peak)
                fade, weights = (before - peak).exp(), (scores - peak).exp_()
                sums = sums * fade + weights.sum(-1, keepdim=True)
                flat = weights.transpose(0, 1).reshape(heads, -1, len(node.tokens)).to(value.dtype)
                more = _product(flat, node.values[layer]).reshape(heads, count, -1, size).transpose(0, 1)
                read = read * fade + more
            total[members], result[members] = sums, read
        return (result / total).to(query.dtype).reshape(rows, -1, size)


class _Tensors:
    """What the layers of a step share on one device."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.lengths = torch.tensor(step.lengths, device=device)
        self.rows = torch.arange(len(step.lengths), device=device)
        self.width = max(step.lengths) + 1
        everyone = len(step.lengths)
        self.groups: list[tuple[Prefix, torch.Tensor | slice, int]] = [
            (prefix, slice(None) if len(rows) == everyone else torch.tensor(rows, device=device), len(rows))
            for prefix, rows in step.groups
        ]
        self._hidden: dict[int | None, torch.Tensor] = {}

    def hidden(self, window: int | None) -> torch.Tensor:
        """Return where a row has no token of its own to see, [rows, 1, 1, width]."""
        if window not in self._hidden:
            columns = torch.arange(self.width, device=self.lengths.device)
            hidden = columns > self.lengths[:, None]
            if window is not None:
                hidden |= columns <= self.lengths[:, None] - window
            self._hidden[window] = hidden[:, None, None]
        return self._hidden[window]

    def far(self, node: Prefix, prefix: Prefix, members: torch.Tensor | slice, window: int) -> torch.Tensor:
        """Return which tokens of a node are too far back for the members, [members, 1, 1, tokens of the node]."""
        position = prefix.end + self.lengths[members]
        columns = torch.arange(node.start, node.end, device=position.device)
        return (columns <= position[:, None] - window)[:, None, None]


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the matrix product in float32, whatever the factors are: rounded scores would change the weights."""
    if one.dtype == torch.float32:
        return one @ other
    if one.device.type != "cpu":
        product = torch.bmm(one.flatten(0, -3), other.flatten(0, -3), out_dtype=torch.float32)
        return product.reshape(*one.shape[:-1], other.shape[-1])
    return one.float() @ other.float()
