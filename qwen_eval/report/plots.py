"""Plots of what was measured, by matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_eval.errors import UsageError
from qwen_eval.profile import Measurement

__all__ = ["check_plot", "plot_profile"]

KINDS = (".pdf", ".png", ".svg")


def check_plot(file: Path) -> None:
    """Raise UsageError where a plot cannot be written to a file of that name."""
    if file.suffix not in KINDS or not file.absolute().parent.is_dir():
        raise UsageError(
            f"--plot {file}: expected a file that ends in {', '.join(KINDS)}, in a folder that exists.\n"
            "Next: choose another name."
        )


def plot_profile(measured: Sequence[Measurement], file: Path) -> None:
    """Draw speed and the peak of memory as bars: a group for every pair of lengths, a colour for a model.

    On a CPU the speed by the processor's seconds has a panel of its own. Raises UsageError where the file cannot be
    written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(len(shown) * (1.5 + len(lengths)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
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
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise UsageError(f"--plot {file}: cannot be written ({error.strerror}).") from None
