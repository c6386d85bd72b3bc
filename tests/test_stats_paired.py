"""The difference of two runs: against brute force, scipy, published thresholds, and by simulation."""

import itertools
import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from qwen_eval.stats import (
    Difference,
    clopper_pearson,
    detectable_difference,
    difference,
    holm,
    interval,
    pass_at_k,
    pooled,
    wilson,
)

RUNS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0, 1]), min_size=n, max_size=n) for _ in range(2)])
)


def counted(n: int, wins: int, losses: int) -> Difference:
    """What `difference` makes of so many items, without going through them."""
    value = (wins - losses) / n
    error = math.sqrt(max(0, wins + losses - n * value**2) / max(1, n - 1) / n)
    return Difference(n=n, value=value, error=error, freedom=max(1, n - 1), wins=wins, losses=losses, counted=True)


# ------------------------------------------------------------------------------------------------------- one run


@settings(deadline=None)
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(confidence_level=0.95, method="exact")
    assert clopper_pearson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_few_right_or_wrong_answers_get_the_exact_interval() -> None:
    assert interval(4, 100) == clopper_pearson(4, 100)
    assert interval(96, 100) == clopper_pearson(96, 100)
    assert interval(5, 100) == wilson(0.05, 100)
    with pytest.raises(ValueError, match="above 0"):
        clopper_pearson(0, 0)


@pytest.mark.parametrize("truth", [0.003, 0.01, 0.02, 0.05, 0.3, 0.5, 0.98, 0.995])
@pytest.mark.parametrize("n", [30, 164, 500])
def test_intervals_cover_the_truth_also_near_the_ends(truth: float, n: int) -> None:
    """Summed over every possible count, so there is no chance in it. Wilson alone falls to 0.83 at the ends."""
    from scipy.stats import binom

    covered = 0.0
    for correct in range(n + 1):
        low, high = interval(correct, n)
        covered += float(binom.pmf(correct, n, truth)) * (low <= truth <= high)
    assert covered > 0.925


# ------------------------------------------------------------------------------------------------- right or wrong


@given(RUNS)
def test_the_short_cut_of_these_tests_is_the_same(runs: tuple[list[int], list[int]]) -> None:
    found = difference(*runs)
    short = counted(found.n, found.wins, found.losses)
    assert short == replace(found, value=short.value, error=short.error)
    assert (short.value, short.error) == pytest.approx((found.value, found.error))


@given(RUNS)
@settings(deadline=None)
def test_the_p_value_is_mcnemars_exact_one(runs: tuple[list[int], list[int]]) -> None:
    found = difference(*runs)
    assert found.wins + found.losses + found.ties == len(runs[0])
    expected = binomtest(found.wins, found.wins + found.losses).pvalue if found.wins + found.losses else 1.0
    assert found.p == pytest.approx(expected)
    assert found.value == pytest.approx((sum(runs[1]) - sum(runs[0])) / len(runs[0]))


@given(
    st.integers(1, 300), st.integers(0, 20), st.integers(0, 20), st.integers(-90, 90).map(lambda percent: percent / 100)
)
def test_the_variance_under_a_bound_is_that_of_the_likeliest_losses(
    n: int, wins: int, losses: int, bound: float
) -> None:
    """Tango's closed form, against the likelihood maximised by trying."""
    n += wins + losses
    ties = n - wins - losses
    grid = numpy.linspace(max(0.0, -bound), (1 - bound) / 2, 20_001)[1:-1]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        parts = [wins * numpy.log(grid + bound), losses * numpy.log(grid), ties * numpy.log(1 - 2 * grid - bound)]
    likelihood = sum(part for part, count in zip(parts, (wins, losses, ties), strict=True) if count)
    worse = float(grid[int(numpy.argmax(likelihood))]) if wins + losses + ties else 0.0
    variance = n * (2 * worse + bound - bound**2)
    statistic = counted(n, wins, losses)._statistic(bound)
    assert statistic == pytest.approx((wins - losses - n * bound) / math.sqrt(variance), rel=0.02, abs=0.02)


