"""Write the golden prompts anew: `QWEN_EVAL_DATA=DIR python tests/tasks/make_golden.py`."""

import hashlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
for name in ("golden_mini.json", "golden_real.json"):
    if not (HERE / name).exists():
        (HERE / name).write_text("{}")

from test_prompts import prompts, unpinned  # noqa: E402

from qwen_eval import registry  # noqa: E402
from qwen_eval.data import find_dataset, mini_dataset  # noqa: E402


def main() -> None:
    files = registry.find()
    golden: dict[str, dict[str, dict[str, object]]] = {"mini": {}, "real": {}}
    for name in files:
        entry = registry.load(name, files)
        folder = Path(os.environ["QWEN_EVAL_DATA"])
        real = find_dataset(entry.task.data, tasks=entry.folder, data_dir=folder, network=False)
        mini = mini_dataset(entry.task.data, entry.folder)
        for protocol in entry.task.protocols:
            key = f"{name}@{protocol.name}"
            texts = prompts(entry, protocol.name, mini)
            golden["mini"][key] = {each: texts[each] for each in chosen(list(texts))}
            if protocol.name in unpinned(entry):
                continue
            texts = prompts(entry, protocol.name, real)
            golden["real"][key] = {
                each: [len(texts[each]), hashlib.sha256(texts[each].encode()).hexdigest()]
                for each in chosen(list(texts))
            }
    for kind, content in golden.items():
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (HERE / f"golden_{kind}.json").write_text(text, encoding="utf-8")


def chosen(ids: list[str]) -> list[str]:
    """The first, one from the middle, the last."""
    return [ids[0], ids[len(ids) // 2], ids[-1]]


if __name__ == "__main__":
    main()
