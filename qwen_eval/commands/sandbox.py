"""`python -m qwen_eval sandbox`: judge programs that a model wrote, outside of a run."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from qwen_eval.commands.options import option, sandbox_options
from qwen_eval.errors import IncompleteError, UsageError
from qwen_eval.sandbox import Outcome, Program, Sandbox

__all__ = ["sandbox"]

TEXTS = ("prompt", "completion", "program", "test", "entry_point")


@click.command()
@option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines {"task_id", "prompt", "completion" or "program", "test", "entry_point", "timeout" (optional)}.',
)
@option("--output", "target", required=True, type=click.Path(path_type=Path), metavar="FILE")
@option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="CPU time of a program whose line does not say.",
)
@option("--workers", type=click.IntRange(min=1), metavar="N", help="Programs at once.  [default: processors]")
@sandbox_options
def sandbox(
    *,
    source: Path,
    target: Path,
    timeout: float,
    workers: int | None,
    judge: str,
    container: str,
    unsafe_exec: bool,
) -> None:
    """Judge programs: a line {"task_id", "passed", "result", "judge"} for each, in input order.

    A program is "program", or "prompt" and "completion" joined. "test" defines check(candidate), or is statements.
    What the sandbox promises, and what not: SANDBOX.md.
    """
    if target.resolve() == source.resolve():
        raise UsageError(f"--output {target}: expected another file than --input.")
    rows = list(_rows(source, timeout))
    if not rows:
        raise UsageError(f"{source}: expected programs to judge, found none.")
    box = Sandbox(judge=judge, workers=workers, container=container, unsafe=unsafe_exec)
    outcomes = _judge([program for _, program in rows], box)
    lines = [_line(name, outcome, unsafe_exec) for (name, _), outcome in zip(rows, outcomes, strict=True)]
    _write(target, lines)
    passed = sum(outcome.passed for outcome in outcomes)
    click.echo(f"{passed:,} of {len(rows):,} passed ({100 * passed / len(rows):.1f} %)", err=True)
    broken = [name for (name, _), outcome in zip(rows, outcomes, strict=True) if outcome.result.startswith("error")]
    if broken:
        raise IncompleteError(
            f"{len(broken):,} of {len(rows):,} programs could not be judged, {broken[0]!r} first; "
            f'their "result" in {target} says why.\nNext: judge them again.'
        )


def _judge(programs: Sequence[Program], box: Sandbox) -> list[Outcome]:
    """Judge all programs; outcomes in their order."""
    from tqdm import tqdm

    found: dict[int, Outcome] = {}
    with box, tqdm(total=len(programs), desc="sandbox", unit="program") as bar:
        for ticket, program in enumerate(programs):
            box.submit(ticket, program)
        while some := box.collect():
            found.update(some)
            bar.update(len(some))
    return [found[ticket] for ticket in range(len(programs))]


def _line(name: object, outcome: Outcome, unsafe: bool) -> dict[str, Any]:
    """Return an output line; it says so where the other judge disagreed, and where there was no isolation."""
    line: dict[str, Any] = {"task_id": name, "passed": outcome.passed, "result": outcome.result, "judge": outcome.judge}
    if outcome.official is not None and outcome.official != outcome.passed:
        line["other_judge_passed"] = outcome.official
    if unsafe:
        line["unsafe"] = True
    return line


def _rows(source: Path, timeout: float) -> Iterator[tuple[object, Program]]:
    """Read the input; every line that is not a program is an error with its number."""
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, f"{source}, line {number}", timeout)
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror}).") from None


def _row(line: bytes, place: str, timeout: float) -> tuple[object, Program]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: expected JSON ({error}).") from None
    if not isinstance(row, dict):
        raise UsageError(f'{place}: expected an object {{"task_id", "test", …}}, found {type(row).__name__}.')
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise UsageError(f'{place}: expected a string as "{name}", found {type(row[name]).__name__}.')
    missing = [name for name in ("task_id", "test") if name not in row]
    missing += [] if "program" in row or "completion" in row else ["completion"]
    if missing:
        raise UsageError(f'{place}: "{missing[0]}" is missing.')
    if not row.get("entry_point") and "def check" in row["test"]:
        raise UsageError(f'{place}: "entry_point" is missing; the test\'s check is called with it.')
    seconds = row.get("timeout", timeout)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise UsageError(f'{place}: expected a number of seconds above 0 as "timeout", found {seconds!r}.')
    prompt = row.get("prompt", "")
    whole = row["program"] if "program" in row else prompt + row["completion"]
    return row["task_id"], Program(
        source=whole, prompt=prompt, test=row["test"], entry_point=row.get("entry_point", ""), timeout=float(seconds)
    )


def _write(target: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write the verdicts whole or not at all; a device or a pipe is written directly."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    direct = target.exists() and not target.is_file()
    partial = target if direct else target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        if not direct:
            partial.replace(target)
    except OSError as error:
        raise UsageError(f"--output {target}: cannot be written ({error.strerror}).") from None
