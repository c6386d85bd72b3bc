"""`python -m qwen_eval tasks`: what can be run, and what its prompts look like."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from qwen_eval import registry
from qwen_eval.commands.options import data_dir, include_path, option
from qwen_eval.data import Dataset, find_dataset, mini_folder, package_folder, present_folder
from qwen_eval.errors import UsageError
from qwen_eval.fetch import host, wheel_file
from qwen_eval.paths import home
from qwen_eval.prompts import as_text
from qwen_eval.registry import Entry
from qwen_eval.scoring import rule_names
from qwen_eval.task import Choose, Generate, Perplexity, Protocol, Request, Sample, Task

__all__ = ["tasks"]


@click.group(invoke_without_command=True)
@data_dir
@include_path
@click.pass_context
def tasks(ctx: click.Context, data_dir: Path | None, include_path: Sequence[Path]) -> None:
    """List every task: protocols, items, licence, where its data would come from. `tasks show` prints a prompt."""
    ctx.obj = (data_dir, include_path)
    if ctx.invoked_subcommand:
        return
    files = registry.find(include_path)
    for name in files:
        entry = registry.load(name, files)
        task = entry.task
        rows = task.data.splits[task.splits[0]].rows
        names = ", ".join(protocol.name for protocol in task.protocols)
        size = f"{rows:,} rows" if rows else "size not published"
        click.echo(f"{name:<18}{task.title}, {size}, {task.data.licence}, {task.paper}")
        click.echo(f"{'':<18}protocols  {names}")
        click.echo(f"{'':<18}data       {source(entry, data_dir)}")


def source(entry: Entry, data_dir: Path | None) -> str:
    """Return where a task's data would come from now, without looking at the network."""
    for root in (data_dir, home() / "data"):
        found = (present_folder(entry.task.data, root) or wheel_file(entry.task.data, root)) if root else None
        if found:
            return str(found)
    packaged = package_folder(entry.task.data)
    if packaged:
        return str(packaged)
    hub = f", the hub ({entry.task.data.hub.id})" if entry.task.data.hub else ""
    mini = ", else the small set that ships with the project" if mini_folder(entry.task.data, entry.folder) else ""
    return f"{host(entry.task.data)}{hub}{mini}"


@tasks.command()
@click.argument("name", metavar="TASK[@PROTOCOL]")
@option("--sample", metavar="ID", help="A sample's id, or its number in file order from 0.")
@option("--split", metavar="NAME", help="Another split than the task's own.")
@option("--shots", type=click.IntRange(min=0), metavar="N", help="Exemplars in the prompt.")
@option("--raw", is_flag=True, help="Write exactly the prompt's bytes, nothing else.")
@option("--model", metavar="MODEL", help="Render conversations with this model's chat template instead of ChatML.")
@data_dir
@include_path
@click.pass_obj
def show(
    given: tuple[Path | None, Sequence[Path]],
    name: str,
    sample: str | None,
    split: str | None,
    shots: int | None,
    raw: bool,
    model: str | None,
    data_dir: Path | None,
    include_path: Sequence[Path],
) -> None:
    """Show a task's protocols and rules, or with --sample one rendered prompt."""
    data_dir, include_path = data_dir or given[0], include_path or given[1]
    task_name, protocol_name = registry.split_name(name)
    entry = registry.load(task_name, registry.find(include_path))
    chosen = registry.protocol(entry.task, protocol_name) if protocol_name else entry.task.protocols[0]
    if sample is None:
        if raw:
            raise UsageError("--raw: expected --sample ID beside it.")
        _describe(entry.task, data_dir, entry)
        return
    dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=data_dir, say=_say)
    found, request = _request(entry.task, chosen, dataset, sample, split=split, shots=shots)
    for warning in dataset.warnings:
        _say(f"Warning: {warning}")
    text = _rendered(request, model)
    if raw:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        return
    click.echo(f"{task_name}@{chosen.name}{' (mini)' if dataset.mini else ''}, sample {found.id}: {chosen.about}")
    click.echo(f"{_settings(request)}, headline rule {chosen.rule}")
    click.echo(f"gold: {found.gold!r}" if found.gold else "gold: not in this copy of the data")
    click.echo("─" * 100)
    click.echo(_visible(text))
    click.echo("─" * 100)
    click.echo("⏎ is a newline of the prompt, ␠ a space at the end of a line or of the prompt.")


def _request(
    task: Task, protocol: Protocol, dataset: Dataset, wanted: str, *, split: str | None, shots: int | None
) -> tuple[Sample, Request]:
    from qwen_eval.plan import make_plan

    plan = make_plan(task, protocol, dataset, split=split, shots=shots)
    for index, (sample, request) in enumerate(plan.first_requests()):
        if wanted in (sample.id, str(index)):
            return sample, request
    raise UsageError(
        f"--sample {wanted}: expected a number below {plan.total:,} or an id like {plan.samples[0].id}, found neither."
    )


def _rendered(request: Request, model: str | None) -> str:
    if isinstance(request, Perplexity):
        return "".join(request.text)
    if model is None or isinstance(request.prompt, str):
        return as_text(request.prompt)
    from qwen_eval.models.transformers.checkpoint import locate
    from qwen_eval.models.transformers.tokenization import Tokenizer

    return Tokenizer(locate(model).folder).render(request.prompt)


def _settings(request: Request) -> str:
    if isinstance(request, Generate):
        stops = ", ".join(map(repr, request.stops)) or "none"
        return f"greedy generation, at most {request.max_new_tokens} new tokens, stop strings: {stops}"
    if isinstance(request, Choose):
        return f"log-probability of {', '.join(map(repr, request.options))}"
    return f"perplexity, blocks of {request.block} tokens"


def _visible(text: str) -> str:
    lines = text.split("\n")
    shown = []
    for number, line in enumerate(lines):
        bare = line.rstrip(" ")
        ending = "" if number == len(lines) - 1 else "⏎"
        shown.append(bare + "␠" * (len(line) - len(bare)) + ending)
    return "\n".join(shown)


def _describe(task: Task, data_dir: Path | None, entry: Entry) -> None:
    click.echo(f"{task.name}: {task.title}, {task.paper}")
    click.echo(f"data: {task.data.homepage}, {task.data.licence}; {source(entry, data_dir)}\n")
    for protocol in task.protocols:
        kind = "chat" if protocol.chat else "base"
        mean = ", mean over subjects" if protocol.average == "macro" else ""
        click.echo(f"  {task.name}@{protocol.name:<18}{kind}, {protocol.shots} shots, rule {protocol.rule}{mean}")
        click.echo(f"  {'':<{len(task.name) + 19}}{protocol.about}")
    runs = "; each runs the program that it finds" if task.programs else ""
    runs += f"; {', '.join(task.checks)} first have code run or ask a judge" if task.checks else ""
    click.echo(f"\n  rules: {', '.join(rule_names(task))}{runs}")
    if len(task.splits) > 1 and not all(protocol.split for protocol in task.protocols):
        click.echo(f"  splits: {', '.join(task.splits)} (--split)")
    click.echo(f"\nOne prompt: python -m qwen_eval tasks show {task.name}@{task.protocols[0].name} --sample 0")


def _say(line: str) -> None:
    click.echo(line, err=True)
