"""The engine on a GPU: the token workload of whole benchmarks on a model of Qwen2.5-7B's shape, beside the floor.

    python benchmarks/gpu.py                     # needs a GPU and QWEN_EVAL_DATA
    python benchmarks/gpu.py --device cpu --tiny --limit 20 mmlu   # only shows that it runs

Weights are random: they cost the same. Nothing ends early, so every answer has the mean length of its benchmark's
reference solutions. The floor is what the arithmetic and the memory of the GPU need at least, each prefix computed
once: 2 x parameters x prompt tokens at the peak rate, and the weights read once for every step of `ROWS` rows.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

NEW_TOKENS = {"mmlu": 1, "ceval": 1, "cmmlu": 1, "gsm8k": 124, "math": 215, "humaneval": 54, "mbpp": 58, "bbh": 197}
"""Mean tokens of the reference solutions; 1 where options are compared."""
ROWS = 512
SHAPE = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def checkpoint(folder: Path, *, tokenizer: Path, tiny: bool) -> None:
    """Write a checkpoint with the shape of Qwen2.5-7B, random weights and a real tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**{**SHAPE, **(TINY if tiny else {})})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}), encoding="utf-8")


def requests(task: str, limit: int | None) -> list[Any]:
    """Return the requests of a benchmark's default base protocol, with answers of the mean length."""
    from qwen_eval import registry
    from qwen_eval.data import find_dataset
    from qwen_eval.plan import make_plan
    from qwen_eval.task import Generate

    entry = registry.load(task, registry.find())
    data = os.environ.get("QWEN_EVAL_DATA")
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=Path(data) if data else None, allow_mini=False)
    plan = make_plan(entry.task, registry.default_protocol(entry.task, chat=False), dataset, limit=limit)
    asked = [request for _, request in plan.first_requests()]
    return [
        replace(each, max_new_tokens=NEW_TOKENS[task], stops=()) if isinstance(each, Generate) else each
        for each in asked
    ]


def measure(model: Any, asked: Sequence[Any]) -> dict[str, float]:
    """Answer all requests; return seconds and what was computed."""
    before = dict(model.counters())
    begun = time.perf_counter()
    for ticket, request in enumerate(asked):
        model.submit(ticket, request)
    left = len(asked)
    while left:
        left -= len(model.collect())
    seconds = time.perf_counter() - begun
    after = model.counters()
    return {"seconds": seconds} | {name: after[name] - before[name] for name in ("computed_tokens", "decode_slots")}


def main() -> None:
    """Measure the benchmarks that exist, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(NEW_TOKENS))
    parser.add_argument("--tokenizer", type=Path, help="A folder with a Qwen2 tokenizer; by default a starter model's.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--teraflops", type=float, default=989.0, help="Dense bfloat16 peak (H200: 989).")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="Memory bandwidth in TB/s (H200: 4.8).")
    given = parser.parse_args()

    from qwen_eval import registry
    from qwen_eval.models.transformers.checkpoint import Checkpoint, locate
    from qwen_eval.models.transformers.engine import PackedModel
    from qwen_eval.report.tables import draw
    from qwen_eval.task import Choose

    known = [task for task in given.tasks if task in registry.find()]
    tokenizer = given.tokenizer or locate("starter:qwen2.5-coder-1.5b-instruct").folder
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(Path(folder), tokenizer=tokenizer, tiny=given.tiny)
        model = PackedModel(Checkpoint("random", Path(folder)), device=given.device, dtype="bfloat16")
        measure(model, [Choose(prompt="warm up " * 200, options=(" A", " B"))])
        parameters = sum(each.numel() for each in model._weights().parameters())
        for task in known:
            found = measure(model, requests(task, given.limit))
            prompts = found["computed_tokens"] - found["decode_slots"]
            compute = 2 * parameters * found["computed_tokens"] / (given.teraflops * 1e12)
            reading = 2 * parameters * found["decode_slots"] / ROWS / (given.bandwidth * 1e12)
            floor = max(compute, reading)
            rows.append(
                {
                    "Benchmark": task,
                    "Prompt tokens": f"{prompts:,.0f}",
                    "New tokens": f"{found['decode_slots']:,.0f}",
                    "Seconds": f"{found['seconds']:.1f}",
                    "Floor": f"{floor:.1f}",
                    "Fraction": f"{floor / found['seconds']:.2f}",
                }
            )
            print(rows[-1], flush=True)
    print(draw(rows, "md"))


if __name__ == "__main__":
    main()
