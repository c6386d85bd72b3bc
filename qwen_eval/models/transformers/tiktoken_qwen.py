"""The tokenizer of Qwen's first generation, under the calls that we make of transformers' tokenizers."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_eval.errors import ModelError
from qwen_eval.vocabulary import CONTROL_TOKENS, read_vocabulary

__all__ = ["VOCABULARY_FILE", "QwenTokenizer"]

VOCABULARY_FILE = "qwen.tiktoken"
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat format of these models, which stood in their code."""


class QwenTokenizer:
    """`qwen.tiktoken` in a checkpoint folder.

    A chat model (`chat_format` "chatml" in its generation configuration) has the ChatML template, and closes its turn
    with `<|im_end|>`; a base model ("raw") has no template. A `chat_template.jinja` in the folder wins.
    """

    def __init__(self, folder: Path) -> None:
        """Read the vocabulary. Raises ModelError where there is none or another model's, DataError for a broken one."""
        file = folder / VOCABULARY_FILE
        if not file.is_file():
            raise ModelError(
                f"{folder}: expected the vocabulary of a Qwen model of 2023, found no {VOCABULARY_FILE}.\n"
                "Next: copy it from the original checkpoint; it is the same for all of them."
            )
        self.vocabulary = read_vocabulary(file)
        encoding = self.vocabulary.encoding
        self.control = {name: encoding.encode_single_token(name) for name in encoding.special_tokens_set}
        _check_size(folder, self.control)
        self.is_chat = _chat_format(folder) == "chatml"
        own = folder / "chat_template.jinja"
        self.chat_template = own.read_text(encoding="utf-8") if own.is_file() else CHATML if self.is_chat else None

    @property
    def eos_token_id(self) -> int:
        """The token that ends what the model says."""
        return self.control["<|im_end|>" if self.is_chat else "<|endoftext|>"]

    def get_added_vocab(self) -> dict[str, int]:
        """Return the control tokens."""
        return self.control

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> dict[str, list[list[int]]]:
        """Return the ids of texts, with control tokens by name or (`split_special_tokens`) without. None is added."""
        if split_special_tokens:
            return {"input_ids": [self.vocabulary.encode(text) for text in texts]}
        encode = self.vocabulary.encoding.encode
        return {"input_ids": [encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in texts]}

    def decode(self, ids: Sequence[int], **settings: Any) -> str:
        """Return the text of ids, with the names of control tokens; ids beyond them (padded vocabularies) have none."""
        known = self.vocabulary.encoding.n_vocab
        return self.vocabulary.decode([each for each in ids if each < known])

    def count_bytes(self, ids: Sequence[int]) -> int:
        """Return how many bytes ids stand for; none for ids beyond the vocabulary."""
        encoding = self.vocabulary.encoding
        return len(encoding.decode_bytes([each for each in ids if each < encoding.n_vocab]))

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, **settings: Any) -> str:
        """Return the text of a conversation."""
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=self.chat_template, bos_token="", eos_token="", **settings
        )
        text: str = rendered[0]
        return text


def _chat_format(folder: Path) -> str:
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        return str(found.get("chat_format", "raw"))
    except (OSError, ValueError, AttributeError):
        return "raw"


def _check_size(folder: Path, control: Mapping[str, int]) -> None:
    """Raise ModelError where a vocabulary is too short for the published models' embedding: cut off, as a rule.

    The control tokens follow the others, so in a shorter one they would be other tokens of the model.
    """
    found, published = control["<|endoftext|>"], CONTROL_TOKENS["<|endoftext|>"]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        embedded = int(config.get("padded_vocab_size") or config["vocab_size"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # whoever reads the configuration says so
    if embedded >= published != found:
        raise ModelError(
            f"{folder}/{VOCABULARY_FILE}: expected {published:,} tokens, as all these models have, found {found:,}.\n"
            "Next: copy the file from the original checkpoint."
        )
