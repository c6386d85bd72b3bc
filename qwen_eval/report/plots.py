"""Plots, drawn by matplotlib into files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_eval.errors import UsageError
from qwen_eval.report.perplexity import label, parts

__all__ = ["check_plot", "plot_perplexity"]

FORMATS = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """Raise UsageError for a file that cannot become a plot; asked before hours of work."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {file}: expected a name that ends in {', '.join(FORMATS)}, found {file.name}.")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: expected a folder that exists, found no {file.parent}.")


def plot_perplexity(runs: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw perplexity over length, a line a model and setting, both axes logarithmic; bars are one standard error.

    Raises UsageError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lengths = sorted({length for each in runs for length, _ in parts(each)})
    for run, marker in zip(runs, "osD^vP*X" * len(runs), strict=False):
        found = parts(run)
        axes.errorbar(
            [length for length, _ in found],
            [part["perplexity"] for _, part in found],
            yerr=[part["standard_error"] or 0.0 for _, part in found],
            label=label(run),
            marker=marker,
            markersize=5,
            # Lines that coincide up to the training length stay visible.
            fillstyle="none",
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("Length of a block (tokens)")
    axes.set_ylabel("Perplexity")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    try:
        # No date in it: the same runs give the same file.
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UsageError(f"--plot {file}: cannot be written ({error.strerror}).") from None
