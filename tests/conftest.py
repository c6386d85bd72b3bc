"""Fixtures: a cache of its own for every test, no network, real data where it is, tiny models made on the spot."""

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import first_qwen
import pytest
from hypothesis import settings

from qwen_eval import registry
from qwen_eval.cli import main
from qwen_eval.data import Dataset, mini_dataset
from qwen_eval.models.scripted import ScriptedModel
from qwen_eval.paths import home
from qwen_eval.registry import Entry
from qwen_eval.task import Answer, Chosen, Generate, Generated, Request

ROOT = Path(__file__).resolve().parent.parent

# Read when the libraries are imported, so it is set before anything is.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models run fastest, and alike on every machine, with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same code is tried on the same examples; HYPOTHESIS_PROFILE=default looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's cache, settings or network."""
    for name in [name for name in os.environ if name.startswith("QWEN_EVAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QWEN_EVAL_HOME", str(tmp_path / "home"))


REAL_DATA = os.environ.get("QWEN_EVAL_DATA")


@pytest.fixture
def real_data() -> Path:
    """The folder of the real datasets; tests that need it are skipped, in words, where it is not given."""
    if not REAL_DATA:
        pytest.skip("QWEN_EVAL_DATA is not set: this test needs the real datasets")
    return Path(REAL_DATA).resolve()


@pytest.fixture(scope="session")
def qwen_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of Qwen's vocabulary: the user's, or fetched for this session; skipped, in words, where it is not there."""
    from qwen_eval.errors import DataError
    from qwen_eval.vocabulary import vocabulary_file

    with pytest.MonkeyPatch.context() as patch:
        if not (home() / "vocabulary" / "qwen.tiktoken").exists():
            patch.setenv("QWEN_EVAL_HOME", str(tmp_path_factory.mktemp("vocabulary")))
        try:
            return vocabulary_file()
        except DataError as error:
            pytest.skip(str(error))


@pytest.fixture
def with_vocabulary(qwen_vocabulary: Path, own_world: None) -> None:
    """Qwen's vocabulary is in the cache of this test."""
    target = home() / "vocabulary" / "qwen.tiktoken"
    target.parent.mkdir(parents=True)
    target.symlink_to(qwen_vocabulary)


@pytest.fixture
def entries() -> dict[str, Entry]:
    files = registry.find()
    return {name: registry.load(name, files) for name in files}


@pytest.fixture
def mini(entries: dict[str, Entry]) -> Callable[[str], Dataset]:
    """The small shipped set of a task."""

    def load(name: str) -> Dataset:
        return mini_dataset(entries[name].task.data, entries[name].folder)

    return load


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m qwen_eval …` as a user would, in an empty folder."""

    def call(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qwen_eval", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            timeout=300,
            check=False,
        )

    return call


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, **settings: str) -> tuple[int, str, str]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["qwen_eval", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A scripted chat model in place of a checkpoint; returns the settings it was asked for with."""
    return script_the_model(monkeypatch)


def script_the_model(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    asked: dict[str, object] = {}

    def answer(request: Request) -> Answer:
        number = int(hashlib.sha256(repr(request).encode()).hexdigest(), 16)
        if isinstance(request, Generate):
            return Generated(text=f"The answer is {number % 7}", finish="end", prompt_tokens=5, new_tokens=4)
        return Chosen(logprobs=tuple(-float(number // 7**index % 7) for index in range(4)), prompt_tokens=5)

    def engine(model: str, **settings: object) -> ScriptedModel:
        asked.update(settings)
        return ScriptedModel(answer, chat=True)

    monkeypatch.setattr(importlib.import_module("qwen_eval.commands.run"), "open_engine", engine)
    return asked


@pytest.fixture(scope="session")
def scripted_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three runs of the scripted model on the small sets: text, options with subjects, repeats. To copy."""
    from qwen_eval import run

    folder = tmp_path_factory.mktemp("scripted")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("QWEN_EVAL_")]:
            patch.delenv(name)
        patch.setenv("QWEN_EVAL_HOME", str(folder / "home"))
        script_the_model(patch)
        results = folder / "results"
        run(task=["gsm8k@lm-eval", "mmlu@qwen"], model="toy", limit=6, output_dir=results)
        run(task="gsm8k@qwen-chat", model="toy", limit=4, temperature=1.0, repeats=3, output_dir=results)
    return results


@pytest.fixture(scope="session")
def tiny_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, trained on a few words, with ChatML's markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (ROOT / "tasks" / "_mini" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TINY: dict[str, dict[str, object]] = {
    "cohere2": {"sliding_window": 16},
    "ernie4_5": {"head_dim": 8},
    "exaone4": {"sliding_window": 16},
    "gemma": {"head_dim": 8},
    "gemma3": {
        "text_config": {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 16,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "gemma3_text": {"num_hidden_layers": 6, "head_dim": 8, "sliding_window": 16},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "granitemoe": {"num_local_experts": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "ministral": {"head_dim": 8, "sliding_window": 24},
    "mistral": {"sliding_window": 24},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    "olmo3": {"sliding_window": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "starcoder2": {"sliding_window": 16},
}
"""What a tiny model of a kind has beside the sizes that all have; windows are short enough to matter."""


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_file: Path) -> Callable[..., Path]:
    """Make a tiny random checkpoint folder: `tiny_checkpoint("qwen2", chat=True)`. Same arguments, same folder."""
    import torch
    import transformers

    made: dict[str, Path] = {}

    def make(kind: str = "qwen2", *, chat: bool = True, window: int = 4096, **sizes: int) -> Path:
        key = "-".join(map(str, (kind, chat, window, *sizes.values())))
        if key in made:
            return made[key]
        if kind == "qwen":
            # Not one of transformers': the layout of Qwen's first generation.
            made[key] = first_qwen.write(tmp_path_factory.mktemp(key), chat=chat, max_position_embeddings=window)
            return made[key]
        common = {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": window,
            "bos_token_id": None,
            "eos_token_id": 2 if chat else 0,
            "pad_token_id": 0,
        }
        settings = {**common, **TINY.get(kind, {}), **sizes}
        config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind](**settings)
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)  # away from uniform, so that the argmax is clear
        folder = tmp_path_factory.mktemp(key)
        model.save_pretrained(folder)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tiny_tokenizer_file),
            eos_token="<|im_end|>" if chat else "<|endoftext|>",
            pad_token="<|endoftext|>",
        )
        tokenizer.chat_template = CHATML_TEMPLATE
        tokenizer.save_pretrained(folder)
        made[key] = folder
        return folder

    return make
