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
    """Return what lists the samples: of every length so many blocks, which begin where those of the longest one do.

    A length that does not divide the longest one has no block there: its block begins less than its length before.
    A block's number counts the blocks of its length from the beginning of the stream. Whether it has so many only the
    tokenizer knows; no blocks are listed that the bytes of the text are too few for, but the first of each length.
    """
    longest = max(lengths)
    count = BLOCKS if blocks is None else blocks

    def samples(dataset: Rows, split: str) -> list[Sample]:
        # A token is a byte at least, but for the space that some tokenizers put before a text.
        most = sum(1 + len(text.encode()) for text in _texts(dataset))
        found = []
        for length in sorted(set(lengths)):
            for block in (number * longest // length for number in range(count)):
                if block and (block + 1) * length > most:
                    break
                row = {"length": str(length), "block": str(block), "separator": SEPARATOR}
                found.append(Sample(f"{length}/{block}", row, "-", str(length)))
        return found

    return samples


def blocks(dataset: Rows, shots: int) -> Callable[[Sample], Perplexity]:
    """One block of the documents, one after the other."""
    texts = _texts(dataset)
    return lambda sample: Perplexity(
        text=texts, block=int(sample.row["length"]), index=int(sample.row["block"]), beyond=True
    )


def _texts(dataset: Rows) -> tuple[str, ...]:
    """The documents as they stand in the stream."""
    return tuple(row["text"] + SEPARATOR for row in dataset.rows("test"))


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
