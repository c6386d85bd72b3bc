"""Qwen's first generation: the reference outputs of the original code, and a slow model of its own on tiny weights."""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import first_qwen
import numpy as np
import pytest
import torch
from engines import agree, answers_of, expected, packed
from first_qwen import NATIVE, alpha_of, forward, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.errors import DeviceError, ModelError, UsageError
from qwen_eval.models import qwen1
from qwen_eval.models.transformers import loading
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.engine import PackedModel, open_model
from qwen_eval.models.transformers.packed import Prefix
from qwen_eval.models.transformers.packing import Packing
from qwen_eval.models.transformers.quantisation import check_quantisation
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.models.transformers.tokenization import Tokenizer
from qwen_eval.prompts import chat
from qwen_eval.task import Choose, Chosen, Generate, Generated, Measured, Perplexity, Request

DATA = os.environ.get("QWEN_EVAL_DATA")
TINY = os.environ.get("QWEN_EVAL_QWEN1_TINY") or (DATA and str(Path(DATA).resolve().parent / "qwen1_tiny"))
ENGINES = [ReferenceModel, PackedModel]
SETTINGS = {"plain": "plain", "dynamic_ntk": "ntk", "dynamic_ntk+logn": "ntk_logn"}


@pytest.fixture(scope="module")
def original() -> Path:
    """The folder with the outputs of the original code; tests that need it are skipped, in words, without."""
    if not TINY or not (Path(TINY) / "forward.npz").is_file():
        pytest.skip("no reference outputs: QWEN_EVAL_QWEN1_TINY names no folder with forward.npz")
    return Path(TINY)


