"""How long a large run takes to open: what a resumed run reads before its first request, and what `score` reads.

    python benchmarks/opening.py [--records 100000] [--rounds 5]

The outputs are texts of about a thousand bytes; half of their time goes with their length. Files are in the page cache.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwen_eval.results import RunFolder, StoredAnswer, read_records
from qwen_eval.task import Generated

TEXT = "Ann has 3 apples and buys 4 more. 她现在有几个苹果？ Let us think step by step, and count. " * 11


def main() -> None:
    """Write a run, open it several times and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = [f"subject/test/{number}" for number in range(options.records)]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        manifest = {"task": "toy", "samples": len(names)}
        with RunFolder(run, manifest) as folder:
            folder.append(StoredAnswer(name, 0, "0123456789abcdef", answer(name)) for name in names)
            folder.write_derived((record(name) for name in names), {"task": "toy", "n": len(names)})

        def opened() -> int:
            with RunFolder(run, manifest) as folder:
                return len(folder.answers)

        print(f"{len(names):,} records, {options.rounds} rounds\n")
        print("| | MB | seconds, median | least |\n| --- | --- | --- | --- |")
        for title, file, read in (
            ("opening a run to go on with it", "answers.jsonl", opened),
            ("reading its records", "records.jsonl", lambda: len(read_records(run))),
        ):
            seconds = [measured(read, len(names)) for _ in range(options.rounds)]
            size = (run / file).stat().st_size / 1e6
            print(f"| {title} | {size:.0f} | {statistics.median(seconds):.2f} | {min(seconds):.2f} |")


def answer(name: str) -> Generated:
    return Generated(text=f"{TEXT}{name}", finish="end", prompt_tokens=700, new_tokens=250)


def record(name: str) -> dict[str, object]:
    verdicts = {f"rule {number}": {"extracted": "7", "correct": True} for number in range(5)}
    output = {"text": f"{TEXT}{name}", "finish": "end", "prompt_tokens": 700, "new_tokens": 250, "cut_tokens": 0}
    doc = {"question": TEXT[:300], "answer": "7"}
    return {"doc_id": name, "doc": doc, "target": "7", "outputs": [output], "verdicts": verdicts, "repeat": 0}


def measured(read: Callable[[], int], expected: int) -> float:
    """Return how many seconds it takes to read so many."""
    begun = time.perf_counter()
    assert read() == expected
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
