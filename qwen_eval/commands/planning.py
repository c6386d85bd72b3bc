"""What a command line means, before anything is asked: models, tasks, data, and a plan of each task for each model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_eval.commands.evaluate import Failures, say
from qwen_eval.errors import MissingError, UsageError

if TYPE_CHECKING:
    from qwen_eval.data import Dataset
    from qwen_eval.models.base import Model
    from qwen_eval.plan import Plan
    from qwen_eval.registry import Entry
    from qwen_eval.task import Sampling

__all__ = [
    "by_own_tokens",
    "check_by_length",
    "find_datasets",
    "plan_for",
    "prepared",
    "wanted_models",
    "wanted_sampling",
    "wanted_settings",
    "wanted_tasks",
]


def wanted_tasks(names: Sequence[str], include: Sequence[Path]) -> list[tuple["Entry", str | None]]:
    """Load the tasks and check the protocols before anything expensive."""
    from qwen_eval import registry

    files = registry.find(include)
    wanted: list[tuple[Entry, str | None]] = []
    for name in dict.fromkeys(name.strip() for given in names for name in given.split(",")):
        task, named = registry.split_name(name)
        entry = registry.load(task, files)
        if named:
            registry.protocol(entry.task, named)
        every = entry.task.protocols if entry.task.together and not named else ()
        wanted += [(entry, protocol.name) for protocol in every] or [(entry, named)]
    return wanted


def wanted_models(given: Sequence[str]) -> list[str]:
    """Return the models that were named, each once. A comma separates them, but in the name of a path that exists."""
    named = [
        name
        for each in given
        for name in ([each] if Path(each).expanduser().exists() else [part.strip() for part in each.split(",")])
    ]
    return list(dict.fromkeys(named))


def wanted_settings(settings: str) -> list[str | None]:
    """Return the settings for long contexts that were named, each once; None is the checkpoint's own."""
    from qwen_eval.models.longcontext import settings_of

    return [*settings_of(settings)] if settings else [None]


def wanted_sampling(temperature: float, top_p: float, top_k: int, repeats: int, seed: int) -> "Sampling | None":
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


def find_datasets(
    entries: Sequence["Entry"], data_dir: Path | None, documents: Path | None, failures: Failures, *, allow_mini: bool
) -> dict[str, "Dataset"]:
    """Return the data of the tasks by name: the user's documents where they are meant, else what is here or can be had.

    A task whose data cannot be had is said, and left out.
    """
    from qwen_eval.data import documents_dataset, find_dataset

    found = {}
    tasks = {entry.task.name: entry for entry in entries}
    for name, entry in tasks.items():
        with failures.apart(name, MissingError, alone=len(tasks) == 1):
            spec = entry.task.data
            if documents and entry.task.at_lengths:
                found[spec.name] = documents_dataset(spec, documents)
                continue
            found[spec.name] = find_dataset(spec, tasks=entry.folder, data_dir=data_dir, allow_mini=allow_mini, say=say)
    return found


def prepared(wanted: Sequence[tuple["Entry", str | None]], failures: Failures) -> list[tuple["Entry", str | None]]:
    """Get what rules need from outside; return the tasks whose rules have it."""
    tasks = {entry.task.name: entry.task.prepare for entry, _ in wanted}
    missing = {name for name, prepare in tasks.items() if prepare}
    for name, prepare in tasks.items():
        with failures.apart(name, MissingError, alone=len(tasks) == 1):
            if prepare:
                prepare()
            missing.discard(name)
    return [(entry, named) for entry, named in wanted if entry.task.name not in missing]


def check_by_length(flags: Sequence[str], wanted: Sequence[tuple["Entry", str | None]], plot: Path | None) -> None:
    """Raise UsageError for flags of tasks measured by length where there is none, and for a plot without a place."""
    if flags and wanted and not any(entry.task.at_lengths for entry, _ in wanted):
        raise UsageError(f"{flags[0]}: expected perplexity among the tasks, found none that is measured by length.")
    if plot:
        from qwen_eval.report.plots import check_plot

        check_plot(plot)


def plan_for(
    wanted: tuple["Entry", str | None],
    answering: "Model",
    model: str,
    datasets: Mapping[str, "Dataset"],
    *,
    made: dict[tuple[str, str], "Plan"],
    make: Callable[..., "Plan"],
    chat: bool,
    base: bool,
) -> "Plan":
    """Return the plan of a task for a model; what is planned for one model (`made`) serves the others."""
    from qwen_eval.registry import default_protocol, protocol

    entry, named = wanted
    as_chat = chat or (not base and answering.identity.chat)
    chosen = protocol(entry.task, named) if named else default_protocol(entry.task, chat=as_chat)
    kinds = {each.chat for each in entry.task.protocols}
    if not named and not (chat or base) and len(kinds) > 1:
        kind, other = ("chat", "--base") if as_chat else ("base", "--chat")
        say(f"{model} is a {kind} model: {entry.task.name}@{chosen.name} ({other} for the other kind)")
    place = entry.task.name, chosen.name
    if place not in made:
        made[place] = make(entry.task, chosen, datasets[entry.task.data.name])
    _check_renders(made[place], answering, model)
    return made[place]


def _check_renders(plan: "Plan", engine: "Model", model: str) -> None:
    """A conversation and a model without a chat template: said before anything is loaded."""
    _, request = next(plan.first_requests())
    try:
        engine.prompt_tokens(request)
    except UsageError as error:
        raise UsageError(f"{plan.name} on {model}: {error}") from None


def by_own_tokens(plan: "Plan", model: "Model") -> "Plan":
    """Return a plan whose rules count the model's own tokens, where it has rules that count tokens."""
    if plan.task.rules_by_tokens is None:
        return plan
    model.pieces("")  # an endpoint's tokens are not known: said before anything is asked
    rules = plan.task.rules_by_tokens(model.pieces)
    return replace(plan, task=replace(plan.task, rules=rules), rouge_tokenizer="own")
