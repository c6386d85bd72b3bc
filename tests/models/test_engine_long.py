"""Long texts and large vocabularies: memory stays bounded. And requests with next to nothing in them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import SHOTS, TEXTS, agree, answers_of, expected, packed

from qwen_eval.task import Choose, Failed, Generate, Perplexity, Request

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, resource, sys
from pathlib import Path
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.task import Measured, Perplexity

peaks = []
for folder, block in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    model = PackedModel(Checkpoint("any", Path(folder)), device="cpu")
    model.submit(0, Perplexity(text="x" * block, block=block))
    [(_, answer)] = model.collect()
    assert isinstance(answer, Measured), answer
    assert answer.tokens == (block - 1,), answer
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def wide_folder(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with Qwen's vocabulary and a window of 32K."""
    import shutil

    import torch
    import transformers

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tiny_checkpoint("qwen2").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_perplexity_of_a_long_block_needs_no_memory_for_all_its_logits(
    wide_folder: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """3,072 rows of 151,936 logits in float32 would take 1.9 GB; a mask for 16,384 tokens and two heads 2.1 GB."""
    narrow = tiny_checkpoint("qwen2", window=32768)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(wide_folder), "1024"), *(str(wide_folder), "3072"), str(narrow), "16384"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    short, wide, long = json.loads(done.stdout.splitlines()[-1])
    assert wide - short < 1_000_000_000
    assert long - short < 1_000_000_000


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_a_block_measured_in_portions_is_the_same(kind: str, chunk: int, tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint(kind)
    requests: list[Request] = [Perplexity(text=" ".join(TEXTS), block=block) for block in (2, 8, 60)]
    model = packed(folder)
    model._chunk = chunk
    agree(answers_of(model, requests), expected(folder, requests))


# ------------------------------------------------------------------------------------------------------ next to nothing


def test_the_smallest_requests(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [
        Generate(prompt="x", max_new_tokens=1),
        Generate(prompt=SHOTS, max_new_tokens=1),
        Choose(prompt="x", options=("a",)),
        Choose(prompt=SHOTS, options=("a", "a", "b")),
        Choose(prompt=SHOTS, options=("a",)),
        Perplexity(text="x", block=1),
        Perplexity(text="x", block=2),
        Perplexity(text="", block=2),
    ]
    agree(answers_of(packed(folder), requests), expected(folder, requests))


def test_a_prompt_as_long_as_the_window(tiny_checkpoint: Callable[..., Path]) -> None:
    """One token can follow; a prompt that fills the window leaves no room, and an option takes some too."""
    folder = tiny_checkpoint("qwen2", window=64)
    count = len(packed(folder).prompt_tokens(Generate(prompt=SHOTS)))
    assert count in range(60, 64)
    texts = [SHOTS + "x" * more for more in range(64 - count + 2)]
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=9) for text in texts]
    requests += [Choose(prompt=text, options=("a", " A B C")) for text in texts]
    requests += [Choose(prompt=text, options=("a", "b")) for text in texts]
    requests += [Perplexity(text=" ".join(TEXTS), block=block) for block in (63, 64, 65)]
    wanted = expected(folder, requests)
    assert {type(answer).__name__ for answer in wanted} == {"Generated", "Chosen", "Measured", "Failed"}
    for batch_size in (1, None):
        agree(answers_of(packed(folder, batch_size=batch_size), requests), wanted)


def test_an_option_without_a_text_is_certain(tiny_checkpoint: Callable[..., Path]) -> None:
    """It asks for no token; the reference engine gives it 0."""
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [Choose(prompt=SHOTS, options=("a", ""))]
    agree(answers_of(packed(folder), requests), expected(folder, requests))


@pytest.mark.parametrize(
    "empty",
    [Generate(prompt="", max_new_tokens=3), Choose(prompt="", options=("a", "b"))],
    ids=lambda r: type(r).__name__,
)
def test_a_prompt_without_tokens_is_not_answered_in_anothers_name(
    empty: Request, tiny_checkpoint: Callable[..., Path]
) -> None:
    """There is no position whose logits could be asked for."""
    model = packed(tiny_checkpoint("qwen2"))
    for ticket, request in enumerate([Generate(prompt="x"), Choose(prompt="x", options=("a", "b")), empty]):
        model.submit(ticket, request)
    try:
        answers = {}
        while found := model.collect():
            answers |= dict(found)
    except Exception:
        return
    assert isinstance(answers[2], Failed)