@pytest.fixture(scope="module")
def golden_folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint of the original outputs, with some vocabulary beside it."""
    folder = Path(shutil.copytree(original / "checkpoint", tmp_path_factory.mktemp("golden") / "checkpoint"))
    shutil.copy(write(tmp_path_factory.mktemp("toy")) / "qwen.tiktoken", folder)
    return folder


def opened(kind: type[ReferenceModel], folder: Path, **more: Any) -> Any:
    return kind(Checkpoint("tiny", folder), device="cpu", dtype="float32", **more)


def logits_of(model: Any, ids: Sequence[int]) -> Any:
    """Logits of one pass over ids, [tokens, vocabulary]."""
    stretch = model.long.stretch(len(ids))
    with torch.inference_mode():
        if not isinstance(model, PackedModel):
            row = torch.tensor([list(ids)])
            return model._forward(row, torch.ones_like(row), None, keep=0, stretches=[stretch])[0][0].numpy()
        model._weights()
        packing = Packing(model._tree)
        packing.add(ids, Prefix(None, (), stretch=stretch))
        packing.wanted += range(len(ids))
        return model._computed(packing).numpy()


def drawn(count: int, seed: int = 1) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, first_qwen.VOCABULARY, count).tolist()
    return found


# ---------------------------------------------------------------------------------------- outputs of the original code


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_logits_are_those_of_the_original_code(
    kind: type[ReferenceModel], earlier: bool, setting: str, original: Path, golden_folder: Path
) -> None:
    config = original / ("config_older_field_names.json" if earlier else "checkpoint/config.json")
    shutil.copy(config, golden_folder / "config.json")
    golden = np.load(original / "forward.npz")
    model = opened(kind, golden_folder, setting=setting)
    for length in (32, 64, 65, 128, 256):
        ids = golden[f"ids_{length}"].tolist()
        assert model.long.stretch(length) == (1.0 if setting == "plain" else float(golden[f"alpha_{length}"]))
        wanted = golden[f"logits_{SETTINGS[setting]}_{length}"]
        assert np.abs(logits_of(model, ids) - wanted).max() < 1e-4, length
        with torch.inference_mode():
            mean = model._block_nll(ids) / (length - 1)
        assert mean == pytest.approx(float(golden[f"mean_nll_{SETTINGS[setting]}_{length}"]), abs=1e-5)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_perplexities_are_those_of_the_original_code(
    kind: type[ReferenceModel], setting: str, original: Path, golden_folder: Path
) -> None:
    golden = np.load(original / "perplexity.npz")
    stream = golden["stream"].tolist()
    model = opened(kind, golden_folder, setting=setting)
    for length in (32, 64, 65, 128, 256):
        blocks = [stream[at : at + length] for at in range(0, len(stream) - length + 1, length)]
        with torch.inference_mode():
            nll = [model._block_nll(block) for block in blocks]
        name = f"{SETTINGS[setting]}_{length}"
        assert [each / (length - 1) for each in nll] == pytest.approx(golden[f"block_mean_nll_{name}"], abs=1e-5)
        perplexity = math.exp(sum(nll) / (len(blocks) * (length - 1)))
        assert perplexity == pytest.approx(float(golden[f"ppl_{name}"]), rel=1e-5)


def test_up_to_the_training_length_no_setting_changes_a_bit(golden_folder: Path) -> None:
    models = [opened(PackedModel, golden_folder, setting=each) for each in (*SETTINGS, "dynamic_ntk+logn+window")]
    for length in (1, 33, NATIVE):
        plain, *others = (logits_of(model, drawn(length)) for model in models)
        for other in others:
            assert np.array_equal(plain, other)


# ------------------------------------------------------------------------------------------------ an independent model


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("files", ["one", "shards", "bin"])
@pytest.mark.parametrize("earlier", [False, True])
def test_every_layout_loads_and_computes_what_a_slow_model_does(
    kind: type[ReferenceModel], files: str, earlier: bool, tmp_path: Path
) -> None:
    model = opened(kind, write(tmp_path / "checkpoint", files=files, earlier=earlier))
    assert model.identity.rope == "dynamic_ntk+logn"
    for length in (5, 64, 65, 129, 300):
        ids = drawn(length, seed=length)
        wanted = forward(ids, alpha=alpha_of(length), logn=True)
        assert np.abs(logits_of(model, ids) - wanted).max() < 2e-3, length


@pytest.mark.parametrize("switches", [(False, False), (True, False), (False, True)])
def test_the_configurations_switches_are_followed(switches: tuple[bool, bool], tmp_path: Path) -> None:
    ntk, logn = switches
    model = opened(PackedModel, write(tmp_path / "one", use_dynamic_ntk=ntk, use_logn_attn=logn))
    assert (
        model.identity.rope == {(False, False): "plain", (True, False): "dynamic_ntk", (False, True): "logn"}[switches]
    )
    ids = drawn(200)
    wanted = forward(ids, alpha=alpha_of(200) if ntk else 1.0, logn=logn)
    assert np.abs(logits_of(model, ids) - wanted).max() < 2e-3


def test_the_switches_are_on_where_the_configuration_says_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    fields = json.loads((folder / "config.json").read_text())
    for name in ("use_dynamic_ntk", "use_logn_attn"):
        del fields[name]
    (folder / "config.json").write_text(json.dumps(fields))
    assert opened(PackedModel, folder).identity.rope == "dynamic_ntk+logn"


PROMPTS = ["the cat " * count + end for count in (2, 11, 15, 20, 40) for end in ("sat", "and the apes")]


def slow_greedy(ids: list[int], limit: int, ends: frozenset[int]) -> list[int]:
    """Greedy tokens of the slow model; alpha is that of the prompt, however long the answer becomes."""
    new: list[int] = []
    while len(new) < limit:
        logits = forward(ids + new, alpha=alpha_of(len(ids)), logn=True)[-1]
        token = int(logits.argmax())
        new.append(token)
        if token in ends:
            break
    return new


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_share_and_pad_and_give_what_each_row_gives_alone(
    kind: type[ReferenceModel], batch_size: int, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Prompts on both sides of the training length, which decode across it and across the next step of alpha."""
    folder = tiny_checkpoint("qwen")
    model = opened(kind, folder, batch_size=batch_size)
    lengths = [len(model.tokenizer.encode_prompt(prompt)) for prompt in PROMPTS]
    assert {alpha_of(length) for length in lengths} == {1.0, 3.0, 7.0}
    requests: list[Request] = [Generate(prompt=prompt, max_new_tokens=20) for prompt in PROMPTS]
    requests += [Choose(prompt=prompt, options=("a", " the end of it")) for prompt in PROMPTS]
    requests += [Choose(prompt=prompt, options=("a", "b")) for prompt in PROMPTS]
    answers = answers_of(model, requests)
    agree(answers, expected(folder, requests))
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        ids = model.tokenizer.encode_prompt(prompt)
        new = slow_greedy(ids, 20, model.tokenizer.end_tokens)
        assert isinstance(answer, Generated)
        said = new[:-1] if answer.finish == "end" else new
        assert (answer.text, answer.new_tokens) == (model.tokenizer.decode(said, after=ids), len(new))


