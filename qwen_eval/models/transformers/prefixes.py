"""Which tokens do prompts share, and what of it is computed already?

`Waiting` holds requests in the order of their prompts' tokens, so that neighbours share most: where a prompt parts
from a later one, a shared prefix ends. They nest (instruction, exemplars, question). `PrefixTree` finds the longest
prefix of a prompt whose keys and values exist, and lets go of what was not used for longest when it holds too much.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from qwen_eval.models.transformers.machine import is_out_of_memory
from qwen_eval.models.transformers.packed import Prefix
from qwen_eval.models.transformers.tokenization import common_length

__all__ = ["PrefixTree", "Waiting"]

SHORTEST = 16
"""A shared part of fewer tokens is computed again: a piece of its own costs more than it saves."""


class HasTokens(Protocol):
    """Something that waits with a prompt."""

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""

    @property
    def stretch(self) -> float:
        """How far the rotary embedding is stretched for it: only prompts with the same number can share anything."""


Item = TypeVar("Item", bound=HasTokens)


class Waiting(Generic[Item]):
    """Requests in the order of their prompts' tokens, and before that of the stretch."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, items: Iterable[Item]) -> None:
        """Line up more requests; those with equal prompts in the order in which they came."""
        for item in items:
            bisect.insort(self._items, item, key=_order)

    @property
    def first(self) -> Item:
        """The next request."""
        return self._items[0]

    @property
    def repeats(self) -> bool:
        """Whether the request after the next one has the same prompt."""
        return len(self._items) > 1 and _order(self._items[0]) == _order(self._items[1])

    def take(self) -> Item:
        """Take the next request out."""
        return self._items.pop(0)

    def put_back(self, items: Sequence[Item]) -> None:
        """Line up requests that were taken, before those with equal prompts."""
        for item in reversed(items):
            bisect.insort_left(self._items, item, key=_order)

    def branches(self, begin: int) -> list[int]:
        """Return where the prefixes end that the next request shares with later ones, behind `begin`, the longest last.

        The last token of a prompt is never shared: something must be left to ask. Nor are parts below `SHORTEST`.
        """
        ends: list[int] = []
        least = len(self._items[0].tokens) - 1
        for item, later in itertools.pairwise(self._items):
            least = min(least, common_length(item.tokens, later.tokens) if item.stretch == later.stretch else 0)
            if least < begin + SHORTEST:
                break
            if not ends or least < ends[-1]:
                ends.append(least)
        cuts: list[int] = []
        for end in reversed(ends):
            if end - begin >= SHORTEST:
                cuts.append(end)
                begin = end
        return cuts


def _order(item: HasTokens) -> tuple[float, list[int]]:
    return item.stretch, item.tokens


class PrefixTree:
    """Prefixes whose keys and values exist, by their tokens. `most` tokens are kept beyond what running rows need."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.root = Prefix(None, ())
        self._roots = {self.root.stretch: self.root}
        self._clock = 0

    def find(self, tokens: Sequence[int], stretch: float = 1.0) -> Prefix:
        """Return the longest prefix of a prompt that exists and leaves at least its last token; the root, if none does.

        A prefix of which only a part fits is cut in two there. Each `stretch` of the rotary embedding has its own root.
        """
        self._clock += 1
        node, limit = self._root(stretch), len(tokens) - 1
        while node.end < limit:
            rest = tokens[node.end : limit]
            alike = [(common_length(child.tokens, rest), child) for child in node.children.get(rest[0], ())]
            common, child = max(alike, key=lambda pair: pair[0], default=(0, node))
            if common and common == len(child.tokens):
                node = child
            elif common >= SHORTEST and child.keys and (part := self._cut(child, common)):
                node = part
            else:
                break
            node.used = self._clock
        return node

    def add(self, parent: Prefix, tokens: Sequence[int]) -> Prefix:
        """Continue a prefix by tokens whose keys and values are about to be computed."""
        node = Prefix(parent, tokens)
        node.used = self._clock
        parent.children.setdefault(tokens[0], []).append(node)
        return node

    def drop(self, node: Prefix) -> None:
        """Take a prefix out, with all that continue it: it can't be found any more."""
        if node.parent is not None:
            siblings = node.parent.children.get(node.tokens[0], [])
            if node in siblings:
                siblings.remove(node)
            if not siblings:
                node.parent.children.pop(node.tokens[0], None)

    def trim(self, most: int | None = None) -> None:
        """Let go of prefixes that no row attends to, the longest unused first, down to `most` tokens."""
        most = self.most if most is None else most
        nodes = self._nodes()
        held = sum(len(node.tokens) for node in nodes)
        for node in sorted(nodes, key=lambda each: (each.used, -each.end)):
            if held <= most:
                break
            if not node.users and not node.children:
                self.drop(node)
                held -= len(node.tokens)

    def _root(self, stretch: float) -> Prefix:
        if stretch not in self._roots:
            self._roots[stretch] = Prefix(None, (), stretch=stretch)
        return self._roots[stretch]

    def _nodes(self) -> list[Prefix]:
        found, stack = [], list(self._roots.values())
        while stack:
            more = [child for children in stack.pop().children.values() for child in children]
            found += more
            stack += more
        return found

    def _cut(self, node: Prefix, at: int) -> Prefix | None:
        """Cut a prefix in two; return the first part. Rows that attend to it go on with the second.

        Returns None where there is no memory for it: the parts are copies, so that one can be let go.
        """
        assert node.parent is not None
        upper, lower = Prefix(node.parent, node.tokens[:at]), Prefix(node.parent, ())
        try:
            for layer, keys in node.keys.items():
                upper.keep(layer, keys[:, :at], node.values[layer][:, :at])
                lower.keep(layer, keys[:, at:], node.values[layer][:, at:])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        node.keys, node.values = lower.keys, lower.values
        upper.users, upper.used = node.users, node.used
        siblings = node.parent.children[upper.tokens[0]]
        siblings[siblings.index(node)] = upper
        upper.children[node.tokens[at]] = [node]
        node.parent, node.tokens, node.start = upper, node.tokens[at:], node.start + at
        return upper
