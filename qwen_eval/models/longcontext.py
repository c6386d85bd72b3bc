"""What a model does beyond its training length: nothing, or one of the ways to make longer contexts work.

The rotary embedding is stretched by a number that follows the length of a request's prompt and stays while its answer
grows, as in Qwen's first generation, whose three techniques these are: dynamic NTK, LogN scaling of the queries
(Su 2021, "From the entropy invariance of attention") and window attention. For other models there are also
transformers' `dynamic`, `linear` (Chen et al. 2023, "Extending context window …", section 2.3) and `yarn` (Peng et al.
2023, section 3). Up to the training length none of them changes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_eval.errors import UsageError, did_you_mean

__all__ = ["ROPES", "LongContext", "long_context", "narrower", "settings_of"]

ROPES = ("plain", "dynamic_ntk", "dynamic", "yarn", "linear")
"""What can become of the rotary embedding; `plain` leaves it alone."""
FURTHER = ("logn", "window")
DYNAMIC_FACTOR = 2
"""The `factor` of transformers' dynamic type. With 2 it agrees with Qwen's where a length is the training length times
a power of two."""


@dataclass(frozen=True, kw_only=True)
class LongContext:
    """How a model of training length `native` (tokens) meets longer prompts: one of `ROPES`, and two switches."""

    native: int
    rope: str = "plain"
    logn: bool = False
    window: bool = False

    @property
    def name(self) -> str:
        """The setting as it is written: `plain`, `dynamic_ntk+logn`."""
        found = [self.rope, *(name for name in FURTHER if getattr(self, name))]
        return "+".join(found[1:] if len(found) > 1 and self.rope == "plain" else found)

    def stretch(self, tokens: int) -> float:
        """Return how far the rotary embedding is stretched for a prompt of so many tokens: 1.0 is not at all.

        NTK's alpha, by which the base grows; for `yarn` and `linear` the factor, which is the length in training
        lengths.
        """
        if tokens <= self.native or self.rope == "plain":
            return 1.0
        if self.rope == "dynamic_ntk":
            # 2^ceil(log2(tokens / native) + 1) - 1, in whole numbers.
            return float(2 ** (((tokens - 1) // self.native).bit_length() + 1) - 1)
        if self.rope == "dynamic":
            return DYNAMIC_FACTOR * tokens / self.native - (DYNAMIC_FACTOR - 1)
        return tokens / self.native

    def windows(self, layers: int) -> list[int | None]:
        """Return how many tokens each layer sees, the lowest first; None is all.

        The published table has such a row, but neither the windows nor code with them were published. This schedule is
        ours: from one training length in the lowest layer, linearly up to four below the upper quarter, which sees
        everything. No window is shorter than the training length, so up to there nothing changes.
        """
        if not self.window:
            return [None] * layers
        bounded = layers * 3 // 4
        return [self.native + 3 * self.native * layer // max(1, bounded - 1) for layer in range(bounded)] + [None] * (
            layers - bounded
        )


def narrower(own: int | None, windows: Sequence[int | None] | None, layer: int) -> int | None:
    """Return how many tokens a layer sees: the fewer of the model's `own` window and the setting's; None is all."""
    # The module's own number of the layer: what it hands on of a window itself depends on the kind of model.
    found = [window for window in (own, windows[layer] if windows else None) if window is not None]
    return min(found, default=None)


def settings_of(given: str) -> list[str]:
    """Return the settings of `--settings`, each once and in its one spelling. Raises UsageError."""
    # Any training length will do to read a name.
    named = [each.strip() for each in given.split(",") if each.strip()]
    if not named:
        raise UsageError(f"--settings {given!r}: expected a setting such as plain or dynamic_ntk, found none.")
    return list(dict.fromkeys(long_context(each, native=1).name for each in named))


def long_context(setting: str, *, native: int) -> LongContext:
    """Read a setting such as `dynamic_ntk+logn`. Raises UsageError."""
    parts = setting.split("+")
    for part in parts:
        if part not in (*ROPES, *FURTHER):
            raise UsageError(
                f"--settings {setting}: expected {', '.join(ROPES)}, {' or '.join(FURTHER)}, joined by +, found "
                f"{part!r}.{did_you_mean(part, (*ROPES, *FURTHER))}"
            )
    ropes = [part for part in parts if part in ROPES]
    if len(ropes) > 1 or len(set(parts)) < len(parts):
        raise UsageError(f"--settings {setting}: expected one of {', '.join(ROPES)}, found {' and '.join(parts)}.")
    return LongContext(
        native=native, rope=ropes[0] if ropes else "plain", logn="logn" in parts, window="window" in parts
    )
