"""Beyond the training length: the techniques by their formulas, and newer models under them."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import first_qwen
import pytest
import torch
from engines import TEXTS, agree, answers_of
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.models.longcontext import LongContext, long_context, settings_of
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.engine import KINDS as ALL_KINDS
from qwen_eval.models.transformers.engine import PackedModel, open_model
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.models.transformers.rotary import query_scales
from qwen_eval.task import Choose, Failed, Generate, Measured, Perplexity, Request

ROPES = ["dynamic_ntk", "dynamic", "yarn", "linear"]
KINDS = ["llama", "qwen2", "qwen3", "cohere", "glm", "olmo2", "phi", "mistral"]
TEXT = "Ann has 3 apples and buys 4 more. She has 7. He pays 12 dollars for 3 pens. One costs 4. " * 9


def opened(kind: type[ReferenceModel], folder: Path, **more: Any) -> Any:
    return kind(Checkpoint("tiny", folder), device="cpu", **more)


def nll(model: Any, block: int, text: str = TEXT) -> float:
    (answer,) = answers_of(model, [Perplexity(text=text, block=block, index=0, beyond=True)])
    assert isinstance(answer, Measured), answer
    return answer.nll[0]


# ----------------------------------------------------------------------------------------------------------- formulas


@given(st.integers(1, 300_000), st.sampled_from([64, 1000, 2048, 8192]))
def test_alpha_is_that_of_the_published_formula(tokens: int, native: int) -> None:
    long = LongContext(native=native, rope="dynamic_ntk")
    wanted = max(1.0, 2 ** math.ceil(math.log2(tokens / native) + 1) - 1)
    assert long.stretch(tokens) == wanted


@pytest.mark.parametrize("rope", ROPES)
def test_up_to_the_training_length_nothing_is_stretched_and_beyond_it_ever_more(rope: str) -> None:
    long = LongContext(native=64, rope=rope)
    assert {long.stretch(tokens) for tokens in range(1, 65)} == {1.0}
    found = [long.stretch(tokens) for tokens in range(65, 1000)]
    assert found == sorted(found)
    assert found[0] > 1


def test_logn_goes_beyond_the_published_table_of_32767_entries() -> None:
    long = LongContext(native=8192, logn=True)
    scales = query_scales(long, torch.arange(40_000)[None])
    assert scales is not None
    for place in (1, 8191, 8192, 8193, 16384, 32767, 32768, 32769, 40_000):
        wanted = math.log(place, 8192) if place > 8192 else 1.0
        assert float(scales[0, place - 1]) == pytest.approx(wanted, rel=1e-7), place
    assert query_scales(long, torch.arange(8192)[None]) is None
    assert query_scales(LongContext(native=8192), torch.arange(40_000)[None]) is None


def test_windows_are_never_shorter_than_the_training_length_and_the_upper_quarter_sees_everything() -> None:
    windows = LongContext(native=2048, window=True).windows(32)
    assert windows[0] == 2048
    assert windows[23] == 4 * 2048
    bounded = [each for each in windows if each is not None]
    assert bounded == sorted(bounded)
    assert windows[24:] == [None] * 8
    assert LongContext(native=2048, window=True).windows(1) == [None]
    assert LongContext(native=2048).windows(3) == [None] * 3


def test_settings_have_one_spelling_each() -> None:
    assert settings_of("plain, dynamic_ntk,logn+dynamic_ntk,window+yarn") == [
        "plain",
        "dynamic_ntk",
        "dynamic_ntk+logn",
        "yarn+window",
    ]
    assert settings_of("plain+logn,logn") == ["logn"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dynamic-ntk", r"found 'dynamic-ntk'\. Did you mean 'dynamic_ntk'"),
        ("yarn+linear", "found yarn and linear"),
        ("logn+logn", "found logn and logn"),
        ("", "found ''"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        long_context(setting, native=64)


# ------------------------------------------------------------------------------------------------------- newer models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", [*ROPES, "dynamic_ntk+logn+window"])
def test_both_engines_agree_and_up_to_the_training_length_with_the_plain_model(
    kind: str, setting: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(kind, window=64)
    fast, slow = (opened(each, folder, setting=setting, batch_size=3) for each in (PackedModel, ReferenceModel))
    plain = opened(PackedModel, folder)
    assert nll(fast, 64) == nll(plain, 64)
    for block in (65, 200):
        assert nll(fast, block) == pytest.approx(nll(slow, block), abs=1e-3)
        assert abs(nll(fast, block) - nll(plain, block)) > 1e-3, "it changes something there"
    requests: list[Request] = [Generate(prompt=TEXT[: 9 * at * at], max_new_tokens=9) for at in range(2, 9)]
    requests += [Choose(prompt=TEXT[: 40 * at], options=("a", " more of it")) for at in range(1, 9)]
    agree(answers_of(fast, requests), answers_of(slow, requests))


OTHER_ROTATIONS = ["gemma3", "gemma3_text", "olmo3"]
OWN_WINDOWS: dict[str, dict[str, Any]] = {
    # Only some layers have one: enough of them that the schedule reaches others.
    **{each: {"num_hidden_layers": 8} for each in ("cohere2", "exaone4")},
    "ministral": {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4},
    # Every layer has one: longer than the schedule's.
    **{each: {"sliding_window": 150} for each in ("mistral", "mixtral", "starcoder2")},
}


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind not in OTHER_ROTATIONS])
def test_windows_change_every_kind_of_model_beyond_the_training_length_and_not_a_bit_up_to_it(
    kind: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(kind, window=64, **OWN_WINDOWS.get(kind, {}))
    beyond = []
    for engine in (PackedModel, ReferenceModel):
        plain, windows = (opened(engine, folder, setting=each, batch_size=3) for each in ("plain", "window"))
        for block in (9, 40, 64):
            assert nll(windows, block) == nll(plain, block), (engine, block)
        beyond.append((nll(windows, 200), answers_of(windows, [Generate(prompt=TEXT[:300], max_new_tokens=9)])))
        assert abs(beyond[-1][0] - nll(plain, 200)) > 1e-3, engine
    (fast, said), (slow, wanted) = beyond
    assert fast == pytest.approx(slow, abs=1e-3)
    agree(said, wanted)


OWN: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    "cohere2": {},
    "exaone4": {},
    "ministral": {},
    "mistral": {},
}


@pytest.mark.parametrize("kind", OWN)
def test_a_window_of_the_models_own_is_never_made_wider(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """All of these have a shorter one in the only layer that the schedule reaches."""
    folder = tiny_checkpoint(kind, window=64, **OWN[kind])
    for engine in (PackedModel, ReferenceModel):
        plain, windows = (opened(engine, folder, setting=each) for each in ("plain", "window"))
        assert nll(windows, 32) == nll(plain, 32), engine
        assert nll(windows, 200) == pytest.approx(nll(plain, 200), abs=1e-3), engine


def changed(folder: Path, target: Path, rope: dict[str, Any]) -> Path:
    made = Path(shutil.copytree(folder, target))
    config = json.loads((made / "config.json").read_text())
    config["rope_parameters"] = {**config["rope_parameters"], **rope}
    (made / "config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize(
    ("setting", "rope"),
    [
        ("dynamic", {"rope_type": "dynamic", "factor": 2.0}),
        ("yarn", {"rope_type": "yarn", "factor": 3.125, "original_max_position_embeddings": 64}),
        ("linear", {"rope_type": "linear", "factor": 3.125}),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_types_of_transformers_are_those_of_transformers(
    kind: str, setting: str, rope: dict[str, Any], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """200 tokens are 3.125 training lengths."""
    import transformers

    folder = tiny_checkpoint(kind, window=64)
    model = opened(PackedModel, folder, setting=setting)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(changed(folder, tmp_path / "one", rope)).eval()
    ids = model.tokenizer.encode(TEXT, control=False)[:200]
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    wanted = -sum(float(logprobs[at, ids[at + 1]]) for at in range(199))
    assert nll(model, 200) == pytest.approx(wanted, abs=2e-3)


def test_qwens_ntk_is_transformers_dynamic_where_a_length_is_a_power_of_two_times_the_training_length(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    folder = tiny_checkpoint("llama", window=64)
    own, theirs = (opened(PackedModel, folder, setting=each) for each in ("dynamic_ntk", "dynamic"))
    assert nll(own, 128) == nll(theirs, 128)
    assert abs(nll(own, 100) - nll(theirs, 100)) > 1e-3


@pytest.mark.parametrize("kind", OTHER_ROTATIONS)
def test_a_model_with_other_rotations_is_refused_in_words(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="--settings yarn: expected"):
        answers_of(
            opened(PackedModel, tiny_checkpoint(kind, window=64), setting="yarn"), [Choose(prompt="x", options=("a",))]
        )


def test_a_model_that_is_stretched_already_is_refused_in_words(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed(tiny_checkpoint("llama"), tmp_path / "one", {"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ModelError, match="rope type linear"):
        opened(PackedModel, folder, setting="yarn")


def test_another_setting_is_another_model_and_its_own_is_the_same(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("llama", window=64)
    prints = {each: opened(PackedModel, folder, setting=each).identity for each in (None, "plain", "yarn", "logn")}
    assert prints[None] == prints["plain"]
    assert len({each.fingerprint for each in prints.values()}) == 3
    assert [each.rope for each in prints.values()] == [None, None, "yarn", "logn"]
    first = tiny_checkpoint("qwen")
    assert opened(PackedModel, first).identity == opened(PackedModel, first, setting="dynamic_ntk+logn").identity


# ---------------------------------------------------------------------------------------------------------- the blocks


def test_one_block_is_asked_for_by_its_number_and_texts_are_one_stream(tiny_checkpoint: Callable[..., Path]) -> None:
    model = opened(PackedModel, tiny_checkpoint("qwen2"))
    texts = tuple(TEXTS)
    stream = [token for text in texts for token in model.tokenizer.encode(text, control=False)]
    (whole,) = answers_of(model, [Perplexity(text=texts, block=20)])
    assert isinstance(whole, Measured)
    assert len(whole.nll) == len(stream) // 20
    parts = answers_of(model, [Perplexity(text=texts, block=20, index=at) for at in range(len(whole.nll) + 2)])
    for at, part in enumerate(parts):
        assert isinstance(part, Measured)
        assert part.nll == pytest.approx(whole.nll[at : at + 1], abs=1e-4), at
        assert part.tokens == whole.tokens[at : at + 1]
        said = model.tokenizer.decode(stream[20 * at : 20 * at + 20])
        assert (part.bytes == ()) if at >= len(whole.nll) else (0 < part.bytes[0] <= len(said.encode()))


def test_a_text_is_tokenized_only_as_far_as_it_is_asked_for(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(PackedModel, tiny_checkpoint("qwen2"))
    real, seen = model.tokenizer.encode, []
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda text, control: seen.append(text) or real(text, control=control)
    )
    texts = tuple(f"{at} {TEXTS[4]}" for at in range(9))
    requests: list[Request] = [Perplexity(text=texts, block=8, index=at) for at in (0, 1, 0)]
    answers_of(model, requests)
    assert seen == [texts[0]]


@pytest.mark.parametrize("kind", [PackedModel, ReferenceModel])
def test_no_more_logits_are_held_at_once_than_those_of_a_chunk(
    kind: type[ReferenceModel], tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Context x vocabulary is what would not fit: 32,768 x 151,936 are 20 GB."""
    shapes: list[tuple[int, ...]] = []
    real = torch.nn.functional.cross_entropy

    def watched(logits: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return real(logits, *args, **more)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", watched)
    nll(opened(kind, tiny_checkpoint("qwen")), 1500, TEXT * 3)
    assert shapes == [(512, first_qwen.VOCABULARY), (512, first_qwen.VOCABULARY), (475, first_qwen.VOCABULARY)]


@pytest.mark.parametrize("kind", [PackedModel, ReferenceModel])
def test_blocks_beyond_the_window_are_measured_only_where_that_is_asked_for(
    kind: type[ReferenceModel], tiny_checkpoint: Callable[..., Path]
) -> None:
    model = opened(kind, tiny_checkpoint("qwen2", window=64))
    refused, measured = answers_of(
        model, [Perplexity(text=TEXT, block=65), Perplexity(text=TEXT, block=65, index=0, beyond=True)]
    )
    assert isinstance(refused, Failed)
    assert isinstance(measured, Measured)


# ------------------------------------------------------------------------------------------------------- code of others


def own_code(tiny_checkpoint: Callable[..., Path], tmp_path: Path, model_type: str) -> Path:
    """A checkpoint whose model is code in its folder: a Qwen2 under another name."""
    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "own"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(
        f"from transformers import Qwen2Config\n\n\nclass OwnConfig(Qwen2Config):\n    model_type = '{model_type}'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import Qwen2ForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnModel(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def test_code_of_a_checkpoint_is_run_only_where_it_is_trusted(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = own_code(tiny_checkpoint, tmp_path, "own")
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(ModelError, match="if you trust it, add --trust-remote-code"):
        opened(PackedModel, folder)
    said: list[str] = []
    model = open_model(Checkpoint("own", folder), device="cpu", trusted=True, say=said.append)
    assert model.identity.remote_code
    assert "answered by the slower reference engine" in said[0]
    request = Generate(prompt="Ann has", max_new_tokens=5)
    agree(answers_of(model, [request]), answers_of(opened(ReferenceModel, tiny_checkpoint("qwen2")), [request]))


def test_code_that_calls_itself_by_a_known_kind_is_not_taken_for_it(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = own_code(tiny_checkpoint, tmp_path, "qwen2")
    said: list[str] = []
    model = open_model(Checkpoint("own", folder), device="cpu", trusted=True, say=said.append)
    assert type(model) is ReferenceModel
    assert said
    with pytest.raises(ModelError, match="kind its own code"):
        opened(PackedModel, folder, trusted=True, setting="yarn")
    native = open_model(Checkpoint("own", folder), device="cpu", say=pytest.fail)
    assert isinstance(native, PackedModel), "untrusted, it is transformers' own Qwen2"
    assert not native.identity.remote_code


def test_windows_of_qwens_first_models_are_the_same_in_both_engines(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen")
    fast, slow = (
        opened(each, folder, setting="dynamic_ntk+logn+window", batch_size=3) for each in (PackedModel, ReferenceModel)
    )
    requests: list[Request] = [Generate(prompt=TEXT[: 50 * at], max_new_tokens=30) for at in range(1, 10)]
    requests += [Choose(prompt=TEXT[: 50 * at], options=("a", " more of it")) for at in range(1, 10)]
    requests += [Perplexity(text=TEXT, block=300)]
    agree(answers_of(fast, requests), answers_of(slow, requests))