@pytest.mark.parametrize("kind", ENGINES)
def test_options_are_compared_under_the_alpha_of_their_context(
    kind: type[ReferenceModel], tiny_checkpoint: Callable[..., Path]
) -> None:
    model = opened(kind, tiny_checkpoint("qwen"))
    prompt = "x" * NATIVE
    context, option = model.tokenizer.encode(prompt, control=False), model.tokenizer.encode("yzzy", control=False)
    assert len(context) == NATIVE
    logits = forward(context + option, alpha=1.0, logn=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = sum(float(logprobs[NATIVE - 1 + at, token]) for at, token in enumerate(option))
    (answer,) = answers_of(model, [Choose(prompt=prompt, options=("yzzy", "b"))])
    assert isinstance(answer, Chosen)
    assert answer.logprobs[0] == pytest.approx(wanted, abs=2e-3)


def test_a_prefix_is_shared_only_where_alpha_is_the_same(tiny_checkpoint: Callable[..., Path]) -> None:
    folder, begin = tiny_checkpoint("qwen"), "x" * 50

    def computed(*ends: int) -> int:
        model = packed(folder, batch_size=1)
        requests: list[Request] = [
            Choose(prompt=begin + letter * end, options=("a", "b")) for letter, end in zip("pqrs", ends, strict=False)
        ]
        agree(answers_of(model, requests), expected(folder, requests))
        return int(model.counters()["computed_tokens"])

    assert computed(4, 5) == 50 + 4 + 5
    assert computed(20, 21) == 50 + 20 + 21
    assert computed(4, 20) == 50 + 4 + 50 + 20, "1 and 3: nothing of one is of use to the other"
    assert computed(4, 20, 5, 21) == 2 * 50 + 4 + 20 + 5 + 21


def test_what_is_cached_for_one_alpha_is_not_found_for_another_later(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen")
    model = packed(folder, batch_size=2)
    for turn in range(3):
        # Turns of a conversation: the last one's text begins the next one's, beyond the training length.
        requests: list[Request] = [
            Generate(prompt="the apes " * (4 + 9 * turn) + end, max_new_tokens=9) for end in ("a", "b", "c")
        ]
        agree(answers_of(model, requests), expected(folder, requests))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 150), st.sampled_from("abc"), st.integers(1, 12)), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_no_batch_changes_an_answer(
    tiny_checkpoint: Callable[..., Path], asked: list[tuple[int, str, int]], batch_size: int
) -> None:
    folder = tiny_checkpoint("qwen")
    requests: list[Request] = [
        request
        for count, letter, limit in asked
        for request in (
            Generate(prompt="x" * count + letter, max_new_tokens=limit),
            Choose(prompt="x" * count + letter, options=("a", " and on")),
        )
    ]
    agree(answers_of(packed(folder, batch_size=batch_size), requests), expected(folder, requests))


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_several_tokens_after_a_cache_see_only_what_is_before_them(
    kind: type[ReferenceModel], chunk: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_eval.models.transformers.reference.CHUNK", chunk)
    model = opened(kind, tiny_checkpoint("qwen"))
    text = "the cat and the apes sat on 12. " * 9
    ids = model.tokenizer.encode(text, control=False)
    (answer,) = answers_of(model, [Perplexity(text=text, block=100)])
    assert isinstance(answer, Measured)
    for at, nll in enumerate(answer.nll):
        block = ids[100 * at : 100 * at + 100]
        logits = forward(block, alpha=alpha_of(100), logn=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert nll == pytest.approx(-sum(logprobs[place, block[place + 1]] for place in range(99)), abs=2e-2)
    assert len(answer.nll) == len(ids) // 100


# ----------------------------------------------------------------------------------------------------- what is refused


def test_code_that_comes_with_it_is_never_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    for trusted in (False, True):
        model = open_model(Checkpoint("tiny", folder), device="cpu", trusted=trusted, say=pytest.fail)
        assert isinstance(model, PackedModel), "the fast engine"
        assert not model.identity.remote_code
        answers_of(model, [Choose(prompt="x", options=("a", "b"))])


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("transformer.h.1.attn.c_proj.weight"), r"found no model\.layers\.1\.self_attn\.o_proj"),
        (lambda held: held.update(other=torch.ones(1)), r"found other among them"),
        (
            lambda held: held.update({"transformer.h.9.ln_1.weight": torch.ones(32)}),
            r"found transformer\.h\.9\.ln_1\.weight beside them",
        ),
        (
            lambda held: held.update({"transformer.h.0.attn.c_attn.weight": torch.ones(99, 32)}),
            r"expected the shape 32 x 32, found 33 x 32 in each third",
        ),
        (
            lambda held: held.update({"transformer.h.0.attn.c_attn.weight": torch.ones(2, 32)}),
            r"h\.0\.attn\.c_attn\.weight: expected three parts of one size, found the shape 2 x 32",
        ),
        (
            lambda held: held.update({"transformer.h.0.attn.c_attn.bias": torch.tensor(1.0)}),
            r"h\.0\.attn\.c_attn\.bias: expected three parts of one size, found the shape of one number",
        ),
        (lambda held: held.update({"lm_head.weight": torch.ones(7, 32)}), r"lm_head\.weight: expected the shape"),
    ],
)
def test_a_weight_that_is_missing_left_over_or_of_another_shape_is_named(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    model = opened(PackedModel, changed(write(tmp_path / "checkpoint"), change))
    with pytest.raises(ModelError, match=said):
        answers_of(model, [Choose(prompt="x", options=("a", "b"))])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no_bias": False}, "no_bias: expected True"),
        ({"rotary_pct": 0.5}, "rotary_pct: expected 1.0"),
        ({"seq_length": None}, "found no seq_length"),
        ({"seq_length": 0}, "seq_length: expected a whole number above 0, found 0"),
        ({"seq_length": -5}, "seq_length: expected a whole number above 0, found -5"),
        ({"seq_length": "512"}, "seq_length: expected a whole number above 0, found '512'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a whole number above 0, found 0"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers: expected a whole number above 0, found 2.5"),
        ({"hidden_size": math.inf}, "hidden_size: expected a whole number above 0, found inf"),
        ({"max_position_embeddings": True}, "max_position_embeddings: expected a whole number above 0, found True"),
        ({"rotary_emb_base": "1e4"}, "rotary_emb_base: expected a number above 0, found '1e4'"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon: expected a number above 0, found nan"),
        ({"quantization_config": "gptq"}, "quantization_config: expected its fields, found 'gptq'"),
    ],
)
def test_a_configuration_that_none_of_them_has_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        opened(PackedModel, write(tmp_path / "checkpoint", **changes))


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_a_broken_file_about_quantising_is_named(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    (folder / "quantize_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"quantize_config\.json: expected how the weights are quantised"):
        opened(PackedModel, folder)


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    found = first_qwen.config()
    floats = {name: float(value) for name, value in found.items() if type(value) is int}
    model = opened(PackedModel, write(tmp_path / "checkpoint", **floats))
    assert model.long.native == NATIVE
    assert np.abs(logits_of(model, drawn(200)) - forward(drawn(200), alpha=alpha_of(200), logn=True)).max() < 2e-3


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": {"a": [1]}}'])
def test_a_broken_index_is_named(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", files="shards")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"expected (a weight_map with the file of each weight|the file \[1\])"):
        opened(PackedModel, folder).load()


def test_a_file_of_an_old_torch_is_read(tmp_path: Path) -> None:
    """Before 1.6 they were no archives, which cannot be mapped."""
    folder = write(tmp_path / "checkpoint", files="bin")
    for file in folder.glob("*.bin"):
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    ids = drawn(30)
    assert np.abs(logits_of(opened(PackedModel, folder), ids) - forward(ids)).max() < 2e-3


def test_a_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", files="shards")
    (folder / "model-part-1.safetensors").write_bytes(b"no weights")
    request = Choose(prompt="x", options=("a", "b"))
    with pytest.raises(ModelError, match=r"model-part-1\.safetensors: expected a file of weights"):
        answers_of(opened(PackedModel, folder), [request])
    (folder / "model-part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"expected the file model-part-1\.safetensors, which"):
        answers_of(opened(PackedModel, folder), [request])


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "was_run"),))

    folder = write(tmp_path / "checkpoint", files="bin")
    (folder / "pytorch_model-part-1.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="expected a file of weights"):
        answers_of(opened(PackedModel, folder), [Choose(prompt="x", options=("a", "b"))])
    assert not (tmp_path / "was_run").exists()


def test_the_7b_as_it_was_released_fits_its_translation(tmp_path: Path) -> None:
    """Only names and shapes: on the meta device nothing is allocated."""
    import transformers

    changes = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "seq_length": 8192,
        "max_position_embeddings": 32768,
    }
    (tmp_path / "config.json").write_text(json.dumps(first_qwen.config(**changes)))
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(qwen1.read_config(tmp_path))
        held = {"transformer.wte.weight": (151936, 4096), "transformer.ln_f.weight": (4096,)}
        held["lm_head.weight"] = (151936, 4096)
        for layer in range(32):
            begin = f"transformer.h.{layer}"
            held |= {f"{begin}.ln_1.weight": (4096,), f"{begin}.ln_2.weight": (4096,)}
            held |= {f"{begin}.attn.c_attn.weight": (12288, 4096), f"{begin}.attn.c_attn.bias": (12288,)}
            held |= {f"{begin}.attn.c_proj.weight": (4096, 4096), f"{begin}.mlp.c_proj.weight": (4096, 11008)}
            held |= {f"{begin}.mlp.w1.weight": (11008, 4096), f"{begin}.mlp.w2.weight": (11008, 4096)}
        found = {
            target: tuple(part.shape)
            for name, shape in held.items()
            for target, part in qwen1.mapped(name, torch.empty(shape)).items()
        }
    assert found == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert sum(math.prod(shape) for shape in found.values()) == 7_721_324_544


# --------------------------------------------------------------------------------------------------------- the tokenizer


def test_the_tokenizer_agrees_with_the_original_on_every_string(
    original: Path, qwen_vocabulary: Path, tmp_path: Path
) -> None:
    import unicodedata

    tokenizer = Tokenizer(with_published(write(tmp_path / "checkpoint"), qwen_vocabulary))
    encoding = tokenizer.inner.vocabulary.encoding
    lines = (original / "tokenizer_strings.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 100
    for line in map(json.loads, lines):
        text = line["text"]
        assert tokenizer.encode(text, control=True) == line["ids"]
        assert tokenizer.encode(text, control=False) == line["ids_no_special"]
        normal = unicodedata.normalize("NFC", text)
        some = {"<|im_start|>", "<|im_end|>"}
        assert encoding.encode(normal, allowed_special=some, disallowed_special=()) == line["ids_im_only"]
        if line["ids_disallow_all"] == "ERROR:ValueError":
            with pytest.raises(ValueError, match="disallowed special token"):
                encoding.encode(normal)
        else:
            assert encoding.encode(normal) == line["ids_disallow_all"]
        assert tokenizer.decode(line["ids"]) == line["decoded"]
        assert tokenizer.decode([each for each in line["ids"] if each < 151643]) == line["decoded_skip_special"]
        if line["roundtrip"] == "exact":
            assert line["decoded"] == text
        for count, decoded in enumerate(line.get("decoded_prefixes", ()), 1):
            assert tokenizer.decode(line["ids"][:count]) == decoded


def with_published(folder: Path, vocabulary: Path) -> Path:
    """Put the published vocabulary into a checkpoint."""
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    return folder


@pytest.mark.parametrize(
    "said",
    ["Hi", "\nHi", "\n\nHi", "  Hi", "\n", "", "\t\nx", "x\n", "\r\nfoo", " \n a", "Hi <|im_end|>", "\nHi <|im_end|>"],
)
def test_role_line_break_and_text_of_a_turn_are_tokenized_apart(
    said: str, qwen_vocabulary: Path, tmp_path: Path
) -> None:
    """As the original code did it; tokenized whole, "user\\n\\nHi" has one token for both line breaks."""
    tokenizer = Tokenizer(with_published(write(tmp_path / "checkpoint"), qwen_vocabulary))
    start, end, newline, text = [151_644], [151_645], [198], tokenizer.inner.vocabulary.encode
    system = [*start, *text("system"), *newline, *text("You are a helpful assistant."), *end, *newline]
    user = [*start, *text("user"), *newline, *text(said), *end, *newline]
    wanted = [*system, *user, *start, *text("assistant"), *newline]
    assert tokenizer.encode_prompt(chat(said)) == wanted
    [(context, options)] = tokenizer.continuations([(chat(said), ("A", "\nB"))])
    assert (context, options) == (wanted, [text("A"), text("\nB")])


@pytest.mark.parametrize("lines", [70_000, 151_643 - 100])
def test_a_vocabulary_that_was_cut_off_is_refused(lines: int, qwen_vocabulary: Path, tmp_path: Path) -> None:
    folder = with_published(write(tmp_path / "checkpoint", vocab_size=151_936), qwen_vocabulary)
    file = folder / "qwen.tiktoken"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.raises(ModelError, match=rf"expected 151,643 tokens, .* found {lines:,}"):
        Tokenizer(folder)


def test_a_token_that_the_model_does_not_have_is_named(qwen_vocabulary: Path, tmp_path: Path) -> None:
    folder = with_published(write(tmp_path / "checkpoint", chat=False), qwen_vocabulary)
    for kind in ENGINES:
        for request in (
            Generate(prompt="中文"),
            Choose(prompt="a", options=("a", "中文")),
            Perplexity(text="中文", block=2),
        ):
            with pytest.raises(ModelError, match=r"the tokenizer gives token 1\d\d,\d\d\d, the model has 481"):
                answers_of(opened(kind, folder), [request])


def test_the_bytes_of_a_block_are_those_of_its_tokens(qwen_vocabulary: Path, tmp_path: Path) -> None:
    """Blocks of two tokens cut characters: one of them is part of a character, and no U+FFFD of three bytes."""
    folder = with_published(write(tmp_path / "checkpoint", vocab_size=151_936), qwen_vocabulary)
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("🫠 é🫠", control=False)
    sizes = [tokenizer.count_bytes([each], after=[]) for each in ids]
    assert sum(sizes) == len("🫠 é🫠".encode())
    assert tokenizer.count_bytes(ids[1:3], after=ids[:1]) == sizes[1] + sizes[2] == 2


def test_a_chat_model_has_chatml_and_a_base_model_has_none(tmp_path: Path) -> None:
    models = [Tokenizer(write(tmp_path / name, chat=name == "chat")) for name in ("chat", "base")]
    assert [each.is_chat for each in models] == [True, False]
    assert [each.template is None for each in models] == [False, True]
    control = models[0].inner.control
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert models[0].chat_end_tokens == {control[name] for name in names}
    assert models[1].end_tokens == {control["<|endoftext|>"]}
    assert models[0].render(chat("Hi.")) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_marker_typed_by_a_user_stays_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path / "checkpoint"))
    control = set(tokenizer.inner.control.values())
    typed = "a<|im_end|>b<|extra_3|><|endoftext|>"
    assert not control & set(tokenizer.encode_prompt(typed))
    plain, with_markers = (tokenizer.encode_prompt(chat(text)) for text in ("ab", typed))
    assert [each for each in with_markers if each in control] == [each for each in plain if each in control]
    assert tokenizer.decode(with_markers) == tokenizer.render(chat(typed))


def test_a_folder_without_the_vocabulary_says_what_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    (folder / "qwen.tiktoken").unlink()
    with pytest.raises(ModelError, match=r"found no qwen\.tiktoken"):
        Tokenizer(folder)


# ------------------------------------------------------------------------------------------------------------------ GPTQ


def quantized(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint in GPTQ's layout (4 bits, groups of 16), its packed numbers drawn; biases as AutoGPTQ wrote them."""
    from safetensors.torch import save_file

    write(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False})
    held: dict[str, Any] = {}
    draw = torch.Generator().manual_seed(3)
    for name, value in first_qwen.weights().items():
        tensor = torch.from_numpy(value)
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or tensor.dim() == 1 or ".h." not in name:
            held[name] = tensor
            continue
        outputs, inputs = tensor.shape
        high = 2**31 - 1
        held[f"{module}.qweight"] = torch.randint(
            -high, high, (inputs // 4, outputs), generator=draw, dtype=torch.int32
        )
        held[f"{module}.qzeros"] = torch.randint(
            -high, high, (inputs // 16, outputs // 4), generator=draw, dtype=torch.int32
        )
        held[f"{module}.scales"] = torch.rand(inputs // 16, outputs, generator=draw).half()
        held[f"{module}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // 16
        held.setdefault(f"{module}.bias", torch.zeros(outputs))
    held |= {name: torch.from_numpy(value) for name, value in first_qwen.weights().items() if name.endswith("bias")}
    save_file(held, folder / "model.safetensors")
    return folder, held


def test_gptq_is_cut_apart_and_nothing_else_is_done_to_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder, held = quantized(tmp_path / "checkpoint")
    config = qwen1.read_config(folder)
    converted = loading.converted_folder(folder, config)
    assert converted == loading.converted_folder(folder, config), "made once"
    found = load_file(converted / "model-00001.safetensors")
    for kind, dim in (("qweight", 1), ("qzeros", 1), ("scales", 1), ("bias", 0)):
        parts = [found[f"model.layers.1.self_attn.{name}_proj.{kind}"] for name in "qkv"]
        assert torch.equal(torch.cat(parts, dim), held[f"transformer.h.1.attn.c_attn.{kind}"])
    for name in "qkv":
        assert torch.equal(
            found[f"model.layers.1.self_attn.{name}_proj.g_idx"], held["transformer.h.1.attn.c_attn.g_idx"]
        )
    assert torch.equal(found["model.layers.2.mlp.gate_proj.qweight"], held["transformer.h.2.mlp.w2.qweight"])
    assert not any(name.endswith("mlp.gate_proj.bias") for name in found), "zeros that Qwen2 has no place for"
    written = json.loads((converted / "config.json").read_text())
    assert written["quantization_config"]["bits"] == 4
    assert written["architectures"] == ["Qwen2ForCausalLM"]


def test_gptq_without_its_package_or_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = quantized(tmp_path / "checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr("qwen_eval.models.transformers.quantisation._is_installed", lambda module: False)
        # Packages would not help a machine without a GPU.
        with pytest.raises(DeviceError, match=r"quantised \(GPTQ\); expected a CUDA device"):
            opened(PackedModel, folder)
        with pytest.raises(ModelError, match="weights stored by gptq needs gptqmodel"):
            check_quantisation(Checkpoint("tiny", folder), loading.read_config(folder, trusted=False)[1])
    monkeypatch.setattr("qwen_eval.models.transformers.quantisation.NEEDED", {})
    # What is answered already can be shown there.
    model = opened(PackedModel, folder)
    assert (model.identity.dtype, model.identity.exact) == ("int4 (gptq)", False)
    with pytest.raises(DeviceError, match=r"quantised \(GPTQ\); expected a CUDA device"):
        answers_of(model, [Choose(prompt="x", options=("a", "b"))])


def test_a_precision_that_it_cannot_be_loaded_in_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="--precision int4: Qwen's first models are not quantised when"):
        PackedModel(Checkpoint("tiny", folder, precision="int4"), device="cpu")
    assert PackedModel(Checkpoint("tiny", folder, precision="bf16"), device="cpu").dtype == "bfloat16"


def test_another_way_of_quantising_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelError, match="as they are or in GPTQ, found awq"):
        qwen1.quantization(folder)
