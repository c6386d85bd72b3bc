"""How sure a score is. Imports nothing of ours."""

import math

__all__ = ["detectable_difference", "wilson"]

Z_ONE_SIDED_5 = 1.6449
Z_POWER_80 = 0.8416


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, as fractions (Wilson 1927; scipy's implementation).

    Unlike the normal approximation it is never of width zero and stays inside [0, 1]. Raises ValueError for n < 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def detectable_difference(n: int, *, discordance: float = 0.05) -> float:
    """Return the smallest true difference between two checkpoints that `n` shared items detect, as a fraction.

    One-sided 5 %, 80 % power, paired: (z_0.95 + z_0.80) * sqrt(discordance / n), where `discordance` is the share of
    items on which the two checkpoints differ in being right (Miller 2024, "Adding error bars to evals", section 5).
    """
    return min(1.0, (Z_ONE_SIDED_5 + Z_POWER_80) * math.sqrt(discordance / n))
