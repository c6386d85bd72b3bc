"""Perplexity of blocks of text, by their length, and how sure it is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import stdev
from typing import Any

__all__ = ["by_length", "summary"]


def summary(blocks: Sequence[tuple[float, int, int]]) -> dict[str, float | int | None]:
    """Return the perplexity of blocks, each its summed negative log-likelihood (nats), its tokens, their bytes.

    exp(all nats / all tokens). The standard error is that of the mean over blocks of the nats a token, carried over by
    the derivative (delta method); None for a single block. Bits per byte do not depend on the tokenizer. A perplexity
    or error beyond the largest float is None, as JSON has no infinity: what it is can be read from the bits.
    """
    nll, tokens, size = (sum(column) for column in zip(*blocks, strict=True))
    perplexity = error = None
    means = [nats / count for nats, count, _ in blocks]
    with suppress(OverflowError):
        perplexity = math.exp(nll / tokens)
    if perplexity is not None and len(means) > 1:
        error = perplexity * stdev(means) / math.sqrt(len(means))
    return {
        "perplexity": perplexity,
        "standard_error": error if error is None or math.isfinite(error) else None,
        "bits_per_byte": nll / math.log(2) / size,
        "blocks": len(blocks),
        "tokens": tokens,
        "bytes": size,
    }


def by_length(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Return the summary of each length in the records of a run, the shortest first.

    A length that the documents are too short for is left out.
    """
    found: dict[str, list[tuple[float, int, int]]] = {}
    for record in records:
        for output in record["outputs"]:
            blocks = zip(output["nll"], output["tokens"], output["bytes"], strict=True)
            found.setdefault(record["group"], []).extend(blocks)
    return {length: summary(found[length]) for length in sorted(found, key=int) if found[length]}
