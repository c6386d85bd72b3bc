"""What is no number is no answer: NaN and infinity in what a model computes, the same in both engines."""

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import SHOTS, answers_of, compare, packed
from safetensors.torch import load_file, save_file

from qwen_eval.models.base import NOT_A_NUMBER, chosen
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.models.transformers.sampling import next_tokens
from qwen_eval.models.transformers.tokenization import Tokenizer
from qwen_eval.prompts import chat
from qwen_eval.task import Choose, Chosen, Generate, Generated, Perplexity, Request, Sampling

DRAWN = Sampling(temperature=0.7, top_p=0.9, top_k=0, seed=1)
BAD = "~"
"""What is broken in a checkpoint that answers any text without it."""


def changed(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def requests_of(text: str) -> list[Request]:
    return [
        Generate(prompt=text, max_new_tokens=5),
        Generate(prompt=text, max_new_tokens=5, stops=("e",)),
        Generate(prompt=chat(text), max_new_tokens=5),
        *(Generate(prompt=text, max_new_tokens=5, sampling=DRAWN) for _ in range(3)),
        Choose(prompt=text, options=(" A", " B")),
        Choose(prompt=text, options=("a", " a long way to go")),
        Perplexity(text=text * 9, block=16),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["norm.weight", "lm_head.weight", "layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("engine", [packed, None])
def test_a_broken_weight_leaves_nothing_answered(
    engine: Callable[..., ReferenceModel] | None,
    name: str,
    value: float,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        found = next(weight for key, weight in weights.items() if key.endswith(name))
        found.view(-1)[3] = value

    folder = changed(tiny_checkpoint("llama"), tmp_path / "broken", change)
    model = engine(folder) if engine else ReferenceModel(Checkpoint("tiny", folder), device="cpu")
    requests = requests_of(SHOTS)
    assert answers_of(model, requests) == [NOT_A_NUMBER] * len(requests)


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_broken_row_leaves_those_beside_and_behind_it_as_they_are(
    batch_size: int | None, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The embedding of one token is broken: a row behind it stands where NaN stood before."""
    (broken,) = Tokenizer(tiny_checkpoint("llama")).encode(BAD, control=False)

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][broken] = math.nan

    folder = changed(tiny_checkpoint("llama"), tmp_path / "broken", change)
    requests = [
        request
        for at in range(6)
        for text in (f"{SHOTS}{at}", f"{SHOTS}{at} {BAD} and a longer end than the others have")
        for request in requests_of(text)
    ]
    # In the order they are begun: one that goes on, a broken one, and a short one in its place.
    for text, limit in (("! he she", 60), (f"{BAD} he she it and he again", 5), ("\u00e9", 20)):
        requests += [Generate(prompt=f"{at} x{text}", max_new_tokens=limit) for at in "abcdef"]
    compare(folder, requests, batch_size=batch_size)
    answers = answers_of(packed(folder, batch_size=batch_size), requests)
    assert answers.count(NOT_A_NUMBER) == 60
    assert sum(isinstance(answer, Generated) for answer in answers) > 20


@pytest.mark.parametrize("sampling", [None, DRAWN, Sampling(temperature=1.0, top_p=1.0, top_k=3, seed=1)])
def test_a_row_of_logits_without_a_number_has_no_token(sampling: Sampling | None) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    alone = next_tokens(logits, [sampling] * 5, [0.5] * 5)
    logits[0, 7], logits[1, 7], logits[2] = math.nan, math.inf, -math.inf
    # A token that is never said is no fault.
    logits[3, (alone[3] + 1) % 50] = -math.inf
    found = next_tokens(logits, [sampling] * 5, [0.5] * 5)
    assert found[:3] == [-1, -1, -1]
    assert found[4] == alone[4]
    assert found[3] >= 0


def test_an_option_that_is_never_said_is_the_least_likely() -> None:
    answer = chosen([-1.5, -math.inf], prompt_tokens=3)
    assert answer == Chosen(logprobs=(-1.5, -sys.float_info.max), prompt_tokens=3)
    for logprobs in ([-1.0, math.nan], [-math.inf, -math.inf], [math.nan] * 4):
        assert chosen(logprobs, prompt_tokens=3) is NOT_A_NUMBER
