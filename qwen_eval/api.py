"""The Python interface: `from qwen_eval import run, compare, gate, load_run`. The same code as the command line.

Errors are those of `qwen_eval.errors`; what the command line says on stderr, these say there too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

import click

from qwen_eval.commands import compare as compare_command
from qwen_eval.commands import gate as gate_command
from qwen_eval.commands import run as run_command
from qwen_eval.errors import UsageError
from qwen_eval.gating import Policy, Report, read_policy
from qwen_eval.loaded import LoadedRun, load_run
from qwen_eval.paired import Pair, pairs
from qwen_eval.report.comparison import Line

__all__ = ["LoadedRun", "Settings", "compare", "gate", "load_run", "run"]


class Settings(TypedDict, total=False):
    """What `run` takes beside task and model: the flags of `python -m qwen_eval run`, with the same defaults.

    As on the command line, a flag that is not given may be set by its environment variable (QWEN_EVAL_DATA, say).
    """

    split: str | None
    limit: int | float | None
    shots: int | None
    batch_size: int | Literal["auto"] | None
    engine: Literal["auto", "reference"]
    dtype: str
    precision: str | Sequence[str]
    adapter: str | Path | None
    hub: Literal["huggingface", "modelscope"]
    device: str
    verify_model: bool
    temperature: float
    top_p: float
    top_k: int
    repeats: int
    seed: int
    deterministic: bool
    judge: Literal["split", "official"]
    container: str
    unsafe_exec: bool
    judge_model: str
    rouge_tokenizer: Literal["qwen", "own"]
    settings: str
    lengths: str
    blocks: int | None
    documents: str | Path | None
    plot: str | Path | None
    trust_remote_code: bool
    chat: bool
    base: bool
    output_dir: str | Path
    data_dir: str | Path | None
    overwrite: bool
    no_mini: bool
    published_truncation: bool
    include_path: Sequence[str | Path]


def run(
    *, task: str | Sequence[str], model: str | Path | Sequence[str | Path] | None = None, **settings: Unpack[Settings]
) -> list[LoadedRun]:
    """Run tasks on one or more models, or resume them, and return the finished runs in the order of both.

        (finished,) = run(task="gsm8k@qwen", model="Qwen/Qwen2.5-7B", limit=100)
        finished.metrics["score"], finished.samples()

    No table is printed. Raises UsageError for a setting that cannot work, IncompleteError where samples ended in an
    error (`load_run` reads what there is), Interrupted after Ctrl-C; the same call again resumes.
    """
    unknown = [name for name in settings if name not in Settings.__annotations__]
    if unknown:
        raise TypeError(f"run() has no setting '{unknown[0]}'")
    command = run_command.run
    given = {"task": [task] if isinstance(task, str) else task, "model": model, **settings}
    try:
        # click converts and checks as for the command line, and knows the defaults.
        context = command.make_context("run", [word for name, value in given.items() for word in _words(name, value)])
        with context:
            values = dict(context.params)
            values["chat"], values["base"] = run_command.kind(values["chat"], values["base"])
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None
    del values["config"]
    values |= {"dry_run": False, "format": None}
    folders = run_command.run_tasks(**values)
    return [load_run(folder) for folder in folders]


@overload
def compare(*runs: LoadedRun | str | Path, reported: str | Sequence[str], by: str = "task") -> list[Line]: ...


@overload
def compare(*runs: LoadedRun | str | Path, baseline: LoadedRun | str | Path) -> list[Pair]: ...


def compare(
    *runs: LoadedRun | str | Path,
    reported: str | Sequence[str] = (),
    by: str = "task",
    baseline: LoadedRun | str | Path | None = None,
) -> list[Line] | list[Pair]:
    """Set finished runs beside published scores, or beside those of a baseline item by item; exactly one of the two.

        for line in compare("results", reported="Qwen-7B"):
            print(line.run.name, line.score, line.reported, line.verdict)
        for pair in compare("results/new", baseline="results/old"):
            print(pair.name, pair.means, pair.difference.value, pair.difference.interval())

    A run is a LoadedRun, a run folder, or a folder of runs; without any it is `results`. `by="category"` adds
    categories to published scores; tasks of the baseline that a run lacks are left out. Raises UsageError for an
    unknown model or runs that asked different things, StoreError for a damaged run, IncompleteError without a score.
    """
    paths = [_path(each) for each in runs or ("results",)]
    if bool(reported) == (baseline is not None):
        raise UsageError("Expected reported=MODEL or baseline=RUN, one of the two.")
    if baseline is not None:
        return [pair for path in paths for pair in pairs(_path(baseline), path)[0]]
    return compare_command.beside(paths, [reported] if isinstance(reported, str) else list(reported), by=by)


def gate(
    candidate: LoadedRun | str | Path,
    *,
    baseline: LoadedRun | str | Path | None = None,
    reported: str | None = None,
    policy: Policy | str | Path | None = None,
) -> Report:
    """Decide whether a candidate is worse than its baseline, or than what is reported of a model; one of the two.

        report = gate("results/new", baseline="results/old", policy="gate.yaml")
        report.outcome, report.exit_code, report.decisions[0].why

    `policy` is a Policy or the path of a YAML file; by default one point may be lost. Nothing is written. Raises what
    `compare` raises.
    """
    allowed = read_policy(Path(policy)) if isinstance(policy, str | Path) else policy or Policy()
    held = None if baseline is None else _path(baseline)
    return gate_command.judge(_path(candidate), baseline=held, reported=reported, policy=allowed)[0]


def _path(run: LoadedRun | str | Path) -> Path:
    return run.path if isinstance(run, LoadedRun) else Path(run)


def _words(name: str, value: object) -> list[str]:
    """A setting as words of the command line. False is said only where a flag has a word for it."""
    flag = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        off = {"no-mini": "mini", "chat": "", "base": ""}.get(flag, f"no-{flag}")
        chosen = flag if value else off
        return [f"--{chosen}"] if chosen else []
    several = value if isinstance(value, list | tuple) else [value]
    return [f"--{flag}={each}" for each in several]
