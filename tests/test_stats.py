"""Intervals and the detectable difference, against published figures, scipy, and by counting."""

import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qwen_eval.stats import detectable_difference, effective_size, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 8, 0.0, 0.3244), (8, 8, 0.6756, 1.0), (3, 8, 0.1368, 0.6943), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct / n, n) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_that_of_scipy(counts: tuple[int, int]) -> None:
    correct, n = counts
    expected = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        wilson(0.5, 0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(400):
        correct = sum(draw.random() < 0.3 for _ in range(60))
        low, high = wilson(correct / 60, 60)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 400 <= 0.98


@given(st.integers(1, 50), st.integers(1, 60))
def test_equal_groups_are_worth_all_their_items(size: int, groups: int) -> None:
    assert effective_size([size] * groups) == pytest.approx(size * groups)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_unequal_groups_are_worth_less_than_all_their_items(sizes: list[int]) -> None:
    assert effective_size(sizes) <= sum(sizes) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("sizes", "spread"),
    [
        ([26] * 52, 0.0),
        ([26] * 52, 0.25),
        ([12, 19, 23, 49] * 13, 0.2),
        ([250] * 24 + [187, 146, 178], 0.3),
        ([2] * 52, 0.2),
    ],
    ids=["all alike", "subjects differ", "sizes of C-Eval", "sizes of BBH", "a limit of two a subject"],
)
def test_the_interval_of_a_macro_average_covers_at_least_as_often_as_it_says(sizes: list[int], spread: float) -> None:
    draw = numpy.random.default_rng(7)
    truths = numpy.clip(0.5 + spread * draw.standard_normal(len(sizes)), 0.02, 0.98)
    scores = (draw.binomial(sizes, truths, size=(4000, len(sizes))) / sizes).mean(axis=1)
    n = effective_size(sizes)
    covered = numpy.mean([low <= truths.mean() <= high for low, high in (wilson(float(score), n) for score in scores)])
    assert covered >= 0.94


@pytest.mark.parametrize(("n", "points"), [(164, 4.3), (1319, 1.5), (14042, 0.47)])
def test_detectable_difference_at_five_per_cent_discordance(n: int, points: float) -> None:
    assert 100 * detectable_difference(n) == pytest.approx(points, abs=0.05)
