"""Long texts as one stream of tokens, read on only as far as it is asked for."""

from qwen_eval.models.transformers.tokenization import Tokenizer

__all__ = ["Stream"]


class Stream:
    """The tokens of texts, one text after the other; tokenized as far as they are asked for, and remembered."""

    def __init__(self, texts: str | tuple[str, ...], tokenizer: Tokenizer) -> None:
        """Begin with nothing."""
        self.texts = texts
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._ahead = iter((texts,) if isinstance(texts, str) else texts)

    def block(self, index: int, size: int) -> list[int] | None:
        """Return a block of `size` tokens, by its number from 0; None where the texts end before its end."""
        end = (index + 1) * size
        while len(self.ids) < end:
            text = next(self._ahead, None)
            if text is None:
                return None
            self.ids += self.tokenizer.encode(text, control=False)
        return self.ids[end - size : end]
