"""Stop strings: the engine looks at a text only where its last token can end it, and must miss none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from engines import SHOTS, TEXTS, agree, answers_of, expected, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.reference import ReferenceModel, Row
from qwen_eval.models.transformers.tokenization import Tokenizer
from qwen_eval.prompts import chat
from qwen_eval.task import Answer, Failed, Generate, Generated, Request

TEXT = "Ann has 3 apples.\n\n问题：苹果？ café, naïve – 🙂👍🏽 and\tthe end  of it\nQuestion: x"
STOPS = [
    "\n", " ", "\n\n", "\nQuestion:", "apples.", "ples", "s.\n", "问", "题：苹", "é", "caf", "é,", "–", "🙂", "👍", "🏽",
    "🙂👍", "\t", "  ", "t", "A", "Ann", "An", "the end", "zzz", "\n\n\n", "x", "❓", "�", "�\n",
]  # fmt: skip


@contextmanager
def saying(scripts: dict[str, list[int]]) -> Iterator[None]:
    """Both engines generate given tokens, by prompt: the model's own words are too random to stop at."""

    def take(self: ReferenceModel, rows: Sequence[Row], logits: Any) -> None:
        for row in rows:
            assert isinstance(row.request.prompt, str)
            row.new.append(scripts[row.request.prompt][len(row.new)])
        self._counters["new_tokens"] += len(rows)

    with patch.object(ReferenceModel, "_take_tokens", take):
        yield


def both(folder: Path, scripts: dict[str, list[int]], requests: list[Request]) -> list[Answer | Failed]:
    with saying(scripts):
        found = answers_of(packed(folder, batch_size=3), requests)
        # As the reference engine answers them: together, since what is said depends on no other row.
        assert found == answers_of(ReferenceModel(Checkpoint("tiny", folder), device="cpu", batch_size=40), requests)
    return found


def test_stops_of_all_kinds_end_a_text_at_their_first_place(tiny_checkpoint: Callable[..., Path]) -> None:
    """A piece of a token, several tokens, a character of several tokens, a space, a newline, the very first token."""
    folder = tiny_checkpoint("qwen2")
    prompts = [TEXTS[4], "x"]
    ids = Tokenizer(folder).encode(TEXT, control=False)
    assert len(ids) > len(TEXT)
    requests: list[Request] = [
        Generate(prompt=prompt, max_new_tokens=len(ids), stops=(stop,)) for stop in STOPS for prompt in prompts
    ]
    answers = both(folder, dict.fromkeys(prompts, ids), requests)
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(request, Generate)
        assert isinstance(answer, Generated)
        [stop] = request.stops
        if "�" not in stop:
            assert answer.text == TEXT.partition(stop)[0]
            assert answer.finish == ("stop" if stop in TEXT else "length")


