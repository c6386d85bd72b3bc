"""Adapters: what peft computes beside the weights, an engine answers with; what does not fit is refused in plain lines."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import TEXTS, answers_of

from qwen_eval.errors import ModelError
from qwen_eval.models.transformers import checkpoint
from qwen_eval.models.transformers.checkpoint import identify, locate
from qwen_eval.models.transformers.engine import PackedModel
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.task import Chat, Choose, Chosen, Generate, Generated, Request, Turn

peft: Any = pytest.importorskip("peft")
Cli = Callable[..., tuple[int, str, str]]
BLOCKS = {"hidden_size": 64, "intermediate_size": 128}
"""Sizes that weights of 4 bits can have: whole blocks of 64."""
OPTIONS = (" A", " B", " a long way to go")


def plain(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def adapted(model: Any, *, seed: int = 1, **settings: Any) -> Any:
    """The model with a random adapter, by peft itself."""
    import torch

    torch.manual_seed(seed)
    settings = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def save(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def make(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a random adapter for a tiny model; returns its folder."""

    def write(name: str = "one", kind: str = "qwen2", sizes: dict[str, Any] | None = None, **settings: Any) -> Path:
        return save(adapted(plain(tiny_checkpoint(kind, **sizes or {})), **settings), tmp_path / name)

    return write


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_logits_are_those_of_the_adapter_beside_the_weights(
    kind: str, use_rslora: bool, tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    import torch

    settings = {"r": 4, "lora_alpha": 16, "use_rslora": use_rslora}
    folder, adapter = tiny_checkpoint(kind), make(kind=kind, **settings)
    model = ReferenceModel(locate(str(folder), adapter=adapter), device="cpu")
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        expected = adapted(plain(folder), **settings)(ids).logits
        found = model._weights()(ids).logits
        without = plain(folder)(ids).logits
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((found - without).abs().max()) > 1
    # Merged: nothing is left to compute beside the weights.
    assert not [name for name, _ in model._weights().named_modules() if "lora" in name]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_engine_answers_as_the_reference_with_an_adapter(
    kind: str, tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    found = locate(str(tiny_checkpoint(kind)), adapter=make(kind=kind))
    requests: list[Request] = [Generate(prompt=text, max_new_tokens=12) for text in TEXTS]
    requests += [Choose(prompt=text, options=OPTIONS) for text in TEXTS]
    reference = answers_of(ReferenceModel(found, device="cpu", batch_size=1), requests)
    packed = answers_of(PackedModel(found, device="cpu"), requests)
    alone = answers_of(PackedModel(locate(str(tiny_checkpoint(kind))), device="cpu"), requests)
    for one, other in zip(packed, reference, strict=True):
        if isinstance(other, Chosen):
            assert isinstance(one, Chosen)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        else:
            assert one == other
    assert packed != alone


def test_an_adapter_on_shared_embeddings_changes_the_one_it_was_trained_on(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "tied"))
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    model = plain(folder)
    model.tie_weights()
    model.save_pretrained(folder)
    wrapped = adapted(plain(folder), target_modules=["embed_tokens", "q_proj"])
    adapter = save(wrapped, tmp_path / "adapter")
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        expected = wrapped(ids).logits
        found = ReferenceModel(locate(str(folder), adapter=adapter), device="cpu")._weights()(ids).logits
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_two_adapters_over_one_model_are_two_models(
    tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    folder = str(tiny_checkpoint("qwen2"))
    one, other, same = make("one"), make("other", seed=2), make("same")
    found = [locate(folder), *(locate(folder, adapter=adapter) for adapter in (one, other))]
    assert len({identify(each) for each in found}) == 3
    assert [each.name.partition("+")[2] for each in found] == ["", "one", "other"]
    assert identify(locate(folder, adapter=same)) == identify(found[1]), "the name of the folder plays no part"
    config = json.loads((one / "adapter_config.json").read_text())
    (one / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert identify(locate(folder, adapter=one)) != identify(locate(folder, adapter=same))


def test_an_adapter_that_changes_before_it_is_loaded_answers_nothing(
    tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    adapter = make()
    model = PackedModel(locate(str(tiny_checkpoint("qwen2")), adapter=adapter), device="cpu")
    shutil.copy(make("other", seed=2) / "adapter_model.safetensors", adapter)
    with pytest.raises(ModelError, match="found it changed"):
        answers_of(model, [Generate(prompt="x", max_new_tokens=2)])


def test_the_tokenizer_that_training_saved_with_the_adapter_is_used(
    tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    import transformers

    folder, adapter = tiny_checkpoint("qwen2"), make()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ 'Other: ' + messages[0]['content'] + '<|im_end|>' }}"
    chat = Generate(prompt=Chat(turns=(Turn("user", "hello"),)), max_new_tokens=4)
    before = ReferenceModel(locate(str(folder), adapter=adapter), device="cpu")
    tokenizer.save_pretrained(adapter)
    after = ReferenceModel(locate(str(folder), adapter=adapter), device="cpu")
    assert after.prompt_tokens(chat) != before.prompt_tokens(chat)
    assert after.identity.fingerprint != before.identity.fingerprint
    assert after.tokenizer.end_tokens == before.tokenizer.end_tokens


@pytest.mark.parametrize("wrong", ["shapes", "layers", "missing", "garbage", "modules"])
def test_an_adapter_that_does_not_fit_is_refused(
    wrong: str, tiny_checkpoint: Callable[..., Path], make: Callable[..., Path], tmp_path: Path
) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    adapter = make()
    weights = adapter / "adapter_model.safetensors"
    if wrong in ("shapes", "layers"):
        settings = (
            {"hidden_size": 64}
            if wrong == "shapes"
            else {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
        )
        config: Any = transformers.AutoConfig.from_pretrained(tiny_checkpoint("qwen2"), **settings)
        adapter = save(adapted(transformers.AutoModelForCausalLM.from_config(config)), tmp_path / "larger")
    elif wrong == "missing":
        tensors = load_file(weights)
        save_file(dict(list(tensors.items())[1:]), weights)
    elif wrong == "garbage":
        weights.write_bytes(b"nothing")
    else:
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["no_such_layer"]}))
    model = ReferenceModel(locate(str(tiny_checkpoint("qwen2")), adapter=adapter), device="cpu")
    with pytest.raises(ModelError, match=f"--adapter {adapter.name}: ") as error:
        model.load()
    assert 1 <= len(str(error.value).splitlines()) <= 3


def test_a_prompt_that_was_learned_is_no_adapter_of_weights(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("qwen2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        adapter = save(peft.get_peft_model(plain(folder), config), tmp_path / "prompt")
    with pytest.raises(ModelError, match="expected an adapter of weights, such as LoRA, found"):
        ReferenceModel(locate(str(folder), adapter=adapter), device="cpu").load()


def test_an_adapter_that_repeats_layers_is_refused(
    make: Callable[..., Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    adapter = make("repeats", layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(ModelError, match=r"found one that repeats some of them \(layer_replication\)"):
        ReferenceModel(locate(str(tiny_checkpoint("qwen2")), adapter=adapter), device="cpu").load()


def test_folders_that_are_no_adapters_and_a_missing_package(
    tiny_checkpoint: Callable[..., Path],
    make: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, adapter = str(tiny_checkpoint("qwen2")), make()
    for nothing in (tmp_path / "nowhere", Path(folder)):
        with pytest.raises(ModelError, match=r"expected a folder with adapter_config\.json"):
            locate(folder, adapter=nothing)
    with pytest.raises(ModelError, match=r"found an adapter alone\.\n.* --adapter"):
        locate(str(adapter))
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"expected the package peft, found none\.\nNext: `pip install"):
        locate(folder, adapter=adapter)


def test_a_run_with_an_adapter_says_so_and_is_one_of_its_own(
    cli: Cli, tiny_checkpoint: Callable[..., Path], make: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("qwen2")
    words = ["run", "--task", "mmlu@qwen", "--limit", "4", "--model", str(folder)]
    one, other = make("one"), make("other", seed=2)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/Other-7B"}))
    code, _, err = cli(*words)
    assert (code, "trained on" in err) == (0, False)
    code, _, err = cli(*words, "--adapter", str(one))
    assert (code, "trained on" in err) == (0, False), err
    code, _, err = cli(*words, "--adapter", str(other))
    assert code == 0
    assert f"Warning: --adapter {other} was trained on some/Other-7B" in err
    runs = sorted((tmp_path / "results").rglob("manifest.json"))
    manifests = [json.loads(file.read_text()) for file in runs]
    assert len({each["model"]["fingerprint"] for each in manifests}) == 3
    assert sum("peft" in each["versions"] for each in manifests) == 2
    assert len({(file.parent / "answers.jsonl").read_bytes() for file in runs}) == 3


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_an_adapter_stays_beside_quantised_weights(
    precision: str, tiny_checkpoint: Callable[..., Path], make: Callable[..., Path]
) -> None:
    import torch

    pytest.importorskip("bitsandbytes")
    folder = tiny_checkpoint("llama", **BLOCKS)
    adapter = make(kind="llama", sizes=BLOCKS, target_modules=["q_proj", "down_proj"])
    with_it = PackedModel(locate(str(folder), adapter=adapter, precision=precision), device="cpu")
    alone = ReferenceModel(locate(str(folder), precision=precision), device="cpu")
    ids = torch.arange(5, 40)[None]
    quantised = alone._weights()
    with torch.inference_mode():
        expected = adapted(quantised, target_modules=["q_proj", "down_proj"])(ids).logits
    reference = ReferenceModel(locate(str(folder), adapter=adapter, precision=precision), device="cpu")
    with torch.inference_mode():
        found = reference._weights()(ids).logits
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert [name for name, _ in reference._weights().named_modules() if "lora_A" in name]
    (answer,) = answers_of(with_it, [Generate(prompt="x", max_new_tokens=4)])
    assert isinstance(answer, Generated)
    assert answer.new_tokens