@given(RUNS, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_is_what_the_one_sided_tests_leave(runs: tuple[list[int], list[int]], confidence: float) -> None:
    found = difference(*runs)
    low, high = found.interval(confidence)
    tail = (1 - confidence) / 2
    assert -1 <= low <= found.value <= high <= 1
    assert low == pytest.approx(-1, abs=1e-9) or found.p_above(low) == pytest.approx(tail, abs=1e-6)
    assert high == pytest.approx(1, abs=1e-9) or found.p_below(high) == pytest.approx(tail, abs=1e-6)


@given(RUNS)
def test_swapping_the_runs_turns_everything_round(runs: tuple[list[int], list[int]]) -> None:
    there, back = difference(*runs), difference(*runs[::-1])
    assert (there.wins, there.losses, there.p) == (back.losses, back.wins, back.p)
    assert there.interval() == pytest.approx(tuple(-end for end in back.interval()[::-1]), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "discordance", "drop"), [(164, 0.06, 0.02), (60, 0.2, 0.0), (1319, 0.05, 0.01), (500, 0.02, 0.0)]
)
def test_the_interval_of_a_difference_covers_as_often_as_it_says(n: int, discordance: float, drop: float) -> None:
    draw = numpy.random.default_rng(5)
    chances = [(discordance - drop) / 2, (discordance + drop) / 2, 1 - discordance]
    table: dict[tuple[int, int], tuple[float, float]] = {}
    covered = 0
    for wins, losses, _ in draw.multinomial(n, chances, size=4000).tolist():
        if (wins, losses) not in table:
            table[wins, losses] = counted(n, wins, losses).interval()
        low, high = table[wins, losses]
        covered += low <= -drop <= high
    assert 0.938 <= covered / 4000 <= 0.97


def test_no_differing_item_is_as_sure_as_there_are_items() -> None:
    low, high = counted(164, 0, 0).interval()
    assert -low == pytest.approx(high)
    assert high == pytest.approx(1.959964**2 / (164 + 1.959964**2), rel=1e-5)


# ---------------------------------------------------------------------------------- means, weights, clusters, repeats


def test_means_of_repeats_are_compared_by_students_t() -> None:
    draw = numpy.random.default_rng(2)
    before, after = (draw.binomial(4, 0.5, size=200) / 4 for _ in range(2))
    found = difference(before.tolist(), after.tolist())
    expected = ttest_rel(after, before).confidence_interval(0.9)
    assert not found.counted
    assert found.interval(0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.p_above(0.01) + found.p_below(0.01) == pytest.approx(1)


def test_a_permutation_test_of_few_items_tries_all_signs() -> None:
    steps = [0.5, 0.25, 0.25, -0.25, 0.75]
    sums = [
        sum(sign * step for sign, step in zip(signs, steps, strict=True))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(abs(each) >= sum(steps) - 1e-9 for each in sums) / 32
    assert difference([0] * 6, [*steps, 0]).p == pytest.approx(expected)


def test_a_permutation_test_of_many_items_is_the_same_each_time_and_has_a_uniform_p_value() -> None:
    draw = numpy.random.default_rng(1)
    values = []
    for _ in range(60):
        before, after = (draw.binomial(3, 0.6, size=80) / 3 for _ in range(2))
        values.append(difference(before.tolist(), after.tolist()).p)
    assert values[-1] == difference(before.tolist(), after.tolist()).p
    assert 0.35 < sum(values) / 60 < 0.65


def test_a_cluster_counts_once() -> None:
    """Ten copies of every item say nothing new."""
    draw = numpy.random.default_rng(3)
    before, after = draw.integers(0, 2, size=(2, 60)).tolist()
    once = difference(before, after, clusters=range(60))
    copies = difference(before * 10, after * 10, clusters=[*range(60)] * 10)
    assert copies.error == pytest.approx(once.error)
    assert copies.value == pytest.approx(once.value)
    assert copies.interval() == pytest.approx(once.interval())
    assert difference(before * 10, after * 10).error < once.error / 3


def test_clustered_intervals_cover_as_often_as_they_say() -> None:
    draw = numpy.random.default_rng(4)
    covered = 0
    for _ in range(1500):
        easy = draw.normal(0, 0.25, size=40)
        before, after = (draw.random((40, 5)) < numpy.clip(0.5 + sign * easy / 2, 0, 1)[:, None] for sign in (-1, 1))
        found = difference(
            before.ravel().astype(float).tolist(),
            after.ravel().astype(float).tolist(),
            clusters=[cluster for cluster in range(40) for _ in range(5)],
        )
        low, high = found.interval()
        covered += low <= 0 <= high
    assert 0.93 <= covered / 1500 <= 0.97


def test_weights_make_a_macro_average() -> None:
    groups = {"a": ([1, 0], [1, 1]), "b": ([1, 1, 1, 1], [0, 1, 1, 1])}
    before = [one for each, _ in groups.values() for one in each]
    after = [one for _, each in groups.values() for one in each]
    weights = [1 / (2 * len(each)) for each, _ in groups.values() for _ in each]
    found = difference(before, after, weights=weights)
    assert found.value == pytest.approx((0.5 - 0.25) / 2)
    even = difference(before, after, weights=[1 / 6] * 6)
    assert even.error == pytest.approx(difference(before, after, clusters=range(6)).error)


def test_items_that_all_differ_alike_are_not_taken_for_certain() -> None:
    found = difference([0.25] * 50, [0.75] * 50)
    assert found.error == 0
    low, high = found.interval()
    assert low < 0.5 < high
    assert high - low < 0.2


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="as many items in both"):
        difference([1], [1, 0])
    with pytest.raises(ValueError, match="as many items in both"):
        difference([], [])
    with pytest.raises(ValueError, match="at least one"):
        pooled([])


# ------------------------------------------------------------------------------------------------------ several tasks


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for alpha in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        order = sorted(range(len(p_values)), key=lambda index: p_values[index])
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > alpha:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(corrected) if p <= alpha} == rejected
    assert all(new >= old for old, new in zip(p_values, corrected, strict=True))


