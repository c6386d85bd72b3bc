"""Intervals and the detectable difference, against published figures, scipy, and by counting."""

import itertools
import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qwen_eval.stats import detectable_difference, effective_size, effective_size_of_repeats, pass_at_k, wilson


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


means_of_repeats = st.tuples(st.integers(1, 9), st.integers(1, 40)).flatmap(
    lambda shape: st.tuples(
        st.lists(st.integers(0, shape[0]).map(lambda right: right / shape[0]), min_size=shape[1], max_size=shape[1]),
        st.just(shape[0]),
    )
)


@given(means_of_repeats)
def test_repeats_are_worth_no_less_than_once_and_no_more_than_other_items(found: tuple[list[float], int]) -> None:
    means, repeats = found
    assert len(means) <= effective_size_of_repeats(means, repeats) <= len(means) * repeats


@pytest.mark.parametrize(
    ("means", "repeats", "size"),
    [
        ([1.0, 0.0, 1.0, 0.0], 10, 4),  # all answers to an item agree: as if asked once
        ([0.5] * 4, 10, 40),  # nothing tells the items apart: as many as there are answers
        ([0.3] * 7, 10, 70),  # the same where the mean is not exact
        ([0.2, 0.4, 0.6, 0.8], 10, 0.25 / (0.2 / 3 / 4)),  # 0.2 / 3 is their sample variance
        ([1.0] * 4, 10, 4),  # no wrong answer says nothing
        ([0.0] * 4, 10, 4),
        ([0.3], 10, 1),  # of one item there is no variance
        ([1.0, 0.0, 0.0], 1, 3),
    ],
)
def test_the_effective_size_of_repeats(means: list[float], repeats: int, size: float) -> None:
    assert effective_size_of_repeats(means, repeats) == pytest.approx(size)


def test_repeats_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        effective_size_of_repeats([], 3)


@pytest.mark.parametrize("repeats", [2, 10])
@pytest.mark.parametrize(
    ("a", "b"),
    [(0.3, 0.3), (2, 2), (60, 60), (0.5, 2), (20, 2)],
    ids=["all or nothing", "mixed", "items alike", "hard ones", "easy ones"],
)
@pytest.mark.parametrize("n", [60, 164])
def test_the_interval_over_repeats_covers_the_truth_as_often_as_it_says(
    n: int, a: float, b: float, repeats: int
) -> None:
    # An item's chance of a right answer is drawn anew each time: the items are a sample too.
    draw = numpy.random.default_rng(11)
    means = draw.binomial(repeats, draw.beta(a, b, size=(2000, n))) / repeats
    intervals = [wilson(sum(each) / n, effective_size_of_repeats(each, repeats)) for each in means.tolist()]
    covered = numpy.mean([low <= a / (a + b) <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.975


def test_taking_repeats_for_items_covers_less_often_than_it_says() -> None:
    draw = numpy.random.default_rng(11)
    means = draw.binomial(10, draw.beta(0.3, 0.3, size=(500, 100))) / 10
    intervals = [wilson(float(each.mean()), 1000) for each in means]
    assert numpy.mean([low <= 0.5 <= high for low, high in intervals]) < 0.7


@pytest.mark.parametrize("repeats", [2, 10])
@pytest.mark.parametrize("sizes", [[26] * 20, [12, 19, 23, 49] * 4, [2] * 40], ids=["alike", "C-Eval", "two a subject"])
def test_the_macro_interval_over_repeats_covers_at_least_as_often_as_it_says(sizes: list[int], repeats: int) -> None:
    draw = numpy.random.default_rng(5)
    truths = numpy.clip(0.5 + 0.2 * draw.standard_normal(len(sizes)), 0.02, 0.98)
    covered = 0
    for _ in range(400):
        groups = [
            (draw.binomial(repeats, draw.beta(truth, 1 - truth, size=size)) / repeats).tolist()
            for size, truth in zip(sizes, truths, strict=True)
        ]
        score = sum(sum(each) / len(each) for each in groups) / len(groups)
        low, high = wilson(score, effective_size([effective_size_of_repeats(each, repeats) for each in groups]))
        covered += low <= truths.mean() <= high
    assert covered / 400 >= 0.93


@pytest.mark.parametrize(("n", "points"), [(164, 4.3), (1319, 1.5), (14042, 0.47)])
def test_detectable_difference_at_five_per_cent_discordance(n: int, points: float) -> None:
    assert 100 * detectable_difference(n) == pytest.approx(points, abs=0.05)


@pytest.mark.parametrize(("total", "right"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1), (7, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(total: int, right: int) -> None:
    answers = [number < right for number in range(total)]
    for k in range(1, total + 1):
        draws = [any(draw) for draw in itertools.combinations(answers, k)]
        assert pass_at_k([(total, right)], k)[0] == pytest.approx(sum(draws) / len(draws))
        assert pass_at_k([(total, right)], k)[0] == pytest.approx(1 - math.comb(total - right, k) / math.comb(total, k))


def test_pass_at_k_is_a_mean_over_items_and_pass_at_1_the_score() -> None:
    assert pass_at_k([(10, 0), (10, 5), (4, 4)], 1)[0] == pytest.approx(0.5)
    assert pass_at_k([(10, 0), (10, 10)], 10)[0] == 0.5


@pytest.mark.parametrize("counts", [[], [(3, 1)]])
def test_pass_at_k_needs_k_answers(counts: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="at least 4"):
        pass_at_k(counts, 4)
