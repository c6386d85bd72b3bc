"""What `run` has planned, model after model and task after task; what fails for one keeps nothing from the others."""

import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_eval.errors import DataError, IncompleteError, Interrupted, QwenEvalError
from qwen_eval.task import Perplexity

if TYPE_CHECKING:
    from qwen_eval.models.base import Identity, Model
    from qwen_eval.plan import Plan
    from qwen_eval.runner import Helpers, Stop

__all__ = ["Failures", "Planned", "evaluate", "say"]


@dataclass(frozen=True)
class Planned:
    """A model as the user named it, identified but not loaded, and what it is to be asked."""

    name: str
    model: "Model"
    plans: list["Plan"]


class Failures:
    """What could not be run. It is said at once; the largest exit code is the one the command ends in.

    Of an error only its name and kind are kept: its frames would hold on to the memory of the model it came from.
    """

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self.found: list[tuple[str, type[QwenEvalError]]] = []

    @contextmanager
    def apart(self, name: str, *kinds: type[Exception], alone: bool) -> Iterator[None]:
        """Keep an error of one part from the others. Where there is only this one (`alone`), it is raised."""
        try:
            yield
        except Interrupted:
            raise
        except kinds as error:
            if alone:
                raise
            if isinstance(error, QwenEvalError):
                say(f"Error: {name}: {error}")
                self.found.append((name, type(error)))
            else:
                say(
                    f"Error: {name}: a bug of ours ({type(error).__name__}: {error}).\n"
                    "Next: run it alone with --debug and report what it prints."
                )
                self.found.append((name, QwenEvalError))

    def end(self, incomplete: Sequence[str] = ()) -> None:
        """Raise the worst of what went wrong, if anything did. `incomplete`: runs without a score."""
        withheld = (
            f"{', '.join(incomplete)}: some samples ended in an error, so there is no headline score.\n"
            "Next: metrics.json names them; the same command tries them again."
        )
        if not self.found:
            if incomplete:
                raise IncompleteError(withheld)
            return
        if incomplete:
            say(f"Error: {withheld}")
        kinds = [kind for _, kind in self.found] + [IncompleteError] * bool(incomplete)
        raise max(kinds, key=lambda kind: kind.exit_code)(
            f"not everything could be run; missing: {'; '.join(name for name, _ in self.found)}.\n"
            "Next: see above what each of them needs; the same command again runs what is missing."
        )


def evaluate(
    planned: Sequence[Planned],
    output_dir: Path,
    failures: Failures,
    *,
    helpers: "Helpers",
    settings: Mapping[str, Any],
    overwrite: bool,
    format: str | None,
    by: str,
    effect: bool = False,
    plot: Path | None = None,
) -> list[Path]:
    """Run everything, write each result as soon as it exists, print one table (none where `format` is None).

    `effect`: and one of scores beside speed and memory, for people; the models are one model in several precisions.
    A model is unloaded before the next. Return the folders of what was finished.
    """
    from qwen_eval.runner import Stop, stop_on_signal

    finished: list[dict[str, Any]] = []
    incomplete: list[str] = []
    folders: list[Path] = []
    main = threading.current_thread() is threading.main_thread()  # Python lets only this one take signals
    alone = sum(len(each.plans) for each in planned) == 1 and not failures.found
    try:
        with stop_on_signal(say) if main else nullcontext(Stop()) as stop:
            for each in planned:
                for plan in each.plans:
                    name = plan.name if len(planned) == 1 else f"{plan.name} on {each.name}"
                    with failures.apart(name, Exception, alone=alone):
                        _check_lengths(plan, each.model, name)
                        path = _model_folder(output_dir, each.model.identity) / plan.folder
                        manifest = _manifest(plan, each.model.identity, settings)
                        finished.append(_run(plan, each.model, path, manifest, helpers, stop, name, overwrite))
                        folders.append(path)
                        incomplete += [name] if finished[-1]["errors"] else []
                        _say_ungraded(plan, finished[-1])
                        _say_unjudged(plan, finished[-1])
                each.model.unload()
    except (Interrupted, KeyboardInterrupt) as error:
        _print(finished, format, by)
        words = ["python", "-m", "qwen_eval", *(word for word in sys.argv[1:] if word != "--overwrite")]
        again = f"resume with  {shlex.join(words)}" if format else "the same call again resumes."
        raise Interrupted(f"{str(error) or 'Stopped at once.'}\nNext: {again}") from None
    _print(finished, format, by)
    if effect and folders and format in ("text", "md", "latex"):
        from qwen_eval.loaded import load_run
        from qwen_eval.report.precision import effect_table

        click.echo("\n" + effect_table([load_run(folder) for folder in folders], format=format))
    if plot and (runs := [each for each in finished if each.get("perplexity")]):
        from qwen_eval.report.plots import plot_perplexity

        drawn = plot_perplexity(runs, plot)
        say(f"Plot: {plot}" if drawn else "Plot: none, as no perplexity is a number that can be drawn.")
    failures.end(incomplete)
    return folders


