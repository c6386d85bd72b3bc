"""Long-context perplexity: how well a model predicts text, by the length of what it sees.

Qwen's README of 2023 has a table of it on arXiv papers, whose exact choice was not published. The documents are joined
to one stream of tokens, which is cut into blocks of every length; a block is one pass, and its first token is given.
Not to be mixed with sliding windows (Press et al. 2021), whose values are lower. A row is a document:
{"file": "lighthouse.txt", "text": "The lighthouse keeper counted the ships …"}.
"""

from collections.abc import Callable, Sequence

from qwen_eval.task import DatasetSpec, Perplexity, Protocol, Rows, Sample, SplitSpec, Task

DATA = DatasetSpec(
    name="longcontext",
    licence="by document",
    homepage="https://arxiv.org/abs/2309.16609",
    url="",
    folders=("longcontext",),
    splits={
        "test": SplitSpec(
            file="documents.json", columns=("file",), texts="file", rows=37, fingerprint="0fb1ff462367381a"
        )
    },
)
SEPARATOR = "\n\n"
"""What stands behind every document."""
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
BLOCKS = 20
"""Blocks of each length, where the user names no number."""


def at_lengths(lengths: Sequence[int], blocks: int | None) -> Callable[[Rows, str], Sequence[Sample]]:
    """Return what lists the samples: of every length so many blocks, which begin at the same places of the text.

    A block's number counts the blocks of its length from the beginning of the stream. Whether it has so many only the
    tokenizer knows.
    """
    longest = max(lengths)
    count = BLOCKS if blocks is None else blocks

    def samples(dataset: Rows, split: str) -> list[Sample]:
        return [
            Sample(
                f"{length}/{block}",
                {"length": str(length), "block": str(block), "separator": SEPARATOR},
                "-",
                str(length),
            )
            for length in sorted(set(lengths))
            for block in (number * longest // length for number in range(count))
        ]

    return samples


def blocks(dataset: Rows, shots: int) -> Callable[[Sample], Perplexity]:
    """One block of the documents, one after the other."""
    texts = tuple(row["text"] + SEPARATOR for row in dataset.rows("test"))
    return lambda sample: Perplexity(
        text=texts, block=int(sample.row["length"]), index=int(sample.row["block"]), beyond=True
    )


TASK = Task(
    name="perplexity",
    title="Long-context perplexity",
    paper="https://arxiv.org/abs/2309.16609",
    data=DATA,
    samples=at_lengths(LENGTHS, None),
    lengths=LENGTHS,
    at_lengths=at_lengths,
    protocols=(
        Protocol(
            name="blocks",
            chat=False,
            shots=0,
            shots_allowed=range(1),
            rule="perplexity",
            build=blocks,
            average="macro",
            about="Non-overlapping blocks of one stream of tokens, a pass each",
        ),
    ),
)
