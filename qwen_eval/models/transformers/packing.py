"""What the engine packs: requests that wait or run, prompts put together to a pass, and how many rows pay."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from qwen_eval.models.transformers.packed import Piece, Prefix, Prompts, Slab
from qwen_eval.models.transformers.prefixes import PrefixTree, Waiting
from qwen_eval.models.transformers.reference import Row

if TYPE_CHECKING:
    import torch

__all__ = ["LONGEST_PIECE", "Options", "Pace", "Packing", "Running", "Same"]

LONGEST_PIECE = 2048
"""A longer part of a prompt is computed piece by piece: bounds what is needed for scores and masks."""


@dataclass
class Options:
    """A context and the tokens of its options."""

    ticket: int
    tokens: list[int]
    options: list[list[int]]
    cut: int
    stretch: float = 1.0


@dataclass
class Running:
    """A row that generates: the prefix it attends to, and how many tokens of its own are in the slab.

    `kept` are the tokens of its prompt that stand in a prefix of its own.
    """

    row: Row
    prefix: Prefix
    own: int
    kept: int = 0

    @property
    def most(self) -> int:
        """Tokens of its own when it reaches its limit."""
        return self.own + self.row.limit - len(self.row.new)


@dataclass
class Same:
    """A prompt that waits more than once: its prefix, and the logits behind it, [vocabulary], once they are known."""

    tokens: list[int]
    prefix: Prefix
    logits: "torch.Tensor | None" = None


class Packing:
    """A packed pass over prompts in the making. `wanted` are the positions whose logits are asked for."""

    def __init__(self, tree: PrefixTree, slab: Slab | None = None) -> None:
        self.tree = tree
        self.prompts = Prompts(slab)
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.stretches: list[float] = []
        self.wanted: list[int] = []
        self._added: list[Prefix] = []

    def add(self, tokens: Sequence[int], prefix: Prefix, *, into: Prefix | None = None, row: int | None = None) -> None:
        """Add a piece: tokens that follow a prefix."""
        self.prompts.pieces.append(Piece(len(self.ids), len(tokens), prefix, into, row))
        self.ids += tokens
        self.positions += range(prefix.end, prefix.end + len(tokens))
        self.stretches += [prefix.stretch] * len(tokens)

    def add_prefix(self, tokens: Sequence[int], prefix: Prefix, *, shared: bool = False) -> Prefix:
        """Add tokens whose keys and values are kept, for other requests to find where they are `shared`."""
        for at in range(0, len(tokens), LONGEST_PIECE):
            part = tokens[at : at + LONGEST_PIECE]
            into = self.tree.add(prefix, part) if shared else Prefix(prefix, part)
            if shared:
                self._added.append(into)
            self.add(part, prefix, into=into)
            prefix = into
        return prefix

    def add_first(
        self, waiting: Waiting[Any], *, row: int | None = None, keep_from: int | None = None
    ) -> tuple[Prefix, int]:
        """Add the first prompt that waits, with the prefixes it shares with later ones; its last logits are wanted.

        Its own tokens go to a row of the slab; or, where there are `keep_from` of them, into a prefix of their own.
        Returns the prefix that what follows attends to, and how many tokens of the prompt's own it holds.
        """
        tokens: list[int] = waiting.first.tokens
        prefix = self.tree.find(tokens, waiting.first.stretch)
        for end in waiting.branches(prefix.end):
            prefix = self.add_prefix(tokens[prefix.end : end], prefix, shared=True)
        own = tokens[prefix.end :]
        kept = len(own) if keep_from is not None and len(own) >= keep_from else 0
        if kept:
            prefix = self.add_prefix(own, prefix)
        else:
            self.add(own, prefix, row=row)
        self.wanted.append(len(self.ids) - 1)
        return prefix, kept

    def undo(self) -> None:
        """Take back what other requests could find: it was not computed."""
        for prefix in self._added:
            self.tree.drop(prefix)


class Pace:
    """How many rows generate at a time: twice as many, as long as that makes a step cheaper for each by a tenth."""

    STEPS = 8

    def __init__(self, rows: int, most: int) -> None:
        self.rows = rows
        self.most = most
        self._before = float("inf")
        self._seconds: list[float] = []

    def note(self, rows: int, seconds: float) -> None:
        """Take the time of a step while others wait."""
        if rows < self.rows or self.rows == self.most:
            return
        self._seconds.append(seconds / rows)
        if len(self._seconds) == self.STEPS:
            now, self._seconds = median(self._seconds), []
            if now > 0.9 * self._before:
                self.rows = self.most = max(1, self.rows // 2)
            else:
                self._before, self.rows = now, min(self.most, 2 * self.rows)

    def at_most(self, rows: int) -> None:
        """Memory ran out: no more rows than these from now on."""
        self.rows = self.most = max(1, rows)