def _check_lengths(plan: "Plan", model: "Model", name: str) -> None:
    """Say which lengths the documents have no block of, in this model's tokens. Raises DataError where that is all."""
    if not plan.task.at_lengths:
        return
    # The first of each length: the samples are in the order of the documents.
    firsts = {each.block: each for _, each in reversed([*plan.first_requests()]) if isinstance(each, Perplexity)}
    short = [length for length in sorted(firsts) if not model.prompt_tokens(firsts[length])]
    if not short:
        return
    if len(short) == len(firsts):
        raise DataError(
            f"{plan.name}: expected documents of {short[0]:,} tokens or more, found fewer in all of them together.\n"
            "Next: give shorter --lengths, or longer --documents."
        )
    say(f"{name}: the documents are too short for a block of {', '.join(f'{each:,}' for each in short)} tokens.")


def _print(finished: Sequence[dict[str, Any]], format: str | None, by: str) -> None:
    from qwen_eval.report.tables import results

    if finished and format:
        click.echo(results(finished, format=format, by=by))


def _run(
    plan: "Plan",
    model: "Model",
    path: Path,
    manifest: Mapping[str, Any],
    helpers: "Helpers",
    stop: "Stop",
    name: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Run one plan on one model under a progress bar; return its metrics."""
    from tqdm import tqdm

    from qwen_eval.results import RunFolder
    from qwen_eval.runner import run

    with (
        RunFolder(path, manifest, overwrite=overwrite) as folder,
        tqdm(
            total=len(plan.samples) * plan.repeats,
            desc=name,
            unit="item" if plan.repeats == 1 else "dialogue",
            smoothing=0,
            # A terminal is redrawn; a log file gets a line now and then.
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as bar,
    ):
        try:
            metrics = run(
                plan, model, folder, stop=stop, helpers=helpers, bar=bar, say=partial(tqdm.write, file=sys.stderr)
            )
        except Exception:
            # Nothing it was asked for this task is computed beside the next one's.
            model.unload()
            raise
    say(f"{name}: {path}")
    return metrics


def _model_folder(output_dir: Path, identity: "Identity") -> Path:
    """Return where a model's runs go. One that was renamed since goes on in its folder."""
    end = f"-{identity.fingerprint[:8]}"
    own = output_dir / f"{_safe(identity.name)}{end}"
    earlier = sorted(folder for folder in output_dir.glob(f"*{end}") if folder.is_dir())
    return own if own.exists() or not earlier else earlier[0]


def _manifest(plan: "Plan", identity: "Identity", settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a score. `settings` are those that neither the plan nor the model knows.

    That of the sandbox belongs to tasks that run code alone, that of the judge to those that have something to judge.
    """
    from qwen_eval import __version__

    foreign = {"sandbox": not plan.needs_sandbox, "judge_model": not plan.task.checks}
    return {
        **plan.manifest(),
        **{name: value for name, value in settings.items() if not foreign.get(name)},
        "model": {
            "name": identity.name,
            "fingerprint": identity.fingerprint,
            "dtype": identity.dtype,
            "device": identity.device,
            "engine": identity.engine,
            "chat_template": identity.chat_template,
            **({"rope": identity.rope} if identity.rope else {}),
            **({"remote_code": True} if identity.remote_code else {}),
        },
        "batch_invariant": identity.exact,
        "versions": {"qwen_eval": __version__, **identity.versions},
    }


def _say_ungraded(plan: "Plan", metrics: dict[str, Any]) -> None:
    """Where the data has no answers there is no score; say what there is instead."""
    if not metrics["ungraded"]:
        return
    whole = metrics["n"] == plan.total
    form = "submission.json is" if whole else f"a run of all {plan.total:,} items writes"
    say(
        f"{plan.name}: this copy of the data has no answers for split {plan.split}, so there is no score; {form} "
        "what the leaderboard takes."
    )


def _say_unjudged(plan: "Plan", metrics: dict[str, Any]) -> None:
    """Say which rules nobody was there to answer for."""
    silent = [rule for rule in plan.task.checks if not metrics["rules"].get(rule, {}).get("n")]
    if silent and not plan.judged and metrics["n"]:
        say(
            f"{plan.name}: not scored by {', '.join(silent)}: there was no judge. --judge-model names one that sees "
            "images; nothing else is asked again."
        )


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def say(line: str) -> None:
    """Tell the user something that is no result."""
    click.echo(line, err=True)
