"""Which tokens do prompts share? Sorted by their tokens, neighbours share most: walk along and keep the common part.

Shared prefixes nest (instruction, exemplars, question): where a prompt parts from a later one, a prefix ends. Walking
in order, only the prefixes of the current prompt are held; what the next one does not begin with is let go.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_eval.models.transformers.packed import Prefix

__all__ = ["PrefixWalk", "common_length"]

SHORTEST = 16
"""A shared part of fewer tokens is computed again: a piece of its own costs more than it saves."""


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class PrefixWalk:
    """A walk over prompts in the order of their tokens.

    `held` is the prefix that the prompt at hand shares and whose keys and values exist, None at the beginning.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compare neighbours. `prompts` are sorted."""
        self.prompts = prompts
        self.shared = [0, *itertools.starmap(common_length, itertools.pairwise(prompts)), 0]
        self.held: Prefix | None = None

    def cuts(self, index: int) -> list[int]:
        """Step to a prompt; return where, behind what is held, the prefixes end that it shares with later ones.

        The last token of a prompt is never shared: something must be left to ask.
        """
        prompt = self.prompts[index]
        while self.held is not None and self.held.end > min(self.shared[index], len(prompt) - 1):
            self.held = self.held.parent
        begin = self.held.end if self.held else 0
        least = len(prompt) - 1
        ends: list[int] = []
        for later in range(index + 1, len(self.prompts)):
            least = min(least, self.shared[later])
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
