"""How sure a score is. Imports nothing of ours."""

import math
from collections.abc import Sequence

__all__ = ["detectable_difference", "effective_size", "wilson"]

Z_TWO_SIDED_5 = 1.959964
Z_ONE_SIDED_5 = 1.6449
Z_POWER_80 = 0.8416


def wilson(score: float, n: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion `score` of `n` items, as fractions (Wilson 1927).

    Unlike the normal approximation it is never of width zero and stays inside [0, 1]. `n` need not be whole: a weighted
    mean has an `effective_size`. Raises ValueError for n not above 0.
    """
    if n <= 0:
        raise ValueError(f"expected n above 0, found {n}")
    z = Z_TWO_SIDED_5
    middle = (score + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(score * (1 - score) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_size(sizes: Sequence[int]) -> float:
    """Return how many items of a simple mean are worth as much as an unweighted mean over groups of these sizes.

    (Σ w)² / Σ w² for the weights 1 / size (Kish 1965, "Survey Sampling", section 8.2). With `wilson` this gives the
    interval of a macro average; it takes no credit for the groups differing in difficulty, so it errs on the wide side.
    """
    return len(sizes) ** 2 / sum(1 / size for size in sizes)


def detectable_difference(n: int, *, discordance: float = 0.05) -> float:
    """Return the smallest true difference between two checkpoints that `n` shared items detect, as a fraction.

    One-sided 5 %, 80 % power, paired: (z_0.95 + z_0.80) * sqrt(discordance / n), where `discordance` is the share of
    items on which the two checkpoints differ in being right (Miller 2024, "Adding error bars to evals", section 5).
    """
    return min(1.0, (Z_ONE_SIDED_5 + Z_POWER_80) * math.sqrt(discordance / n))
