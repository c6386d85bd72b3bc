"""Drawing a token: against transformers' own warpers, and against the softmax itself."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from engines import packed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from qwen_eval.models.transformers import sampling
from qwen_eval.models.transformers.reference import Row
from qwen_eval.models.transformers.sampling import next_tokens
from qwen_eval.task import Generate, Sampling

NEARLY_ONE = 1 - 2**-53
"""The largest number that `random.random` gives."""


def drawn(logits: Sequence[float], asked: Sampling, draws: Sequence[float]) -> list[int]:
    """One token a draw, all from the same logits."""
    return next_tokens(torch.tensor([list(logits)] * len(draws)), [asked] * len(draws), draws)


def warped(logits: Sequence[float], asked: Sampling) -> torch.Tensor:
    """The probabilities that transformers draws from."""
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = torch.tensor([list(logits)], dtype=torch.float64)
    scores = TemperatureLogitsWarper(asked.temperature)(None, scores)
    if asked.top_k:
        scores = TopKLogitsWarper(asked.top_k)(None, scores)
    if asked.top_p < 1:
        scores = TopPLogitsWarper(asked.top_p)(None, scores)
    probabilities: torch.Tensor = scores.softmax(-1)[0]
    return probabilities


apart = st.lists(st.integers(-20, 20), min_size=1, max_size=10, unique=True).map(
    lambda found: [number / 10 for number in found]
)
askings = st.builds(
    lambda temperature, top_p, top_k: Sampling(temperature=temperature, top_p=top_p, top_k=top_k),
    st.sampled_from([0.7, 1.0, 1.5]),
    st.one_of(st.just(1.0), st.floats(0.05, 0.99)),
    st.integers(0, 11),
)
EVERYWHERE = [*(at / 4000 for at in range(4000)), NEARLY_ONE]


@pytest.mark.parametrize("likely", [1, 3, 1024])
@settings(max_examples=60, deadline=None)
@given(logits=apart, asked=askings)
def test_exactly_those_tokens_are_drawn_that_transformers_keeps(
    likely: int, logits: list[float], asked: Sampling
) -> None:
    """With as many draws from all over [0, 1) as there are probabilities, to a thousandth."""
    by_size = torch.tensor(logits).double().div(asked.temperature).softmax(-1).sort(descending=True).values
    if asked.top_k:
        by_size = by_size[: asked.top_k] / by_size[: asked.top_k].sum()
    # Where a sum is top_p but for rounding, either answer is right.
    assume(bool(((by_size.cumsum(-1) - asked.top_p).abs() > 1e-9).all()) or asked.top_p == 1)
    with patch.object(sampling, "LIKELY", likely):
        tokens = torch.tensor(drawn(logits, asked, EVERYWHERE))
    found = tokens.bincount(minlength=len(logits)).double() / len(EVERYWHERE)
    torch.testing.assert_close(found, warped(logits, asked), atol=1e-3, rtol=0)
    assert set(tokens.tolist()) == set(warped(logits, asked).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=2.5),
        Sampling(temperature=0.8, top_p=0.9, top_k=20),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_the_softmax_says(asked: Sampling, tiny_checkpoint: Callable[..., Path]) -> None:
    """By the seeds 0, 1, 2 …, at a later place in the answer as at the first."""
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1)) * 1.5
    model = packed(tiny_checkpoint("qwen2"))
    probabilities = warped(logits.tolist(), asked).numpy()
    for place in (0, 7):
        rows = [
            Row(
                seed,
                Generate(
                    prompt="x",
                    sampling=Sampling(temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, seed=seed),
                ),
                prompt=[1],
                cut=0,
                limit=99,
                new=[0] * place,
            )
            for seed in range(4000)
        ]
        model._take_tokens(rows, logits.expand(len(rows), -1))
        found = torch.tensor([row.new[-1] for row in rows]).bincount(minlength=30).numpy()
        kept = probabilities > 0
        assert not found[~kept].any()
        assert stats.chisquare(found[kept], probabilities[kept] * len(rows)).pvalue > 0.01


def test_the_draws_of_an_answer_are_independent_of_each_other(tiny_checkpoint: Callable[..., Path]) -> None:
    """Two tokens in a row, two seeds in a row: all pairs as often as each other."""
    model = packed(tiny_checkpoint("qwen2"))
    asked = [
        Row(seed, Generate(prompt="x", sampling=Sampling(temperature=1.0, seed=seed)), [1], 0, 9)
        for seed in range(3000)
    ]
    for _ in range(2):
        model._take_tokens(asked, torch.zeros(len(asked), 4))
    for pairs in (
        [4 * row.new[0] + row.new[1] for row in asked],
        [4 * a.new[0] + b.new[0] for a, b in pairwise(asked)],
    ):
        assert stats.chisquare(torch.tensor(pairs).bincount(minlength=16).numpy()).pvalue > 0.01


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.none(), askings), st.one_of(st.sampled_from([0.0, NEARLY_ONE]), st.floats(0, 0.999))),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 999),
)
def test_a_row_is_drawn_as_if_it_were_alone(rows: list[tuple[Sampling | None, float]], seed: int) -> None:
    """Greedy rows and draws of all kinds in one call; even flat rows, which need all of the vocabulary for top_p."""
    logits = torch.randn(len(rows), 40, generator=torch.Generator().manual_seed(seed))
    logits *= torch.tensor([0.0, 1.0, 5.0, 25.0]).repeat(2)[: len(rows), None]
    samplings, draws = [asked for asked, _ in rows], [draw for _, draw in rows]
    with patch.object(sampling, "LIKELY", 5):
        together = next_tokens(logits, samplings, draws)
        alone = [next_tokens(logits[at : at + 1], samplings[at : at + 1], [draws[at]])[0] for at in range(len(rows))]
    assert together == alone
    for row, asked in enumerate(samplings):
        if asked is None:
            assert together[row] == int(logits[row].argmax())


@pytest.mark.parametrize("top_k", [0, 30])
def test_equally_likely_tokens_are_drawn_alike_whatever_the_other_rows_are(top_k: int) -> None:
    """Logits in bfloat16 are often equal: which of them is drawn may not depend on how the others were sorted."""
    numbers = torch.Generator().manual_seed(0)
    asked = Sampling(temperature=1.0, top_p=0.9, top_k=top_k)
    flat = torch.zeros(1, 2000)
    with patch.object(sampling, "LIKELY", 200):
        for at in range(60):
            logits = (4 * torch.randn(1, 2000, generator=numbers)).to(torch.bfloat16).float()
            alone = next_tokens(logits, [asked], [at / 60])
            beside = next_tokens(torch.cat([logits, flat]), [asked, asked], [at / 60, 0.5])
            assert beside[:1] == alone


@pytest.mark.parametrize("draw", [0.0, NEARLY_ONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "asked",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.01),
        Sampling(temperature=100.0, top_p=0.999999),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_p=1e-9),
        Sampling(temperature=0.6, top_p=0.95, top_k=20),
    ],
    ids=str,
)
def test_the_first_and_the_last_draw_stay_inside_what_may_be_drawn(
    draw: float, dtype: torch.dtype, asked: Sampling
) -> None:
    logits = 3 * torch.randn(50, 3000, generator=torch.Generator().manual_seed(3)).to(dtype)
    # Tokens that are never to be drawn stand first and last.
    logits[:, :5], logits[:, -5:] = float("-inf"), float("-inf")
    tokens = next_tokens(logits, [asked] * 50, [draw] * 50)
    for row, token in zip(logits.double(), tokens, strict=True):
        # Of equal logits at the edge, either one may be kept.
        assert row[token] >= row[warped(row.tolist(), asked) > 0].min()


def test_the_only_token_left_is_the_likeliest_one() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(5))
    for asked in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
        assert next_tokens(logits, [asked] * 6, [0.1, 0.3, 0.5, 0.7, 0.9, 0.99]) == logits.argmax(-1).tolist()


def test_seed_and_place_decide_a_draw_today_as_tomorrow(tiny_checkpoint: Callable[..., Path]) -> None:
    """Pinned: the samples of an older result can be drawn again."""
    model = packed(tiny_checkpoint("qwen2"))
    rows = [Row(at, Generate(prompt="x", sampling=Sampling(temperature=1.0, seed=at)), [1], 0, 9) for at in (0, 3)]
    for _ in range(2):
        model._take_tokens(rows, torch.zeros(2, 10000))
    assert [row.new for row in rows] == [[3507, 1394], [5784, 4432]]
