"""`python -m qwen_eval import`: runs of lm-evaluation-harness as run folders of ours. No model."""

from collections.abc import Sequence
from pathlib import Path

import click

from qwen_eval.commands.options import data_dir, include_path, option, output_dir
from qwen_eval.errors import UsageError

__all__ = ["import_"]


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE…")
@option(
    "--task",
    "-t",
    metavar="TASK[@PROTOCOL]",
    help="The task of ours, where their names do not tell; the protocol, where their prompts do not.",
)
@option("--split", metavar="NAME", help="Where the samples are looked up. Default: the split that has most of them.")
@output_dir
@click.option("--overwrite", is_flag=True, help="Replace another import in the same folder.")
@data_dir
@include_path
def import_(
    *,
    files: Sequence[Path],
    task: str | None,
    split: str | None,
    output_dir: Path,
    overwrite: bool,
    data_dir: Path | None,
    include_path: Sequence[Path],
) -> None:
    """Import what lm-evaluation-harness logged with --log_samples. FILE: samples_*.jsonl, or the folder they are in.

    Every metric of theirs becomes a rule, lm-eval:exact_match,strict-match; samples that are found in our data by their
    texts get our ids, and our own rules read their outputs too.
    """
    from qwen_eval.importing import import_runs
    from qwen_eval.lm_eval import read_log
    from qwen_eval.report.tables import results

    logs = [read_log(file) for file in _files(files)]
    done = import_runs(
        logs,
        output_dir=output_dir,
        task=task,
        split=split,
        data_dir=data_dir,
        include=include_path,
        overwrite=overwrite,
        say=_say,
    )
    for each in done:
        name = f"{each.metrics['task']}@{each.metrics['protocol']}"
        _say(f"{name}: {each.matched:,} of {each.samples:,} samples matched: {each.folder}")
        if each.matched < each.samples:
            _say(f"{name}: the others keep their doc_id; our own rules are in the records of those that matched.")
    click.echo(results([each.metrics for each in done], by="task"))


def _files(paths: Sequence[Path]) -> list[Path]:
    """Every file, each once; a folder stands for the sample logs in it."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.glob("samples_*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"{path}: expected sample logs of lm-evaluation-harness (samples_<task>_<time>.jsonl), found none.\n"
                "Next: run it with --log_samples --output_path, and give the folder of the model."
            )
        found |= dict.fromkeys(inside)
    return list(found)


def _say(line: str) -> None:
    click.echo(line, err=True)
