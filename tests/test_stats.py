"""Intervals and the detectable difference, against published figures and by counting."""

import random

import pytest

from qwen_eval.stats import detectable_difference, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 8, 0.0, 0.3244), (8, 8, 0.6756, 1.0), (3, 8, 0.1368, 0.6943), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(400):
        correct = sum(draw.random() < 0.3 for _ in range(60))
        low, high = wilson(correct, 60)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("n", "points"), [(164, 4.3), (1319, 1.5), (14042, 0.47)])
def test_detectable_difference_at_five_per_cent_discordance(n: int, points: float) -> None:
    assert 100 * detectable_difference(n) == pytest.approx(points, abs=0.05)
