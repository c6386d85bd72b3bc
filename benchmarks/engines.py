"""The engine beside the reference engine and lm-evaluation-harness: the same prompts, the same model, one thread.

    make bench                          # everything; needs QWEN_EVAL_DATA
    python benchmarks/engines.py mmlu   # one workload

Each contender is a process of its own; they alternate. Wall, processor time and peak memory are the whole process's,
imports and reading weights included. lm-evaluation-harness gets the finished prompts as a task of its own, so that
engines are compared and not prompts. Ratios count, not seconds: they belong to one machine in one session.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "starter:smollm2-135m-instruct"
NEW_TOKENS = 96
STOP = "Question:"
SIZES = {"mmlu": 100, "gsm8k": 32}
SUBJECTS = ("anatomy", "high_school_geography", "miscellaneous", "philosophy")
LM_EVAL = Path(".venv-lm-eval/bin/python")


# ---------------------------------------------------------------------------------------------------------- workloads


def prompts(workload: str, count: int) -> list[dict[str, Any]]:
    """Return the workload's prompts: MMLU 5-shot, the first items of four subjects; GSM8K 8-shot, the first items."""
    from qwen_eval import registry
    from qwen_eval.data import find_dataset
    from qwen_eval.runner import make_plan

    entry = registry.load(workload, registry.find())
    folder = os.environ.get("QWEN_EVAL_DATA")
    dataset = find_dataset(
        entry.task.data, tasks=entry.folder, data_dir=Path(folder) if folder else None, allow_mini=False
    )
    plan = make_plan(entry.task, registry.protocol(entry.task, "qwen"), dataset)
    groups = SUBJECTS if workload == "mmlu" else ("",)
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in groups}
    for sample, request in plan.first_requests():
        if len(found.get(sample.group, [None] * count)) < count // len(groups):
            found[sample.group].append({"prompt": request.prompt, "options": list(getattr(request, "options", ()))})
    return [item for group in groups for item in found[group]]


# --------------------------------------------------------------------------------------------------------- contenders


def ours(engine: str, items: Sequence[dict[str, Any]]) -> list[Any]:
    """Answer with one of our engines: the best option's index, or the generated text."""
    from qwen_eval.models.transformers.checkpoint import locate
    from qwen_eval.models.transformers.engine import open_model
    from qwen_eval.task import Choose, Chosen, Generate, Generated

    model = open_model(locate(MODEL), engine=engine, device="cpu")
    for ticket, item in enumerate(items):
        if item["options"]:
            model.submit(ticket, Choose(prompt=item["prompt"], options=tuple(item["options"])))
        else:
            model.submit(ticket, Generate(prompt=item["prompt"], max_new_tokens=NEW_TOKENS, stops=(STOP,)))
    answers: dict[int, Any] = {}
    while arrived := model.collect():
        for ticket, answer in arrived:
            if isinstance(answer, Chosen):
                answers[ticket] = max(range(len(answer.logprobs)), key=answer.logprobs.__getitem__)
            elif isinstance(answer, Generated):
                answers[ticket] = answer.text
    return [answers[ticket] for ticket in range(len(items))]


def lm_eval(items: Sequence[dict[str, Any]], folder: Path) -> list[Any]:
    """Answer with lm-evaluation-harness' Hugging Face backend, through a task made of the finished prompts."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({**item, "target": 0}) + "\n" for item in items), encoding="utf-8")
    common = {
        "task": "bench",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
    }
    if items[0]["options"]:
        task = common | {
            "output_type": "multiple_choice",
            "doc_to_choice": "options",
            "doc_to_target": "target",
            "metric_list": [{"metric": "acc"}],
        }
    else:
        task = common | {
            "output_type": "generate_until",
            "doc_to_target": "target",
            "generation_kwargs": {"until": [STOP], "max_gen_toks": NEW_TOKENS, "do_sample": False},
            "metric_list": [{"metric": "bypass"}],
        }
    (folder / "bench.yaml").write_text(json.dumps(task), encoding="utf-8")
    from transformers import AutoModelForCausalLM

    checkpoint = os.environ["BENCH_CHECKPOINT"]
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"),
        tokenizer=checkpoint,
        device="cpu",
        batch_size=8,
    )
    result = simple_evaluate(
        model, tasks=["bench"], task_manager=TaskManager(include_path=str(folder), include_defaults=False)
    )
    answers = []
    for sample in sorted(result["samples"]["bench"], key=lambda each: each["doc_id"]):
        if items[0]["options"]:
            scores = [float(answer[0]) for answer in sample["filtered_resps"]]
            answers.append(max(range(len(scores)), key=scores.__getitem__))
        else:
            answers.append(sample["resps"][0][0])
    return answers


# ------------------------------------------------------------------------------------------------------------- timing


def measured(contender: str, file: Path) -> dict[str, Any]:
    """Run a contender in a process of its own; return wall and processor seconds, peak memory in GB, its answers."""
    python = LM_EVAL if contender == "lm-eval" else Path(sys.executable)
    # The checkpoint's own path is not resolved: a virtual environment is known by the path of its interpreter.
    from qwen_eval.models.transformers.checkpoint import locate

    settings = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "BENCH_CHECKPOINT": str(locate(MODEL).folder),
    }
    begun = time.monotonic()
    process = subprocess.Popen([str(python), __file__, "--contender", contender, "--file", str(file)], env=settings)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    if status:
        raise SystemExit(f"{contender}: ended with status {status}")
    answers = json.loads(file.with_suffix(f".{contender}.json").read_text(encoding="utf-8"))
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 1e6, "answers": answers}


def compare(workload: str, count: int, contenders: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row a contender: the medians of its rounds, and how far it agrees with the engine."""
    from statistics import median

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.json"
        file.write_text(json.dumps(prompts(workload, count)), encoding="utf-8")
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
        for _ in range(rounds):
            for contender in contenders:
                runs[contender].append(measured(contender, file))
    first = runs[contenders[0]]
    rows = []
    for contender, found in runs.items():
        cpu = median(run["cpu"] for run in found)
        pairs = zip(found[0]["answers"], first[0]["answers"], strict=True)
        same = sum(str(one).strip() == str(other).strip() for one, other in pairs)
        rows.append(
            {
                "Workload": f"{workload}, {count} items",
                "Contender": contender,
                "CPU s": f"{cpu:.0f}",
                "CPU ratio": f"{cpu / median(run['cpu'] for run in first):.1f}",
                "Wall s": f"{median(run['wall'] for run in found):.0f}",
                "Peak GB": f"{max(run['memory'] for run in found):.2f}",
                "Same answers": f"{same} of {count}",
            }
        )
    return rows


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=list(SIZES))
    parser.add_argument("--count", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        items = json.loads(given.file.read_text(encoding="utf-8"))
        named = {"engine": "auto", "reference": "reference"}
        answers = (
            lm_eval(items, given.file.parent) if given.contender == "lm-eval" else ours(named[given.contender], items)
        )
        given.file.with_suffix(f".{given.contender}.json").write_text(json.dumps(answers), encoding="utf-8")
        return
    from qwen_eval.report.tables import draw

    contenders = ["engine", "reference", *(["lm-eval"] if LM_EVAL.exists() else [])]
    rows = [
        row
        for workload in given.workloads
        for row in compare(workload, given.count or SIZES[workload], contenders, given.rounds)
    ]
    print(draw(rows, "md"))


if __name__ == "__main__":
    main()
