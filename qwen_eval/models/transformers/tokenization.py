"""Prompts to token ids and back, exactly: markers typed by a user stay text, options are found in their context."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.models.qwen1 import is_qwen1
from qwen_eval.models.transformers.checkpoint import first_line, has_own_code, untrusted
from qwen_eval.models.transformers.tiktoken_qwen import QwenTokenizer
from qwen_eval.prompts import opencompass_chatml
from qwen_eval.task import Chat, Prompt, Turn

__all__ = ["Tokenizer", "common_length"]

CHATML_ENDS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


class Tokenizer:
    """A checkpoint's tokenizer and chat template, with its end tokens."""

    def __init__(
        self, folder: Path, *, model: Path | None = None, trusted: bool = False, size: int | None = None
    ) -> None:
        """Load from a checkpoint folder. Raises ModelError when it has no usable tokenizer.

        `model` is the folder whose configurations name end tokens, where it is another one. `size` is how many tokens
        the model has, where that is known: what encodes raises ModelError for a token beyond them.

        `trusted`: code that comes with the checkpoint may be run.
        """
        self.folder = folder
        self.size = size
        self.inner: Any = _loaded(folder, trusted=trusted)
        self.markers = sorted((str(token) for token in self.inner.get_added_vocab()), key=len, reverse=True)
        self.end_tokens = self._end_tokens(model or folder)
        self.encodes_turns_apart = isinstance(self.inner, QwenTokenizer)
        """Qwen's first code made the ids of a turn's text by themselves: its first line break is no part of another."""
        self._closing: dict[tuple[int, tuple[str, ...]], bool] = {}

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

    @cached_property
    def chat_end_tokens(self) -> frozenset[int]:
        """The end tokens of a conversation: also ChatML's markers and the end of text, where they exist."""
        known = self.inner.get_added_vocab()
        return self.end_tokens | {known[marker] for marker in CHATML_ENDS if marker in known}

    def render(self, prompt: Prompt) -> str:
        """Return the exact text for a prompt. Raises UsageError for a conversation without a chat template."""
        return prompt if isinstance(prompt, str) else self._conversation(prompt, prompt.turns)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt: a template's markers are control tokens, those in a text are not."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids of each prompt; all of them tokenized together, on all processors."""
        found: list[list[int]] = [[] for _ in prompts]
        plain: list[tuple[int, str]] = []
        whole: list[tuple[int, str]] = []
        for place, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                plain.append((place, prompt))
                continue
            text = self.render(prompt)
            said = (prompt.begun, prompt.tools, *(turn.content for turn in prompt.turns))
            apart = self.encodes_turns_apart and prompt.form != "opencompass"
            if not apart and not any(marker in part for part in said for marker in self.markers):
                # The usual case: one text, tokenized whole, as the model was trained on it.
                whole.append((place, text))
            else:
                parts = self._parts(prompt, text)
                found[place] = [token for part, control in parts for token in self.encode(part, control=control)]
        for texts, control in ((plain, False), (whole, True)):
            ids = self._encode_all([text for _, text in texts], control=control, specials=not control)
            for (place, _), encoded in zip(texts, ids, strict=True):
                found[place] = encoded
        return found

    def encode(self, text: str, *, control: bool) -> list[int]:
        """Return the ids of a text, without the tokenizer's BOS. `control`: markers become control tokens."""
        return self._encode_all([text], control=control, specials=False)[0]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """Return the text of ids that follow `after` (some tokenizers drop a leading space without it)."""
        before = list(after[-8:])
        prefix = self._decode(before)
        return self._decode([*before, *ids])[len(prefix) :]

    def count_bytes(self, ids: Sequence[int], *, after: Sequence[int]) -> int:
        """Return how many bytes of UTF-8 ids stand for that follow `after`.

        Only Qwen's first tokenizer says it of single tokens. Elsewhere those of a character that is cut at an edge
        count as the three of U+FFFD.
        """
        if isinstance(self.inner, QwenTokenizer):
            return self.inner.count_bytes(ids)
        return len(self.decode(ids, after=after).encode())

    def closes(self, token: int, stops: tuple[str, ...]) -> bool:
        """Return whether a text could contain one of `stops` with this token and not without it."""
        if not stops:
            return False
        known = (token, stops)
        if known not in self._closing:
            text = self.decode([token], after=[token])
            # A token that is part of a character shows as U+FFFD, one that changes its neighbours may show as nothing.
            self._closing[known] = not text or "\ufffd" in text or any(stop[-1:] in text for stop in stops)
        return self._closing[known]

    def continuations(self, asked: Sequence[tuple[Prompt, Sequence[str]]]) -> list[tuple[list[int], list[list[int]]]]:
        """Return the ids of each context and of each of its options after it.

        The ids are those that appear when prompt and option are tokenized together. Where the option changes the
        prompt's own tokens, the context is cut back to what all of them share, so that the options stay comparable.
        """
        contexts = self.encode_prompts([prompt for prompt, _ in asked])
        plain = [prompt + option for prompt, options in asked if isinstance(prompt, str) for option in options]
        chats = [
            replace(prompt, begun=prompt.begun + option)
            for prompt, options in asked
            if not isinstance(prompt, str)
            for option in options
        ]
        after_text = iter(self._encode_all(plain, control=False, specials=True))
        after_chat = iter(self.encode_prompts(chats))
        found = []
        for (prompt, options), context in zip(asked, contexts, strict=True):
            after = after_text if isinstance(prompt, str) else after_chat
            wholes = [next(after) for _ in options]
            shared = min(common_length(context, whole) for whole in wholes)
            found.append((context[:shared], [whole[shared:] for whole in wholes]))
        return found

    def _encode_all(self, texts: Sequence[str], *, control: bool, specials: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.inner(list(texts), add_special_tokens=specials, split_special_tokens=not control)
        ids: list[list[int]] = encoded["input_ids"]
        highest = max((max(each) for each in ids if each), default=0)
        if self.size is not None and highest >= self.size:
            raise ModelError(
                f"{self.folder}: the tokenizer gives token {highest:,}, the model has {self.size:,}: they do not "
                "belong together.\nNext: take the tokenizer's files from the checkpoint that the weights are from."
            )
        return ids

    def _conversation(self, prompt: Chat, turns: Sequence[Turn]) -> str:
        if prompt.form == "opencompass" and all(marker in self.markers for marker in CHATML_ENDS[:2]):
            return opencompass_chatml(turns) + prompt.begun
        if self.template is None:
            raise UsageError(
                "this protocol is a conversation, and the model has no chat template.\n"
                "Next: choose a base protocol (--base), or put a chat_template.jinja into the checkpoint folder."
            )
        text = self._apply(turns, add_generation_prompt=True, tools=prompt.tools)
        if prompt.tools and text == self._apply(turns, add_generation_prompt=True):
            raise UsageError(
                "this protocol declares functions, and the model's chat template says nothing of them.\n"
                "Next: choose another protocol, or a model whose template has a place for tools."
            )
        return text + prompt.begun

    def _parts(self, prompt: Chat, text: str) -> list[tuple[str, bool]]:
        """Tell the template's text (True: its markers are control tokens) from what is said in it (False).

        That is the contents of the turns, what the assistant has begun, and every text in the declared tools.
        """
        # The same conversation with a place holder for each of them shows where they are.
        places = [Turn(turn.role, f"\ue000{index}\ue001") for index, turn in enumerate(prompt.turns)]
        declared = [each for each in _strings(prompt.tools) if any(marker in each for marker in self.markers)]
        skeleton = self._conversation(replace(prompt, tools=_masked(prompt.tools, declared), begun=""), places)
        contents = [turn.content for turn in prompt.turns]
        begun = [(prompt.begun, False)] if prompt.begun else []
        parts: list[tuple[str, bool]] = []
        for said in (contents, [content.strip() for content in contents]):  # a template may strip what it is given
            for written in WRITINGS if declared else WRITINGS[:1]:
                fillings = [written(each) for each in declared]
                parts = [
                    piece
                    for part, control in _filled(skeleton, places, said)
                    for piece in (_unmasked(part, fillings) if control else [(part, False)])
                ] + begun
                if "".join(part for part, _ in parts) == text:
                    return parts
        return parts

    def _apply(self, turns: Sequence[Turn], *, add_generation_prompt: bool, tools: str = "") -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        declared = {"tools": json.loads(tools)} if tools else {}
        try:
            text: str = self.inner.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **declared
            )
        except Exception as error:  # a template raises whatever its author wrote
            if turns and turns[0].role == "system":
                # Templates without a system role (Gemma's, for one) refuse it; the turn is left out.
                return self._apply(turns[1:], add_generation_prompt=add_generation_prompt, tools=tools)
            raise ModelError(f"The chat template cannot render this conversation ({error}).") from error
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _end_tokens(self, folder: Path) -> frozenset[int]:
        """Every id that ends an answer: of the generation config, the model config and the tokenizer."""
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


