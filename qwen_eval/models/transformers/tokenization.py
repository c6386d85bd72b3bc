"""Prompts to token ids and back, exactly: markers typed by a user stay text, options are found in their context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.models.transformers.checkpoint import first_line
from qwen_eval.prompts import opencompass_chatml
from qwen_eval.task import Chat, Prompt, Turn

__all__ = ["Tokenizer"]

CHATML_ENDS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


class Tokenizer:
    """A checkpoint's tokenizer and chat template, with its end tokens."""

    def __init__(self, folder: Path) -> None:
        """Load from a checkpoint folder. Raises ModelError when it has no usable tokenizer."""
        import transformers

        transformers.logging.set_verbosity_error()
        try:
            self.inner: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever the file at fault makes it raise
            raise ModelError(f"{folder}: the tokenizer cannot be loaded ({first_line(error)}).") from error
        self.markers = sorted((str(token) for token in self.inner.get_added_vocab()), key=len, reverse=True)
        self.end_tokens = self._end_tokens(folder)

    @property
    def template(self) -> str | None:
        """The chat template, None for a model without one."""
        template = self.inner.chat_template
        return template if isinstance(template, str) else None

    @property
    def is_chat(self) -> bool:
        """Whether the token that closes a turn in the chat template is one of the model's end tokens.

        Base checkpoints often ship the template of their chat siblings; what tells them apart is that only a chat
        model ends its answer with the turn's end token.
        """
        if self.template is None:
            return False
        said = "x7q"
        text = self._apply([Turn("user", "?"), Turn("assistant", said)], add_generation_prompt=False)
        closing = self.encode(text.rpartition(said)[2], control=True)
        return any(token in self.end_tokens for token in closing)

    @property
    def chat_end_tokens(self) -> frozenset[int]:
        """The end tokens of a conversation: also ChatML's markers and the end of text, where they exist."""
        known = self.inner.get_added_vocab()
        return self.end_tokens | {known[marker] for marker in CHATML_ENDS if marker in known}

    def render(self, prompt: Prompt) -> str:
        """Return the exact text for a prompt. Raises UsageError for a conversation without a chat template."""
        return prompt if isinstance(prompt, str) else self._conversation(prompt, prompt.turns)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt: a template's markers are control tokens, those in a text are not."""
        if isinstance(prompt, str):
            return self.encode(prompt, control=False, specials=True)
        text = self.render(prompt)
        if not any(marker in turn.content for turn in prompt.turns for marker in self.markers):
            # The usual case: one text, tokenized whole, as the model was trained on it.
            return self.encode(text, control=True)
        return [token for part, control in self._parts(prompt, text) for token in self.encode(part, control=control)]

    def encode(self, text: str, *, control: bool, specials: bool = False) -> list[int]:
        """Return the ids of a text. `control`: markers become control tokens. `specials`: with the tokenizer's BOS."""
        ids: list[int] = self.inner(text, add_special_tokens=specials, split_special_tokens=not control)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """Return the text of ids that follow `after` (some tokenizers drop a leading space without it)."""
        before = list(after[-8:])
        prefix = self._decode(before)
        return self._decode([*before, *ids])[len(prefix) :]

    def continuations(self, prompt: Prompt, options: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Return the ids of the context and of each option after it.

        The ids are those that appear when prompt and option are tokenized together. Where the option changes the
        prompt's own tokens, the context is cut back to what all of them share, so that the options stay comparable.
        """
        context = self.encode_prompt(prompt)
        if isinstance(prompt, str):
            wholes = [self.encode_prompt(prompt + option) for option in options]
        else:
            text = self.render(prompt)
            wholes = [self.encode(text + option, control=True) for option in options]
        shared = min(_common_length(context, whole) for whole in wholes)
        return context[:shared], [whole[shared:] for whole in wholes]

    def _conversation(self, prompt: Chat, turns: Sequence[Turn]) -> str:
        if prompt.form == "opencompass" and all(marker in self.markers for marker in CHATML_ENDS[:2]):
            return opencompass_chatml(turns)
        if self.template is None:
            raise UsageError(
                "this protocol is a conversation, and the model has no chat template.\n"
                "Next: choose a base protocol (--base), or put a chat_template.jinja into the checkpoint folder."
            )
        return self._apply(turns, add_generation_prompt=True)

    def _parts(self, prompt: Chat, text: str) -> list[tuple[str, bool]]:
        """Tell the template's text (True: its markers are control tokens) from what the turns say (False)."""
        # The same conversation with a place holder for each content shows where the contents are.
        places = [Turn(turn.role, f"\ue000{index}\ue001") for index, turn in enumerate(prompt.turns)]
        skeleton = self._conversation(prompt, places)
        contents = [turn.content for turn in prompt.turns]
        parts = _filled(skeleton, places, contents)
        if "".join(part for part, _ in parts) != text:  # a template that strips what it is given
            parts = _filled(skeleton, places, [content.strip() for content in contents])
        return parts

    def _apply(self, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self.inner.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template raises whatever its author wrote
            if turns and turns[0].role == "system":
                # Templates without a system role (Gemma's, for one) refuse it; the turn is left out.
                return self._apply(turns[1:], add_generation_prompt=add_generation_prompt)
            raise ModelError(f"The chat template cannot render this conversation ({error}).") from error
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _end_tokens(self, folder: Path) -> frozenset[int]:
        """Every id that ends an answer: of the generation config, the model config and the tokenizer."""
        import json

        ends: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError):
                continue
            ends |= {found} if isinstance(found, int) else set(found or ())
        if self.inner.eos_token_id is not None:
            ends.add(self.inner.eos_token_id)
        return frozenset(ends)


def _filled(skeleton: str, places: Sequence[Turn], contents: Sequence[str]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for place, content in zip(places, contents, strict=True):
        before, found, rest = skeleton.partition(place.content)
        if found:
            parts += [(before, True), (content, False)]
            skeleton = rest
    return [*parts, (skeleton, True)]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length
