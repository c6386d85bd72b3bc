"""Golden prompts: the full text for the project's own small sets, length and SHA-256 for the real data.

After an intended change, `python tests/tasks/make_golden.py` writes the files anew; read the difference before you
commit it.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_eval import registry
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.plan import make_plan, own_split
from qwen_eval.prompts import as_text
from qwen_eval.registry import Entry
from qwen_eval.task import Choose, Generate, Perplexity, Request

HERE = Path(__file__).parent
MINI = json.loads((HERE / "golden_mini.json").read_text(encoding="utf-8"))
REAL = json.loads((HERE / "golden_real.json").read_text(encoding="utf-8"))


def asked(request: Request) -> str:
    """The prompt as text, and after a line what is asked of it."""
    if isinstance(request, Perplexity):
        texts = "".join(request.text)
        digest = hashlib.sha256(texts.encode()).hexdigest()
        return f"{len(texts):,} characters, SHA-256 {digest}\n--- {(request.block, request.index, request.beyond)!r}"
    text = as_text(request.prompt)
    what = request.options if isinstance(request, Choose) else (request.max_new_tokens, request.stops)
    return f"{text}\n--- {what!r}"


def prompts(entry: Entry, protocol: str, dataset: Dataset) -> dict[str, str]:
    plan = make_plan(entry.task, registry.protocol(entry.task, protocol), dataset)
    return {sample.id: asked(request) for sample, request in plan.first_requests()}


def unpinned(entry: Entry) -> list[str]:
    """The protocols on data whose official rows nobody published a count of: there is no real copy to render."""
    task = entry.task
    return [each.name for each in task.protocols if not task.data.splits[own_split(task, each)].rows]


def test_every_protocol_has_golden_prompts(entries: dict[str, Entry]) -> None:
    names = {f"{name}@{protocol.name}" for name, entry in entries.items() for protocol in entry.task.protocols}
    assert set(MINI) == names
    assert set(REAL) == names - {f"{name}@{each}" for name, entry in entries.items() for each in unpinned(entry)}
    assert all(len(golden) >= 3 for golden in (*MINI.values(), *REAL.values()))


@pytest.mark.parametrize("name", sorted(MINI))
def test_mini_prompts(name: str, entries: dict[str, Entry], mini: Callable[[str], Dataset]) -> None:
    task, protocol = name.split("@")
    rendered = prompts(entries[task], protocol, mini(task))
    for identifier, text in MINI[name].items():
        assert rendered[identifier] == text


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_prompts(name: str, entries: dict[str, Entry], real_data: Path) -> None:
    task, protocol = name.split("@")
    entry = entries[task]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    rendered = prompts(entry, protocol, dataset)
    for identifier, (length, digest) in REAL[name].items():
        text = rendered[identifier]
        assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == (length, digest), text[:2000]


def test_the_8_shot_prompt_is_the_published_file_to_the_byte(entries: dict[str, Entry], real_data: Path) -> None:
    entry = entries["gsm8k"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
    plan = make_plan(entry.task, registry.protocol(entry.task, "qwen"), dataset, limit=3)
    published = (real_data / "gsm8k" / "gsm8k_prompt.txt").read_text(encoding="utf-8")
    for sample, request in plan.first_requests():
        assert isinstance(request, Generate)
        assert request.prompt == f"{published}\nQuestion: {sample.row['question']}\nLet's think step by step\n"


def test_a_protocol_without_its_exemplar_file_says_so(
    entries: dict[str, Entry], real_data: Path, tmp_path: Path
) -> None:
    import shutil

    from qwen_eval.errors import DataError

    (tmp_path / "gsm8k").mkdir()
    for name in ("test.jsonl", "train.jsonl"):
        shutil.copyfile(real_data / "gsm8k" / name, tmp_path / "gsm8k" / name)
    entry = entries["gsm8k"]
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False)
    with pytest.raises(DataError, match=r"lm_eval_cot_8shot\.txt, which is not there"):
        make_plan(entry.task, registry.protocol(entry.task, "lm-eval-cot"), dataset)
