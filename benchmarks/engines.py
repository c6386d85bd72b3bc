"""The engine beside the reference engine and lm-evaluation-harness: the same prompts, the same model, one thread.

    make bench                          # everything; needs QWEN_EVAL_DATA
    python benchmarks/engines.py mmlu   # one workload

Each contender is a process of its own; they alternate. Wall, processor time and peak memory are the whole process's,
imports and reading weights included. lm-evaluation-harness gets the finished prompts as a task of its own, so that
engines are compared and not prompts. Ratios count, not seconds: they belong to one machine in one session.
"""

import argparse
import json
import lzma
import math
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
SIZES = {"start": 1, "mmlu": 100, "gsm8k": 32, "perplexity": 1}
SUBJECT = "international_law"
"""Its exemplars and questions are about as long as the mean: 100 of its items share what a whole run shares."""
BLOCK, BLOCKS = 2048, 12
TITLES = {
    "start": "to the first forward pass",
    "mmlu": "MMLU 5-shot, {} items",
    "gsm8k": "GSM8K 8-shot, {} items",
    "perplexity": f"perplexity, {BLOCK * BLOCKS:,} tokens",
}
LM_EVAL = Path(".venv-lm-eval/bin/python")


# ---------------------------------------------------------------------------------------------------------- workloads


def prompts(workload: str, count: int) -> list[dict[str, Any]]:
    """Return what is asked: the first items of one MMLU subject 5-shot, of GSM8K 8-shot, or one long text."""
    if workload == "start":
        return [{}]
    folder = os.environ.get("QWEN_EVAL_DATA")
    if workload == "perplexity":
        return [{"text": long_text(Path(folder or "data") / "longcontext")}]
    from qwen_eval import registry
    from qwen_eval.data import find_dataset
    from qwen_eval.plan import make_plan

    entry = registry.load(workload, registry.find())
    dataset = find_dataset(
        entry.task.data, tasks=entry.folder, data_dir=Path(folder) if folder else None, allow_mini=False
    )
    plan = make_plan(entry.task, registry.protocol(entry.task, "qwen"), dataset)
    asked = [request for sample, request in plan.first_requests() if sample.group in ("", SUBJECT)]
    return [{"prompt": each.prompt, "options": list(getattr(each, "options", ()))} for each in asked[:count]]


def long_text(folder: Path) -> str:
    """Return the beginning of a folder's texts that makes whole blocks of tokens."""
    from qwen_eval.models.transformers.checkpoint import locate
    from qwen_eval.models.transformers.tokenization import Tokenizer

    tokenizer = Tokenizer(locate(MODEL).folder)
    files = [file for file in sorted(folder.iterdir()) if ".tex" in file.suffixes]
    text = "\n\n".join(lzma.decompress(file.read_bytes()).decode("utf-8") for file in files[:3])
    ids = tokenizer.encode(text, control=False)
    if len(ids) < BLOCK * BLOCKS:
        raise SystemExit(f"{folder}: expected texts of {BLOCK * BLOCKS:,} tokens, found {len(ids):,}.")
    return tokenizer.decode(ids[: BLOCK * BLOCKS])


# --------------------------------------------------------------------------------------------------------- contenders


def ours(engine: str, items: Sequence[dict[str, Any]]) -> tuple[list[Any], int]:
    """Answer with one of our engines: the best option's index, the generated text, or bits per byte."""
    from qwen_eval.models.transformers.checkpoint import locate
    from qwen_eval.models.transformers.engine import open_model
    from qwen_eval.task import Choose, Chosen, Generate, Generated, Measured, Perplexity

    model = open_model(locate(MODEL), engine=engine, device="cpu")
    for ticket, item in enumerate(items):
        if "text" in item:
            model.submit(ticket, Perplexity(text=item["text"], block=BLOCK))
        elif item["options"]:
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
            elif isinstance(answer, Measured):
                per_token = sum(answer.nll) / sum(answer.tokens)
                answers[ticket] = bits_per_byte(per_token * BLOCK * len(answer.nll), items[ticket]["text"])
    used = model.counters()
    return [answers[ticket] for ticket in range(len(items))], int(used["computed_tokens"])


