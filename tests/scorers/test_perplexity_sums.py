"""Perplexity of blocks: by hand, and against the definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.scorers.perplexity import by_length, summary


def test_two_blocks_by_hand() -> None:
    found = summary([(10.0, 5, 20), (30.0, 10, 40)])
    assert found["perplexity"] == pytest.approx(math.exp(40 / 15))
    assert found["bits_per_byte"] == pytest.approx(40 / math.log(2) / 60)
    # Means of 2 and 3 nats: a standard deviation of sqrt(1/2), so one of 1/2 for the mean of both.
    assert found["standard_error"] == pytest.approx(math.exp(40 / 15) / 2)
    assert (found["blocks"], found["tokens"], found["bytes"]) == (2, 15, 60)


def test_one_block_has_no_standard_error() -> None:
    assert summary([(10.0, 5, 20)])["standard_error"] is None


@pytest.mark.parametrize("nats", [(1e6, 2e6), (700.0 * 5, 709.0 * 5), (1e38, 3e38)])
def test_what_no_float_holds_is_none_and_the_bits_say_it(nats: tuple[float, float]) -> None:
    found = summary([(nats[0], 5, 20), (nats[1], 5, 20)])
    assert found["standard_error"] is None or math.isfinite(found["standard_error"])
    assert (found["perplexity"] is None) is (sum(nats) / 10 > 709.78)
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 40)
    close = summary([(709.0, 1, 4), (1.0, 1, 4), (1418.0, 1, 4)])
    assert close["perplexity"] is not None
    assert close["standard_error"] is None, "709 more than its largest factor"


@given(st.lists(st.floats(0.1, 1e5), min_size=2, max_size=30), st.integers(1, 40_000))
def test_equal_blocks_give_the_geometric_mean_of_their_perplexities(nats: list[float], tokens: int) -> None:
    nats = [min(each, 500.0 * tokens) for each in nats]
    found = summary([(each, tokens, 3 * tokens) for each in nats])
    mean = math.fsum(each / tokens for each in nats) / len(nats)
    assert found["perplexity"] == pytest.approx(math.exp(mean))
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2) / 3)


def test_lengths_come_in_their_order_and_what_no_text_was_long_enough_for_is_left_out() -> None:
    def record(length: int, *nll: float) -> dict[str, object]:
        output = {"nll": list(nll), "tokens": [length - 1] * len(nll), "bytes": [4 * length] * len(nll)}
        return {"group": str(length), "outputs": [output]}

    found = by_length([record(1024, 1.0), record(512, 1.0), record(512, 2.0), record(512), record(2048)])
    assert list(found) == ["512", "1024"]
    assert [each["blocks"] for each in found.values()] == [2, 1]
