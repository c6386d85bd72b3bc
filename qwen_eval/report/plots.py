"""Plots of what was measured, drawn by matplotlib into files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import UsageError
from qwen_eval.profile import Measurement
from qwen_eval.report.perplexity import label, parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_plot", "plot_perplexity", "plot_profile"]

FORMATS = (".png", ".svg", ".pdf")
HIGHEST = 1e100
"""Perplexities above it are not drawn: matplotlib's margins around them are beyond the largest float."""


def check_plot(file: Path) -> None:
    """Raise UsageError for a file that cannot become a plot; asked before hours of work."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {file}: expected a name that ends in {', '.join(FORMATS)}, found {file.name}.")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: expected a folder that exists, found no {file.parent}.")


def plot_perplexity(runs: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Draw perplexity over length, a line a model and setting, both axes logarithmic; bars are one standard error.

    What is above HIGHEST is left out; False where nothing is left to draw. Raises UsageError where the file cannot be
    written.
    """
    from matplotlib.ticker import LogFormatter

    drawn = [
        [(length, part) for length, part in parts(run) if (part["perplexity"] or HIGHEST) < HIGHEST] for run in runs
    ]
    if not any(drawn):
        return False
    figure = _figure((7, 4.5))
    axes = figure.subplots()
    lengths = sorted({length for each in runs for length, _ in parts(each)})
    for run, found, marker in zip(runs, drawn, "osD^vP*X" * len(runs), strict=False):
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
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("Length of a block (tokens)")
    axes.set_ylabel("Perplexity")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    _save(figure, file)
    return True


def plot_profile(measured: Sequence[Measurement], file: Path) -> None:
    """Draw speed and the peak of memory as bars: a group for every pair of lengths, a colour for a model.

    On a CPU the speed by the processor's seconds has a panel of its own. Raises UsageError where the file cannot be
    written.
    """
    titles: dict[str, Callable[[Measurement], Any]] = {
        "New tokens a second, prefill included": lambda each: each.speed,
        "New tokens a processor's second": lambda each: each.processor_speed,
        "Peak memory with loading, GB": lambda each: each.peak_memory_bytes / 2**30,
        "Peak memory after loading, GB": lambda each: each.peak_memory_answering_bytes / 2**30,
    }
    shown = {title: of for title, of in titles.items() if None not in map(of, measured)}
    lengths = list(dict.fromkeys((each.context, each.new) for each in measured))
    series: dict[tuple[str, str, str], dict[tuple[int, int], Measurement]] = {}
    for each in measured:
        series.setdefault((each.model, each.precision, each.engine), {})[each.context, each.new] = each
    figure = _figure((len(shown) * (1.5 + len(lengths)), 4.5))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    width = 0.8 / len(series)
    for axes, (title, of) in zip(panels, shown.items(), strict=True):
        for number, (which, found) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * width
            at = [index + shift for index, pair in enumerate(lengths) if pair in found]
            values = [of(found[pair]) for pair in lengths if pair in found]
            axes.bar_label(axes.bar(at, values, width=0.95 * width, label=", ".join(which)), fmt="%.3g", fontsize=6)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(lengths)), [f"{context:,} + {new:,}" for context, new in lengths])
        axes.set_xlabel("tokens of context + new ones")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize="small", frameon=False)
    _save(figure, file)


def _figure(size: tuple[float, float]) -> "Figure":
    """Return an empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", file: Path) -> None:
    """Write a figure, without a date in it: the same numbers give the same file. Raises UsageError."""
    try:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UsageError(f"--plot {file}: cannot be written ({error.strerror}).") from None