def bits_per_byte(nll: float, text: str) -> str:
    """Return the negative log-likelihood of a text (nats) in bits per UTF-8 byte, to two digits."""
    return f"{nll / math.log(2) / len(text.encode()):.2f}"


def first_forward() -> None:
    """Run MMLU through the command line up to the first forward pass."""
    from qwen_eval.cli import main as command_line
    from qwen_eval.models.transformers.engine import PackedModel

    def reached(*args: Any, **more: Any) -> None:
        sys.stdout.flush()
        os._exit(0)

    PackedModel._forward_packed = reached  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = ["run", "--task", "mmlu@qwen", "--model", MODEL, "--limit", "1", "--output-dir", folder]
        command_line()


def imports_and_weights() -> None:
    """Import what any harness on transformers needs, and read the checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(os.environ["BENCH_CHECKPOINT"])
    AutoModelForCausalLM.from_pretrained(os.environ["BENCH_CHECKPOINT"], dtype=torch.float32)


def lm_eval(items: Sequence[dict[str, Any]], folder: Path) -> tuple[list[Any], int]:
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
    if "text" in items[0]:
        task = common | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        }
    elif items[0]["options"]:
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
    weights = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    computed = 0

    def count(module: Any, arguments: Sequence[Any], named: dict[str, Any]) -> None:
        nonlocal computed
        computed += (arguments[0] if arguments else named["input_ids"]).numel()

    weights.register_forward_pre_hook(count, with_kwargs=True)
    model = HFLM(
        pretrained=weights,
        tokenizer=checkpoint,
        device="cpu",
        batch_size=1 if "text" in items[0] else 8,
        max_length=BLOCK if "text" in items[0] else None,
    )
    result = simple_evaluate(
        model, tasks=["bench"], task_manager=TaskManager(include_path=str(folder), include_defaults=False)
    )
    answers = []
    for sample in sorted(result["samples"]["bench"], key=lambda each: each["doc_id"]):
        if "text" in items[0]:
            answers.append(bits_per_byte(-float(sample["resps"][0][0]), items[0]["text"]))
        elif items[0]["options"]:
            scores = [float(answer[0]) for answer in sample["filtered_resps"]]
            answers.append(max(range(len(scores)), key=scores.__getitem__))
        else:
            answers.append(sample["resps"][0][0])
    return answers, computed


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
    result = file.with_suffix(f".{contender}.json")
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"answers": [], "computed": 0}
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 1e6, **found}


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
                "Workload": TITLES[workload].format(count),
                "Contender": contender,
                "CPU s": f"{cpu:.1f}",
                "CPU ratio": f"{cpu / median(run['cpu'] for run in first):.2f}",
                "Wall s": f"{median(run['wall'] for run in found):.1f}",
                "Peak GB": f"{max(run['memory'] for run in found):.2f}",
                "Tokens computed": f"{found[0]['computed']:,}" if found[0]["computed"] else "-",
                "Same answers": f"{same} of {count}" if found[0]["answers"] else "-",
            }
        )
    return rows


def contend(contender: str, file: Path) -> None:
    """Do one contender's work in this process; write its answers beside the items."""
    items = json.loads(file.read_text(encoding="utf-8"))
    if contender == "command line":
        first_forward()
    elif contender == "imports":
        imports_and_weights()
    else:
        if contender == "lm-eval":
            answers, computed = lm_eval(items, file.parent)
        else:
            answers, computed = ours("auto" if contender == "engine" else "reference", items)
        found = {"answers": answers, "computed": computed}
        file.with_suffix(f".{contender}.json").write_text(json.dumps(found), encoding="utf-8")


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
        contend(given.contender, given.file)
        return
    from qwen_eval.report.tables import draw

    peers = ["engine", "reference", *(["lm-eval"] if LM_EVAL.exists() else [])]
    rows = [
        row
        for workload in given.workloads
        for row in compare(
            workload,
            given.count or SIZES[workload],
            ["command line", "imports"] if workload == "start" else peers,
            given.rounds,
        )
    ]
    print(draw(rows, "md"))


if __name__ == "__main__":
    main()