def _loaded(folder: Path, *, trusted: bool) -> Any:
    """Return the tokenizer of a folder: that of Qwen's first generation, or whatever transformers makes of it."""
    if is_qwen1(folder):
        return QwenTokenizer(folder)
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # transformers raises whatever the file at fault makes it raise
        if has_own_code(folder) and not trusted:
            raise untrusted(folder) from error
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({first_line(error)}).") from error


def _filled(skeleton: str, places: Sequence[Turn], contents: Sequence[str]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for place, content in zip(places, contents, strict=True):
        before, found, rest = skeleton.partition(place.content)
        if found:
            parts += [(before, True), (content, False)]
            skeleton = rest
    return [*parts, (skeleton, True)]


WRITINGS: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: text,
)
"""How a template may write a text of a declared tool: most write JSON."""


def _masked(tools: str, texts: Sequence[str]) -> str:
    """Return the JSON of declared tools with a place holder for each of the texts, names of fields included."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {walk(name): walk(each) for name, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return f"\ue002{texts.index(value)}\ue003" if value in texts else value

    return json.dumps(walk(json.loads(tools)), ensure_ascii=False) if texts else tools


def _unmasked(part: str, fillings: Sequence[str]) -> list[tuple[str, bool]]:
    """Put texts in the places that `_masked` has made; they are no control tokens, what is around them may be."""
    pieces = re.split("\ue002([0-9]+)\ue003", part)
    filled = [(fillings[int(piece)], False) if at % 2 else (piece, True) for at, piece in enumerate(pieces)]
    return [piece for piece in filled if piece[0]]


def _strings(tools: str) -> list[str]:
    """Return every text in the JSON of declared tools, names of fields included, each once."""
    found: dict[str, None] = {}
    waiting: list[Any] = [json.loads(tools)] if tools else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found[value] = None
        elif isinstance(value, dict | list):
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return list(found)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
