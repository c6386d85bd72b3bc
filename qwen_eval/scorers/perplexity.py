"""Perplexity of blocks of text, by their length, and how sure it is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any

__all__ = ["by_length", "summary"]


def summary(blocks: Sequence[tuple[float, int, int]]) -> dict[str, float | int | None]:
    """Return the perplexity of blocks, each its summed negative log-likelihood (nats), its tokens, their bytes.

    exp(all nats / all tokens). The standard error is that of the mean over blocks of the nats a token, carried over by
    the derivative (delta method); None for a single block. Bits per byte do not depend on the tokenizer.
    """
    nll, tokens, size = (sum(column) for column in zip(*blocks, strict=True))
    perplexity = math.exp(nll / tokens)
    means = [nats / count for nats, count, _ in blocks]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return {
        "perplexity": perplexity,
        "standard_error": None if error is None else perplexity * error,
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