def test_the_stop_that_comes_first_wins_whatever_the_order(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    ids = Tokenizer(folder).encode(TEXT, control=False)
    overlapping = [
        ("apples.\n\n", "ples."),
        ("ples.", "apples.\n\n"),
        ("\n\n", "\n"),
        ("题：苹果", "：", "苹果？"),
        ("s", "3", "a"),
    ]
    requests: list[Request] = [Generate(prompt="x", max_new_tokens=99, stops=stops) for stops in overlapping]
    texts = [answer.text for answer in both(folder, {"x": ids}, requests) if isinstance(answer, Generated)]
    # A stop counts as soon as it is there: a longer one that begins earlier is not waited for.
    assert texts == ["Ann has 3 ap", "Ann has 3 ap", "Ann has 3 apples.", TEXT.partition("：")[0], "Ann h"]


def test_an_end_token_or_the_limit_with_a_stop_still_unfinished(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    ids = Tokenizer(folder).encode("one Question", control=False)
    requests: list[Request] = [
        Generate(prompt="x", max_new_tokens=limit, stops=(" Question:",)) for limit in (1, 2, len(ids), 50)
    ]
    answers = both(folder, {"x": [*ids, 2]}, requests)
    finished = [answer.finish for answer in answers if isinstance(answer, Generated)]
    assert finished == ["length", "length", "length", "end"]


def test_generated_texts_stop_as_those_of_the_reference(tiny_checkpoint: Callable[..., Path]) -> None:
    """At pieces of what the model itself says, for plain texts and conversations."""
    folder = tiny_checkpoint("llama")
    free: list[Request] = [Generate(prompt=text, max_new_tokens=30) for text in TEXTS]
    requests: list[Request] = []
    for text, answer in zip(TEXTS, expected(folder, free), strict=True):
        assert isinstance(answer, Generated)
        said = answer.text
        for begin in range(0, len(said), 7):
            requests.append(Generate(prompt=text, max_new_tokens=30, stops=(said[begin : begin + 1 + begin % 3], "zz")))
        requests.append(Generate(prompt=chat(text), max_new_tokens=30, stops=(said[5:6], said[3:6])))
    agree(answers_of(packed(folder, batch_size=5), requests), expected(folder, requests))


@pytest.fixture(scope="module")
def spaced_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Llama 2's and Gemma's: ▁ for a space, bytes for what it has no token for, one space dropped."""
    import transformers
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    words = ["▁", "▁a", "a", "b", "▁the", "end", "Q", ":", "▁▁", "\n", "é", "中", "s", "."]
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocabulary |= {word: 258 + at for at, word in enumerate(words)}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("spaced")
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


def stopping(tokenizer: Tokenizer, before: list[int], ids: list[int], stop: str) -> None:
    """Token by token: where a stop is in a text that was not in it before, the last token could be known to close it."""
    texts = [tokenizer.decode(ids[:count], after=before) for count in range(len(ids) + 1)]
    for token, shorter, longer in zip(ids, texts, texts[1:], strict=False):
        if stop in longer and stop not in shorter:
            assert tokenizer.closes(token, (stop,))
            assert tokenizer.closes(token, ("zzzz", stop))


written = [260, 261, 262, 227, 131, 223, 100, 17]  # often one after the other: pieces of characters, spaces, words
stops_at = st.tuples(st.integers(0, 40), st.integers(1, 5))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.integers(0, 399), st.sampled_from(written)), min_size=1, max_size=14),
    st.lists(st.integers(0, 399), max_size=9),
    stops_at,
)
def test_a_token_that_makes_a_stop_appear_is_known_to(
    tiny_checkpoint: Callable[..., Path], ids: list[int], before: list[int], at: tuple[int, int]
) -> None:
    tokenizer = _loaded(tiny_checkpoint("qwen2"))
    text = tokenizer.decode(ids, after=before)
    begin = at[0] % max(1, len(text))
    for stop in {text[begin : begin + at[1]], "e", " ", "\n", "�"} - {""}:
        stopping(tokenizer, before, ids, stop)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.integers(258, 271),
            st.sampled_from([2 + byte for byte in [*"\n 中é🙂a".encode(), 0xE4, 0xC3, 0xF0]]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(258, 271), max_size=3),
    stops_at,
)
def test_a_token_of_a_tokenizer_that_drops_spaces_and_joins_bytes_too(
    spaced_folder: Path, ids: list[int], before: list[int], at: tuple[int, int]
) -> None:
    tokenizer = _loaded(spaced_folder)
    text = tokenizer.decode(ids, after=before)
    begin = at[0] % max(1, len(text))
    # A byte that breaks a character shows as U+FFFD; no one stops at these.
    for stop in {text[begin : begin + at[1]].partition("�")[0], " ", "\n", "a", " a"} - {""}:
        stopping(tokenizer, before, ids, stop)


def test_most_tokens_are_known_not_to_close_anything(tiny_checkpoint: Callable[..., Path]) -> None:
    """Else every text would be decoded again at every token."""
    tokenizer = _loaded(tiny_checkpoint("qwen2"))
    ids = set(tokenizer.encode(SHOTS, control=False))
    closing = [token for token in ids if tokenizer.closes(token, ("\n\n", "Q:"))]
    assert {tokenizer.decode([token]) for token in closing} <= {"\n", "\n\n", ":", ".\n\n", ".\n"}
    assert not any(tokenizer.closes(token, ()) for token in ids)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.one_of(st.integers(3, 399), st.sampled_from(written)), min_size=1, max_size=16),
        min_size=1,
        max_size=4,
    ),
    st.lists(stops_at, min_size=1, max_size=3),
)
def test_whatever_tokens_come_both_engines_stop_alike(
    tiny_checkpoint: Callable[..., Path], scripts: list[list[int]], cuts: list[tuple[int, int]]
) -> None:
    folder = tiny_checkpoint("qwen2")
    tokenizer = _loaded(folder)
    said = {f"{text}{at}": ids for at, (text, ids) in enumerate(zip(TEXTS, scripts, strict=False))}
    requests: list[Request] = []
    for prompt, ids in said.items():
        text = tokenizer.decode(ids, after=tokenizer.encode(prompt, control=False))
        stops = tuple(text[begin % max(1, len(text)) :][:count] for begin, count in cuts)
        requests.append(Generate(prompt=prompt, max_new_tokens=len(ids), stops=tuple(filter(None, stops))))
    both(folder, said, requests)


_tokenizers: dict[Path, Tokenizer] = {}


def _loaded(folder: Path) -> Tokenizer:
    if folder not in _tokenizers:
        _tokenizers[folder] = Tokenizer(folder)
    return _tokenizers[folder]
