"""Which token comes next: the likeliest one, or a draw that depends on its own request alone."""

from collections.abc import Sequence

import torch

from qwen_eval.task import Sampling

__all__ = ["next_tokens"]

LIKELY = 1024
"""Tokens among which `top_p` is looked for first: sorting a whole vocabulary in every step is slow."""
TIE = 1e-13
"""What a logit loses for each id before it: nothing but an order of those that are equal."""


def next_tokens(logits: torch.Tensor, samplings: Sequence[Sampling | None], draws: Sequence[float]) -> list[int]:
    """Return a token for every row of logits, [rows, vocabulary].

    `draws` are numbers from [0, 1), one a row, that decide where `samplings` asks for a draw; where it is None the
    likeliest token is taken. A row without a token, since there is NaN or infinity in it or nothing else, has -1.
    """
    tokens = logits.argmax(-1)
    # To argmax NaN is the largest: one number a row says of all of them what they are.
    broken = ~logits.gather(-1, tokens[:, None])[:, 0].isfinite()
    kinds: dict[tuple[float, float, int], list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling is not None:
            kinds.setdefault((sampling.temperature, sampling.top_p, sampling.top_k), []).append(row)
    for (temperature, top_p, top_k), rows in kinds.items():
        where = torch.tensor(rows, device=logits.device)
        drawn = torch.tensor([[draws[row]] for row in rows], dtype=torch.float64, device=logits.device)
        # Of equally likely tokens the one with the lower id comes first, however the others are sorted.
        ids = torch.arange(logits.shape[-1], device=logits.device)
        tokens[where] = _drawn(logits[where].double() / temperature - TIE * ids, top_p, top_k, drawn)
    chosen: list[int] = tokens.masked_fill(broken, -1).tolist()
    return chosen


def _drawn(logits: torch.Tensor, top_p: float, top_k: int, draws: torch.Tensor) -> torch.Tensor:
    """Return the token at which the distribution function of what may be drawn passes `draws`, [rows, 1]."""
    vocabulary = logits.shape[-1]
    order = None
    if top_k and top_k < vocabulary:
        logits, order = logits.topk(top_k)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        likely, places = probabilities.topk(min(LIKELY, probabilities.shape[-1]))
        if bool((likely.sum(-1) < top_p).any()):
            likely, places = probabilities.sort(descending=True)
        # A token stays while those before it have not reached top_p: the first one always does.
        likely = likely.masked_fill(likely.cumsum(-1) - likely >= top_p, 0.0)
        probabilities, order = likely, places if order is None else order.gather(-1, places)
    reached = probabilities.cumsum(-1)
    index = torch.searchsorted(reached, draws * reached[:, -1:], right=True)
    # Rounding can carry a draw next to 1 past the last token that may be drawn.
    last = (probabilities > 0).double().cumsum(-1).argmax(-1, keepdim=True)
    index = torch.minimum(index, last)
    return (index if order is None else order.gather(-1, index))[:, 0]