def test_a_pool_of_tasks_is_their_mean_with_their_errors_added() -> None:
    parts = [counted(1000, 20, 40), counted(200, 10, 10)]
    found = pooled(parts)
    assert found.value == pytest.approx(-0.01)
    assert found.error == pytest.approx(math.hypot(parts[0].error, parts[1].error) / 2)
    assert (found.n, found.wins, found.losses) == (1200, 30, 50)
    assert found.p == pytest.approx(2 * found.p_below(0))
    alone = pooled(parts[:1])
    assert alone.interval() == pytest.approx(parts[0].interval(), abs=2e-3)


# ------------------------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize(("n", "expected"), [(164, 0.043), (1319, 0.015), (14_042, 0.0047)])
def test_the_detectable_difference_is_the_published_one(n: int, expected: float) -> None:
    assert detectable_difference(n) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("n", "discordance"), [(1319, 0.05), (14_042, 0.05), (500, 0.1)])
def test_the_detectable_difference_is_found_with_the_power_it_says(n: int, discordance: float) -> None:
    drop = detectable_difference(n, discordance=discordance)
    chances = [(discordance - drop) / 2, (discordance + drop) / 2, 1 - discordance]
    draws = numpy.random.default_rng(9).multinomial(n, chances, size=1500).tolist()
    table: dict[tuple[int, int], bool] = {}
    found = 0
    for wins, losses, _ in draws:
        if (wins, losses) not in table:
            table[wins, losses] = counted(n, wins, losses).p_below(0) < 0.05
        found += table[wins, losses]
    assert 0.76 <= found / 1500 <= 0.85


@given(st.integers(200, 3000), st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None)
@example(348, 0, 8)
def test_so_many_items_decide_if_nothing_else_changes(n: int, wins: int, losses: int) -> None:
    found, bound = counted(n, wins, losses), -0.02
    needed = found.items_to_decide(bound, 0.9)
    low, high = found.interval(0.9)
    if needed is None or wins + losses < 5:
        return
    assert (needed >= n) == (low <= bound <= high)
    # Where nothing was won or nothing lost, an interval shrinks a little slower than with the root of n.
    times = math.ceil(2 * needed / n)
    if times <= 60:
        more = counted(n * times, wins * times, losses * times)
        low, high = more.interval(0.9)
        assert not low <= bound <= high


@pytest.mark.parametrize("k", [1, 5])
def test_the_interval_of_pass_at_k_covers_as_often_as_it_says(k: int) -> None:
    draw = numpy.random.default_rng(8)
    truth = float(numpy.mean(1 - (1 - numpy.linspace(0, 1, 2001)) ** k))  # chances are uniform over the items
    covered = 0
    for _ in range(600):
        counts = [(10, int(draw.binomial(10, chance))) for chance in draw.random(100)]
        _, low, high = pass_at_k(counts, k)
        covered += low <= truth <= high
    assert 0.92 <= covered / 600 <= 0.975
